"""The memory of processes that compute on the CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make the allocator keep the memory that a training step frees for the next one.

    glibc returns large blocks to the kernel, which clears their pages again for the next step: a tenth to a fifth of a
    step's processor time. The process stays as large as it once was. Does nothing for other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
