"""Progress of long work: a bar on a terminal, a line every ten seconds elsewhere, also inside library calls."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TextIO

EVERY = 10.0  # seconds between lines
WARNING = "warning: "  # with which a line begins that is never left out


class _Output:
    """How much is printed: -1 only results, warnings and errors, 0 progress, too, 1 also details."""

    level = 0


def level() -> int:
    """How much is printed, see `set_level`."""
    return _Output.level


def set_level(level: int) -> None:
    """Choose how much is printed in this process: -1 only results, warnings and errors, 0 progress, too, 1 also details."""
    _Output.level = level


def say(text: str, file: TextIO | None = None, result: bool = False) -> None:
    """Print a line about the progress of work without breaking a bar, unless only results are printed; results and texts that
    begin with "warning: " are always printed. file: default standard output"""
    if _Output.level >= 0 or result or text.startswith(WARNING):
        from tqdm import tqdm

        tqdm.write(text, file=file)
        (file or sys.stdout).flush()


def detail(text: str) -> None:
    """Print a line to standard error if details are printed."""
    if _Output.level > 0:
        say(text, sys.stderr)


class _Blocks:
    """The pieces of work in progress, the innermost one last, and the time of the last line."""

    lock = threading.Lock()
    open: list[tuple[Callable[[float], str] | None, float]] = []
    printed = 0.0


@contextmanager
def heartbeat(text: Callable[[float], str] | None) -> Iterator[None]:
    """Print text(seconds since the block began) to standard error every ten seconds until the block ends; an inner
    block takes precedence. None prints nothing, for example while a bar is drawn."""
    block, ended = (text, time.monotonic()), threading.Event()

    def lines() -> None:
        while not ended.wait(max(0.0, _Blocks.printed + EVERY - time.monotonic())):
            with _Blocks.lock:
                now = time.monotonic()
                if _Blocks.open and now >= _Blocks.printed + EVERY:
                    _Blocks.printed = now
                    what, begin = _Blocks.open[-1]
                    if what and _Output.level >= 0:
                        print(what(now - begin), file=sys.stderr, flush=True)

    with _Blocks.lock:
        if not _Blocks.open:
            _Blocks.printed = block[1]
        _Blocks.open.append(block)
    thread = threading.Thread(target=lines, daemon=True)
    with suppress(RuntimeError):  # the system cannot start a thread: the work itself can continue
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
    """`heartbeat` of work that cannot be counted: what is being done, and for how long so far."""
    return heartbeat(lambda seconds: f"{what}, {seconds:.0f} s")


class ProgressBar:
    """A bar on a terminal; elsewhere a plain line every ten seconds, with the progress and about the time left.

    what: the work, as printed; unit: name of a unit of work; total: number of units, if known from the start
    """

    def __init__(self, what: str, unit: str, total: int = 0):
        from tqdm import tqdm

        self.what, self.unit, self.total = what, unit, total
        self.done = self.already = self.frames = 0
        self._begin = time.monotonic()
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=unit,
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty() or _Output.level < 0,
        )
        self._lines = heartbeat(self.line if self._bar.disable else None)

    def __enter__(self) -> ProgressBar:
        self._lines.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.__exit__(*error)  # type: ignore[arg-type]
        self._bar.close()

    def step(self, units: int = 1) -> None:
        """Count more units as done."""
        self(self.done + units, self.total)

    def __call__(self, done: int, total: int, frames: int = 0) -> None:
        """Set how many units of the total, and how many frames, if counted, are done. Units of the first call were done
        before, without taking time, if its `frames` is 0."""
        if not self.total:
            self.total = self._bar.total = total
            self.already = self._bar.initial = 0 if frames else done
        if frames:
            self._bar.set_postfix_str(self._rate(time.monotonic() - self._begin), refresh=False)
        self._bar.update(done - self.done)
        self.done, self.frames = done, frames

    def say(self, text: str) -> None:
        """`say` on standard error."""
        say(text, sys.stderr)

    def line(self, seconds: float) -> str:
        """The line to print after this many seconds."""
        made, rest = self.done - self.already, self.total - self.done
        rate = f", {self._rate(seconds)}" if self.frames else ""
        left = f", about {duration(seconds / made * rest)} left" if made else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}s{rate}{left}"

    def _rate(self, seconds: float) -> str:
        return f"{self.frames / max(seconds, 1e-3):.0f} frames/s"


def counted(number: int, one: str, several: str = "") -> str:
    """A number of things in words: "1 video", "1,234 videos"; several: the plural, if it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def core_hours(hours: float) -> str:
    """Hours of one core as text, with at least two digits: "0.0026", "12.34", "1,234"."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2f}" if hours >= 1 else f"{hours:.2g}"


def duration(seconds: float) -> str:
    """A duration in words, rounded."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
