"""How much data runs have seen, and how that differs between compared runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from trainer.checkpoint import IMPORTED, Checkpoint
from trainer.methods import method_class
from trainer.settings import Settings, resolve

_FACTOR = 1.05  # largest ratio of budgets that count as equal


def clips_seen(meta: dict) -> int:
    """Clips of different frames that a run with these metadata has seen, as studies count them: all encoded clips of each
    sample."""
    if meta["settings"]["method"] == IMPORTED:
        return 0  # unknown for imported weights
    settings = resolve(Settings(**meta["settings"]))
    values, done = asdict(settings), meta["step"] / max(1, meta["steps"])
    shown = values["epochs"] * values["repeats"] * max(meta["samples"].values()) * done
    encoded = (method_class(name).shape(meta["config"], values["options"][name])[0] for name in settings.methods)
    return round(shown * sum(encoded))


def unequal(saved: Mapping[str, Checkpoint]) -> list[str]:
    """How the budgets of runs (by name) differ, as text: clips seen, videos in the shards, steps of the pretraining."""
    found = {
        "clips seen": {name: clips_seen(run.meta) for name, run in saved.items()},
        "videos in the shards": {name: run.meta["videos"] for name, run in saved.items()},
        "steps of the pretraining": {name: (run.meta["initial"] or {"step": 0})["step"] for name, run in saved.items()},
    }
    return [
        f"{what}: " + ", ".join(f"{value:,} ({name})" for name, value in values.items())
        for what, values in found.items()
        if max(values.values()) > _FACTOR * min(values.values())
    ]
