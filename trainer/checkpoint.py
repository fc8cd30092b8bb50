"""Checkpoints: folders that are complete or absent, from which alone the network can be rebuilt.

<run>/checkpoints/00000200/
    weights.safetensors   weights and buffers; its metadata repeats checkpoint.json
    checkpoint.json       settings, step, data set, configuration of the shards, versions
    optimiser.safetensors state of the optimiser, for resuming

The newest one replaces older ones. <run>/best has the one of the best held-out accuracy; <run>/kept has one of every
`keep_every` epochs, without the optimiser.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from labelgen import plugins
from labelgen.config import Config
from labelgen.errors import ReadError, VsslError
from labelgen.files import public, sync, writing
from labelgen.reading import load_json, validate
from trainer import backbones, inputs
from trainer.backbones.layers import Stages
from trainer.errors import SettingError, TrainerError
from trainer.methods import known, method_class, module_name
from trainer.settings import FREE, Settings, resolve
from trainer.tensors import IMPORT, digest, read_tensors

SCHEMA = 2
RUNS = Path("runs")
_ORIGIN = {"dataset": str, "split": str | None, "samples": {"*": int}, "steps": int, "step": int, "config_hash": str}
_META = {  # the form of the metadata; names with ? may be missing
    **_ORIGIN,
    "settings": dict,
    "videos": int,
    "classes": [str],
    "config": dict,
    "environment": {"torch": str},
    "initial": dict | None,
    "run?": str,
    "input?": dict,
    "norm_epsilon?": float,
    "imported?": {**dict.fromkeys(("file", "sha256", "family", "about", "expects", "note"), str), "dropped": [str]},
}
_FRAMES = ("height", "width", "crop", "clip_length", "fps", "jpeg_quality", "max_pixels")  # of the configuration
_INITIAL = {"file": str, "settings": {"method": str}, **_ORIGIN}
_STATE = {  # state of each parameter
    "SGD": {"momentum_buffer"},
    "LARS": {"momentum_buffer"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
}
IMPORTED = "imported"  # the method of runs with weights of another program
_LATER = {"color_strength", "crop_area"}  # settings whose defaults are what every version before them did
_OTHER = "it was changed, or written by another version of vssl; use another one, or train again"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, see `load`. meta: content of checkpoint.json; weights: by name, on the CPU; run: folder for results."""

    file: Path
    run: Path
    meta: dict
    weights: dict[str, Tensor]

    def optimiser_state(self) -> dict[int, dict[str, Tensor]]:
        """State of the optimiser, by number of the parameter and name. Raises TrainerError if it is missing or damaged."""
        path = self.file.with_name("optimiser.safetensors")
        try:
            _, tensors = read_tensors(path)
        except (ReadError, TrainerError) as error:
            raise TrainerError(f"{error}; training cannot continue from here") from error
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, _, name = key.partition(".")
            if not number.isdecimal() or len(number) > 9:
                raise TrainerError(f"{path}: {key!r:.60} does not belong to a parameter; {_OTHER}")
            state.setdefault(int(number), {})[name] = value
        return state

    def restore(self, optimiser: torch.optim.Optimizer) -> None:
        """Restore the state of an optimiser. Raises TrainerError if it is missing or does not fit."""
        state, now = self.optimiser_state(), optimiser.state_dict()
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for number, tensors in state.items():
            shapes = {(), weights[number].shape} if number < len(weights) else set()
            if tensors.keys() != _STATE[type(optimiser).__name__] or any(
                v.shape not in shapes for v in tensors.values()
            ):
                file = self.file.with_name("optimiser.safetensors")
                raise TrainerError(f"{file}: the state of parameter {number} is of another optimiser; {_OTHER}")
            for name, value in tensors.items():  # in the parameter's memory layout, so that sums are rounded as before
                tensors[name] = torch.empty_like(weights[number]).copy_(value) if value.dim() else value
        optimiser.load_state_dict({"state": state, "param_groups": now["param_groups"]})


