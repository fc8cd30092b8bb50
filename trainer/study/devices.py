"""Which device a run of a study gets: of several GPUs the one that the fewest other runs have."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_turns = itertools.count()  # without locks


@dataclass(frozen=True)
class Device:
    """name: as the process of the run calls it; alone: what CUDA_VISIBLE_DEVICES says for it, so that it sees no other GPU, "" if
    it is no GPU."""

    name: str
    alone: str = ""

    def __str__(self) -> str:
        return f"GPU {self.alone}" if self.alone else self.name.replace("auto", "CPU")


def devices(names: str) -> list[Device]:
    """The devices of this machine among which runs are spread. names: cpu, auto, cuda, cuda:1, or several with commas. One that
    does not exist is returned as it is: the run then says what is wrong with it."""
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
    """On what runs with these devices are made: "cpu", "cuda"."""
    return devices(names)[0].name.partition(":")[0].replace("auto", "cpu")


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES has to say for each of the GPUs that are visible now, so that it is visible alone."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [gpu.strip() for gpu in visible.split(",")][:count] if visible else [str(number) for number in range(count)]


@contextmanager
def reserved(names: str) -> Iterator[Device]:
    """One of these devices for the block: of GPUs one that the fewest other blocks of this user on this machine have, in any
    process of any study."""
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
    """A device and the open file whose lock says that it is taken; the lock ends with this process, whatever ends it."""
    folder = Path(tempfile.gettempdir()) / f"vssl-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for others in itertools.count():  # that have the same device
        for device in found:
            name = f"{device}-{others}".replace(" ", "-").replace("/", "_")
            handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                # a lock of this open file: threads lock one another out, too
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return device, handle
            except BlockingIOError:
                os.close(handle)
            except OSError:
                os.close(handle)
                raise
    raise AssertionError("there is always a next one")
