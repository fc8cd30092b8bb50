"""LeJEPA: SIGReg against a plain reference, by hand and of known samples; its directions; the loss."""

import math

import pytest
import torch
from torch import nn

from tests.trainer.plain import Pixels, dot
from trainer.data import Batch, Shards
from trainer.methods.lejepa import LeJEPA, directions, losses, sigreg

CPU = torch.device("cpu")


def slow_statistic(x):
    """Of numbers x: the distance of their characteristic function from that of the normal distribution, over -3..3."""
    total, step = 0.0, 3 / 16
    for knot in range(-16, 17):
        t, ends = knot * step, abs(knot) == 16
        normal = math.exp(-t * t / 2)
        real = sum(math.cos(t * value) for value in x) / len(x) - normal
        imaginary = sum(math.sin(t * value) for value in x) / len(x)
        total += (real**2 + imaginary**2) * normal * step / (2 if ends else 1)
    return len(x) * total


def slow_losses(z, along, weight):
    """z: [B][V][d]; along: columns."""
    squares = []
    for clips in z:
        for clip in clips:
            for d, value in enumerate(clip):
                mean = sum(other[d] for other in clips) / len(clips)
                squares.append((value - mean) ** 2)
    statistics = [slow_statistic([dot(clips[v], line) for clips in z]) for line in along for v in range(len(z[0]))]
    invariance, gaussian = sum(squares) / len(squares), sum(statistics) / len(statistics)
    return {"loss": (1 - weight) * invariance + weight * gaussian, "invariance": invariance, "sigreg": gaussian}


@pytest.mark.parametrize(("videos", "clips", "weight"), [(1, 2, 0.05), (5, 4, 0.05), (3, 2, 0.7), (8, 3, 0)])
def test_losses_equal_the_plain_reference(videos, clips, weight):
    torch.manual_seed(videos)
    z, along = 2 * torch.randn(videos, clips, 6), directions((1, videos), 6, 5, CPU)
    found = losses(z, along, weight)
    for name, value in slow_losses(z.tolist(), along.T.tolist(), weight).items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_one_point_by_hand(n):
    """All at 0: N times the integral of (1 - p)^2 p, p = e^(-t^2 / 2), over -3..3; over all t it is
    sqrt(2 pi) (1 - 2 / sqrt 2 + 1 / sqrt 3)."""
    whole = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    beyond = math.sqrt(2 * math.pi) * math.erfc(3 / math.sqrt(2))
    assert sigreg(torch.zeros(n, 2, 3), torch.eye(3)).item() == pytest.approx(n * (whole - beyond), rel=2e-3)


def test_a_normal_sample_has_about_1_whatever_its_size_and_others_more():
    """N (|difference|^2) is 1 - p^2 on average, whose integral with p is sqrt(2 pi) (1 - 1 / sqrt 3)."""
    torch.manual_seed(0)
    along, expected = directions((0, 0), 16, 200, CPU), math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for n in (10, 100, 2000):
        found = sigreg(torch.randn(n, 20_000 // n, 16), along[:, :20]).item()
        assert found == pytest.approx(expected, rel=0.15)
    for other in (
        0 * torch.randn(2000, 1, 16),
        torch.randn(2000, 1, 1).expand(-1, -1, 16),
        2 * torch.randn(2000, 1, 16),
    ):
        assert sigreg(other, along).item() > 50


def test_directions_are_unit_vectors_of_seed_and_step_alone():
    torch.manual_seed(3)
    first = directions((7, 4), 32, 500, CPU)
    torch.rand(5)
    assert torch.equal(first, directions((7, 4), 32, 500, CPU)) and first.dtype == torch.float32
    assert torch.allclose(first.norm(dim=0), torch.ones(500)) and first.mean(1).abs().max() < 0.04
    for other in ((7, 5), (8, 4), (4, 7)):
        assert (first - directions(other, 32, 500, CPU)).abs().mean() > 0.1


def test_the_method_is_the_loss_of_its_projector(demo):
    torch.manual_seed(0)
    options = LeJEPA.option_values({"clips": 3, "hidden": 8, "outputs": 4, "directions": 6, "weight": 0.3})
    method = LeJEPA(Pixels(), options, Shards(demo)).eval()
    clips = torch.rand(15, 3, 2, 4, 4)
    for step in (1, 2):
        found = method(Pixels(), Batch(clips, {}, torch.arange(5), 0.0, (9, step)))
        z = method.projection(clips.mean((2, 3, 4))).unflatten(0, (5, 3))
        expected = losses(z, directions((9, step), 4, 6, CPU), 0.3)
        assert {name: value.item() for name, value in found.items()} == {
            name: pytest.approx(value.item(), rel=1e-5) for name, value in expected.items()
        }
    found["loss"].backward()
    assert all(weight.grad is not None for weight in method.parameters())


def test_the_projector_has_three_layers_with_normalisation(demo):
    method = LeJEPA(Pixels(), LeJEPA.option_values(), Shards(demo))
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert [type(layer) for layer in method.projection] == kinds
    assert [layer.out_features for layer in method.projection if isinstance(layer, nn.Linear)] == [2048, 2048, 64]


def test_clips_without_a_video_have_the_invariance_that_is_expected_of_them():
    torch.manual_seed(1)
    z, along = torch.randn(500, 4, 8), torch.eye(8)
    found = losses(z, along, 0.05)
    assert found["invariance"].item() == pytest.approx(found["unrelated"].item(), rel=0.05)
    means = {name: value.item() for name, value in found.items()}
    assert LeJEPA.at_chance(means | {"invariance": 0.99 * means["unrelated"]}, 500).startswith("invariance 0.7")
    found = losses(z[:, :1] + 0.3 * z, along, 0.05)
    assert LeJEPA.at_chance({name: value.item() for name, value in found.items()}, 500) == ""
