"""What a protocol declares, and how protocols are run.

A protocol is a class in a separate file, listed in trainer.evaluate.PROTOCOLS, that declares its question, items, classifier
and table. Its command with options and help, its place in `vssl eval all`, its table, its part of the pages, its block in
docs/evaluation.md and its place in studies follow from these declarations. Modules of protocols import NumPy, torch and
modules that need them from trainer.evaluate.protocols, which loads them when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from trainer.errors import SettingError
from trainer.evaluate.protocols import data, evaluator, features, inputs, metrics, np, progress, results, splits

SPLIT = "Official split.  [default: the one that the run was trained on, else the first]"
IN_TURN = (
    "Official split, or all for each in turn.  [default: all if together they test each video once, else the one that the run "
    "was trained on, else the first]"
)


@dataclass(frozen=True)
class ProtocolOption:
    """An option of a protocol in addition to the common ones: an argument of its `choose`, --NAME on the command line.

    kind: type of the value; default: value without the option; least: smallest allowed number; choices: allowed strings;
    several: the option may be repeated, its values are passed as a tuple under the name `argument`; shared: `vssl eval all` also
    has the option
    """

    name: str
    kind: type
    help: str
    default: Any = None
    least: int | None = None
    choices: tuple[str, ...] = ()
    argument: str | None = None
    shared: bool = False

    @property
    def several(self) -> bool:
        return self.argument is not None


TIMES = ("shuffled", "reversed", "still")
TIME = ProtocolOption(
    "time",
    str,
    "Also test on clips whose frames are shuffled, reversed or one frame repeated, and give the drop; repeatable.",
    choices=TIMES,
    argument="times",
)
SEED = ProtocolOption("seed", int, "Random seed for shuffled frames and drawn labels.", default=0, least=0)


class Protocol:
    """One measurement of a run on shards; the docstring of a protocol's class is the help of its command.

    title: its name for a reader; question, items, classifier, left_out, source: its description in docs/evaluation.md
    options: its options in addition to the common ones; split_help, several_runs: of the common options
    index, columns: keys of the rows that form the lines and columns of its table
    of_finetuned: whether it measures the task of a finetuned run; the page of the run that it started from then shows it, too
    published: metrics that papers report (trainer/pages/published.yaml)
    about_sheets: a sentence above its pictures, "" if it draws none; scale: the meaning of the ends of their colours
    of_features: whether it scores videos on frozen features, so that studies can use it; labelled: whether it learns classes
    from other videos; poolings: the accepted ones, the default of a study first; neighbours: a study's default number of
    neighbours, 0 if it has no such option
    needs: functions passed to `choose` that trainer cannot provide: "boundaries" of a clip, "flow" of two luma images

    evaluator: the run and the shards; shards: the data set to measure on; notes: for the reader, in order of occurrence; extra:
    the content of a result in addition to its numbers ("neighbours", "confusion", "sheets"); scores: the tested items behind its
    accuracies, if any; validated: accuracy, in per cent, of the last choice by cross-validation of a training part, None if
    nothing is chosen; times: see `disturb`
    """

    title: ClassVar[str]
    question: ClassVar[str]
    items: ClassVar[str]
    classifier: ClassVar[str]
    left_out: ClassVar[str]
    source: ClassVar[str]
    options: ClassVar[tuple[ProtocolOption, ...]] = ()
    split_help: ClassVar[str] = SPLIT
    several_runs: ClassVar[bool] = False
    index: ClassVar[tuple[str, ...]] = ("network", "stage", "pooling")
    columns: ClassVar[tuple[str, ...]] = ("metric",)
    of_finetuned: ClassVar[bool] = False
    published: ClassVar[tuple[str, ...]] = ("accuracy",)
    about_sheets: ClassVar[str] = ""
    scale: ClassVar[tuple[str, str]] = ("", "")
    of_features: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    poolings: ClassVar[tuple[str, ...]] = ("max", "mean")
    neighbours: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()
    times: dict[str, data.Time | None]

    def __init__(self, evaluator: evaluator.Evaluator, **options: Any):
        self.evaluator = evaluator
        self.notes: list[str] = []
        self.extra: dict[str, Any] = {}
        self.scores: metrics.ItemScores | None = None
        self.validated: float | None = None
        self.shards = self.choose(**options)

    def choose(self, *args: Any, **options: Any) -> data.Shards:
        """Choose the items by the protocol's options; the data set to measure on. Raises VsslError if there are no items."""
        return self.evaluator.source()

    def rows(self) -> Iterator[dict]:
        """Yield the numbers of all networks, and reference values such as chance, as they are measured.

        A row is one number: what it belongs to ("network", "stage", ...), "metric", "value" in per cent, and, for an accuracy,
        the output of ItemScores.accuracy: the ends of its 95 % interval, "low" and "high", and the answers behind it.
        """
        raise NotImplementedError

    def of_networks(self, measure: Callable[[str], Iterable[dict]]) -> Iterator[dict]:
        """The rows that `measure` gives for each network, "pretrained" and "random"."""
        for network in self.evaluator.network_names:
            yield from ({"network": network, **row} for row in measure(network))

    @property
    def span(self) -> tuple[int, int]:
        """The number of frames of a clip that the network expects, and the step from one frame to the next."""
        expected = inputs.of_run(self.evaluator.saved.meta)
        return expected.frames or self.shards.clip_length, expected.stride

    @property
    def clip(self) -> str:
        """A description of the clips whose features are measured."""
        length, stride = self.span
        return f"{length} frames" + (f", {stride} apart," if stride > 1 else "")

    @property
    def overlap(self) -> int:
        """The number of video frames in which two successive sliding clips overlap."""
        length, stride = self.span
        return (stride * (length - 1) + 1) // 2

    def disturb(self, times: Sequence[str], seed: int) -> None:
        """Set `times`: first metrics.NORMAL with None, then what is done to the frames of tested clips, by its name. Raises
        SettingError for a name that is not in TIMES."""
        for name in times:
            if name not in TIMES:
                raise SettingError(f"time is {name!r}, expected one of: {', '.join(TIMES)}")
        self.times = {metrics.NORMAL: None} | {name: data.Time(name, seed) for name in times}

    @property
    def disturbances(self) -> dict[str, str]:
        """A condition that says what is done to the frames of tested clips; empty if nothing is."""
        if len(self.times) == 1:
            return {}
        others = "; ".join(map(str, filter(None, self.times.values())))
        return {"time": f"learnt from clips as they are, tested on them, and with their frames {others}"}

    def conditions(self) -> dict[str, Any]:
        """How the protocol measures: "mode", "views", "items", "classes", ..."""
        raise NotImplementedError

    def tested(self) -> np.ndarray | None:
        """The tested videos, int64 rows of the data set; None if it does not matter whether the network was trained on them."""
        return None

    def file_name(self, name: str) -> str:
        """The name of the result's file, without the data set and the split."""
        return name

    def result(self) -> dict:
        """The result: "protocol" (how it was measured), "rows", "notes" and the entries of `extra`. Afterwards `scores` holds
        the answers behind the rows."""
        rows = [*self.rows()]
        answers = {number: row.pop(metrics.ANSWERS) for number, row in enumerate(rows) if metrics.ANSWERS in row}
        if self.scores is not None:
            self.scores = replace(self.scores, answers=answers)
        about = self.evaluator.describe(self.shards, **self.conditions())
        tested = self.tested()
        seen = [] if tested is None else splits.seen(self.evaluator.saved, self.shards, tested)
        notes = [*self.notes, *self.remarks(), *seen, *self._of_other_size()]
        return {"protocol": about, "rows": rows, "notes": list(dict.fromkeys(notes)), **self.extra}

    def _of_other_size(self) -> list[str]:
        """A note if imported weights were made for crops of another size than those of the shards."""
        meta, crop = self.evaluator.saved.meta, self.shards.config["crop"]
        if "imported" not in meta or (own := meta["config"]["crop"]) == crop:
            return []
        return [f"the weights were made for crops of {own} pixels, those of the shards have {crop}"]

    def remarks(self) -> list[str]:
        """Notes that are known only after all measurements."""
        return []

    @classmethod
    def about(cls, result: dict) -> list[str]:
        """Additional lines on how a result was measured."""
        return []

    @classmethod
    def table(cls, result: dict) -> list[str]:
        """The lines of a result's table for the screen."""
        rows = results.overall(result["rows"])
        return results.table(rows, (*cls.index, *results.TIME[: any("time" in row for row in rows)]), cls.columns)

    @classmethod
    def format_table(cls, result: dict) -> str:
        """A result as text for the screen: how it was measured, the table, the notes."""
        header = [*results.header(result, cls.title[:1].lower() + cls.title[1:]), *cls.about(result)]
        return "\n".join([*header, "", *cls.table(result), *(f"note: {note}" for note in result["notes"])])

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        """The command line that measures a run; run, shards: quoted for the shell."""
        return f"vssl eval {name} --checkpoint {run} --shards {shards}"


