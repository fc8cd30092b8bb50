import copy
import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.backbones import BACKBONES, create
from trainer.backbones.layers import FLAT, BatchNorm3d, Conv3d, separable
from trainer.backbones.resnet2d import conv2d
from trainer.backbones.resnet3d import BasicBlock, conv3d, middle_channels
from trainer.backbones.s3dg import Inception, SelfGating

PARAMETERS = {  # at width 1, without any head
    "c3d_light": 4_651_008,
    "c3d": 27_661_440,
    "r3d10": 14_361_792,
    "r2plus1d10": 14_365_303,
    "r3d18": 33_166_272,
    "r2plus1d18": 33_178_423,
    "r2plus1d18_tv": 31_300_125,
    "resnet3d18": 33_203_904,
    "s3dg": 9_125_072,
    "s3d": 7_910_048,
    "resnet18": 11_176_512,
    "resnet50": 23_508_032,
}
R3D = [(64, 16, 56, 56), (64, 16, 56, 56), (128, 8, 28, 28), (256, 4, 14, 14), (512, 2, 7, 7)]
SHAPES = {  # of conv1 to conv5 for 16 x 112 x 112
    "c3d_light": [(64, 16, 112, 112), (128, 16, 56, 56), (256, 8, 28, 28), (256, 4, 14, 14), (256, 2, 7, 7)],
    "c3d": [(64, 16, 112, 112), (128, 16, 56, 56), (256, 8, 28, 28), (512, 4, 14, 14), (512, 2, 7, 7)],
    "r3d10": R3D,
    "r2plus1d10": R3D,
    "r3d18": R3D,
    "r2plus1d18": R3D,
    "r2plus1d18_tv": R3D,
    "resnet3d18": [(64, 16, 56, 56), (64, 8, 28, 28), (128, 4, 14, 14), (256, 2, 7, 7), (512, 1, 4, 4)],
    "s3dg": [(64, 8, 56, 56), (192, 8, 28, 28), (480, 8, 14, 14), (832, 4, 7, 7), (1024, 2, 4, 4)],
    "s3d": [(64, 8, 56, 56), (192, 8, 28, 28), (480, 8, 14, 14), (832, 4, 7, 7), (1024, 2, 3, 3)],
    "resnet18": [(64, 16, 56, 56), (64, 16, 28, 28), (128, 16, 14, 14), (256, 16, 7, 7), (512, 16, 4, 4)],
    "resnet50": [(64, 16, 56, 56), (256, 16, 28, 28), (512, 16, 14, 14), (1024, 16, 7, 7), (2048, 16, 4, 4)],
}
names = pytest.mark.parametrize("name", BACKBONES)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(name, 0.06)


