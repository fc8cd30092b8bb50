"""HTML pages, read as text and in a headless Chromium, which is driven through its debugging pipe: no driver, no network."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
_FLAGS += ["disable-component-update", "disable-sync", "hide-scrollbars", "remote-debugging-pipe"]
_PATIENCE = 60  # seconds that the browser may take to answer before it is ended


_VOID = {"meta", "link", "img", "br", "hr", "input"}

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
OPEN = "document.querySelectorAll('details').forEach(one => one.open = true)"

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


class Page(HTMLParser):
    """A page's tags with their attributes, and its text; tags must be closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.tags, self.text = [], [], ""
        self.feed(str(text))  # markup, added to text, would escape it
        assert not self.stack
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        self.text += " "

    def handle_data(self, data):
        if "style" not in self.stack:
            self.text += data

    def all(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


EVIL = "<img src=x onerror=document.title='evil'>\"'&"


def assert_text(path: Path, least: int) -> None:
    """EVIL is on the page as text, so often at least, and nothing of it is markup."""
    text = path.read_text(encoding="ascii")
    found = Page(text)
    assert text.count("onerror") >= least and "<img src=x" not in text and EVIL in found.text
    assert not found.all("script") and all(image["src"].startswith("data:") for image in found.all("img"))
    attributes = {name for _, attrs in found.tags for name in attrs}
    assert not any(name.startswith("on") or not name.replace("-", "").isalnum() for name in attributes)
    assert "&lt;" not in found.text and "&amp;" not in found.text  # nothing is escaped twice
    assert all(link["href"].startswith(("#", "file:", "data:")) for link in (*found.all("a"), *found.all("link")))


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

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at a width in pixels and wait until it and its pictures are there."""
        self.said.clear()
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
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
