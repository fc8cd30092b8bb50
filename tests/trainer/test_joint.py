import csv

import pytest
import torch

from tests.trainer.runs import SMALL, rows
from trainer import checkpoint
from trainer.data import Batch, Shards
from trainer.methods import method_class
from trainer.methods.statistics import SIZES
from trainer.network import Network
from trainer.recipes import parse_options
from trainer.settings import Settings, resolve
from trainer.training import train
from trainer.training.streams import training_streams

PLAIN = SMALL | {"backbone": "c3d_light"}  # no batch normalisation, so that a batch may be cut


@pytest.fixture
def batches():
    """Of pace and of statistics, with different numbers of samples."""
    torch.manual_seed(1)
    labels = {part: torch.stack([torch.randint(size, (3,)) for size in sizes], 1) for part, sizes in SIZES.items()}
    labels["valid"] = torch.ones(3, 14, dtype=torch.int64)
    clips = torch.randn(5, 3, 16, 32, 32)
    return {
        "pace": Batch(clips[:2], {"pace": torch.tensor([[1], [3]])}, torch.arange(2), 0.0),
        "statistics": Batch(clips[2:], labels, torch.arange(3), 0.0),
    }


def network(demo, **settings):
    return Network(resolve(Settings(**PLAIN, method="pace+statistics", **settings)), Shards(demo))


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("weights", [None, [0.25, 3.0]])
def test_the_loss_is_the_weighted_sum_of_the_methods_losses(demo, batches, weights):
    joint = network(demo, weights=weights)
    first, second = weights or (1.0, 1.0)
    out = joint(batches)
    alone = {name: joint.methods[name](joint.backbone, batch) for name, batch in batches.items()}
    assert out["loss"].item() == pytest.approx(
        first * alone["pace"]["loss"].item() + second * alone["statistics"]["loss"].item()
    )
    assert [*out] == ["loss", *(f"{name}.{key}" for name, metrics in alone.items() for key in metrics)]
    for name, metrics in alone.items():
        assert all(out[f"{name}.{key}"].item() == value.item() for key, value in metrics.items())


def test_gradients_are_the_weighted_sum_and_reach_every_head(demo, batches):
    joint = network(demo, weights=[0.25, 3.0])
    both = gradients(joint, joint(batches)["loss"])
    pace, statistics = (
        gradients(joint, joint.methods[name](joint.backbone, batch)["loss"]) for name, batch in batches.items()
    )
    assert both.keys() == {name for name, _ in joint.named_parameters()} == pace.keys() | statistics.keys()
    for name, gradient in both.items():
        expected = 0.25 * pace.get(name, torch.zeros(())) + 3 * statistics.get(name, torch.zeros(()))
        assert gradient.any() and torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)
        owners = [part for part in ("pace", "statistics") if name.startswith(f"methods.{part}.")]
        assert owners or (name in pace and name in statistics)


def test_the_first_of_several_methods_starts_as_it_does_alone(demo, here):
    """Same weights, same batches: its first loss is that of a run of its own."""
    once = PLAIN | {"epochs": 1, "batch_size": 30}
    pairs = (
        ("pace", "statistics"),
        ("statistics", "pace"),
        ("rotation", "ascnet"),
        ("simclr", "pace"),
        ("lejepa", "rspnet"),
    )
    for first, second in pairs:
        small = {name: {"hidden": 8} for name in (first, second) if "hidden" in method_class(name).options}
        own = {name: options for name, options in small.items() if name == first}
        joint = rows(train(Settings(**once, method=f"{first}+{second}", weights=[2.0, 0.5], options=small), demo))[0]
        alone = rows(train(Settings(**once, method=first, options=own), demo))[0]
        for key in alone.keys() - {"step", "epoch", "lr"}:
            assert joint[f"{first}.{key}"] == alone[key]
        total = 2 * float(joint[f"{first}.loss"]) + 0.5 * float(joint[f"{second}.loss"])
        assert float(joint["loss"]) == pytest.approx(total, rel=1e-6)


def test_a_joint_run_logs_and_keeps_all_of_its_methods(demo, here):
    """With a bank, averaged weights, accumulation, held-out videos and methods of different numbers of samples."""
    settings = Settings(
        **SMALL | {"batch_size": 6},
        method="ascnet+statistics",
        weights=[1.0, 0.5],
        epochs=2,
        ema=0.9,
        accumulate=2,
        holdout=0.3,
    )
    whole = train(settings, demo, "whole")
    names = [*rows(whole)[0]]
    assert names[:4] == ["step", "epoch", "lr", "loss"]
    assert {"ascnet.loss", "ascnet.spread", "statistics.loss", "statistics.accuracy"} < {*names} and len(names) > 10
    with open(whole / "holdout.csv") as file:
        scored = [*csv.DictReader(file)]
    assert len(scored) == 2 and {"ascnet.loss", "statistics.accuracy"} < scored[0].keys()
    saved = checkpoint.load(whole).weights
    assert saved["methods.ascnet.filled"].any() and "methods.statistics.heads.motion.weight" in saved
    assert "ema.methods.statistics.heads.motion.weight" in saved


def test_accumulation_weighs_each_method_by_its_own_samples(demo, here):
    """Batches of different sizes, some of them odd, cut in two."""
    whole, cut = (
        train(
            Settings(**PLAIN | {"batch_size": 5}, method="pace+rotation", epochs=1, accumulate=parts, lr=0.02),
            demo,
            f"{parts}",
        )
        for parts in (1, 2)
    )
    for one, other in zip(rows(whole), rows(cut), strict=True):
        one, other = ({key: float(value) for key, value in row.items()} for row in (one, other))
        assert other == pytest.approx(one, rel=1e-4)
    weights = checkpoint.load(cut).weights
    for name, weight in checkpoint.load(whole).weights.items():
        assert torch.allclose(weights[name], weight, rtol=1e-3, atol=1e-5), name


def test_methods_keep_their_own_jitter_unless_one_is_given(demo):
    for jitter, expected in ((None, ["frame", "none"]), ("clip", ["clip", "clip"])):
        settings = resolve(Settings(**PLAIN, method="pace+statistics", jitter=jitter))
        streams = training_streams(Shards(demo), settings)
        assert [stream.clips.jitter for stream in streams.values()] == expected


def test_options_of_several_methods():
    texts = ("contrast=same-pace", "ascnet.gamma=0.25", "statistics.targets=raw")
    options = parse_options(texts, "pace+ascnet+statistics")
    settings = resolve(Settings(method="pace+ascnet+statistics", options=options))
    assert settings.options["pace"]["contrast"] == "same-pace" and settings.options["statistics"]["targets"] == "raw"
    assert settings.options["ascnet"] == {"speeds": [1, 2], "gamma": 0.25, "decay": 0.99}
    assert settings.weights == [1.0, 1.0, 1.0] and settings.lr == resolve(Settings(method="pace")).lr
