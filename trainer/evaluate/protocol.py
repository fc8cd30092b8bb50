"""What a protocol declares, and how each is run.

A protocol is its question, its items, its classifier and its table: a class in a file of its own, named in
trainer.evaluate.PROTOCOLS. Its command with options and help, its place in `vssl eval all`, its table, its part of the
pages and its block in docs/evaluation.md follow from what the class declares. Modules of protocols import NumPy and torch inside
of functions, so that `vssl eval --help` lists them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.errors import TrainerError
from trainer.evaluate import tables

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from trainer.data import Shards
    from trainer.evaluate.bench import Bench
    from trainer.evaluate.folds import Plan
    from trainer.evaluate.tally import Tally

SPLIT = "Official split.  [default: the one that the run was trained on, else the first]"


@dataclass(frozen=True)
class Option:
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


class ProtocolError(TrainerError):
    """A protocol cannot be run on what it was given; `advice`: what on the command line helps."""

    def __init__(self, message: str, advice: str):
        super().__init__(message)
        self.advice = advice


class Protocol:
    """One measurement of a run on shards; the docstring of a protocol's class is the help of its command.

    title: its name for a reader; question, items, classifier, left_out, source: what docs/evaluation.md says of it
    options: its own; split_help, several_runs: of the common ones
    index, columns: keys of the rows that make lines and columns of its table
    of_finetuned: it measures what a run was finetuned to do; the page of the run that it started from shows it, too
    published: metrics of the numbers that papers report (trainer/pages/published.yaml)
    about_sheets: a sentence above the pictures that it draws, where it does; scale: what the ends of their colours mean
    needs_boundaries: `choose` is given a function `boundaries`, which computes the motion boundaries of a clip

    bench: the run and the shards; shards: the data set that is measured on; notes: for the reader, in the order in which they
    come up; extra: what a result holds beside numbers ("neighbours", "confusion", "sheets"); tally: of the predictions behind
    its accuracies, where there are any
    """

    title: ClassVar[str]
    question: ClassVar[str]
    items: ClassVar[str]
    classifier: ClassVar[str]
    left_out: ClassVar[str]
    source: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    split_help: ClassVar[str] = SPLIT
    several_runs: ClassVar[bool] = False
    index: ClassVar[tuple[str, ...]] = ("network", "stage", "pooling")
    columns: ClassVar[tuple[str, ...]] = ("metric",)
    of_finetuned: ClassVar[bool] = False
    published: ClassVar[tuple[str, ...]] = ("accuracy",)
    about_sheets: ClassVar[str] = ""
    scale: ClassVar[tuple[str, str]] = ("", "")
    needs_boundaries: ClassVar[bool] = False

    def __init__(self, bench: Bench, **options: Any):
        self.bench = bench
        self.notes: list[str] = []
        self.extra: dict[str, Any] = {}
        self.tally: Tally | None = None
        self.shards = self.choose(**options)

    def choose(self, **options: Any) -> Shards:
        """Choose the items by the protocol's options; the data set that is measured on. Raises VsslError where it cannot be."""
        return self.bench.source()

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        """The numbers of one network, "pretrained" or "random"."""
        raise NotImplementedError

    def rows_beside(self, rows: list[dict]) -> Iterable[dict]:
        """Numbers beside those of the networks, such as chance; rows: theirs."""
        return ()

    def conditions(self) -> dict[str, Any]:
        """How it was measured, as far as the protocol decides: "mode", "views", "items", "classes", ..."""
        raise NotImplementedError

    def tested(self) -> np.ndarray | None:
        """The tested videos, int64 rows of the data set; None where it does not matter which the network was trained on."""
        return None

    def file_name(self, name: str) -> str:
        """Name of the result's file, without the data set and the split."""
        return name

    def measure(self) -> dict:
        """The result: "protocol" (how it was measured), "rows", "notes" and what of `extra` there is.

        A row is one number: what it belongs to ("network", "stage", ...), "metric", "value" in per cent, and "low", "high", the
        ends of its 95 % interval by video, where it is an accuracy.
        """
        rows = self.rows()
        told = self.bench.describe(self.shards, **self.conditions())
        notes = [*self.notes, *self.remarks(), *self.seen()]
        return {"protocol": told, "rows": rows, "notes": list(dict.fromkeys(notes)), **self.extra}

    def rows(self) -> list[dict]:
        """The numbers of all networks, and those beside them."""
        networks = self.bench.networks().items()
        rows = [{"network": name, **row} for name, backbone in networks for row in self.rows_of(name, backbone)]
        return rows + [*self.rows_beside(rows)]

    def remarks(self) -> list[str]:
        """Notes that stand only when everything is measured."""
        return []

    def seen(self) -> list[str]:
        """Notes on tested videos that the network was trained on."""
        from trainer.evaluate.folds import seen

        tested = self.tested()
        return [] if tested is None else seen(self.bench.saved, self.shards, tested)

    @classmethod
    def about(cls, result: dict) -> list[str]:
        """Lines that say more of how a result was measured."""
        return []

    @classmethod
    def table(cls, result: dict) -> list[str]:
        """Lines of a result's table for the screen."""
        return tables.table(result["rows"], cls.index, cls.columns)

    @classmethod
    def format_table(cls, result: dict) -> str:
        """A result for the screen: how it was measured, the table, the notes."""
        header = [*tables.header(result, cls.title[:1].lower() + cls.title[1:]), *cls.about(result)]
        return "\n".join([*header, "", *cls.table(result), *(f"note: {note}" for note in result["notes"])])

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        """The command line that measures a run; run, shards: quoted for the shell."""
        return f"vssl eval {name} --checkpoint {run} --shards {shards}"


class FoldProtocol(Protocol):
    """A classifier on frozen features that learns from some videos and is tested on others, see folds.plan.

    levels: of its items, "clip", "video"; steps: units of work of a fold, which `scores` tells `step` of
    """

    levels: ClassVar[tuple[str, ...]] = ("video",)
    steps: ClassVar[int] = 1
    split_help = (
        "Official split, or all: each of them in turn.  [default: all where together they test each video once, else as the run, "
        "else the first]"
    )
    plan: Plan

    def choose(self) -> Shards:
        from trainer.evaluate.folds import plan

        self.plan = plan(self.bench)
        self.tally = self.plan.tally
        self.notes += self.plan.notes
        return self.plan.source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        from trainer.evaluate.progress import Progress

        extracted = self.plan.features(self.bench, network)
        keys = [(key, level) for key in extracted[0].found.arrays for level in self.levels]
        with Progress(f"{self.title}, {network}", len(keys) * len(self.plan.parts) * self.steps, "step") as self.step:
            for key, level in keys:
                items = [part.items(key, level) for part in extracted]
                for score in self.scores(items, level):
                    yield {"stage": key[0], "pooling": key[1], "level": level, **score}

    def scores(self, items: list[tuple[np.ndarray, np.ndarray]], level: str) -> Iterable[dict]:
        """The numbers of one kind of features, "metric" and what Plan.scores gives; items: see folds.of_videos."""
        raise NotImplementedError

    def conditions(self) -> dict[str, Any]:
        return self.plan.conditions()

    def tested(self) -> np.ndarray:
        return self.plan.tested

    @classmethod
    def table(cls, result: dict) -> list[str]:
        return tables.table(tables.overall(result["rows"]), cls.index, cls.columns)
