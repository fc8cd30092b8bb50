"""Parts that several backbones share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.inputs import OURS, Input, of_run

Size = int | tuple[int, int, int]  # along T, H and W, a number for all three


class Stages(nn.Module):
    """A backbone: named stages, one after the other. Its forward maps float [B, 3, T, H, W] to a dict of the outputs
    [B, C, T', H', W'] of all stages by name, shallow to deep.

    Parameters
    ----------
    features : int
        Channels of the last stage.
    **stages : torch.nn.Module
        By name, in order.

    Attributes
    ----------
    autocast : torch.dtype
        Type in which its layers compute; None: that of x.
    input : Input
        The input that it expects: order, range and normalisation of pixels, frames of a clip.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from trainer.backbones.layers import Stages
    >>> backbone = Stages(8, conv1=nn.Conv3d(3, 4, 3, 2, 1), conv2=nn.Conv3d(4, 8, 3, 2, 1))
    >>> {name: tuple(x.shape) for name, x in backbone(torch.zeros(1, 3, 16, 32, 32)).items()}
    {'conv1': (1, 4, 8, 16, 16), 'conv2': (1, 8, 4, 8, 8)}
    """

    autocast: torch.dtype | None = None
    input: Input = OURS

    def __init__(self, features: int, **stages: nn.Module) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.features = features

    @property
    def norm_epsilon(self) -> float:
        """Epsilon of all batch normalisations."""
        return next((norm.eps for norm in self._norms()), 1e-5)

    @norm_epsilon.setter
    def norm_epsilon(self, value: float) -> None:
        for norm in self._norms():
            norm.eps = value

    def stored(self) -> dict[str, object]:
        """What a checkpoint stores besides the weights, see `expect`."""
        return {"input": self.input.stored(), "norm_epsilon": self.norm_epsilon}

    def expect(self, meta: dict) -> None:
        """Adopt the input and the epsilon of batch normalisation in a run's checkpoint.json, if it has them."""
        if "input" in meta:
            self.input, self.norm_epsilon = of_run(meta), meta["norm_epsilon"]

    def _norms(self) -> Iterator[_BatchNorm]:
        return (module for module in self.modules() if isinstance(module, _BatchNorm))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
            for name, stage in self.named_children():
                outputs[name] = x = stage(x)
        return outputs


def scaled(width: float, *channels: int) -> list[int]:
    """Channel counts times the width multiplier, rounded, at least 1."""
    return [max(1, round(count * width)) for count in channels]


def triple(size: Size) -> tuple[int, int, int]:
    """A size along (T, H, W)."""
    return (size, size, size) if isinstance(size, int) else size


def subsample(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Every stride-th value of x [N, C, ...] along each of its last axes, a view.

    Convolutions of kernel 1 are computed on it with stride 1: with another stride, oneDNN writes beyond its memory or returns
    wrong gradients if there are fewer input channels than its blocks of 8 or 16 hold (uxlfoundation/oneDNN issue 6035).
    """
    picked: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
    return x[picked]


# Layers that are computed in fewer dimensions, by type of device: convolutions with kernels of 1 ("point"), along time
# ("temporal") and within frames ("spatial"), and batch normalisation ("norm"). `benchmarks/train.py` compares them. On
# the CPU PyTorch 2.13 takes 1.2 to 4 times as long for the first two in three dimensions. On CUDA (read, not measured)
# its fast normalisation of bf16 supports only channels_last, not channels_last_3d.
FLAT = {"cpu": {"point", "temporal"}, "cuda": {"norm"}}


def is_flat(kind: str, x: Tensor) -> bool:
    """Whether layers of this kind compute x in fewer dimensions. Exported networks keep the plain operators."""
    return kind in FLAT.get(x.device.type, ()) and not torch.compiler.is_exporting()


class Conv3d(nn.Conv3d):
    """nn.Conv3d without bias, padded by half its kernel. If `FLAT` says so, kernels that do not need three dimensions
    are computed in fewer, on views: in channels_last_3d nothing is copied. Kernels of 1 are applied to subsampled
    values, see `subsample`."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        t, h, w = kernel
        super().__init__(inputs, outputs, kernel, stride, (t // 2, h // 2, w // 2), bias=False)
        self.kind = ""
        if kernel == (1, 1, 1):
            self.kind = "point"
        elif kernel[1:] == stride[1:] == (1, 1):
            self.kind = "temporal"
        elif kernel[0] == stride[0] == 1:
            self.kind = "spatial"

    def forward(self, x: Tensor) -> Tensor:
        flat = is_flat(self.kind, x)
        if self.kind == "point":
            x = subsample(x, self.stride)
            if not flat:
                return F.conv3d(x, self.weight)
            if x.is_cpu:  # a matrix product
                return F.linear(x.movedim(1, -1), self.weight.flatten(1)).movedim(-1, 1)
            return F.conv2d(x.flatten(3), self.weight.flatten(3)).unflatten(3, x.shape[3:])
        if not flat:
            return super().forward(x)
        if self.kind == "temporal":  # time and space are the two dimensions
            stride, padding = (self.stride[0], 1), (self.kernel_size[0] // 2, 0)
            return F.conv2d(x.flatten(3), self.weight.flatten(3), None, stride, padding).unflatten(3, x.shape[3:])
        images = x.transpose(1, 2).flatten(0, 1)  # [N * T, C, H, W]
        y = F.conv2d(images, self.weight.squeeze(2), None, self.stride[1:], self.padding[1:])
        return y.unflatten(0, (len(x), -1)).transpose(1, 2)


class BatchNorm3d(nn.BatchNorm3d):
    """nn.BatchNorm3d that is computed on the view [N, C, T, H * W] if `FLAT` says so, with the same values."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() not in (4, 5):
            raise ValueError(f"expected 4D or 5D input, got {x.dim()}D")

    def forward(self, x: Tensor) -> Tensor:
        if not is_flat("norm", x):
            return super().forward(x)
        return super().forward(x.flatten(3)).unflatten(3, x.shape[3:])


def initialised(conv: nn.Conv3d) -> nn.Conv3d:
    """Initialise a convolution as He et al., ICCV 2015, over the outputs (fan_out), with biases 0; returns it."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def conv3d(inputs: int, outputs: int, kernel: Size, stride: Size = 1) -> nn.Sequential:
    """3D convolution without bias, padded by half its kernel, then batch normalisation."""
    return nn.Sequential(initialised(Conv3d(inputs, outputs, triple(kernel), triple(stride))), BatchNorm3d(outputs))


def separable(inputs: int, middle: int, outputs: int, kernel: Size, stride: Size = 1) -> nn.Sequential:
    """A spatial convolution to the middle channels and a temporal one, each normalised, with a ReLU in between."""
    (t, h, w), (stride_t, stride_h, stride_w) = triple(kernel), triple(stride)
    return nn.Sequential(
        *conv3d(inputs, middle, (1, h, w), (1, stride_h, stride_w)),
        nn.ReLU(),
        *conv3d(middle, outputs, (t, 1, 1), (stride_t, 1, 1)),
    )
