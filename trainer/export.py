"""The backbone of a run as a file of its own: weights to start from, or a network that runs without vssl."""

from __future__ import annotations

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
from trainer import checkpoint
from trainer.backbones.layers import Stages
from trainer.errors import SettingError, TrainerError
from trainer.network import trained_backbone

TOLERANCE = 1e-4  # of the largest value of a stage
_SUFFIXES = {".safetensors": "safetensors", ".onnx": "onnx"}


def export(run: str | os.PathLike, out: str | os.PathLike, form: str | None = None) -> tuple[dict, float]:
    """Write the backbone alone to `out`, and what one needs to know to use it to `out`.json.

    run:  run, checkpoint folder or .safetensors file; the best checkpoint if the run has one, and averaged weights if it
          has them
    form: a name of FORMATS; by default the suffix of `out` decides: .safetensors or .onnx

    ONNX takes clips float32 [B, 3, T, crop, crop], as long as those of the shards, for any B, and gives the stages by name.
    The file is read back and run on random clips. Returns the content of the JSON file and the largest absolute difference
    from the network itself. Raises TrainerError, and writes nothing, if it is above TOLERANCE or a package is missing.
    """
    out = Path(out)
    if out.is_dir() or not out.parent.is_dir():
        raise TrainerError(f"{out}: expected the name of a file in a folder that exists")
    form = form or _SUFFIXES.get(out.suffix)
    if form is None:
        raise SettingError(
            f"{out}: ends in {out.suffix or 'nothing'}, expected {', '.join(_SUFFIXES)}; or name the format"
        )
    if form not in FORMATS:
        raise SettingError(f"unknown format {form!r}, expected one of: {', '.join(FORMATS)}")
    saved = checkpoint.load(run, best=True)
    backbone, crop = _backbone(saved), saved.meta["config"]["crop"]
    clips = torch.randn(3, 3, _frames(saved), crop, crop, generator=torch.Generator().manual_seed(0))
    convert, read = FORMATS[form]
    with torch.no_grad():
        content = convert(backbone, clips[:2], saved)  # another batch size than the one that is compared
    with files.replacing(out) as temporary, torch.no_grad():
        temporary.write_bytes(content)
        eager = backbone(clips)
        difference = compare(eager, read(str(temporary))(clips))
    about = _about(saved, form, backbone, eager)
    files.write_json(out.with_name(f"{out.name}.json"), about)
    return about, difference


def compare(eager: dict[str, Tensor], exported: dict[str, Tensor]) -> float:
    """Largest absolute difference of the stages. Raises TrainerError where it is above TOLERANCE times the stage's
    largest absolute value, or not a number."""
    if eager.keys() != exported.keys():
        raise TrainerError(f"the exported network gives {', '.join(exported)}, expected {', '.join(eager)}")
    differences = []
    for stage, values in eager.items():
        differences.append(float((values - exported[stage]).abs().max()))
        limit = TOLERANCE * float(values.abs().max())
        if not differences[-1] <= limit:
            raise TrainerError(
                f"the exported network differs from the network itself by {differences[-1]:.3g} in {stage}, "
                f"expected at most {limit:.3g}; nothing is written"
            )
    return max(differences)


def _backbone(saved: checkpoint.Checkpoint) -> Stages:
    return trained_backbone(saved).requires_grad_(False)


def _frames(saved: checkpoint.Checkpoint) -> int:
    own = checkpoint.input_of(saved.meta).frames
    return own or saved.meta["config"].get("clip_length", 16)  # always 16 before it was stored


def _about(saved: checkpoint.Checkpoint, form: str, backbone: Stages, stages: dict[str, Tensor]) -> dict:
    meta, settings, config = saved.meta, saved.meta["settings"], saved.meta["config"]
    expected = checkpoint.input_of(meta)
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
    return saved.meta.get("run", saved.run.resolve().name)  # an exported file knows its run


def _safetensors(backbone: nn.Module, _: Tensor, saved: checkpoint.Checkpoint) -> bytes:
    # names and metadata of a checkpoint, so that finetuning and evaluation take it as one
    weights = {f"backbone.{name}": weight.contiguous() for name, weight in backbone.state_dict().items()}
    return save(weights, {"vssl": json.dumps(saved.meta | {"run": _origin(saved)})})


def _read_safetensors(path: str) -> Callable:
    return _backbone(checkpoint.load(path))


def _onnx(backbone: nn.Module, clips: Tensor, saved: checkpoint.Checkpoint) -> bytes:
    _onnxruntime()
    names = list(dict(backbone.named_children()))
    batch = {0: torch.export.Dim("batch")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # tells that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages about each other
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
            f"ONNX needs the packages onnx, onnxscript and onnxruntime, and {error.name} is missing; "
            "install them with: pip install 'vssl[export]'"
        ) from error
    return onnxruntime


class _Tuple(nn.Module):
    """The stages of a backbone as a tuple: ONNX names its outputs by their places."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(clips).values())


FORMATS = {
    "safetensors": (_safetensors, _read_safetensors),
    "onnx": (_onnx, _read_onnx),
}
