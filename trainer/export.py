"""The backbone of a run as a single file: weights to start from, or a network that runs without vssl."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from labelgen import files
from trainer import backbones, checkpoint, inputs
from trainer.backbones.layers import Stages
from trainer.errors import SettingError, TrainerError
from trainer.network import trained_backbone
from trainer.weights import foreign
from trainer.weights.families import FAMILIES
from trainer.weights.layouts import expected as expected_names
from trainer.weights.layouts import to_theirs

TOLERANCE = 1e-4  # of the largest value of a stage
_SUFFIXES = {".safetensors": "safetensors", ".onnx": "onnx"}


def export(run: str | os.PathLike, out: str | os.PathLike, form: str | None = None) -> tuple[dict, float]:
    """Write only the backbone to `out`, and the description that its use needs to `out`.json. The file is read back and run
    on random clips.

    ONNX networks take clips float32 [B, 3, T, crop, crop] for any B, with T as in the shards, and return the stages by
    name. torchvision, vcop and kenshohara are state dicts of these programs' networks, without the head, in the format
    of `torch.save`, or of safetensors if `out` has that suffix.

    Parameters
    ----------
    run : str or path
        Run, checkpoint folder or .safetensors file; of a run the best checkpoint if there is one, and averaged weights if it
        has them.
    out : str or path
        The file to write, in an existing folder.
    form : str
        A name of FORMATS; by default that of the suffix of `out`, .safetensors or .onnx.

    Returns
    -------
    dict, float
        The content of the JSON file, and the largest absolute difference from the original network.

    Raises
    ------
    TrainerError
        If the difference is above TOLERANCE, a package is missing, or the program has no equal network; nothing is written.

    Examples
    --------
    >>> from trainer.export import export
    >>> about, difference = export("runs/pace-r3d10-1", "backbone.safetensors")
    >>> about["input"]["crop"], difference
    ([32, 32], 0.0)
    """
    out = Path(out)
    if out.is_dir() or not out.parent.is_dir():
        raise TrainerError(f"{out}: expected the name of a file in an existing folder")
    form = form or _SUFFIXES.get(out.suffix)
    if form is None:
        raise SettingError(
            f"{out}: ends in {out.suffix or 'nothing'}, expected {', '.join(_SUFFIXES)}; or give the format, one of "
            f"{', '.join(FORMATS)}"
        )
    if form not in FORMATS:
        raise SettingError(f"unknown format {form!r}, expected one of: {', '.join(FORMATS)}")
    saved = checkpoint.load(run, best=True)
    backbone, crop = _backbone(saved), saved.meta["config"]["crop"]
    size = (_frames(saved), crop, crop)
    if form != "onnx":  # which takes clips of one size only
        size = min(size[0], 16), *(min(side, 64) for side in size[1:])
    clips = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    convert, read = FORMATS[form]
    with torch.no_grad():
        content = convert(backbone, clips[:2], saved, out)  # another batch size than in the comparison
    with files.replacing(out) as temporary, torch.no_grad():
        temporary.write_bytes(content)
        eager = backbone(clips)
        difference = compare(eager, read(str(temporary))(clips))
    about = _about(saved, form, backbone)
    files.write_json(out.with_name(f"{out.name}.json"), about)
    return about, difference


def compare(eager: dict[str, Tensor], exported: dict[str, Tensor]) -> float:
    """Largest absolute difference of the stages. Raises TrainerError if it exceeds TOLERANCE times the largest absolute
    value of a stage, or is not a number."""
    if eager.keys() != exported.keys():
        raise TrainerError(f"the exported network returns {', '.join(exported)}, expected {', '.join(eager)}")
    differences = []
    for stage, values in eager.items():
        differences.append(float((values - exported[stage]).abs().max()))
        limit = TOLERANCE * float(values.abs().max())
        if not differences[-1] <= limit:
            raise TrainerError(
                f"the exported network differs from the original by {differences[-1]:.3g} in {stage}, "
                f"expected at most {limit:.3g}; nothing is written"
            )
    return max(differences)


def _backbone(saved: checkpoint.Checkpoint) -> Stages:
    return trained_backbone(saved).requires_grad_(False)


def _frames(saved: checkpoint.Checkpoint) -> int:
    own = inputs.of_run(saved.meta).frames
    return own or saved.meta["config"].get("clip_length", 16)  # always 16 in versions that did not store it


def _about(saved: checkpoint.Checkpoint, form: str, backbone: Stages) -> dict:
    meta, settings, config = saved.meta, saved.meta["settings"], saved.meta["config"]
    expected = inputs.of_run(meta)
    with torch.device("meta"):
        empty = backbones.create(settings["backbone"], settings["width"]).eval()
        stages = empty(torch.empty(1, 3, _frames(saved), config["crop"], config["crop"]))
    return {
        "format": form,
        "backbone": settings["backbone"],
        "width": settings["width"],
        "parameters": sum(weight.numel() for weight in backbone.parameters()),
        "input": {
            "name": "clips",
            "layout": f"B, 3 ({expected.order}), T, H, W; float32; "
            + ("(value - mean) / std" if expected.top == 255 else "(value / 255 - mean) / std"),
            **expected.stored(),
            "frames": _frames(saved),
            "fps": config.get("fps"),
            "region": config.get("region"),
            "resize": [config["height"], config["width"]],
            "crop": [config["crop"], config["crop"]],
        },
        "norm_epsilon": backbone.norm_epsilon,
        "stages": {name: list(stage.shape[1:]) for name, stage in stages.items()},
        "source": {"run": _origin(saved), "method": settings["method"], "options": settings["options"]}
        | {name: meta[name] for name in ("dataset", "split", "samples", "step", "steps", "config_hash")}
        | {"environment": meta["environment"]},
    }


def _origin(saved: checkpoint.Checkpoint) -> str:
    return saved.meta.get("run", saved.run.resolve().name)  # an exported file names its run


def _safetensors(backbone: nn.Module, _: Tensor, saved: checkpoint.Checkpoint, out: Path) -> bytes:
    # with the names and metadata of a checkpoint, so that finetuning and evaluation accept it
    weights = {f"backbone.{name}": weight.contiguous() for name, weight in backbone.state_dict().items()}
    return save(weights, {"vssl": json.dumps(saved.meta | {"run": _origin(saved)})})


def _read_safetensors(path: str) -> Callable:
    return _backbone(checkpoint.load(path))


def _onnx(backbone: nn.Module, clips: Tensor, saved: checkpoint.Checkpoint, out: Path) -> bytes:
    _onnxruntime()
    names = list(dict(backbone.named_children()))
    batch = {0: torch.export.Dim("batch")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # packages warn about each other
        program: Any = torch.onnx.export(
            _Tuple(backbone).eval(),
            (clips,),
            dynamo=True,
            input_names=["clips"],
            output_names=names,
            dynamic_shapes={"clips": batch},
            verbose=False,
        )
        return program.model_proto.SerializeToString()


def _read_onnx(path: str) -> Callable:
    session = _onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(clips: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {"clips": clips.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise TrainerError(
            f"ONNX needs the packages onnx, onnxscript and onnxruntime, but {error.name} is missing; "
            "install them with: pip install 'vssl[export]'"
        ) from error
    return onnxruntime


class _Tuple(nn.Module):
    """The stages of a backbone as a tuple, because ONNX names outputs by position."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(clips).values())