def save(
    run: Path, step: int, weights: dict[str, Tensor], optimiser: dict, meta: dict, kind: str = "checkpoints"
) -> Path:
    """Write the checkpoint of a step and, unless its kind is "kept", remove the older ones. At any time a complete one exists.

    weights, optimiser: states of network and optimiser, on the CPU; kind: folder of the run, "checkpoints", "best" or "kept".
    """
    parent = run / kind
    target = parent / f"{step:08d}"
    if target.exists():
        return target
    meta = {"schema": SCHEMA, "step": step, **meta}
    with writing(parent):
        parent.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=parent))
    try:
        with writing(target, SafetensorError, RuntimeError):  # what the libraries raise if the disk is full
            weights = {name: tensor.contiguous() for name, tensor in weights.items()}
            save_file(weights, temporary / "weights.safetensors", {"vssl": json.dumps(meta)})
            if kind != "kept":
                states = optimiser["state"].items()
                tensors = {f"{number}.{name}": tensor for number, state in states for name, tensor in state.items()}
                tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
                save_file(tensors, temporary / "optimiser.safetensors")
            (temporary / "checkpoint.json").write_text(json.dumps(meta, indent=2) + "\n")
            public(temporary)
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(parent)
    for old in (*(parent.glob("[0-9]*") if kind != "kept" else ()), *parent.glob(".*.tmp")):
        if old != target:
            shutil.rmtree(old)
    return target


def run_path(name: str | os.PathLike) -> Path:
    """A run by name or path: a bare name refers to runs/, unless it exists in the current folder."""
    path = Path(name)
    return RUNS / path if len(path.parts) == 1 and not path.exists() else path


def newest_run(finetuned: bool = True) -> Path:
    """The run in runs/ whose checkpoint was written last and has at least one step. finetuned: include runs that were
    trained with labels.

    Raises TrainerError if there is none.
    """
    written: dict[Path, float] = {}
    for path in RUNS.glob("*/checkpoints/[0-9]*"):
        with suppress(FileNotFoundError):  # another process has just replaced it by a newer one
            if path.name.isdecimal() and int(path.name) and (finetuned or _pretrained(path)):
                written[path] = path.stat().st_mtime
    if not written:
        raise TrainerError(
            f"no {'' if finetuned else 'pretrained '}run with at least one step in {RUNS}/; train one with "
            "`vssl train`, or name a checkpoint"
        )
    return max(written, key=written.__getitem__).parents[1]


def _pretrained(folder: Path) -> bool:
    try:
        return not with_labels(load_json(folder / "checkpoint.json")["settings"])
    except (VsslError, LookupError, TypeError, AttributeError):
        return True  # damaged: loading reports it


def trained_splits(meta: dict) -> dict[str, str | None]:
    """The data sets of a run's training, each with its split; empty for imported weights, of which nothing is known."""
    if meta["settings"]["method"] == IMPORTED:
        return {}
    return meta.get("datasets") or {meta["dataset"]: meta["split"]}


def with_labels(settings: dict) -> bool:
    """Whether a run with these settings learns the class labels."""
    names = settings["method"].split("+")
    return any(known(name) and method_class(name).supervised for name in names)  # nothing is known of others


