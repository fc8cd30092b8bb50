"""Batches on their way: the processes that decode, the memory that they share with the main process, the device."""

from __future__ import annotations

import functools
import math
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from labelgen.errors import VsslError
from labelgen.processes import cores, safe_path
from trainer.errors import LoaderLost


class BufferPool:
    """Frames in memory that a worker shares with the main process. A buffer is used again once the main process has dropped
    its frames: for new shared memory, which every batch would get otherwise, the kernel takes a third of the time of
    decoding."""

    def __init__(self):
        self.buffers: list[Tensor] = []  # uint8 [size + 1]; the last byte is 1 as long as the buffer is lent

    def lend(self, shape: tuple[int, ...]) -> LentFrames:
        size = math.prod(shape)
        self.buffers = [buffer for buffer in self.buffers if buffer[-1] or len(buffer) > size]
        buffer = next((buffer for buffer in self.buffers if not buffer[-1]), None)
        if buffer is None:
            try:
                buffer = torch.empty(size + 1, dtype=torch.uint8).share_memory_()
            except RuntimeError as error:
                raise LoaderLost(_no_memory(size)) from error
            self.buffers.append(buffer)
        buffer[-1] = 1
        return LentFrames(buffer[:size].view(shape))


def _no_memory(size: int) -> str:
    sizes = ""
    if os.path.isdir("/dev/shm"):
        here = shutil.disk_usage("/dev/shm")
        sizes = f" (/dev/shm, {here.total / 1e6:.0f} MB, {here.free / 1e6:.0f} MB free)"
    return (
        f"the memory that processes share{sizes} has no room for a batch of {size / 1e6:.0f} MB; give it more (docker run "
        "--shm-size=2g), take smaller batches, fewer workers, or none (--workers 0)"
    )


class LentFrames:
    """Frames of a worker's pool that are sent as what they are: the main process receives a tensor."""

    def __init__(self, frames: Tensor):
        self.frames = frames

    def __reduce__(self):
        return _received, (self.frames,)


def _received(frames: Tensor) -> Tensor:
    """Lent frames in the main process; their buffer is given back when no tensor uses it any more."""
    lent = torch.empty(0, dtype=torch.uint8).set_(frames.untyped_storage())[-1]
    array = frames.numpy()  # lives as long as the storage of the tensor made of it
    weakref.finalize(array, lent.zero_).atexit = False
    return torch.from_numpy(array)


_pool = BufferPool()  # of this worker


def frame_buffer(*shape: int) -> tuple[np.ndarray, Tensor | LentFrames]:
    """A uint8 array to decode into, and what a batch holds of it, which the main process receives as a tensor."""
    if get_worker_info() is None:
        array = np.empty(shape, np.uint8)
        return array, torch.from_numpy(array)
    lent = _pool.lend(shape)
    return lent.frames.numpy(), lent


def loader(dataset: Dataset, workers: int, device: torch.device, **options) -> DataLoader:
    """A DataLoader whose workers, at most four per core, use one thread each and leave Ctrl-C, SIGTERM and SIGHUP to the main
    process. Raises LoaderLost where no process can be started."""
    # here, before a fork: in a worker it would wait for ever for threads that it did not inherit
    cv2.setNumThreads(1)
    if workers:
        _shorten_sockets()
        with _starting():
            options |= {"timeout": _LOOK, "worker_init_fn": functools.partial(_quiet_worker, _signs())}
    return DataLoader(
        dataset,
        num_workers=min(workers, 4 * cores()),
        pin_memory=device.type == "cuda",
        collate_fn=_packed,
        **options,
    )


def started(batches: Iterable[dict | VsslError]) -> Iterator[dict | VsslError]:
    """An iterator over the batches of a loader, whose processes start now. Raises LoaderLost where they cannot."""
    with _starting(), safe_path():
        return iter(batches)


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "new thread" not in str(error) and not _timed_out(error):
            raise
        # PyTorch's iterator, half made, would print why it cannot be deleted
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = hook
        raise LoaderLost(
            f"no process that decodes frames can be started ({error}); check the number of processes and threads that you may "
            "have (ulimit -u) and /dev/shm, take fewer workers, or none (--workers 0)"
        ) from error


def _timed_out(error: Exception) -> bool:
    return "DataLoader timed out" in str(error)


def _shorten_sockets() -> None:
    """Have multiprocessing make its sockets in another folder than that for temporary files where that one has too long a path
    for a socket's, of 103 bytes (macOS) or 107: a process could send nothing."""
    if len(os.fsencode(tempfile.gettempdir())) + len("/pymp-xxxxxxxx/listener-xxxxxxxx") <= 103:
        return
    before = tempfile.tempdir
    for folder in ("/tmp", "/var/tmp"):
        tempfile.tempdir = folder
        try:
            multiprocessing.util.get_temp_dir()  # made by the first call, and kept
            return
        except OSError:
            continue
        finally:
            tempfile.tempdir = before
    raise LoaderLost(
        f"the folder for temporary files, {tempfile.gettempdir()}, has too long a path for a socket, and nothing can be written "
        "in /tmp; set TMPDIR to a folder with a path of at most 70 bytes, or take no workers (--workers 0)"
    )


def received(batches: Iterable[dict | VsslError]) -> Iterator[dict]:
    """The batches, whose processes start now; what one of them sent is raised where it is an error. Raises LoaderLost where
    a process was killed, or none has decoded anything for ten minutes."""
    iterator = started(batches)
    _hold_back()
    return _received_batches(iterator)


