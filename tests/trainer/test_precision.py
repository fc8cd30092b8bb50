"""What is computed in which precision, with the flags that torch 2.7 and 2.13 both have. Convolutions in bfloat16 are not run: on
the CPU they are slow and wrong."""

import pytest
import torch
from torch import nn

from tests.trainer.runs import SMALL
from trainer import data
from trainer.backbones import create
from trainer.backbones.layers import Stages
from trainer.evaluate.features import Compute, stage_outputs
from trainer.methods.parts import float32
from trainer.network import Network
from trainer.settings import Settings, resolve
from trainer.training.precision import exact, set_precision
from trainer.training.streams import training_streams


@pytest.fixture(autouse=True)
def flags():
    """As they were, after the test."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def tf32() -> tuple[bool, bool]:
    """Of convolutions and of matrix products."""
    found = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    if hasattr(torch.backends.cudnn, "conv"):  # torch 2.9 and later tell it in another way, too
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == found[0]
        assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
def test_tf32_is_for_convolutions_alone(name):
    torch.backends.cuda.matmul.allow_tf32 = True
    backbone = create("r3d10", 0.06)
    set_precision(name, nn.ModuleDict({"backbone": backbone}))
    assert tf32() == (name != "float32", False)
    assert backbone.autocast == (torch.bfloat16 if name == "bf16" else None)
    with exact(torch.device("cpu")):
        assert tf32() == (False, False)
    assert tf32() == (name != "float32", False)


class Body(nn.Module):
    """A stage: a linear layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 32)

    def forward(self, x):
        return self.layer(x.mean((2, 3, 4)))[:, :, None, None, None]


@pytest.mark.parametrize(
    "method", ["pace", "order", "rotation", "statistics", "recognition", "ascnet", "simclr", "moco", "byol"]
)
def test_heads_and_losses_are_float32_and_the_backbone_is_not(demo, method):
    settings = resolve(Settings(**SMALL | {"method": method, "backbone": "r3d10"}))
    shards = data.Shards(demo)
    network = Network(settings, shards, Stages(32, conv1=Body()))
    set_precision("bf16", network)
    seen: dict[str, set] = {"backbone": set(), "heads": set()}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            place = "backbone" if "backbone" in name else "heads"
            layer.register_forward_hook(lambda _, x, y, place=place: seen[place].update((x[0].dtype, y.dtype)))
    stream = next(iter(training_streams(shards, settings).values()))
    raw = next(stream.load(range(1), 0, torch.device("cpu")))
    metrics = network({method: stream.on_device(raw, 0.0, torch.device("cpu"))})
    assert seen["backbone"] == {torch.float32, torch.bfloat16} and seen["heads"] == {torch.float32}
    assert metrics["loss"].dtype == torch.float32


def test_what_is_named_is_float32_too():
    @float32
    def types(x, scale, *, y, n):
        return x.dtype, scale, y.dtype, n.dtype, (x @ y).dtype

    low, whole = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert types(low, 2, y=low, n=whole) == (torch.float32, 2, torch.float32, torch.int64, torch.float32)


def test_features_are_float32_whatever_was_set_before(demo, monkeypatch):
    shards = data.Shards(demo)
    clips, backbone, found = data.VideoViews(shards, [(0, 0)], data.spread_frames), create("c3d_light", 0.06), []
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    backbone.register_forward_pre_hook(lambda *_: found.append(tf32()))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [stages for _, stages in stage_outputs(backbone, clips, Compute(workers=0, device="cpu"))]
    assert {*found} == {(False, False)} and outputs[0]["conv5"].dtype == torch.float32
