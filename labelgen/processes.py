"""Processes that this one starts: how many at a time, and what they import."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


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
