"""The study file: data sets, rows and measures, checked where it is read. docs/studies.md describes it."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from labelgen.reading import fit
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.extends import chain, merged
from trainer.network import stage_names
from trainer.recipes import recipe
from trainer.settings import Settings, over, resolve

RANDOM, SUPERVISED, FLOW, WEIGHTS = "random weights", "supervised", "flow histogram", "weights"
PROTOCOLS = ("linear", "knn", "retrieval", "smoothness", "finetune", "pretext")
WITHOUT_LABELS = ("smoothness", "pretext")
ALL = "all"
LAST = "last"  # the last stage of each network, where these have different names
VIEWS = 10  # clips of a video that features are taken of
_TRIED = 1000  # settings of a row, at most
_POOLINGS = ("max", "mean")
_FINETUNE: dict[str, Any] = {"holdout": 0.0, "jitter": "none", "schedule": "cosine", "optimizer": "adamw", "lr": 1e-3}
_KEYS = {"about", "extends", "data", "rows", "measures", "seeds", "clips", "settings", "baselines", "orderings"}
_OF_DATA = {"shards", "dataset", "root", "label", "split", "test", "folds", "pretraining", "targets", "resample"}
_OF_MEASURE = {
    "protocol",
    "stage",
    "pooling",
    "parts",
    "k",
    "labels",
    "clips",
    "settings",
    "draws",
    "rows",
    "tested_on",
    "targets",
    "pretrained_on",
}
_NAMES = str | list | None
_FORM = {  # of the file; what this leaves open is checked where it is used
    "about?": str,
    "seeds?": list,
    "clips?": int,
    "baselines?": [str],
    "settings?": dict,
    "data?": {
        "*": {
            **dict.fromkeys(("shards?", "dataset?", "root?", "pretraining?", "resample?"), str),
            **{"label?": dict, "split?": _NAMES, "test?": float | int, "folds?": int},
            "targets?": {"*": {"csv?": str, "video?": str, "column?": str}},
        }
    },
    "rows?": {"*": dict | None},
    "orderings?": [dict],
    "measures?": [
        {
            **{"protocol?": str, "stage?": str | list, "pooling?": str, "k?": int, "labels?": list, "clips?": int},
            **{"settings?": dict, "tested_on?": [str], "targets?": [str], "pretrained_on?": _NAMES},
            **{"rows?": [str], "draws?": int, "parts?": int},
        }
    ],
}


@dataclass(frozen=True)
class Data:
    """A data set.

    shards: folder that labelgen wrote, or None where it is labelled by the study: dataset, root, label (options)
    split: official splits by name ("all": each), or test: the share of the groups that is tested, or folds: how many
    pretraining: "train" (of each split apart) or "all" videos, once
    targets: labels by name, {csv, video, column}; none: the shards' own
    resample: "group" or "video", what the bootstrap draws
    """

    name: str
    shards: Path | None
    labelling: dict | None
    split: str | list | None
    test: float | None
    folds: int | None
    pretraining: str
    targets: dict[str, dict]
    resample: str

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        if re.fullmatch(r"[\w-]+", self.name):
            return self.name
        return f"{re.sub(r'[^a-zA-Z0-9]+', '-', self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Row:
    """What is compared: candidates are its settings, several where a list of values is tried; clips: the budget that
    pretraining sees; label: what its pretraining labels in another way; kind: method, or RANDOM, SUPERVISED, FLOW, or WEIGHTS of
    a file alone. start: the run or file whose backbone it begins with, and weights: what tells them from others."""

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
        own = asdict(resolve(self.candidates[0]))
        return own["backbone"], own["width"]


@dataclass(frozen=True)
class Measure:
    """One number of a network on a data set; deepest: whether its stage is the last one of a network; parts: of a video's time,
    whose features stand side by side; labels: per class that a classifier learns from, or "all"; draws: of each sample of the
    pretext task."""

    protocol: str
    stage: str = ""
    deepest: bool = False
    pooling: str = ""
    parts: int = 1
    k: int = 0
    labels: int | str = ALL
    clips: int = 0
    draws: int = 0
    settings: Settings | None = None
    rows: tuple[str, ...] = ()  # methods; none: all
    on: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()  # none: all that a data set has
    pretrained_on: str | tuple[str, ...] = "itself"

    @property
    def title(self) -> str:
        """Words for a column."""
        names = {"linear": "linear probe", "knn": f"{self.k}-NN", "retrieval": f"retrieval top-{self.k}"}
        names |= {"pretext": "pretext task"}
        few = f"{self.labels} per class" if self.labels != ALL else ""
        parts = f"{self.parts} parts" if self.parts > 1 else ""
        stage = "last stage" if self.stage == LAST else self.stage
        return ", ".join(filter(None, (names.get(self.protocol, self.protocol), stage, self.pooling, parts, few)))

    @property
    def headline(self) -> bool:
        """Whether it stands in the forest plot and the ranks, by a rule that does not look at values: all labels, and of frozen
        features the last stage."""
        return self.labels == ALL and (not self.stage or self.deepest)

    @property
    def what(self) -> dict:
        """What of it determines a number."""
        names = "protocol", "stage", "pooling", "parts", "k", "labels", "clips", "draws"
        own = {name: getattr(self, name) for name in names}
        return own | {"settings": asdict(self.settings) if self.settings else None}


@dataclass(frozen=True)
class Ordering:
    """A published result: one row is better than another; values: both, in per cent, where they are known."""

    better: str
    worse: str
    source: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study file, read and checked; content: what it says, after `extends`."""

    path: Path
    about: str
    content: dict
    seeds: tuple[int, ...]
    data: dict[str, Data]
    rows: dict[str, Row]
    measures: tuple[Measure, ...]
    orderings: tuple[Ordering, ...]

    @property
    def variants(self) -> dict[str, Data]:
        """The data sets as rows with a `label` of their own ask for them, by name, see Row.pretrains_on."""
        found = {}
        for row, (name, own) in itertools.product(self.rows.values(), self.data.items()):
            if row.label and own.labelling is not None:
                labelling = own.labelling | {"label": own.labelling["label"] | row.label}
                changed = replace(own, name=row.pretrains_on(name), labelling=labelling, targets={})
                found[changed.name] = changed
        return found


