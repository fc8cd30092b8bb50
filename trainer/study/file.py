"""Reads and checks a study file, which docs/studies.md describes."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from labelgen.files import json_sha256
from labelgen.reading import Only, validate
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.evaluate import known as is_protocol
from trainer.evaluate.features import CELLS
from trainer.evaluate.protocol import TIMES, FeatureProtocol
from trainer.evaluate.splits import number_of_labels
from trainer.extends import chain, merged
from trainer.histograms import KINDS
from trainer.network import stage_names
from trainer.recipes import recipe
from trainer.settings import Settings, over, resolve
from trainer.study.spec import (
    ALL,
    CHOSEN,
    FINETUNE,
    HISTOGRAMS,
    LAST,
    PRETEXT,
    RANDOM,
    SUPERVISED,
    VIEWS,
    WEIGHTS,
    Data,
    Measure,
    Ordering,
    Row,
    Study,
    unlabelled,
)

_TRIED = 1000  # largest number of settings to try for a row
_FINETUNE: dict[str, Any] = {"holdout": 0.0, "jitter": "none", "schedule": "cosine", "optimizer": "adamw", "lr": 1e-3}

_ANY = str | float | bool | list | dict | None
_NAMES = str | list | None
_SETTINGS = {f"{field.name}?": _ANY for field in fields(Settings) if field.name not in ("seed", "split", "epochs")}
_DATA = Only(
    {
        **dict.fromkeys(("shards?", "dataset?", "root?", "pretraining?", "resample?"), str),
        **{"label?": dict, "render?": dict, "split?": _NAMES, "test?": float, "folds?": int},
        "targets?": {"*": Only({"csv": str, "video": str, "column": str})},
    }
)
_ROW = Only({**_SETTINGS, "recipe?": str, "clips?": int, "label?": dict})
_MEASURE = Only(
    {
        **{"protocol": str, "stage?": str | list, "pooling?": str, "k?": int, "labels?": list, "clips?": int},
        **{"settings?": Only(_SETTINGS), "tested_on?": [str], "targets?": [str], "pretrained_on?": _NAMES},
        **{"rows?": [str], "draws?": int, "parts?": int, "time?": [str], "opposites?": [[str], ...]},
    }
)
_FORM = Only(
    {
        **{"about?": str, "seeds?": [int, ...], "clips?": int, "baselines?": [str], "settings?": Only(_SETTINGS)},
        **{"data?": {"*": _DATA}, "rows?": {"*": dict | None}, "measures?": [_MEASURE, ...]},
        "choose?": Only({"protocol": str, "pooling?": str, "k?": int, "parts?": int, "targets?": [str]}),
        "orderings?": [Only({"better": str, "worse": str, "source?": str, "published?": [float]})],
    }
)


def read(path: str | Path) -> Study:
    """Read the study in a file. Raises TrainerError for unknown keys and invalid values."""
    path, content = Path(path), dict[str, Any]()
    try:
        for file, given in chain(path):
            try:
                validate(given, _FORM, "it")
            except ValueError as error:
                raise TrainerError(f"{file}: {error}; see docs/studies.md") from error
            content = merged(content, given)
        return _study(path.parent, content)
    except TrainerError as error:
        raise TrainerError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from error


def _study(folder: Path, content: dict) -> Study:
    for key in ("data", "rows", "measures"):
        _expect(bool(content.get(key)), key, content.get(key), "at least one")
    seeds = content.get("seeds", [0, 1, 2])
    _expect(min(seeds) >= 0 and len(set(seeds)) == len(seeds), "seeds", seeds, "different numbers, 0 or more")
    data = {name: _data(folder, name, given) for name, given in content["data"].items()}
    common = Settings(**content.get("settings", {}))
    rows = {name: _row(folder, name, given or {}, common, content) for name, given in content["rows"].items()}
    measures = tuple(m for given in content["measures"] for m in _measures(given, data, rows))
    choose = None
    if given := content.get("choose"):
        known = (name for name in PROTOCOLS if _of_features(name) and not unlabelled(name))
        _one_of(
            "choose, protocol", given["protocol"], tuple(n for n in known if CELLS not in protocol_class(n).poolings)
        )
        (choose,) = _measures({**given, "stage": CHOSEN}, data, rows)
    rows |= _references(rows, measures, content.get("baselines", ["supervised", "flow", "boundary", "still"]))
    orderings = tuple(_ordering(given, rows) for given in content.get("orderings", ()))
    return Study(content.get("about", ""), content, tuple(seeds), data, rows, measures, orderings, choose)


def _expect(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise TrainerError(f"{name} is {value!r:.60}, expected {expected}")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    _expect(value in known, name, value, f"one of: {', '.join(known) or '(none)'}")


def _all_of(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        _one_of(name, value, known)


def _count(name: str, value: int | None, most: float = math.inf) -> int:
    """The value, if it is an int from 1 to `most`. Raises TrainerError otherwise."""
    _expect(type(value) is int and 1 <= value <= most, name, value, f"1 to {most}" if most < math.inf else "1 or more")
    return int(value or 0)


def _data(folder: Path, name: str, given: dict) -> Data:
    key = f"data, {name}"
    if ("shards" in given) == ("dataset" in given):
        raise TrainerError(f"{key}: expected either shards (a folder), or dataset, root and label to create them")
    if len(parts := given.keys() & {"split", "test", "folds"}) > 1:
        raise TrainerError(f"{key} has {', '.join(sorted(parts))}, expected only one of them")
    _expect(0 < given.get("test", 0.5) < 1, f"{key}, test", given.get("test"), "a share between 0 and 1")
    _expect(given.get("folds", 2) >= 2, f"{key}, folds", given.get("folds"), "2 or more")
    for choice, known in (("pretraining", ("train", ALL)), ("resample", ("video", "group"))):
        _one_of(f"{key}, {choice}", given.get(choice, known[0]), known)
    labelling = None
    if manifest := given.get("dataset"):
        labelling = {
            "dataset": _path(folder, manifest) if manifest.endswith((".yaml", ".yml")) else manifest,
            "root": _path(folder, given["root"]) if "root" in given else None,
            "label": given.get("label", {}),
            **({"render": given["render"]} if "render" in given else {}),
        }
    targets = {name: table | {"csv": _path(folder, table["csv"])} for name, table in given.get("targets", {}).items()}
    shards = Path(_path(folder, given["shards"])) if "shards" in given else None
    same = {name: given[name] for name in ("split", "test", "folds", "pretraining", "resample") if name in given}
    return Data(name, shards, labelling, targets, **same)


def _path(folder: Path, given: str) -> str:
    """A path of the file made absolute, from the file's folder; variables of the environment, $VSSL_DATA, are filled in."""
    return os.path.abspath(folder / Path(os.path.expandvars(given)).expanduser())


