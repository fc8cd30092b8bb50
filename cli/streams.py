"""Standard output and error that may be closed or no longer read."""

from __future__ import annotations

import errno
import io
import os
import sys

_NOBODY = (errno.EPIPE, errno.EIO)  # a pipe whose reader ended, a terminal that was closed


class _Kept(io.FileIO):
    """A descriptor for output; once nobody reads it any longer, output is dropped."""

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY:
                raise
            _nowhere(self.fileno())
            return memoryview(data).nbytes


def _nowhere(number: int) -> None:
    """Redirect a descriptor to /dev/null."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def names_in_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if Python uses another encoding for file names, as with an old
    locale, because shards and tables hold any name. Output keeps the encoding of the terminal."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for child processes
    os.environ.setdefault("PYTHONIOENCODING", f"{getattr(sys.stdout, 'encoding', 'ascii')}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def keep_streams() -> None:
    """Make this process continue even if its output is closed, now or later; and write unpaired surrogates and
    characters that the terminal's encoding lacks as escapes. If a caller has replaced sys.stdout or sys.stderr, they
    are not changed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would get this number, and the output
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
