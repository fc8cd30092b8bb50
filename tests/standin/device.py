"""The stand-in device (standin.cpp): its build, its registration in this process, and what it tells.

`python tests/standin/device.py` builds it and prints how long that took.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("standin.cpp")
FLAGS = ["-O0", "-w"]  # optimised it builds three times as long and runs as fast: the kernels are PyTorch's
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])  # ninja of this environment first
BUILD = """
import sys
from torch.utils import cpp_extension
cpp_extension.load("standin", [sys.argv[1]], extra_cflags=sys.argv[3:], build_directory=sys.argv[2])
"""


def missing() -> str:
    """What the build needs and is not here, in words; "" if nothing is missing."""
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        return f"no C++ compiler ({compiler}; Debian: apt-get install g++)"
    if not shutil.which("ninja", path=PATH):
        return "no ninja (pip install ninja)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no headers of Python (Debian: apt-get install python3-dev)"
    return ""


def library() -> Path:
    """Where the built device lies in the user's cache: one file for each version of its source, PyTorch and Python."""
    made_of = SOURCE.read_bytes() + "\n".join([*FLAGS, torch.__version__, torch.__file__, sys.version]).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "vssl-standin" / hashlib.sha256(made_of).hexdigest()[:16] / "standin.so"


def build() -> Path:
    """Build the device unless it is built, in a process of its own: to build an extension also loads it. Takes about a minute.

    Raises RuntimeError with the compiler's words.
    """
    target = library()
    if target.exists():
        return target
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as folder:
        command = [sys.executable, "-c", BUILD, SOURCE, folder, *FLAGS]
        done = subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{SOURCE}: does not build\n{done.stdout}{done.stderr}")
        target.parent.mkdir(exist_ok=True)
        os.replace(Path(folder, target.name), target)  # whole or not at all, whoever else builds it
    return target


def register(path: Path) -> types.ModuleType:
    """Load the built device as "standin", for as long as this process lives; returns the extension."""
    torch.utils.rename_privateuse1_backend("standin")
    spec = importlib.util.spec_from_file_location("standin", path)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    extension.register()
    module = types.ModuleType("torch.standin")  # what torch asks of torch.<device>; random numbers are the CPU's
    functions = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": False,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "manual_seed_all": None,
        "get_rng_state_all": [],
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }
    for name, value in functions.items():
        setattr(module, name, lambda *_, value=value: value)
    module.get_rng_state = lambda device=0: torch.get_rng_state()
    module.set_rng_state = lambda state, device=0: None
    module.synchronize = lambda device=None: torch.accelerator.synchronize()
    torch._register_device_module("standin", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return extension


class Event(NamedTuple):
    """kind: wait, upload, download, low precision, or what a rehearsal marks; where: file:line of the project, "" of none."""

    kind: str
    what: str
    where: str


@contextmanager
def listening(extension: types.ModuleType) -> Iterator[list[Event]]:
    """The events of the block, as they come."""
    seen: list[Event] = []
    extension.listen(lambda kind, what: seen.append(Event(kind, what, line_of_project())))
    try:
        yield seen
    finally:
        extension.listen(None)


def line_of_project() -> str:
    """file:line of the innermost call that is the project's and not of the rehearsal."""
    frame = sys._getframe(1)
    while frame is not None:
        if where := _of_project(frame.f_code.co_filename, frame.f_lineno):
            return where
        frame = frame.f_back
    return ""


def line_of_error(error: BaseException) -> str:
    """The same of the line that raised an error."""
    found, trace = "", error.__traceback__
    while trace is not None:
        found, trace = _of_project(trace.tb_frame.f_code.co_filename, trace.tb_lineno) or found, trace.tb_next
    return found


def _of_project(file: str, line: int) -> str:
    path = Path(file)
    if not path.is_relative_to(ROOT) or "site-packages" in path.parts:
        return ""
    if path.parent == SOURCE.parent and path.name != "planted.py":
        return ""
    return f"{path.relative_to(ROOT)}:{line}"


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    begin = time.perf_counter()
    print(f"{build()}: {time.perf_counter() - begin:.0f} s")