def _row(folder: Path, name: str, given: dict, common: Settings, content: dict) -> Row:
    key = f"rows, {name}"
    try:
        validate(given, _ROW, key)
    except ValueError as error:
        raise TrainerError(str(error)) from error
    settings, begin = {key: value for key, value in given.items() if f"{key}?" in _SETTINGS}, {}
    if isinstance(settings.get("weights"), str):  # a file; the weights of losses are a list
        saved = checkpoint.load(_path(folder, settings.pop("weights")), best=True)
        conditions = json_sha256([saved.meta.get(name) for name in ("input", "norm_epsilon")])[:8]
        weights = f"{checkpoint.digest(checkpoint.backbone_weights(saved))}-{conditions}"
        begin = {"start": str(saved.file), "weights": weights}
        common = over(common, Settings(**{name: saved.meta["settings"][name] for name in ("backbone", "width")}))
        if given.keys() == {"weights"} and common.method is None:
            return Row(name, WEIGHTS, (common,), **begin)
    swept = {key: value for key, value in settings.items() if isinstance(value, list) and key != "weights"}
    tried = math.prod(map(len, swept.values()))
    _expect(tried <= _TRIED, f"{key}, settings to try", tried, f"at most {_TRIED}: fewer values of {', '.join(swept)}")
    base = over(recipe(given["recipe"])[0], common) if "recipe" in given else common
    combinations = tuple(dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values()))
    candidates = tuple(over(base, Settings(**settings | chosen)) for chosen in combinations)
    for candidate in map(resolve, candidates):
        if "recognition" in candidate.methods:
            raise TrainerError(
                f"{key}: recognition learns labels, expected another method; the row {SUPERVISED!r} is added by itself"
            )
        if len(candidates) > 1 and not candidate.holdout and "choose" not in content:
            raise TrainerError(
                f"{key}: several values of {', '.join(swept)} need `holdout` or `choose` to choose between them"
            )
    clips = _count(f"{key}, clips", given.get("clips", content.get("clips")))
    return Row(name, "method", candidates, combinations, clips, given.get("label", {}), **begin)


def _references(rows: dict[str, Row], measures: tuple[Measure, ...], baselines: list[str]) -> dict[str, Row]:
    """The rows that every study adds (see docs/studies.md)."""
    _all_of("baselines", tuple(baselines), ("supervised", *KINDS))
    protocols, networks = {measure.protocol for measure in measures}, dict.fromkeys(r.network for r in rows.values())
    most, added = max(row.clips for row in rows.values()), []
    for backbone, width in networks:
        suffix = f", {backbone} x {width:g}" if len(networks) > 1 else ""
        bare = (Settings(backbone=backbone, width=width),)
        added.append(Row(RANDOM + suffix, RANDOM, bare))
        if "supervised" in baselines and "finetune" in protocols:
            added.append(Row(SUPERVISED + suffix, SUPERVISED, bare, clips=most))
    if not all(map(unlabelled, protocols - {FINETUNE})):
        added += [Row(name, name) for name, kind in HISTOGRAMS.items() if kind in baselines]
    return {row.name: row for row in added}


