"""Scores of every test video, from frozen features, a finetuned network or a histogram of flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import Evaluator, Scores, Selection
from trainer.evaluate.features import Compute, Features, features, networks
from trainer.histograms import histogram
from trainer.network import build_backbone
from trainer.settings import Settings, resolve
from trainer.study.file import LAST, Measure
from trainer.study.sources import Source, few_name


def backbone_features(
    run: Path | str | None, settings: dict, shards: data.Shards, folder: Path, compute: Compute
) -> Features:
    """Features of the 10 clips of every video, of a run's backbone, or of the initial weights of `settings`; kept in folder."""
    saved = checkpoint.Checkpoint(folder, folder, {}, {})
    trained = networks(checkpoint.load(run, best=True))["pretrained"] if run else None
    backbone = trained or build_backbone(resolve(Settings(**settings)))
    return features(saved, "study", backbone, shards, shards.videos, "spread", compute)


def flow_features(shards: data.Shards, flow: Callable) -> Features:
    """The histogram of flow of every video, as features of one stage, "flow"."""
    rows = []
    for shard, video in shards.videos:
        reader = shards.readers[shard]
        first, n = (int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
        rows.append(histogram(reader.frames(np.arange(first, first + n)), "flow", flow))
    x = np.stack(rows)
    return Features({("flow", pooling): x for pooling in ("max", "mean")}, np.arange(len(x)))


def scores(
    found: Features,
    source: Source,
    splits: Sequence[str],
    target: str,
    measure: Measure,
    seed: int,
    device: str = "cpu",
) -> dict[str, float]:
    """Scores of the test videos of splits, 0 to 1 by id, by a protocol on frozen features of all videos.

    Raises TrainerError for a stage that the features lack, and if a class has too few videos to learn from.
    """
    flow = {stage for stage, _ in found.arrays} == {"flow"}  # one vector of each video
    stage, parts = (LAST, 1) if flow else (measure.stage, measure.parts)
    options = {"k": measure.k} if measure.protocol in ("knn", "retrieval") else {}
    result: dict[str, float] = {}
    for split in splits:
        opened = source.opened(few_name(split, measure.labels, seed), target)
        test, train = np.flatnonzero(opened.part == data.TEST), None
        if measure.protocol != "smoothness":
            test, train = test[opened.targets[test] >= 0], _training_videos(opened)
        if not len(test):
            raise TrainerError(f"{opened.dataset}: no test videos")
        selection = Selection(stage, measure.pooling, parts, found, test, train)
        evaluator = Evaluator(opened, compute=Compute(device=device))
        result |= evaluator.scores(measure.protocol, selection, **options).right
    return result


def _training_videos(opened: data.Shards) -> np.ndarray:
    """The labelled training videos, int64 rows; the order of the shards has no effect."""
    train = np.flatnonzero((opened.part == data.TRAIN) & (opened.targets >= 0))
    return train[np.argsort(np.array(opened.text("videos/id"))[train])]


def finetuned_scores(run: Path, opened: data.Shards, compute: Compute) -> dict[str, float]:
    """Whether the classifier of a finetuned run is right about each test video of its split, 0 or 1 by id."""
    return Evaluator(opened, run, compute=compute).scores("recognition").right


def pretext_scores(run: Path, opened: data.Shards, draws: int, compute: Compute) -> Scores:
    """How often the pretext task of a run (of several methods that of the first) is solved on each test video of a split, and how
    often by chance. Raises TrainerError if the method has no accuracy."""
    return Evaluator(opened, run, compute=compute).scores("pretext", draws=draws)
