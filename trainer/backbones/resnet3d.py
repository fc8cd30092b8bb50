"""3D residual networks, plain and factorised into (2+1)D convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.backbones.layers import Size, Stages, conv3d, scaled, separable, triple

Conv = Callable[..., nn.Module]  # (inputs, outputs, kernel, stride=1) -> a convolution with batch normalisation


class BasicBlock(nn.Module):
    """Two convolutions of kernel 3 and a shortcut, which is a convolution of kernel 1 if the shape changes."""

    def __init__(self, conv: Conv, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.conv2 = conv(outputs, outputs, 3)
        self.shortcut = shortcut(conv, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def shortcut(conv: Conv, inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a residual block: its input or, if the shape changes, a convolution of kernel 1."""
    return nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)


def residual_stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, channels: Sequence[int], depths: Sequence[int]
) -> dict[str, nn.Sequential]:
    """Stages conv2 to conv5 of a residual network; all but conv2 begin with stride 2.

    block:    (inputs, outputs, stride) -> a block
    channels: outputs of each stage
    depths:   blocks of each stage
    """
    stages = {}
    names = ("conv2", "conv3", "conv4", "conv5")
    for name, outputs, depth, stride in zip(names, channels, depths, (1, 2, 2, 2), strict=True):
        rest = [block(outputs, outputs, 1) for _ in range(depth - 1)]
        stages[name] = nn.Sequential(block(inputs, outputs, stride), *rest)
        inputs = outputs
    return stages


def conv2plus1d(inputs: int, outputs: int, kernel: Size, stride: Size = 1) -> nn.Sequential:
    """A factorised 3D convolution with about the same number of weights as a plain one, then batch normalisation."""
    return separable(inputs, middle_channels(inputs, outputs, kernel), outputs, kernel, stride)


def middle_channels(inputs: int, outputs: int, kernel: Size) -> int:
    """Channels between the spatial and the temporal part: floor(t d^2 i o / (d^2 i + t o)), at least 1.

    Tran et al., CVPR 2018, section 3.5; kernel t x d x d.
    """
    t, d, _ = triple(kernel)
    return max(1, t * d * d * inputs * outputs // (d * d * inputs + t * outputs))


class FactorisedBlock(BasicBlock):
    """A BasicBlock of (2+1)D convolutions as defined by torchvision: both have the number of middle channels that the
    rule gives for the first, and the shortcut is a plain convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        middle = middle_channels(inputs, outputs, 3)

        def conv(inputs: int, outputs: int, kernel: Size, stride: Size = 1) -> nn.Sequential:
            if kernel == 1:
                return conv3d(inputs, outputs, kernel, stride)
            return separable(inputs, middle, outputs, kernel, stride)

        super().__init__(conv, inputs, outputs, stride)


def _resnet(width: float, conv: Conv, depth: int, stem: Size = (3, 7, 7), pooled: bool = False) -> Stages:
    channels = scaled(width, 64, 128, 256, 512)
    conv1 = nn.Sequential(conv(3, channels[0], stem, (1, 2, 2)), nn.ReLU())
    stages = residual_stages(partial(BasicBlock, conv), channels[0], channels, [depth] * 4)
    if pooled:
        stages["conv2"].insert(0, nn.MaxPool3d(3, 2, 1))
    return Stages(channels[-1], conv1=conv1, **stages)


def r3d10(width: float = 1.0) -> Stages:
    """R3D with one block per stage: "R3D" of Xu et al., "R3D-18" of Wang's thesis.

    Xu et al., CVPR 2019; thesis of 2020, section 3.3. There is no max pooling.
    As in every backbone, width multiplies all channel counts.
    For 16 x 112 x 112: conv1, conv2 [64, 16, 56, 56], conv3 [128, 8, 28, 28], conv4 [256, 4, 14, 14],
    conv5 [512, 2, 7, 7].
    """
    return _resnet(width, conv3d, 1)


def r2plus1d10(width: float = 1.0) -> Stages:
    """R(2+1)D with one block per stage: r3d10 with every convolution factorised.

    The stem and the shortcuts follow the same rule for the middle channels (83 in the stem), as in the published code
    of Xu et al., CVPR 2019; shapes of stages are those of r3d10.
    """
    return _resnet(width, conv2plus1d, 1)


def r3d18(width: float = 1.0) -> Stages:
    """R3D with two blocks per stage.

    Shapes of stages are those of r3d10.
    """
    return _resnet(width, conv3d, 2)


def r2plus1d18(width: float = 1.0) -> Stages:
    """R(2+1)D with two blocks per stage.

    Shapes of stages are those of r3d10.
    """
    return _resnet(width, conv2plus1d, 2)


def r2plus1d18_tv(width: float = 1.0) -> Stages:
    """R(2+1)D with two blocks per stage as defined by torchvision (its `r2plus1d_18`), for published weights.

    Tran et al., CVPR 2018. It differs from r2plus1d18 in 45 middle channels in the stem, plain shortcuts, and blocks
    whose convolutions both have the middle channels of the first; shapes of stages are those of r3d10.
    """
    stem, *channels = scaled(width, 45, 64, 128, 256, 512)
    conv1 = nn.Sequential(separable(3, stem, channels[0], (3, 7, 7), (1, 2, 2)), nn.ReLU())
    return Stages(channels[-1], conv1=conv1, **residual_stages(FactorisedBlock, channels[0], channels, [2] * 4))


def resnet3d18(width: float = 1.0) -> Stages:
    """3D ResNet-18 with a stem of 7x7x7 and max pooling.

    Hara et al., CVPR 2018, as used by 3DRotNet and Skip-Clip. For 16 x 112 x 112: conv1 [64, 16, 56, 56],
    conv2 [64, 8, 28, 28] with the pooling, conv3 [128, 4, 14, 14], conv4 [256, 2, 7, 7], conv5 [512, 1, 4, 4].
    """
    return _resnet(width, conv3d, 2, stem=(7, 7, 7), pooled=True)
