"""Checkpoints: a folder that is whole or not there, from which the network can be rebuilt without anything else.

<run>/checkpoints/00000200/
    weights.safetensors   weights and buffers; its metadata holds checkpoint.json once more
    checkpoint.json       settings, step, data set, configuration of the shards, versions
    optimiser.pt          state of the optimiser, to resume
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labelgen.errors import VsslError
from labelgen.files import sync, writing
from trainer import backbones
from trainer.errors import TrainerError
from trainer.methods import METHODS, method_class
from trainer.settings import Settings, resolve

SCHEMA = 2
RUNS = Path("runs")
_META = ("step", "settings", "dataset", "split", "samples", "videos", "classes", "steps", "config_hash", "config")
_META += ("environment", "initial")
_OTHER = "it was changed, or written by another version of vssl; use another one, or train again"


@dataclass(frozen=True)
class Checkpoint:
    """meta: what checkpoint.json holds; weights: by name, on the CPU; run: folder that results belong in."""

    file: Path
    run: Path
    meta: dict
    weights: dict[str, Tensor]

    def optimiser_state(self) -> dict:
        """State of the optimiser for load_state_dict. Raises TrainerError when it is missing or damaged."""
        path = self.file.with_name("optimiser.pt")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise TrainerError(f"{path}: cannot be read ({error}); training cannot go on from here") from error


def save(
    run: Path, step: int, network: nn.Module, optimiser: torch.optim.Optimizer, meta: dict, best: bool = False
) -> Path:
    """Write the checkpoint of a step and remove the older ones. Whenever the process ends, one whole one is there.

    best: into the run's best/ instead of checkpoints/.
    """
    parent = run / ("best" if best else "checkpoints")
    target = parent / f"{step:08d}"
    if target.exists():
        return target
    parent.mkdir(exist_ok=True)
    meta = {"schema": SCHEMA, "step": step, **meta}
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=parent))
    try:
        with writing(target, SafetensorError, RuntimeError):  # what the libraries make of a full disk
            weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
            save_file(weights, temporary / "weights.safetensors", {"vssl": json.dumps(meta)})
            torch.save(optimiser.state_dict(), temporary / "optimiser.pt")
            (temporary / "checkpoint.json").write_text(json.dumps(meta, indent=2) + "\n")
            temporary.chmod(0o755)
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(parent)
    for old in (*parent.glob("[0-9]*"), *parent.glob(".*.tmp")):
        if old != target:
            shutil.rmtree(old)
    return target


def run_path(name: str | os.PathLike) -> Path:
    """A run by name or path: a bare name stands in runs/, unless something of that name is here."""
    path = Path(name)
    return RUNS / path if len(path.parts) == 1 and not path.exists() else path


def newest_run(finetuned: bool = True) -> Path:
    """The run in runs/ whose checkpoint was written last; finetuned: runs that were trained with labels count, too.

    Raises TrainerError when there is none.
    """
    checkpoints = [path for path in RUNS.glob("*/checkpoints/[0-9]*") if finetuned or _pretrained(path)]
    if not checkpoints:
        raise TrainerError(
            f"no {'' if finetuned else 'pretrained '}run with a checkpoint in {RUNS}/; train one with `vssl train`, or "
            "name a checkpoint"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parents[1]


def _pretrained(folder: Path) -> bool:
    try:
        return not with_labels(json.loads((folder / "checkpoint.json").read_text())["settings"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, VsslError):
        return True  # damaged: whoever loads it is told so


def trained_splits(meta: dict) -> dict[str, str | None]:
    """The data sets that a run was trained on, each with the split that was seen of it."""
    return meta.get("datasets") or {meta["dataset"]: meta["split"]}


def with_labels(settings: dict) -> bool:
    """Whether a run of these settings learns the class labels."""
    names = settings["method"].split("+")
    return any(name in METHODS and method_class(name).supervised for name in names)  # of others nothing is known


def load(path: str | os.PathLike, best: bool = False) -> Checkpoint:
    """Read the newest checkpoint of a run, a checkpoint folder or a .safetensors file.

    best: of a run that has one, the checkpoint of the best held-out accuracy.

    Raises TrainerError when there is none, or when metadata and backbone are not as this version of vssl writes them.
    """
    path = run_path(path)
    if (path / "checkpoints").is_dir():
        kind = "best" if best and (path / "best").is_dir() else "checkpoints"
        path = _newest(path, kind)
    file = path / "weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise TrainerError(f"{path}: neither a run, a checkpoint folder nor a .safetensors file")
    try:
        with safe_open(file, "pt") as opened:
            meta = json.loads((opened.metadata() or {}).get("vssl", "null"))
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainerError(f"{file}: not a readable checkpoint ({error})") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else "none"
        raise TrainerError(f"{file}: checkpoint schema {found}, expected {SCHEMA}; train it again with this version")
    _check_meta(file, meta)
    # results of a file that stands alone, such as an exported one, go into a folder of its name
    folder = file.parent.parent  # of a bare file name there is no parents[1]
    run = folder.parent if folder.name in ("checkpoints", "best") else file.with_suffix("")
    saved = Checkpoint(file, run, meta, weights)
    with torch.device("meta"):
        backbone = backbones.create(meta["settings"]["backbone"], meta["settings"]["width"])
    check_fit(file, backbone, backbone_weights(saved))
    return saved


def check_newest(saved: Checkpoint) -> None:
    """Raises TrainerError where it is not the newest of its run, which another process may just have trained further."""
    if not (saved.run / "checkpoints").is_dir():
        raise TrainerError(f"{saved.file}: belongs to no run whose training could go on")
    if saved.file.parent.name != (newest := _newest(saved.run, "checkpoints")).name:
        raise TrainerError(f"{saved.file.parent}: the run has another checkpoint, {newest}; resume it from there")


def _newest(run: Path, kind: str) -> Path:
    found = [folder for folder in (run / kind).iterdir() if folder.name.isdecimal()]
    if not found:
        raise TrainerError(f"{run}: the run has no checkpoint yet; start it anew under another name")
    return max(found, key=lambda folder: int(folder.name))


def _check_meta(file: Path, meta: dict) -> None:
    wrong = [name for name in _META if name not in meta]
    if not wrong:
        wrong = sorted({field.name for field in fields(Settings)} ^ meta["settings"].keys())
        wrong += [name for name in ("height", "width", "crop") if name not in meta["config"]]
    if wrong:
        raise TrainerError(f"{file}: {', '.join(wrong)} missing or unknown in its metadata; {_OTHER}")
    try:
        resolve(Settings(**meta["settings"]))
    except TrainerError as error:
        raise TrainerError(f"{file}: {error}; {_OTHER}") from error


def check_fit(file: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises TrainerError that names the file where names or shapes of its weights are not the module's."""
    expected = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise TrainerError(
            f"{file}: {wrong[0]}{more} missing, unknown or of another shape than its settings say; {_OTHER}"
        )


def backbone_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """The backbone's weights by their names in it, the averaged ones where the run has them."""
    prefix = "ema.backbone." if any(name.startswith("ema.backbone.") for name in saved.weights) else "backbone."
    return {name.removeprefix(prefix): value for name, value in saved.weights.items() if name.startswith(prefix)}


def start_from(path: str | os.PathLike, backbone: nn.Module, say: Callable[[str], None]) -> dict:
    """Copy the weights of a checkpoint's backbone into this one, say which matched, and return where they are from.

    Raises TrainerError when less than 95 % of the backbone's parameters have a weight of the same name and shape there.
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
    kept = ("dataset", "split", "samples", "steps", "step", "config_hash")
    return {"file": str(saved.file), "settings": saved.meta["settings"], **{name: saved.meta[name] for name in kept}}


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    try:
        vssl = version("vssl")
    except PackageNotFoundError:
        vssl = "not installed"
    return {"vssl": vssl, "python": platform.python_version(), "torch": torch.__version__}
