"""The scores of the rows of a study in a column, and the differences between any two rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.evaluate.metrics import holm, seed_bootstrap, seed_difference, sign_flips
from trainer.study.jobs import Store
from trainer.study.planning import Column, Plan
from trainer.study.sources import Source
from trainer.study.spec import Study, unlabelled


@dataclass(frozen=True)
class RowScores:
    """The scores of a row in a column.

    videos: ids of the tested videos; labels, units: the class and the bootstrap unit of each, str [videos]
    right: scores, 0 to 1, float64 [seeds, videos]; chance: the scores that chance would give, None if they are unknown
    predicted: the predicted classes, str [seeds, videos], "" for none; None if they were not stored, or there are none
    stages: for each seed, the chosen stages by split
    """

    seeds: list[int]
    videos: list[str]
    labels: np.ndarray
    units: np.ndarray
    right: np.ndarray
    chance: np.ndarray | None
    predicted: np.ndarray | None
    stages: list[dict[str, str]]

    def shared(self, other: RowScores) -> tuple[list[int], list[int]] | None:
        """Indices of the common seeds of two rows in each of them; None if there are none, or the tested videos differ."""
        both = [seed for seed in self.seeds if seed in other.seeds]
        if not both or self.videos != other.videos:
            return None
        return [self.seeds.index(seed) for seed in both], [other.seeds.index(seed) for seed in both]

    def above(self, other: RowScores) -> dict[str, float] | None:
        """The difference from another row, paired by seed and video (see seed_difference); None if they share no pairs."""
        if (places := self.shared(other)) is None:
            return None
        own, others = places
        return seed_difference(self.right[own], other.right[others], self.units)

    def by_class(self) -> dict[str, list[float]]:
        """The accuracy, in per cent, of each class by seed."""
        found = {name: self.right[:, self.labels == name].mean(1) for name in np.unique(self.labels).tolist()}
        return {name: (100 * values).tolist() for name, values in found.items()}

    def confusions(self) -> dict[str, dict[str, int]] | None:
        """Numbers of videos, over all seeds, by true and predicted class; None if predictions are unknown."""
        if self.predicted is None:
            return None
        found: dict[str, dict[str, int]] = {name: {} for name in np.unique(self.labels).tolist()}
        for label, of_video in zip(self.labels.tolist(), self.predicted.T.tolist(), strict=True):
            for name in filter(None, of_video):
                found[label][name] = found[label].get(name, 0) + 1
        return found


def scores_of(
    study: Study, sources: dict[str, Source], planned: Plan, store: Store, column: Column
) -> dict[str, RowScores]:
    """The scores of all rows that have scores in a column."""
    found, source = dict[str, RowScores](), sources[column.tested_on]
    units = units_of(source)
    target = None if unlabelled(column.measure.protocol) else column.target
    opened = source.opened(source.splits[0], target)
    labels = dict(zip(opened.text("videos/id"), opened.text("videos/label"), strict=True))
    for row in study.rows:
        ids = {seed: planned.numbers.get((row, column, seed)) for seed in sorted(study.seeds)}
        made = {seed: store.result(id) for seed, id in ids.items() if id and store.has(id)}
        seeds = [seed for seed, result in made.items() if "reason" not in result]
        if not seeds:
            continue
        videos = sorted(made[seeds[0]]["scores"])
        if any(sorted(made[seed]["scores"]) != videos for seed in seeds):
            raise AssertionError(f"{row}: the seeds were tested on different videos")
        by_key = {
            key: np.array([[made[seed][key].get(video, missing) for video in videos] for seed in seeds])
            for key, missing in (("scores", np.nan), ("chance", np.nan), ("predicted", ""))
            if all(made[seed].get(key) for seed in seeds)
        }
        found[row] = RowScores(
            seeds,
            videos,
            np.array([labels[video] for video in videos]),
            np.array([units[video] for video in videos]),
            by_key["scores"],
            by_key.get("chance"),
            by_key.get("predicted"),
            [made[seed].get("stages", {}) for seed in seeds],
        )
    return found


def units_of(source: Source) -> dict[str, str]:
    """The unit of the bootstrap (video or group), by id of the video."""
    opened = source.opened(source.splits[0])
    ids = opened.text("videos/id")
    return dict(zip(ids, opened.groups.tolist() if source.data.resample == "group" else ids, strict=True))


def differences(rows: Mapping[str, RowScores]) -> list[dict]:
    """How far each row of a column lies above each later row, if they share seeds and videos: "row", "than", the difference in
    points with the ends of its interval as in `RowScores.above` ("value", "low", "high"), "p" of metrics.sign_flips, which keeps
    or flips the difference of both rows on whole units for all seeds at once, and "adjusted", p corrected by Holm's method for
    all pairs of the column."""
    place = {unit: i for i, unit in enumerate(sorted({unit for of in rows.values() for unit in of.units.tolist()}))}
    drawn: dict[tuple, np.ndarray] = {}  # means of the resamples; their differences are the resamples of the difference
    found, sums = list[dict](), list[np.ndarray]()
    for first, other in itertools.combinations(rows, 2):
        if (shared := rows[first].shared(rows[other])) is None:
            continue
        one, two = (rows[name].right[seeds] for name, seeds in zip((first, other), shared, strict=True))
        for name, seeds, right in zip((first, other), shared, (one, two), strict=True):
            if (name, *seeds) not in drawn:
                drawn[name, *seeds] = seed_bootstrap(right, rows[name].units)
        means = drawn[first, *shared[0]] - drawn[other, *shared[1]]
        low, high = np.percentile(means, (2.5, 97.5)).tolist()
        found.append({"row": first, "than": other, "value": 100 * float((one - two).mean()), "low": low, "high": high})
        units = [place[unit] for unit in rows[first].units.tolist()]
        sums.append(np.bincount(units, (one - two).sum(0), len(place)))
    p = sign_flips(np.stack(sums)).tolist() if sums else []
    return [one | {"p": own, "adjusted": of} for one, own, of in zip(found, p, holm(p), strict=True)]
