"""The settings of a run: each one is declared once, and combinations of values are checked."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from labelgen.processes import cores
from trainer import backbones
from trainer.errors import SettingError, TrainerError
from trainer.methods import METHODS, method_class
from trainer.options import POSITIVE, SHARE, Option, Range, at_least, between, check_form

if TYPE_CHECKING:
    from trainer.methods.method import Method


def default_workers() -> int:
    """Half of this process's cores, 1 to 8. Processes that `torchrun` starts on a machine share its cores."""
    return min(8, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // 2))


WORKERS = default_workers()


_TRAINING = ("train", "finetune")
_SHOWN = (*_TRAINING, "samples")


@dataclass(frozen=True)
class Declaration(Option):
    """A setting: its default (None: the method's), a line of help and the valid values.

    default_words: the default in words, if its value is not clear
    may_change: the setting changes no weight, so that a resumed run may have another value
    commands: commands with an option of this name, "samples" for `vssl show samples`; recipes may set it in any case
    form: its type, see labelgen.reading.validate; None: the type of the field of Settings
    """

    default_words: str = ""
    may_change: bool = False
    commands: tuple[str, ...] = _TRAINING
    form: Any = None

    @property
    def shown_default(self) -> str:
        return self.default_words or ("the method's" if self.default is None else str(self.default))


def _declared(default: object, help: str, range: Range | None = None, **named: Any) -> Any:
    return field(default=None, metadata={"declaration": Declaration(default, help, range, **named)})


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Each is None unless it is given; `resolve` replaces None by the default, or by the value of a
    resumed run. docs/training.md lists all of them with defaults and ranges.

    Examples
    --------
    >>> from trainer.settings import Settings, resolve
    >>> settings = resolve(Settings(method="pace+statistics", epochs=5, options={"pace": {"contrast": "same-pace"}}))
    >>> settings.backbone, settings.lr, settings.batch_size
    ('r3d10', 0.001, 30)
    """

    method: str = _declared(
        "pace",
        f"{', '.join(METHODS)}; several: pace+statistics; your own: my.module:Arrow",
        commands=("train", "samples"),
    )
    weights: list = _declared(
        None,
        "Weights of the losses of several methods, such as 1,0.5",
        default_words="all 1",
        commands=("train",),
        form=[float],
    )
    options: dict = _declared(None, "Options of the methods, {method: {name: value}}", commands=(), form={"*": dict})
    backbone: str = _declared(
        None,
        f"{', '.join(backbones.BACKBONES)}; your own: my.module:plain",
        default_words="the checkpoint's, the method's or r3d10",
    )
    width: float = _declared(
        1.0, "Multiplies the backbone's channels", between(0.01, 16), default_words="the checkpoint's or 1"
    )
    shard_weights: list = _declared(
        None,
        "With several --shards: relative frequency of samples of each, such as 1,4",
        default_words="all 1",
        commands=("train", "samples"),
        form=[float],
    )
    split: str = _declared(
        "1",
        "Official split, name or number, whose training videos are used",
        default_words="the first",
        commands=_SHOWN,
    )
    holdout: float = _declared(
        0.0,
        "Share of the training videos, by group, kept out and scored after each epoch",
        SHARE,
        default_words="the method's or 0",
        commands=_SHOWN,
    )
    fraction: float = _declared(
        1.0,
        "Share of the training videos to use, drawn from the seed; a smaller share is part of a larger one",
        Range("more than 0 and at most 1", lambda x: 0 < x <= 1),
        commands=_SHOWN,
    )
    subset: str = _declared(
        "all",
        "Train on half of the labelled clips: the easier, the harder or a random half",
        choices=("all", "easy", "hard", "random"),
        commands=("train", "samples"),
    )
    curriculum: float = _declared(
        0.0,
        "Share of the steps, at the beginning, that see only easier clips; the learning rate then restarts",
        SHARE,
        commands=("train", "samples"),
    )
    pacing: str = _declared(
        "single",
        "Share of the clips that a curriculum shows: half; or .04 x 1.9^k, in stages of fixed or varied length",
        choices=("single", "fixed", "varied"),
        commands=("train", "samples"),
    )
    seed: int = _declared(0, "Random seed of initial weights, sampling and augmentation", at_least(0), commands=_SHOWN)

    epochs: int = _declared(None, "Epochs; each shows every sample `repeats` times", between(1, 1_000_000))
    repeats: int = _declared(1, "Passes over the samples in an epoch, each with new random draws", between(1, 10_000))
    batch_size: int = _declared(None, "Largest number of samples per step, over all processes", between(1, 1 << 16))
    accumulate: int = _declared(1, "Gradient accumulation: number of parts of each step", between(1, 1 << 16))
    lr: float = _declared(None, "Learning rate at the start", POSITIVE)
    optimizer: str = _declared(
        "sgd",
        "SGD with momentum, LARS for large batches, or AdamW",
        choices=("sgd", "lars", "adamw"),
        default_words="the method's or sgd",
    )
    momentum: float = _declared(None, "Momentum of SGD and LARS, or the first beta of AdamW", at_least(0))
    weight_decay: float = _declared(
        None, "Weight decay of all parameters; with LARS of those of two or more dimensions", at_least(0)
    )
    schedule: str = _declared(
        None,
        "step: lr / 10 every drop_every epochs; cosine: 5 % warm-up, then to 0",
        choices=("step", "cosine", "constant"),
    )
    drop_every: int = _declared(None, "Epochs between two drops of the step schedule", POSITIVE)
    clip: float = _declared(
        0.0, "Clip the norm of the gradients to this value; 0: off", at_least(0), default_words="none"
    )
    ema: float = _declared(0.0, "Decay of averaged weights, which evaluation then uses; 0: none", SHARE)
    sync_bn: bool = _declared(
        False, "Batch normalisation over all processes, on CUDA", default_words="the method's or False"
    )
    jitter: str | None = _declared(
        None,
        "Colour jitter per clip or per frame; contrast: per clip, with random resized crop, grey and blur",
        choices=("none", "clip", "frame", "contrast"),
        commands=_SHOWN,
    )
    color_strength: float = _declared(
        1.0,
        "Multiplies the ranges of the colour jitter, brightness, contrast and saturation .8, hue .2",
        between(0, 1.25),
        commands=_SHOWN,
    )
    crop_area: list = _declared(
        [0.2, 1.0],
        "With --jitter contrast: smallest and largest share of the frame's area in a crop",
        default_words="0.2,1",
        form=[float],
        commands=_SHOWN,
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
        default_words="half of the available cores, 1 to 8",
        may_change=True,
    )
    device: str = _declared("auto", "cpu, cuda, cuda:1", default_words="cuda if there is one", may_change=True)
    checkpoint_minutes: float = _declared(
        5.0,
        "Minutes between checkpoints, written during training; one is always written at the end",
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
    log: list = _declared(
        [],
        "Logger beside log.csv, which needs its package; repeatable",
        choices=("tensorboard", "wandb", "mlflow"),
        default_words="none",
        form=[str],
        may_change=True,
    )
    log_every: int = _declared(
        10,
        "Seconds between two lines of progress if there is no terminal; the first step is printed at once",
        POSITIVE,
        may_change=True,
    )

    @property
    def methods(self) -> list[str]:
        """Names of the methods that are trained together, of settings that name them."""
        assert self.method is not None
        return self.method.split("+")


TYPES: dict[str, type] = {name: next(iter(get_args(hint)), hint) for name, hint in get_type_hints(Settings).items()}
DECLARATIONS: dict[str, Declaration] = {
    entry.name: replace(declaration, form=declaration.form or TYPES[entry.name])
    for entry in fields(Settings)
    for declaration in [entry.metadata["declaration"]]
}
FREE = {name for name, declaration in DECLARATIONS.items() if declaration.may_change}  # settings that change no weight
DEFAULT_BACKBONE = "r3d10"


def resolve(settings: Settings) -> Settings:
    """The settings with all defaults filled in. Raises SettingError for invalid values."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    if type(given.get("split")) is int:
        given["split"] = str(given["split"])
    given = {name: DECLARATIONS[name].checked(name, value) for name, value in given.items()}
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
        raise SettingError(f"options of {name!r} are given, but the method is {'+'.join(methods)}")
    values["options"] = {name: method.option_values(chosen.get(name)) for name, method in classes.items()}
    values["weights"] = _weights(given.get("weights"), methods)
    values["shard_weights"] = _shard_weights(given.get("shard_weights", []))
    _check_jitter(values, defaults | classes[methods[0]].defaults, classes)
    if values["pacing"] != "single" and not values["curriculum"]:
        raise SettingError(f"pacing is {values['pacing']}, but curriculum is 0; set curriculum, such as 0.5")
    return Settings(**values)


def _check_jitter(values: dict, defaults: dict, classes: dict[str, type[Method]]) -> None:
    """Raises SettingError for an augmentation that a method cannot use, and for settings of an augmentation that is not
    used."""
    jitters = {name: values["jitter"] or method.defaults["jitter"] for name, method in classes.items()}
    for name, jitter in jitters.items():
        if jitter == "contrast" and classes[name].labels_of_crops:
            raise SettingError(
                f"jitter is contrast, but {name} learns labels of the grid crops and colours in the shards, which contrast "
                "changes; choose none, or another method"
            )
    area = values["crop_area"]
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise SettingError(
            f"crop_area is {area}, expected two shares of the frame, the smallest and the largest, such as 0.2,1"
        )
    for name, needs in (("crop_area", {"contrast"}), ("color_strength", {"contrast", "clip", "frame"})):
        if values[name] != defaults[name] and not needs & {*jitters.values()}:
            raise SettingError(
                f"{name} is {values[name]}, but jitter is {values['jitter']}, which does not use it; leave it at {defaults[name]}"
            )


def _weights(given: list[float] | None, methods: list[str]) -> list[float]:
    weights = [1.0] * len(methods) if given is None else given
    if len(weights) != len(methods) or not all(weight > 0 for weight in weights):
        raise SettingError(f"weights are {weights}, expected one more than 0 for each of {', '.join(methods)}")
    if len(methods) == 1 and weights != [1.0]:
        raise SettingError(f"weights are {weights}, but there is only one method; raise its learning rate instead")
    return weights


def _shard_weights(given: list[float]) -> list[int]:
    if not all(1 <= weight <= 1000 and weight == int(weight) for weight in given):
        raise SettingError(f"shard_weights are {given}, expected whole numbers from 1 to 1000, one for each --shards")
    return [int(weight) for weight in given]


def over(recipe: Settings, given: Settings) -> Settings:
    """The settings of a recipe, replaced by those given."""
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    if "options" in changes:
        old = recipe.options or {}
        for options in (old, changes["options"]):
            check_form(options, DECLARATIONS["options"].form, "options")
        changes["options"] = {m: old.get(m, {}) | changes["options"].get(m, {}) for m in {**old, **changes["options"]}}
    if recipe.method and changes.get("method", recipe.method) != recipe.method:
        raise SettingError(f"the recipe is for method {recipe.method}, not {changes['method']}; leave one of them out")
    return replace(recipe, **changes)


def resumed(given: Settings, stored: dict, run: Path) -> Settings:
    """The stored settings of a run, with given ones that change no weight. Raises TrainerError for other differences."""
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    options = changes.pop("options", {})
    changes |= {"split": str(given.split)} if given.split is not None else {}  # a recipe may say it as a number
    stored = asdict(resolve(Settings(**stored)))  # older versions lack some settings
    differences = [
        (name, value, stored[name]) for name, value in changes.items() if name not in FREE and value != stored[name]
    ]
    for method, values in options.items():
        has = stored["options"].get(method, {})
        differences += [(name, value, has.get(name)) for name, value in values.items() if value != has.get(name)]
    if differences:
        both = "; ".join(f"{name} is {value!r}, but the run has {old!r}" for name, value, old in differences)
        raise TrainerError(f"cannot resume {run}: {both}. Leave them out, or start a new run")
    return resolve(replace(Settings(**stored), **changes))
