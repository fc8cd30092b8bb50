"""Retrieval: is a video's nearest neighbour in feature space of its class?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import TrainerError
from trainer.evaluate import tables
from trainer.evaluate.protocol import FoldProtocol, Option, Protocol, ProtocolError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from trainer.data import Shards
    from trainer.evaluate.folds import Extracted

KS = (1, 5, 10, 20, 50)


class Retrieval(Protocol):
    """Find videos of the same class by nearest neighbours of frozen features."""

    title = "Retrieval"
    question = "Is one of the k nearest neighbours of a video in feature space of its class?"
    items = (
        "10 spread clips per video. *Clip level*: each clip is an item; *video level*: each video. The test part searches the "
        "train part; without two parts each video searches all others, never its own clips. `--query A --gallery B`: the test "
        "part (or all) of one data set searches the train part (or all) of another, classes compared by name; where they have "
        "none in common, neighbours are listed and nothing is scored. Splits, and several of them in turn, as of `linear`. "
        "`--leave-group-out`: where each video searches all others, none of its own group; the share of the hits that are of "
        "that group is noted."
    )
    classifier = (
        "None: a query is a hit when one of its k = 1, 5, 10, 20, 50 nearest items by cosine has its class. They "
        "are searched in float64; of equal cosines the item that stands first. `chance` is what a random order of the gallery "
        "would hit."
    )
    left_out = "Videos without a label; across data sets, queries whose class the gallery lacks (within one a note counts them)."
    source = "Xu et al., CVPR 2019. Published tables mix clip and video level."
    options = (
        Option("query", Path, "Shards of another data set, whose videos are searched for"),
        Option("gallery", Path, "Shards of the data set that --query searches."),
        Option("leave_group_out", bool, "No query finds a video of its own source group.", default=False),
    )
    split_help = FoldProtocol.split_help
    columns = ("level", "metric")
    published = tuple(f"top-{k}" for k in KS)

    def choose(
        self,
        query: str | os.PathLike | None = None,
        gallery: str | os.PathLike | None = None,
        leave_group_out: bool = False,
    ) -> Shards:
        """leave_group_out: no query finds a video of its own source group."""
        import numpy as np

        from trainer.evaluate.folds import groups_of
        from trainer.evaluate.neighbours import across, within
        from trainer.evaluate.tally import Tally

        if query is None and gallery is None:
            self.search = within(self.bench)
        elif query is None or gallery is None:
            raise ProtocolError("query and gallery go together", "--query A --gallery B name the shards of both")
        else:
            self.search = across(*(self.bench.open(folder, self.bench.split) for folder in (query, gallery)))
        self.crossed, self.sides = query is not None, self.search.sides
        self.notes += self.search.notes
        asking, searched = self.sides[0]
        source, self.alone = asking.source, asking is searched
        self.grouped = not self.crossed and any(source.text("videos/group"))
        if leave_group_out and not (self.grouped and self.alone):
            raise TrainerError(
                f"{source.dataset}: groups can be left out where each video searches all others and their groups are known"
            )
        self.groups = np.unique(groups_of(source), return_inverse=True)[1]
        self.units = self.groups if leave_group_out else np.arange(len(self.groups))
        if leave_group_out and len(set(self.groups[asking.videos].tolist())) < 2:
            raise TrainerError(f"{source.dataset}: all videos are of one group, without it nothing can be found")
        self.leave_group_out = leave_group_out
        labels = np.concatenate([side.labels for fold in self.sides for side in fold])
        self.classes = np.unique(labels)
        self.targets = [tuple(np.searchsorted(self.classes, side.labels) for side in fold) for fold in self.sides]
        self.tally = Tally.of(source, self.classes)
        return source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        import numpy as np

        from trainer.evaluate.neighbours import examples

        if network != "pretrained" and not self.search.scored:
            return
        extracted = self.extracted(network)
        shown = [key for key in extracted[0][0].found.arrays if key[1] == "max"][-1]
        for key in extracted[0][0].found.arrays if self.search.scored else [shown]:
            for level in ("clip", "video") if self.search.scored else ("video",):
                items = [[part.items(key, level) for part in side] for side in extracted]
                found = [self.found(*fold, *items) for fold in zip(self.sides, self.targets, strict=True)]
                nearest, hits, owners, named = zip(*found, strict=True)
                row = {"stage": key[0], "pooling": key[1], "level": level, "dimensions": items[0][0][0].shape[1]}
                for k in KS if self.search.scored else ():
                    right = [hit[:, min(k, hit.shape[1]) - 1] for hit in hits]
                    of_k = named if k == 1 else None
                    for score in self.tally.accuracies(right, owners, self.search.splits, self.search.pooled, of_k):
                        yield {**row, "metric": f"top-{k}", **score}
                if self.search.scored and (fewest := min(hit.shape[1] for hit in hits)) < KS[-1]:
                    self.notes.append(f"{level} level: only {fewest} gallery items; larger k search them all")
                if (network, key, level) == ("pretrained", shown, "video"):
                    vectors = [
                        (asking.items(items[0])[0], searched.items(items[1])[0]) for asking, searched in self.sides
                    ]
                    self.extra["neighbours"] = examples(self.sides, nearest, vectors)
                    own = [
                        self.groups[asking.videos] == self.groups[searched.videos[places[:, 0]]]
                        for (asking, searched), places in zip(self.sides, nearest, strict=True)
                    ]
                    hit = np.concatenate([hit[:, 0] for hit in hits])
                    if self.grouped and hit.any() and (share := np.concatenate(own)[hit].mean()):
                        at = f"video level, {key[0]}, {key[1]}"
                        self.notes.append(
                            f"{100 * share:.0f} % of the top-1 hits ({at}) are videos of the query's own group"
                        )

    def extracted(self, network: str) -> list[list[Extracted]]:
        """Features of the queries' side and of the gallery's: of one fold apart, of several all together."""
        import numpy as np

        from trainer.evaluate.folds import Extracted

        rows = [[side.videos for side in fold] for fold in self.sides]
        if len(rows) > 1:
            rows = [[np.unique(np.concatenate([videos for fold in rows for videos in fold]))] * 2]
        sources = [side.source for side in self.sides[0]]
        parts = [
            Extracted(videos, self.bench.features(network, source, videos, "spread"))
            for videos, source in zip(rows[0], sources, strict=True)
        ]
        return [[part] for part in parts]

    def found(self, sides: tuple, targets: tuple, asking: list, searched: list) -> tuple:
        """Of one fold the gallery items that are found, int64 [queries, k], the hits by k, bool, the queries' videos, int64,
        and the classes of the first, int64."""
        from trainer.evaluate.neighbours import hits, nearest

        (queries, of), (items, their) = sides[0].items(asking), sides[1].items(searched)
        videos, theirs = of - sides[0].first, their - sides[1].first
        if self.alone:  # of videos of its own, or of its own group, a query finds none
            of, their = self.units[sides[0].videos[videos]], self.units[sides[1].videos[theirs]]
        places = nearest((queries, of), (items, their), KS[-1], self.bench.device)
        return places, hits(places, videos, theirs, targets), sides[0].videos[videos], targets[1][theirs[places[:, 0]]]

    def rows_beside(self, rows: list[dict]) -> Iterator[dict]:
        import numpy as np

        from trainer.evaluate.neighbours import chance, findable

        if not self.search.scored:
            return
        units = self.units[self.sides[0][0].videos] if self.alone else None
        sizes = [len(queries) for queries, _ in self.targets]
        for level, views in (("clip", 10), ("video", 1)):
            values = [chance(*targets, views, KS, units) for targets in self.targets]
            for k in KS:
                value = float(np.average([of_fold[k] for of_fold in values], weights=sizes))
                yield {"network": "chance", "level": level, "metric": f"top-{k}", "value": value}
        alone = sum(int((findable(*targets, units)[1] == 0).sum()) for targets in self.targets)
        if alone == sum(sizes):
            self.notes.append("no query has another video of its class in the gallery: nothing can be found")
        elif alone:
            self.notes.append(
                f"{alone} of {sum(sizes)} queries can only miss: no other video of their class is in the gallery"
            )

    def conditions(self) -> dict[str, Any]:
        import numpy as np

        told: dict[str, Any] = {"split": None} if self.search.splits else {}
        asked = np.concatenate([asking.videos for asking, _ in self.sides])
        searched = np.unique(np.concatenate([searched.videos for _, searched in self.sides]))
        if self.search.scored:
            sizes = [np.bincount(targets[1], minlength=len(self.classes)) for targets in self.targets]
            largest = [targets[0] == size.argmax() for targets, size in zip(self.targets, sizes, strict=True)]
            told["classes"] = len(self.classes)
            told["largest_class"] = round(100 * float(np.concatenate(largest).mean()), 1)
            told["intervals"] = self.tally.drawn(asked)
        return {
            "mode": self.search.mode + (", but those of its own group" if self.leave_group_out else ""),
            "views": f"10 clips of {self.shards.clip_length} frames",
            "items": f"{len(asked)} query and {len(searched)} gallery videos",
            "gallery": self.sides[0][1].source.dataset,
            **told,
        }

    def tested(self) -> np.ndarray:
        import numpy as np

        return np.concatenate([asking.videos for asking, _ in self.sides])

    def file_name(self, name: str) -> str:
        name = f"{name}-other_groups" if self.leave_group_out else name
        return f"{name}-{self.sides[0][1].source.dataset}-by" if self.crossed else name

    @classmethod
    def table(cls, result: dict) -> list[str]:
        rows = tables.overall(result["rows"])
        if not rows:
            return listed(result["neighbours"])
        rows = [{key: row[key] for key in row if key != "low" or row["metric"] == "top-1"} for row in rows]
        about = "% hit among the k nearest, with the 95 % interval of k = 1"
        return [about, *tables.table(rows, cls.index, cls.columns)]


def listed(neighbours: list[dict]) -> list[str]:
    """Lines of a few queries, each with its class, and the videos found for it, nearest first."""
    lines = []
    for query in neighbours:
        lines += ["", f"{query['query']} ({query['label']})"]
        found = zip(query["nearest"], query["cosines"], strict=True)
        lines += [f"  {cosine:.4f}  {name} ({label})" for (name, label), cosine in found]
    return [
        f"the videos nearest to {len(neighbours)} of the queries, by cosine; no class in common, nothing is scored",
        *lines,
    ]
