"""Numba, set up for all kernels: they are compiled once if there is a folder to keep them in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from labelgen.errors import VsslError

_threads = os.environ.get("NUMBA_NUM_THREADS", "1")
if not _threads.isdecimal() or not int(_threads):  # Numba would print a traceback and use another number
    raise VsslError(
        f"NUMBA_NUM_THREADS is {_threads!r:.60}; expected a whole number of at least 1, or no such variable: unset it"
    )

import numba  # noqa: E402

uncached = ""  # why each process compiles the kernels again, "" if it does not


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that keeps its kernels on the disk; if there is no folder for them, `uncached` says so."""

    def compiled(function: Callable[..., Any]) -> Any:
        global uncached
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # Numba finds no folder: a read-only installation and no home
            uncached = (
                "each process compiles the kernels again, which takes about 20 s, because neither the installation nor a home "
                "folder is writable: set NUMBA_CACHE_DIR to a folder that is"
            )
            return numba.njit(**options)(function)

    return compiled


def instructions() -> str:
    """The processor that Numba compiles for and its instruction set extensions, on which the last bits of sums depend."""
    from llvmlite import binding
    from numba.core import config

    settings: Any = config  # created at import, unknown to mypy

    features = settings.CPU_FEATURES  # none of "generic"
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    on = sorted(feature[1:] for feature in features.split(",") if feature.startswith("+"))
    return f"{settings.CPU_NAME or binding.get_host_cpu_name()}: {' '.join(on)}"
