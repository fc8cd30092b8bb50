"""The memory of a process that computes on the CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have the allocator keep what a training step frees for the next one.

    glibc gives large blocks back to the kernel, which clears each of their pages again when the next step asks for them: a
    tenth to a fifth of the processor time of a step. The process then stays as large as it has been. Does nothing if the C
    library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
