"""Dynamic scenes: a linear SVM on frozen features, leaving one video out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate.protocol import Protocol
from trainer.evaluate.protocols import data, metrics, np, progress, results, splits

MOST_VIDEOS = 2000  # one SVM is trained for each video
STAGES = 3  # the deepest three


class Scenes(Protocol):
    """Train a linear SVM on all videos but one, and test it on that video, for every video."""

    title = "Scenes"
    question = "Can a linear classifier distinguish dynamic scenes from frozen features, with one video left out?"
    items = "Each labelled video of any split, as the mean of its sliding clips; the three deepest stages."
    classifier = (
        "For each video, a linear SVM (scikit-learn's `LinearSVC`, C = 1) trained on all others. `chance` is "
        "1 / classes, for equally likely classes. Leaving a video out makes its class rarer in "
        "training, so that the accuracy on noise can fall below chance; a note gives the accuracy of always predicting the most "
        "frequent class of the remaining videos, and `largest class` that of always predicting the largest class."
    )
    left_out = (
        "Videos without a label. A note says if the counts differ from the published ones (YUPENN: 14 x 30). More "
        f"than {MOST_VIDEOS:,} videos are an error."
    )
    source = "Derpanis et al., CVPR 2012; thesis 2.6, 3.6.3."
    scores: metrics.ItemScores

    def choose(self) -> data.Shards:
        source = self.evaluator.source()
        self.scores = metrics.ItemScores.of(source)
        self.videos = np.flatnonzero(source.targets >= 0)
        self.targets = source.targets[self.videos]
        number, classes = len(self.videos), len(np.unique(self.targets))
        if classes < 2:
            raise TrainerError(
                f"{source.dataset}: {progress.counted(classes, 'class', 'classes')} with labelled videos, expected two or more"
            )
        if number > MOST_VIDEOS:
            raise ProtocolError(
                f"{source.dataset}: {number} videos, expected at most {MOST_VIDEOS} to leave one out at a time",
                "use `vssl eval linear`",
            )
        self.notes += splits.unlabelled(len(source.videos) - number)
        self.notes += splits.incomplete(source, {"videos": number, "classes": len(source.classes)})
        alone = np.eye(number, dtype=bool)
        self.notes.append(splits.rarer(self.targets, [*zip(alone, ~alone, strict=True)]))
        self.predicted: dict[tuple, np.ndarray] = {}  # by stage and pooling, for the pretrained network
        return source

    def rows(self) -> Iterator[dict]:
        yield from self.of_networks(self._of_network)
        yield from self._chance_and_classes()

    def _of_network(self, network: str) -> Iterator[dict]:
        found = self.evaluator.features(network, self.shards, self.videos, "sliding")
        for stage, pooling in self.evaluator.kinds(found)[-2 * STAGES :]:
            means = found.video_means((stage, pooling), self.evaluator.time_parts)
            predicted = leave_one_out(means, self.targets, f"{stage} {pooling}, {network}")
            if network == "pretrained":
                self.predicted[stage, pooling] = predicted
            score = self.scores.accuracy(predicted == self.targets, self.videos, predicted)
            yield {"stage": stage, "pooling": pooling, "metric": "accuracy", **score}

    def _chance_and_classes(self) -> Iterator[dict]:
        """Chance, and the accuracy by class for the last stage, pooled by maximum."""
        classes = np.unique(self.targets)
        yield {"network": "chance", "metric": "accuracy", "value": 100 / len(classes)}
        stage, pooling = [key for key in self.predicted if key[1] == "max"][-1]
        row = {"network": "pretrained", "stage": stage, "pooling": pooling, "metric": "class accuracy"}
        predicted = self.predicted[stage, pooling]
        for target in classes:
            value = 100 * float(np.mean(predicted[self.targets == target] == target))
            yield {**row, "class": self.shards.classes[target], "value": value}

    def conditions(self) -> dict[str, Any]:
        return {
            "split": None,
            "mode": "linear SVM, leave one video out",
            "views": f"all clips of {self.clip} with {self.overlap} overlapping, averaged",
            "items": f"{len(self.videos)} videos",
            **metrics.distribution(self.targets),
            "intervals": self.scores.describe_units(self.videos),
        }

    def tested(self) -> np.ndarray:
        return self.videos

    @classmethod
    def table(cls, result: dict) -> list[str]:
        rows = [row for row in result["rows"] if row["metric"] == "accuracy"]
        return results.table(rows, cls.index, cls.columns)


def leave_one_out(x: np.ndarray, targets: np.ndarray, what: str = "video") -> np.ndarray:
    """The class predicted for each row of x (float32 [n, d]) by a linear SVM trained on all other rows, int64 [n]. what: a
    description for the progress bar."""
    from sklearn.svm import LinearSVC

    # an SVM depends only on inner products, which n coordinates preserve; fewer coordinates train faster
    u, s, _ = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    x = u * s
    predicted = np.empty(len(x), np.int64)
    with progress.ProgressBar(f"leave one out, {what}", "video", len(x)) as bar:
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            if len(np.unique(targets[others])) == 1:
                predicted[i] = targets[others][0]
            else:
                predicted[i] = LinearSVC(random_state=0).fit(x[others], targets[others]).predict(x[i : i + 1])[0]
            bar.step()
    return predicted
