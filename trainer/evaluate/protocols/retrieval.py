"""Retrieval: does a video's nearest neighbour in feature space have its class?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate.protocol import IN_TURN, SEED, TIME, Protocol, ProtocolOption
from trainer.evaluate.protocols import data, features, metrics, neighbours, np, results, splits

KS = (1, 5, 10, 20, 50)
_SHOWN, _NEAREST = 24, 5  # queries with neighbours in the result, and neighbours of each


class Found(NamedTuple):
    """The queries and gallery of a fold, and the gallery items nearest to each query, best first, int64 [queries, k]."""

    queries: features.Vectors
    gallery: features.Vectors
    nearest: np.ndarray


class Retrieval(Protocol):
    """Find videos of the same class by nearest neighbours of frozen features."""

    title = "Retrieval"
    of_features, neighbours = True, 1
    question = "Does one of the k nearest neighbours of a video in feature space have its class?"
    items = (
        "10 spread clips per video. At *clip level* each clip is an item, at *video level* each video. The test part searches "
        "the train part; if either is missing, each video searches all other videos. `--query A --gallery B`: the test part "
        "(or all) of one data set searches the train part (or all) of another; classes are compared by name, and without "
        "common classes neighbours are listed and nothing is scored. Splits, also several in turn, are used as for `linear`. "
        "`--leave-group-out`: if each video searches all others, it does not find videos of its group; without this option, a "
        "note gives the share of hits within the group."
    )
    classifier = (
        "None: a query is a hit if one of its k = 1, 5, 10, 20, 50 nearest items by cosine has its class. Cosines are computed "
        "in float64; ties go to the item that comes first. `chance` is the hit rate of a random order of the gallery."
    )
    left_out = "Videos without a label; across data sets, queries whose class the gallery lacks (within one, a note counts them)."
    source = "Xu et al., CVPR 2019. Published tables mix clip and video level."
    options = (
        ProtocolOption("query", Path, "Shards of a data set whose videos are the queries."),
        ProtocolOption("gallery", Path, "Shards of the data set that the queries of --query search."),
        ProtocolOption("leave_group_out", bool, "Do not let a query find videos of its source group.", default=False),
        TIME,
        SEED,
    )
    split_help = IN_TURN
    columns = ("level", "metric")
    published = tuple(f"top-{k}" for k in KS)
    scores: metrics.ItemScores

    def choose(
        self,
        query: str | os.PathLike | None = None,
        gallery: str | os.PathLike | None = None,
        leave_group_out: bool = False,
        k: int | None = None,
        times: Sequence[str] = (),
        seed: int = 0,
    ) -> data.Shards:
        """leave_group_out: no query finds a video of its source group; k: used instead of KS; times, seed: see `disturb`."""
        self.disturb(times, seed)
        self.crossed, self.scored, self.ks = query is not None, True, KS if k is None else (k,)
        if query is None and gallery is None:
            self.folds = self.evaluator.folds()
            source = self.gallery = self.folds.source
        elif query is None or gallery is None:
            raise ProtocolError("query and gallery must be given together", "--query A --gallery B, the shards of both")
        else:
            source, self.gallery = (self.evaluator.open(folder, self.evaluator.split) for folder in (query, gallery))
            self.folds = self._across(source, self.gallery)
        self.notes += self.folds.notes
        self.alone = not self.crossed and not self.folds.apart  # each video searches all others
        self.grouped = not self.crossed and any(source.text("videos/group"))
        if leave_group_out and not (self.grouped and self.alone):
            raise TrainerError(
                f"{source.dataset}: groups can be left out only if each video searches all others and their groups are known"
            )
        self.groups = np.unique(source.groups, return_inverse=True)[1]
        self.units = self.groups if leave_group_out else np.arange(len(self.groups))
        if leave_group_out and len(set(self.groups[self.folds.tested].tolist())) < 2:
            raise TrainerError(
                f"{source.dataset}: all videos are in one group, expected at least two groups to leave one out"
            )
        self.leave_group_out = leave_group_out
        labels = [np.array(shards.text("videos/label")) for shards in (source, self.gallery)]
        searched = np.concatenate([rows for _, rows in self.folds.parts])
        self.classes = np.unique(np.concatenate([labels[0][self.folds.tested], labels[1][searched]]))
        self.labels, self.targets = labels, [np.searchsorted(self.classes, of) for of in labels]
        self.scores = metrics.ItemScores.of(source, self.classes)
        return source

    def _across(self, asking: data.Shards, searched: data.Shards) -> splits.Folds:
        """The test part (or all) of one data set as queries, the training part (or all) of another as gallery.

        Classes are compared by name, and queries whose class the gallery lacks are left out. If it lacks all classes, all
        queries are used and none is scored.
        """
        queries, gallery = splits.of_split(asking).parts[0][0], splits.of_split(searched).parts[0][1]
        labels, theirs = (np.array(shards.text("videos/label")) for shards in (asking, searched))
        mode = f"{_part_of(asking, queries)} against {_part_of(searched, gallery)}"
        known, notes = queries[np.isin(labels[queries], theirs[gallery])], []
        self.scored = bool(len(known))
        if not self.scored:
            known = queries
            notes.append(
                f"{asking.dataset} and {searched.dataset} have no class in common: neighbours are listed, unscored"
            )
        elif lacking := len(queries) - len(known):
            notes.append(f"{lacking} queries left out because {searched.dataset} lacks their class")
        return splits.Folds(asking, [(known, gallery)], mode, notes)

    def rows(self) -> Iterator[dict]:
        yield from self.of_networks(self._of_network)
        if self.scored:
            yield from self._chance()

    def _of_network(self, network: str) -> Iterator[dict]:
        if network != "pretrained" and not self.scored:
            return
        extracted, tested = self._extracted(network), np.unique(self.folds.tested)
        disturbed = {
            name: self.evaluator.features(network, self.shards, tested, "spread", time=time)
            for name, time in self.times.items()
            if time is not None and self.scored
        }
        levels = self.evaluator.levels(("video",) if disturbed or not self.scored else ("clip", "video"))
        keys = self.evaluator.kinds(extracted[0][0][1])
        shown = [key for key in keys if key[1] == keys[0][1]][-1]  # the last stage, pooled by maximum
        for key in keys if self.scored else [shown]:
            for level in levels:
                asked, gallery = (
                    [found.vectors(key, level, rows, self.evaluator.time_parts) for rows, found in side]
                    for side in extracted
                )
                others = {name: [found.vectors(key, level, tested)] for name, found in disturbed.items()}
                found = {
                    name: [
                        self._search(features.select(queries, asking), features.select(gallery, searched))
                        for asking, searched in self.folds.parts
                    ]
                    for name, queries in {metrics.NORMAL: asked, **others}.items()
                }
                folds = found[metrics.NORMAL]
                main = (network, key, level) == ("pretrained", shown, "video")
                if main:
                    self.extra["neighbours"] = self._examples(folds)
                if self.scored:
                    row = {"stage": key[0], "pooling": key[1], "level": level, "dimensions": asked[0].x.shape[1]}
                    yield from ({**row, **score} for score in self._accuracies(found, level))
                if main:
                    self._note_own_group(folds, key)

    def _extracted(self, network: str) -> list[list[tuple[np.ndarray, features.Features]]]:
        """The features of the queries and of the gallery, with the rows of the videos; for one fold separately, for several
        folds of all videos together."""
        if not self.crossed:
            found = self.evaluator.features_of_parts(network, self.shards, self.folds.parts)
            return [[found[0]], [found[-1]]]
        sides = zip((self.shards, self.gallery), self.folds.parts[0], strict=True)
        return [[(rows, self.evaluator.features(network, shards, rows, "spread"))] for shards, rows in sides]

    def _search(self, queries: features.Vectors, gallery: features.Vectors) -> Found:
        """Search the gallery, without items of the query's video or, with leave_group_out, of its group."""
        if self.alone:
            asking, searched = self.units[queries.video], self.units[gallery.video]
        else:
            asking, searched = queries.video, gallery.video + len(self.shards.videos)
        sides = features.Vectors(queries.x, asking), features.Vectors(gallery.x, searched)
        return Found(queries, gallery, neighbours.nearest(*sides, max(*self.ks, _NEAREST), self.evaluator.device))

    def _accuracies(self, found: dict[str, list[Found]], level: str) -> Iterator[dict]:
        """The rows of the hit rates by k; found: for each fold, by what was done to the frames of the queries."""
        folds = found[metrics.NORMAL]
        asked = [[fold.queries.video.tolist() for fold in of] for of in found.values()]
        if asked.count(asked[0]) < len(asked):
            raise AssertionError("disturbed clips are of other videos than the undisturbed ones")
        classes = {
            time: [self.targets[1][fold.gallery.video[fold.nearest]] for fold in of] for time, of in found.items()
        }
        owners = [fold.queries.video for fold in folds]
        hit = {
            time: [hits(of, self.targets[0][owner]) for of, owner in zip(each, owners, strict=True)]
            for time, each in classes.items()
        }
        for k in self.ks:
            right = {time: [of[:, min(k, of.shape[1]) - 1] for of in each] for time, each in hit.items()}
            first = {time: [of[:, 0] for of in each] for time, each in classes.items()}
            predicted = first if k == 1 else None
            yield from self.scores.rows(f"top-{k}", right, owners, self.folds.splits, self.folds.pooled, predicted)
        if (fewest := min(fold.nearest.shape[1] for fold in folds)) < max(self.ks):
            self.notes.append(f"{level} level: only {fewest} gallery items; larger k use all of them")

    def _examples(self, folds: Sequence[Found]) -> list[dict]:
        """A few evenly spread queries with the names, classes and cosines of the videos found for them."""
        names, theirs = (shards.text("videos/id") for shards in (self.shards, self.gallery))
        queries = [(fold, query) for fold in folds for query in range(len(fold.nearest))]
        examples = []
        for i in np.unique(np.linspace(0, len(queries) - 1, _SHOWN).astype(int)):
            (asking, gallery, nearest), query = queries[i]
            video, best = asking.video[query], nearest[query, :_NEAREST]
            cosines = features.normalised(gallery.x[best]) @ features.normalised(asking.x[query : query + 1])[0]
            examples.append(
                {
                    "query": names[video],
                    "label": str(self.labels[0][video]),
                    "nearest": [[theirs[of], str(self.labels[1][of])] for of in gallery.video[best]],
                    "cosines": cosines.tolist(),
                }
            )
        return examples

    def _note_own_group(self, folds: Sequence[Found], key: tuple[str, str]) -> None:
        """Add a note on the share of hits within the query's group."""
        if not self.grouped:
            return
        asking = np.concatenate([fold.queries.video for fold in folds])
        first = np.concatenate([fold.gallery.video[fold.nearest[:, 0]] for fold in folds])
        hit = self.targets[0][asking] == self.targets[1][first]
        if hit.any() and (share := (self.groups[asking] == self.groups[first])[hit].mean()):
            at = f"video level, {key[0]}, {key[1]}"
            self.notes.append(f"{100 * share:.0f} % of the top-1 hits ({at}) are videos of the query's group")

    def _chance(self) -> Iterator[dict]:
        parts = [(self.targets[0][queries], self.targets[1][gallery]) for queries, gallery in self.folds.parts]
        units = self.units[self.folds.tested] if self.alone else None
        sizes = [len(queries) for queries, _ in parts]
        for level, views in (("clip", 10), ("video", 1)):
            values = [chance(*fold, views, self.ks, units) for fold in parts]
            for k in self.ks:
                value = float(np.average([of_fold[k] for of_fold in values], weights=sizes))
                yield {"network": "chance", "level": level, "metric": f"top-{k}", "value": value}
        hopeless = sum(int((candidates(*fold, units)[1] == 0).sum()) for fold in parts)
        if hopeless == sum(sizes):
            self.notes.append("no query has another video of its class in the gallery: nothing can be found")
        elif hopeless:
            self.notes.append(
                f"{hopeless} of {sum(sizes)} queries cannot hit: no other video of their class is in the gallery"
            )

    def conditions(self) -> dict[str, Any]:
        about: dict[str, Any] = {"split": None} if self.folds.splits else {}
        asked = self.folds.tested
        searched = np.unique(np.concatenate([gallery for _, gallery in self.folds.parts]))
        if self.scored:
            sizes = [np.bincount(self.targets[1][gallery]) for _, gallery in self.folds.parts]
            parts = zip(self.folds.parts, sizes, strict=True)
            largest = [self.targets[0][queries] == size.argmax() for (queries, _), size in parts]
            about["classes"] = len(self.classes)
            about["largest_class"] = round(100 * float(np.concatenate(largest).mean()), 1)
            about["intervals"] = self.scores.describe_units(asked)
        return {
            "mode": self.folds.mode + (", but those of its own group" if self.leave_group_out else ""),
            "views": f"10 clips of {self.clip}",
            "items": f"{len(asked)} query and {len(searched)} gallery videos",
            "gallery": self.gallery.dataset,
            **about,
            **self.disturbances,
        }

    def tested(self) -> np.ndarray:
        return self.folds.tested

    def file_name(self, name: str) -> str:
        name = f"{name}-other_groups" if self.leave_group_out else name
        name = "-".join([name, *[*self.times][1:]])
        return f"{name}-{self.gallery.dataset}-by" if self.crossed else name

    @classmethod
    def table(cls, result: dict) -> list[str]:
        rows = results.overall(result["rows"])
        if not rows:
            return listed(result["neighbours"])
        shown = ("top-1", "top-1 drop")
        rows = [{key: row[key] for key in row if key != "low" or row["metric"] in shown} for row in rows]
        return ["% hit among the k nearest, with the 95 % interval of k = 1", *super().table({"rows": rows})]