def _as_in(program: str) -> tuple[Callable, Callable]:
    """Functions that write a state dict with the names of another program, and read it back."""

    def convert(backbone: Stages, _: Tensor, saved: checkpoint.Checkpoint, out: Path) -> bytes:
        settings = saved.meta["settings"]
        layout = _layout(program, settings["backbone"], settings["width"], backbone.norm_epsilon)
        own = backbone.state_dict()
        names = expected_names(layout, settings["backbone"])
        weights = {
            theirs: to_theirs(settings["backbone"], own[ours]).contiguous() for theirs, (ours, _) in names.items()
        }
        if out.suffix == ".safetensors":
            return save(weights)
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        return buffer.getvalue()

    def read(path: str) -> Callable:
        found = foreign.read(Path(path))
        match = foreign.recognise(found, program)
        backbone = backbones.create(match.backbone)
        backbone.load_state_dict(match.weights(found.tensors))
        backbone.norm_epsilon = match.family.epsilon
        return backbone.eval().requires_grad_(False)

    return convert, read


def _layout(program: str, backbone: str, width: float, epsilon: float) -> str:
    """The layout of a backbone's names in a program. Raises TrainerError if the program has no network that computes
    the same."""
    networks = {
        own: (layout, family) for family in FAMILIES if family.name == program for own, layout in family.networks
    }
    if backbone not in networks:
        others = [form for form in _PROGRAMS if any(f.name == form and backbone in dict(f.networks) for f in FAMILIES)]
        advice = f"choose {', '.join(others)}" if others else "choose safetensors or onnx"
        raise TrainerError(f"{program} has no {backbone}, only {', '.join(networks)}; {advice}")
    layout, family = networks[backbone]
    if width != 1:
        raise TrainerError(
            f"{program} has only networks of full width, but this one has width {width:g}; choose safetensors or onnx"
        )
    if epsilon != family.epsilon:
        raise TrainerError(
            f"batch normalisation has an epsilon of {epsilon:g}, in {program} {family.epsilon:g}, so that features would differ "
            "there; choose safetensors or onnx"
        )
    return layout


_PROGRAMS = ("torchvision", "vcop", "kenshohara")
FORMATS: dict[str, tuple[Callable, Callable]] = {
    "safetensors": (_safetensors, _read_safetensors),
    "onnx": (_onnx, _read_onnx),
    **{program: _as_in(program) for program in _PROGRAMS},
}
