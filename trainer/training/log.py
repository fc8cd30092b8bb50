"""What a run tells: log.csv, holdout.csv, TensorBoard, the screen."""

from __future__ import annotations

import csv
import math
import os
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from labelgen.errors import ReadError, WriteError
from labelgen.files import write_text, writing
from labelgen.reading import read_text
from trainer import distributed
from trainer.data import Batches
from trainer.errors import TrainerError


def say(text: str) -> None:
    """Print a line, of the first process only, without breaking a progress bar."""
    if distributed.rank() == 0:
        tqdm.write(text)
        sys.stdout.flush()


class Log:
    """log.csv, holdout.csv, TensorBoard where it is installed, and the screen; written by the first process alone.

    first, last: steps done before and in all; every: seconds between two lines where there is no terminal
    """

    def __init__(self, folder: Path, first: int, last: int, every: int):
        self.folder, self.first, self.last, self.every = folder, first, last, every
        writes, self.begun, self.told = distributed.rank() == 0, 0.0, 0.0
        shown = writes and sys.stderr.isatty()
        self.bar = tqdm(total=last, initial=first, unit="step") if shown else None
        self.board = _tensorboard(folder, first) if writes else None
        self.file = (folder / "log.csv").open("a", newline="", buffering=1) if writes else None

    def __enter__(self) -> Self:
        self.hook, threading.excepthook = threading.excepthook, self._thread_ended
        return self

    def _thread_ended(self, what: threading.ExceptHookArgs) -> None:
        """Of TensorBoard's thread the next step tells why it could not write."""
        if not (isinstance(what.exc_value, OSError) and "tensorboard" in type(what.thread).__module__):
            self.hook(what)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        threading.excepthook = self.hook
        if self.bar:
            self.bar.close()
        for name, opened in (("log.csv", self.file), ("tensorboard", self.board)):
            if opened:
                # what failed before is what is told
                with suppress(WriteError) if kind else nullcontext(), writing(self.folder / name):
                    opened.close()

    def step(self, step: int, epoch: int, lr: float, values: dict, waited: float, total: float, clips: int) -> None:
        """Log a step, counted from 0: metrics, seconds waited for data and in all, clips shown."""
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
        if self.board:
            rates = {"lr": lr, "clips_per_s": clips / total, "data_ms": 1000 * waited}
            with writing(self.folder / "tensorboard"):
                for name, value in (values | rates).items():
                    self.board.add_scalar(f"train/{name}", value, step + 1)
        if self.bar:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", clips_per_s=row["clips_per_s"], refresh=False)
            self.bar.update()
            return
        now, done = time.monotonic(), step - self.first  # steps after the first one, which takes longer
        self.begun = self.begun or now
        if not done or step + 1 == self.last or now - self.told >= self.every:
            self.told = now
            left = (self.last - step - 1) * ((now - self.begun) / done if done else total)
            say(
                f"step {step + 1}/{self.last} | epoch {epoch} | {_shown(values)} | data {row['data_ms']} ms | "
                f"compute {row['compute_ms']} ms | {row['clips_per_s']} clips/s | {_duration(left)} left"
            )

    def held_out(self, step: int, values: dict) -> bool:
        """Log the metrics of the held-out samples, and tell whether their accuracy is the best so far."""
        path = self.folder / "holdout.csv"
        told = csv.DictReader(read_text(path).splitlines()) if path.exists() else ()
        before = [float(row.get("accuracy", -1)) for row in told]
        with writing(path), open(path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{value:.9g}" for value in values.values())])
        if self.board:
            with writing(self.folder / "tensorboard"):
                for name, value in values.items():
                    self.board.add_scalar(f"holdout/{name}", value, step)
        say(f"held out after step {step}: {_shown(values)}")
        return values.get("accuracy", -1) > max(before, default=-1)

    def sync(self) -> None:
        """Wait until the log is on the disk."""
        if self.file is not None:
            with writing(self.folder / "log.csv"):
                os.fsync(self.file.fileno())


def at_chance(path: Path, batches: dict[str, Batches]) -> str:
    """What to tell of a training whose last steps (a tenth, 20 at least) were no better than guessing, "" of others; batches:
    of the methods, by name. An accuracy within two standard errors of guessing is no better; an appearance loss within 2 % of
    that of the best constant prediction is none, either."""
    rows = [*csv.DictReader(read_text(path).splitlines())]
    rows = rows[-max(20, len(rows) // 10) :]
    told = []
    for name, own in batches.items():
        prefix, words = (f"{name}.", f"{name}: ") if len(batches) > 1 else ("", "")
        sizes = [own.size(int(row["step"]) - 1) for row in rows]
        means = {
            key: sum(n * float(row[prefix + key]) for n, row in zip(sizes, rows, strict=True)) / sum(sizes)
            for key in ("accuracy", "chance", "appearance", "constant")
            if rows and prefix + key in rows[0]
        }
        if "accuracy" in means:
            accuracy, chance = means["accuracy"], means["chance"]
            if accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / sum(sizes)):
                told.append(f"{words}accuracy {accuracy:.3f} of the last {len(rows)} steps, guessing {chance:.3f}")
        elif "constant" in means and means["appearance"] >= 0.98 * means["constant"]:
            told.append(
                f"{words}appearance loss {means['appearance']:.3f} of the last {len(rows)} steps, that of one prediction for all "
                f"{means['constant']:.3f}"
            )
    return f"; no better than guessing ({'; '.join(told)}): it has not learned its task" if told else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _shown(values: dict) -> str:
    names = [name for name in values if name.split(".")[-1] in ("loss", "accuracy", "chance")]
    return " | ".join(f"{name} {values[name]:.4f}" for name in names)


def _tensorboard(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=first + 1)


def cut_log(path: Path, steps: int) -> None:
    """Drop the rows after the checkpoint, which are about to be made again, and a row that was cut off. Raises TrainerError
    for rows that are not numbers."""
    if not path.exists():
        return
    try:
        head, *rows = read_text(path).splitlines(keepends=True) or [""]
        rows = [row for row in rows if row.endswith("\n")]
        numbers = [[float(cell) for cell in row.split(",")] for row in rows]
        if any(len(row) != len(head.split(",")) for row in numbers):
            raise ValueError("a row has not as many numbers as the first line has names")
    except (ReadError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise TrainerError(
            f"{path}: damaged ({reason}); mend it or move it away, and resume again: what follows is logged anew"
        ) from error
    kept = [text for text, row in zip(rows, numbers, strict=True) if row[0] <= steps]
    write_text(path, "".join([head, *kept]) if kept else "")