def _part_of(source: data.Shards, rows: np.ndarray) -> str:
    """The name of a data set, and which of its parts these videos are."""
    names = {data.TRAIN: "train part", data.VALIDATION: "validation part", data.TEST: "test part"}
    first, *others = set(source.part[rows])
    return f"{source.dataset} ({'all videos' if others else names.get(first, 'all videos')})"


def hits(found: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether one of the k nearest has the query's class, bool [queries, k] for k = 1, 2, ...; found: classes of the nearest,
    int64 [queries, k]; target: int64 [queries]."""
    return np.logical_or.accumulate(found == target[:, None], axis=1)


def candidates(query: np.ndarray, gallery: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """How many videos each query may find, int64 [queries], and how many of them have its class.

    query, gallery: classes of their videos, int64; groups: int64 [videos], if query and gallery are the same videos: a query
    does not find videos of its group.
    """
    items, same_class = np.full(len(query), len(gallery)), np.bincount(gallery, minlength=query.max() + 1)[query]
    if groups is not None:
        both = np.unique(np.stack([groups, query]), axis=1, return_inverse=True)[1].ravel()
        items, same_class = items - np.bincount(groups)[groups], same_class - np.bincount(both)[both]
    return items, same_class


def chance(
    query: np.ndarray, gallery: np.ndarray, views: int, ks: Sequence[int], groups: np.ndarray | None = None
) -> dict[int, float]:
    """Per cent of hits with a random order of the gallery, for each k of ks (hypergeometric); arguments as for `candidates`."""
    items, same_class = (views * count for count in candidates(query, gallery, groups))
    drawn = np.arange(max(ks))[:, None]
    step = np.maximum(items - same_class - drawn, 0) / np.maximum(items - drawn, 1)
    miss = np.cumprod(np.where(drawn < items, step, 1), axis=0)
    return {k: 100 * float(1 - miss[k - 1].mean()) for k in ks}


def listed(neighbours: list[dict]) -> list[str]:
    """Lines with a few queries, their classes, and the videos found for each, nearest first."""
    lines = []
    for query in neighbours:
        lines += ["", f"{query['query']} ({query['label']})"]
        found = zip(query["nearest"], query["cosines"], strict=True)
        lines += [f"  {cosine:.4f}  {name} ({label})" for (name, label), cosine in found]
    return [
        f"the videos nearest to {len(neighbours)} of the queries, by cosine; no class in common, nothing is scored",
        *lines,
    ]
