"""Plain: three convolutions with stride 2."""

from torch import nn

from trainer.backbones.layers import Stages, conv3d, scaled


def plain(width: float = 1.0) -> Stages:
    """Three convolutions with stride 2, batch normalisation and ReLU."""
    inputs, stages = 3, {}
    for number, outputs in enumerate(scaled(width, 64, 128, 256), 1):
        stages[f"conv{number}"] = nn.Sequential(conv3d(inputs, outputs, 3, stride=2), nn.ReLU())
        inputs = outputs
    return Stages(inputs, **stages)