def load(path: str | os.PathLike, best: bool = False, untrained: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : str or path
        A run, whose newest checkpoint is read, a checkpoint folder or a .safetensors file of `vssl export`.
    best : bool
        The checkpoint of the best held-out accuracy, if the run has one.
    untrained : bool
        Accept one from before the first step, with random weights, so that training can continue from it.

    Returns
    -------
    Checkpoint
        Its weights are on the CPU.

    Raises
    ------
    TrainerError
        If there is none, or if metadata or backbone differ from what this version of vssl writes.

    Examples
    --------
    >>> from trainer.checkpoint import load
    >>> saved = load("runs/pace-r3d10-1")
    >>> saved.meta["settings"]["method"], saved.meta["config"]["clip_length"]
    ('pace', 16)
    """
    path = run_path(path)
    saved = _load(path) if not (path / "checkpoints").is_dir() else _load_newest(path, best)
    if not saved.meta["step"] and not untrained:
        raise TrainerError(
            f"{saved.file}: it was not trained yet, its weights are random; continue its training "
            f"(`vssl train --resume {saved.run}`), or choose another run"
        )
    return saved


def _load_newest(run: Path, best: bool) -> Checkpoint:
    """The newest checkpoint of a run, even if a training process replaces it meanwhile."""
    folder = _newest(run, best)
    while True:
        try:
            return _load(folder)
        except TrainerError:
            before, folder = folder, _newest(run, best)
            if folder == before:
                raise


def _load(path: Path) -> Checkpoint:
    file = path / "weights.safetensors" if path.is_dir() else path
    if not file.exists():
        raise TrainerError(f"{path}: neither a run, a checkpoint folder nor a .safetensors file")
    meta, weights = read_tensors(file)
    if meta is None:
        raise TrainerError(f"{file}: weights that vssl did not write; {IMPORT.format(file)}")
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else "none"
        raise TrainerError(
            f"{file}: checkpoint schema {found!s:.60}, expected {SCHEMA}; train it again with this version"
        )
    _check_meta(file, meta)
    # results of a kept checkpoint go beside it, those of a single file, such as an exported one, into a folder of its name
    folder = file.parent.parent  # a bare file name has no parents[1]
    run = {"checkpoints": folder.parent, "best": folder.parent, "kept": file.parent}.get(
        folder.name, file.with_suffix("")
    )
    names = [name for name in meta["settings"]["method"].split("+") if name != IMPORTED]
    former = {f".{module_name(name)}.{buffer}" for name in names for buffer in method_class(name).former_buffers}
    weights = {name: value for name, value in weights.items() if not name.endswith(tuple(former))}
    saved = Checkpoint(file, run, meta, weights)
    with torch.device("meta"):
        backbone = backbones.create(meta["settings"]["backbone"], meta["settings"]["width"])
    check_fit(file, backbone, backbone_weights(saved))
    return saved


def check_newest(saved: Checkpoint) -> None:
    """Raises TrainerError if it is not the newest of its run, because another process has trained further."""
    if saved.meta["settings"]["method"] == IMPORTED:
        raise TrainerError(
            f"{saved.run}: imported weights, whose training cannot be resumed; start a new run from them"
        )
    if not (saved.run / "checkpoints").is_dir():
        raise TrainerError(f"{saved.file}: it does not belong to a run whose training could continue")
    if saved.file.parent.name != (newest := _newest(saved.run)).name:
        raise TrainerError(f"{saved.file.parent}: the run has another checkpoint, {newest}; resume it from there")


def _newest(run: Path, best: bool = False) -> Path:
    """Folder of the last checkpoint; best: of the best one, if there is one."""
    for kind in ("best", "checkpoints") if best else ("checkpoints",):
        if found := [folder for folder in (run / kind).glob("[0-9]*") if folder.name.isdecimal()]:
            return max(found, key=lambda folder: int(folder.name))
    raise TrainerError(f"{run}: the run has no checkpoint yet; start another run under a new name")


def _check_meta(file: Path, meta: dict) -> None:
    """Raises TrainerError for metadata that no training wrote; converts the settings to those of this version."""
    try:
        validate(meta, _META, "it")
        if meta["initial"] is not None:
            validate(meta["initial"], _INITIAL, "initial")
        check_frames(meta["config"])
        if "input" in meta:
            inputs.read(meta["input"])
            if not 0 < meta.get("norm_epsilon", 0) < 1:
                raise ValueError(f"norm_epsilon is {meta.get('norm_epsilon')}, expected a number between 0 and 1")
        if not 0 <= meta["step"] <= meta["steps"]:
            raise ValueError(f"step {meta['step']} of {meta['steps']}")
    except ValueError as error:
        raise TrainerError(f"{file}: its metadata are damaged ({error}); {_OTHER}") from error
    # older versions may lack settings that change no weight, and those that came later
    if wrong := sorted(({field.name for field in fields(Settings)} ^ meta["settings"].keys()) - FREE - _LATER):
        raise TrainerError(f"{file}: {', '.join(wrong):.200} missing or unknown in its metadata; {_OTHER}")
    made_with = [meta["settings"][name] for name in ("method", "backbone")]
    try:
        plugins.check_named(
            [name for text in made_with if isinstance(text, str) for name in text.split("+")], SettingError
        )
    except SettingError as error:
        raise TrainerError(f"{file}: {error}") from error
    try:
        stored = meta["settings"]
        bare = {"method": None, "options": None} if stored["method"] == IMPORTED else {}  # not a method of this program
        meta["settings"] = asdict(resolve(Settings(**stored | bare))) | {name: stored[name] for name in bare}
    except TrainerError as error:
        raise TrainerError(f"{file}: {error}; {_OTHER}") from error


def check_frames(config: dict) -> None:
    """Raises ValueError for frames that labelgen cannot have made."""
    validate(config, {"height": int, "width": int, "crop": int}, "config")
    Config(**{name: config[name] for name in _FRAMES if name in config})


def check_fit(file: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises TrainerError, which names the file, if names or shapes of its weights differ from the module's."""
    expected, found = (
        {name: (value.shape, value.is_floating_point()) for name, value in tensors.items()}
        for tensors in (module.state_dict(), weights)
    )
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise TrainerError(
            f"{file}: {wrong[0]}{more} missing, unknown or of a shape that does not match its settings; {_OTHER}"
        )


def backbone_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """The weights of the backbone by name, averaged ones if the run has them."""
    prefix = "ema.backbone." if any(name.startswith("ema.backbone.") for name in saved.weights) else "backbone."
    return {name.removeprefix(prefix): value for name, value in saved.weights.items() if name.startswith(prefix)}


def start_from(path: str | os.PathLike, backbone: Stages, say: Callable[[str], None]) -> dict:
    """Copy the weights of a checkpoint's backbone into this one, with the normalisation of its input and the epsilon of
    its batch normalisation; report which ones matched, and return a description of their origin. Clip length and stride
    stay those of the shards.

    Raises TrainerError if less than 95 % of the backbone's parameters have a counterpart of the same name and shape.
    """
    saved = load(path, best=True)
    weights, before = backbone_weights(saved), backbone.state_dict()
    matched = {name: value for name, value in weights.items() if name in before and value.shape == before[name].shape}
    other = {
        "missing": before.keys() - weights.keys(),
        "of different shape": before.keys() & weights.keys() - matched.keys(),
        "unexpected": weights.keys() - before.keys(),
    }
    sizes = {name: weight.numel() for name, weight in backbone.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in matched) / sum(sizes.values())
    report = f"{saved.file}: {len(matched)} of {len(before)} tensors matched ({100 * share:.1f} % of the parameters)"
    if share < 0.95:
        counts = ", ".join(f"{len(names)} {word}" for word, names in other.items() if names)
        has = saved.meta["settings"]
        raise TrainerError(
            f"{report}, expected at least 95 %; {counts}: it holds {has['backbone']} of width {has['width']:g}"
        )
    say(report + "".join(f"; {word}: {', '.join(sorted(names))}" for word, names in other.items() if names))
    backbone.load_state_dict(before | matched)
    backbone.expect(saved.meta)
    backbone.input = replace(backbone.input, frames=None, stride=1)
    kept = ("dataset", "split", "samples", "steps", "step", "config_hash")
    origin = {"file": str(saved.file), "weights": digest(weights), "imported": saved.meta.get("imported")}
    return origin | {"settings": saved.meta["settings"]} | {name: saved.meta[name] for name in kept}


def versions() -> dict[str, str]:
    """The versions of the packages that produced the results."""
    try:
        vssl = version("vssl")
    except PackageNotFoundError:
        vssl = "not installed"
    return {"vssl": vssl, "python": platform.python_version(), "torch": torch.__version__}
