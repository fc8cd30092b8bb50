"""The device for each run of a study: of several GPUs, the one that the fewest other runs use."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_turns = itertools.count()  # for file systems without locks


@dataclass(frozen=True)
class Device:
    """name: of the device in the process of the run; alone: value of CUDA_VISIBLE_DEVICES with which that process sees only this
    GPU, "" if it is not a GPU."""

    name: str
    alone: str = ""

    def __str__(self) -> str:
        return f"GPU {self.alone}" if self.alone else self.name.replace("auto", "CPU")


def devices(names: str) -> list[Device]:
    """The devices of this machine that share the runs. names: cpu, auto, cuda, cuda:1, or several separated by commas. A device
    that does not exist is returned unchanged, and the run then reports the error."""
    found, gpus = [], _gpus()
    for name in map(str.strip, names.split(",")):
        kind, _, number = name.partition(":")
        if kind == "cuda" and number.isdecimal() and int(number) < len(gpus):
            found.append(Device("cuda", gpus[int(number)]))
        elif name in ("auto", "cuda") and gpus:
            found += [Device("cuda", gpu) for gpu in gpus]
        else:
            found.append(Device(name))
    return list(dict.fromkeys(found))


def kind_of_device(names: str) -> str:
    """The kind of these devices: "cpu" or "cuda"."""
    return devices(names)[0].name.partition(":")[0].replace("auto", "cpu")


def _gpus() -> list[str]:
    """For each visible GPU, the value of CUDA_VISIBLE_DEVICES with which it is the only visible one."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [gpu.strip() for gpu in visible.split(",")][:count] if visible else [str(number) for number in range(count)]


@contextmanager
def reserved(names: str) -> Iterator[Device]:
    """Reserve one of these devices for the block: of several GPUs, the one that the fewest other blocks of this user on this
    machine use, in any process of any study."""
    found = devices(names)
    if len(found) == 1 and not found[0].alone:
        yield found[0]
        return
    try:
        device, handle = _locked(found)
    except OSError:  # a file system without locks
        device, handle = found[next(_turns) % len(found)], None
    try:
        yield device
    finally:
        if handle is not None:
            os.close(handle)


def _locked(found: list[Device]) -> tuple[Device, int]:
    """A device and the open file whose lock marks it as taken. The lock ends with this process, however it ends."""
    folder = Path(tempfile.gettempdir()) / f"vssl-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for others in itertools.count():  # number of others with the same device
        for device in found:
            name = f"{device}-{others}".replace(" ", "-").replace("/", "_")
            handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                # the lock belongs to the open file, so it also works between threads
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return device, handle
            except BlockingIOError:
                os.close(handle)
            except OSError:
                os.close(handle)
                raise
    raise AssertionError("unreachable")
