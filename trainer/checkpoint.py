"""Checkpoints: folders that exist whole or not at all, from which the network can be rebuilt without anything else.

<run>/checkpoints/00000200/
    weights.safetensors   weights and buffers; its metadata holds checkpoint.json once more
    checkpoint.json       settings, step, data set, configuration of the shards, versions
    optimiser.safetensors state of the optimiser, to resume

The newest one replaces the older ones. <run>/best has the one with the best held-out accuracy; <run>/kept has those that stay,
one every `keep_every` epochs, without the optimiser.
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
from labelgen.reading import fit, load_json
from trainer import backbones, distributed, inputs
from trainer.backbones.layers import Stages
from trainer.data import Shards
from trainer.errors import SettingError, TrainerError
from trainer.methods import known, method_class, module_name
from trainer.settings import FREE, Settings, resolve
from trainer.tensors import IMPORT, digest, read_tensors

SCHEMA = 2
RUNS = Path("runs")
_ORIGIN = {"dataset": str, "split": str | None, "samples": {"*": int}, "steps": int, "step": int, "config_hash": str}
_META = {  # what metadata hold; names with ? may be missing
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
_STATE = {  # of each parameter
    "SGD": {"momentum_buffer"},
    "LARS": {"momentum_buffer"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
}
IMPORTED = "imported"  # the method of a run whose weights are from another program
_OTHER = "it was changed, or written by another version of vssl; use another one, or train again"


@dataclass(frozen=True)
class Checkpoint:
    """meta: what checkpoint.json holds; weights: by name, on the CPU; run: folder that results belong in."""

    file: Path
    run: Path
    meta: dict
    weights: dict[str, Tensor]

    def optimiser_state(self) -> dict[int, dict[str, Tensor]]:
        """State of the optimiser by number of the parameter and name. Raises TrainerError if it is missing or damaged."""
        path = self.file.with_name("optimiser.safetensors")
        try:
            _, tensors = read_tensors(path)
        except (ReadError, TrainerError) as error:
            raise TrainerError(f"{error}; training cannot continue from here") from error
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, _, name = key.partition(".")
            if not number.isdecimal() or len(number) > 9:
                raise TrainerError(f"{path}: {key!r:.60} belongs to no parameter; {_OTHER}")
            state.setdefault(int(number), {})[name] = value
        return state

    def restore(self, optimiser: torch.optim.Optimizer) -> None:
        """Give an optimiser its stored state. Raises TrainerError if it is missing or does not fit."""
        state, now = self.optimiser_state(), optimiser.state_dict()
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for number, tensors in state.items():
            shapes = {(), weights[number].shape} if number < len(weights) else set()
            if tensors.keys() != _STATE[type(optimiser).__name__] or any(
                v.shape not in shapes for v in tensors.values()
            ):
                file = self.file.with_name("optimiser.safetensors")
                raise TrainerError(f"{file}: the state of parameter {number} is of another optimiser; {_OTHER}")
            for name, value in tensors.items():  # in memory like the parameter, so that sums are rounded as before
                tensors[name] = torch.empty_like(weights[number]).copy_(value) if value.dim() else value
        optimiser.load_state_dict({"state": state, "param_groups": now["param_groups"]})


def metadata(
    settings: Settings,
    source: Shards,
    backbone: Stages,
    samples: dict[str, int],
    steps: int,
    device: torch.device,
    initial: dict | None,
) -> dict:
    """What checkpoint.json holds of a run, but for the step. samples: number of each method's; initial: see `start_from`."""
    return {
        "settings": asdict(settings),
        "dataset": source.dataset,
        "split": source.split,
        "datasets": source.splits,
        "samples": samples,
        "videos": len(source.videos),
        "classes": source.classes,
        "steps": steps,
        "config_hash": source.config_hash,
        "config": source.config,
        **backbone.stored(),
        "environment": {
            "device": device.type,
            "processes": distributed.world(),
            "threads": torch.get_num_threads(),
            **versions(),
        },
        "initial": initial,
    }


