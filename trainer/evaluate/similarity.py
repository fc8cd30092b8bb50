"""Action similarity: do two videos show the same action? [thesis 3.6.4; Kliper-Gross, Hassner, Wolf, ICCV 2011, PAMI 2012]"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, features, networks

STAGES = 3  # the deepest ones: conv3, conv4, conv5
_ASLAN = {"videos": 3631, "folds": 10, "pairs": 6000}
_TINY = 1e-12
_CHUNK = 256  # pairs whose features are in memory at a time


def similarity(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
    pairs: str | os.PathLike | None = None,
) -> dict:
    """Accuracy and area under the ROC curve of a linear SVM on the 12 (dis)similarities of two videos at three stages.

    pairs: CSV file with the columns fold, first, second, same: two videos by id or file name, with or without extension,
    and 1 for the same action, 0 for another. For each fold the SVM (scikit-learn's LinearSVC, C = 1) is trained on all
    other folds, each of the 36 values standardised on them. Clips of 16 frames with 8 overlapping, averaged, normalised.

    Raises TrainerError for a file of another form and for pairs whose videos are not in the shards.
    """
    if pairs is None:
        raise TrainerError("similarity needs the list of pairs: --pairs FILE (fold,first,second,same)")
    saved = protocol.open_checkpoint(checkpoint)
    source = protocol.open_shards(saved, shards, split)
    fold, first, second, same, notes = read_pairs(Path(pairs), source)
    videos, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    first, second = index[: len(first)], index[len(first) :]
    rows = []
    for network, backbone in networks(saved).items():
        found = features(saved, network, backbone, source, source.videos[videos], "sliding", compute)
        keys = [key for key in sorted(found.arrays) if key[1] == "max"][-STAGES:]
        measured = np.concatenate([pair_measures(found.video_means(key), first, second) for key in keys], axis=1)
        score = cross_validated(measured, same, fold)
        row = {"network": network, "stage": "+".join(stage for stage, _ in keys), "pooling": "max"}
        rows.append({**row, "metric": "accuracy"} | protocol.accuracy((score > 0) == same, np.arange(len(same))))
        rows.append({**row, "metric": "AUC", "value": 100 * area_under_curve(score, same)})
    told = protocol.describe(
        saved,
        source,
        backbone,
        split=None,
        mode=f"linear SVM on 12 (dis)similarities x {STAGES} stages, {len(np.unique(fold))} folds",
        views="all clips of 16 frames with 8 overlapping, averaged",
        items=f"{len(same)} pairs of {len(videos)} videos, {100 * same.mean():.1f} % of them the same",
    )
    result = {"protocol": told, "rows": rows, "notes": notes}
    protocol.write(result, saved.run, "similarity")
    return result


def read_pairs(path: Path, source: data.Shards) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Fold int64 [n], rows of source.videos of both videos int64 [n], same bool [n], and notes for the reader."""
    names: dict[str, int] = {}
    for row, name in enumerate(source.text("videos/id")):
        for spelling in {name, Path(name).name, name.rsplit(".", 1)[0], Path(name).stem}:
            names[spelling] = -1 if spelling in names else row  # -1: two videos of that name
    found, missing = [], 0
    try:
        with open(path, newline="") as file:
            table = csv.DictReader(file)
            if set(table.fieldnames or ()) != {"fold", "first", "second", "same"}:
                raise TrainerError(f"{path}: columns {table.fieldnames}, expected fold, first, second, same")
            for line in table:
                if line["same"] not in ("0", "1") or not (line["fold"] or "").isdecimal():
                    raise TrainerError(
                        f"{path}: line {table.line_num}: {line}, expected a number as fold and 0 or 1 as same"
                    )
                videos = [names.get(line[side], -1) for side in ("first", "second")]
                if -1 in videos:
                    missing += 1
                else:
                    found.append((int(line["fold"]), *videos, line["same"] == "1"))
    except OSError as error:
        raise TrainerError(f"{path}: cannot be read ({error.strerror})") from error
    if not found:
        raise TrainerError(
            f"{path}: none of its {missing} pairs has both videos in the shards, whose ids look like {next(iter(names), '')!r}"
        )
    fold, first, second, same = (np.array(column) for column in zip(*found, strict=True))
    for number in np.unique(fold):
        if len(np.unique(same[fold != number])) < 2:
            raise TrainerError(
                f"{path}: without fold {number} there are not both same and different pairs to learn from"
            )
    notes = [f"{missing} pairs left out, whose videos are not in the shards"] if missing else []
    has = {"videos": len(source.videos), "folds": len(np.unique(fold)), "pairs": len(fold)}
    if source.dataset == "aslan" and has != _ASLAN:
        notes.append(f"not the whole data set: {has}, published {_ASLAN}; not comparable with published numbers")
    return fold, first, second, same, notes


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


def cross_validated(x: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Decision value of each row of x (float64 [n, d]) by an SVM trained on the other folds, float64 [n]; above 0: same."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    score = np.full(len(x), np.nan)
    for number in np.unique(fold):
        held = fold == number
        machine = make_pipeline(StandardScaler(), LinearSVC(random_state=0, max_iter=10_000))
        score[held] = machine.fit(x[~held], same[~held]).decision_function(x[held])
    if np.isnan(score).any():
        raise AssertionError(f"{np.isnan(score).sum()} of {len(score)} pairs were not scored")
    return score


def area_under_curve(score: np.ndarray, same: np.ndarray) -> float:
    """Probability that a same pair scores above a different one, ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(same, score))


def format_table(result: dict) -> str:
    """The result of `similarity` for the screen."""
    lines = protocol.header(result, "similarity")
    lines += protocol.table(result["rows"], ("network", "stage", "pooling"), ("metric",))
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
