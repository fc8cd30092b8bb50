"""The transport of batches: decoded in threads, copied to the device, and results copied back."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import cv2
import torch
from torch import Tensor

from labelgen.processes import cores
from trainer.errors import TrainerError

_AHEAD = 2  # batches that each thread decodes in advance


class Clips(Protocol):
    """A source of batches, which are chosen by keys."""

    def batch(self, keys: Any) -> dict[str, Any]: ...


def prefetch(clips: Clips, keys: Iterable[Any], workers: int, device: torch.device) -> Generator[dict[str, Any]]:
    """Yield clips.batch(key) for each of the keys, in order, in pinned memory if the device is a GPU.

    workers: threads that decode batches in advance, at most four per core (OpenCV's decoder releases Python's lock); 0
    decodes each batch on request. The error of a batch is raised in its place. Closing the iterator ends the threads.
    Raises TrainerError if no thread can be started.
    """
    cv2.setNumThreads(1)

    def load(key: Any) -> dict[str, Any]:
        batch = clips.batch(key)
        return batch if device.type == "cpu" else _each(batch, Tensor.pin_memory)

    if not workers:
        yield from map(load, keys)
        return
    workers = min(workers, 4 * cores())
    threads = ThreadPoolExecutor(workers, "decode")
    batches: deque[Future[dict[str, Any]]] = deque()
    try:
        for key in keys:
            try:
                batches.append(threads.submit(load, key))
            except RuntimeError as error:
                raise TrainerError(
                    f"no thread that decodes frames can be started ({error}); check the limit of processes and threads "
                    "(ulimit -u), or use fewer workers, or none (--workers 0)"
                ) from error
            if len(batches) == _AHEAD * workers:
                yield batches.popleft().result()
        while batches:
            yield batches.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def to_device(batch: Any, device: torch.device) -> Any:
    """The same nested dict with every tensor on the device. The copies run in parallel with computation on the device."""
    if device.type == "cpu":
        return batch
    computing, copying = torch.accelerator.current_stream(device), _copying(device)
    torch.accelerator.set_stream(copying)
    try:
        moved = _each(batch, lambda tensor: tensor.to(device, non_blocking=True))
    finally:
        torch.accelerator.set_stream(computing)
    computing.wait_stream(copying)
    _each(moved, lambda tensor: tensor.record_stream(computing))  # else its memory might be reused too early
    return moved


@functools.cache
def _copying(device: torch.device) -> torch.Stream:
    return torch.Stream(device)


class Download:
    """The copy of a nested dict of tensors from the device to the host, which only `wait` waits for.

    copy: also copy tensors that are on the host already
    """

    def __init__(self, tensors: Any, device: torch.device, copy: bool = False):
        self._tensors = _each(tensors, lambda tensor: tensor.to("cpu", non_blocking=True, copy=copy))  # pinned
        self._done: torch.Event | None = None
        if device.type != "cpu":
            self._done = torch.Event(device)
            self._done.record()

    def wait(self) -> Any:
        """The same nested dict with every tensor on the host."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        return self._tensors


def _each(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested dict with every tensor changed."""
    if isinstance(batch, dict):
        return {key: _each(value, change) for key, value in batch.items()}
    return change(batch) if isinstance(batch, Tensor) else batch
