"""Weights of another program become a run, which every command takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from labelgen import files
from labelgen.errors import VsslError
from labelgen.texts import path_text
from trainer import checkpoint
from trainer.errors import SettingError, TrainerError
from trainer.settings import Settings, resolve
from trainer.weights import foreign

_MOST = 256  # frames of a clip


def import_weights(
    file: str | os.PathLike,
    out: str | os.PathLike,
    name: str | None = None,
    frames: int | None = None,
    stride: int | None = None,
    say: Callable[[str], None] = print,
) -> checkpoint.Checkpoint:
    """Write a run that holds the backbone of a file, with what pixels it expects and where it is from.

    name: the program that the weights are of, see families.FAMILIES; by default as the names of the tensors tell
    frames, stride: of a clip, if another one than that of the published weights

    A run that is there with the same weights is kept. Raises TrainerError for a file that is no network that is known, and if
    the folder holds something else.
    """
    file, out = Path(file), checkpoint.run_path(out)
    found = foreign.read(file)
    try:
        match = foreign.recognise(found, name)
        weights = match.weights(found.tensors)
    except VsslError as error:
        raise type(error)(f"{file}: {error}") from error
    meta = _meta(file, found, match, frames, stride)
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, TrainerError(f"{out}: another process is writing this run; wait for it"), say):
        if any((out / "checkpoints").glob("[0-9]*")):
            there = checkpoint.load(out)
            if any(there.meta.get(key) != meta[key] for key in ("imported", "input", "config", "norm_epsilon")):
                raise TrainerError(f"{out}: exists and holds other weights; name another folder")
            say(f"{out}: is there already, with these weights")
            return there
        if other := [path.name for path in out.iterdir() if path.name not in (".lock", "checkpoints")]:
            raise TrainerError(f"{out}: exists and holds {other[0]}; name another folder")
        checkpoint.save(out, 1, {f"backbone.{key}": value for key, value in weights.items()}, {"state": {}}, meta)
    return checkpoint.load(out)


def _meta(file: Path, found: foreign.Found, match: foreign.Match, frames: int | None, stride: int | None) -> dict:
    """What checkpoint.json holds of the run."""
    family = match.family
    height, width, crop = family.size
    expected = replace(family.input, frames=frames or family.input.frames, stride=stride or family.input.stride)
    if not 1 <= (expected.frames or 1) <= _MOST or not 1 <= expected.stride <= _MOST:
        raise SettingError(f"frames is {frames}, stride {stride}, expected numbers from 1 to {_MOST}")
    config = {"height": height, "width": width, "crop": crop, "clip_length": expected.frames, "fps": family.fps}
    settings = asdict(resolve(Settings(backbone=match.backbone))) | {"method": checkpoint.IMPORTED, "options": {}}
    return {
        "settings": settings,
        "dataset": path_text(file.name),
        "split": None,
        "datasets": {},
        "samples": {},
        "videos": 0,
        "classes": [],
        "steps": 1,
        "config_hash": found.sha256[:16],
        "config": config,
        "environment": checkpoint.versions(),
        "initial": None,
        "input": expected.stored(),
        "norm_epsilon": family.epsilon,
        "imported": {
            "file": path_text(file.name),
            "sha256": found.sha256,
            "family": family.name,
            "about": family.about,
            "expects": expected.described,
            "note": family.note,
            "wrapper": foreign.shown(found.wrapper),
            "prefix": foreign.shown(match.prefix),
            "dropped": [foreign.shown(name) for name in match.dropped],
        },
    }
