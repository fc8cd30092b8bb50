"""Weights of other programs: the features are those of the program's own network on pixels as it normalises them."""

import argparse
import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.command import vssl
from tests.trainer import references
from tests.trainer.references import IMAGENET, KINETICS, Reference, scaled
from trainer import backbones, checkpoint
from trainer.errors import SettingError, TrainerError
from trainer.weights import foreign, layouts
from trainer.weights.families import FAMILIES

INTEROP = Path(__file__).parents[2] / "../shared/interop"
HARA = (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)


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
    return foreign.WeightsFile(tensors, key, "")


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


@pytest.fixture(scope="module")
def r3d10():
    """The state dict of VCOP's R3D, which five programs share."""
    reference = Reference()
    R3D(reference, torch.zeros(1, 3, 4, 16, 16))
    return reference.state


def test_names_and_shapes_are_those_that_were_run():
    """The ready maps, and the tables of all names."""
    if not INTEROP.is_dir():
        pytest.skip("needs the table of names beside the project")
    of = {"vcop_r3d": "vcop r3d", "vcop_r2": "vcop r2plus1d", "vcop_c3d": "vcop c3d", "rspnet": "resnet"}
    of |= {"torchvision_r3d": "torchvision r3d", "torchvision_resnet": "resnet"}
    maps = json.loads((INTEROP / "maps.json").read_text())
    layouts_of = {key: layout for key in maps for start, layout in of.items() if key.startswith(start)}
    assert len(layouts_of) == 9  # the tenth is of a network that is refused
    for key, layout in layouts_of.items():
        own = layouts.expected(layout, maps[key]["vssl"])
        assert {theirs: ours for theirs, (ours, _) in own.items()} == maps[key]["keys"], key
    tables = re.split(r"^## ", (INTEROP / "formats-and-weights.md").read_text(), flags=re.MULTILINE)
    for title, network in {
        "torchvision r2plus1d_18": TV2,
        "torchvision s3d": references.s3d,
        "CoCLR S3D": partial(references.s3d, coclr=True),
        "VCOP C3D": references.c3d,
        "RSPNet resnet18": references.resnet,
    }.items():
        lines = next(part for part in tables if part.startswith(title)).splitlines()[1:]
        listed = dict(line.split() for line in lines if re.fullmatch(r"\S+ [\dx]+", line))
        reference = Reference()
        network(reference, torch.zeros(1, 3, 8, 32, 32))
        shapes = {name: "x".join(map(str, value.shape)) for name, value in reference.state.items()}
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        assert {name: shape for name, shape in shapes.items() if not name.endswith(buffers)} == listed, title


def test_rules_can_be_turned_round():
    for family in FAMILIES:
        for backbone, layout in family.networks:
            with torch.device("meta"):
                own = backbones.create(backbone).state_dict()
            back = {ours: theirs for theirs, (ours, _) in layouts.expected(layout, backbone).items()}
            assert back.keys() == own.keys() and len(set(back.values())) == len(own)


def test_one_of_several_programs_with_the_same_names_is_to_be_named(r3d10):
    found = found_in(r3d10)
    with pytest.raises(SettingError, match="choose one of them") as raised:
        foreign.recognise(found)
    assert "vcop (RGB, 0 to 1, mean 0, std 1)" in str(raised.value) and "pace (BGR, 0 to 255" in str(raised.value)
    assert foreign.recognise(found, "sts").family.input.order == "BGR"
    with pytest.raises(TrainerError, match="not those of kenshohara, but of: vcop, prp, pcl, pace, sts, rspnet"):
        foreign.recognise(found, "kenshohara")
    with pytest.raises(SettingError, match="unknown program 'vcup'"):
        foreign.recognise(found, "vcup")


def test_every_tensor_is_matched_or_named(r3d10):
    def refused(change):
        state = dict(r3d10)
        change(state)
        with pytest.raises(TrainerError) as raised:
            foreign.recognise(found_in(state), "vcop")
        return str(raised.value)

    assert "bn1.running_var" in refused(lambda state: state.pop("bn1.running_var"))
    assert "conv6.weight is neither part of it nor a known head" in refused(
        lambda state: state.update({"conv6.weight": torch.ones(2)})
    )
    assert "is 9, expected 64" in refused(lambda state: state.update({"bn1.weight": torch.ones(9)}))
    old = {name: value for name, value in r3d10.items() if not name.endswith("num_batches_tracked")}
    match = foreign.recognise(found_in(old), "vcop")  # as PyTorch before 0.4.1 wrote them
    assert int(match.weights(old)["conv1.0.1.num_batches_tracked"]) == 0
    broken = dict(r3d10) | {"bn1.bias": torch.full((64,), torch.nan)}
    with pytest.raises(TrainerError, match="bn1.bias holds values that are not finite"):
        foreign.recognise(found_in(broken), "vcop").weights(broken)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in r3d10.items()}
    assert foreign.recognise(found_in(halves), "vcop").weights(halves)["conv1.0.1.bias"].dtype == torch.float32


