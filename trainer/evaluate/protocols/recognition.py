"""Action recognition: the classifier of a finetuned network on the test videos."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate.protocol import SEED, TIME, Protocol, ProtocolOption
from trainer.evaluate.protocols import (
    checkpoint,
    data,
    evaluator,
    features,
    metrics,
    np,
    progress,
    results,
    settings,
    splits,
    torch,
)


class Recognition(Protocol):
    """Test a network trained by `vssl finetune`."""

    title = "Recognition"
    question = "How many test videos does a finetuned network classify correctly?"
    items = (
        "10 spread clips per test video of the run's split, or all clips that do not overlap (`--all-clips`), at clip and "
        "video level. Without a test part, the videos held out by `--holdout` (whole groups) are tested, with a note that they "
        "also chose the checkpoint. For several runs, one per split, the mean is given: `--checkpoint A --checkpoint B "
        "--checkpoint C`."
    )
    classifier = (
        "The classifier of the run (`vssl finetune`, or `vssl train --method recognition`). The prediction for a video is the "
        "mean softmax of its clips. Accuracy, accuracy by class, top-5 for more than five classes, and the confusion matrix of "
        "videos."
    )
    left_out = (
        "Videos without a label, or of classes that the network does not know (classes are matched by name); a note counts them. "
        "A split other than the run's is an error, because its test videos were trained on. There is no random network."
    )
    source = "Thesis 2.3.2, 3.4.2; Xu et al., CVPR 2019, 4.2."
    options = (
        ProtocolOption("all_clips", bool, "Test all clips that do not overlap instead of 10.", default=False),
        TIME,
        SEED,
    )
    split_help = "Official split.  [default: the one that the run was trained on]"
    several_runs = True
    of_finetuned = True
    columns = ("level", "metric")
    scores: metrics.ItemScores

    def choose(self, all_clips: bool = False, times: Sequence[str] = (), seed: int = 0) -> data.Shards:
        """all_clips: test all clips that do not overlap instead of 10 spread ones; times, seed: see `disturb`."""
        self.disturb(times, seed)
        check_runs(self.evaluator)
        self.all_clips = all_clips
        views = "adjacent" if all_clips else "spread"
        self.of_times = {
            name: [predictions(self.evaluator, saved, views, time) for saved in self.evaluator.runs]
            for name, time in self.times.items()
        }
        self.predicted = self.of_times[metrics.NORMAL]
        several = len(self.predicted) > 1
        for one in self.predicted:
            before = f"split {one.source.split}: " if several else ""
            self.notes += [before + note for note in one.notes]
        self.splits = [one.source.split for one in self.predicted] if several else []
        source, self.classes = self.predicted[0].source, self.predicted[0].classes
        self.videos = np.concatenate([one.videos for one in self.predicted])
        self.targets = np.concatenate([one.targets for one in self.predicted])
        self.pooled = not self.splits or splits.covers(source, self.videos)
        self.scores = metrics.ItemScores.of(source, self.classes)
        return source

    def rows(self) -> Iterator[dict]:
        """The accuracies of all runs, by level and by class."""
        for level in ("clip", "video"):
            for metric, k in {"accuracy": 1, "top-5": 5}.items():
                if len(self.classes) > k:
                    of = self.of_times.items()
                    right = {time: [one.hits(level, k)[0] for one in each] for time, each in of}
                    classes = {time: [one.level(level)[0].argmax(1) for one in each] for time, each in of}
                    owners = [one.hits(level)[1] for one in self.predicted]
                    named = classes if k == 1 else None
                    rows = self.scores.rows(metric, right, owners, self.splits, self.pooled, named)
                    yield from ({"level": level, **row} for row in rows)
        for level in ("clip", "video"):
            found = [(*one.hits(level), one.targets[one.level(level)[1]]) for one in self.predicted]
            hits, owner, targets = map(np.concatenate, zip(*found, strict=True))
            for number in np.unique(targets):
                of_class = targets == number
                row = {"level": level, "metric": "class accuracy", "class": self.classes[number]}
                row["videos"] = int((self.targets == number).sum())
                yield {**row, **self.scores.accuracy(hits[of_class], owner[of_class])}
        counts = np.zeros((len(self.classes),) * 2, np.int64)
        predicted = np.concatenate([one.level("video")[0].argmax(1) for one in self.predicted])
        np.add.at(counts, (self.targets, predicted), 1)
        self.extra["confusion"] = {"classes": self.classes, "counts": counts.tolist()}

    def conditions(self) -> dict[str, Any]:
        mode, split = self.predicted[0].mode, self.shards.split
        views = "all clips that do not overlap," if self.all_clips else "10 clips"
        if self.splits:
            how = "each video once" if self.pooled else "mean"
            mode, split = f"{how} over splits {', '.join(map(str, self.splits))}, {mode}", None
        return {
            "split": split,
            "mode": mode,
            "views": f"{views} of {self.clip}, mean softmax",
            "items": f"{len(self.targets)} videos",
            **metrics.distribution(self.targets),
            "intervals": self.scores.describe_units(self.videos),
            "checkpoints": [str(one.saved.file) for one in self.predicted],
            **self.disturbances,
        }

    def file_name(self, name: str) -> str:
        return "-".join([name, *["all_clips"] * self.all_clips, *[*self.times][1:]])

    @classmethod
    def about(cls, result: dict) -> list[str]:
        initial = result["protocol"]["initial"]
        if not initial:
            return ["started from random weights"]
        if initial["settings"]["method"] == checkpoint.IMPORTED:
            return [f"started from imported weights, {initial['dataset']}, {initial['file']}"]
        return [f"started from {initial['settings']['method']} on {initial['dataset']}, {initial['file']}"]

    @classmethod
    def table(cls, result: dict) -> list[str]:
        """The accuracies, and the classes from best to worst with the classes that they are taken for."""
        whole = [row for row in result["rows"] if row["metric"] != "class accuracy"]
        classes = [
            {
                key: row[key] for key in ("class", "videos", "metric", "level", "value")
            }  # without the interval, since it is of few videos
            | {"taken for": mistakes(result["confusion"], row["class"])}
            for row in result["rows"]
            if row["metric"] == "class accuracy"
        ]
        of_videos = {row["class"]: row["value"] for row in classes if row["level"] == "video"}
        classes.sort(key=lambda row: -of_videos[row["class"]])
        return [
            *results.table(whole, tuple(key for key in ("split", "time") if key in whole[0]), cls.columns),
            "",
            *results.table(classes, ("class", "videos", "taken for"), ("metric", "level")),
        ]

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        return f"vssl finetune --checkpoint {run} --shards {shards}; vssl eval {name} --shards {shards}"


def mistakes(confusion: dict, name: str) -> str:
    """The three classes that videos of a class are most often taken for, with their numbers of videos."""
    true = confusion["classes"].index(name)
    counts = confusion["counts"][true]
    others = sorted((i for i, count in enumerate(counts) if count and i != true), key=lambda i: -counts[i])
    return ", ".join(f"{confusion['classes'][i]} {counts[i]}" for i in others[:3])


@dataclass(frozen=True)
class Predictions:
    """One run's predictions.

    classes: those of the network; videos: int64 [n], rows of source.videos; targets: int64 [n], indices into `classes`
    clips: float64 [clips, classes], softmax; owner: int64 [clips], indices into `videos`
    """

    saved: checkpoint.Checkpoint
    source: data.Shards
    classes: list[str]
    videos: np.ndarray
    targets: np.ndarray
    clips: np.ndarray
    owner: np.ndarray
    mode: str
    notes: list[str]

    def level(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The softmax of each item, float64 [items, classes], for a video the mean over its clips; and its index into videos."""
        if name == "clip":
            return self.clips, self.owner
        sums = np.add.reduceat(self.clips, np.flatnonzero(np.diff(self.owner, prepend=-1)))
        return sums / np.bincount(self.owner)[:, None], np.arange(len(self.videos))

    def hits(self, level: str, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Whether an item's class is among the k most probable (the first ones in a tie), bool [items], and the row of
        source.videos of each item."""
        probability, video = self.level(level)
        best = np.argsort(-probability, axis=1, kind="stable")[:, :k]
        return (best == self.targets[video][:, None]).any(1), self.videos[video]


def check_runs(evaluator: evaluator.Evaluator) -> None:
    """Raise TrainerError for a run without a classifier, and for runs whose results cannot be averaged."""
    for saved in evaluator.runs:
        if not checkpoint.with_labels(saved.meta["settings"]):
            method = saved.meta["settings"]["method"]
            network = (
                "imported weights have" if method == checkpoint.IMPORTED else f"a network trained with {method} has"
            )
            raise ProtocolError(
                f"{saved.file}: {network} no classifier; finetune it first",
                f"vssl finetune --checkpoint {shlex.quote(str(saved.run))}",
            )
    if len(evaluator.runs) > 1:
        _check_alike(evaluator)


def _check_alike(evaluator: evaluator.Evaluator) -> None:
    if evaluator.split is not None:
        raise TrainerError(
            f"split is {evaluator.split}, but each of several checkpoints is tested on the split of its run; leave --split out"
        )
    first = evaluator.saved
    for saved in evaluator.runs:
        if saved.meta["dataset"] != evaluator.dataset:
            raise TrainerError(
                f"{saved.file}: trained on {saved.meta['dataset']}, but {evaluator.folder} holds {evaluator.dataset}; average "
                "runs on splits of one data set"
            )
        if saved.meta["classes"] != first.meta["classes"]:
            raise TrainerError(f"{saved.file}: has other classes than {first.file}; average runs with the same classes")
        if (began := _began(saved)) != (other := _began(first)):
            raise TrainerError(
                f"{saved.file}: started from {began}, {first.file} from {other}; average runs that started alike"
            )
        for name, value in saved.meta["settings"].items():
            if name not in {"split", "seed", *settings.FREE} and value != (other := first.meta["settings"][name]):
                raise TrainerError(
                    f"{saved.file}: {name} is {value}, but {other} in {first.file}; average runs with the same settings"
                )
    trained = [saved.meta["split"] for saved in evaluator.runs]
    if len(set(trained)) < len(trained):
        raise TrainerError(
            f"the checkpoints are of splits {', '.join(map(str, trained))}, expected different ones; give one run per split"
        )


def _began(saved: checkpoint.Checkpoint) -> str:
    """A description of what a run started from."""
    initial = saved.meta["initial"]
    return f"{initial['settings']['method']} on {initial['dataset']}" if initial else "random weights"


def predictions(
    evaluator: evaluator.Evaluator,
    saved: checkpoint.Checkpoint,
    views: str = "spread",
    time: data.Time | None = None,
) -> Predictions:
    """The predictions of a run; views: a name of features.VIEWS; time: what is done to the frames of a clip.

    Raises TrainerError if the split is not that of the run, and if the network knows the class of no video."""
    from trainer.methods.recognition import trained_classifier

    source, mode, tested, notes = _tested(evaluator, saved)
    classes = saved.meta["classes"]
    index = {name: i for i, name in enumerate(classes)}
    targets = np.array([index.get(label, -1) for label in source.text("videos/label")])
    videos = tested[targets[tested] >= 0]
    if unknown := len(tested) - len(videos):
        notes.append(f"{progress.counted(unknown, 'video')} left out because the network does not know the label")
    if not len(videos):
        raise TrainerError(f"{source.dataset}: the network knows the class of none of the {unknown} test videos")
    options = saved.meta["settings"]["options"]["recognition"]
    head = trained_classifier(saved.weights, options, len(classes))
    if options.get("hidden"):
        clips, owner = _through_hidden_layers(evaluator, saved, head, source, videos, views, time)
    else:
        found = evaluator.features("pretrained", source, videos, views, saved, time=time)
        stage = [stage for stage, _ in found.arrays][-1]
        x = torch.from_numpy(np.array(found.arrays[stage, "mean"])).double()
        clips, owner = torch.softmax(head(x), 1).numpy(), found.owner
    if np.bincount(owner, minlength=len(videos)).min() == 0 or len(clips) != len(owner):
        raise AssertionError(f"{len(videos)} videos to score, {len(np.unique(owner))} scored")
    notes += splits.seen(saved, source, videos)
    return Predictions(saved, source, classes, videos, targets[videos], clips, owner, mode, notes)


def _through_hidden_layers(
    evaluator: evaluator.Evaluator,
    saved: checkpoint.Checkpoint,
    head: torch.nn.Module,
    source: data.Shards,
    videos: np.ndarray,
    views: str,
    time: data.Time | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The softmax float64 [clips, classes] of a classifier with hidden layers, whose input is not among the stored features, and
    each clip's index into videos. Raises TrainerError if the clips differ in size from those of the run."""
    for name in ("crop", "clip_length"):
        if source.config[name] != (of_run := saved.meta["config"][name]):
            raise TrainerError(
                f"{saved.file}: the hidden layers of its classifier need {name} {of_run}, but {source.folder} has "
                f"{source.config[name]}"
            )
    clips = data.VideoViews(source, source.videos[videos], features.VIEWS[views], time=time)
    found = np.empty((len(clips), len(saved.meta["classes"])))
    for index, stages in features.stage_outputs(evaluator.networks(saved)["pretrained"], clips, evaluator.compute):
        logits = head([*stages.values()][-1].double().cpu())
        if not logits.isfinite().all():
            raise TrainerError("the network gives values that are not finite: the weights are damaged")
        found[index] = torch.softmax(logits, 1).numpy()
    return found, clips.owner


def _tested(
    evaluator: evaluator.Evaluator, saved: checkpoint.Checkpoint
) -> tuple[data.Shards, str, np.ndarray, list[str]]:
    """The data set, how its videos are chosen, the chosen ones (int64 rows of labelled videos), and notes."""
    meta, source = saved.meta, evaluator.source(saved)
    same = source.dataset == meta["dataset"]
    if same and source.split != meta["split"]:
        raise ProtocolError(
            f"split is {evaluator.split}, but the run was trained on split {meta['split']} of {source.dataset}, whose training "
            "videos are test videos of other splits",
            f"leave --split out, or finetune on that split, vssl finetune --split {evaluator.split}",
        )
    folds = splits.of_split(source)
    tested, notes = folds.tested, folds.notes
    if folds.apart:
        return source, folds.mode.replace("against train part", "of the split"), tested, notes
    if not same:
        return source, "all labelled videos", tested, notes
    unseen = tested[~splits.trained_on(meta, source)[tested]]
    if not len(unseen):
        return source, "TRAINING videos, no others are left", tested, notes
    if meta["settings"]["holdout"]:
        notes = [*notes, "the videos held out of training also chose its checkpoint: the value is too high"]
    return source, "no test part: the labelled videos that were not trained on", unseen, notes
