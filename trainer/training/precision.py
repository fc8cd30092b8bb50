"""The precision of the network, and known faults of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trainer.backbones.layers import Stages
from trainer.errors import TrainerError


def pick_precision(name: str, device: torch.device) -> str:
    """bf16 on CUDA and float32 elsewhere for "auto", else the precision of that name. Raises TrainerError for other
    precisions than float32 without CUDA."""
    if name == "auto":
        return "bf16" if device.type == "cuda" else "float32"
    if name != "float32" and device.type != "cuda":
        # torch 2.13's CPU convolution returns garbage gradients in bfloat16
        raise TrainerError(f"{name} needs a CUDA device, but this is {device}; leave it out")
    return name


def set_precision(name: str, network: nn.Module) -> None:
    """Make the backbones of the network compute in that precision, and everything else in float32.

    TF32 is set for cuDNN's convolutions only: for matrix products it would also affect the similarities in losses.
    These flags exist in torch from 2.7 on; the new ones of torch 2.9, `fp32_precision`, cannot be mixed with them.
    """
    for module in network.modules():
        if isinstance(module, Stages):
            module.autocast = torch.bfloat16 if name == "bf16" else None
    torch.backends.cudnn.allow_tf32 = name != "float32"
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Inference in float32, whatever was set before: with TF32, features would depend on the batch size, through the
    choice of the algorithm."""
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def version_warnings(precision: str, version: str, cudnn: int | None) -> list[str]:
    """Known slow or wrong 3D convolutions in these versions of torch and cuDNN (such as 91002)."""
    warnings: list[str] = []
    if precision != "bf16" or cudnn is None:
        return warnings
    if version.startswith("2.9.") and cudnn < 91500:
        warnings.append(
            f"torch {version} does not use cuDNN {cudnn} for bf16 3D convolutions, which makes them several times slower "
            "(pytorch issue 166122); use torch 2.10 or later, cuDNN 9.15 or later, or precision tf32"
        )
    elif 90800 <= cudnn < 91300:
        warnings.append(
            f"cuDNN {cudnn} gives wrong results for some bf16 3D convolutions (pytorch issue 163539); "
            "use cuDNN 9.13 or later, or precision tf32"
        )
    return warnings
