"""Standard output and error that may be closed, or that nobody reads any more."""

from __future__ import annotations

import errno
import io
import os
import sys

_NOBODY = (errno.EPIPE, errno.EIO)  # a pipe whose reader ended, a terminal that was closed


class _Kept(io.FileIO):
    """A descriptor that is written to while somebody reads it; after that, what is written is lost."""

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY:
                raise
            _nowhere(self.fileno())
            return memoryview(data).nbytes


def _nowhere(number: int) -> None:
    """Let a descriptor lead to /dev/null."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def names_in_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode if Python takes the names of files for another encoding's, as with an old
    locale: shards and tables hold any name. What is printed keeps the terminal's encoding."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # of processes that are started
    os.environ.setdefault("PYTHONIOENCODING", f"{getattr(sys.stdout, 'encoding', 'ascii')}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def keep_streams() -> None:
    """Let this process continue if its output cannot be written because it was closed, before or meanwhile; and write characters
    that the terminal's encoding lacks, and unpaired surrogates in names, as escapes. What a caller has put in the place of
    sys.stdout or sys.stderr stays."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would have its number, and get what is printed
            _nowhere(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        kept = _Kept(number, "w", closefd=False)
        at_once = stream is not None and stream.write_through  # python -u
        lines = number == 2 or (stream is not None and stream.line_buffering)
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                kept if at_once else io.BufferedWriter(kept),
                stream.encoding if stream else "utf-8",
                "backslashreplace",
                line_buffering=lines,
                write_through=at_once,
            ),
        )
