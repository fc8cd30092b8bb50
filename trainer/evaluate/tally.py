"""Accuracies with their intervals, and what each tested item had to do with them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from scipy.special import stdtr

from labelgen.files import replacing
from labelgen.reading import open_regular
from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate.numbers import accuracy, mean_accuracy

GROUPS = 10  # with fewer of them a bootstrap over groups tells nothing
KEPT = "kept"  # key of a row until its result is whole: the number of its predictions
_BYTES = 1 << 30  # of a file of predictions, unpacked
_KEPT = {"rows": ("i", 1), "right": ("f", 2), "named": ("i", 2)}  # kind and dimensions
_KEPT |= dict.fromkeys(("items", "labels", "groups", "classes"), ("U", 1))
_DAMAGES = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)
_NONE = -1  # no class is named, or the item is not tested


class Tally:
    """Accuracies of tested items by hits, and what is kept of each item for the file beside the result.

    items, labels, groups: str [n], name, class and source group ("" without) of each; classes: names of the classes
    """

    def __init__(self, items: Sequence[str], labels: Sequence[str], groups: Sequence[str], classes: Sequence[str]):
        self.items, self.labels, self.groups, self.classes = map(np.array, (items, labels, groups, classes))
        _, self.group = np.unique(self.groups, return_inverse=True)
        self.right: list[np.ndarray] = []
        self.named: list[np.ndarray] = []

    @classmethod
    def of(cls, source: data.Shards, classes: Sequence[str] | None = None) -> Tally:
        """Of the videos of a data set; classes: by default its own."""
        items, labels, groups = (source.text(f"videos/{name}") for name in ("id", "label", "group"))
        return cls(items, labels, groups, source.classes if classes is None else classes)

    def units(self, owner: np.ndarray) -> np.ndarray:
        """What the bootstrap draws, int64 [n]: the groups of the items (owner int64 [n]) where all have one and there are at
        least GROUPS, else the items."""
        used = np.unique(owner)
        known = (self.groups[used] != "").all() and len(np.unique(self.group[used])) >= GROUPS
        return self.group[owner] if known else owner

    def drawn(self, owner: np.ndarray) -> str:
        """What the bootstrap draws, in words."""
        units = self.units(owner)
        return f"bootstrap of {len(np.unique(units))} {'videos' if units is owner else 'groups'}"

    def accuracy(self, hit: np.ndarray, owner: np.ndarray, named: np.ndarray | None = None) -> dict[str, float]:
        """The accuracy of hits (bool or share [n]; owner int64 [n], the item of each), see numbers.accuracy.

        named: int64 [n], the class that was named, where there is one; kept where every item was asked once.
        """
        asked = np.bincount(owner, minlength=len(self.items))
        self.right.append(
            (np.bincount(owner, hit, len(self.items)) / np.where(asked, asked, np.nan)).astype(np.float32)
        )
        of_items = np.full(len(self.items), _NONE, np.int32)
        if named is not None and asked.max() == 1:
            of_items[owner] = named
        self.named.append(of_items)
        return {**accuracy(hit, self.units(owner)), KEPT: len(self.right) - 1}

    def accuracies(
        self,
        hits: Sequence[np.ndarray],
        owners: Sequence[np.ndarray],
        splits: Sequence[str | None] = (),
        pooled: bool = True,
        named: Sequence[np.ndarray] | None = None,
    ) -> list[dict]:
        """Accuracy of every split, where there are several, as "split", and of all folds together: "all" when their predictions
        are pooled, else "mean" of the splits."""
        each: Sequence[np.ndarray | None] = [None] * len(hits) if named is None else named
        rows = []
        if splits:
            rows = [
                {"split": name, **self.accuracy(hit, owner, classes)}
                for name, hit, owner, classes in zip(splits, hits, owners, each, strict=True)
            ]
        if not pooled:
            units = np.split(self.units(np.concatenate(owners)), np.cumsum([len(owner) for owner in owners])[:-1])
            return [*rows, {"split": "mean", **mean_accuracy(list(hits), units)}]
        together = None if named is None else np.concatenate(named)
        whole = self.accuracy(np.concatenate(hits), np.concatenate(owners), together)
        return [*rows, {"split": "all", **whole} if splits else whole]

    def write(self, path: Path, rows: Sequence[int], kept: Sequence[int]) -> None:
        """Write the predictions `kept` that belong to these rows of a result, see `Predictions`."""
        right = np.array([self.right[number] for number in kept])
        named = np.array([self.named[number] for number in kept])
        tested = ~np.isnan(right).all(0)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                rows=np.array(rows),
                right=right[:, tested],
                named=named[:, tested],
                items=self.items[tested],
                labels=self.labels[tested],
                groups=self.groups[tested],
                classes=self.classes,
            )


def _arrays(path: Path) -> list[Any]:
    """The arrays of a file of predictions, in the order of _KEPT. Raises one of _DAMAGES where it holds others, or too much."""
    with open_regular(path) as opened:
        with ZipFile(opened) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > _BYTES:
            raise ValueError(f"{size:,} bytes, expected at most {_BYTES:,}")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as file:
            found = []
            for name, kind in _KEPT.items():
                with file.zip.open(f"{name}.npy") as header:  # what it declares, before room is made for it
                    version = np.lib.format.read_magic(header)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version](header)
                fits = (dtype.kind, len(shape)) == kind or shape == (0,)  # no classes are no texts
                if math.prod(shape) * dtype.itemsize > size or not fits:
                    raise ValueError(f"{name} is {dtype} {shape}")
                found.append(file[name])
    return found


class Predictions:
    """What is kept of a result by item, read from the .npz file beside it.

    items, labels, groups: str [n], the tested items; right: by number of the row of the result, float32 [n]: the share of an
    item's clips (draws, ...) that hit, NaN where it was not tested; named: likewise int32 [n], index into classes, -1 for none

    Raises TrainerError where the file is damaged.
    """

    def __init__(self, path: Path):
        try:
            rows, right, named, *texts = _arrays(path)
            self.items, self.labels, self.groups, self.classes = texts
            of = len(rows), len(self.items)
            if right.shape != of or named.shape != of or len(self.labels) != of[1] or len(self.groups) != of[1]:
                raise ValueError(f"of {of[0]} rows and {of[1]} items {right.shape} values")
            if not ((right >= 0) & (right <= 1) | np.isnan(right)).all() or (named >= len(self.classes)).any():
                raise ValueError("values that no measurement gives")
            self.right = dict(zip(rows.tolist(), right, strict=True))
            self.named = dict(zip(rows.tolist(), named, strict=True))
        except _DAMAGES as error:
            raise TrainerError(f"{path}: damaged ({error}); measure again") from error


def paired(first: Predictions, other: Predictions, row: int, other_row: int) -> dict[str, float] | None:
    """The difference of two accuracies of the same items in per cent, other - first, with the 95 % interval of a bootstrap that
    draws the same items (or groups, see Tally.units) for both: "value", "low", "high". None where the items differ."""
    found = paired_test(first, other, row, other_row)
    return found and {key: found[key] for key in ("value", "low", "high")}


def paired_test(first: Predictions, other: Predictions, row: int, other_row: int) -> dict[str, float] | None:
    """`paired` with "p" of the test that the true difference is 0, two-sided: Student's t of the difference over the standard
    deviation of its bootstrap, with one degree of freedom less than there are items (or groups) drawn; and no smaller than
    changing the signs of all their differences could give, 2 / 2^k of the k that are not 0 [Fisher's randomisation test], below
    which t, made for many small differences, is of no use."""
    matched = _matched(first, other, row, other_row)
    return _difference(first, *matched) if matched else None


def by_class(first: Predictions, other: Predictions, row: int, other_row: int) -> list[dict]:
    """Of every class ("class") both accuracies in per cent, "first" and "other", the number of items, "items", and the difference
    as of `paired`, "value"; "low" and "high" where there are at least GROUPS items (or groups) to draw. The class that gains
    most stands first. Nothing where the items differ."""
    if (matched := _matched(first, other, row, other_row)) is None:
        return []
    tested, one, two = matched
    found = []
    for name in np.unique(first.labels[tested]).tolist():
        own = first.labels[tested] == name
        told = {"class": name, "items": int(own.sum()), "first": 100 * float(one[own].mean())}
        told["other"] = 100 * float(two[own].mean())
        difference = _difference(first, tested[own], one[own], two[own])
        difference.pop("p")  # of so many classes, which are chosen by their values
        few = len(np.unique(_units(first, tested[own]))) < GROUPS
        found.append(told | ({"value": difference["value"]} if few else difference))
    return sorted(found, key=lambda told: -told["value"])


def _matched(
    first: Predictions, other: Predictions, row: int, other_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The tested items, int64 [n], index into first.items, and their hits in both, float64 [n]; None where the items differ."""
    one, two = first.right.get(row), other.right.get(other_row)
    if one is None or two is None:
        return None
    places = {name: i for i, name in enumerate(other.items.tolist())}
    tested = np.flatnonzero(~np.isnan(one))
    same = [places.get(name, -1) for name in first.items[tested].tolist()]
    if -1 in same or np.isnan(two[same]).any() or np.count_nonzero(~np.isnan(two)) != len(tested):
        return None
    return tested, one[tested].astype(np.float64), two[same].astype(np.float64)


def _units(of: Predictions, tested: np.ndarray) -> np.ndarray:
    return Tally(of.items, of.labels, of.groups, of.classes).units(tested)


def _difference(of: Predictions, tested: np.ndarray, one: np.ndarray, two: np.ndarray) -> dict[str, float]:
    difference = two - one
    _, units = np.unique(_units(of, tested), return_inverse=True)
    sums, counts = np.bincount(units, difference), np.bincount(units)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(1000):
        drawn = rng.integers(len(counts), size=len(counts))
        means.append(100 * sums[drawn].sum() / counts[drawn].sum())
    low, high = np.percentile(means, (2.5, 97.5))
    value, spread, changed = 100 * float(difference.mean()), float(np.std(means)), int(np.count_nonzero(sums))
    p = 2 * float(stdtr(max(1, len(counts) - 1), -abs(value) / spread)) if spread else 0.0
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
        "p": max(p, 2.0 ** (1 - changed) if changed else 1.0),
    }