ALL_CLASSES = "all classes"


class FeatureProtocol(Protocol):
    """A classifier on frozen features that learns from some videos and is tested on others.

    It implements `predict`. `vssl eval` measures the metrics of `predict` in all folds for each stage and pooling; studies use
    the first metric.

    levels: of its items, "clip", "video"; steps: units of work in a fold: `predict` calls `bar.step` after each but the last
    views: the clips of a video (see features.features)
    tasks: the indices of the classes to distinguish, by name: ALL_CLASSES, or pairs of opposite classes
    """

    options: ClassVar[tuple[ProtocolOption, ...]] = (
        TIME,
        SEED,
        ProtocolOption("opposites", str, "Distinguish opposite actions, those in the manifest of this name or path."),
        ProtocolOption("labels", str, "Number of labels to learn from, '1000 videos', '5 per class'.  [default: all]"),
    )
    levels: ClassVar[tuple[str, ...]] = ("video",)
    steps: ClassVar[int] = 1
    views: str | int = "spread"
    split_help = IN_TURN
    folds: splits.Folds
    scores: metrics.ItemScores

    def choose(
        self,
        times: Sequence[str] = (),
        seed: int = 0,
        opposites: Sequence[Sequence[str]] | None = None,
        labels: int | str | None = None,
    ) -> data.Shards:
        """times, seed: see `disturb`; opposites: pairs of classes to distinguish; labels: see splits.number_of_labels."""
        self.disturb(times, seed)
        self.few = None if labels is None else splits.number_of_labels(labels)
        folds = self.evaluator.folds()
        self.notes += folds.notes
        names = folds.source.split_names
        if self.evaluator.split is None and len(names) > 1 and not folds.splits:
            self.notes.append(f"only split {folds.source.split} of {len(names)}; --split all uses each in turn")
        self.folds = splits.learnable(folds, self.few, seed)
        self.scores = metrics.ItemScores.of(folds.source)
        self.tasks = {ALL_CLASSES: np.arange(len(folds.source.classes))}
        if opposites is None:
            self.notes += splits.unfair(self.folds)
        else:
            self.tasks, notes = splits.opposites(self.folds, opposites)
            self.notes += notes
            self.folds = splits.of_classes(self.folds, np.concatenate([*self.tasks.values()]))
        return folds.source

    @property
    def paired(self) -> bool:
        """Whether pairs of classes are distinguished instead of all classes."""
        return ALL_CLASSES not in self.tasks

    def predict(self, train: features.Vectors, test: features.Vectors, level: str) -> dict[str, np.ndarray]:
        """The class predicted for each test item, int64 [n] as in `shards.targets`, by the name of the metric."""
        raise NotImplementedError

    def rows(self) -> Iterator[dict]:
        measured: dict[str, None] = {}
        for row in self.of_networks(self._of_network):
            if "pair" not in row and row.get("time", metrics.NORMAL) == metrics.NORMAL:
                measured[row["metric"]] = None
            yield row
        if self.paired:
            yield from ({"network": "chance", "metric": metric, "value": 50.0} for metric in measured)

    def _of_network(self, network: str) -> Iterator[dict]:
        extracted = self.evaluator.features_of_parts(network, self.shards, self.folds.parts, self.views, **self.made)
        tested = np.unique(self.folds.tested)
        disturbed = [
            self.evaluator.features(network, self.shards, tested, self.views, time=time, **self.made)
            for time in self.times.values()
            if time is not None
        ]
        keys = self.evaluator.kinds(extracted[0][1])
        levels = self.evaluator.levels(("video",) if disturbed else self.levels)
        kinds = [(key, level) for key in keys for level in levels]
        steps = len(kinds) * len(self.folds.parts) * len(self.tasks) * self.steps
        with progress.ProgressBar(f"{self.title}, {network}", "step", steps) as self.bar:
            for key, level in kinds:
                items, others = (
                    [self.items_of(found, key, level, rows) for rows, found in of]
                    for of in (extracted, [(tested, found) for found in disturbed])
                )
                for row in self.accuracies(items, others, level):
                    yield {"stage": key[0], "pooling": key[1], "level": level, **row}

    @property
    def made(self) -> dict[str, Any]:
        """Keyword arguments for features.features: `made`, if it is not the default."""
        return {}

    def items_of(
        self, found: features.Features, key: tuple[str, str], level: str, videos: np.ndarray
    ) -> features.Vectors:
        """The items of one kind of features; videos: int64 rows of the videos of these features."""
        return found.vectors(key, level, videos, self.evaluator.time_parts)

    def accuracies(
        self, items: Sequence[features.Vectors], disturbed: Sequence[features.Vectors], level: str
    ) -> Iterator[dict]:
        """The rows of one kind of features. items: of all videos used, or of the tested and the other videos separately;
        disturbed: of the tested videos, in the order of `times`."""
        targets = self.shards.targets
        answered: list[dict[str, tuple]] = []  # for each fold, by task: the videos of the items, and predictions
        for number, (tested, learnt) in enumerate(self.folds.parts):
            answered.append({})
            self.split = self.folds.splits[number] if self.folds.splits else None
            for name, classes in self.tasks.items():
                of_task = (rows[np.isin(targets[rows], classes)] for rows in (tested, learnt))
                test, train = (features.select(items, rows) for rows in of_task)
                if len(test.x):
                    shown = [test, *(other.of_videos(test.video) for other in disturbed)]
                    if any(not np.array_equal(part.video, test.video) for part in shown):
                        raise AssertionError("disturbed clips are of other videos than the undisturbed ones")
                    found = self.predict(train, features.joined(shown), level)
                    answered[-1][name] = test.video, {m: np.split(c, len(shown)) for m, c in found.items()}
                self.bar.step(1 if len(test.x) else self.steps)
            scored = np.concatenate([owner for owner, _ in answered[-1].values()])
            if not np.array_equal(np.unique(scored), np.sort(tested)):
                raise AssertionError(f"{len(tested)} videos to score, {len(np.unique(scored))} scored")
        yield from ({**row, "dimensions": items[0].x.shape[-1]} for row in self._scored(answered))

    def _scored(self, answered: list[dict[str, tuple]]) -> Iterator[dict]:
        """The rows for all tasks together, then for each pair."""
        targets = self.shards.targets
        for metric in next(iter(answered[0].values()))[1]:
            for task in (None, *(self.tasks if self.paired else ())):
                folds = [[of_fold[name] for name in of_fold if task in (None, name)] for of_fold in answered]
                names = [name for name, of_fold in zip(self.folds.splits, folds, strict=False) if of_fold]
                folds = [of_fold for of_fold in folds if of_fold]
                owners = [np.concatenate([owner for owner, _ in of_fold]) for of_fold in folds]
                classes = {
                    time: [np.concatenate([found[metric][i] for _, found in of_fold]) for of_fold in folds]
                    for i, time in enumerate(self.times)
                }
                right = {
                    time: [of == targets[owner] for of, owner in zip(classes[time], owners, strict=True)]
                    for time in classes
                }
                what = {} if task is None else {"pair": task}
                rows = self.scores.rows(metric, right, owners, names, self.folds.pooled, classes)
                yield from ({**row, **what} for row in (rows if task is None else results.overall([*rows])))

    def conditions(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "split": None if self.folds.splits else self.shards.split,
            "mode": self.folds.mode,
            "items": f"{len(self.folds.tested)} tested videos",
            **metrics.distribution(self.shards.targets[self.folds.tested]),
            "intervals": self.scores.describe_units(self.folds.tested),
            **self.disturbances,
        }
        if self.paired:
            mode = f"{len(self.tasks)} pairs of opposite classes, {self.folds.mode}"
            about |= {"opposites": [*self.tasks], "mode": mode}
        return about | ({"labels": splits.words(self.few)} if self.few else {})

    def tested(self) -> np.ndarray:
        return self.folds.tested

    def file_name(self, name: str) -> str:
        parts = [name, "opposites" * self.paired, *[*self.times][1:], splits.words(self.few or "").replace(" ", "_")]
        return "-".join(filter(None, parts))

    @classmethod
    def table(cls, result: dict) -> list[str]:
        whole = [row for row in result["rows"] if "pair" not in row]
        lines = super().table({"rows": whole})
        if len(whole) < len(result["rows"]):
            of_pairs = [row for row in results.overall(result["rows"]) if "pair" in row]
            last = [row for row in of_pairs if all(row[key] == of_pairs[-1][key] for key in ("stage", "level"))]
            timed = results.TIME[: any("time" in row for row in last)]
            lines += ["", *results.table(last, ("pair", "network", "stage", "pooling", *timed), ("metric",))]
        return lines
