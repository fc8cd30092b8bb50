"""Weights of other programs: the features are those of the program's own network on pixels as it normalises them."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from tests.trainer import references
from tests.trainer.references import Reference
from trainer import backbones, checkpoint
from trainer.errors import SettingError, TrainerError
from trainer.inputs import read as read_input
from trainer.weights import foreign, layouts
from trainer.weights.families import FAMILIES

INTEROP = Path(__file__).parents[2] / "../shared/interop"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
HARA = (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)


def scaled(mean, std):
    return lambda rgb: (rgb / 255 - torch.tensor(mean)) / torch.tensor(std)


def as_it_is(rgb):
    return rgb / 255


def bgr(rgb):
    return rgb.flip(-1)


def on_frames(network):
    """A network of images, on every frame."""

    def run(net, x):
        y = network(net, x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (len(x), -1)).transpose(1, 2)

    return run


V = {(name, depth, two): partial(references.vcop, depth=depth, factorised=two) for name, depth, two in (
    ("r3d10", 1, False), ("r3d18", 2, False), ("r2plus1d10", 1, True), ("r2plus1d18", 2, True))}  # fmt: skip
R3D, R2PLUS1D = V["r3d10", 1, False], V["r2plus1d10", 1, True]
TV2 = partial(references.torchvision, factorised=True)
R50 = on_frames(partial(references.resnet, depths=(3, 4, 6, 3), bottleneck=True))
# network, how it is made, how it sees pixels; dictionary, what stands before names, names beside; backbone, family, --from
CASES = {
    "vcop r3d": (R3D, {}, as_it_is, "", "base_network.", ["fc7.weight"], "r3d10", "vcop", None),
    "prp r2plus1d": (R2PLUS1D, {}, as_it_is, "", "module.base_network.", ["module.fc8.bias"], "r2plus1d10", "vcop", None),
    "pace r3d": (R3D, {}, bgr, "", "module.", ["module.linear.weight"], "r3d10", "pace", "pace"),
    "sts c3d": (references.c3d, {}, bgr, "", "", ["motion_linear.bias"], "c3d", "sts", "sts"),
    "pcl r21d": (partial(TV2, numbered=True), {}, as_it_is, "", "module.base_network.", [], "r2plus1d18_tv", "pcl", None),
    "rspnet r2plus1d": (R2PLUS1D, {}, scaled(*IMAGENET), "model", "encoder_q.encoder.",
        ["encoder_q.fc.weight", "queue", "encoder_k.encoder.conv1.spatial_conv.weight"], "r2plus1d10", "rspnet", None),
    "rspnet resnet18": (references.resnet, {}, scaled(*IMAGENET), "model", "module.encoder_q.encoder.", [],
        "resnet3d18", "rspnet", None),
    "hara": (references.resnet, {}, scaled(*HARA), "state_dict", "module.", ["module.fc.weight"], "resnet3d18",
        "kenshohara", None),
    "torchvision r3d": (references.torchvision, {}, scaled(*KINETICS), "", "", ["fc.weight"], "r3d18", "torchvision", None),
    "torchvision r2plus1d": (TV2, {}, scaled(*KINETICS), "", "", ["fc.bias"], "r2plus1d18_tv", "torchvision", None),
    "torchvision s3d": (references.s3d, {"epsilon": 1e-3}, scaled(*KINETICS), "", "", ["classifier.1.weight"], "s3d",
        "torchvision", None),
    "torchvision resnet18": (on_frames(references.resnet), {"dims": 2}, scaled(*IMAGENET), "", "", ["fc.weight"],
        "resnet18", "torchvision", None),
    "tce resnet50": (R50, {"dims": 2}, scaled(*IMAGENET), "state_dict", "module.", ["module.fc.0.weight"], "resnet50",
        "tce", None),
    "ctp": (references.ctp, {"epsilon": 1e-3}, scaled(*IMAGENET), "state_dict", "backbone.", ["head.w"], "r3d18", "ctp",
        None),
    "videomoco": (references.torchvision, {}, scaled(*IMAGENET), "state_dict", "module.encoder_q.",
        ["module.encoder_q.fc.weight", "module.queue"], "r3d18", "videomoco", None),
    "coclr": (partial(references.s3d, coclr=True), {}, scaled(*IMAGENET), "state_dict", "module.encoder_q.0.",
        ["module.encoder_q.0.block1.0.conv1.weight", "module.encoder_q.1.bias", "module.queue"], "s3d", "coclr", None),
    "severe, gdt": (TV2, {}, scaled(*IMAGENET), "model", "video_network.base.", ["audio_network.w", "mlp_v.w"],
        "r2plus1d18_tv", "severe", None),
}  # fmt: skip


def random_clips(*shape):
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(1)).float()


def wrapped(state, key, prefix, others):
    tensors = {prefix + name: value for name, value in state.items()} | {name: torch.ones(2) for name in others}
    return {key: tensors, "epoch": 3} if key else tensors


def found_in(content):
    key, tensors = max(foreign._dictionaries(content), key=lambda own: len(own[1]))
    return foreign.Found(tensors, key, "")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_features_are_those_of_the_programs_own_network(case):
    network, how, normalised, key, prefix, others, backbone, family, name = CASES[case]
    reference, rgb = Reference(**how), random_clips(1, 8, 32, 32)
    expected = network(reference, normalised(rgb).permute(0, 4, 1, 2, 3))
    found = found_in(wrapped(reference.state, key, prefix, others))
    match = foreign.recognise(found, name)
    assert (match.backbone, match.family.name) == (backbone, family)
    assert sorted(match.dropped) == sorted(others)
    with torch.device("meta"):
        own = backbones.create(backbone)
    own.load_state_dict(match.weights(found.tensors), assign=True)
    own.norm_epsilon = match.family.epsilon
    got = [*own.eval()(match.family.input.normalised(rgb / 255).permute(0, 4, 1, 2, 3)).values()][-1]
    assert got.shape == expected.shape and expected.std() > 1e-3
    assert float((got - expected).abs().max()) < 1e-3 * float(expected.abs().max())
