"""Accuracies with their intervals: the share of right answers, and how far it may vary with other test items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer import data

RESAMPLES = 1000
_DRAWN = 100_000  # units drawn at a time
SEED_RESAMPLES = 2000  # resamples of seeds and items
FLIPS = 100_000  # random patterns of signs
EXACT = 15  # up to this number of differences that are not 0, all patterns are tried
GROUPS = 10  # with fewer groups, a bootstrap over groups is unreliable
NORMAL = "normal"  # clips whose frames are not disturbed
ANSWERS = "answers"  # key of a row of a protocol that holds the Answers behind its accuracy
_NONE = -1  # no class was predicted, or the item was not tested


def bootstrap(scores: Sequence[np.ndarray], units: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of scores, in per cent, in each of RESAMPLES draws of all units with replacement, float64 [RESAMPLES].

    scores: float or bool [n], one array for each split; the result is the mean over splits, and a unit is drawn for all splits
    at once. units: int [n], one array for each split: the video (or group) of each score
    """
    names = np.unique(np.concatenate(units))
    places = [np.searchsorted(names, of) for of in units]
    sums = np.stack([np.bincount(place, of, len(names)) for place, of in zip(places, scores, strict=True)])
    counts = np.stack([np.bincount(place, minlength=len(names)) for place in places])
    rng, block = np.random.default_rng(0), 1 + _DRAWN // len(names)
    return np.concatenate(
        [_means_of_draws(rng, min(block, RESAMPLES - i), sums, counts) for i in range(0, RESAMPLES, block)]
    )


