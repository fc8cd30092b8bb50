"""What a protocol declares, and how each is run.

A protocol is its question, its items, its classifier and its table: a class in a file of its own, named in
trainer.evaluate.PROTOCOLS. Its command with options and help, its place in `vssl eval all`, its table, its part of the pages,
its block in docs/evaluation.md and its place in studies follow from what the class declares. Modules of protocols import
NumPy, torch and what needs them from trainer.evaluate.protocols, which loads them when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from trainer.evaluate.protocols import data, evaluator, features, inputs, metrics, np, progress, results, splits

SPLIT = "Official split.  [default: the one that the run was trained on, else the first]"
IN_TURN = (
    "Official split, or all: each of them in turn.  [default: all if together they test each video once, else as the run, "
    "else the first]"
)


@dataclass(frozen=True)
class ProtocolOption:
    """An option that a protocol has beside the common ones: an argument of its `choose`, --NAME on the command line.

    kind: type of the value; default: without the option; least: the smallest number that is allowed; several: may be given
    repeatedly, under the name `argument` a tuple; shared: `vssl eval all` has the option, too
    """

    name: str
    kind: type
    help: str
    default: Any = None
    least: int | None = None
    argument: str | None = None
    shared: bool = False

    @property
    def several(self) -> bool:
        return self.argument is not None


class Protocol:
    """One measurement of a run on shards; the docstring of a protocol's class is the help of its command.

    title: its name for a reader; question, items, classifier, left_out, source: what docs/evaluation.md says of it
    options: those that it has beside the common ones; split_help, several_runs: of the common ones
    index, columns: keys of the rows that make lines and columns of its table
    of_finetuned: it measures what a run was finetuned to do; the page of the run that it started from shows it, too
    published: metrics of the numbers that papers report (trainer/pages/published.yaml)
    about_sheets: a sentence above the pictures that it draws, if it does; scale: what the ends of their colours mean
    of_features: it scores videos on frozen features, so that studies measure by it, too; labelled: by classes, which it learns
    from other videos; neighbours: how many of these a study takes by default, 0 if it has no such option
    needs: functions that `choose` is given, of what trainer cannot compute: "boundaries" of a clip, "flow" of two luma images

    evaluator: the run and the shards; shards: the data set that is measured on; notes: for the reader, in the order in which
    they come up; extra: what a result holds beside numbers ("neighbours", "confusion", "sheets"); scores: of the tested items
    behind its accuracies, if there are any; validated: accuracy, in per cent, of what was chosen last by cross-validation of a
    training part, None if nothing is chosen so
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
    neighbours: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, evaluator: evaluator.Evaluator, **options: Any):
        self.evaluator = evaluator
        self.notes: list[str] = []
        self.extra: dict[str, Any] = {}
        self.scores: metrics.ItemScores | None = None
        self.validated: float | None = None
        self.shards = self.choose(**options)

    def choose(self, *args: Any, **options: Any) -> data.Shards:
        """Choose the items by the protocol's options; the data set that is measured on. Raises VsslError if there are none."""
        return self.evaluator.source()

    def rows(self) -> Iterator[dict]:
        """The numbers of all networks, and those beside them, such as chance, one after the other as they are measured.

        A row is one number: what it belongs to ("network", "stage", ...), "metric", "value" in per cent, and, if it is an
        accuracy, what ItemScores.accuracy gives: the ends of its 95 % interval, "low" and "high", and the answers behind it.
        """
        raise NotImplementedError

    def of_networks(self, measure: Callable[[str], Iterable[dict]]) -> Iterator[dict]:
        """The rows that `measure` gives for each network, "pretrained" and "random"."""
        for network in self.evaluator.network_names:
            yield from ({"network": network, **row} for row in measure(network))

    @property
    def span(self) -> tuple[int, int]:
        """Frames of a clip that the network expects, and from one to the next."""
        expected = inputs.of_run(self.evaluator.saved.meta)
        return expected.frames or self.shards.clip_length, expected.stride

    @property
    def clip(self) -> str:
        """The clips whose features are measured, in words."""
        length, stride = self.span
        return f"{length} frames" + (f", {stride} apart," if stride > 1 else "")

    @property
    def overlap(self) -> int:
        """Frames of the video in which two such clips that follow one another overlap."""
        length, stride = self.span
        return (stride * (length - 1) + 1) // 2

    def conditions(self) -> dict[str, Any]:
        """How it was measured, as far as the protocol decides: "mode", "views", "items", "classes", ..."""
        raise NotImplementedError

    def tested(self) -> np.ndarray | None:
        """The tested videos, int64 rows of the data set; None if it does not matter which the network was trained on."""
        return None

    def file_name(self, name: str) -> str:
        """Name of the result's file, without the data set and the split."""
        return name

    def result(self) -> dict:
        """What is measured: "protocol" (how), "rows", "notes" and what of `extra` there is. `scores` then holds the answers
        behind the rows."""
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
        """Notes that are known only after everything is measured."""
        return []

    @classmethod
    def about(cls, result: dict) -> list[str]:
        """Lines that say more of how a result was measured."""
        return []

    @classmethod
    def table(cls, result: dict) -> list[str]:
        """Lines of a result's table for the screen."""
        return results.table(results.overall(result["rows"]), cls.index, cls.columns)

    @classmethod
    def format_table(cls, result: dict) -> str:
        """A result for the screen: how it was measured, the table, the notes."""
        header = [*results.header(result, cls.title[:1].lower() + cls.title[1:]), *cls.about(result)]
        return "\n".join([*header, "", *cls.table(result), *(f"note: {note}" for note in result["notes"])])

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        """The command line that measures a run; run, shards: quoted for the shell."""
        return f"vssl eval {name} --checkpoint {run} --shards {shards}"