def read(path: str | Path) -> Study:
    """The study of a file. Raises TrainerError for unknown keys and values that make no sense."""
    path = Path(path)
    try:
        return _study(path, _content(path))
    except TrainerError as error:
        raise TrainerError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from error


def _content(path: Path) -> dict:
    """What a file says, over what the files say that it extends."""
    content: dict = {}
    for each, own in chain(path):
        _known("the file", own, _KEYS)
        try:
            fit(own, _FORM, "it")
        except ValueError as error:
            raise TrainerError(f"{each}: {error}, expected what docs/studies.md says") from error
        content = merged(content, own)
    return content


def _study(path: Path, content: dict) -> Study:
    for key in ("data", "rows", "measures"):
        if not content.get(key):
            raise TrainerError(f"it names no {key}")
    _known("data", content["data"])
    _known("rows", content["rows"])
    seeds = _numbers("seeds", content.get("seeds", [0, 1, 2]))
    data = {name: _data(path.parent, name, given) for name, given in content["data"].items()}
    common = _settings("settings", content.get("settings", {}))
    rows = {
        name: _row(path.parent, name, given or {}, common, content.get("clips"))
        for name, given in content["rows"].items()
    }
    measures = tuple(m for given in content["measures"] for m in _measures(given, data, rows))
    baselines = content.get("baselines", ["supervised", "flow"])
    if unknown := set(baselines) - {"supervised", "flow"}:
        raise TrainerError(f"baselines: unknown {', '.join(sorted(unknown))}, expected supervised, flow")
    networks = dict.fromkeys(row.network for row in rows.values())
    tuned = any(m.protocol == "finetune" for m in measures)
    most = max(row.clips for row in rows.values())
    for backbone, width in networks:
        of = f", {backbone} x {width:g}" if len(networks) > 1 else ""
        bare = (Settings(backbone=backbone, width=width),)
        rows[RANDOM + of] = Row(RANDOM + of, RANDOM, bare)
        if "supervised" in baselines and tuned:
            rows[SUPERVISED + of] = Row(SUPERVISED + of, SUPERVISED, bare, clips=most)
    if "flow" in baselines and any(m.protocol in ("linear", "knn", "retrieval") for m in measures):
        rows[FLOW] = Row(FLOW, FLOW)
    orderings = tuple(_ordering(given, rows) for given in content.get("orderings", ()))
    return Study(path, str(content.get("about", "")), content, seeds, data, rows, measures, orderings)


def _known(where: str, given: object, known: set[str] | None = None) -> None:
    if not isinstance(given, dict):
        raise TrainerError(f"{where} is {given!r:.60}, expected a mapping")
    if known and (unknown := given.keys() - known):
        words = ", ".join(map(repr, sorted(map(str, unknown))))
        raise TrainerError(f"{where}: unknown {words}; known: {', '.join(sorted(known))}")