def save(
    run: Path, step: int, weights: dict[str, Tensor], optimiser: dict, meta: dict, kind: str = "checkpoints"
) -> Path:
    """Write the checkpoint of a step and, unless its kind is "kept", remove the older ones. At any moment a whole one exists.

    weights, optimiser: states of network and optimiser, on the CPU; kind: the run's folder, "checkpoints", "best" or "kept".
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
        with writing(target, SafetensorError, RuntimeError):  # what the libraries make of a full disk
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
    """A run by name or path: a bare name is looked for in runs/, unless the current folder has something of that name."""
    path = Path(name)
    return RUNS / path if len(path.parts) == 1 and not path.exists() else path


def newest_run(finetuned: bool = True) -> Path:
    """The run in runs/ whose checkpoint was written last, of those with at least one step; finetuned: runs that were trained
    with labels count, too.

    Raises TrainerError if there is none.
    """
    written: dict[Path, float] = {}
    for path in RUNS.glob("*/checkpoints/[0-9]*"):
        with suppress(FileNotFoundError):  # another process has just replaced it: the run has a newer one
            if path.name.isdecimal() and int(path.name) and (finetuned or _pretrained(path)):
                written[path] = path.stat().st_mtime
    if not written:
        raise TrainerError(
            f"no {'' if finetuned else 'pretrained '}run with a step done in {RUNS}/; train one with `vssl train`, or name a "
            "checkpoint"
        )
    return max(written, key=written.__getitem__).parents[1]


def _pretrained(folder: Path) -> bool:
    try:
        return not with_labels(load_json(folder / "checkpoint.json")["settings"])
    except (VsslError, LookupError, TypeError, AttributeError):
        return True  # damaged, which loading it reports


def trained_splits(meta: dict) -> dict[str, str | None]:
    """The data sets that a run was trained on, each with the split that was seen of it; of imported weights nothing is known."""
    if meta["settings"]["method"] == IMPORTED:
        return {}
    return meta.get("datasets") or {meta["dataset"]: meta["split"]}


def with_labels(settings: dict) -> bool:
    """Whether a run of these settings learns the class labels."""
    names = settings["method"].split("+")
    return any(known(name) and method_class(name).supervised for name in names)  # of others nothing is known


def load(path: str | os.PathLike, best: bool = False, untrained: bool = False) -> Checkpoint:
    """Read the newest checkpoint of a run, a checkpoint folder or a .safetensors file.

    best: the checkpoint of the best held-out accuracy, if the run has one; untrained: also one from before the first step,
    whose weights are random, so that training can continue from it

    Raises TrainerError if there is none, or if metadata and backbone are not as this version of vssl writes them.
    """
    path = run_path(path)
    saved = _load(path) if not (path / "checkpoints").is_dir() else _load_newest(path, best)
    if not saved.meta["step"] and not untrained:
        raise TrainerError(
            f"{saved.file}: not trained for a single step, its weights are random; continue its training "
            f"(`vssl train --resume {saved.run}`), or name another run"
        )
    return saved


def _load_newest(run: Path, best: bool) -> Checkpoint:
    """The newest checkpoint of a run, which a training process may replace by a newer one while it is read."""
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
    # results of a kept checkpoint go beside it, of a file that stands alone, such as an exported one, into a folder of its name
    folder = file.parent.parent  # of a bare file name there is no parents[1]
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
    """Raises TrainerError if it is not the newest of its run, which another process may just have trained further."""
    if saved.meta["settings"]["method"] == IMPORTED:
        raise TrainerError(
            f"{saved.run}: imported weights, whose training cannot be resumed; start a new one from them"
        )
    if not (saved.run / "checkpoints").is_dir():
        raise TrainerError(f"{saved.file}: belongs to no run whose training could go on")
    if saved.file.parent.name != (newest := _newest(saved.run)).name:
        raise TrainerError(f"{saved.file.parent}: the run has another checkpoint, {newest}; resume it from there")


def _newest(run: Path, best: bool = False) -> Path:
    """Folder of the last checkpoint; best: of the best one, if the run has it."""
    for kind in ("best", "checkpoints") if best else ("checkpoints",):
        if found := [folder for folder in (run / kind).glob("[0-9]*") if folder.name.isdecimal()]:
            return max(found, key=lambda folder: int(folder.name))
    raise TrainerError(f"{run}: the run has no checkpoint yet; start it anew under another name")


def _check_meta(file: Path, meta: dict) -> None:
    """Raises TrainerError for metadata that no training wrote; puts the settings as this version reads them."""
    try:
        fit(meta, _META, "it")
        if meta["initial"] is not None:
            fit(meta["initial"], _INITIAL, "initial")
        check_frames(meta["config"])
        if "input" in meta:
            inputs.read(meta["input"])
            if not 0 < meta.get("norm_epsilon", 0) < 1:
                raise ValueError(f"norm_epsilon is {meta.get('norm_epsilon')}, expected a number between 0 and 1")
        if not 0 <= meta["step"] <= meta["steps"]:
            raise ValueError(f"step {meta['step']} of {meta['steps']}")
    except ValueError as error:
        raise TrainerError(f"{file}: its metadata are damaged ({error}); {_OTHER}") from error
    # one of an older version may lack settings that change no weight
    if wrong := sorted(({field.name for field in fields(Settings)} ^ meta["settings"].keys()) - FREE):
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
        bare = {"method": None, "options": None} if stored["method"] == IMPORTED else {}  # no method of this program
        meta["settings"] = asdict(resolve(Settings(**stored | bare))) | {name: stored[name] for name in bare}
    except TrainerError as error:
        raise TrainerError(f"{file}: {error}; {_OTHER}") from error


def check_frames(config: dict) -> None:
    """Raises ValueError for frames that labelgen does not make."""
    fit(config, {"height": int, "width": int, "crop": int}, "config")
    Config(**{name: config[name] for name in _FRAMES if name in config})


def check_fit(file: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises TrainerError that names the file if names or shapes of its weights are not the module's."""
    expected, found = (
        {name: (value.shape, value.is_floating_point()) for name, value in tensors.items()}
        for tensors in (module.state_dict(), weights)
    )
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise TrainerError(
            f"{file}: {wrong[0]}{more} missing, unknown or of another shape than its settings say; {_OTHER}"
        )


