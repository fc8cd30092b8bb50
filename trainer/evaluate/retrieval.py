"""Retrieval: is a video's nearest neighbour in feature space of its class?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.evaluate import tables
from trainer.evaluate.protocol import Option, Protocol, ProtocolError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from trainer.data import Shards

KS = (1, 5, 10, 20, 50)


class Retrieval(Protocol):
    """Find videos of the same class by nearest neighbours of frozen features."""

    title = "Retrieval"
    question = "Is one of the k nearest neighbours of a video in feature space of its class?"
    items = (
        "10 spread clips per video. *Clip level*: each clip is an item; *video level*: each video. The test part searches the "
        "train part; without two parts each video searches all others, never its own clips. `--query A --gallery B`: the test "
        "part (or all) of one data set searches the train part (or all) of another, classes compared by name."
    )
    classifier = (
        "None: a query is a hit when one of its k = 1, 5, 10, 20, 50 nearest items by cosine has its class. Exact; of equal "
        "cosines the item that stands first. `chance` is what a random order of the gallery would hit."
    )
    left_out = "Videos without a label; queries whose class the gallery lacks."
    source = "Xu et al., CVPR 2019. Published tables mix clip and video level."
    options = (
        Option("query", Path, "Shards of another data set, whose videos are searched for"),
        Option("gallery", Path, "Shards of the data set that --query searches."),
    )
    columns = ("level", "metric")
    published = tuple(f"top-{k}" for k in KS)

    def choose(self, query: str | os.PathLike | None = None, gallery: str | os.PathLike | None = None) -> Shards:
        import numpy as np

        from trainer.evaluate.neighbours import across, within

        if query is None and gallery is None:
            self.asking, self.searched, self.mode, notes = within(self.bench.source())
        elif query is None or gallery is None:
            raise ProtocolError("query and gallery go together", "--query A --gallery B name the shards of both")
        else:
            sources = (self.bench.open(folder, self.bench.split) for folder in (query, gallery))
            self.asking, self.searched, self.mode, notes = across(*sources)
        self.crossed = query is not None
        self.notes += notes
        labels = np.concatenate([self.asking.labels, self.searched.labels])
        self.classes, targets = np.unique(labels, return_inverse=True)
        self.targets = targets[: len(self.asking.labels)], targets[len(self.asking.labels) :]
        return self.asking.source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        from trainer.evaluate.neighbours import examples, hits, nearest
        from trainer.evaluate.numbers import accuracy

        asking, searched = self.asking, self.searched
        of_asking, of_searched = (
            self.bench.features(network, side.source, side.videos, "spread") for side in (asking, searched)
        )
        shown = [key for key in of_asking.arrays if key[1] == "max"][-1]
        for key in of_asking.arrays:
            for level in ("clip", "video"):
                queries, items = asking.items(of_asking, key, level), searched.items(of_searched, key, level)
                found = nearest(queries, items, KS[-1], self.bench.device)
                hit = hits(found, queries[1] - asking.first, items[1] - searched.first, self.targets)
                row = {"stage": key[0], "pooling": key[1], "level": level, "dimensions": queries[0].shape[1]}
                for k in KS:
                    yield {**row, "metric": f"top-{k}", **accuracy(hit[:, min(k, hit.shape[1]) - 1], queries[1])}
                if hit.shape[1] < KS[-1]:
                    self.notes.append(f"{level} level: only {hit.shape[1]} gallery items; larger k search them all")
                if (network, key, level) == ("pretrained", shown, "video"):
                    self.extra["neighbours"] = examples(asking, searched, found)

    def rows_beside(self, rows: list[dict]) -> Iterator[dict]:
        from trainer.evaluate.neighbours import chance

        same = self.asking.first == self.searched.first
        for level, views in (("clip", 10), ("video", 1)):
            for k, value in chance(*self.targets, views, same, KS).items():
                yield {"network": "chance", "level": level, "metric": f"top-{k}", "value": value}
        if value == 0:
            self.notes.append("no query has another video of its class in the gallery: nothing can be found")

    def conditions(self) -> dict[str, Any]:
        import numpy as np

        counts = np.bincount(self.targets[1], minlength=len(self.classes))
        return {
            "mode": self.mode,
            "views": "10 clips of 16 frames",
            "items": f"{len(self.asking.videos)} query and {len(self.searched.videos)} gallery videos",
            "classes": len(self.classes),
            "largest_class": round(100 * float((self.targets[0] == counts.argmax()).mean()), 1),
            "gallery": self.searched.source.dataset,
        }

    def tested(self) -> np.ndarray:
        return self.asking.videos

    def file_name(self, name: str) -> str:
        return f"{name}-{self.searched.source.dataset}-by" if self.crossed else name

    @classmethod
    def table(cls, result: dict) -> list[str]:
        rows = [{key: row[key] for key in row if key != "low" or row["metric"] == "top-1"} for row in result["rows"]]
        about = "% hit among the k nearest, with the 95 % interval of k = 1"
        return [about, *tables.table(rows, cls.index, cls.columns)]