def _ordering(given: dict, rows: dict[str, Row]) -> Ordering:
    for key in ("better", "worse"):
        _one_of(f"orderings, {key}", given[key], tuple(rows))
    values = given.get("published", [])
    _expect(len(values) in (0, 2), "orderings, published", values, "two numbers, beginning with that of the better row")
    return Ordering(given["better"], given["worse"], given.get("source", ""), tuple(values))


def _measures(given: dict, data: dict[str, Data], rows: dict[str, Row]) -> list[Measure]:
    """The measures of an entry of the file: one for each stage, number of labels and time."""
    protocol = given["protocol"]
    key = f"measures, {protocol}"
    if protocol not in (FINETUNE, PRETEXT) and not _of_features(protocol):
        _one_of("measures, protocol", protocol, (*filter(_of_features, PROTOCOLS), FINETUNE, PRETEXT))
    where: dict[str, Any] = {
        "rows": tuple(given.get("rows", ())),
        "tested_on": tuple(given.get("tested_on", data)),
        "targets": tuple(given.get("targets", ())),
    }
    _all_of(f"{key}, rows", where["rows"], tuple(rows))
    _all_of(f"{key}, tested_on", where["tested_on"], tuple(data))
    _all_of(f"{key}, targets", where["targets"], tuple(t for name in where["tested_on"] for t in data[name].targets))
    pretrained = given.get("pretrained_on", "itself")
    if isinstance(pretrained, list):
        _all_of(f"{key}, pretrained_on", pretrained := tuple(pretrained), tuple(data))
    else:
        _expect(pretrained in ("itself", ALL), f"{key}, pretrained_on", pretrained, "itself, all or names in a list")
    if given.get("time") and unlabelled(protocol):
        raise TrainerError(f"{key}: time is for protocols that learn classes, such as linear")
    if pairs := tuple(map(tuple, given.get("opposites", ()))):
        known = protocol != FINETUNE and issubclass(protocol_class(protocol), FeatureProtocol)
        _expect(known, "measures with opposites, protocol", protocol, "linear, knn or attentive")
        for pair in pairs:
            _expect(len(pair) == 2 == len({*pair}), f"{key}, opposites", pair, "two different classes a pair")
    base = Measure(protocol, **where, pretrained_on=pretrained)
    if protocol == PRETEXT:
        return [replace(base, draws=_count(f"{key}, draws", given.get("draws", 1)))]
    labels = [ALL if n == ALL else number_of_labels(n) for n in given.get("labels", [ALL])]
    _all_of(f"{key}, time", times := ("", *given.get("time", ())), ("", *TIMES))
    if protocol == FINETUNE:
        clips = _count(f"{key}, clips", given.get("clips", max(row.clips for row in rows.values()) // 4))
        settings = over(Settings(**_FINETUNE), Settings(**given.get("settings", {})))
        resolve(over(settings, Settings(method="recognition")))
        base = replace(base, clips=clips, settings=settings)
        return [replace(base, labels=n, time=time) for n in labels for time in times]
    poolings = protocol_class(protocol).poolings
    pooling = given.get("pooling", "mean" if unlabelled(protocol) else poolings[0])
    _one_of(f"{key}, pooling", pooling, poolings)
    last = dict.fromkeys(stage_names(*row.network)[-1] for row in rows.values())
    stages = given.get("stage", LAST if len(last) > 1 else [*last])
    stages, of_stages = stages if isinstance(stages, list) else [stages], []
    if pooling == CELLS:
        _all_of(f"{key}, stage", tuple(stages), (LAST, *last))
        _expect(
            given.get("parts", 1) == 1,
            f"{key}, parts",
            given.get("parts"),
            "none, because cells are of the whole video",
        )
    for stage in stages:
        _expect(isinstance(stage, str), f"{key}, stage", stage, "the name of a stage, such as conv5")
        standing = (CHOSEN,) if CHOSEN in stages else (LAST, *last)
        of_stages.append(replace(base, stage=stage, standing=stage in standing, pooling=pooling))
    if unlabelled(protocol):
        _expect(
            CHOSEN not in stages,
            f"{key}, stage",
            CHOSEN,
            "the name of a stage, because without classes none can be chosen",
        )
        return of_stages
    neighbours = protocol_class(protocol).neighbours
    k = _count(f"{key}, k", given.get("k", neighbours)) if neighbours else 0
    parts = _count(f"{key}, parts", given.get("parts", 1), most=VIEWS)  # features are of VIEWS clips of a video
    of_stages = [replace(measure, parts=parts, k=k, opposites=pairs) for measure in of_stages]
    return [replace(measure, labels=n, time=time) for n in labels for measure in of_stages for time in times]


def _of_features(protocol: str) -> bool:
    return is_protocol(protocol) and protocol_class(protocol).of_features
