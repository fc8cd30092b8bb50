"""Progress of long work: a bar on a terminal, a heartbeat elsewhere, also inside a library."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

EVERY = 10.0  # seconds from one line to the next


class _Blocks:
    """What is being done, the innermost piece of work last, and when that was last printed."""

    lock = threading.Lock()
    open: list[tuple[Callable[[float], str] | None, float]] = []
    printed = 0.0


@contextmanager
def heartbeat(text: Callable[[float], str] | None) -> Iterator[None]:
    """Print text(seconds since the block began) to standard error every ten seconds until the block ends; while another one is
    open within it, only that one's. None: nothing, as when a bar is drawn."""
    block, ended = (text, time.monotonic()), threading.Event()

    def lines() -> None:
        while not ended.wait(max(0.0, _Blocks.printed + EVERY - time.monotonic())):
            with _Blocks.lock:
                now = time.monotonic()
                if _Blocks.open and now >= _Blocks.printed + EVERY:
                    _Blocks.printed = now
                    what, begin = _Blocks.open[-1]
                    if what:
                        print(what(now - begin), file=sys.stderr, flush=True)

    with _Blocks.lock:
        if not _Blocks.open:
            _Blocks.printed = block[1]
        _Blocks.open.append(block)
    thread = threading.Thread(target=lines, daemon=True)
    with suppress(RuntimeError):  # the system starts no thread: the work itself can go on
        thread.start()
    try:
        yield
    finally:
        with _Blocks.lock:
            _Blocks.open.remove(block)
        ended.set()
        if thread.ident is not None:
            thread.join()


def busy(what: str) -> AbstractContextManager[None]:
    """`heartbeat` of work that cannot be counted: what is being done, and for how long it has been."""
    return heartbeat(lambda seconds: f"{what}, {seconds:.0f} s")


class ProgressBar:
    """A bar on a terminal; elsewhere a plain line every ten seconds: what is done, and about how long the rest takes.

    what: is done; unit: name of a unit of work; total: units of work, if they are known from the start
    """

    def __init__(self, what: str, unit: str, total: int = 0):
        from tqdm import tqdm

        self.what, self.unit, self.total = what, unit, total
        self.done = self.already = self.frames = 0
        self._begin = time.monotonic()
        self._bar = tqdm(
            total=total, desc=what, unit=unit, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self._lines = heartbeat(self.line if self._bar.disable else None)

    def __enter__(self) -> ProgressBar:
        self._lines.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.__exit__(*error)  # type: ignore[arg-type]
        self._bar.close()

    def step(self, units: int = 1) -> None:
        """So many more units are done."""
        self(self.done + units, self.total)

    def __call__(self, done: int, total: int, frames: int = 0) -> None:
        """So many units of the total are done, and so many frames, if those are counted. Those of the first call took no time if
        its `frames` is 0: they were done before."""
        if not self.total:
            self.total = self._bar.total = total
            self.already = self._bar.initial = 0 if frames else done
        if frames:
            self._bar.set_postfix_str(self._rate(time.monotonic() - self._begin), refresh=False)
        self._bar.update(done - self.done)
        self.done, self.frames = done, frames

    def say(self, text: str) -> None:
        """Print a line to standard error without breaking the bar."""
        with self._bar.external_write_mode(file=sys.stderr):
            print(text, file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """What is done after so many seconds."""
        made, rest = self.done - self.already, self.total - self.done
        rate = f", {self._rate(seconds)}" if self.frames else ""
        left = f", about {duration(seconds / made * rest)} left" if made else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}s{rate}{left}"

    def _rate(self, seconds: float) -> str:
        return f"{self.frames / max(seconds, 1e-3):.0f} frames/s"


def core_hours(hours: float) -> str:
    """Hours of one core in words, with two digits at least: "0.0026", "12.34", "1,234"."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2f}" if hours >= 1 else f"{hours:.2g}"


def duration(seconds: float) -> str:
    """About so long, in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
