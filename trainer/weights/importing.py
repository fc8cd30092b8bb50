"""Turns weights of other programs into runs, which all commands accept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from labelgen import files
from labelgen.errors import ReadError, VsslError
from labelgen.reading import load_json, validate
from labelgen.texts import path_text
from trainer import checkpoint, inputs
from trainer.errors import SettingError, TrainerError
from trainer.settings import Settings, resolve
from trainer.weights import foreign

_MOST = 256  # largest number of frames of a clip
_EXPORTED = {"input": {"fps": float | None, "resize": [int], "crop": [int]}}  # the part that is used


def import_weights(
    file: str | os.PathLike,
    out: str | os.PathLike,
    name: str | None = None,
    frames: int | None = None,
    stride: int | None = None,
    say: Callable[[str], None] = print,
) -> checkpoint.Checkpoint:
    """Write a run with the backbone of a file, its input and its origin. An existing run with the same weights is kept.

    Parameters
    ----------
    file : str or path
        A state dict, of torch.save or safetensors.
    out : str or path
        Name (in runs/) or path of the run.
    name : str
        The program that made the weights, see families.FAMILIES; by default it is recognised by the names of tensors.
    frames, stride : int
        Of a clip, in frames, if not those of the published weights.
    say : callable
        Called with lines of text for the user.

    Returns
    -------
    Checkpoint
        Of the run.

    Raises
    ------
    TrainerError
        If the file is not a known network, or if the folder holds something else.

    Examples
    --------
    >>> from trainer.weights.importing import import_weights
    >>> saved = import_weights("vcop_r3d.pth", "runs/imported", "vcop")
    >>> saved.meta["settings"]["backbone"], saved.meta["imported"]["family"]
    ('r3d10', 'vcop')
    """
    file, out = Path(file), checkpoint.run_path(out)
    found = foreign.read(file)
    try:
        match = foreign.recognise(found, name)
        weights = match.weights(found.tensors)
    except VsslError as error:
        raise type(error)(f"{file}: {error}") from error
    meta = _meta(file, found, match, _exported(file), frames, stride)
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, TrainerError(f"{out}: another process is writing this run; wait for it"), say):
        if any((out / "checkpoints").glob("[0-9]*")):
            there = checkpoint.load(out)
            if any(there.meta.get(key) != meta[key] for key in ("imported", "input", "config", "norm_epsilon")):
                raise TrainerError(f"{out}: exists and holds other weights; choose another folder")
            say(f"{out}: up to date (same weights)")
            return there
        if other := [path.name for path in out.iterdir() if path.name not in (".lock", "checkpoints")]:
            raise TrainerError(f"{out}: exists and holds {other[0]}; choose another folder")
        checkpoint.save(out, 1, {f"backbone.{key}": value for key, value in weights.items()}, {"state": {}}, meta)
    return checkpoint.load(out)


def _exported(file: Path) -> dict | None:
    """The description that `vssl export` has written beside the file, if any, because its input differs from that of
    published weights with the same names. Raises TrainerError if it is damaged."""
    path = Path(f"{file}.json")
    if not path.exists():
        return None
    try:
        content = load_json(path)
        validate(content, _EXPORTED, "it")
        own = content["input"]
        own["expected"] = inputs.read({name: own[name] for name in inputs.OURS.stored()})
        (height, width), (crop, _) = own["resize"], own["crop"]
        checkpoint.check_frames({"height": height, "width": width, "crop": crop})
    except (ReadError, ValueError, LookupError) as error:
        raise TrainerError(
            f"{path}: it does not give the input of {file.name} ({error!s:.200}); export the weights again, or "
            "remove this file if they are published ones"
        ) from error
    return own


def _meta(
    file: Path,
    found: foreign.WeightsFile,
    match: foreign.Match,
    exported: dict | None,
    frames: int | None,
    stride: int | None,
) -> dict:
    """The content of the run's checkpoint.json."""
    family = match.family
    height, width, crop = family.size
    fps, known = family.fps, family.input
    if exported is not None:
        known, fps = exported["expected"], exported["fps"]
        (height, width), (crop, _) = exported["resize"], exported["crop"]
    expected = replace(known, frames=frames or known.frames, stride=stride or known.stride)
    if not 1 <= (expected.frames or 1) <= _MOST or not 1 <= expected.stride <= _MOST:
        raise SettingError(f"frames is {frames}, stride {stride}, expected integers from 1 to {_MOST}")
    config = {"height": height, "width": width, "crop": crop, "clip_length": expected.frames, "fps": fps}
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
            "note": family.note if exported is None else f"its input is that of {file.name}.json",
            "wrapper": foreign.shown(found.wrapper),
            "prefix": foreign.shown(match.prefix),
            "dropped": [foreign.shown(name) for name in match.dropped],
        },
    }
