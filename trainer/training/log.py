"""The log of a run: log.csv, holdout.csv and the screen."""

from __future__ import annotations

import csv
import os
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from tqdm import tqdm

from labelgen import progress
from labelgen.errors import ReadError, WriteError
from labelgen.files import write_text, writing
from labelgen.reading import read_text
from trainer import distributed
from trainer.checkpoint import Checkpoint
from trainer.data import Batches, Shards
from trainer.errors import TrainerError
from trainer.methods import method_class
from trainer.network import Network
from trainer.settings import Settings
from trainer.training.precision import version_warnings

if TYPE_CHECKING:
    from trainer.training.loggers import Loggers


def say(text: str, result: bool = False) -> None:
    """labelgen.progress.say in the first process only."""
    if distributed.rank() == 0:
        progress.say(text, result=result)


class Log:
    """log.csv, holdout.csv, the screen and other loggers; only the first process writes.

    first, last: steps done before, and in all; every: seconds between lines if there is no terminal; others: get the same numbers
    """

    def __init__(self, folder: Path, first: int, last: int, every: int, others: Loggers):
        self.others, self.folder, self.first, self.last, self.every = others, folder, first, last, every
        writes, self.begun, self.printed = distributed.rank() == 0, 0.0, 0.0
        shown = writes and sys.stderr.isatty() and progress.level() >= 0
        self.bar = tqdm(total=last, initial=first, unit="step") if shown else None
        self.file = (folder / "log.csv").open("a", newline="", buffering=1) if writes else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar:
            self.bar.close()
        if self.file:
            # an earlier error takes precedence
            with suppress(WriteError) if kind else nullcontext(), writing(self.folder / "log.csv"):
                self.file.close()

    def step(self, step: int, epoch: int, lr: float, values: dict, waited: float, total: float, clips: int) -> None:
        """Log a step, counted from 0: metrics, seconds of waiting for data and in all, clips shown."""
        if self.file is None:
            return
        row = {
            "step": step + 1,
            "epoch": epoch,
            "lr": f"{lr:g}",
            **{name: f"{value:.9g}" for name, value in values.items()},
            "data_ms": f"{1000 * waited:.1f}",
            "compute_ms": f"{1000 * (total - waited):.1f}",
            "total_ms": f"{1000 * total:.1f}",
            "clips_per_s": f"{clips / total:.1f}",
        }
        with writing(self.folder / "log.csv"):
            writer = csv.writer(self.file, lineterminator="\n")
            if self.file.tell() == 0:
                writer.writerow(row)
            writer.writerow(row.values())
        rates = {"lr": lr, "clips_per_s": clips / total, "data_ms": 1000 * waited}
        self.others.log(step + 1, "train", values | rates)
        if self.bar:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", clips_per_s=row["clips_per_s"], refresh=False)
            self.bar.update()
            return
        now, done = time.monotonic(), step - self.first  # without the first step, which takes longer
        self.begun = self.begun or now
        if not done or step + 1 == self.last or now - self.printed >= self.every:
            self.printed = now
            left = (self.last - step - 1) * ((now - self.begun) / done if done else total)
            say(
                f"step {step + 1}/{self.last} | epoch {epoch} | {_shown(values)} | data {row['data_ms']} ms | "
                f"compute {row['compute_ms']} ms | {row['clips_per_s']} clips/s | {_duration(left)} left"
            )

    def held_out(self, step: int, values: dict) -> bool:
        """Log the metrics of the held-out samples. Returns whether the accuracy is the best so far."""
        path = self.folder / "holdout.csv"
        rows = csv.DictReader(read_text(path).splitlines()) if path.exists() else ()
        before = [float(row.get("accuracy", -1)) for row in rows]
        with writing(path), open(path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{value:.9g}" for value in values.values())])
        self.others.log(step, "holdout", values)
        say(f"held out after step {step}: {_shown(values)}")
        return values.get("accuracy", -1) > max(before, default=-1)

    def sync(self) -> None:
        """Wait until the log is on the disk."""
        if self.file is not None:
            with writing(self.folder / "log.csv"):
                os.fsync(self.file.fileno())


def at_chance(path: Path, batches: dict[str, Batches]) -> str:
    """A sentence if the last steps of a training (a tenth, at least 20) were no better than chance, else "". batches:
    of each method. The method decides what chance is, see Method.at_chance."""
    rows = [*csv.DictReader(read_text(path).splitlines())]
    rows, words = rows[-max(20, len(rows) // 10) :], []
    for name, each in batches.items() if rows else ():
        prefix = f"{name}." if len(batches) > 1 else ""
        sizes = [each.size(int(row["step"]) - 1) for row in rows]
        means = {
            key.removeprefix(prefix): sum(n * float(row[key]) for n, row in zip(sizes, rows, strict=True)) / sum(sizes)
            for key in rows[0]
            if key.startswith(prefix)
        }
        if found := method_class(name).at_chance(means, sum(sizes)):
            words.append(f"{name}: {found}" if prefix else found)
    steps = f"in the last {progress.counted(len(rows), 'step')}"
    return f"; no better than chance {steps} ({'; '.join(words)}): it has not learned its task" if words else ""


def introduce(
    settings: Settings, source: Shards, network: Network, steps: int, folder: Path, meta: dict, saved: Checkpoint | None
) -> None:
    """Print what is trained on which data, and warnings. steps: of an epoch; meta: of the run, see
    checkpoint.metadata."""
    parameters = sum(weight.numel() for weight in network.backbone.parameters())
    times = f", each {settings.repeats} times" if settings.repeats > 1 else ""
    samples = ", ".join(progress.counted(n, "sample") for n in meta["samples"].values())
    device = next(network.parameters()).device
    devices = f"{device} x {distributed.world()}" if distributed.world() > 1 else f"{device}"
    say(
        f"{settings.method}, {settings.backbone} (width {settings.width:g}, {parameters:,} parameters) on "
        f"{devices} in {settings.precision}, "
        f"{samples} of {source.dataset}{times}, {progress.counted(settings.epochs, 'epoch')} of "
        f"{progress.counted(steps, 'step')} -> {folder}"
    )
    if distributed.rank() == 0:
        progress.detail(
            "; ".join(f"{name} {value}" for name, value in {**vars(settings), **meta["environment"]}.items())
        )
    for name in source.unsplit_datasets:
        split = f" in split {source.splits[name]}" if source.splits[name] else ""
        say(f"{name} marks no video as train{split}: all are used")
    for name in settings.methods:
        for note in network.method(name).notes:
            say(note)
    for warning in version_warnings(settings.precision, torch.__version__, torch.backends.cudnn.version()):
        say(f"{progress.WARNING}{warning}")
    if saved:
        say(f"resuming after step {saved.meta['step']} of {meta['steps']}")
        before, now = saved.meta["environment"], meta["environment"]
        changed = [f"{name} {old} -> {now[name]}" for name in now if (old := before.get(name, "unknown")) != now[name]]
        if changed:
            bits = "resumed in a different environment, so results may differ in the last bits"
            say(f"{progress.WARNING}{bits}: {', '.join(changed)}")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _shown(values: dict) -> str:
    names = [name for name in values if name.split(".")[-1] in ("loss", "accuracy", "chance")]
    return " | ".join(f"{name} {values[name]:.4f}" for name in names)


def cut_log(path: Path, steps: int) -> None:
    """Drop the rows after the checkpoint, whose steps will be repeated, and a truncated row. Raises TrainerError for
    rows that are not numbers."""
    if not path.exists():
        return
    try:
        head, *rows = read_text(path).splitlines(keepends=True) or [""]
        rows = [row for row in rows if row.endswith("\n")]
        numbers = [[float(cell) for cell in row.split(",")] for row in rows]
        if any(len(row) != len(head.split(",")) for row in numbers):
            raise ValueError("a row and the first line differ in the number of columns")
    except (ReadError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise TrainerError(
            f"{path}: damaged ({reason}); repair or move the file, then resume: the log continues from there"
        ) from error
    kept = [text for text, row in zip(rows, numbers, strict=True) if row[0] <= steps]
    write_text(path, "".join([head, *kept]) if kept else "")
