"""The specification of a study: data sets, rows and measures, and their names. docs/studies.md describes it."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from trainer.evaluate import protocol_class
from trainer.evaluate.splits import words
from trainer.histograms import KINDS
from trainer.settings import Settings, resolve

RANDOM, SUPERVISED, WEIGHTS = "random weights", "supervised", "weights"
HISTOGRAMS = {f"{kind} histogram": kind for kind in KINDS}
FINETUNE, PRETEXT = "finetune", "pretext"  # measures in addition to the protocols on frozen features
ALL = "all"
LAST = "last"  # the last stage of each network, if their names differ
CHOSEN = "chosen"  # the best stage in a cross-validation of the training part, for each network and split
VIEWS = 10  # clips of each video for features


def unlabelled(protocol: str) -> bool:
    """Whether measures with this protocol need no classes."""
    return protocol == PRETEXT or protocol != FINETUNE and not protocol_class(protocol).labelled


@dataclass(frozen=True)
class Data:
    """A data set.

    shards: folder written by labelgen, or None if the study labels it; labelling: "dataset", "root" and "label" (options)
    split: names of official splits ("all": each); or test: share of the videos to test; or folds: number of folds
    pretraining: "train", once for each split on its training part, or "all", once on all videos
    targets: CSV tables of classes by name, {csv, video, column}; empty: the classes of the shards
    resample: unit of the bootstrap, "group" or "video"
    """

    name: str
    shards: Path | None
    labelling: dict | None
    targets: dict[str, dict] = field(default_factory=dict)
    split: str | list | None = None
    test: float | None = None
    folds: int | None = None
    pretraining: str = "train"
    resample: str = "video"

    @property
    def folder(self) -> str:
        """A folder name for the data set."""
        if re.fullmatch(r"[\w-]+", self.name):
            return self.name
        return f"{re.sub(r'[^a-zA-Z0-9]+', '-', self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Row:
    """One of the compared rows.

    kind: "method", RANDOM, SUPERVISED, one of HISTOGRAMS, or WEIGHTS for weights from a file without training; candidates: its
    settings, several if values are tried; tried: these values for each candidate; clips: budget of a pretraining; label: label
    options for its pretraining that differ from those of the data set; start: the run or file whose backbone it starts from;
    weights: hash of these weights
    """

    name: str
    kind: str
    candidates: tuple[Settings, ...] = ()
    tried: tuple[dict, ...] = ()
    clips: int = 0
    label: dict = field(default_factory=dict)
    start: str = ""
    weights: str = ""

    def pretrains_on(self, data: str) -> str:
        """The name of the data set for its pretraining, labelled as the row requires."""
        words = ", ".join(f"{key} {value}" for key, value in self.label.items())
        return f"{data}, {words}" if words else data

    @property
    def network(self) -> tuple[str, float]:
        """The backbone and its width."""
        settings = asdict(resolve(self.candidates[0]))
        return settings["backbone"], settings["width"]


@dataclass(frozen=True)
class Measure:
    """One number of a network on a data set.

    standing: whether the charts show its stage; parts: number of parts of a video's time, whose features are concatenated
    labels: labels that a classifier learns from (see splits.number_of_labels), or "all"; draws: of each pretext sample
    time: what is done to the frames of tested clips, one of TIMES, or ""; opposites: pairs of classes to distinguish
    rows: names of methods, empty for all; targets: empty for all targets of a data set
    """

    protocol: str
    stage: str = ""
    standing: bool = False
    pooling: str = ""
    parts: int = 1
    k: int = 0
    labels: int | str = ALL
    clips: int = 0
    draws: int = 0
    time: str = ""
    opposites: tuple[tuple[str, str], ...] = ()
    settings: Settings | None = None
    rows: tuple[str, ...] = ()
    tested_on: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    pretrained_on: str | tuple[str, ...] = "itself"

    @property
    def title(self) -> str:
        """The title of a column."""
        names = {
            "linear": "linear probe",
            "attentive": "attentive probe",
            "knn": f"{self.k}-NN",
            "retrieval": f"retrieval top-{self.k}",
        }
        names |= {"pretext": "pretext task"}
        few = words(self.labels) if self.labels != ALL else ""
        parts = f"{self.parts} parts" if self.parts > 1 else ""
        stage = {LAST: "last stage", CHOSEN: "chosen stage"}.get(self.stage, self.stage)
        pairs = f"{len(self.opposites)} pairs of opposites" if self.opposites else ""
        about = names.get(self.protocol, self.protocol), stage, self.pooling, parts, pairs, few, self.time
        return ", ".join(filter(None, about))

    @property
    def headline(self) -> bool:
        """Whether the forest plot and the ranks show it, by a rule that does not depend on values: all labels, undisturbed
        clips and, for frozen features, the chosen stage or, if the file has none, the last stage."""
        return self.labels == ALL and not self.time and (not self.stage or self.standing)

    @property
    def determining(self) -> dict:
        """The fields that determine a number."""
        names = "protocol", "stage", "pooling", "parts", "k", "labels", "clips", "draws"
        found = {name: getattr(self, name) for name in names}
        return found | {name: getattr(self, name) for name in ("time", "opposites") if getattr(self, name)}


@dataclass(frozen=True)
class Ordering:
    """A published result that one row is better than another; values: of both, in per cent, empty if unknown."""

    better: str
    worse: str
    source: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """A study file, read and checked. content: the file, merged with those that it extends; choose: the measure that compares
    tried settings in a cross-validation of the training part, None to compare them by the loss on held-out training videos."""

    about: str
    content: dict
    seeds: tuple[int, ...]
    data: dict[str, Data]
    rows: dict[str, Row]
    measures: tuple[Measure, ...]
    orderings: tuple[Ordering, ...]
    choose: Measure | None

    @property
    def variants(self) -> dict[str, Data]:
        """The data sets labelled as rows with a `label` require, by name (see Row.pretrains_on)."""
        found = {}
        for row, (name, data) in itertools.product(self.rows.values(), self.data.items()):
            if row.label and data.labelling is not None:
                labelling = data.labelling | {"label": data.labelling["label"] | row.label}
                changed = replace(data, name=row.pretrains_on(name), labelling=labelling, targets={})
                found[changed.name] = changed
        return found
