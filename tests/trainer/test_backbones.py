import pytest
import torch

from trainer.backbones import BACKBONES


def count(network):
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def test_r3d10_parameters_and_stages():
    network = BACKBONES["r3d10"]()
    assert count(network) == 14_361_792 and network.features == 512
    with torch.device("meta"):
        network = BACKBONES["r3d10"]()
        stages = network(torch.empty(2, 3, 16, 112, 112))
    assert {name: tuple(stage.shape[1:]) for name, stage in stages.items()} == {
        "conv1": (64, 16, 56, 56),
        "conv2": (64, 16, 56, 56),
        "conv3": (128, 8, 28, 28),
        "conv4": (256, 4, 14, 14),
        "conv5": (512, 2, 7, 7),
    }
    assert list(stages)[-1] == "conv5"


@pytest.mark.parametrize(("width", "features"), [(0.25, 128), (0.125, 64), (0.06, 31), (2, 1024)])
def test_r3d10_width(width, features):
    assert BACKBONES["r3d10"](width).features == features


def test_memory_layout_changes_no_value():
    torch.manual_seed(0)
    network, x = BACKBONES["r3d10"](0.06).eval(), torch.randn(2, 3, 16, 32, 32)
    plain = network(x)["conv5"]
    last = network.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))["conv5"]
    assert torch.allclose(plain, last, atol=1e-5)
