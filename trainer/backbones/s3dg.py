"""S3D and S3D-G: Inception with separable convolutions, without and with self-gating (Xie et al., ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.backbones.layers import Size, Stages, conv3d, scaled, separable


class SelfGating(nn.Module):
    """x * sigmoid(W mean(x) + b): channels weighted by the content of the whole clip; [B, C, T, H, W] in and out."""

    def __init__(self, channels: int):
        super().__init__()
        self.weigh = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.weigh(x.mean((2, 3, 4))))[:, :, None, None, None]


class Inception(nn.Module):
    """Four parallel branches, gated or not: 1x1x1; 1x1x1 and 3x3x3, twice; max pooling and 1x1x1.

    channels: of the first, the second (reduced, outputs), the third (reduced, outputs) and the fourth branch
    """

    def __init__(self, inputs: int, channels: list[int], gated: bool = True):
        super().__init__()
        one, two_reduced, two, three_reduced, three, four = channels
        self.outputs = one + two + three + four
        self.branches = nn.ModuleList(
            [
                nn.Sequential(_conv(inputs, one), *_gate(one, gated)),
                nn.Sequential(_conv(inputs, two_reduced), _separable(two_reduced, two, gated)),
                nn.Sequential(_conv(inputs, three_reduced), _separable(three_reduced, three, gated)),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), _conv(inputs, four), *_gate(four, gated)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _conv(inputs: int, outputs: int, kernel: Size = 1, stride: Size = 1) -> nn.Sequential:
    return nn.Sequential(*conv3d(inputs, outputs, kernel, stride), nn.ReLU())


def _separable(inputs: int, outputs: int, gated: bool, kernel: Size = 3, stride: Size = 1) -> nn.Sequential:
    return nn.Sequential(*separable(inputs, outputs, outputs, kernel, stride), nn.ReLU(), *_gate(outputs, gated))


def _gate(channels: int, gated: bool) -> list[nn.Module]:
    return [SelfGating(channels)] if gated else []


_INCEPTIONS = {  # rows in the order of Inception's channels
    "conv3": ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),  # Mixed 3b, 3c
    "conv4": (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),  # Mixed 4b to 4f
    "conv5": ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),  # Mixed 5b, 5c
}


def _s3d(width: float, gated: bool) -> Stages:
    first, second = scaled(width, 64, 192)
    stages: dict[str, list[nn.Module]] = {
        "conv1": [_conv(3, first, (3, 7, 7), 2) if gated else _separable(3, first, gated, 7, 2)],
        "conv2": [
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            _conv(first, first),
            _separable(first, second, gated),
        ],
        "conv3": [nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))],
        "conv4": [nn.MaxPool3d(3, 2, 1)],
        "conv5": [nn.MaxPool3d(2, ceil_mode=gated)],
    }
    inputs = second
    for name, blocks in _INCEPTIONS.items():
        for channels in blocks:
            block = Inception(inputs, scaled(width, *channels), gated)
            stages[name].append(block)
            inputs = block.outputs
    return Stages(inputs, **{name: nn.Sequential(*layers) for name, layers in stages.items()})


def s3dg(width: float = 1.0) -> Stages:
    """S3D-G: separable Inception with self-gating.

    Every Inception branch and conv2 are gated, and the stem is one convolution of 3x7x7, as in the authors' code and in
    the code of Wang's pace paper. Each stage except the first begins with a max pooling: conv1 is the stem (Conv 1a),
    conv2 Conv 2b and 2c, conv3 Mixed 3b and 3c, conv4 Mixed 4b to 4f, conv5 Mixed 5b and 5c.
    For 16 x 112 x 112: conv1 [64, 8, 56, 56], conv2 [192, 8, 28, 28], conv3 [480, 8, 14, 14], conv4 [832, 4, 7, 7],
    conv5 [1024, 2, 4, 4]; for the published 64 x 224 x 224 conv5 is [1024, 8, 7, 7].
    """
    return _s3d(width, gated=True)


def s3d(width: float = 1.0) -> Stages:
    """S3D: s3dg without gating and with a separable stem, as defined by torchvision and CoCLR, for published weights.

    Batch normalisation has torchvision's epsilon of .001, and the last pooling rounds down, as there. Shapes of stages
    are those of s3dg, except conv5, which is [1024, 2, 3, 3] for 16 x 112 x 112.
    """
    backbone = _s3d(width, gated=False)
    backbone.norm_epsilon = 1e-3
    return backbone
