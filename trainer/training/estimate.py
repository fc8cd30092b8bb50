"""Time, memory and disk of a training, estimated from a few of its steps."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import resource
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from trainer import data, distributed
from trainer.settings import Settings, resolve
from trainer.training.loop import _Training, like_initial
from trainer.training.precision import pick_precision

STEPS, _WARM = 8, 3  # steps to run, and those that do not count


@dataclass(frozen=True)
class Estimate:
    """epochs, steps: of the training; seconds: per step; cores: used by a step; memory, on_device: largest memory of
    this process, and on the GPU (0 without one), in bytes; disk: bytes of the run's folder"""

    epochs: int
    steps: int
    seconds: float
    cores: float
    memory: int
    on_device: int
    disk: int


def estimate(
    settings: Settings, shards: data.Folders, clips: int | None = None, initial: str | os.PathLike | None = None
) -> Estimate:
    """Run a few steps of a training in a temporary folder, which is removed. For the arguments see `train`."""
    settings = resolve(like_initial(settings, initial))
    with (
        tempfile.TemporaryDirectory(prefix="vssl-plan-") as scratch,
        contextlib.redirect_stdout(io.StringIO()),
        distributed.session(settings.device) as device,
    ):
        settings = replace(settings, precision=pick_precision(settings.precision, device), log=[])
        training = _Training(settings, shards, device, initial, clips)
        epochs, steps = training.settings.epochs, training.last
        training.last = min(STEPS, steps)
        before = resource.getrusage(resource.RUSAGE_SELF)
        folder = training.run(Path(scratch) / "run", None)
        after = resource.getrusage(resource.RUSAGE_SELF)
        with open(folder / "log.csv", newline="") as file:
            took = [float(row["total_ms"]) / 1000 for row in csv.DictReader(file)]
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    peak = after.ru_maxrss if sys.platform == "darwin" else 1024 * after.ru_maxrss
    each = median(took[min(_WARM, len(took) - 1) :])
    return Estimate(epochs or 0, steps, each, used / sum(took), peak, on_device, disk)
