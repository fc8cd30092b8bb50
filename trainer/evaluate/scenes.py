"""Dynamic scenes: a linear SVM on frozen features, leaving one video out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.errors import TrainerError
from trainer.evaluate import tables
from trainer.evaluate.protocol import Protocol, ProtocolError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from trainer.data import Shards

MOST_VIDEOS = 2000  # as many SVMs are trained as there are videos
STAGES = 3  # the deepest ones


class Scenes(Protocol):
    """Train a linear SVM on all videos but one, and test it on that one."""

    title = "Scenes"
    question = "Does a linear classifier tell dynamic scenes from frozen features, with one video left out?"
    items = "Each labelled video, the mean of its sliding clips, whatever the split; the three deepest stages."
    classifier = (
        "A linear SVM (scikit-learn's `LinearSVC`, C = 1) trained on all videos but one, for each video. `chance` is a guess "
        "among the classes, each as likely as the others: 1 / classes. Leaving a video out makes its own class rarer in "
        "training, so that an accuracy on noise can fall below that; a note says what always naming the most frequent of the "
        "remaining classes would reach, `largest class` what always naming the largest would."
    )
    left_out = (
        "Videos without a label. Counts other than those that the data set was published with (YUPENN: 14 x 30) are noted; more "
        f"than {MOST_VIDEOS:,} videos are refused."
    )
    source = "Derpanis et al., CVPR 2012; thesis 2.6, 3.6.3."

    def choose(self) -> Shards:
        import numpy as np

        from trainer.evaluate.bench import incomplete, unlabelled
        from trainer.evaluate.folds import rarer
        from trainer.evaluate.tally import Tally

        source = self.bench.source()
        self.tally = Tally.of(source)
        self.videos = np.flatnonzero(source.targets >= 0)
        self.targets = source.targets[self.videos]
        number, classes = len(self.videos), len(np.unique(self.targets))
        if classes < 2:
            raise TrainerError(f"{source.dataset}: {classes} classes with labels, expected two or more")
        if number > MOST_VIDEOS:
            raise ProtocolError(
                f"{source.dataset}: {number} videos, leaving one out is for {MOST_VIDEOS} at most",
                "use `vssl eval linear`",
            )
        self.notes += unlabelled(len(source.videos) - number)
        self.notes += incomplete(source, {"videos": number, "classes": len(source.classes)})
        alone = np.eye(number, dtype=bool)
        self.notes.append(rarer(self.targets, [*zip(alone, ~alone, strict=True)]))
        self.predicted: dict[tuple, np.ndarray] = {}  # by stage and pooling, of the pretrained network
        return source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:

        from trainer.evaluate.classifiers import leave_one_out

        found = self.bench.features(network, self.shards, self.videos, "sliding")
        for stage, pooling in [*found.arrays][-2 * STAGES :]:
            predicted = leave_one_out(
                found.video_means((stage, pooling)), self.targets, f"{stage} {pooling}, {network}"
            )
            if network == "pretrained":
                self.predicted[stage, pooling] = predicted
            score = self.tally.accuracy(predicted == self.targets, self.videos, predicted)
            yield {"stage": stage, "pooling": pooling, "metric": "accuracy", **score}

    def rows_beside(self, rows: list[dict]) -> Iterator[dict]:
        """Chance, and the accuracy by class of the last stage, pooled by maximum."""
        import numpy as np

        classes = np.unique(self.targets)
        yield {"network": "chance", "metric": "accuracy", "value": 100 / len(classes)}
        stage, pooling = [key for key in self.predicted if key[1] == "max"][-1]
        row = {"network": "pretrained", "stage": stage, "pooling": pooling, "metric": "class accuracy"}
        predicted = self.predicted[stage, pooling]
        for target in classes:
            value = 100 * float(np.mean(predicted[self.targets == target] == target))
            yield {**row, "class": self.shards.classes[target], "value": value}

    def conditions(self) -> dict[str, Any]:
        from trainer.evaluate.numbers import distribution

        return {
            "split": None,
            "mode": "linear SVM, leave one video out",
            "views": f"all clips of {(length := self.shards.clip_length)} frames with {length // 2} overlapping, averaged",
            "items": f"{len(self.videos)} videos",
            **distribution(self.targets),
            "intervals": self.tally.drawn(self.videos),
        }

    def tested(self) -> np.ndarray:
        return self.videos

    @classmethod
    def table(cls, result: dict) -> list[str]:
        rows = [row for row in result["rows"] if row["metric"] == "accuracy"]
        return tables.table(rows, cls.index, cls.columns)
