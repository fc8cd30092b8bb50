"""What a run tells: log.csv, holdout.csv, TensorBoard, the screen."""

from __future__ import annotations

import csv
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from tqdm import tqdm

from labelgen.errors import ReadError, WriteError
from labelgen.files import write_text, writing
from labelgen.reading import read_text
from trainer import distributed
from trainer.errors import TrainerError


def say(text: str) -> None:
    """Print a line, of the first process only, without breaking a progress bar."""
    if distributed.rank() == 0:
        tqdm.write(text)
        sys.stdout.flush()


class Log:
    """log.csv, holdout.csv, TensorBoard where it is installed, and the screen; written by the first process alone.

    first, last: steps done before and in all; every: steps between two lines where there is no terminal
    """

    def __init__(self, folder: Path, first: int, last: int, every: int):
        self.folder, self.last, self.every, self.writes = folder, last, every, distributed.rank() == 0
        self.bar = tqdm(total=last, initial=first, unit="step", disable=not (self.writes and sys.stderr.isatty()))
        self.board = _tensorboard(folder, first) if self.writes else None
        self.file = (folder / "log.csv").open("a", newline="", buffering=1) if self.writes else None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.bar.close()
        for name, opened in (("log.csv", self.file), ("tensorboard", self.board)):
            if opened:
                # what failed before is what is told
                with suppress(WriteError) if kind else nullcontext(), writing(self.folder / name):
                    opened.close()

    def step(self, step: int, epoch: int, lr: float, values: dict, waited: float, total: float, clips: int) -> None:
        """Log a step, counted from 0: metrics, seconds waited for data and in all, clips shown."""
        if not self.writes:
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
            for name, value in (values | rates).items():
                self.board.add_scalar(f"train/{name}", value, step + 1)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", clips_per_s=row["clips_per_s"], refresh=False)
        self.bar.update()
        if self.bar.disable and (step + 1 == self.last or (step + 1) % self.every == 0):
            say(
                f"step {step + 1}/{self.last} | epoch {epoch} | {_shown(values)} | data {row['data_ms']} ms | "
                f"compute {row['compute_ms']} ms | {row['clips_per_s']} clips/s"
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
            for name, value in values.items():
                self.board.add_scalar(f"holdout/{name}", value, step)
        say(f"held out after step {step}: {_shown(values)}")
        return values.get("accuracy", -1) > max(before, default=-1)

    def sync(self) -> None:
        """Wait until the log is on the disk."""
        if self.writes:
            with writing(self.folder / "log.csv"):
                os.fsync(self.file.fileno())


def _shown(values: dict) -> str:
    names = [name for name in values if name.split(".")[-1] in ("loss", "accuracy", "chance")]
    return " | ".join(f"{name} {values[name]:.4f}" for name in names)


def _tensorboard(folder: Path, first: int):
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
