"""Pages in a headless Chromium, which is driven through its debugging pipe: no driver, no network.

The fixture `browser` of tests/conftest.py is one for all tests: `assert browser.faults(path) == []` is the check of a page.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
_FLAGS += ["disable-component-update", "disable-sync", "hide-scrollbars", "remote-debugging-pipe"]
_PATIENCE = 60  # seconds that the browser may take to answer before it is ended

# Scripts for Chromium.run: texts of too little contrast (WCAG AA), pixels that stand out to the right, pictures that are
# not there, and to open all that is folded
CONTRASTS = """
(() => {
  const number = text => { const c = text.match(/[\\d.]+/g).map(Number); return c[3] === 0 ? null : c.slice(0, 3); };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                       return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = number(getComputedStyle(e).backgroundColor); if (c) return c; }
                        return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
    if (svg && e.tagName !== 'text') continue;
    const a = light(number(svg ? style.fill : style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push([e.tagName, e.textContent.slice(0, 30), ratio]);
  }
  return low;
})()
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt)"
POLICY = (
    """document.querySelector('meta[http-equiv="Content-Security-Policy"]')?.content.startsWith("default-src 'none'")"""
)
OPEN = "document.querySelectorAll('details').forEach(one => one.open = true)"

# Codes of the keys that write no character
CODES = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Chromium:
    """One browser with one page, as a context manager."""

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        # the browser reads commands from its descriptor 3 and writes answers to 4, each a JSON text and a zero byte
        line = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        program = [PROGRAM, *(f"--{flag}" for flag in _FLAGS), f"--user-data-dir={self._profile.name}"]
        program = ["bash", "-c", line, str(commands), str(answers), *program]
        self._process = subprocess.Popen(
            program, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._file = os.fdopen(self._in, "rb")
        self._count, self._session, self.said = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._file.close()
        os.close(self._out)
        self._profile.cleanup()

    def call(self, method: str, **parameters) -> dict:
        """A command of the DevTools protocol; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict:
        end = threading.Timer(_PATIENCE, self._process.kill)
        end.start()
        parts = bytearray()
        try:
            while (byte := self._file.read(1)) != b"\0":
                if not byte:
                    raise RuntimeError("the browser ended")
                parts += byte
        finally:
            end.cancel()
        message = json.loads(parts)
        self.said.append(message)
        return message

    def dye(self, dark: bool) -> None:
        """Show pages in their light or dark colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at a width in pixels and wait until it and its pictures are there."""
        self.said.clear()
        self.dye(dark)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(message.get("method") == "Page.loadEventFired" for message in self.said):
            self._read()
        self.run("Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 0)")

    def run(self, script: str):
        """The value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def errors(self) -> list[str]:
        """What the console, the page's scripts and the network complained of since `open`."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")
        return [json.dumps(message["params"]) for message in self.said if message.get("method") in kinds]

    def requests(self) -> list[str]:
        """What was loaded since `open`, but for data inside the page."""
        urls = [m["params"]["request"]["url"] for m in self.said if m.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def faults(self, path: Path) -> list[str]:
        """What is wrong with a page at 400 and 1400 pixels, light and dark, folded and unfolded: scripts that fail, breaches of
        its content security policy, anything loaded from elsewhere, absent pictures, a body that scrolls sideways, pale text."""
        found = []
        for width in (400, 1400):
            self.open(path, width)
            if (wide := self.run("document.documentElement.clientWidth")) != width:
                found.append(f"{width} pixels: laid out for {wide}")
            if self.run(POLICY) is not True:
                found.append("no content security policy that forbids all but what it names")
            for opened in (False, True):
                if opened:
                    self.run(OPEN)
                if (pixels := self.run(OVERFLOW)) > 0:
                    found.append(f"{width} pixels{', opened' * opened}: the body scrolls by {pixels} pixels")
            found += [f"{width} pixels: no picture: {alt}" for alt in self.run(BROKEN)]
            for dark in (False, True):
                self.dye(dark)
                found += [
                    f"{width} pixels, {'dark' if dark else 'light'}: pale: {text}" for text in self.run(CONTRASTS)
                ]
            elsewhere = [url for url in self.requests() if url != path.resolve().as_uri()]
            found += [f"{width} pixels: {what}" for what in (*self.errors(), *elsewhere)]
        return found

    def press(self, *keys: str) -> None:
        """Press keys one after the other: a character, or a name as in KeyboardEvent.key."""
        for key in keys:
            code = CODES.get(key, 0)
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            about = {"key": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def shot(self, **clip: float) -> bytes:
        """A picture of the window, or of a part of the page (x, y, width, height), as PNG."""
        parameters = {"clip": clip | {"scale": 1}, "captureBeyondViewport": True} if clip else {}
        return base64.b64decode(self.call("Page.captureScreenshot", **parameters)["data"])
