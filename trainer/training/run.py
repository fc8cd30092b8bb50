"""The run that is being trained: its folder, its checkpoints, and the signals that stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from labelgen import files
from trainer import checkpoint, data, distributed
from trainer.errors import TrainerError
from trainer.settings import Settings
from trainer.training.log import say

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def new_folder(name: str | os.PathLike | None, settings: Settings) -> Path:
    """A new folder of that name (in runs/) or path, default runs/<method>-<backbone>-<n>. Raises TrainerError if it holds
    something."""
    if name is not None:
        folder = checkpoint.run_path(name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainerError(f"{folder}: exists; resume it, or choose another name for the run")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    n = 1
    while True:
        folder = checkpoint.RUNS / f"{settings.method}-{settings.backbone}-{n}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1


def check_name(name: str | os.PathLike | None) -> None:
    """Raises TrainerError for a run's name or path that is not valid UTF-8, which what is written there needs."""
    raw = os.fsencode(name or "")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = raw.decode("utf-8", "backslashreplace")
        raise TrainerError(f"{shown}: not valid UTF-8; name the run otherwise, or rename its folder") from error


def check_same_data(saved: checkpoint.Checkpoint, found: dict, shards: str | os.PathLike) -> None:
    """Raises TrainerError if what is found in the shards is not what the run was trained on."""
    for name, value in found.items():
        if saved.meta[name] != value:
            raise TrainerError(
                f"cannot resume {saved.run}: {name} of {shards} is {value}, the run has {saved.meta[name]}; "
                "name the run's shards, or start a new run"
            )


def locked(folder: Path) -> AbstractContextManager:
    """Keep other processes from training the run. Raises TrainerError if one does."""
    error = TrainerError(f"{folder}: another process is training this run; wait for it, or stop it")
    return files.locked(folder, error, say)


class Saver:
    """Checkpoints of a run: copied to the host while training goes on, and written by a thread of the first process.

    meta: see checkpoint.save; minutes: between two of them. As a context manager it waits for the last one.
    """

    def __init__(self, folder: Path, meta: dict, minutes: float, device: torch.device) -> None:
        self.folder, self.meta, self.seconds, self.device = folder, meta, 60 * minutes, device
        self.thread, self.begun = ThreadPoolExecutor(1, "checkpoint"), time.monotonic()
        self.writing: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    @property
    def due(self) -> bool:
        """Whether, in the first process, it is time for the next one, or the last one failed, which `save` then raises."""
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
        """Write network and optimiser as they are after a step; kind: see checkpoint.save; wait: until it is written. All
        processes call it alike. Raises WriteError in all of them, also for the checkpoint before."""
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


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP (a closed terminal or connection) in `caught`, so that the step can be completed and
    saved. In a single process, a second one acts at once. A signal that the caller ignores, as `nohup` does, stays ignored."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers by signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.caught = signal.Signals(number)
        alone = distributed.world() == 1  # a launcher passes signals on, which its processes may already have had
        again = " (again to stop at once)" if alone else ""
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"\n{self.caught.name}: stopping after this step{again}\n".encode())
        if alone:
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
