"""Names of our backbones' tensors in other programs: rules from our names to theirs; a dictionary gives the inverse."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer import backbones

Rule = tuple[
    str, str | Callable[[re.Match], str]
]  # a pattern in our name and its replacement in theirs; all rules are applied in turn

_STAGE: Rule = (r"^conv([2-5])\.", lambda m: f"layer{int(m[1]) - 1}.")
_DOWNSAMPLE: Rule = (r"\.shortcut\.", ".downsample.")
_BLOCKS: list[Rule] = [(r"^(conv[2-5])\.0\.", r"\1.block1."), (r"^(conv[2-5])\.1\.", r"\1.blocks.0.")]


def _names(pattern: str, names: dict[str, str]) -> Rule:
    """A rule that replaces the number at the end of a pattern; `{}` in a pattern is the number."""
    return pattern.format(f"({'|'.join(names)})"), lambda m: m.expand(names[m[m.lastindex or 0]])


_TORCHVISION: list[Rule] = [(r"^conv1\.0\.", "stem."), _STAGE, _DOWNSAMPLE]
_FACTORISED: list[Rule] = [(r"\.(conv[12])\.([013])\.", r".\1.0.\2."), (r"\.(conv[12])\.4\.", r".\1.1.")]
_PARTS = {"0": "spatial_conv", "1": "bn", "3": "temporal_conv"}
_MIXED = {"conv3.1": "3b", "conv3.2": "3c", "conv5.1": "5b", "conv5.2": "5c"}
_MIXED |= {f"conv4.{i}": f"4{letter}" for i, letter in enumerate("bcdef", 1)}
_SEPARABLE = (r"^(conv1\.0)\.{}\.", r"^(conv2\.2)\.{}\.", r"(\.branches\.[12]\.1)\.{}\.")
_PLAIN = (r"^(conv2\.1)\.{}\.", r"(\.branches\.[0-3]\.[01])\.{}\.(?=[a-z])")
_PLACES = {
    "conv1.0": "0",
    "conv2.1": "2",
    "conv2.2": "3",
    "conv3.1": "5",
    "conv3.2": "6",
    "conv5.1": "14",
    "conv5.2": "15",
}
_PLACES |= {f"conv4.{i}": str(7 + i) for i in range(1, 6)}


def _s3d(separable: Sequence[str], plain: Sequence[str], modules: dict[str, str], rest: list[Rule]) -> list[Rule]:
    """Rules for the names within separable convolutions (two convolutions and normalisations) and plain ones, and for
    modules."""
    rules = [_names(at, dict(zip("0134", (rf"\1.{name}." for name in separable), strict=True))) for at in _SEPARABLE]
    rules += [_names(at, dict(zip("01", (rf"\1.{name}." for name in plain), strict=True))) for at in _PLAIN]
    return [*rules, (r"\.branches\.", ".branch"), (r"^conv[1-5]\.\d", lambda m: modules[m[0]]), *rest]


LAYOUTS: dict[str, list[Rule]] = {
    "vcop r3d": [
        (r"^conv1\.0\.0\.", "conv1.temporal_spatial_conv."),
        (r"^conv1\.0\.1\.", "bn1."),
        *_BLOCKS,
        (r"\.(conv[12])\.0\.", r".\1.temporal_spatial_conv."),
        (r"\.conv([12])\.1\.", r".bn\1."),
        (r"\.shortcut\.0\.", ".downsampleconv.temporal_spatial_conv."),
        (r"\.shortcut\.1\.", ".downsamplebn."),
    ],
    "vcop r2plus1d": [
        _names(r"^(conv1)\.0\.{}\.", {number: rf"\1.{name}." for number, name in _PARTS.items()}),
        (r"^conv1\.0\.4\.", "bn1."),
        *_BLOCKS,
        _names(r"\.(conv[12])\.{}\.", {number: rf".\1.{name}." for number, name in _PARTS.items()}),
        (r"\.conv([12])\.4\.", r".bn\1."),
        _names(r"\.(shortcut)\.{}\.", {number: f".downsampleconv.{name}." for number, name in _PARTS.items()}),
        (r"\.shortcut\.4\.", ".downsamplebn."),
    ],
    "vcop c3d": [
        (r"^conv1\.0\.|^conv2\.1\.", lambda m: f"{m[0][:5]}."),
        (r"^conv1\.1\.|^conv2\.2\.", lambda m: f"bn{m[0][4]}."),
        (
            r"^conv([345])\.([1245])\.",
            lambda m: f"{'conv' if m[2] in '14' else 'bn'}{m[1]}{'a' if m[2] in '12' else 'b'}.",
        ),
    ],
    "torchvision r3d": _TORCHVISION,
    "torchvision r2plus1d": [*_TORCHVISION, *_FACTORISED],
    "numbered r2plus1d": [*_TORCHVISION, *_FACTORISED, (r"^stem\.", "0."), (r"^layer(\d)\.", r"\1.")],
    "torchvision s3d": _s3d(
        ("0.0", "0.1", "1.0", "1.1"),
        ("0", "1"),
        {place: f"features.{number}" for place, number in _PLACES.items()},
        [(r"\.branch0\.0\.", ".branch0.")],
    ),
    "coclr s3d": _s3d(
        ("conv1", "bn1", "conv2", "bn2"),
        ("conv", "bn"),
        {"conv1.0": "Conv_1a", "conv2.1": "Conv_2b", "conv2.2": "Conv_2c"}
        | {place: f"Mixed_{name}" for place, name in _MIXED.items()},
        [],
    ),
    "resnet": [
        (r"^conv1\.0\.0\.", "conv1."),
        (r"^conv1\.0\.1\.", "bn1."),
        (r"^conv2\.(\d)\.", lambda m: f"layer1.{int(m[1]) - 1}."),  # our first module of conv2 is the pooling
        _STAGE,
        (r"\.(conv[123])\.0\.", r".\1."),
        (r"\.conv([123])\.1\.", r".bn\1."),
        _DOWNSAMPLE,
    ],
    "ctp r3d": [
        (r"^conv1\.0\.0\.", "stem.conv."),
        (r"^conv1\.0\.1\.", "stem.bn."),
        _STAGE,
        (r"\.(conv[12])\.0\.", r".\1.conv."),
        (r"\.conv([12])\.1\.", r".bn\1."),
        (r"\.shortcut\.0\.", ".downsample.conv."),
        (r"\.shortcut\.1\.", ".downsample_bn."),
    ],
    "ctp r2plus1d": [
        _names(r"^(conv1)\.0\.{}\.", {"0": "stem.conv_s.", "1": "stem.bn_s.", "3": "stem.conv_t.", "4": "stem.bn_t."}),
        _STAGE,
        _names(r"\.(conv[12])\.{}\.", {"0": r".\1.conv_s.", "1": r".\1.bn_s.", "3": r".\1.conv_t."}),
        (r"\.conv([12])\.4\.", r".bn\1."),
        (r"\.shortcut\.0\.", ".downsample.conv."),
        (r"\.shortcut\.1\.", ".downsample_bn."),
    ],
}
_FRAMES = ("resnet18", "resnet50")  # their convolutions have a time axis of length 1 here, and none there


def theirs(layout: str, name: str) -> str:
    """The name of one of our tensors in a layout."""
    for pattern, replacement in LAYOUTS[layout]:
        name = re.sub(pattern, replacement, name)
    return name


@functools.cache
def expected(layout: str, backbone: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For each tensor of a backbone at width 1, by their name: our name and their shape."""
    with torch.device("meta"):
        own = backbones.create(backbone).state_dict()
    found = {theirs(layout, name): (name, tuple(to_theirs(backbone, value).shape)) for name, value in own.items()}
    assert len(found) == len(own), f"two tensors of {backbone} have one name in {layout}"
    return found


def to_theirs(backbone: str, value: Tensor) -> Tensor:
    """Our tensor in their shape: kernels of 2D networks lose the time axis."""
    return value.squeeze(2) if backbone in _FRAMES and value.dim() == 5 else value


def to_ours(backbone: str, value: Tensor) -> Tensor:
    """Their tensor in our shape."""
    return value.unsqueeze(2) if backbone in _FRAMES and value.dim() == 4 else value