def _received_batches(batches: Iterator[dict | VsslError]) -> Iterator[dict]:
    global _waiting
    seen, silent = 0, 0
    while True:
        _waiting = True
        try:
            if _raise_ended is not None:
                _raise_ended(signal.SIGCHLD, None)
            batch = next(batches, None)
        except RuntimeError as error:
            text = str(error).splitlines()[0].rstrip(". ")
            if _timed_out(error):
                # Looks are counted, not seconds: a process that is stopped and goes on later has not waited. One clip, even
                # from the slowest disk, is a sign of life.
                silent = silent + 1 if _signs().value == seen else 0
                seen = _signs().value
                if silent * _LOOK < STALLED:
                    continue
                raise LoaderLost(
                    f"the processes that decode frames live, and have decoded nothing for {STALLED} s; check the disk that holds "
                    "the shards, or take no workers (--workers 0)"
                ) from error
            if "DataLoader worker (pid" not in text:
                raise
            advice = "give /dev/shm more (docker run --shm-size=2g)" if "Bus error" in text else "check memory"
            raise LoaderLost(
                f"a process that decodes frames ended ({text}); {advice}, or take fewer workers"
            ) from error
        finally:
            _waiting = False
        silent = 0
        if batch is None:
            return
        if isinstance(batch, VsslError):
            raise batch
        yield batch


# PyTorch's handler of SIGCHLD raises where a decoding process was killed, wherever the main process is: in the midst of a
# step, which leaves weights of no step. It is held back until the main process waits for a batch.
_raise_ended: Callable | None = None
_waiting = False


def _hold_back() -> None:
    global _raise_ended
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and handler is not _child_ended and threading.current_thread() is threading.main_thread():
        _raise_ended = handler
        signal.signal(signal.SIGCHLD, _child_ended)


def _child_ended(number: int, frame) -> None:
    if _waiting:
        _raise_ended(number, frame)


STALLED = 600  # seconds without a sign of life of any decoding process
_LOOK = 60  # seconds from one look at them to the next


@functools.cache
def _signs():
    """How many signs of life the decoding processes have given, in memory that all of them share."""
    return multiprocessing.RawValue("Q")


_own_signs = None  # the same, in a decoding process


def alive() -> None:
    """Give a sign of life, of a process that decodes."""
    if _own_signs is not None:
        _own_signs.value += 1


@contextmanager
def ending_workers() -> Iterator[None]:
    """End the decoding processes that the block starts: they ignore other signals, and after an error Python would wait for
    them for ever."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        left = set(multiprocessing.active_children()) - before
        for process in left:
            process.kill()
        for process in left:
            process.join()


def _packed(batch: dict | VsslError):
    """What a worker sends. Small tensors travel by value: to share the memory of one takes longer than to decode a frame, in
    both processes. It is pickled here, for what goes wrong in the thread that sends it nobody is told."""
    if get_worker_info() is None or isinstance(batch, VsslError):
        return batch
    try:
        return _SentBatch(bytes(ForkingPickler.dumps(_each(batch, Tensor, Tensor.numpy))))
    except (OSError, RuntimeError) as error:
        return LoaderLost(
            f"a process that decodes frames cannot send them ({error}); check the number of open files (ulimit -n) and of "
            "threads (ulimit -u) that you may have, take fewer workers, or none (--workers 0)"
        )


class _SentBatch:
    def __init__(self, pickled: bytes):
        self.pickled = pickled

    def __reduce__(self):
        return _unpacked, (self.pickled,)


def _unpacked(pickled: bytes) -> dict:
    return _each(ForkingPickler.loads(pickled), np.ndarray, torch.from_numpy)


def _quiet_worker(signs, _: int) -> None:
    global _own_signs
    _own_signs = signs
    # a signal to the whole process group must not kill the workers before the main process has finished its step
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if cv2.getNumThreads() != 1:  # of a process that was not forked
        cv2.setNumThreads(1)


def to_device(batch, device: torch.device):
    """The same nested dict with every tensor on the device, where it is copied beside what is being computed."""
    if device.type == "cpu":
        return batch
    computing, copying = torch.accelerator.current_stream(device), _copying(device)
    torch.accelerator.set_stream(copying)
    try:
        moved = _each(batch, Tensor, lambda tensor: tensor.to(device, non_blocking=True))
    finally:
        torch.accelerator.set_stream(computing)
    computing.wait_stream(copying)
    _each(moved, Tensor, lambda tensor: tensor.record_stream(computing))  # or its memory might be used again too early
    return moved


@functools.cache
def _copying(device: torch.device) -> torch.Stream:
    return torch.Stream(device)


class Download:
    """Tensors of a nested dict on their way from the device to the host, which does not wait until it asks for them.

    copy: also what is on the host already
    """

    def __init__(self, tensors: dict, device: torch.device, copy: bool = False):
        self._tensors = _each(tensors, Tensor, lambda tensor: tensor.to("cpu", non_blocking=True, copy=copy))  # pinned
        self._done = None
        if device.type != "cpu":
            self._done = torch.Event(device)
            self._done.record()

    def wait(self) -> dict:
        """The same nested dict with every tensor on the host."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        return self._tensors


def _each(batch, kind: type, change: Callable):
    """The same nested dict with every value of that kind changed."""
    if isinstance(batch, dict):
        return {key: _each(value, kind, change) for key, value in batch.items()}
    return change(batch) if isinstance(batch, kind) else batch
