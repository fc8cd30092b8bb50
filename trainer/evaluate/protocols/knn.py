"""k-nearest-neighbour classification on frozen features."""

from __future__ import annotations

from typing import Any

from trainer.evaluate.protocol import FeatureProtocol
from trainer.evaluate.protocols import data, features, neighbours, np

KS = (1, 5, 20)
TEMPERATURE = 0.07


class KNearest(FeatureProtocol):
    """Classify by a vote of the nearest neighbours in frozen features."""

    title = "k-NN"
    of_features, neighbours = True, 5
    question = "Do the nearest training items vote for the correct class?"
    items = (
        "10 spread clips per video, at clip and video level; folds as for `linear`. Unlike in `retrieval`, a video is never "
        "compared with its group."
    )
    classifier = (
        "The k = 1, 5, 20 nearest training items by cosine; each votes for its class with weight exp(cosine / .07)."
    )
    left_out = "Videos without a label. Test videos whose class has no training video count as wrong."
    source = "Wu et al., CVPR 2018."
    columns = ("level", "metric")
    levels = ("clip", "video")

    def choose(self, *args: Any, k: int | None = None, **options: Any) -> data.Shards:
        """k: used instead of KS; the other options are those of FeatureProtocol."""
        self.ks = KS if k is None else (k,)
        self.fewest = dict.fromkeys(self.levels, max(self.ks))  # smallest number of neighbours found
        return super().choose(*args, **options)

    def predict(self, train: features.Vectors, test: features.Vectors, level: str) -> dict[str, np.ndarray]:
        found = neighbours.nearest(test, train, max(self.ks), self.evaluator.device)
        self.fewest[level] = min(self.fewest[level], found.shape[1])
        classes = self.shards.targets[train.video]
        voted = neighbours.votes(test.x, train.x, found, classes, self.ks, TEMPERATURE)
        return {f"{k}-NN": of_k for k, of_k in zip(self.ks, voted, strict=True)}

    def remarks(self) -> list[str]:
        few = {level: number for level, number in self.fewest.items() if number < max(self.ks)}
        return [
            f"{level} level: only {number} training items; larger k use all of them" for level, number in few.items()
        ]

    def conditions(self) -> dict[str, Any]:
        classifier = f"k nearest neighbours, cosine, votes exp(cosine / {TEMPERATURE:g})"
        views = f"10 clips of {self.clip}"
        return {**super().conditions(), "views": views, "classifier": classifier}

    @classmethod
    def table(cls, result: dict) -> list[str]:
        return [f"% right; {result['protocol']['classifier']}", *super().table(result)]
