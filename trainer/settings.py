"""What a run is made of: defaults, recipes, and which values make sense."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import yaml

from trainer.backbones import BACKBONES
from trainer.errors import TrainerError
from trainer.methods import METHODS

RECIPES = Path(__file__).with_name("recipes")
WORKERS = min(8, max(1, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class Settings:
    """What a run is made of. None: as the run has it when resuming, else the method's own default, else the one here."""

    method: str | None = None  # a name of trainer.methods.METHODS, or several joined by + [pace]
    weights: list | None = None  # joint training: weight of each method's loss [all 1]
    options: dict | None = None  # of the methods: {method: {name: value}} [method]
    backbone: str | None = None  # a name of trainer.backbones.BACKBONES [r3d10]
    width: float | None = None  # multiplies the backbone's channels [1.0]
    split: str | None = None  # official split, name or 1-based number [the first]
    holdout: float | None = None  # share of the training videos, by group, kept out and scored each epoch [method, 0]
    curriculum: float | None = None  # share of the steps that see the easier half of the clips only [0]
    seed: int | None = None  # of initial weights and all draws [0]

    epochs: int | None = None  # passes over all samples [method]
    batch_size: int | None = None  # samples per step at most, over all processes [method]
    accumulate: int | None = None  # parts of a batch whose gradients are added up [1]
    lr: float | None = None  # learning rate at the start [method]
    optimizer: str | None = None  # sgd, adamw [sgd]
    momentum: float | None = None  # of SGD; AdamW's first beta [method]
    weight_decay: float | None = None  # on all parameters [method]
    schedule: str | None = (
        None  # step: lr / 10 every drop_every epochs; cosine: 5 % warm-up, then to 0; constant [method]
    )
    drop_every: int | None = None  # epochs between two drops of the step schedule [method]
    ema: float | None = None  # decay of averaged weights, which evaluation then uses; 0: none [0]
    sync_bn: bool | None = None  # batch normalisation over all processes, CUDA only [False]
    jitter: str | None = None  # colour jitter: none, one per clip, one per frame [method]
    precision: str | None = None  # auto, bf16 (CUDA), tf32 (CUDA), float32; losses are float32 [auto: bf16 on CUDA]

    # the following do not change what is computed, and may change on resume
    compile: bool | None = None  # torch.compile the backbone [False]
    workers: int | None = None  # processes that decode frames [half of the cores, 1 to 8]
    device: str | None = None  # auto, cpu, cuda, cuda:1, ... [auto: cuda where there is one]
    checkpoint_every: int | None = None  # steps between checkpoints; one at the end in any case [200]
    log_every: int | None = None  # steps between two plain lines where there is no terminal [10]

    @property
    def methods(self) -> list[str]:
        """Names of the methods trained together."""
        return self.method.split("+")


_DEFAULTS = {
    "method": "pace",
    "backbone": "r3d10",
    "width": 1.0,
    "split": "1",
    "holdout": 0.0,
    "curriculum": 0.0,
    "seed": 0,
    "accumulate": 1,
    "optimizer": "sgd",
    "ema": 0.0,
    "sync_bn": False,
    "precision": "auto",
    "compile": False,
    "workers": WORKERS,
    "device": "auto",
    "checkpoint_every": 200,
    "log_every": 10,
}
_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("step", "cosine", "constant"),
    "jitter": ("none", "clip", "frame"),
    "precision": ("auto", "bf16", "tf32", "float32"),
}
_POSITIVE = ("epochs", "batch_size", "accumulate", "lr", "drop_every", "checkpoint_every", "log_every")
_NOT_NEGATIVE = ("seed", "momentum", "weight_decay", "workers")
_SHARES = ("holdout", "curriculum", "ema")
_MAY_CHANGE = ("compile", "workers", "device", "checkpoint_every", "log_every")
_TYPES = {name: get_args(hint)[0] for name, hint in get_type_hints(Settings).items()}


