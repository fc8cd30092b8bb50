"""Pairs of videos: their list, and how alike the two are."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from labelgen.errors import ReadError
from labelgen.processes import environment
from labelgen.reading import open_regular, read_bytes
from labelgen.shards import VideoNames
from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate.bench import incomplete

_TINY = 1e-12
_MAT_BYTES, _MAT_SECONDS = 1 << 26, 60  # of a .mat file, and to read it
_READ_MAT = """
import io, resource, sys
import numpy as np
from scipy.io import loadmat
resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
found = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=sys.argv[1:]).get(sys.argv[1], np.empty(0))
np.save(sys.stdout.buffer, found, allow_pickle=False)
"""
_CHUNK = 256  # pairs whose features are in memory at a time


def read_pairs(path: Path, source: data.Shards) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Fold int64 [n], rows of source.videos of both videos int64 [n], same bool [n], and notes for the reader.

    path: a CSV file with the columns fold, first, second, same, or ASLAN's View2.mat. Raises TrainerError for another file.
    """
    ids = source.text("videos/id")
    names = VideoNames(ids)
    numbered: dict[str, list[int]] = {}  # 0001.avi is sample 1
    for row, name in enumerate(ids):
        if (stem := Path(name).stem).isdecimal():
            numbered.setdefault(str(int(stem)), []).append(row)
    found, missing = [], 0
    for number, *pair, alike in (_view2_pairs if path.suffix.lower() == ".mat" else _csv_pairs)(path):
        videos = [names.spelt(name) or numbered.get(name, []) for name in pair]
        for name, rows in zip(pair, videos, strict=True):
            if len(rows) > 1:
                raise TrainerError(f"{path}: {name!r} is the name of {names.told(rows)}; write the whole id")
        if all(videos):
            found.append((number, *(rows[0] for rows in videos), alike))
        else:
            missing += 1
    if not found:
        raise TrainerError(
            f"{path}: none of its {missing} pairs has both videos in the shards, whose ids look like {next(iter(ids), '')!r}"
        )
    fold, first, second, same = (np.array(column) for column in zip(*found, strict=True))
    for number in np.unique(fold):
        if len(np.unique(same[fold != number])) < 2:
            raise TrainerError(
                f"{path}: without fold {number} there are not both same and different pairs to learn from"
            )
    notes = [f"{missing} pairs left out, whose videos are not in the shards"] if missing else []
    notes += incomplete(source, {"videos": len(source.videos), "folds": len(np.unique(fold)), "pairs": len(fold)})
    return fold, first, second, same, notes


def _csv_pairs(path: Path) -> Iterator[tuple[int, str, str, bool]]:
    try:
        with open_regular(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if set(table.fieldnames or ()) != {"fold", "first", "second", "same"}:
                raise TrainerError(f"{path}: columns {table.fieldnames}, expected fold, first, second, same")
            for line in table:
                if line["same"] not in ("0", "1") or not re.fullmatch("[0-9]{1,9}", line["fold"] or ""):
                    raise TrainerError(
                        f"{path}: line {table.line_num}: {line}, expected a number as fold and 0 or 1 as same"
                    )
                yield int(line["fold"]), line["first"] or "", line["second"] or "", line["same"] == "1"
    except OSError as error:
        raise TrainerError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrainerError(f"{path}: no CSV file ({error}), expected fold,first,second,same or a .mat file") from error


def _view2_pairs(path: Path) -> Iterator[tuple[int, str, str, bool]]:
    """The pairs of ASLAN's View2.mat, as its ReadMe describes it: action_splits_pairs, 600 pairs x 5 x 10 folds; the five are
    the ids of both samples, same (0 or 1), and the two actions."""
    name = "action_splits_pairs"
    try:
        content = read_bytes(path, _MAT_BYTES)
    except ReadError as error:
        raise TrainerError(str(error)) from error
    if not content.startswith(b"MATLAB"):
        raise TrainerError(
            f"{path}: no MATLAB file, expected ASLAN's View2.mat, or a .csv file: fold,first,second,same"
        )
    try:
        command = [sys.executable, "-c", _READ_MAT, name]  # SciPy dies of some damaged files: in a process of its own
        done = subprocess.run(command, input=content, capture_output=True, timeout=_MAT_SECONDS, env=environment())
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"signal {-done.returncode}"]
            raise ValueError(f"{said[-1]:.200}")
        pairs = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    except (ValueError, EOFError, subprocess.TimeoutExpired) as error:
        raise TrainerError(f"{path}: damaged, or of a version that SciPy does not read ({error})") from error
    if pairs.dtype.kind not in "iuf" or pairs.ndim != 3 or pairs.shape[1] != 5:
        there = f"{pairs.dtype} {pairs.shape}" if pairs.size else "nothing"
        raise TrainerError(f"{path}: {there} as {name}, expected 600 x 5 x 10 numbers: View2.mat, not train_pairs.mat")
    ids = pairs[:, :2]
    if not np.isin(pairs[:, 2], (0, 1)).all() or not (np.isfinite(ids) & (ids == np.floor(ids))).all():
        raise TrainerError(f"{path}: {name}[:, :3] is not two whole numbers, and 0 or 1")
    for fold in range(pairs.shape[2]):
        for first, second, same in pairs[:, :3, fold].tolist():
            yield fold + 1, str(int(first)), str(int(second)), same == 1


def pair_measures(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The 12 measures of each pair of rows of x (float32 [videos, d], not negative), float64 [pairs, 12]."""
    parts = [measures(x[first[i : i + _CHUNK]], x[second[i : i + _CHUNK]]) for i in range(0, len(first), _CHUNK)]
    return np.concatenate(parts)


def measures(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The 12 (dis)similarities of vectors without negative values, [n, d] each -> float64 [n, 12], in the order of
    [thesis tab. 3.9]. Where a quotient has no value (0 / 0) its term is 0; logarithms are taken of values + 1e-12."""
    if (a < 0).any() or (b < 0).any():
        raise TrainerError("features have negative values, for which these measures are not defined")
    a, b = a.astype(np.float64), b.astype(np.float64)
    both, product, difference = a + b, a * b, a - b
    safe = np.where(both > 0, both, 1)
    log = np.log((a + _TINY) / (b + _TINY))
    dot = product.sum(1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.stack(
        [
            dot,
            np.sqrt(dot),
            np.sqrt(np.sqrt(product).sum(1)),
            np.sqrt((product / safe).sum(1)),
            dot / np.maximum(lengths, _TINY),
            np.sqrt((difference**2 / safe).sum(1)),
            np.abs(difference).sum(1),
            np.sqrt(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(1)),
            (difference * log).sum(1) / 2,
            np.sqrt((difference**2).sum(1)),
            np.sqrt(np.maximum(a, b) / safe).sum(1),
            np.minimum(a, b).sum(1) / np.maximum(a.sum(1) * b.sum(1), _TINY),
        ],
        axis=1,
    )
