"""Whether an error is due to the video, which is then listed as failed, or to the machine, so that a retry may succeed."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

from labelgen.errors import ReadError
from labelgen.manifest import Video
from labelgen.numbered import files_of
from labelgen.reading import open_regular
from labelgen.run.jobs import Job

# fmt: off
_MACHINE = {
    getattr(errno, name) for name in (
        "EAGAIN", "EBUSY", "ECOMM", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH",
        "EIO", "EKEYEXPIRED", "EKEYREVOKED", "EMFILE", "EMULTIHOP", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENODEV",
        "ENOLINK", "ENOMEDIUM", "ENOMEM", "ENOSPC", "ENOTCONN", "ENXIO", "EPIPE", "EREMOTEIO", "EROFS", "ESHUTDOWN", "ESTALE",
        "ETIMEDOUT", "EUCLEAN",
    ) if hasattr(errno, name)
}  # fmt: skip
# fmt: on
_OF_FFMPEG = {errno.EIO, errno.ENOMEM}  # errors that FFmpeg reports for damaged files, too
_MOST = 1 << 31  # largest allocation of FFmpeg, bytes
_BLOCK = 1 << 24


def machine_fault(error: Exception, video: Video, job: Job) -> str:
    """Why an error while labelling a video is due to the machine; "" if it is due to the video."""
    for one in _causes(error):
        number: int = getattr(one, "errno", None) or 0
        of_ffmpeg = type(one).__module__.startswith("av.")
        if isinstance(one, MemoryError) and not of_ffmpeg:
            return "not enough memory"
        if number == errno.ENOMEM and of_ffmpeg and not _memory():
            return "not enough memory"
        if number in _MACHINE and not (of_ffmpeg and number in _OF_FFMPEG):
            return os.strerror(number)
        if isinstance(one, RuntimeError) and "start new thread" in str(one):
            return "no thread can be started; check `ulimit -u`"
    return unreadable(video, job)


def unreadable(video: Video, job: Job) -> str:
    """Why the file of a video, or its images, cannot be read completely and as it was when the run was planned; "" if
    it can, or could not be read then either."""
    planned = job.sizes.get(video.id)
    if planned is not None and planned < 0:
        return ""
    try:
        size = 0
        for name in files_of(video.file):
            with open_regular(name) as file:
                while file.read(_BLOCK):
                    pass
                size += os.fstat(file.fileno()).st_size
    except ReadError:  # a pipe or a device
        return ""
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
        if isinstance(error, PermissionError) and _may_be_listed(job.root):
            return ""
        why = "no longer there" if isinstance(error, FileNotFoundError) else error.strerror
        return f"{why} (it was when the run was planned)"
    except OSError as error:
        return os.strerror(error.errno or 0) if error.errno in _MACHINE else ""
    if planned is not None and size != planned:
        return f"changed since the run was planned: {planned:,} bytes then, {size:,} now"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _memory() -> bool:
    """Whether there is more memory than FFmpeg may allocate at once: if so, a file asked for too much."""
    try:
        mmap.mmap(-1, _MOST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def _may_be_listed(folder: os.PathLike[str]) -> bool:
    try:
        with os.scandir(folder):
            return True
    except OSError:
        return False
