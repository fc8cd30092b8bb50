"""k nearest neighbours on frozen features, each with a vote."""

from __future__ import annotations

import os

import numpy as np
import torch

from trainer import distributed
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, networks, normalised
from trainer.evaluate.folds import Plan, of_videos, overall, plan, seen
from trainer.evaluate.retrieval import nearest

KS = (1, 5, 20)
TEMPERATURE = 0.07
_CHUNK = 256  # queries whose neighbours' vectors are in memory at a time


def knn(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
) -> dict:
    """Accuracy of the k nearest training items by cosine, each voting for its class with exp(cosine / .07) [Wu et al.,
    CVPR 2018], for every stage and pooling, at clip and video level; written into the run's folder, too.

    Which videos are tested: see folds.plan. Unlike in retrieval a data set without a test part is tested leaving whole
    groups out, so that a query finds no video of its own group. Raises what plan and protocol.open_checkpoint raise.
    """
    saved = protocol.open_checkpoint(checkpoint)
    folds = plan(shards, split, saved)
    device = distributed.pick_device(compute.device)
    rows, fewest = [], dict.fromkeys(("clip", "video"), KS[-1])
    for network, backbone in networks(saved).items():
        extracted = folds.features(saved, network, backbone, compute)
        for stage, pooling in extracted[0].found.arrays:
            for level in fewest:
                row = {"network": network, "stage": stage, "pooling": pooling, "level": level}
                items = [own.items((stage, pooling), level) for own in extracted]
                scores, asked = _scores(folds, items, device)
                rows += [{**row, **score} for score in scores]
                fewest[level] = min(fewest[level], asked)
    notes = [
        f"{level} level: only {number} training items; larger k ask them all"
        for level, number in fewest.items()
        if number < KS[-1]
    ]
    told = folds.describe(
        saved,
        backbone,
        views="10 clips of 16 frames",
        classifier=f"k nearest neighbours, cosine, votes exp(cosine / {TEMPERATURE:g})",
    )
    notes = [*folds.notes, *notes, *seen(saved, shards, folds.source, folds.tested)]
    result = {"protocol": told, "rows": rows, "notes": notes}
    protocol.write(result, saved.run, "knn")
    return result


def _scores(folds: Plan, items: list[tuple[np.ndarray, np.ndarray]], device: torch.device) -> tuple[list[dict], int]:
    """Accuracies on one kind of features for every k, and how many neighbours there were at least."""
    hits, owners, asked = [], [], KS[-1]
    for test, train in folds.parts:
        queries, gallery = of_videos(items, test), of_videos(items, train)
        found = nearest(queries, gallery, KS[-1], device)
        targets = folds.source.targets
        hits.append(votes(queries[0], gallery[0], found, targets[gallery[1]]) == targets[queries[1]])
        owners.append(queries[1])
        asked = min(asked, found.shape[1])
    dimensions = queries[0].shape[1]
    return [
        {"metric": f"{k}-NN", **score, "dimensions": dimensions}
        for place, k in enumerate(KS)
        for score in folds.scores([hit[place] for hit in hits], owners)
    ], asked


def votes(queries: np.ndarray, gallery: np.ndarray, found: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Class with the largest sum of exp(cosine / .07) among the k nearest, int64 [KS, queries]; of equals the first.

    queries, gallery: float32 [n, d]; found: int64 [queries, most], rows of the gallery, best first; classes: int64 of the
    gallery's rows.
    """
    predicted = np.empty((len(KS), len(queries)), np.int64)
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        cosine = np.einsum("qd,qkd->qk", normalised(queries[part]), normalised(gallery[found[part]]), dtype=np.float64)
        weights, query = np.exp(cosine / TEMPERATURE), np.arange(len(cosine))[:, None]
        for place, k in enumerate(KS):
            sums = np.zeros((len(cosine), classes.max() + 1))
            np.add.at(sums, (query, classes[found[part, :k]]), weights[:, :k])
            predicted[place, part] = sums.argmax(1)
    return predicted


def format_table(result: dict) -> str:
    """The result of `knn` for the screen."""
    lines = protocol.header(result, "k-NN") + [f"% right; {result['protocol']['classifier']}"]
    lines += protocol.table(overall(result), ("network", "stage", "pooling"), ("level", "metric"))
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
