"""2D residual networks, applied to each frame separately."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.backbones.layers import Stages, initialised, scaled, subsample
from trainer.backbones.resnet3d import BasicBlock, residual_stages, shortcut


class FrameStages(Stages):
    """Stages of a 2D network: the frames of all clips are processed as one batch of images, and returned as clips."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        clips, frames = x.shape[0], x.shape[2]
        images = x.transpose(1, 2).flatten(0, 1)  # [B * T, 3, H, W]
        stages = super().forward(images)
        return {name: stage.unflatten(0, (clips, frames)).transpose(1, 2) for name, stage in stages.items()}


class FrameConv(nn.Conv3d):
    """2D convolution of [N, C, H, W], without bias, padded by half its kernel.

    Its weights keep a time axis of length 1, because channels_last_3d needs one.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__(
            inputs, outputs, (1, kernel, kernel), (1, stride, stride), (0, kernel // 2, kernel // 2), bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.squeeze(2)
        if self.kernel_size == (1, 1, 1):
            return F.conv2d(subsample(x, self.stride[1:]), weight)
        return F.conv2d(x, weight, None, self.stride[1:], self.padding[1:])


def conv2d(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """2D convolution, then batch normalisation over all images."""
    return nn.Sequential(initialised(FrameConv(inputs, outputs, kernel, stride)), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Convolutions 1x1 to a quarter of the outputs, 3x3 with the stride, 1x1 to the outputs; and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        middle = max(1, round(outputs / 4))
        self.conv1 = conv2d(inputs, middle, 1)
        self.conv2 = conv2d(middle, middle, 3, stride)
        self.conv3 = conv2d(middle, outputs, 1)
        self.shortcut = shortcut(conv2d, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(inner) + self.shortcut(x))


def _resnet(
    width: float, block: Callable[[int, int, int], nn.Module], channels: tuple[int, ...], depths: tuple[int, ...]
) -> FrameStages:
    stem, *outputs = scaled(width, 64, *channels)
    stages = residual_stages(block, stem, outputs, depths)
    stages["conv2"].insert(0, nn.MaxPool2d(3, 2, 1))
    return FrameStages(outputs[-1], conv1=nn.Sequential(conv2d(3, stem, 7, 2), nn.ReLU()), **stages)


def resnet18(width: float = 1.0) -> FrameStages:
    """ResNet-18 of He et al., CVPR 2016, on every frame.

    For 16 x 112 x 112: conv1 [64, 16, 56, 56], conv2 [64, 16, 28, 28] with the max pooling, conv3 [128, 16, 14, 14],
    conv4 [256, 16, 7, 7], conv5 [512, 16, 4, 4].
    """
    return _resnet(width, partial(BasicBlock, conv2d), (64, 128, 256, 512), (2, 2, 2, 2))


def resnet50(width: float = 1.0) -> FrameStages:
    """ResNet-50 on every frame, with the stride in the 3x3 convolutions.

    Shapes of stages are those of resnet18, with four times as many channels from conv2 on.
    """
    return _resnet(width, Bottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3))
