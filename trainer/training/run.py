"""The run during training: its folder, its checkpoints, and the signals that stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from labelgen import files, progress
from trainer import checkpoint, data, distributed
from trainer.backbones.layers import Stages
from trainer.errors import TrainerError
from trainer.methods import short
from trainer.settings import Settings
from trainer.training.log import say

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def new_folder(name: str | os.PathLike | None, settings: Settings) -> Path:
    """A new folder of that name (in runs/) or path, default runs/<method>-<backbone>-<n>. Raises TrainerError if it is
    not empty."""
    if name is not None:
        folder = checkpoint.run_path(name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainerError(f"{folder}: exists; resume it, or choose another name for the run")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    n = 1
    while True:
        folder = checkpoint.RUNS / f"{short(settings.method)}-{short(settings.backbone)}-{n}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1


def check_name(name: str | os.PathLike | None) -> None:
    """Raises TrainerError if the name or path of a run is not valid UTF-8, which its files need."""
    raw = os.fsencode(name or "")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = raw.decode("utf-8", "backslashreplace")
        raise TrainerError(f"{shown}: not valid UTF-8; give the run another name, or rename its folder") from error


def metadata(
    settings: Settings,
    source: data.Shards,
    backbone: Stages,
    samples: dict[str, int],
    steps: int,
    device: torch.device,
    initial: dict | None,
) -> dict:
    """The content of a run's checkpoint.json, except the step. samples: number for each method; initial: see
    `checkpoint.start_from`."""
    return {
        "settings": asdict(settings),
        "dataset": source.dataset,
        "split": source.split,
        "datasets": source.splits,
        "samples": samples,
        "videos": len(source.videos),
        "classes": source.classes,
        "steps": steps,
        "config_hash": source.config_hash,
        "config": source.config,
        **backbone.stored(),
        "environment": {
            "device": device.type,
            "processes": distributed.world(),
            "threads": torch.get_num_threads(),
            **checkpoint.versions(),
        },
        "initial": initial,
    }


def check_same_data(saved: checkpoint.Checkpoint, found: dict, shards: str | os.PathLike) -> None:
    """Raises TrainerError if the shards differ from those that the run was trained on."""
    for name, value in found.items():
        if saved.meta[name] != value:
            raise TrainerError(
                f"cannot resume {saved.run}: {name} of {shards} is {value}, but the run has {saved.meta[name]}; "
                "give the shards of the run, or start a new run"
            )


def locked(folder: Path) -> AbstractContextManager:
    """Lock the run against training by other processes. Raises TrainerError if one is training it."""
    error = TrainerError(f"{folder}: another process is training this run; wait for it, or stop it")
    return files.locked(folder, error, say)


class Saver:
    """Checkpoints of a run: copied to the host while training goes on, and written by a thread of the first process.

    meta: see checkpoint.save; minutes: between two checkpoints. As a context manager it waits for the last one.
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
        """Whether, in the first process, a checkpoint is due, or the last one failed, so that `save` raises its error."""
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
        """Write network and optimiser after a step. kind: see checkpoint.save; wait: until it is written. All processes
        make the same call. Raises WriteError in all of them, also for the previous checkpoint."""
        distributed.on_rank_zero(lambda: self._save(step, network, optimiser, kind, wait))

    def _save(self, step: int, network: nn.Module, optimiser: torch.optim.Optimizer, kind: str, wait: bool) -> None:
        self._wait()
        state = {"weights": network.state_dict(), "optimiser": optimiser.state_dict()}
        state = data.Download(state, self.device, copy=True).wait()
        self.begun = time.monotonic()
        progress.detail(f"step {step}: checkpoint -> {self.folder / kind}")
        self.writing = self.thread.submit(checkpoint.save, self.folder, step, **state, meta=self.meta, kind=kind)
        if wait:
            self._wait()

    def _wait(self) -> None:
        writing, self.writing = self.writing, None
        if writing:
            writing.result()


class StopSignals:
    """Records SIGINT, SIGTERM and SIGHUP (a closed terminal or connection) in `caught`, so that the step can be
    completed and saved. In a single process, a second signal takes effect at once. Signals that the caller ignores, as
    `nohup` does, stay ignored."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers by signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.caught = signal.Signals(number)
        alone = distributed.world() == 1  # a launcher forwards signals that its processes may already have received
        again = " (again to stop at once)" if alone else ""
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"\n{self.caught.name}: stopping after this step{again}\n".encode())
        if alone:
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
