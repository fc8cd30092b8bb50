"""Parts that the families of backbones share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stages(nn.Module):
    """A backbone: named stages, one after the other.

    forward: float [B, 3, T, H, W] -> the output [B, C, T', H', W'] of every stage by name, shallow to deep
    features: channels of the last stage
    """

    def __init__(self, features: int, **stages: nn.Module):
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.features = features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name, stage in self.named_children():
            outputs[name] = x = stage(x)
        return outputs


def scaled(width: float, *channels: int) -> list[int]:
    """Channel counts times the width multiplier, rounded, at least 1."""
    return [max(1, round(count * width)) for count in channels]


def triple(size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """A size along (T, H, W) from one number for all three, or as it is."""
    return (size, size, size) if isinstance(size, int) else size


def subsample(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Every stride-th value of x [N, C, ...] along each of its last axes, a view.

    A convolution of kernel 1 is computed on it with stride 1: with a stride, oneDNN writes beyond its memory or returns wrong
    gradients where the input channels are fewer than its blocks of 8 or 16 (uxlfoundation/oneDNN issue 6035).
    """
    return x[(..., *(slice(None, None, step) for step in stride))]


class Conv3d(nn.Conv3d):
    """nn.Conv3d without bias that computes purely temporal kernels on the CPU in two dimensions, time and space: PyTorch
    2.13 takes 3 to 10 times as long in three. Exported networks keep the plain operator. Kernels of 1 see only the values
    that their stride picks, see `subsample`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1, 1):
            return F.conv3d(subsample(x, self.stride), self.weight)
        temporal = self.kernel_size[0] > 1 and self.kernel_size[1:] == self.stride[1:] == (1, 1)
        if not (temporal and x.is_cpu) or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return super().forward(x)
        weight, stride, padding = self.weight.flatten(3), (self.stride[0], 1), (self.padding[0], 0)
        return F.conv2d(x.flatten(3), weight, None, stride, padding).unflatten(3, x.shape[3:])


def initialised(conv: nn.Conv3d) -> nn.Conv3d:
    """The convolution with weights drawn as by He et al., ICCV 2015, over the outputs (fan_out), and biases 0."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def conv3d(inputs: int, outputs: int, kernel, stride=1) -> nn.Sequential:
    """3D convolution without bias, padded by half its kernel, then batch normalisation."""
    kernel = triple(kernel)
    conv = Conv3d(inputs, outputs, kernel, stride, [size // 2 for size in kernel], bias=False)
    return nn.Sequential(initialised(conv), nn.BatchNorm3d(outputs))


def separable(inputs: int, middle: int, outputs: int, kernel, stride=1) -> nn.Sequential:
    """A spatial convolution to the middle channels, then a temporal one, each normalised, with a ReLU between them."""
    (t, h, w), (stride_t, stride_h, stride_w) = triple(kernel), triple(stride)
    return nn.Sequential(
        *conv3d(inputs, middle, (1, h, w), (1, stride_h, stride_w)),
        nn.ReLU(),
        *conv3d(middle, outputs, (t, 1, 1), (stride_t, 1, 1)),
    )