def _numbers(where: str, given: object) -> tuple[int, ...]:
    whole = isinstance(given, list) and all(type(n) is int and n >= 0 for n in given)
    if not isinstance(given, list) or not given or not whole or len(set(given)) < len(given):
        raise TrainerError(f"{where} is {given!r}, expected a list of different whole numbers")
    return tuple(given)


def _count(where: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise TrainerError(f"{where} is {value!r}, expected a whole number, 1 or more")
    return value


def _data(folder: Path, name: str, given: dict) -> Data:
    where = f"data: {name}"
    _known(where, given, _OF_DATA)
    if ("shards" in given) == ("dataset" in given):
        raise TrainerError(f"{where}: expected either shards, a folder, or dataset, root and label, how to make them")
    if sum(key in given for key in ("split", "test", "folds")) > 1:
        raise TrainerError(f"{where}: split, test and folds exclude each other")
    if not 0 < given.get("test", 0.5) < 1:
        raise TrainerError(f"{where}: test is {given['test']}, expected a share between 0 and 1")
    if given.get("folds", 2) < 2:
        raise TrainerError(f"{where}: folds is {given['folds']}, expected 2 or more")
    for key, known in (("pretraining", ("train", "all")), ("resample", ("video", "group"))):
        if given.get(key, known[0]) not in known:
            raise TrainerError(f"{where}: {key} is {given[key]!r}, expected one of: {', '.join(known)}")
    targets = {}
    for target, source in given.get("targets", {}).items():
        _known(f"{where}: targets: {target}", source, {"csv", "video", "column"})
        if len(source) < 3:
            raise TrainerError(f"{where}: targets: {target}: expected csv, video and column")
        targets[target] = source | {"csv": _path(folder, source["csv"])}
    labelling = None
    if "dataset" in given:
        manifest = given["dataset"]
        labelling = {"dataset": _path(folder, manifest) if manifest.endswith((".yaml", ".yml")) else manifest}
        labelling |= {"root": _path(folder, given["root"]) if "root" in given else None}
        labelling |= {"label": given.get("label", {})}
    return Data(
        name,
        Path(_path(folder, given["shards"])) if "shards" in given else None,
        labelling,
        given.get("split"),
        given.get("test"),
        given.get("folds"),
        given.get("pretraining", "train"),
        targets,
        given.get("resample", "video"),
    )


def _path(folder: Path, given: str) -> str:
    """A path of the file made absolute, from the file's folder; variables of the environment, $VSSL_DATA, are filled in."""
    return os.path.abspath(folder / Path(os.path.expandvars(given)).expanduser())


def _settings(where: str, given: dict) -> Settings:
    names = {field.name for field in fields(Settings)} - {"seed", "split", "epochs"}
    _known(where, given, names)
    return Settings(**given)


def _row(folder: Path, name: str, given: dict, common: Settings, clips: int | None) -> Row:
    where = f"rows: {name}"
    own = {key: value for key, value in given.items() if key not in ("recipe", "clips", "label")}
    begin = {}
    if isinstance(own.get("weights"), str):  # a file; the weights of losses are a list
        saved = checkpoint.load(_path(folder, own.pop("weights")), best=True)
        begin = {"start": str(saved.file), "weights": checkpoint.digest(checkpoint.backbone_weights(saved))}
        common = over(common, Settings(**{key: saved.meta["settings"][key] for key in ("backbone", "width")}))
        if not own and "recipe" not in given and common.method is None:
            return Row(name, WEIGHTS, (common,), **begin)
    swept = {key: value for key, value in own.items() if isinstance(value, list) and key != "weights"}
    if math.prod(map(len, swept.values())) > _TRIED:
        raise TrainerError(f"{where}: more than {_TRIED} settings to try, expected fewer values of {', '.join(swept)}")
    base = over(recipe(str(given["recipe"]))[0], common) if "recipe" in given else common
    found, tried = [], []
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        settings = over(base, _settings(where, own | chosen))
        resolved = resolve(settings)
        if "recognition" in resolved.methods:
            raise TrainerError(f"{where}: recognition learns labels; the row {SUPERVISED!r} is made by itself")
        if swept and not resolved.holdout:
            raise TrainerError(f"{where}: several values of {', '.join(swept)} need a holdout to choose by")
        found.append(settings)
        tried.append(chosen)
    label = given.get("label", {})
    _known(f"{where}: label", label)
    return Row(
        name, "method", tuple(found), tuple(tried), _count(f"{where}: clips", given.get("clips", clips)), label, **begin
    )


def _ordering(given: dict, rows: dict[str, Row]) -> Ordering:
    _known("orderings", given, {"better", "worse", "source", "published"})
    for key in ("better", "worse"):
        if given.get(key) not in rows:
            raise TrainerError(f"orderings: {key} is {given.get(key)!r}, expected one of the rows")
    values = given.get("published", [])
    if not isinstance(values, list) or len(values) not in (0, 2) or not all(type(v) in (int, float) for v in values):
        raise TrainerError(f"orderings: published is {values!r}, expected the two numbers, the better one's first")
    return Ordering(given["better"], given["worse"], str(given.get("source", "")), tuple(values))


def _measures(given: dict, data: dict[str, Data], rows: dict[str, Row]) -> list[Measure]:
    _known("measures", given, _OF_MEASURE)
    protocol = given.get("protocol")
    if protocol not in PROTOCOLS:
        raise TrainerError(f"measures: protocol is {protocol!r}, expected one of: {', '.join(PROTOCOLS)}")
    where = f"measures: {protocol}"
    on = tuple(given.get("tested_on", data))
    pretrained = given.get("pretrained_on", "itself")
    pretrained = tuple(pretrained) if isinstance(pretrained, list) else pretrained
    for name in (*on, *(pretrained if isinstance(pretrained, tuple) else ())):
        if name not in data:
            raise TrainerError(f"{where}: there is no data set {name!r}")
    if isinstance(pretrained, str) and pretrained not in ("itself", ALL):
        raise TrainerError(f"{where}: pretrained_on is {pretrained!r}, expected itself, all or a list of data sets")
    targets = tuple(given.get("targets", ()))
    if unknown := set(targets) - {name for own in on for name in data[own].targets}:
        raise TrainerError(f"{where}: there is no target {', '.join(sorted(unknown))} in {', '.join(on)}")
    own = tuple(given.get("rows", ()))
    if unknown := set(own) - rows.keys():
        raise TrainerError(f"{where}: there is no row {', '.join(sorted(unknown))}")
    common = {"protocol": protocol, "rows": own, "on": on, "targets": targets, "pretrained_on": pretrained}
    if protocol == "pretext":
        return [Measure(draws=_count(f"{where}: draws", given.get("draws", 1)), **common)]
    labels = given.get("labels", [ALL])
    if protocol == "finetune":
        clips = _count(f"{where}: clips", given.get("clips", max(row.clips for row in rows.values()) // 4))
        settings = over(Settings(**_FINETUNE), _settings(f"{where}: settings", given.get("settings", {})))
        resolve(over(settings, Settings(method="recognition")))
        return [Measure(labels=_labels(where, n), clips=clips, settings=settings, **common) for n in labels]
    pooling = given.get("pooling", "mean" if protocol == "smoothness" else "max")
    if pooling not in _POOLINGS:
        raise TrainerError(f"{where}: pooling is {pooling!r}, expected one of: {', '.join(_POOLINGS)}")
    last = dict.fromkeys(stage_names(*row.network)[-1] for row in rows.values())
    stages = given.get("stage", LAST if len(last) > 1 else [*last])
    stages = stages if isinstance(stages, list) else [stages]
    if wrong := [stage for stage in stages if not isinstance(stage, str)]:
        raise TrainerError(f"{where}: stage is {wrong[0]!r:.60}, expected the name of a stage, such as conv5")
    stages = {stage: stage in (LAST, *last) for stage in stages}
    if protocol == "smoothness":
        return [Measure(stage=stage, deepest=deepest, pooling=pooling, **common) for stage, deepest in stages.items()]
    k = 0 if protocol == "linear" else _count(f"{where}: k", given.get("k", 5 if protocol == "knn" else 1))
    parts = _count(f"{where}: parts", given.get("parts", 1))
    if parts > VIEWS:
        raise TrainerError(
            f"{where}: parts is {parts}, expected {VIEWS} at most, as features are of {VIEWS} clips of a video"
        )
    return [
        Measure(stage=stage, deepest=deepest, pooling=pooling, parts=parts, k=k, labels=_labels(where, n), **common)
        for n in labels
        for stage, deepest in stages.items()
    ]


def _labels(where: str, value: object) -> int | str:
    return value if value == ALL else _count(f"{where}: labels", value)
