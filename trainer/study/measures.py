"""Features of a backbone or of optical flow, and the scores of every test video on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import Evaluator, Selection
from trainer.evaluate.features import Compute, Features, features, networks
from trainer.histograms import histogram
from trainer.network import build_backbone
from trainer.settings import Settings, resolve
from trainer.study.spec import LAST, Measure, unlabelled


def backbone_features(
    run: Path | str | None, settings: Settings, shards: data.Shards, folder: Path, compute: Compute
) -> Features:
    """Features of the 10 clips of every video, of a run's backbone, or of the initial weights of `settings`; kept in folder."""
    saved = checkpoint.Checkpoint(folder, folder, {}, {})
    backbone = networks(checkpoint.load(run, best=True))["pretrained"] if run else build_backbone(resolve(settings))
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


def scores(found: Features, opened: data.Shards, measure: Measure, compute: Compute) -> dict[str, float]:
    """Scores of the test videos, 0 to 1 by id, by a protocol on frozen features of all videos.

    Raises TrainerError for a stage that the features lack, and if there is nothing to test.
    """
    flow = {stage for stage, _ in found.arrays} == {"flow"}  # one vector of each video
    stage, parts = (LAST, 1) if flow else (measure.stage, measure.parts)
    test, train = np.flatnonzero(opened.part == data.TEST), None
    if not unlabelled(measure.protocol):
        labelled = opened.targets >= 0
        test, train = test[labelled[test]], np.flatnonzero((opened.part == data.TRAIN) & labelled)
        train = train[np.argsort(np.array(opened.text("videos/id"))[train])]  # the order of the shards has no effect
    if not len(test):
        raise TrainerError(f"{opened.dataset}: no test videos")
    selection = Selection(stage, measure.pooling, parts, found, test, train)
    options = {"k": measure.k} if measure.k else {}
    return Evaluator(opened, compute=compute).scores(measure.protocol, selection, **options).right
