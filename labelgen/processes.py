"""Child processes: how many at a time, what they import, and their end with the parent."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)

_CHILD = [sys.executable, "-c", "from labelgen.processes import _child; _child()"]


def cores() -> int:
    """Number of processors that this process may use, at least 1: those that it is bound to, at most the quota of its
    control group, rounded up."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota(Path("/")))))


def _quota(system: Path) -> float:
    """Quota of processor time of this process' control group, in processors: the smallest of it and the groups above it,
    infinite without a limit. For both versions of Linux control groups; system: the folder that holds proc and sys."""
    smallest = math.inf
    try:
        groups = [
            line.split(":", 2) for line in (system / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
        ]
        mounts = [
            line.split(" ") for line in (system / "proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
        ]
    except OSError:  # no Linux
        return smallest
    path_of = {name: path for _, names, path in groups for name in names.split(",")}  # "" is version 2
    for mount in mounts:
        root, point, kind, options = mount[3], mount[4], mount[mount.index("-") + 1], mount[-1].split(",")
        version2 = kind == "cgroup2"
        path = path_of.get("" if version2 else "cpu")
        if path is None or not version2 and (kind != "cgroup" or "cpu" not in options):
            continue
        top = system / point.lstrip("/")
        within = os.path.relpath(path, root)  # a container may see the name that its group has outside
        group = top if within.startswith("..") else top / within
        for one in (group, *group.parents):
            smallest = min(smallest, _limit(one, version2))
            if one == top:
                break
    return smallest


def _limit(group: Path, version2: bool) -> float:
    try:
        if version2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # version 1 says -1, version 2 "max"
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def environment(threads: int | None = None) -> dict[str, str]:
    """Environment variables for a new Python process: it imports from the same places as this one, but nothing from the
    current folder, which may hold files of others; it prints any text, whatever the encoding of the terminal.

    threads: number of threads of each library that starts some; None leaves it to the libraries
    """
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
    }
    variables.setdefault("PYTHONIOENCODING", ":backslashreplace")
    if threads is not None:
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        variables |= dict.fromkeys(names, str(threads))
    return variables


def start(
    function: Callable[..., object],
    *arguments: object,
    threads: int | None = None,
    variables: Mapping[str, str] | None = None,
    **streams: Any,
) -> subprocess.Popen[bytes]:
    """Start `function(*arguments)` in a new Python process, which ends with this one; both must be picklable.

    threads: see `environment`; variables: more environment variables; streams: `stdout`, `stderr`, ... of
    `subprocess.Popen`. Its standard input is a pipe, from which the function may read what is written to it later.
    Raises OSError if the system cannot start another process.
    """
    own = environment(threads) | dict(variables or {})
    process = subprocess.Popen(_CHILD, stdin=subprocess.PIPE, env=own, **streams)
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it is dead already, which its status shows
        process.stdin.write(pickle.dumps((os.getpid(), function, arguments)))
        process.stdin.flush()
    return process


def finished(function: Callable[..., object], *arguments: object, **options: Any) -> tuple[int, bytes]:
    """`start`, then wait for the end: the exit status, negative for a signal, and the output if `stdout` is a pipe."""
    with start(function, *arguments, **options) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    return process.returncode, said or b""


def _child() -> None:
    parent, function, arguments = pickle.load(sys.stdin.buffer)
    end_with(parent)
    function(*arguments)


def end_with(parent: int) -> None:
    """End this process within a second after its parent, the process of that id, however that one ends; or at once, if
    the system cannot start the thread that waits for it."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:
        os._exit(1)


def ending(status: int) -> str:
    """How a process ended, in words, from its exit status, negative for a signal."""
    return f"killed its process (signal {-status})" if status < 0 else f"its process ended with {status}"


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Within the block, Python processes that libraries start import nothing from the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def keep_memory() -> None:
    """Make this process keep the memory that it frees, if its C library is glibc. Otherwise glibc returns the megabytes
    that each flow works on to the system, and clearing their pages again takes 5 % of the labelling time."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 256 << 20)):
            library.mallopt(option, size)
