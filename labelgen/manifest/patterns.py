"""Regular expressions of manifests: compiled with an error that says what is wrong, and ended where they take for ever."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from labelgen.errors import ManifestError, VsslError
from labelgen.manifest.messages import fail

SECONDS = 1.0  # that one name may take, at least; at most twice as long


def compiled(pattern: str, where: str, error_type: type[VsslError] = ManifestError) -> re.Pattern[str]:
    """The pattern. Raises `error_type` where it is no regular expression that Python can use."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        fail(f"bad regular expression for {where}", pattern[:200], f"a valid one ({error})", "Correct it", error_type)


class Watch:
    """What is matched at the moment; `count` goes up with each name."""

    def __init__(self) -> None:
        self.count, self.name, self.pattern = 0, "", ""

    def search(self, pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
        """`pattern.search(text)`, noted."""
        self.count, self.name, self.pattern = self.count + 1, text, pattern.pattern
        return pattern.search(text)

    def cut(self, pattern: re.Pattern[str], text: str) -> str:
        """`text` without what the pattern matches, noted."""
        self.count, self.name, self.pattern = self.count + 1, text, pattern.pattern
        return pattern.sub("", text)


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """In the block, a match that takes longer than SECONDS ends with ManifestError: the time of some patterns doubles with each
    letter of a name. Only in the main thread, where Python can be interrupted."""
    watch, seen = Watch(), -1

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if watch.count == seen:
            fail(
                f"the pattern {watch.pattern[:200]!r} takes longer than {SECONDS:g} s for the name",
                watch.name[:200],
                "a pattern without repeats in one another, such as (a+)+",
                "Write it more simply",
            )
        seen = watch.count

    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    handler = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        yield watch
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
