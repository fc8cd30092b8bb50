"""What a study is: data sets, rows and measures, and the words for them. docs/studies.md describes it."""

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
FINETUNE, PRETEXT = "finetune", "pretext"  # measures beside the protocols of frozen features
ALL = "all"
LAST = "last"  # the last stage of each network, if these have different names
CHOSEN = "chosen"  # that which is best in a cross-validation of the training part, of each network and split
VIEWS = 10  # clips of a video that features are taken of


def unlabelled(protocol: str) -> bool:
    """Whether a measure by a protocol needs no classes."""
    return protocol == PRETEXT or protocol != FINETUNE and not protocol_class(protocol).labelled


@dataclass(frozen=True)
class Data:
    """A data set.

    shards: folder that labelgen wrote, or None if the study labels it: labelling has "dataset", "root" and "label" (options)
    split: official splits by name ("all": each), or test: the share of the groups that is tested, or folds: how many
    pretraining: "train" (of each split apart) or "all" videos, once
    targets: CSV tables of classes by name, {csv, video, column}; none: the classes of the shards
    resample: "group" or "video", what the bootstrap draws
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
        """The name of a folder for it."""
        if re.fullmatch(r"[\w-]+", self.name):
            return self.name
        return f"{re.sub(r'[^a-zA-Z0-9]+', '-', self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Row:
    """What is compared.

    kind: "method", or RANDOM, SUPERVISED, one of HISTOGRAMS, or WEIGHTS of a file alone; candidates: its settings, several if
    values are tried, and tried: these values of each; clips: the budget of a pretraining; label: how its pretraining is
    labelled, if in another way than the data set; start: the run or file whose backbone it begins with, and weights: what tells
    these from others
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
        """Name of the data set, labelled as the row asks for, that it pretrains on."""
        words = ", ".join(f"{key} {value}" for key, value in self.label.items())
        return f"{data}, {words}" if words else data

    @property
    def network(self) -> tuple[str, float]:
        """Backbone and width."""
        settings = asdict(resolve(self.candidates[0]))
        return settings["backbone"], settings["width"]


@dataclass(frozen=True)
class Measure:
    """One number of a network on a data set.

    standing: whether the charts show its stage; parts: of a video's time, whose features stand side by side
    labels: that a classifier learns from, see splits.number_of_labels, or "all"; draws: of each sample of the pretext task
    time: what is done to the frames of tested clips, one of TIMES; opposites: pairs of classes that are told apart
    rows: methods, none for all; targets: none for all that a data set has
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
        """Words for a column."""
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
        """Whether it stands in the forest plot and the ranks, by a rule that does not look at values: all labels, clips as they
        are, and of frozen features the chosen stage or, if the file asks for none, the last one."""
        return self.labels == ALL and not self.time and (not self.stage or self.standing)

    @property
    def determining(self) -> dict:
        """What of it determines a number."""
        names = "protocol", "stage", "pooling", "parts", "k", "labels", "clips", "draws"
        found = {name: getattr(self, name) for name in names}
        return found | {name: getattr(self, name) for name in ("time", "opposites") if getattr(self, name)}


@dataclass(frozen=True)
class Ordering:
    """A published result: one row is better than another; values: both, in per cent, if they are known."""

    better: str
    worse: str
    source: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """A study file, read and checked; content: what it says, with what it extends; choose: by what tried settings are compared
    in a cross-validation of the training part, None: by the loss on held-out training videos."""

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
        """The data sets as rows with a `label` ask for them, by name, see Row.pretrains_on."""
        found = {}
        for row, (name, data) in itertools.product(self.rows.values(), self.data.items()):
            if row.label and data.labelling is not None:
                labelling = data.labelling | {"label": data.labelling["label"] | row.label}
                changed = replace(data, name=row.pretrains_on(name), labelling=labelling, targets={})
                found[changed.name] = changed
        return found
