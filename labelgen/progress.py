"""Signs of life of long work, also inside a library and without a terminal."""

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
    told = 0.0


@contextmanager
def telling(text: Callable[[float], str] | None) -> Iterator[None]:
    """Print text(seconds since the begin) to standard error every ten seconds until the block ends; while another one is open
    within it, that one's. None: nothing, as when a bar is drawn."""
    block, ended = (text, time.monotonic()), threading.Event()

    def tell() -> None:
        while not ended.wait(max(0.0, _Blocks.told + EVERY - time.monotonic())):
            with _Blocks.lock:
                now = time.monotonic()
                if _Blocks.open and now >= _Blocks.told + EVERY:
                    _Blocks.told = now
                    what, begin = _Blocks.open[-1]
                    if what:
                        print(what(now - begin), file=sys.stderr, flush=True)

    with _Blocks.lock:
        if not _Blocks.open:
            _Blocks.told = block[1]
        _Blocks.open.append(block)
    thread = threading.Thread(target=tell, daemon=True)
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


def working(what: str) -> AbstractContextManager[None]:
    """`telling` of work that cannot be counted: what is being done, and for how long."""
    return telling(lambda seconds: f"{what}, {seconds:.0f} s")


class ProgressBar:
    """A bar on a terminal; elsewhere a plain line every ten seconds: what is done and how much is left. As a context manager
    it gives the function to call after each unit of work.

    what: is done; total: units of work; unit: name of one
    """

    def __init__(self, what: str, total: int, unit: str):
        from tqdm import tqdm

        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=not sys.stderr.isatty())
        self.lines = telling(self.line if self.bar.disable else None)

    def __enter__(self) -> Callable[..., None]:
        self.lines.__enter__()
        return self.step

    def __exit__(self, *error: object) -> None:
        self.lines.__exit__(*error)  # type: ignore[arg-type]
        self.bar.close()

    def step(self, units: int = 1) -> None:
        self.done += units
        self.bar.update(units)

    def line(self, seconds: float) -> str:
        left = f", about {duration(seconds / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}s{left}"


def duration(seconds: float) -> str:
    """About so long, in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