def _means_of_draws(rng: np.random.Generator, draws: int, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The next draws of `bootstrap`; sums (of scores) and counts (of items): [splits, units]."""
    drawn = rng.integers(sums.shape[1], size=(draws, sums.shape[1]))
    right, items = sums.take(drawn, axis=1).sum(2), counts.take(drawn, axis=1).sum(2)
    if len(sums) == 1:  # one division, whose last bit may differ from that of a scaled mean
        return 100 * right[0] / items[0]
    tested = items.T > 0
    shares = np.ascontiguousarray((right / np.maximum(items, 1)).T)
    means = shares.mean(1)
    for draw in np.flatnonzero(~tested.all(1)):
        means[draw] = shares[draw, tested[draw]].mean()
    return 100 * means


def accuracy(scores: Sequence[np.ndarray], units: Sequence[np.ndarray]) -> dict[str, float]:
    """The mean of scores in per cent ("value") with its 95 % interval ("low", "high"); arguments as for `bootstrap`."""
    value = 100 * float(np.mean([of.mean() for of in scores]))
    return {"value": value, **interval(value, bootstrap(scores, units), len(np.unique(np.concatenate(units))))}


def seed_bootstrap(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean of scores of several training seeds, in per cent, in each of SEED_RESAMPLES draws, float64 [SEED_RESAMPLES].

    scores: float64 [seeds, items]; groups: [items], the group of each item; whole groups are drawn. Every seed is tested on the
    same items, so seeds and groups are crossed: all seeds of a resample share one draw of groups. With separate draws for each
    seed, the variance due to the choice of items would vanish as seeds are added.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums, items = np.stack([np.bincount(group, row) for row in scores]), np.bincount(group)
    rng, n = np.random.default_rng(0), len(scores)
    of_seeds, of_groups = (rng.multinomial(k, np.full(k, 1 / k), size=SEED_RESAMPLES) for k in (n, len(items)))
    totals = np.einsum("rs,sg,rg->r", of_seeds, sums, of_groups, optimize=True)
    return 100 * totals / (n * (of_groups @ items))


def seed_accuracy(scores: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """The mean of scores, 0 to 1, in per cent ("value") with its 95 % interval over seeds and items ("low", "high"); arguments
    as for `seed_bootstrap`. With one seed, the interval is over items only."""
    value = 100 * float(scores.mean())
    return {"value": value, **interval(value, seed_bootstrap(scores, groups), len(np.unique(groups)))}


def seed_difference(scores: np.ndarray, others: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """The mean of scores - others, both float64 [seeds, items] of the same seeds and items, in points ("value"), with its 95 %
    interval ("low", "high"). Seeds and items are drawn in pairs."""
    if scores.shape != others.shape:
        raise AssertionError(f"pairs of {scores.shape} and {others.shape} scores")
    low, high = map(float, np.percentile(seed_bootstrap(scores - others, groups), (2.5, 97.5)))
    return {"value": 100 * float((scores - others).mean()), "low": low, "high": high}


def interval(value: float, means: np.ndarray, units: int) -> dict[str, float]:
    """The ends, "low" and "high", of the 95 % interval of a mean from the means of its resamples, all in per cent. If all
    resamples are equal, for example because all videos are right, it is that of Wilson [1927] for that many units."""
    low, high = map(float, np.percentile(means, (2.5, 97.5)))
    if low == high:
        low, high = 100 * _wilson(value / 100, units), 100 - 100 * _wilson(1 - value / 100, units)
    return {"low": low, "high": high}


def _wilson(share: float, n: int) -> float:
    """Lower end of the 95 % interval of a share of n."""
    z = 1.96**2 / n
    return (share + z / 2 - math.sqrt(share * (1 - share) * z + z * z / 4)) / (1 + z)


def distribution(targets: np.ndarray) -> dict[str, float]:
    """The number of classes of the tested items, and the accuracy of always predicting the largest one, in per cent."""
    return {
        "classes": len(np.unique(targets)),
        "largest_class": round(100 * float(np.bincount(targets).max() / len(targets)), 1),
    }


@dataclass(frozen=True)
class Answers:
    """The answers to all items behind an accuracy.

    right: float64 [items], the share of an item's clips (draws, ...) that were right, NaN if it was not tested; predicted: int32
    [items], the class, -1 for none; chance: float64 [items], the share that chance would get right, None if it is unknown
    """

    right: np.ndarray
    predicted: np.ndarray
    chance: np.ndarray | None = None


@dataclass(frozen=True)
class ItemScores:
    """Tested items, and the answers behind each accuracy of a result.

    items, labels, groups: str [n], name, class and source group ("" for none) of each item; classes: names of the predicted
    classes; answers: by the number of the result's row
    """

    items: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    answers: dict[int, Answers]

    @classmethod
    def of(cls, source: data.Shards, classes: Sequence[str] | np.ndarray | None = None) -> ItemScores:
        """The videos of a data set; classes: by default those of the data set."""
        items, labels, groups = (np.array(source.text(f"videos/{name}")) for name in ("id", "label", "group"))
        return cls(items, labels, groups, np.array(source.classes if classes is None else classes), {})

    def bootstrap_units(self, owner: np.ndarray) -> np.ndarray:
        """The units that the bootstrap draws, int64 [n]: the groups of the items (owner int64 [n]) if every item has one and
        there are at least GROUPS of them, else the items."""
        used = np.unique(owner)
        names, group = np.unique(self.groups[used], return_inverse=True)
        return owner if "" in names or len(names) < GROUPS else group[np.searchsorted(used, owner)]

    def describe_units(self, owner: np.ndarray) -> str:
        """The units that the bootstrap draws, in words."""
        units = self.bootstrap_units(owner)
        return f"bootstrap of {len(np.unique(units))} {'videos' if units is owner else 'groups'}"

    def accuracy(
        self,
        right: np.ndarray,
        owner: np.ndarray,
        predicted: np.ndarray | None = None,
        chance: np.ndarray | None = None,
    ) -> dict:
        """The accuracy of answers, as `accuracy` gives it, with its Answers.

        right: bool or share [n] of each answer; owner: int64 [n], the item of each answer
        predicted: int64 [n], the class of each answer, stored if every item has one answer. chance: the share of each answer
        that chance would get right, [n]
        """
        asked = np.bincount(owner, minlength=len(self.items))
        classes = np.full(len(self.items), _NONE, np.int32)
        if predicted is not None and asked.max() == 1:
            classes[owner] = predicted

        def by_item(of: np.ndarray) -> np.ndarray:
            return np.bincount(owner, of, len(self.items)) / np.where(asked, asked, np.nan)

        answers = Answers(by_item(right), classes, None if chance is None else by_item(chance))
        return {**accuracy([right], [self.bootstrap_units(owner)]), ANSWERS: answers}

    def accuracies(
        self,
        right: Sequence[np.ndarray],
        owners: Sequence[np.ndarray],
        splits: Sequence[str | None] = (),
        pooled: bool = True,
        predicted: Sequence[np.ndarray] | None = None,
    ) -> list[dict]:
        """The accuracy of every split, if there are several, and of all folds together; "split" is the name of the split,
        "all" for pooled predictions, or "mean" of the splits. Arguments as for `accuracy`, one array for each fold."""
        each: Sequence[np.ndarray | None] = [None] * len(right) if predicted is None else predicted
        rows = []
        if splits:
            rows = [
                {"split": name, **self.accuracy(hit, owner, classes)}
                for name, hit, owner, classes in zip(splits, right, owners, each, strict=True)
            ]
        if not pooled:
            return [*rows, {"split": "mean", **accuracy(right, self._units(owners))}]
        together = None if predicted is None else np.concatenate(predicted)
        whole = self.accuracy(np.concatenate(right), np.concatenate(owners), together)
        return [*rows, {"split": "all", **whole} if splits else whole]

    def rows(
        self,
        metric: str,
        right: Mapping[str, Sequence[np.ndarray]],
        owners: Sequence[np.ndarray],
        splits: Sequence[str | None] = (),
        pooled: bool = True,
        predicted: Mapping[str, Sequence[np.ndarray]] | None = None,
    ) -> Iterator[dict]:
        """The rows of a metric: the `accuracies` of each kind of answers; the first kind is for the items as they are, any
        others are for the same items disturbed, with the kind as "time". For each other kind follows "METRIC drop", how far it
        lies below the first, in points, with the interval of a bootstrap that draws the same items for both."""
        (_, first), *others = right.items()
        for time, of_time in right.items():
            named = {"time": time} if others else {}
            scores = self.accuracies(of_time, owners, splits, pooled, None if predicted is None else predicted[time])
            yield from ({"metric": metric, **named, **score} for score in scores)
            if of_time is not first:
                lost = [one.astype(float) - other for one, other in zip(first, of_time, strict=True)]
                units = self._units(owners)
                if pooled:
                    lost, units = [np.concatenate(lost)], [np.concatenate(units)]
                low, high = map(float, np.percentile(bootstrap(lost, units), (2.5, 97.5)))
                whole = {key: scores[-1][key] for key in ("split",) if key in scores[-1]}
                value = 100 * float(np.mean([of.mean() for of in lost]))
                yield {"metric": f"{metric} drop", **named, **whole, "value": value, "low": low, "high": high}

    def _units(self, owners: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The units that the bootstrap draws, for the items of each fold."""
        return np.split(self.bootstrap_units(np.concatenate(owners)), np.cumsum([*map(len, owners)])[:-1])


def paired(first: ItemScores, other: ItemScores, row: int, other_row: int) -> dict[str, float] | None:
    """The difference of two accuracies of the same items, other - first, in points ("value"), and its 95 % interval ("low",
    "high") from a bootstrap that draws the same items (or groups) for both. None if the items differ."""
    matched = _matched(first, other, row, other_row)
    return _difference(first, *matched) if matched else None


def paired_tests(
    first: ItemScores, other: ItemScores, rows: Sequence[tuple[int, int]]
) -> list[dict[str, float] | None]:
    """For each pair of accuracies of two results, their `paired` difference with the two-sided "p" of the test that exchanging
    both answers to an item (or to a group) gives an equally probable outcome, see `sign_flips`; None if the items differ."""
    matched = [_matched(first, other, *pair) for pair in rows]
    found = [_difference(first, *of) if of else None for of in matched]
    tested = [(difference, of) for difference, of in zip(found, matched, strict=True) if difference and of]
    units = [np.unique(first.bootstrap_units(of), return_inverse=True)[1] for _, (of, *_) in tested]
    width = max((int(of.max()) + 1 for of in units), default=0)
    sums = [np.bincount(of, two - one, width) for of, (_, (_, one, two)) in zip(units, tested, strict=True)]
    for (difference, _), p in zip(tested, sign_flips(np.stack(sums)).tolist() if sums else (), strict=True):
        difference["p"] = p
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values of a family of tests, adjusted by Holm's step-down rule: if all tests with p up to alpha are rejected, the
    probability of any false rejection is at most alpha, whatever the dependence of the tests [Holm, Scand. J. Statist. 6, 1979].
    The i-th smallest of n values, counted from 0, is multiplied by n - i, and is at least the adjusted value before it."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.array(p, float)[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, stepped)
    return adjusted.tolist()


def sign_flips(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of the test that every difference is as probable as its opposite, float64 [tests]: the share of all patterns
    of signs that give a sum of at least the observed magnitude [Fisher, The Design of Experiments, 1935].

    differences: float64 [tests, units], the sum of all differences within a unit, such as a video. p is exact for tests with at
    most EXACT differences that are not 0. For the others, FLIPS random patterns are drawn, the same for all tests, and the
    observed one is also counted [Phipson and Smyth, 2010].
    """
    few, rng, p = np.count_nonzero(differences, axis=1) <= EXACT, np.random.default_rng(0), np.empty(len(differences))
    first = np.argsort(differences[few] == 0, axis=1, kind="stable")[:, :EXACT]
    kept, drawn = np.take_along_axis(differences[few], first, axis=1), differences[~few]
    every, units = 1 << kept.shape[1], np.arange(kept.shape[1])
    p[few] = _as_large(kept, every, lambda start, end: np.arange(start, end)[:, None] >> units & 1) / every
    random = _as_large(
        drawn, FLIPS, lambda start, end: rng.integers(2, size=(end - start, drawn.shape[1]), dtype=np.int8)
    )
    p[~few] = (random + 1) / (FLIPS + 1)
    return p


def _as_large(differences: np.ndarray, number: int, bits: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """How many of a number of patterns of signs give sums of at least the observed magnitude, float64 [tests]; bits: the next
    patterns, from a start to an end, 0 or 1 [patterns, units]."""
    least = np.abs(differences.sum(1)) - 1e-5 * np.abs(differences).sum(1)  # so that rounding breaks no tie
    count = np.zeros(len(differences))
    for start in range(0, number if len(differences) else 0, 4096):
        signs = 1 - 2 * bits(start, min(start + 4096, number)).astype(np.float32)
        count += (np.abs(signs @ differences.T.astype(np.float32)) >= least).sum(0)
    return count


def by_class(first: ItemScores, other: ItemScores, row: int, other_row: int) -> list[dict]:
    """For every class ("class"): both accuracies in per cent ("first", "other"), the number of items ("items"), and their
    difference as in `paired` ("value"), with "low" and "high" if there are at least GROUPS items (or groups) to draw. Classes
    are sorted by difference, largest first. The list is empty if the items differ."""
    if (matched := _matched(first, other, row, other_row)) is None:
        return []
    tested, one, two = matched
    found = []
    for name in np.unique(first.labels[tested]).tolist():
        chosen = first.labels[tested] == name
        means = {"first": 100 * float(one[chosen].mean()), "other": 100 * float(two[chosen].mean())}
        difference = _difference(first, tested[chosen], one[chosen], two[chosen])
        if len(np.unique(first.bootstrap_units(tested[chosen]))) < GROUPS:
            difference = {"value": difference["value"]}
        found.append({"class": name, "items": int(chosen.sum()), **means, **difference})
    return sorted(found, key=lambda row: -row["value"])


def _matched(
    first: ItemScores, other: ItemScores, row: int, other_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The tested items, int64 [n], indices into first.items, and their scores in both, float64 [n]; None if the items differ."""
    if row not in first.answers or other_row not in other.answers:
        return None
    one, two = first.answers[row].right, other.answers[other_row].right
    places = {name: i for i, name in enumerate(other.items.tolist())}
    tested = np.flatnonzero(~np.isnan(one))
    same = [places.get(name, -1) for name in first.items[tested].tolist()]
    if -1 in same or np.isnan(two[same]).any() or np.count_nonzero(~np.isnan(two)) != len(tested):
        return None
    return tested, one[tested].astype(np.float64), two[same].astype(np.float64)


def _difference(of: ItemScores, tested: np.ndarray, one: np.ndarray, two: np.ndarray) -> dict[str, float]:
    difference, (_, units) = two - one, np.unique(of.bootstrap_units(tested), return_inverse=True)
    low, high = np.percentile(bootstrap([difference], [units]), (2.5, 97.5)).tolist()
    return {"value": 100 * float(difference.mean()), "low": low, "high": high}
