"""Intervals over training seeds and test videos, of a mean and of the difference of two rows."""

from __future__ import annotations

import numpy as np

from trainer.evaluate import metrics

RESAMPLES = 2000


def interval(scores: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Mean of scores float64 [seeds, videos], 0 to 1, in per cent, "value", and the ends of its 95 % interval, "low", "high".

    groups: [videos], the source group of each video; whole groups are drawn. The scores of one seed are no interval over
    seeds: the ends then tell of the videos alone. Where all resamples are the same, see metrics.interval.
    """
    value = 100 * float(scores.mean())
    return {"value": value, **metrics.interval(value, _means(scores, groups), len(np.unique(groups)))}


def difference(scores: np.ndarray, others: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """How far the scores of a row lie above those of another with the same seeds and videos, float64 [seeds, videos] both,
    in points: "value", "low", "high". Seeds and videos are drawn in pairs."""
    if scores.shape != others.shape:
        raise AssertionError(f"pairs of {scores.shape} and {others.shape} scores")
    low, high = map(float, np.percentile(_means(scores - others, groups), (2.5, 97.5)))
    return {"value": 100 * float((scores - others).mean()), "low": low, "high": high}


def _means(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of each resample in per cent, float64 [RESAMPLES].

    Every seed is tested on the same videos, so seeds and groups are crossed: a draw of groups holds for all seeds of a
    resample. Groups drawn anew for each seed would average the choice of videos out as seeds are added.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums, videos = np.stack([np.bincount(group, row) for row in scores]), np.bincount(group)
    rng = np.random.default_rng(0)
    of_seeds, of_groups = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in (len(scores), len(videos)))
    totals = np.einsum("rs,sg,rg->r", of_seeds, sums, of_groups, optimize=True)
    return 100 * totals / (len(scores) * (of_groups @ videos))