@pytest.mark.parametrize(("names", "told"), [
    (["mixed_3b.gating_b0.fc.weight"], "poolings pad like TensorFlow"),
    (["module.feature.sepInc_3b.branch0.conv3d.weight"], "gates by a convolution"),
    (["backbone.conv1.conv.weight"], "MMAction2"),
    (["s1.pathway0_stem.conv.weight"], "PySlowFast"),
    (["blocks.0.conv.weight"], "PyTorchVideo"),
    (["conv1_s.weight"], "stem differs"),
    (["encoder.weird"], r"no network of torchvision, vcop"),
])  # fmt: skip
def test_other_networks_are_told(names, told):
    with pytest.raises(TrainerError, match=told):
        foreign.recognise(found_in(dict.fromkeys(names, torch.ones(1))))


def test_a_network_that_fits_in_names_alone_is_refused():
    reference = Reference()
    references.torchvision(reference, torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(TrainerError, match="dilated convolution"):
        foreign.recognise(found_in(wrapped(reference.state, "state_dict", "module.0.", ["module.1.weight"])))
    with pytest.raises(TrainerError, match="dilated convolution"):
        foreign.recognise(found_in(reference.state), "tclr")


class Code:
    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


def test_hostile_files_are_refused_and_nothing_of_them_is_run(here):
    def told(name):
        with pytest.raises(TrainerError) as raised:
            foreign.read(Path(name))
        assert str(raised.value).startswith(f"{name}: ") and "\n" not in str(raised.value)
        return str(raised.value)

    torch.save({"a": torch.ones(4)}, "fine.pth")
    assert foreign.read(Path("fine.pth")).tensors["a"].sum() == 4
    torch.save({"a": torch.ones(4)}, "old.pth", _use_new_zipfile_serialization=False)
    assert foreign.read(Path("old.pth")).tensors.keys() == {"a"}
    torch.save({"args": argparse.Namespace(lr=1), "best": np.float64(3), "model": {"a": torch.ones(1)}}, "args.pth")
    assert foreign.read(Path("args.pth")).wrapper == "model"
    torch.save({"a": Code()}, "code.pth")
    assert "which is neither a tensor nor a plain value" in told("code.pth") and not Path("was-run").exists()
    torch.save([1, 2], "none.pth")
    assert "holds no named tensors" in told("none.pth")
    with zipfile.ZipFile("fine.pth") as source:
        for name, compression, content in (("short.pth", 0, b"\0"), ("bomb.pth", zipfile.ZIP_DEFLATED, bytes(1 << 20))):
            with zipfile.ZipFile(name, "w", compression) as changed:
                for entry in source.namelist():
                    changed.writestr(entry, content if entry.endswith("data/0") else source.read(entry))
    assert "not a readable file" in told("short.pth") and "pretends to be larger" in told("bomb.pth")
    whole = Path("fine.pth").read_bytes()
    for name, content in {
        "cut": whole[:300],
        "junk": b"\x80\x02junk",
        "PK": b"PK\3\4" + bytes(90),
        "zero": b"",
    }.items():
        Path(f"{name}.pth").write_bytes(content)
        assert "not a readable" in told(f"{name}.pth")
    os.mkfifo("pipe.pth")
    assert "expected a regular file" in told("pipe.pth")
    assert "No such file" in told("gone.pth")


def test_a_foreign_file_in_the_place_of_a_checkpoint_is_to_be_imported_first(here, demo):
    torch.save({"a": torch.ones(4)}, "theirs.pth")
    save_file({"a": torch.ones(4)}, "theirs.safetensors")
    for name in ("theirs.pth", "theirs.safetensors"):
        with pytest.raises(TrainerError, match=rf"{name}: .*import them first.*vssl import {name} --out"):
            checkpoint.load(name)
        assert f"vssl import {name} --out" in vssl("embed", "--checkpoint", name, "--shards", demo, code=1)


def test_the_network_that_is_nearest_is_named(r3d10):
    reference = Reference(dims=2)
    references.resnet(reference, torch.zeros(1, 3, 32, 32), depths=(3, 4, 6, 3))
    with pytest.raises(
        TrainerError, match="the nearest is resnet50, but layer1.0.conv3.weight and .* are missing"
    ) as raised:
        foreign.recognise(found_in(reference.state))
    assert len(str(raised.value)) < 200
    gates = {"Mixed_3b.gating_b0.fc.weight": torch.ones(1)}
    reference = Reference()
    references.s3d(reference, torch.zeros(1, 3, 8, 32, 32), coclr=True)
    with pytest.raises(
        TrainerError,
        match="the nearest is s3d, but Mixed_3b.gating_b0.fc.weight is neither part of it",
    ):
        foreign.recognise(found_in(reference.state | gates))


def test_of_a_query_and_a_momentum_encoder_the_query_is_taken_and_of_two_equals_none(r3d10):
    def named(*prefixes):
        return {prefix + name: value for prefix in prefixes for name, value in r3d10.items()}

    match = foreign.recognise(found_in({"model": named("encoder_k.encoder.", "encoder_q.encoder.")}))
    assert match.prefix == "encoder_q.encoder." and match.family.name == "rspnet" and len(match.dropped) == len(r3d10)
    with pytest.raises(TrainerError, match="holds several networks: one., two.; save only one of them"):
        foreign.recognise(found_in(named("one.", "two.")), "vcop")
