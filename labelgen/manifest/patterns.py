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

SECONDS = 1.0  # of processor time that one name may take, at least; at most twice as long


def compiled(pattern: str, where: str, error_type: type[VsslError] = ManifestError) -> re.Pattern[str]:
    """The pattern. Raises `error_type` where it is no regular expression that Python can use."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        fail(f"bad regular expression for {where}", pattern[:200], f"a valid one ({error})", "Correct it", error_type)


class Watch:
    """What is matched at the moment; `count` goes up where a match begins, to an odd number, and where it ends."""

    def __init__(self) -> None:
        self.count, self.name, self.pattern = 0, "", ""

    def search(self, pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
        """`pattern.search(text)`, noted."""
        self.count, self.name, self.pattern = self.count + 1, text, pattern.pattern
        found = pattern.search(text)
        self.count += 1
        return found

    def cut(self, pattern: re.Pattern[str], text: str) -> str:
        """`text` without what the pattern matches, noted."""
        self.count, self.name, self.pattern = self.count + 1, text, pattern.pattern
        rest = pattern.sub("", text)
        self.count += 1
        return rest


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """In the block, a match that takes longer than SECONDS ends with ManifestError: the time of some patterns doubles with each
    letter of a name. Only in the main thread, where Python can be interrupted; the time of a machine that is busy, or sleeps,
    does not count."""
    watch, seen = Watch(), -1

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if watch.count == seen and watch.count % 2:
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
    handler = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
    try:
        yield watch
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
