"""What a run is made of: every setting, declared once, and which values make sense together."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from labelgen.processes import cores
from trainer import backbones
from trainer.errors import SettingError, TrainerError
from trainer.methods import METHODS, method_class
from trainer.options import POSITIVE, SHARE, Range, at_least, between, check_value, typed


def default_workers() -> int:
    """Half of this process's cores, 1 to 8. Those that `torchrun` starts on a machine share its cores."""
    return min(8, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // 2))


WORKERS = default_workers()


@dataclass(frozen=True)
class Declaration:
    """A setting: its default (None: the method's), a line of help and which values make sense.

    default_words: the default in words, if its value says too little
    may_change: the setting does not change what is computed, so that a resumed run may have another value
    commands: those with an option of this name; a recipe may set it in any case
    """

    default: object
    help: str
    range: Range | None = None
    choices: tuple[str, ...] = ()
    default_words: str = ""
    may_change: bool = False
    commands: tuple[str, ...] = ("train", "finetune")

    @property
    def shown_default(self) -> str:
        return self.default_words or ("the method's" if self.default is None else str(self.default))


def _declared(default: object, help: str, range: Range | None = None, **named):
    return field(default=None, metadata={"declaration": Declaration(default, help, range, **named)})


@dataclass(frozen=True)
class Settings:
    """What a run is made of. None, which `resolve` replaces: as the run has it when resuming, else the default."""

    method: str = _declared("pace", f"{', '.join(METHODS)}; or several: pace+statistics", commands=("train",))
    weights: list = _declared(
        None, "Weights of the losses of several methods, such as 1,0.5", default_words="all 1", commands=("train",)
    )
    options: dict = _declared(None, "Options of the methods, {method: {name: value}}", commands=())
    backbone: str = _declared(
        None,
        ", ".join(backbones.BACKBONES),
        default_words="the checkpoint's, the method's or r3d10",
    )
    width: float = _declared(
        1.0, "Multiplies the backbone's channels", between(0.01, 16), default_words="the checkpoint's or 1"
    )
    shard_weights: list = _declared(
        None,
        "With several --shards: how often a sample of each is shown, relative to the others, such as 1,4",
        default_words="all 1",
        commands=("train",),
    )
    split: str = _declared(
        "1", "Official split whose training videos are used, name or number", default_words="the first"
    )
    holdout: float = _declared(
        0.0,
        "Share of the training videos, by group, kept out and scored after each epoch",
        SHARE,
        default_words="the method's or 0",
    )
    fraction: float = _declared(
        1.0,
        "Share of the training videos that is used, drawn from the seed; a smaller one is a part of a larger one",
        Range("more than 0 and at most 1", lambda x: 0 < x <= 1),
    )
    subset: str = _declared(
        "all",
        "Train on half of the labelled clips alone: the easier, the harder or a random one",
        choices=("all", "easy", "hard", "random"),
        commands=("train",),
    )
    curriculum: float = _declared(
        0.0,
        "Share of the steps, the first ones, that see easier clips only; the learning rate then starts anew",
        SHARE,
        commands=("train",),
    )
    pacing: str = _declared(
        "single",
        "Share of the clips that a curriculum shows: half; or .04 x 1.9^k, in stages of fixed or varied length",
        choices=("single", "fixed", "varied"),
        commands=("train",),
    )
    seed: int = _declared(0, "Random seed of initial weights, sampling and augmentation", at_least(0))

    epochs: int = _declared(None, "Epochs; each shows every sample `repeats` times", between(1, 1_000_000))
    repeats: int = _declared(1, "Passes over the samples in an epoch, each with new random draws", between(1, 10_000))
    batch_size: int = _declared(None, "Samples per step at most, over all processes", between(1, 1 << 16))
    accumulate: int = _declared(1, "Gradient accumulation: parts in which a step is computed", between(1, 1 << 16))
    lr: float = _declared(None, "Learning rate at the start", POSITIVE)
    optimizer: str = _declared("sgd", "SGD with momentum, or AdamW", choices=("sgd", "adamw"))
    momentum: float = _declared(None, "Momentum of SGD, or the first beta of AdamW", at_least(0), commands=())
    weight_decay: float = _declared(None, "On all parameters", at_least(0), commands=())
    schedule: str = _declared(
        None,
        "step: lr / 10 every drop_every epochs; cosine: 5 % warm-up, then to 0",
        choices=("step", "cosine", "constant"),
    )
    drop_every: int = _declared(None, "Epochs between two drops of the step schedule", POSITIVE, commands=())
    clip: float = _declared(
        0.0, "Clip the norm of the gradients to this value; 0: off", at_least(0), default_words="none"
    )
    ema: float = _declared(0.0, "Decay of averaged weights, which evaluation then uses; 0: none", SHARE)
    sync_bn: bool = _declared(
        False, "Batch normalisation over all processes, on CUDA", default_words="the method's or False"
    )
    jitter: str | None = _declared(
        None, "Colour jitter: one per clip, or one per frame", choices=("none", "clip", "frame")
    )
    precision: str = _declared(
        "auto",
        "Precision of the backbone; heads and losses are float32",
        choices=("auto", "bf16", "tf32", "float32"),
        default_words="bf16 on CUDA, else float32",
    )

    compile: bool = _declared(False, "torch.compile the backbone and a method's other networks", may_change=True)
    workers: int = _declared(
        WORKERS,
        "Threads that decode frames, at most four per core",
        at_least(0),
        default_words="half of the process's cores, 1 to 8",
        may_change=True,
    )
    device: str = _declared("auto", "cpu, cuda, cuda:1", default_words="cuda where there is one", may_change=True)
    checkpoint_minutes: float = _declared(
        5.0,
        "Minutes between checkpoints, written beside the training; one is written at the end in any case",
        at_least(0),
        may_change=True,
    )
    keep_every: int = _declared(
        0,
        "Keep a checkpoint of every N-th epoch in RUN/kept, to evaluate it; 0: none",
        at_least(0),
        default_words="none",
        may_change=True,
    )
    log_every: int = _declared(
        10,
        "Seconds between two lines of progress if there is no terminal; the first step is printed at once",
        POSITIVE,
        may_change=True,
        commands=(),
    )

    @property
    def methods(self) -> list[str]:
        """Names of the methods trained together; of settings that name any."""
        assert self.method is not None
        return self.method.split("+")


DECLARATIONS: dict[str, Declaration] = {entry.name: entry.metadata["declaration"] for entry in fields(Settings)}
TYPES: dict[str, type] = {name: next(iter(get_args(hint)), hint) for name, hint in get_type_hints(Settings).items()}
DEFAULT_BACKBONE = "r3d10"


def resolve(settings: Settings) -> Settings:
    """The settings with every default filled in. Raises SettingError for values that make no sense."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    if isinstance(given.get("split"), int):
        given["split"] = str(given["split"])
    given = {name: typed(name, value, TYPES[name]) for name, value in given.items()}
    methods = given.get("method", DECLARATIONS["method"].default).split("+")
    classes = {name: method_class(name) for name in methods}
    if len(classes) < len(methods):
        raise SettingError(f"method is {'+'.join(methods)!r}: each method may be named once")
    defaults = {name: declaration.default for name, declaration in DECLARATIONS.items()}
    values = defaults | {"backbone": DEFAULT_BACKBONE} | classes[methods[0]].defaults | given
    backbones.check_name(values["backbone"])
    if given.get("jitter") is None and len(methods) > 1:
        values["jitter"] = None  # each method has its own
    chosen = given.get("options", {})
    for name in chosen.keys() - classes.keys():
        raise SettingError(f"options of {name!r} are given, and the method is {'+'.join(methods)}")
    values["options"] = {name: method.option_values(chosen.get(name)) for name, method in classes.items()}
    values["weights"] = _weights(given.get("weights"), methods)
    values["shard_weights"] = _shard_weights(given.get("shard_weights"))
    for name, declaration in DECLARATIONS.items():
        if values[name] is not None:  # jitter of several methods
            check_value(name, values[name], declaration.range, declaration.choices)
    if values["pacing"] != "single" and not values["curriculum"]:
        raise SettingError(f"pacing is {values['pacing']}, and curriculum is 0; set curriculum, such as 0.5")
    return Settings(**values)


def _weights(given: list | None, methods: list[str]) -> list[float]:
    weights = [1.0] * len(methods) if given is None else [typed("weights", weight, float) for weight in given]
    if len(weights) != len(methods) or not all(weight > 0 for weight in weights):
        raise SettingError(f"weights are {weights}, expected one more than 0 for each of {', '.join(methods)}")
    if len(methods) == 1 and weights != [1.0]:
        raise SettingError(f"weights are {weights}, and there is only one method; raise its learning rate instead")
    return weights


def _shard_weights(given: list | None) -> list[int]:
    given = given or []
    if not all(type(w) in (int, float) and 1 <= w <= 1000 and w == int(w) for w in given):
        raise SettingError(f"shard_weights are {given}, expected whole numbers from 1 to 1000, one for each --shards")
    return [int(weight) for weight in given]


def over(recipe: Settings, given: Settings) -> Settings:
    """A recipe's settings, with those that are given replaced."""
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    if "options" in changes:
        for both in (recipe.options or {}, changes["options"]):
            if not isinstance(both, dict) or not all(isinstance(own, dict) for own in both.values()):
                raise SettingError(f"options are {both!r:.60}, expected {{method: {{name: value}}}}")
        old = recipe.options or {}
        changes["options"] = {m: old.get(m, {}) | changes["options"].get(m, {}) for m in {**old, **changes["options"]}}
    if recipe.method and changes.get("method", recipe.method) != recipe.method:
        raise SettingError(f"the recipe is for method {recipe.method}, not {changes['method']}; leave one of them out")
    return replace(recipe, **changes)


def resumed(given: Settings, stored: dict, run: Path) -> Settings:
    """The stored settings of a run, with those that are given and may change. Raises TrainerError for other differences."""
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    options = changes.pop("options", {})
    stored = asdict(resolve(Settings(**stored)))  # one of an older version lacks settings
    differences = [
        (name, value, stored[name])
        for name, value in changes.items()
        if not DECLARATIONS[name].may_change and value != stored[name]
    ]
    for method, values in options.items():
        has = stored["options"].get(method, {})
        differences += [(name, value, has.get(name)) for name, value in values.items() if value != has.get(name)]
    if differences:
        told = "; ".join(f"{name} is {value!r}, the run has {old!r}" for name, value, old in differences)
        raise TrainerError(f"cannot resume {run}: {told}. Leave them out, or start a new run")
    return resolve(replace(Settings(**stored), **changes))
