"""Batches on their way: the processes that decode, the memory that they share with the main process, the device."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

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
            buffer = torch.empty(size + 1, dtype=torch.uint8).share_memory_()
            self.buffers.append(buffer)
        buffer[-1] = 1
        return LentFrames(buffer[:size].view(shape))


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
    """A DataLoader whose workers, at most four per core, use one thread each and leave Ctrl-C and SIGTERM to the main process."""
    # here, before the fork: in a worker it would wait for ever for threads that it did not inherit
    cv2.setNumThreads(1)
    return DataLoader(
        dataset,
        num_workers=min(workers, 4 * cores()),
        worker_init_fn=_quiet_worker,
        pin_memory=device.type == "cuda",
        collate_fn=_packed,
        **options,
    )


def received(batches: Iterable[dict | VsslError]) -> Iterator[dict]:
    """The batches, whose processes start now; what one of them sent is raised where it is an error. Raises LoaderLost where
    a process was killed."""
    with safe_path():
        iterator = iter(batches)
    _hold_back()
    return _received_batches(iterator)


def _received_batches(batches: Iterator[dict | VsslError]) -> Iterator[dict]:
    global _waiting
    while True:
        _waiting = True
        try:
            if _raise_ended is not None:
                _raise_ended(signal.SIGCHLD, None)
            batch = next(batches, None)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            text = str(error).splitlines()[0].rstrip(". ")
            raise LoaderLost(
                f"a process that decodes frames ended ({text}); check memory, or take fewer workers"
            ) from error
        finally:
            _waiting = False
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


_ending = multiprocessing.RawValue("b", 0)  # shared with the decoding processes


@contextmanager
def ending_workers() -> Iterator[None]:
    """End the decoding processes that the block starts: they ignore SIGTERM before, and after an error Python would wait
    for them for ever."""
    before = set(multiprocessing.active_children())
    _ending.value = 0
    try:
        yield
    finally:
        _ending.value = 1
        left = set(multiprocessing.active_children()) - before
        for process in left:
            process.terminate()
        for process in left:
            process.join()


def _packed(batch: dict | VsslError):
    return batch if get_worker_info() is None or isinstance(batch, VsslError) else _SentBatch(batch)


class _SentBatch:
    """A batch that a worker sends. Its small tensors travel by value: to share the memory of one takes longer than to
    decode a frame, in both processes."""

    def __init__(self, batch: dict):
        self.batch = batch

    def __reduce__(self):
        return _unpacked, (_each(self.batch, Tensor, Tensor.numpy),)


def _unpacked(batch: dict) -> dict:
    return _each(batch, np.ndarray, torch.from_numpy)


def _quiet_worker(_: int) -> None:
    # a signal to the whole process group must not kill the workers before the main process has finished its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if _ending.value else None)


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