def backbone_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """The backbone's weights by their names in it, the averaged ones if the run has them."""
    prefix = "ema.backbone." if any(name.startswith("ema.backbone.") for name in saved.weights) else "backbone."
    return {name.removeprefix(prefix): value for name, value in saved.weights.items() if name.startswith(prefix)}


def start_from(path: str | os.PathLike, backbone: Stages, say: Callable[[str], None]) -> dict:
    """Copy the weights of a checkpoint's backbone into this one, with the normalisation of its input and the epsilon of its batch
    normalisation, say which matched, and return what describes their origin. Clips are those of the shards.

    Raises TrainerError if less than 95 % of the backbone's parameters have a weight of the same name and shape there.
    """
    saved = load(path, best=True)
    weights, before = backbone_weights(saved), backbone.state_dict()
    matched = {name: value for name, value in weights.items() if name in before and value.shape == before[name].shape}
    other = {
        "missing": before.keys() - weights.keys(),
        "of another shape": before.keys() & weights.keys() - matched.keys(),
        "unexpected": weights.keys() - before.keys(),
    }
    sizes = {name: weight.numel() for name, weight in backbone.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in matched) / sum(sizes.values())
    report = f"{saved.file}: {len(matched)} of {len(before)} tensors matched ({100 * share:.1f} % of the parameters)"
    if share < 0.95:
        counts = ", ".join(f"{len(names)} {word}" for word, names in other.items() if names)
        has = saved.meta["settings"]
        raise TrainerError(
            f"{report}, at least 95 % must; {counts}: it holds {has['backbone']} of width {has['width']:g}"
        )
    say(report + "".join(f"; {word}: {', '.join(sorted(names))}" for word, names in other.items() if names))
    backbone.load_state_dict(before | matched)
    backbone.expect(saved.meta)
    backbone.input = replace(backbone.input, frames=None, stride=1)
    kept = ("dataset", "split", "samples", "steps", "step", "config_hash")
    origin = {"file": str(saved.file), "weights": digest(weights), "imported": saved.meta.get("imported")}
    return origin | {"settings": saved.meta["settings"]} | {name: saved.meta[name] for name in kept}


def versions() -> dict[str, str]:
    """The versions that the numbers were made with."""
    try:
        vssl = version("vssl")
    except PackageNotFoundError:
        vssl = "not installed"
    return {"vssl": vssl, "python": platform.python_version(), "torch": torch.__version__}
