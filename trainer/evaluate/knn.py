"""k nearest neighbours on frozen features, each with a vote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.evaluate.protocol import FoldProtocol

if TYPE_CHECKING:
    import numpy as np

    from trainer.data import Shards

KS = (1, 5, 20)
TEMPERATURE = 0.07


class KNearest(FoldProtocol):
    """Let the nearest neighbours in frozen features vote."""

    title = "k-NN"
    question = "Do the nearest training items name the class?"
    items = (
        "10 spread clips per video, at clip and video level; folds as of `linear`. A video is never compared with its own "
        "group, which differs from `retrieval`."
    )
    classifier = "The k = 1, 5, 20 nearest training items by cosine, each voting for its class with exp(cosine / .07)."
    left_out = "Videos without a label. Test videos whose class has no training video count as wrong."
    source = "Wu et al., CVPR 2018."
    columns = ("level", "metric")
    levels = ("clip", "video")

    def choose(self) -> Shards:
        self.fewest = dict.fromkeys(self.levels, KS[-1])  # neighbours that there were at least
        return super().choose()

    def scores(self, items: list[tuple[np.ndarray, np.ndarray]], level: str) -> Iterator[dict]:
        from trainer.evaluate.folds import of_videos
        from trainer.evaluate.neighbours import nearest, votes

        hits, owners, names, targets = [], [], [], self.plan.source.targets
        for test, train in self.plan.parts:
            queries, gallery = of_videos(items, test), of_videos(items, train)
            found = nearest(queries, gallery, KS[-1], self.bench.device)
            named = votes(queries[0], gallery[0], found, targets[gallery[1]], KS, TEMPERATURE)
            hits.append(named == targets[queries[1]])
            owners.append(queries[1])
            names.append(named)
            self.step()
            self.fewest[level] = min(self.fewest[level], found.shape[1])
        for place, k in enumerate(KS):
            for score in self.plan.scores([hit[place] for hit in hits], owners, [name[place] for name in names]):
                yield {"metric": f"{k}-NN", **score, "dimensions": queries[0].shape[1]}

    def remarks(self) -> list[str]:
        few = {level: number for level, number in self.fewest.items() if number < KS[-1]}
        return [f"{level} level: only {number} training items; larger k ask them all" for level, number in few.items()]

    def conditions(self) -> dict[str, Any]:
        classifier = f"k nearest neighbours, cosine, votes exp(cosine / {TEMPERATURE:g})"
        views = f"10 clips of {self.shards.clip_length} frames"
        return {**super().conditions(), "views": views, "classifier": classifier}

    @classmethod
    def table(cls, result: dict) -> list[str]:
        return [f"% right; {result['protocol']['classifier']}", *super().table(result)]
