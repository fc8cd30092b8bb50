"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import nn

from trainer import checkpoint, data, distributed


class Saver:
    """Checkpoints of a run: copied to the host in the midst of training, written by a thread of the first process.

    meta: see checkpoint.save; minutes: between two of them. As a context manager it ends with the last one written.
    """

    def __init__(self, folder: Path, meta: dict, minutes: float, device: torch.device):
        self.folder, self.meta, self.seconds, self.device = folder, meta, 60 * minutes, device
        self.thread, self.begun = ThreadPoolExecutor(1, "checkpoint"), time.monotonic()
        self.writing: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    @property
    def due(self) -> bool:
        """Whether it is time for another one, or the last one could not be written, which `save` then tells. Of the first
        process."""
        if distributed.rank() or (self.writing and not self.writing.done()):
            return False
        failed = self.writing is not None and self.writing.exception() is not None
        return failed or time.monotonic() - self.begun >= self.seconds

    def save(
        self,
        step: int,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        kind: str = "checkpoints",
        wait: bool = False,
    ) -> None:
        """Write network and optimiser as they are after a step; kind: see checkpoint.save; wait: until that is done. All
        processes call it alike. Raises WriteError, in all of them, also for the one before."""
        distributed.on_rank_zero(lambda: self._save(step, network, optimiser, kind, wait))

    def _save(self, step: int, network: nn.Module, optimiser: torch.optim.Optimizer, kind: str, wait: bool) -> None:
        self._wait()
        state = {"weights": network.state_dict(), "optimiser": optimiser.state_dict()}
        state = data.Download(state, self.device, copy=True).wait()
        self.begun = time.monotonic()
        self.writing = self.thread.submit(checkpoint.save, self.folder, step, **state, meta=self.meta, kind=kind)
        if wait:
            self._wait()

    def _wait(self) -> None:
        writing, self.writing = self.writing, None
        if writing:
            writing.result()
