"""Features of a backbone, or histograms, and the scores of every test video on them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import Evaluator, Selection
from trainer.evaluate.features import Compute, Features, features, networks
from trainer.histograms import of_times, pyramid
from trainer.network import build_backbone
from trainer.settings import Settings, resolve
from trainer.study.spec import Measure, unlabelled


def backbone_features(
    run: Path | str | None, settings: Settings, shards: data.Shards, folder: Path, compute: Compute
) -> Features:
    """Features of the 10 clips of every video, of a run's backbone, or of the initial weights of `settings`; kept in folder."""
    saved = checkpoint.Checkpoint(folder, folder, {}, {})
    backbone = networks(checkpoint.load(run, best=True))["pretrained"] if run else build_backbone(resolve(settings))
    return features(saved, "study", backbone, shards, shards.videos, "spread", compute)


def histogram_features(shards: data.Shards, kinds: Collection[str], flow: Callable) -> Features:
    """Histograms of every video, kinds of trainer.histograms, each as features of one stage of its name, pooled by "mean"."""
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for shard, video in shards.videos:
        reader = shards.readers[shard]
        first, n = (int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
        for kind, times in of_times(reader.frames(np.arange(first, first + n)), kinds, flow).items():
            rows[kind].append(pyramid(times))
    found = {(kind, "mean"): np.stack(of_kind) for kind, of_kind in rows.items()}
    return Features(found, np.arange(len(shards.videos)))


def scores(found: Features, opened: data.Shards, measure: Measure, compute: Compute) -> dict[str, float]:
    """Scores of the test videos, 0 to 1 by id, by a protocol on frozen features of all videos.

    Raises TrainerError for a stage that the features lack, and if there is nothing to test.
    """
    test, train = np.flatnonzero(opened.part == data.TEST), None
    if not unlabelled(measure.protocol):
        labelled = opened.targets >= 0
        test, train = test[labelled[test]], np.flatnonzero((opened.part == data.TRAIN) & labelled)
        train = train[np.argsort(np.array(opened.text("videos/id"))[train])]  # the order of the shards has no effect
    if not len(test):
        raise TrainerError(f"{opened.dataset}: no test videos")
    selection = Selection(measure.stage, measure.pooling, measure.parts, found, test, train)
    options = {"k": measure.k} if measure.k else {}
    return Evaluator(opened, compute=compute).scores(measure.protocol, selection, **options).right