def clips(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_close(got: dict, expected: dict, tolerance: float = 1e-5):
    assert got.keys() == expected.keys()
    for stage in expected:
        assert torch.allclose(got[stage], expected[stage], rtol=tolerance, atol=tolerance), stage


def test_all_backbones_are_in_the_tables():
    assert list(BACKBONES) == list(PARAMETERS) == list(SHAPES)


@names
def test_parameters_and_stages(name):
    with torch.device("meta"):
        network = create(name)
        stages = network(torch.empty(2, 3, 16, 112, 112))
    assert sum(weight.numel() for weight in network.parameters() if weight.requires_grad) == PARAMETERS[name]
    assert list(stages) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert [tuple(stage.shape) for stage in stages.values()] == [(2, *shape) for shape in SHAPES[name]]
    assert network.features == SHAPES[name][-1][0]


def test_s3dg_stages_at_the_published_size():
    with torch.device("meta"):
        stages = create("s3dg")(torch.empty(1, 3, 64, 224, 224))
    assert stages["conv1"].shape[1:] == (64, 32, 112, 112) and stages["conv5"].shape[1:] == (1024, 8, 7, 7)


@names
@pytest.mark.parametrize("width", [0.5, 0.06, 0.001, 2])
def test_width_multiplies_the_channels(name, width):
    with torch.device("meta"):
        network = create(name, width)
        stages = network(torch.empty(2, 3, 8, 32, 32))
    parts = [[channels] for channels, *_ in SHAPES[name]]
    if name in ("s3dg", "s3d"):  # the four branches of its Inception blocks
        parts[2:] = [128, 192, 96, 64], [256, 320, 128, 128], [384, 384, 128, 128]
    expected = [sum(max(1, round(channels * width)) for channels in stage) for stage in parts]
    assert [stage.shape[1] for stage in stages.values()] == expected
    assert network.features == expected[-1]


@names
@pytest.mark.parametrize("size", [(8, 32, 32), (9, 50, 41)])
def test_small_and_odd_inputs_reach_every_stage_and_gradients_every_weight(name, size):
    network = small(name).train()
    stages = network(clips(2, 3, *size))
    assert all(min(stage.shape) > 0 and torch.isfinite(stage).all() for stage in stages.values())
    stages["conv5"].square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    followed_by_norm = {id(m.bias) for m in network.modules() if name == "c3d" and isinstance(m, nn.Conv3d)}
    for label, weight in network.named_parameters():  # batch normalisation takes away what a bias before it adds
        assert id(weight) in followed_by_norm or weight.grad.any(), label


@names
def test_initial_weights(name):
    torch.manual_seed(0)
    for module in create(name, 0.25).modules():
        if isinstance(module, nn.Conv3d):
            outputs, _, *kernel = module.weight.shape
            deviation = (2 / (outputs * kernel[0] * kernel[1] * kernel[2])) ** 0.5
            error = 5 * deviation / (2 * module.weight.numel()) ** 0.5  # five standard errors
            assert module.weight.std().item() == pytest.approx(deviation, abs=error)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            assert (module.weight == 1).all() and not module.bias.any()


@names
def test_memory_layout_and_copy_change_no_value(name):
    network, x = small(name).eval(), clips(2, 3, 16, 32, 32)
    with torch.no_grad():
        plain = network(x)
        last = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
        assert_close(last(x.to(memory_format=torch.channels_last_3d)), plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x)["conv5"].dtype == torch.bfloat16


# tracing s3dg takes as long as all others together
@pytest.mark.parametrize("name", ["c3d", "r2plus1d10", "resnet18", pytest.param("s3dg", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(name):
    network, x = small(name).eval(), clips(2, 3, 8, 32, 32)
    assert_close(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_2d_networks_see_every_frame_alone(name):
    network, x = small(name).eval(), clips(2, 3, 5, 40, 33)
    with torch.no_grad():
        stages = network(x)
        one_by_one = [network(x[:, :, frame : frame + 1]) for frame in range(5)]
        assert_close(stages, {stage: torch.cat([frame[stage] for frame in one_by_one], 2) for stage in stages})
        order = [3, 1, 4, 0, 2]
        assert_close(network(x[:, :, order]), {stage: value[:, :, order] for stage, value in stages.items()})
        for stage, value in network(x[:, :, :1].expand(-1, -1, 5, -1, -1)).items():
            assert torch.allclose(value, stages[stage][:, :, :1].expand_as(value), atol=1e-5), stage


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_2d_networks_keep_the_memory_layout(name):
    network = small(name).to(memory_format=torch.channels_last_3d)
    layouts = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda _, x: layouts.append(x[0].stride()[1] == 1 or x[0].shape[1] == 1))
    stages = network(clips(2, 3, 4, 64, 64).to(memory_format=torch.channels_last_3d))
    assert layouts and all(layouts)
    assert all(stage.is_contiguous(memory_format=torch.channels_last_3d) for stage in stages.values())


@pytest.mark.parametrize("name", ["r3d10", "r2plus1d10", "s3dg"])
def test_3d_networks_keep_the_memory_layout(name):
    """oneDNN refuses small convolutions of few clips in one thread, and what PyTorch takes instead is contiguous."""
    network, other = create(name, 0.25).to(memory_format=torch.channels_last_3d), []

    def look(module, _, found):
        volume = isinstance(found, torch.Tensor) and found.dim() == 5
        if volume and not found.is_contiguous(memory_format=torch.channels_last_3d):
            other.append((type(module).__name__, *found.shape))

    for module in network.modules():
        module.register_forward_hook(look)
    network(clips(4, 3, 8, 56, 56).to(memory_format=torch.channels_last_3d))
    assert not other


def flat_and_not(monkeypatch, module: nn.Module, x: torch.Tensor, *kinds: str) -> list[list[torch.Tensor]]:
    """Outputs, gradients and running means without and with those kinds of layers computed in fewer dimensions."""
    results = []
    for flat in (set(), set(kinds)):
        monkeypatch.setitem(FLAT, "cpu", flat)
        layer, given = copy.deepcopy(module), x.clone(memory_format=torch.preserve_format).requires_grad_()
        found = layer(given)
        found = found["conv5"] if isinstance(found, dict) else found
        (found * clips(*found.shape)).sum().backward()
        results.append([found, given.grad, *(weight.grad for weight in layer.parameters()), *layer.buffers()])
    return results


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kind", "kernel", "stride"),
    [
        ("point", (1, 1, 1), (1, 1, 1)),
        ("point", (1, 1, 1), (2, 1, 1)),
        ("temporal", (3, 1, 1), (2, 1, 1)),
        ("spatial", (1, 3, 3), (1, 2, 2)),
        ("", (3, 3, 3), (1, 2, 2)),
        ("", (1, 3, 3), (2, 2, 2)),
        ("", (3, 1, 1), (1, 2, 2)),
    ],
)
def test_convolutions_in_fewer_dimensions_equal_their_definition(monkeypatch, form, kind, kernel, stride):
    torch.manual_seed(0)
    module, x = Conv3d(5, 6, kernel, stride).to(memory_format=form), clips(2, 5, 5, 7, 6).contiguous(memory_format=form)
    assert module.kind == kind
    exact = F.conv3d(x.double(), module.weight.double(), None, stride, [size // 2 for size in kernel])
    plain, flat = flat_and_not(monkeypatch, module, x, *filter(None, [kind]))
    assert torch.allclose(plain[0].double(), exact, atol=1e-5)
    for a, b in zip(plain, flat, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert form is torch.contiguous_format or flat[0].is_contiguous(memory_format=form)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last_3d])
def test_normalisation_in_fewer_dimensions_is_the_same_bit_for_bit(monkeypatch, form):
    x, seen = clips(3, 5, 4, 6, 7).contiguous(memory_format=form), []
    plain, flat = flat_and_not(monkeypatch, BatchNorm3d(5), x, "norm")
    assert all(torch.equal(a, b) for a, b in zip(plain, flat, strict=True))
    assert flat[0].is_contiguous(memory_format=form)
    monkeypatch.setattr(F, "batch_norm", lambda x, *_: seen.append(x) or x)
    BatchNorm3d(5)(x)
    assert seen[0].shape == (3, 5, 4, 42) and seen[0].data_ptr() == x.data_ptr()  # a view
    assert form is torch.contiguous_format or seen[0].is_contiguous(memory_format=torch.channels_last)


@names
def test_networks_in_fewer_dimensions_equal_themselves(monkeypatch, name):
    network = small(name).to(memory_format=torch.channels_last_3d).double()
    x = clips(2, 3, 8, 32, 32).to(memory_format=torch.channels_last_3d).double()
    plain, flat = flat_and_not(monkeypatch, network, x, "point", "temporal", "spatial", "norm")
    for a, b in zip(plain, flat, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


SMALL_STEPS = """
import torch
from trainer.backbones import BACKBONES, create
for width in (0.01, 0.06):  # 1 to 5 channels, the smallest width that is allowed, and 4 to 31
    for name in BACKBONES:
        network = create(name, width).to(memory_format=torch.channels_last_3d)
        for _ in range(2):
            clips = torch.randn(2, 3, 16, 48, 48).to(memory_format=torch.channels_last_3d)
            network(clips)["conv5"].square().sum().backward()
        print(name, width, flush=True)
"""


@pytest.mark.parametrize("instructions", ["DEFAULT", pytest.param("AVX2", marks=pytest.mark.slow)])
def test_few_channels_train_within_their_memory(instructions):
    """oneDNN chooses other kernels for other processors: those of AVX2 are tried on newer ones, too. Each in a process of its own
    (seconds), which a debugging malloc ends."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "MALLOC_CHECK_": "3", "PYTHONFAULTHANDLER": "1"}
    if library := ctypes.util.find_library("c_malloc_debug"):  # glibc's; without it MALLOC_CHECK_ does nothing
        environment["LD_PRELOAD"] = library
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STEPS],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2 * len(BACKBONES)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 16])
def test_strided_convolutions_of_kernel_1_have_the_gradients_of_their_definition(channels):
    x = clips(2, channels, 4, 9, 8).requires_grad_()
    frames = x.detach()[:, :, 0].clone().requires_grad_()
    volume, image = conv3d(channels, 5, 1, 2)[0], conv2d(channels, 5, 1, 2)[0]
    volume(x).square().sum().backward()
    image(frames).square().sum().backward()
    for module, given, picked in (
        (volume, x, "bithw,oi->bothw"),
        (image, frames, "bihw,oi->bohw"),
    ):
        exact, weight = given.detach().double().requires_grad_(), module.weight.detach().double().requires_grad_()
        every_other = exact[(slice(None), slice(None), *[slice(None, None, 2)] * (given.ndim - 2))]
        torch.einsum(picked, every_other, weight.flatten(1)).square().sum().backward()
        assert torch.allclose(given.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
        assert torch.allclose(module.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)


def test_middle_channels_by_hand():
    assert middle_channels(3, 64, (3, 7, 7)) == 83  # 28224 / 339 = 83.26
    assert middle_channels(64, 64, 3) == 144  # 110592 / 768
    assert middle_channels(64, 128, 3) == 230  # 221184 / 960 = 230.4
    assert middle_channels(64, 128, 1) == 42  # 8192 / 192 = 42.67
    assert middle_channels(1, 1, 1) == 1  # 1 / 2, but never none


def test_r2plus1d_follows_the_scaled_channels():
    network = create("r2plus1d10", 0.25)  # 16, 32, 64, 128 channels
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    spatial, temporal = convolutions[0], convolutions[1]
    assert spatial.weight.shape == (36, 3, 1, 7, 7) and spatial.stride == (1, 2, 2)  # 7056 / 195 = 36.2
    assert temporal.weight.shape == (16, 36, 3, 1, 1) and temporal.stride == (1, 1, 1)
    spatial, _, temporal = [module for module in network.conv3[0].shortcut if not isinstance(module, nn.BatchNorm3d)]
    assert spatial.weight.shape == (10, 16, 1, 1, 1) and spatial.stride == (1, 2, 2)  # 512 / 48 = 10.7
    assert temporal.weight.shape == (32, 10, 1, 1, 1) and temporal.stride == (2, 1, 1)


def normalised(x, norm):
    """Batch normalisation in training: every channel minus its mean, divided by its deviation."""
    mean, variance = x.mean((0, 2, 3, 4), keepdim=True), x.var((0, 2, 3, 4), correction=0, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt()


def test_separable_convolution_from_its_definition():
    torch.manual_seed(0)
    module, x = separable(2, 3, 4, 3, 2), clips(2, 2, 5, 6, 7)
    space, norm, _, time, last_norm = module
    by_frame = [F.conv2d(x[:, :, frame], space.weight[:, :, 0], None, 2, 1) for frame in range(5)]
    inner = F.relu(normalised(torch.stack(by_frame, 2), norm))
    padded = F.pad(inner, (0, 0, 0, 0, 1, 1))
    frames = [
        sum(torch.einsum("oi,bihw->bohw", time.weight[:, :, k, 0, 0], padded[:, :, start + k]) for k in range(3))
        for start in (0, 2, 4)
    ]
    assert torch.allclose(module(x), normalised(torch.stack(frames, 2), last_norm), atol=1e-5)


def test_basic_block_from_its_definition():
    torch.manual_seed(0)
    block, x = BasicBlock(conv3d, 3, 4, 2), clips(2, 3, 4, 6, 6)
    (first, norm1), (second, norm2), (short, norm3) = block.conv1, block.conv2, block.shortcut
    inner = F.relu(normalised(F.conv3d(x, first.weight, None, 2, 1), norm1))
    outer = normalised(F.conv3d(inner, second.weight, None, 1, 1), norm2)
    around = normalised(torch.einsum("oi,bithw->bothw", short.weight[..., 0, 0, 0], x[:, :, ::2, ::2, ::2]), norm3)
    assert torch.allclose(block(x), F.relu(outer + around), atol=1e-5)

    same = BasicBlock(conv3d, 3, 3, 1)
    nn.init.zeros_(same.conv2[0].weight)  # nothing but the shortcut is left
    assert torch.equal(same(x), F.relu(x))


def test_self_gating_by_hand():
    gate = SelfGating(2)
    gate.weigh.weight.data = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    gate.weigh.bias.data = torch.tensor([0.0, 1.0])
    x = torch.tensor([1.0, 3.0, 0.0, 2.0]).reshape(1, 2, 2, 1, 1)  # means 2 and 1: gates sigmoid(2) and sigmoid(4)
    expected = torch.tensor([0.880797, 3 * 0.880797, 0.0, 2 * 0.982014]).reshape(1, 2, 2, 1, 1)
    assert torch.allclose(gate(x), expected, atol=1e-5)


def test_inception_gates_and_joins_its_branches():
    torch.manual_seed(0)
    block, x = Inception(6, [1, 2, 3, 4, 5, 6]), clips(2, 6, 4, 5, 5)
    _, second, _, (_, (conv, norm, _), gate) = block.branches
    assert [sum(isinstance(module, SelfGating) for module in branch.modules()) for branch in block.branches] == [1] * 4
    joined = block(x)
    assert joined.shape == (2, 15, 4, 5, 5) and block.outputs == 15
    assert torch.equal(joined[:, 1:4], second(x))
    pooled = normalised(F.conv3d(F.max_pool3d(x, 3, 1, 1), conv.weight), norm)
    assert torch.allclose(joined[:, 9:], gate(F.relu(pooled)), atol=1e-5)


def test_c3d_pools_halve_and_round_up():
    network = small("c3d_light").eval()
    assert [tuple(stage.shape[2:]) for stage in network(clips(1, 3, 1, 3, 5)).values()] == [
        (1, 3, 5),
        (1, 2, 3),
        (1, 1, 2),
        (1, 1, 1),
        (1, 1, 1),
    ]
