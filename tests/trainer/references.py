"""The networks of other programs, written down plainly: a tensor is made, with random values, when its name is first used, so
that one pass gives the names, the shapes and the features."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


def scaled(mean, std):
    """How most programs normalise pixels 0 to 255."""
    return lambda rgb: (rgb / 255 - torch.tensor(mean)) / torch.tensor(std)


class Reference:
    """Tensors by the program's names; `dims` of its convolutions."""

    def __init__(self, epsilon=1e-5, dims=3, seed=0):
        self.state, self.epsilon, self.dims = {}, epsilon, dims
        self.rng = torch.Generator().manual_seed(seed)

    def tensor(self, name, *shape, scale=1.0, shift=0.0):
        if name not in self.state:
            self.state[name] = torch.randn(shape, generator=self.rng).mul_(scale).add_(shift)
        return self.state[name]

    def conv(self, name, x, outputs, kernel, stride=1, bias=False):
        kernel, stride = ((size,) * self.dims if isinstance(size, int) else size for size in (kernel, stride))
        fan_in = x.shape[1] * torch.tensor(kernel).prod().item()
        weight = self.tensor(f"{name}.weight", outputs, x.shape[1], *kernel, scale=(2 / fan_in) ** 0.5)
        shift = self.tensor(f"{name}.bias", outputs, scale=0.1) if bias else None
        return (F.conv3d if self.dims == 3 else F.conv2d)(x, weight, shift, stride, [size // 2 for size in kernel])

    def bn(self, name, x):
        n = x.shape[1]
        weight, bias, mean = (
            self.tensor(f"{name}.{part}", n, scale=0.1, shift=part == "weight")
            for part in ("weight", "bias", "running_mean")
        )
        if f"{name}.running_var" not in self.state:  # small ones, so that epsilon tells
            self.state[f"{name}.running_var"] = torch.rand(n, generator=self.rng) * 0.9 + 0.05
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, self.state[f"{name}.running_var"], weight, bias, eps=self.epsilon)


def middle(i, o, t=3, d=3):
    return t * d * d * i * o // (d * d * i + t * o)


def vcop(net, x, depth, factorised):
    def conv(name, x, o, kernel, stride):
        if not factorised:
            return net.conv(f"{name}.temporal_spatial_conv", x, o, kernel, stride)
        (t, h, w), s = kernel, stride
        x = net.conv(f"{name}.spatial_conv", x, middle(x.shape[1], o, t, h), (1, h, w), (1, *s[1:]))
        return net.conv(f"{name}.temporal_conv", F.relu(net.bn(f"{name}.bn", x)), o, (t, 1, 1), (s[0], 1, 1))

    x = F.relu(net.bn("bn1", conv("conv1", x, 64, (3, 7, 7), (1, 2, 2))))
    for stage, o in zip((2, 3, 4, 5), (64, 128, 256, 512), strict=True):
        for i in range(depth):
            at, s = (
                f"conv{stage}." + (f"blocks.{i - 1}" if i else "block1"),
                (2, 2, 2) if stage > 2 and not i else (1, 1, 1),
            )
            y = F.relu(net.bn(f"{at}.bn1", conv(f"{at}.conv1", x, o, (3, 3, 3), s)))
            y = net.bn(f"{at}.bn2", conv(f"{at}.conv2", y, o, (3, 3, 3), (1, 1, 1)))
            if s[0] == 2:
                x = net.bn(f"{at}.downsamplebn", conv(f"{at}.downsampleconv", x, o, (1, 1, 1), s))
            x = F.relu(x + y)
    return x


def c3d(net, x):
    for name, o in {"1": 64, "2": 128, "3a": 256, "3b": 256, "4a": 512, "4b": 512, "5a": 512, "5b": 512}.items():
        if not name.endswith("b") and name != "1":
            x = F.max_pool3d(x, (1, 2, 2) if name == "2" else 2)
        x = F.relu(net.bn(f"bn{name}", net.conv(f"conv{name}", x, o, 3, bias=True)))
    return x


def torchvision(net, x, factorised=False, numbered=False, dilated=False):
    stem, layer = ("0", "") if numbered else ("stem", "layer")
    if factorised:
        x = F.relu(net.bn(f"{stem}.1", net.conv(f"{stem}.0", x, 45, (1, 7, 7), (1, 2, 2))))
        x = F.relu(net.bn(f"{stem}.4", net.conv(f"{stem}.3", x, 64, (3, 1, 1))))
    else:
        x = F.relu(net.bn(f"{stem}.1", net.conv(f"{stem}.0", x, 64, (3, 7, 7), (1, 2, 2))))
    for stage, o in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            at, s, mid = f"{layer}{stage}.{i}", 2 if stage > 1 and not i else 1, middle(x.shape[1], o)

            def conv(name, x, s, o=o, mid=mid):
                if not factorised:
                    return net.bn(f"{name}.1", net.conv(f"{name}.0", x, o, 3, s))
                x = F.relu(net.bn(f"{name}.0.1", net.conv(f"{name}.0.0", x, mid, (1, 3, 3), (1, s, s))))
                return net.bn(f"{name}.1", net.conv(f"{name}.0.3", x, o, (3, 1, 1), (s, 1, 1)))

            y = conv(f"{at}.conv2", F.relu(conv(f"{at}.conv1", x, s)), 1)
            if s == 2:
                x = net.bn(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, o, 1, s))
            x = F.relu(x + y)
    return x


