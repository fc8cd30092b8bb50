"""Features of a backbone, or histograms, and the scores of every test video with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer import checkpoint, data
from trainer.embeddings.map import layout
from trainer.errors import TrainerError
from trainer.evaluate import splits
from trainer.evaluate.evaluator import Evaluator, Scores, Selection
from trainer.evaluate.features import Compute, Features, cells, features, networks, pooled
from trainer.histograms import of_times, summary
from trainer.network import build_backbone
from trainer.settings import Settings, resolve
from trainer.study.sources import Source
from trainer.study.spec import CHOSEN, LAST, Measure, unlabelled


def backbone_features(
    run: Path | str | None,
    settings: Settings,
    shards: data.Shards,
    folder: Path,
    compute: Compute,
    videos: np.ndarray | slice = slice(None),
    time: str = "",
    of_cells: bool = False,
) -> Features:
    """Features of the 10 clips of every video, or of some (int64 rows), by a run's backbone or, without a run, by the initial
    weights of `settings`; stored in folder. time: what is done to the frames of a clip, "" for nothing; of_cells: whether to
    include the cells of the last stage."""
    saved = checkpoint.Checkpoint(folder, folder, {}, {})
    backbone = networks(checkpoint.load(run, best=True))["pretrained"] if run else build_backbone(resolve(settings))
    disturbed = data.Time(time) if time else None
    found = [
        features(saved, "study", backbone, shards, shards.videos[videos], "spread", compute, disturbed, made)
        for made in (pooled, *[cells] * of_cells)
    ]
    return Features({key: array for each in found for key, array in each.arrays.items()}, found[0].owner)


def histogram_features(shards: data.Shards, kinds: Collection[str], flow: Callable) -> Features:
    """Histograms of every video (kinds of trainer.histograms), as features with the kind as stage and the pooling "mean"."""
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for shard, video in shards.videos:
        reader = shards.readers[shard]
        first, n = (int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
        for kind, times in of_times(reader.frames(np.arange(first, first + n)), kinds, flow).items():
            rows[kind].append(summary(times, kind))
    found = {(kind, "mean"): np.stack(of_kind) for kind, of_kind in rows.items()}
    return Features(found, np.arange(len(shards.videos)))


_MAPPED = 200  # largest number of videos on a map


class Scoring:
    """Protocols on the frozen features of all videos of a data set; scores that several measures need are computed once.

    disturbed: features of disturbed clips, by what was done to them; tested: ascending int64 rows of the videos of `disturbed`
    """

    def __init__(
        self,
        found: Features,
        source: Source,
        compute: Compute,
        tested: np.ndarray | None = None,
        disturbed: Mapping[str, Features] | None = None,
    ):
        self.found, self.source, self.compute = found, source, compute
        self.tested, self.disturbed = np.arange(0) if tested is None else tested, disturbed or {}
        self._made: dict[tuple, Scores] = {}

    def scores(self, split: str, target: str, measure: Measure) -> tuple[Scores, str]:
        """Scores of the test videos, 0 to 1 by id, and the chosen stage, "" if there is no choice. The stage with the best
        `validated` accuracy is chosen, the last one in a tie. The test part is never used for the choice.

        Raises TrainerError for a stage that the features lack, and if there are no test videos.
        """
        if measure.stage != CHOSEN:
            return self._scores(split, target, measure), ""
        validated = self.validated(split, target, measure)
        best = [stage for stage, value in validated.items() if value == max(validated.values())][-1]
        return self._scores(split, target, replace(measure, stage=best)), best

    def places(self, split: str, target: str, measure: Measure) -> dict[str, list[float]]:
        """Positions of evenly spread test videos on a map of their features (see embeddings.map.layout), by id; empty for fewer
        than three videos."""
        opened = self.source.opened(split, target)
        test = np.flatnonzero((opened.part == data.TEST) & (opened.targets >= 0))
        if len(test) < 3:
            return {}
        shown = test[np.unique(np.linspace(0, len(test) - 1, _MAPPED).astype(int))]
        vectors = self.found.video_means(self._key(measure), measure.parts)[shown]
        ids = opened.text("videos/id")
        return dict(zip([ids[row] for row in shown], layout(vectors).astype(float).round(3).tolist(), strict=True))

    def _key(self, measure: Measure) -> tuple[str, str]:
        """Stage and pooling of a measure."""
        return [*self.found.arrays][-1][0] if measure.stage == LAST else measure.stage, measure.pooling

    def validated(self, split: str, target: str, measure: Measure) -> dict[str, float]:
        """Accuracy, in per cent, of each stage in a cross-validation of the training part, which keeps groups whole."""
        found = {}
        for stage in (stage for stage, pooling in self.found.arrays if pooling == measure.pooling):
            of_stage = replace(measure, stage=stage, time="")
            value = self._scores(split, target, of_stage).validated
            found[stage] = self._validated(split, target, of_stage) if value is None else value
        return found

    def _scores(self, split: str, target: str, measure: Measure) -> Scores:
        key = split, target, *measure.determining.values()
        if key not in self._made:
            opened = self.source.opened(split, target)
            test = np.flatnonzero(opened.part == data.TEST)
            if unlabelled(measure.protocol):
                train = None
            else:
                test, train = test[opened.targets[test] >= 0], _learnt_from(opened)
            if not len(test):
                raise TrainerError(f"{opened.dataset}: no test videos")
            self._made[key] = self._of(opened, measure, test, train)
        return self._made[key]

    def _validated(self, split: str, target: str, measure: Measure) -> float:
        """Accuracy in a cross-validation of the training part, in per cent; 0 if it has no folds."""
        opened = self.source.opened(split, target)
        train, right = _learnt_from(opened), 0.0
        for held_out in splits.grouped_folds(opened.targets[train], opened.groups[train]):
            found = self._of(opened, measure, train[held_out], np.delete(train, held_out))
            right += sum(found.right.values())
        return 100 * right / len(train)

    def _of(self, opened: data.Shards, measure: Measure, test: np.ndarray, train: np.ndarray | None) -> Scores:
        found = self.found
        if measure.time:
            found = found.but(self.disturbed[measure.time], self.tested, test, self._key(measure))
        selection = Selection(measure.stage, measure.pooling, measure.parts, found, test, train)
        given = {"k": measure.k, "opposites": measure.opposites}
        options = {name: value for name, value in given.items() if value}
        return Evaluator(opened, compute=self.compute).scores(measure.protocol, selection, **options)


def _learnt_from(opened: data.Shards) -> np.ndarray:
    """The labelled videos of the training part, int64 rows, sorted by id so that the order of the shards has no effect."""
    train = np.flatnonzero((opened.part == data.TRAIN) & (opened.targets >= 0))
    return train[np.argsort(np.array(opened.text("videos/id"))[train])]
