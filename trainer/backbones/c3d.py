"""C3D: plain stacks of 3x3x3 convolutions."""

from __future__ import annotations

from torch import nn

from trainer.backbones.layers import BatchNorm3d, Stages, initialised, scaled


def _c3d(width: float, channels: tuple[tuple[int, ...], ...], batch_norm: bool) -> Stages:
    inputs, stages = 3, {}
    for stage, counts in enumerate(channels, 1):
        layers: list[nn.Module] = []
        if stage > 1:  # sizes are rounded up, as in the network of Tran et al., so that small inputs work, too
            layers.append(nn.MaxPool3d((1, 2, 2) if stage == 2 else 2, ceil_mode=True))
        for outputs in scaled(width, *counts):
            layers.append(initialised(nn.Conv3d(inputs, outputs, 3, padding=1)))
            if batch_norm:
                layers.append(BatchNorm3d(outputs))
            layers.append(nn.ReLU())
            inputs = outputs
        stages[f"conv{stage}"] = nn.Sequential(*layers)
    return Stages(inputs, **stages)


def c3d_light(width: float = 1.0) -> Stages:
    """C3D with five convolutions and no batch normalisation: table 2.1 of Wang's thesis.

    A stage is a pooling, except in conv1, and a convolution. For 16 x 112 x 112: conv1 [64, 16, 112, 112], conv2 [128,
    16, 56, 56], conv3 [256, 8, 28, 28], conv4 [256, 4, 14, 14], conv5 [256, 2, 7, 7]. Pool 5 of the table (max over 2
    with stride 2, sizes rounded up: 256 x 1 x 4 x 4) belongs to the heads.
    """
    return _c3d(width, ((64,), (128,), (256,), (256,), (256,)), batch_norm=False)


def c3d(width: float = 1.0) -> Stages:
    """C3D with eight convolutions, each with bias and batch normalisation.

    Tran et al., ICCV 2015, with the changes of Xu et al., CVPR 2019: no pool 5 and fully connected layers; heads
    average conv5. A stage is a pooling, except in conv1, and one or two convolutions. For 16 x 112 x 112: conv1 [64,
    16, 112, 112], conv2 [128, 16, 56, 56], conv3 [256, 8, 28, 28], conv4 [512, 4, 14, 14], conv5 [512, 2, 7, 7].
    """
    return _c3d(width, ((64,), (128,), (256, 256), (512, 512), (512, 512)), batch_norm=True)
