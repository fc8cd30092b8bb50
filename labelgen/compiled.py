"""Numba, as all kernels are compiled: once and for all if there is a folder to keep them in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from labelgen.errors import VsslError

_threads = os.environ.get("NUMBA_NUM_THREADS", "1")
if not _threads.isdecimal() or not int(_threads):  # Numba prints a traceback, and takes another number
    raise VsslError(
        f"NUMBA_NUM_THREADS is {_threads!r:.60}; expected a whole number of at least 1, or no such variable: unset it"
    )

import numba  # noqa: E402

uncached = ""  # why kernels are compiled anew in each process, if they are


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` whose kernels are kept on the disk; if there is no folder for them, `uncached` says so."""

    def compiled(function: Callable[..., Any]) -> Any:
        global uncached
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # Numba finds no folder: a read-only installation, and no home
            uncached = (
                "kernels are compiled anew in each process, about 20 s each, because neither the installation nor a home "
                "folder can be written: set NUMBA_CACHE_DIR to a folder that can"
            )
            return numba.njit(**options)(function)

    return compiled


def instructions() -> str:
    """The processor that Numba compiles for, and its extensions of the instruction set, on which the last bits of sums depend."""
    from llvmlite import binding
    from numba.core import config

    settings: Any = config  # which it makes as it is imported

    features = settings.CPU_FEATURES  # none of "generic"
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    on = sorted(feature[1:] for feature in features.split(",") if feature.startswith("+"))
    return f"{settings.CPU_NAME or binding.get_host_cpu_name()}: {' '.join(on)}"
