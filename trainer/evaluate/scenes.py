"""Dynamic scenes: a linear SVM on frozen features, leaving one video out. [thesis 2.4.4, 3.6.3; Derpanis et al. 2012]"""

from __future__ import annotations

import os

import numpy as np

from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, features, networks
from trainer.evaluate.folds import rarer, seen

MOST_VIDEOS = 2000  # as many SVMs are trained as there are videos
_YUPENN = {"videos": 420, "classes": 14}


def scenes(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
) -> dict:
    """Accuracy of a linear SVM (scikit-learn's LinearSVC, C = 1) that is trained on all labelled videos but one and tested
    on that one, for each video and the three deepest stages; beside it a guess among the classes ("chance").

    Clips of 16 frames with 8 overlapping, their features averaged and L2-normalised. All videos of the data set take part,
    whatever the split. Raises TrainerError for fewer than two classes and for more than MOST_VIDEOS videos.
    """
    saved = protocol.open_checkpoint(checkpoint)
    source = protocol.open_shards(saved, shards, split)
    videos = np.flatnonzero(source.targets >= 0)
    targets = source.targets[videos]
    if len(np.unique(targets)) < 2:
        raise TrainerError(f"{source.dataset}: {len(np.unique(targets))} classes with labels, expected two or more")
    if len(videos) > MOST_VIDEOS:
        raise TrainerError(
            f"{source.dataset}: {len(videos)} videos, leaving one out is for {MOST_VIDEOS} at most; use `vssl eval linear`"
        )
    alone = np.eye(len(videos), dtype=bool)
    notes = [*_left_out(source, videos), rarer(targets, [*zip(alone, ~alone, strict=True)])]
    notes += seen(saved, shards, source, videos)
    rows, predictions = [], {}
    for network, backbone in networks(saved).items():
        found = features(saved, network, backbone, source, source.videos[videos], "sliding", compute)
        for stage, pooling in sorted(found.arrays)[-6:]:
            predicted = leave_one_out(found.video_means((stage, pooling)), targets)
            row = {"network": network, "stage": stage, "pooling": pooling, "metric": "accuracy"}
            rows.append(row | protocol.accuracy(predicted == targets, np.arange(len(videos))))
            predictions[network, stage, pooling] = predicted
    rows.append({"network": "chance", "metric": "accuracy", "value": 100 / len(np.unique(targets))})
    best = max((row for row in rows if row["network"] == "pretrained"), key=lambda row: row["value"])
    predicted = predictions["pretrained", best["stage"], best["pooling"]]
    for target in np.unique(targets):
        own = targets == target
        row = {"network": "pretrained", "stage": best["stage"], "pooling": best["pooling"]}
        rows.append(
            {
                **row,
                "metric": "class accuracy",
                "class": source.classes[target],
                "value": 100 * float(np.mean(predicted[own] == target)),
            }
        )
    told = protocol.describe(
        saved,
        source,
        backbone,
        split=None,
        mode="linear SVM, leave one video out",
        views="all clips of 16 frames with 8 overlapping, averaged",
        items=f"{len(videos)} videos",
        classes=len(np.unique(targets)),
        largest_class=round(100 * float(np.bincount(targets).max() / len(targets)), 1),
    )
    result = {"protocol": told, "rows": rows, "notes": notes}
    protocol.write(result, saved.run, "scenes")
    return result


def _left_out(source: data.Shards, videos: np.ndarray) -> list[str]:
    unlabelled = len(source.videos) - len(videos)
    notes = [f"{unlabelled} videos without label left out"] if unlabelled else []
    has = {"videos": len(videos), "classes": len(source.classes)}
    if source.dataset == "yupenn" and has != _YUPENN:
        notes.append(f"not the whole data set: {has}, published {_YUPENN}; not comparable with published numbers")
    return notes


def leave_one_out(x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Class predicted for each row of x (float32 [n, d]) by a linear SVM trained on all other rows, int64 [n]."""
    from sklearn.svm import LinearSVC

    # an SVM depends on inner products alone: n coordinates hold them all, and fewer are faster to train on
    u, s, _ = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    x = u * s
    predicted = np.empty(len(x), np.int64)
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        if len(np.unique(targets[others])) == 1:
            predicted[i] = targets[others][0]
        else:
            predicted[i] = LinearSVC(random_state=0).fit(x[others], targets[others]).predict(x[i : i + 1])[0]
    return predicted


def format_table(result: dict) -> str:
    """The result of `scenes` for the screen."""
    rows = [row for row in result["rows"] if row["metric"] == "accuracy"]
    lines = protocol.header(result, "scenes") + protocol.table(rows, ("network", "stage", "pooling"), ("metric",))
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