def ctp(net, x):
    x = F.relu(net.bn("stem.bn", net.conv("stem.conv", x, 64, (3, 7, 7), (1, 2, 2))))
    for stage, o in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            at, s = f"layer{stage}.{i}", 2 if stage > 1 and not i else 1
            y = F.relu(net.bn(f"{at}.bn1", net.conv(f"{at}.conv1.conv", x, o, 3, s)))
            y = net.bn(f"{at}.bn2", net.conv(f"{at}.conv2.conv", y, o, 3))
            if s == 2:
                x = net.bn(f"{at}.downsample_bn", net.conv(f"{at}.downsample.conv", x, o, 1, s))
            x = F.relu(x + y)
    return x


def resnet(net, x, depths=(2, 2, 2, 2), bottleneck=False):
    """Of images [N, 3, H, W] or, in three dimensions, of clips."""
    stem, pool = ((7, 7, 7), F.max_pool3d) if net.dims == 3 else (7, F.max_pool2d)
    x = F.relu(net.bn("bn1", net.conv("conv1", x, 64, stem, (1, 2, 2) if net.dims == 3 else 2)))
    x = pool(x, 3, 2, 1)
    for stage, depth in enumerate(depths, 1):
        o = 64 * 2 ** (stage - 1)
        for i in range(depth):
            at, s = f"layer{stage}.{i}", 2 if stage > 1 and not i else 1
            kernels = ((o, 1, 1), (o, 3, s), (4 * o, 1, 1)) if bottleneck else ((o, 3, s), (o, 3, 1))
            y = x
            for n, (outputs, kernel, stride) in enumerate(kernels, 1):
                y = net.bn(f"{at}.bn{n}", net.conv(f"{at}.conv{n}", F.relu(y) if n > 1 else y, outputs, kernel, stride))
            if s == 2 or x.shape[1] != y.shape[1]:
                x = net.bn(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, y.shape[1], 1, s))
            x = F.relu(x + y)
    return x


INCEPTIONS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def s3d(net, x, coclr=False):
    places = ("0", "2", "3", *("5", "6"), *map(str, range(8, 13)), *("14", "15"))
    names = ("Conv_1a", "Conv_2b", "Conv_2c", *(f"Mixed_{name}" for name in INCEPTIONS))
    at = dict(zip(("1a", "2b", "2c", *INCEPTIONS), names if coclr else [f"features.{n}" for n in places], strict=True))
    own, two = (
        (("conv", "bn"), ("conv1", "bn1", "conv2", "bn2")) if coclr else (("0", "1"), ("0.0", "0.1", "1.0", "1.1"))
    )

    def basic(name, x, o):
        return F.relu(net.bn(f"{name}.{own[1]}", net.conv(f"{name}.{own[0]}", x, o, 1)))

    def separable(name, x, o, k=3, s=1):
        x = F.relu(net.bn(f"{name}.{two[1]}", net.conv(f"{name}.{two[0]}", x, o, (1, k, k), (1, s, s))))
        return F.relu(net.bn(f"{name}.{two[3]}", net.conv(f"{name}.{two[2]}", x, o, (k, 1, 1), (s, 1, 1))))

    x = F.max_pool3d(separable(at["1a"], x, 64, 7, 2), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = F.max_pool3d(separable(at["2c"], basic(at["2b"], x, 64), 192), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for name, (a, b1, b2, c1, c2, d) in INCEPTIONS.items():
        if name in ("4b", "5b"):
            x = F.max_pool3d(x, 3, 2, 1) if name == "4b" else F.max_pool3d(x, 2, 2)
        m = at[name]
        branches = [
            basic(f"{m}.branch0.0" if coclr else f"{m}.branch0", x, a),
            separable(f"{m}.branch1.1", basic(f"{m}.branch1.0", x, b1), b2),
            separable(f"{m}.branch2.1", basic(f"{m}.branch2.0", x, c1), c2),
            basic(f"{m}.branch3.1", F.max_pool3d(x, 3, 1, 1), d),
        ]
        x = torch.cat(branches, 1)
    return x
