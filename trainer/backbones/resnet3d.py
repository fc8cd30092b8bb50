"""3D residual networks: R3D as in the clip-order and the statistics papers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def _conv(inputs: int, outputs: int, kernel, stride=1, padding=0) -> nn.Sequential:
    conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm3d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut, which is a strided 1x1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride, 1)
        self.conv2 = _conv(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Identity() if stride == 1 else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet3D(nn.Module):
    """A stem 3x7x7 of stride (1, 2, 2) without max pooling, then one basic block per stage.

    forward: float [B, 3, T, H, W] -> features by stage, shallow to deep; for 16 x 112 x 112 at width 1
    conv1, conv2 [B, 64, 16, 56, 56], conv3 [B, 128, 8, 28, 28], conv4 [B, 256, 4, 14, 14], conv5 [B, 512, 2, 7, 7].
    features: channels of the last stage.
    """

    def __init__(self, channels: tuple[int, int, int, int]):
        super().__init__()
        first, second, third, fourth = channels
        self.conv1 = _conv(3, first, (3, 7, 7), (1, 2, 2), (1, 3, 3))
        self.conv2 = BasicBlock(first, first, 1)
        self.conv3 = BasicBlock(first, second, 2)
        self.conv4 = BasicBlock(second, third, 2)
        self.conv5 = BasicBlock(third, fourth, 2)
        self.features = fourth

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stages = {"conv1": F.relu(self.conv1(x))}
        for name in ("conv2", "conv3", "conv4", "conv5"):
            x = next(reversed(stages.values()))
            stages[name] = getattr(self, name)(x)
        return stages


def r3d10(width: float = 1.0) -> ResNet3D:
    """R3D with one block per stage: "R3D" of Xu et al., CVPR 2019; 14,361,792 parameters at width 1.

    width multiplies all channel counts (64, 128, 256, 512).
    """
    return ResNet3D(tuple(max(1, round(channels * width)) for channels in (64, 128, 256, 512)))
