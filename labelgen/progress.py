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
