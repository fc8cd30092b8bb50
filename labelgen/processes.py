"""Processes that this one starts: how many at a time, what they import, and that they end with it."""

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
    """Processors that this process may use, at least 1: those that it is bound to, and no more than its control group gets the
    time of, rounded up."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota(Path("/")))))


def _quota(system: Path) -> float:
    """Processors whose time the control group of this process gets, the smallest number among it and those above it; infinite
    without a limit. Of both versions of Linux's control groups; system: the folder that holds proc and sys."""
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
        within = os.path.relpath(path, root)  # a container may be shown a group by its name outside
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
    """Variables for a Python process to be started: it imports from where this one does, and nothing from the folder that it is
    started in, which may hold files of strangers; it prints every text, whatever the terminal's encoding.

    threads: of each library that has threads of its own; None leaves that to the libraries
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
    """Start `function(*arguments)` in a new Python process, which ends with this one; what both need must be picklable.

    threads: see `environment`; variables: more of its environment; streams: `stdout`, `stderr`, ... of `subprocess.Popen`. Its
    standard input is a pipe, from which the function may read whatever is written there afterwards. Raises OSError if the
    system starts no more processes.
    """
    own = environment(threads) | dict(variables or {})
    process = subprocess.Popen(_CHILD, stdin=subprocess.PIPE, env=own, **streams)
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it died already, as its status tells
        process.stdin.write(pickle.dumps((os.getpid(), function, arguments)))
        process.stdin.flush()
    return process


def finished(function: Callable[..., object], *arguments: object, **options: Any) -> tuple[int, bytes]:
    """`start`, and wait for its end: the exit status, negative for a signal, and what it wrote if `stdout` is a pipe."""
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
    """Let this process end within a second after its parent, the process of that id, however that one ended; and now, if the
    system starts no thread to wait for that."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:
        os._exit(1)


def ending(status: int) -> str:
    """How a process ended, by its exit status, negative for a signal."""
    return f"killed its process (signal {-status})" if status < 0 else f"its process ended with {status}"


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """In the block, Python processes that libraries start import nothing from the current folder."""
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
    """Have this process keep what it frees, if its C library is glibc, which would otherwise give the megabytes that each flow
    works on back to the system: that clears their pages each time, for 5 % of the time of labelling."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 256 << 20)):
            library.mallopt(option, size)
