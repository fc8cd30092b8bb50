"""Action similarity: do two videos show the same action?"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labelgen.errors import ReadError
from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate.protocol import Protocol, ProtocolOption
from trainer.evaluate.protocols import data, metrics, np, progress, reading, shards, splits

STAGES = 3  # the deepest three: conv3, conv4, conv5
COLUMNS = ("fold", "first", "second", "same")
_TINY = 1e-12
_MAT_BYTES = 1 << 26  # limit of a .mat file
_CHUNK = 256  # pairs whose features are in memory at a time


class Similarity(Protocol):
    """Classify from frozen features whether two videos show the same action."""

    title = "Similarity"
    question = "Do two videos show the same action?"
    items = (
        "The pairs of videos in `--pairs`: ASLAN's `View2.mat` (`action_splits_pairs`, 600 x 5 x 10), in which sample 1 is the "
        "video `0001.avi`, or a CSV file with the columns `fold,first,second,same`, such as `1,clip_0001.avi,clip_0002.avi,1`, "
        "with videos given by id, by file name with or without extension, or by number. A video is the mean of its sliding "
        "clips. `--dataset aslan` takes the folder of the videos, whose archive holds 3,697 samples (papers count 3,631)."
    )
    classifier = (
        "A linear SVM on 12 (dis)similarities of the two videos' features at the three deepest stages, standardised on the "
        "training folds. Results are the accuracy over all pairs, with an interval over pairs; as papers report it, the mean "
        "over folds and its standard error (standard deviation of the folds / square root of their number); and the area under "
        "one ROC curve of the decision values of all folds, by trapezoids. If all folds have the same composition, as ASLAN's "
        "folds of 300 same and 300 different pairs do, this is the curve of average true and false positive rates on ASLAN's "
        "results page; ASLAN's code (`WYtotable.m`, which according to its ReadMe computes accuracy, standard error and AUC from "
        "scores, labels and split numbers) could not be read."
    )
    left_out = "Pairs with a video that is not in the shards; a note counts them."
    source = "Kliper-Gross et al., PAMI 2012; thesis 3.6.4."
    options = (ProtocolOption("pairs", Path, "ASLAN's View2.mat, or a CSV file: fold,first,second,same.", shared=True),)
    scores: metrics.ItemScores

    def choose(self, pairs: str | os.PathLike | None = None) -> data.Shards:
        if pairs is None:
            raise ProtocolError("similarity needs the list of pairs", f"--pairs FILE ({','.join(COLUMNS)})")
        source = self.evaluator.source()
        self.fold, first, second, self.same, notes = read_pairs(Path(pairs), source)
        self.videos, index = np.unique(np.concatenate([first, second]), return_inverse=True)
        self.first, self.second = index[: len(first)], index[len(first) :]
        self.notes += notes
        ids = source.text("videos/id")
        # numbered, because a list may contain a pair twice
        names = [f"{i}: {ids[one]} | {ids[two]}" for i, (one, two) in enumerate(zip(first, second, strict=True))]
        words = np.array(["different", "same"])
        labels, groups = words[self.same.astype(int)], np.full(len(names), "")
        self.scores = metrics.ItemScores(np.array(names), labels, groups, words, {})
        return source

    def rows(self) -> Iterator[dict]:
        return self.of_networks(self._of_network)

    def _of_network(self, network: str) -> Iterator[dict]:
        found = self.evaluator.features(network, self.shards, self.videos, "sliding")
        keys = [key for key in found.arrays if key[1] == "max"][-STAGES:]
        means = (found.video_means(key) for key in keys)
        measured = np.concatenate([pair_measures(x, self.first, self.second) for x in means], axis=1)
        score = cross_validated(measured, self.same, self.fold)
        row = {"stage": "+".join(stage for stage, _ in keys), "pooling": "max"}
        hit, pairs = (score > 0) == self.same, np.arange(len(self.same))
        yield {**row, "metric": "accuracy", **self.scores.accuracy(hit, pairs, (score > 0).astype(int))}
        folds = [self.fold == number for number in np.unique(self.fold)]
        of_folds = [100 * hit[fold].mean() for fold in folds]
        yield {**row, "metric": "mean over folds", "value": float(np.mean(of_folds))}
        yield {**row, "metric": "standard error", "value": float(np.std(of_folds, ddof=1) / np.sqrt(len(folds)))}
        yield {**row, "metric": "AUC", "value": 100 * area_under_curve(score, self.same)}

    def conditions(self) -> dict[str, Any]:
        same, folds = 100 * self.same.mean(), len(set(self.fold.tolist()))
        return {
            "split": None,
            "mode": f"linear SVM on 12 (dis)similarities x {STAGES} stages, {folds} folds",
            "views": f"all clips of {self.clip} with {self.overlap} overlapping, averaged",
            "items": f"{len(self.same)} pairs of {len(self.videos)} videos, {same:.1f} % of them the same",
            "intervals": self.scores.describe_units(np.arange(len(self.same))),
        }

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        return f"{super().command(name, run, shards)} --pairs FILE"


def read_pairs(path: Path, source: data.Shards) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """The fold, int64 [n]; the rows in source.videos of the first and second video, int64 [n] each; same, bool [n]; and notes.

    path: a CSV file with the columns fold, first, second, same, or ASLAN's View2.mat. Raises TrainerError for any other file.
    """
    ids = source.text("videos/id")
    names = shards.VideoNames(ids)
    numbered: dict[str, list[int]] = {}  # 0001.avi is sample 1
    for row, name in enumerate(ids):
        if (stem := Path(name).stem).isdecimal():
            numbered.setdefault(str(int(stem)), []).append(row)
    found, missing = [], 0
    for number, *pair, alike in (_view2_pairs if path.suffix.lower() == ".mat" else _csv_pairs)(path):
        videos = [names.spelt(name) or numbered.get(name, []) for name in pair]
        for name, rows in zip(pair, videos, strict=True):
            if len(rows) > 1:
                raise TrainerError(f"{path}: {name!r} matches {names.listed(rows)}; give the complete id")
        if all(videos):
            found.append((number, *(rows[0] for rows in videos), alike))
        else:
            missing += 1
    if not found:
        raise TrainerError(
            f"{path}: none of its {progress.counted(missing, 'pair')} has both videos in the shards, expected ids "
            f"such as {next(iter(ids), '')!r}"
        )
    fold, first, second, same = (np.array(column) for column in zip(*found, strict=True))
    for number in np.unique(fold):
        if len(np.unique(same[fold != number])) < 2:
            raise TrainerError(
                f"{path}: without fold {number} all pairs are the same or all are different, expected both to learn from"
            )
    notes = [f"{progress.counted(missing, 'pair')} left out because videos are not in the shards"] if missing else []
    notes += splits.incomplete(
        source, {"videos": len(source.videos), "folds": len(np.unique(fold)), "pairs": len(fold)}
    )
    return fold, first, second, same, notes


def _csv_pairs(path: Path) -> Iterator[tuple[int, str, str, bool]]:
    try:
        with reading.open_regular(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
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
        raise TrainerError(
            f"{path}: not a CSV file ({error}), expected the columns fold,first,second,same, or a .mat file"
        ) from error


def _view2_pairs(path: Path) -> Iterator[tuple[int, str, str, bool]]:
    """The pairs of ASLAN's View2.mat, as its ReadMe describes it: action_splits_pairs, 600 pairs x 5 values x 10 folds; the
    values are the ids of both samples, same (0 or 1), and the two actions."""
    from scipy.io import loadmat

    name = "action_splits_pairs"
    try:
        content = reading.read_bytes(path, _MAT_BYTES)
    except ReadError as error:
        raise TrainerError(str(error)) from error
    if not content.startswith(b"MATLAB"):
        raise TrainerError(
            f"{path}: not a MATLAB file, expected ASLAN's View2.mat, or a .csv file with the columns fold,first,second,same"
        )
    try:
        pairs = loadmat(io.BytesIO(content), variable_names=[name]).get(name, np.empty(0))
    except Exception as error:  # SciPy raises many kinds for damaged files
        raise TrainerError(f"{path}: damaged, or in a format version that SciPy cannot read ({error})") from error
    if pairs.dtype.kind not in "iuf" or pairs.ndim != 3 or pairs.shape[1] != 5:
        there = f"{pairs.dtype} {pairs.shape}" if pairs.size else "nothing"
        raise TrainerError(f"{path}: {there} as {name}, expected 600 x 5 x 10 numbers: View2.mat, not train_pairs.mat")
    ids = pairs[:, :2]
    if not np.isin(pairs[:, 2], (0, 1)).all() or not (np.isfinite(ids) & (ids == np.floor(ids))).all():
        raise TrainerError(f"{path}: {name}[:, :3] has other values than expected, two whole numbers and 0 or 1")
    for fold in range(pairs.shape[2]):
        for first, second, same in pairs[:, :3, fold].tolist():
            yield fold + 1, str(int(first)), str(int(second)), same == 1


def pair_measures(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The 12 measures of each pair of rows of x (float32 [videos, d], not negative), float64 [pairs, 12]."""
    parts = [measures(x[first[i : i + _CHUNK]], x[second[i : i + _CHUNK]]) for i in range(0, len(first), _CHUNK)]
    return np.concatenate(parts)


def measures(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The 12 (dis)similarities of non-negative vectors, [n, d] each -> float64 [n, 12], in the order of [thesis tab. 3.9]. A term
    whose quotient is undefined (0 / 0) is 0; logarithms are of values + 1e-12."""
    if (a < 0).any() or (b < 0).any():
        raise TrainerError("features have negative values, for which these measures are undefined")
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


def cross_validated(x: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The decision value of each row of x (float64 [n, d]) by an SVM trained on the other folds, float64 [n]; above 0: same."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    score, numbers = np.full(len(x), np.nan), np.unique(fold)
    with progress.ProgressBar("same or not", "fold", len(numbers)) as bar:
        for number in numbers:
            held_out = fold == number
            machine = make_pipeline(StandardScaler(), LinearSVC(random_state=0, max_iter=10_000))
            score[held_out] = machine.fit(x[~held_out], same[~held_out]).decision_function(x[held_out])
            bar.step()
    if np.isnan(score).any():
        raise AssertionError(f"{np.isnan(score).sum()} of {len(score)} pairs were not scored")
    return score


def area_under_curve(score: np.ndarray, same: np.ndarray) -> float:
    """The probability that a same pair scores above a different one; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(same, score))
