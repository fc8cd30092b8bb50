"""The budget and the settings of runs, and in which of them several runs differ."""

from __future__ import annotations

from labelgen.errors import VsslError
from trainer import checkpoint
from trainer.evaluate.results import flat
from trainer.evaluate.splits import with_split
from trainer.pages.budgets import clips_seen
from trainer.pages.published import pretraining
from trainer.pages.report import parameters
from trainer.settings import Settings, resolve

_BUDGET = ("clips seen", "steps", "epochs", "batch size", "samples per epoch", "trained on", "pretrained on")


def described(saved: checkpoint.Checkpoint) -> dict[str, object]:
    """A run's settings and its budget."""
    meta, settings = saved.meta, saved.meta["settings"]
    method, dataset = pretraining(settings, meta["initial"])
    finetuned = checkpoint.with_labels(settings)
    training: dict[str, object] = {
        "epochs": settings["epochs"],
        "batch size": settings["batch_size"],
        "optimizer": f"{settings['optimizer']}, {settings['schedule']}, lr {settings['lr']}",
        "jitter": _jitter(settings),
    }
    if settings["method"] == checkpoint.IMPORTED:  # elsewhere
        training = dict.fromkeys(training, "unknown")
    return {
        "method": f"{method}, finetuned" if finetuned else method,
        "options": _options(settings),
        "backbone": settings["backbone"],
        "width": f"{settings['width']:g}",
        "parameters": f"{parameters(saved):,}",
        "pretrained on": (dataset or "nothing") if finetuned else meta["dataset"],
        "trained on": with_split(meta["dataset"], meta["split"]),
        "samples per epoch": " + ".join(f"{n:,}" for n in meta["samples"].values()),
        **training,
        "steps": f"{meta['step']:,} of {meta['steps']:,}",
        "clips seen": f"{clips_seen(meta):,}",
        "seed": settings["seed"],
        "shards": meta["config_hash"],
        "torch": meta["environment"]["torch"],
    }


def _options(settings: dict) -> str:
    """The options of a run's methods that do not have their usual values."""
    try:
        usual = flat(resolve(Settings(method=settings["method"])).options)
    except VsslError:  # of a method that is not available
        usual = []
    unusual = [f"{name} {value}" for name, value in flat(settings["options"]) if (name, value) not in usual]
    return ", ".join(unusual) or "usual" * bool(settings["options"])


def _jitter(settings: dict) -> str:
    """The augmentation of a run in words."""
    jitter = settings["jitter"] or "each method's"
    if jitter == "none":
        return jitter
    area = (
        ""
        if jitter in ("clip", "frame")
        else f", crop area {','.join(f'{share:g}' for share in settings['crop_area'])}"
    )
    return f"{jitter}, strength {settings['color_strength']:g}{area}"


def differing(runs: dict[str, dict[str, object]]) -> tuple[list[list], list[tuple[object, object]]]:
    """Of the descriptions of several runs by name: a line, with a cell for each run, for every property that differs, budgets
    first; and the properties that all runs share, with their values."""
    about = [*runs.values()]
    keys = dict.fromkeys([*_BUDGET, *about[0]])
    lines = [[key, *(of[key] for of in about)] for key in keys]
    differ = [line for line in lines if len({*map(str, line[1:])}) > 1]
    return differ, [(line[0], line[1]) for line in lines if line not in differ]