def resolve(settings: Settings) -> Settings:
    """The settings with every default filled in. Raises TrainerError for values that make no sense."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    for name, value in given.items():
        given[name] = _typed(name, value, _TYPES[name])
    methods = given.get("method", _DEFAULTS["method"]).split("+")
    for name, values, known in (
        ("method", methods, METHODS),
        ("backbone", [given.get("backbone", _DEFAULTS["backbone"])], BACKBONES),
    ):
        for value in values:
            if value not in known:
                raise TrainerError(f"unknown {name} {value!r}, expected one of: {', '.join(known)}")
    if len(set(methods)) < len(methods):
        raise TrainerError(f"method is {'+'.join(methods)!r}: each method may be named once")
    values = {**_DEFAULTS, **METHODS[methods[0]].defaults, **given}
    if given.get("jitter") is None and len(methods) > 1:
        values["jitter"] = None  # each method has its own
    values["options"] = _options(methods, given.get("options", {}))
    values["weights"] = [float(weight) for weight in given.get("weights", [1.0] * len(methods))]
    if len(values["weights"]) != len(methods) or not all(weight > 0 for weight in values["weights"]):
        raise TrainerError(
            f"weights are {values['weights']}, expected one more than 0 for each of {', '.join(methods)}"
        )
    if len(methods) == 1 and values["weights"] != [1.0]:
        raise TrainerError(f"weights are {values['weights']}, and there is only one method; raise its --lr instead")
    for name in _POSITIVE:
        if not values[name] > 0:
            raise TrainerError(f"{name} is {values[name]}, expected more than 0")
    if values["width"] < 0.01:
        raise TrainerError(f"width is {values['width']}, expected 0.01 or more")
    for name in _NOT_NEGATIVE:
        if not values[name] >= 0:
            raise TrainerError(f"{name} is {values[name]}, expected 0 or more")
    for name in _SHARES:
        if not 0 <= values[name] < 1:
            raise TrainerError(f"{name} is {values[name]}, expected 0 or more and less than 1")
    for name, known in _CHOICES.items():
        if values[name] is not None and values[name] not in known:
            raise TrainerError(f"{name} is {values[name]!r}, expected one of: {', '.join(known)}")
    return Settings(**values)


def _typed(name: str, value, kind: type):
    """The value, whole numbers as float where one is meant. Raises TrainerError for another type, nan and what is too large
    for a generator's seed or a float."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not abs(number) < 1 << 63:
            raise TrainerError(f"{name} is {number}, expected a finite number smaller than 2^63")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and name == "split":
        return str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TrainerError(f"{name} is {value!r}, a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _options(methods: list[str], given: dict) -> dict:
    """Every option of every method. Raises TrainerError for unknown names and wrong types."""
    for method in given.keys() - set(methods):
        raise TrainerError(f"options of {method!r} are given, and the method is {'+'.join(methods)}")
    resolved = {}
    for method in methods:
        defaults, own = METHODS[method].options, given.get(method, {})
        for name in own.keys() - defaults.keys():
            known = f"it has {', '.join(defaults)}" if defaults else "it has none"
            raise TrainerError(f"{name} is no option of method {method}: {known}")
        resolved[method] = defaults | {name: _typed(name, value, type(defaults[name])) for name, value in own.items()}
        for name, known in METHODS[method].choices.items():
            if resolved[method][name] not in known:
                raise TrainerError(f"{name} is {resolved[method][name]!r}, expected one of: {', '.join(known)}")
    return resolved


def parse_options(texts: tuple[str, ...], method: str) -> dict:
    """`--set` texts "name=value" or "method.name=value" -> {method: {name: value}}; values are read as YAML, lists without
    their brackets, too.

    Raises TrainerError for a text of another form and for a name that no method, or more than one, has.
    """
    methods, options = method.split("+"), {}
    for text in texts:
        name, equals, value = text.partition("=")
        owner, dot, bare = name.rpartition(".")
        if not equals or not name:
            raise TrainerError(f"--set {text!r}: expected name=value")
        owners = [owner] if dot else [m for m in methods if m in METHODS and bare in METHODS[m].options]
        if len(owners) != 1:
            known = ", ".join(f"{m}.{o}" for m in methods if m in METHODS for o in METHODS[m].options) or "none"
            raise TrainerError(
                f"--set {text!r}: {'several methods have' if owners else 'no'} option {bare!r}; known: {known}"
            )
        default = getattr(METHODS.get(owners[0]), "options", {}).get(bare)
        listed = isinstance(default, list) and not value.startswith("[")
        options.setdefault(owners[0], {})[bare] = _number(f"[{value}]" if listed else value)
    return options


def _number(text: str):
    """A YAML value; 1e-3, which YAML takes for a text, is a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text


def recipe(name: str) -> tuple[Settings, dict]:
    """Settings of a recipe, and the shard configuration that it is meant for.

    name: of a file in trainer/recipes, without .yaml, or the path of one. Each value stands with its source, a paper or
    `assumed`: `lr: {value: 0.001, source: thesis 4.3}`. Raises TrainerError for unknown keys, wrong types and values
    without a source.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise TrainerError(f"no recipe {name!r}; there are: {known}; or name a .yaml file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise TrainerError(f"{path}: not a YAML file ({error})") from error
    if not isinstance(content, dict) or not {"about", "settings"} <= content.keys() <= {"about", "settings", "shards"}:
        raise TrainerError(f"{path}: expected the keys about, settings and, if any, shards")
    values = _sourced(path, "settings", content["settings"])
    for key in values.keys() - _TYPES.keys():
        raise TrainerError(f"{path}: settings: unknown key {key!r}, expected one of: {', '.join(_TYPES)}")
    if "options" in values:
        method = values.get("method", _DEFAULTS["method"])
        values["options"] = {method: _sourced(path, "options", values["options"])}
    try:
        resolve(Settings(**values))
    except TrainerError as error:
        raise TrainerError(f"{path}: {error}") from error
    return Settings(**values), _sourced(path, "shards", content.get("shards", {}))


def _sourced(path: Path, where: str, entries) -> dict:
    if not isinstance(entries, dict):
        raise TrainerError(f"{path}: {where} is {entries!r}, expected a mapping")
    values = {}
    for key, entry in entries.items():
        if key == "options":
            values[key] = entry
        elif not isinstance(entry, dict) or entry.keys() != {"value", "source"} or not isinstance(entry["source"], str):
            raise TrainerError(f"{path}: {where}: {key} is {entry!r}, expected {{value: ..., source: ...}}")
        else:
            values[key] = _number(entry["value"]) if isinstance(entry["value"], str) else entry["value"]
    return values


def over(recipe: Settings, given: Settings) -> Settings:
    """A recipe's settings, with those given in their place."""
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    if "options" in changes:
        old = recipe.options or {}
        changes["options"] = {m: old.get(m, {}) | changes["options"].get(m, {}) for m in {**old, **changes["options"]}}
    if recipe.method and changes.get("method", recipe.method) != recipe.method:
        raise TrainerError(f"the recipe is for method {recipe.method}, not {changes['method']}; leave one of them out")
    return replace(recipe, **changes)


def resumed(given: Settings, stored: dict, run: Path) -> Settings:
    """The stored settings of a run, with what is given and may change. Raises TrainerError for other differences."""
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    options = {(m, name): value for m, own in changes.pop("options", {}).items() for name, value in own.items()}
    differences = [
        f"{name} is {value!r}, the run has {stored[name]!r}"
        for name, value in changes.items()
        if name not in _MAY_CHANGE and value != stored[name]
    ]
    for (method, name), value in options.items():
        has = stored["options"].get(method, {}).get(name)
        if value != has:
            differences.append(f"{name} is {value!r}, the run has {has!r}")
    if differences:
        raise TrainerError(f"cannot resume {run}: {'; '.join(differences)}. Leave the options out, or start a new run")
    return resolve(replace(Settings(**stored), **changes))
