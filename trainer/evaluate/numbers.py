"""Accuracies with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def accuracy(hit: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Per cent of items that hit (bool or share [n], owner int [n] the video, or group, of each), with its `interval`:
    "value", "low", "high"."""
    _, owner = np.unique(owner, return_inverse=True)
    hits, items = np.bincount(owner, hit), np.bincount(owner)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(items), size=len(items)) for _ in range(RESAMPLES)]
    means = [100 * hits[videos].sum() / items[videos].sum() for videos in drawn]
    return interval(100 * float(np.mean(hit)), means, len(items))


def mean_accuracy(hits: list[np.ndarray], owners: list[np.ndarray]) -> dict[str, float]:
    """Mean of the accuracies of several splits, with its `interval`: a video that is tested in several splits is drawn for all
    of them at once. Arguments as of `accuracy`, one per split."""
    videos = np.unique(np.concatenate(owners))
    places = [np.searchsorted(videos, owner) for owner in owners]
    right = np.array([np.bincount(p, hit, len(videos)) for hit, p in zip(hits, places, strict=True)])
    items = np.array([np.bincount(p, minlength=len(videos)) for p in places])
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(rng.integers(len(videos), size=len(videos)), minlength=len(videos))
        tested = items @ drawn
        means.append(100 * float(np.mean((right @ drawn)[tested > 0] / tested[tested > 0])))
    return interval(100 * float(np.mean([hit.mean() for hit in hits])), means, len(videos))


def holm(p: Sequence[float]) -> list[float]:
    """p-values of a family of tests, adjusted by Holm's step-down rule: with adjusted values up to alpha rejected, the
    probability of any false rejection is at most alpha, however the tests depend on one another [Holm, Scand. J. Statist. 6,
    1979]. In order of size the i-th of n, counted from 0, is multiplied by n - i; none falls below the one before."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.array(p, float)[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, stepped)
    return adjusted.tolist()


def interval(value: float, means: list[float], videos: int) -> dict[str, float]:
    """A value in per cent with its 95 % interval, "low" to "high", by the values of RESAMPLES draws of its videos; where all
    are the same, as of videos that are all right, the Wilson interval [Wilson, 1927] of as many videos."""
    low, high = map(float, np.percentile(means, (2.5, 97.5)))
    if low == high:
        low, high = 100 * _wilson(value / 100, videos), 100 - 100 * _wilson(1 - value / 100, videos)
    return {"value": value, "low": low, "high": high}


def _wilson(share: float, n: int) -> float:
    """Lower end of the 95 % interval of a share of n."""
    z = 1.96**2 / n
    return (share + z / 2 - math.sqrt(share * (1 - share) * z + z * z / 4)) / (1 + z)


def distribution(targets: np.ndarray) -> dict[str, float]:
    """How many classes the tested items have, and what always naming the largest would reach, in per cent."""
    return {
        "classes": len(np.unique(targets)),
        "largest_class": round(100 * float(np.bincount(targets).max() / len(targets)), 1),
    }
