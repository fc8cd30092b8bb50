"""How far the jobs of a study are, by what their processes write, wherever they run."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from labelgen.errors import VsslError
from labelgen.progress import duration
from labelgen.reading import load_json, open_regular
from trainer.study.jobs import Job, Store

_TAIL = 1 << 13  # bytes from the end of a file
_CHARACTERS = 120  # of a line that a run printed
_STEPS = 20  # the last ones, whose time tells what is left


def running(jobs: Iterable[Job], store: Store) -> list[str]:
    """A line for each job that is being made: its device, and step, loss and time left of a training, or what it printed last."""
    lines = []
    for job in jobs:
        try:
            device, begin = store.marker(job).read_text().split("\n")
            state = _state(job.runs(store)) or _printed(store.log(job), int(begin)) or "starts"
        except (OSError, ValueError):  # it has just ended, or begins now
            continue
        lines.append(f"{job.row}: {job.title} ({device}): {state}")
    return lines


def _state(runs: list[Path]) -> str:
    """How far the last run is that has begun."""
    for number in range(len(runs), 0, -1):
        if state := _training(runs[number - 1]):
            return f"split {number} of {len(runs)}, {state}" if len(runs) > 1 else state
    return ""


def _training(run: Path) -> str:
    """Step, loss and time left of a run, "" before its first step."""
    try:
        steps = load_json(max((run / "checkpoints").glob("[0-9]*/checkpoint.json")))["steps"]
        with open_regular(run / "log.csv") as file:
            head = file.readline().decode().strip().split(",")
            rows = [row for row in _tail(file, file.tell()).splitlines(keepends=True) if row.endswith("\n")]
        last = [dict(zip(head, row, strict=True)) for row in csv.reader(rows[-_STEPS:])]
        step, each = int(last[-1]["step"]), statistics.median(float(row["total_ms"]) for row in last) / 1000
        left = f"about {duration((steps - step) * each)} left"
        return f"step {step:,} of {steps:,}, loss {float(last[-1]['loss']):.4g}, {left}"
    except (VsslError, OSError, LookupError, ValueError, TypeError):  # not there yet, or about to be replaced
        return ""


def _printed(log: Path, begin: int) -> str:
    with open_regular(log) as file:
        lines = _tail(file, begin).replace("\r", "\n").split("\n")
    return next((line.strip()[:_CHARACTERS] for line in reversed(lines) if line.strip()), "")


def _tail(file: BinaryIO, begin: int) -> str:
    """The end of a file, from `begin` on; a line that is cut at its head is left out."""
    size = file.seek(0, 2)
    start = max(begin, size - _TAIL)
    file.seek(start)
    text = file.read().decode(errors="replace")
    return text if start == begin else text.partition("\n")[2]