class FeatureProtocol(Protocol):
    """A classifier on frozen features that learns from some videos and is tested on others.

    It implements `predict`, whose metrics `vssl eval` measures in all folds for each stage and pooling and of which studies
    take the first.

    levels: of its items, "clip", "video"; steps: units of work of a fold: `predict` calls `bar.step` after each but the last
    """

    levels: ClassVar[tuple[str, ...]] = ("video",)
    steps: ClassVar[int] = 1
    split_help = IN_TURN
    folds: splits.Folds
    scores: metrics.ItemScores

    def choose(self) -> data.Shards:
        folds = self.evaluator.folds()
        self.notes += folds.notes
        names = folds.source.split_names
        if self.evaluator.split is None and len(names) > 1 and not folds.splits:
            self.notes.append(f"split {folds.source.split} alone, one of {len(names)}; --split all uses each in turn")
        self.folds = splits.learnable(folds)
        self.notes += self.folds.notes[len(folds.notes) :]
        self.scores = metrics.ItemScores.of(folds.source)
        return folds.source

    def predict(self, train: features.Vectors, test: features.Vectors, level: str) -> dict[str, np.ndarray]:
        """The class that is predicted for each test item, int64 [n], by the name of the metric; classes are those of
        `shards.targets`, which says what is right."""
        raise NotImplementedError

    def rows(self) -> Iterator[dict]:
        return self.of_networks(self._of_network)

    def _of_network(self, network: str) -> Iterator[dict]:
        extracted = self.evaluator.features_of_parts(network, self.shards, self.folds.parts)
        keys, levels = self.evaluator.kinds(extracted[0][1]), self.evaluator.levels(self.levels)
        kinds = [(key, level) for key in keys for level in levels]
        steps = len(kinds) * len(self.folds.parts) * self.steps
        with progress.ProgressBar(f"{self.title}, {network}", "step", steps) as self.bar:
            for key, level in kinds:
                items = [found.vectors(key, level, rows, self.evaluator.time_parts) for rows, found in extracted]
                for row in self.accuracies(items, level):
                    yield {"stage": key[0], "pooling": key[1], "level": level, **row}

    def accuracies(self, items: Sequence[features.Vectors], level: str) -> Iterator[dict]:
        """The rows of one kind of features; items: of all videos that take part, or of tested and other ones apart."""
        parts = [tuple(features.select(items, rows) for rows in fold) for fold in self.folds.parts]
        predicted = []
        for test, train in parts:
            predicted.append(self.predict(train, test, level))
            self.bar.step()
        owners, targets = [test.video for test, _ in parts], self.shards.targets
        for (tested, _), owner in zip(self.folds.parts, owners, strict=True):
            if not np.array_equal(np.unique(owner), np.sort(tested)):
                raise AssertionError(f"{len(tested)} videos to score, {len(np.unique(owner))} scored")
        for metric in predicted[0]:
            classes = [of_fold[metric] for of_fold in predicted]
            right = [of_fold == targets[owner] for of_fold, owner in zip(classes, owners, strict=True)]
            for row in self.scores.accuracies(right, owners, self.folds.splits, self.folds.pooled, classes):
                yield {"metric": metric, **row, "dimensions": items[0].x.shape[1]}

    def conditions(self) -> dict[str, Any]:
        return {
            "split": None if self.folds.splits else self.shards.split,
            "mode": self.folds.mode,
            "items": f"{len(self.folds.tested)} tested videos",
            **metrics.distribution(self.shards.targets[self.folds.tested]),
            "intervals": self.scores.describe_units(self.folds.tested),
        }

    def tested(self) -> np.ndarray:
        return self.folds.tested
