"""Action recognition: the classifier of a finetuned network on the test videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.evaluate import tables
from trainer.evaluate.protocol import Option, Protocol

if TYPE_CHECKING:
    from trainer.data import Shards


class Recognition(Protocol):
    """Test a network that `vssl finetune` trained."""

    title = "Recognition"
    question = "How many test videos does a finetuned network name right?"
    items = (
        "10 spread clips per video of the run's own split, or with `--all-clips` all that do not overlap; clip and video "
        "level. Without a test part the held-out videos, with a note that they also chose the checkpoint (`--holdout`: whole "
        "groups). Several runs, one per split, give their mean: `--checkpoint A --checkpoint B --checkpoint C`."
    )
    classifier = (
        "The run's own (`vssl finetune`, or `vssl train --method recognition`): a video's prediction is the mean softmax of its "
        "clips. Accuracy, accuracy by class, top-5 where there are more than five classes; confusion matrix of videos."
    )
    left_out = (
        "Videos without a label, and of classes that the network does not know (classes are matched by name); they are counted. "
        "Another split than the run's is refused: its test videos were trained on. There is no random network."
    )
    source = "Thesis 2.3.2, 3.4.2; Xu et al., CVPR 2019, 4.2."
    options = (
        Option("all_clips", bool, "Every clip that does not overlap the one before, in place of 10.", default=False),
    )
    split_help = "Official split.  [default: the one that the run was trained on]"
    several_runs = True
    of_finetuned = True
    columns = ("level", "metric")

    def choose(self, all_clips: bool = False) -> Shards:
        """all_clips: every clip that does not overlap the one before, in place of 10 spread ones."""
        from trainer.evaluate.predictions import check_runs, score

        check_runs(self.bench)
        self.all_clips = all_clips
        self.scored = [score(self.bench, saved, "adjacent" if all_clips else "spread") for saved in self.bench.runs]
        several = len(self.scored) > 1
        for one in self.scored:
            before = f"split {one.source.split}: " if several else ""
            self.notes += [before + note for note in one.notes]
        self.splits = [one.source.split for one in self.scored] if several else []
        return self.scored[0].source

    def rows(self) -> list[dict]:
        """Accuracies of all runs, by level, and by class."""
        import numpy as np

        from trainer.evaluate.folds import covers
        from trainer.evaluate.tally import Tally

        classes = self.scored[0].classes
        self.tally = Tally.of(self.shards, classes)
        tested = np.sum([np.bincount(one.videos, minlength=len(self.shards.videos)) for one in self.scored], axis=0)
        self.pooled = not self.splits or covers(self.shards, tested)
        rows = []
        for level in ("clip", "video"):
            for metric, k in {"accuracy": 1, "top-5": 5}.items():
                if len(classes) > k:
                    hits, owners = zip(*(one.hits(level, k) for one in self.scored), strict=True)
                    named = [one.level(level)[0].argmax(1) for one in self.scored] if k == 1 else None
                    scores = self.tally.accuracies(hits, owners, self.splits, self.pooled, named)
                    rows += [{"level": level, "metric": metric, **score} for score in scores]
        self.targets = np.concatenate([one.targets for one in self.scored])
        for level in ("clip", "video"):
            found = [(*one.hits(level), one.targets[one.level(level)[1]]) for one in self.scored]
            hits, owners, targets = map(np.concatenate, zip(*found, strict=True))
            for number in np.unique(targets):
                of_class = targets == number
                row = {"level": level, "metric": "class accuracy", "class": classes[number]}
                row["videos"] = int((self.targets == number).sum())
                rows.append({**row, **self.tally.accuracy(hits[of_class], owners[of_class])})
        counts = np.zeros((len(classes),) * 2, np.int64)
        predicted = np.concatenate([one.level("video")[0].argmax(1) for one in self.scored])
        np.add.at(counts, (self.targets, predicted), 1)
        self.extra["confusion"] = {"classes": classes, "counts": counts.tolist()}
        return rows

    def conditions(self) -> dict[str, Any]:
        import numpy as np

        from trainer.evaluate.numbers import distribution

        mode, split = self.scored[0].mode, self.shards.split
        views = "all clips that do not overlap," if self.all_clips else "10 clips"
        if self.splits:
            how = "each video once" if self.pooled else "mean"
            mode, split = f"{how} over splits {', '.join(map(str, self.splits))}, {mode}", None
        return {
            "split": split,
            "mode": mode,
            "views": f"{views} of {self.shards.clip_length} frames, mean softmax",
            "items": f"{len(self.targets)} videos",
            **distribution(self.targets),
            "intervals": self.tally.drawn(np.concatenate([one.videos for one in self.scored])),
            "checkpoints": [str(one.saved.file) for one in self.scored],
        }

    def file_name(self, name: str) -> str:
        return f"{name}-all_clips" if self.all_clips else name

    @classmethod
    def about(cls, result: dict) -> list[str]:
        initial = result["protocol"]["initial"]
        if not initial:
            return ["started from random weights"]
        return [f"started from {initial['settings']['method']} on {initial['dataset']}, {initial['file']}"]

    @classmethod
    def table(cls, result: dict) -> list[str]:
        """Accuracies, and classes from best to worst with what they are taken for."""
        whole = [row for row in result["rows"] if row["metric"] != "class accuracy"]
        classes = [
            {"class": row["class"], "videos": row["videos"], "taken for": mistakes(result["confusion"], row["class"])}
            | {
                "metric": row["metric"],
                "level": row["level"],
                "value": row["value"],
            }  # of few videos each: without the interval
            for row in result["rows"]
            if row["metric"] == "class accuracy"
        ]
        of_videos = {row["class"]: row["value"] for row in classes if row["level"] == "video"}
        classes.sort(key=lambda row: -of_videos[row["class"]])
        return [
            *tables.table(whole, ("split",) if "split" in whole[0] else (), cls.columns),
            "",
            *tables.table(classes, ("class", "videos", "taken for"), ("metric", "level")),
        ]

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        return f"vssl finetune --checkpoint {run} --shards {shards}; vssl eval {name} --shards {shards}"


def mistakes(confusion: dict, name: str) -> str:
    """The three classes that videos of a class are most often taken for, with their number."""
    true = confusion["classes"].index(name)
    counts = confusion["counts"][true]
    others = sorted((i for i, count in enumerate(counts) if count and i != true), key=lambda i: -counts[i])
    return ", ".join(f"{confusion['classes'][i]} {counts[i]}" for i in others[:3])
