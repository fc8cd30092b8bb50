"""Files that are complete or unchanged, and folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from labelgen.errors import VsslError, WriteError
from labelgen.progress import WARNING

_NAME = 255  # bytes, the longest name of a file


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *errors: type[Exception]) -> Iterator[None]:
    """Name the file that a block writes in its errors; most errors of a full disk do not.

    errors: what the writing libraries raise besides OSError. Raises WriteError in their place.
    """
    try:
        yield
    except VsslError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, *errors)):
            raise
        raise WriteError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *errors: type[Exception]) -> Iterator[Path]:
    """A new file beside `path` for the block to write; at the end it is synced and replaces `path`, with the
    permissions of a new file. If the block fails, `path` is unchanged and nothing else is left. What a killed process
    leaves behind, the next one removes.

    errors: see `writing`. Raises WriteError if the disk is full or the folder is not writable.
    """
    path = Path(path)
    with writing(path, *errors):
        _remove_left(path)
        handle, name = _temporary(path)
        try:
            yield Path(name)
            os.chmod(name, 0o666 & ~_umask())
            sync(name)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        sync(path.parent)


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside `path`, `.NAME.xxxxxxxx.tmp`, open and locked for as long as it is being written."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, name
        os.close(handle)  # before it was locked, another process took it for an abandoned one


def _remove_left(path: Path) -> None:
    """Remove the temporary files of `path` that killed processes left: those that no process has locked."""
    own = re.compile(re.escape(_prefix(path)) + r"[a-z0-9_]{8}\.tmp")
    for name in filter(own.fullmatch, os.listdir(path.parent)):
        with contextlib.suppress(OSError):  # in use or removed by another process, or no locks
            handle = os.open(path.parent / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path.parent / name)
            finally:
                os.close(handle)


def _prefix(path: Path) -> str:
    return f".{path_name(path.name, limit=_NAME - len('..12345678.tmp'))}."


def path_name(name: str, suffix: str = "", limit: int = _NAME) -> str:
    """A file name from `name` and `suffix`, of at most `limit` bytes. One that is too long ends in a digest, so that
    different names stay different."""
    if len(os.fsencode(name + suffix)) <= limit:
        return name + suffix
    end = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix}"
    while len(os.fsencode(name + end)) > limit:
        name = name[:-1]
    return name + end


def public(folder: str | os.PathLike[str]) -> None:
    """Give a temporary folder, which only its owner may use, the permissions of a new folder."""
    os.chmod(folder, 0o777 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# errors of file systems that cannot sync folders, or anything: some of FUSE, SMB and virtual machines
_NO_SYNC = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
}
_warned = False


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file or folder is on the disk. If the file system cannot do so, warn on standard error, once."""
    global _warned
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        if not _warned and multiprocessing.parent_process() is None:
            _warned = True
            print(
                f"warning: {path}: this file system cannot sync files to the disk ({error.strerror}): what was "
                "written last may be lost in a power cut",
                file=sys.stderr,
            )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, UTF-8, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_sha256(content: object) -> str:
    """16 hexadecimal digits that depend on every value of a JSON content, but not on the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write a JSON file, see `replacing`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write a picture, RGB uint8 [H, W, 3], as a PNG file, see `replacing`."""
    import cv2

    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


@contextlib.contextmanager
def locked(folder: Path, error: Exception, say: Callable[[str], None]) -> Iterator[None]:
    """Lock a folder against other processes that write; raises `error` if one has it locked.

    Only this process holds the lock: its child processes, which may outlive it for a moment, do not. If the file system
    has no locks, `say` gets a warning.
    """
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            raise error from None
        except OSError as reason:
            say(f"{WARNING}{folder}: cannot be locked ({reason}); make sure that no other process writes here")
        yield
