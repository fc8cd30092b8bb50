import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.trainer.synthetic import CONFIG
from trainer.errors import TrainerError
from trainer.methods import METHODS, build
from trainer.methods.statistics import SIZES, Statistics, part_loss


class Pixels(nn.Module):
    """A backbone whose features are the mean colour."""

    features = 3

    def forward(self, x):
        return {"conv1": x}


def test_pace_uniform_logits_give_log_of_the_number_of_paces():
    method = METHODS["pace"](Pixels(), CONFIG, None)
    nn.init.zeros_(method.head.weight), nn.init.zeros_(method.head.bias)
    out = method(torch.randn(8, 3, 16, 4, 4), {"pace": torch.arange(8) % 4})
    assert out["loss"].item() == pytest.approx(math.log(4)) and out["chance"] == 0.25
    assert out["accuracy"] == 0.25  # class 0 for all


def test_pace_equals_slow_cross_entropy():
    torch.manual_seed(0)
    method = METHODS["pace"](Pixels(), CONFIG, None)
    clips, pace = torch.randn(5, 3, 16, 4, 4), torch.tensor([0, 3, 1, 2, 3])
    expected = 0.0
    for clip, label in zip(clips, pace.tolist(), strict=True):
        logits = [
            sum(w * clip[c].mean().item() for c, w in enumerate(row)) + b
            for row, b in zip(method.head.weight.tolist(), method.head.bias.tolist(), strict=True)
        ]
        expected -= logits[label] - math.log(sum(map(math.exp, logits)))
    assert method(clips, {"pace": pace})["loss"].item() == pytest.approx(expected / 5, rel=1e-5)


def slow_loss(outputs, ids, valid, sizes, targets):
    terms, predicted = [], []
    for row in range(len(ids)):
        start = 0
        for label, size in enumerate(sizes):
            wanted = int(ids[row, label])
            if targets == "classes":
                logits = outputs[row, start : start + size].tolist()
                term = math.log(sum(map(math.exp, logits))) - logits[wanted]
                predicted.append(logits.index(max(logits)))
                start += size
            else:
                scale = size - 1 if targets == "scaled" else 1
                term = (outputs[row, label].item() - wanted / scale) ** 2
                predicted.append(round(outputs[row, label].item() * scale))
            if valid[row, label]:
                terms.append(term)
    return sum(terms) / max(1, len(terms)), torch.tensor(predicted).reshape(ids.shape)


@pytest.mark.parametrize("part", SIZES)
@pytest.mark.parametrize("targets", ["raw", "scaled", "classes"])
def test_statistics_loss_equals_slow_loop(part, targets):
    torch.manual_seed(0)
    sizes = SIZES[part]
    ids = torch.stack([torch.randint(size, (6,)) for size in sizes], 1)
    valid = torch.rand(ids.shape) < 0.7
    outputs = torch.randn(6, sum(sizes) if targets == "classes" else len(sizes))
    loss, predicted = part_loss(outputs, ids, valid, sizes, targets)
    expected, expected_ids = slow_loss(outputs, ids, valid, sizes, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5) and torch.equal(predicted, expected_ids)


def test_statistics_hand_worked():
    ids, valid = torch.tensor([[3, 1]]), torch.tensor([[True, True]])
    loss, predicted = part_loss(torch.tensor([[1.0, 1.2]]), ids, valid, (4, 2), "raw")
    assert loss.item() == pytest.approx((4 + 0.04) / 2) and predicted.tolist() == [[1, 1]]
    loss, predicted = part_loss(torch.tensor([[1.0, 0.5]]), ids, valid, (4, 2), "scaled")
    assert loss.item() == pytest.approx(0.25 / 2) and predicted.tolist() == [[3, 0]]
    loss, _ = part_loss(torch.zeros(1, 6), ids, valid, (4, 2), "classes")
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)
    loss, _ = part_loss(torch.zeros(1, 6), ids, ~valid, (4, 2), "classes")
    assert loss.item() == 0


@pytest.mark.parametrize("targets", ["raw", "scaled", "classes"])
@pytest.mark.parametrize("parts", ["motion", "appearance", "both"])
def test_statistics_weighs_its_branches_and_ignores_invalid_labels(targets, parts):
    torch.manual_seed(0)
    method = Statistics(Pixels(), CONFIG, SimpleNamespace(targets=targets, parts=parts))
    clips = torch.randn(4, 3, 16, 4, 4)
    labels = {part: torch.stack([torch.randint(n, (4,)) for n in SIZES[part]], 1) for part in SIZES}
    labels["valid"] = (torch.rand(4, 14) < 0.5).long()
    out = method(clips, labels)
    expected = 1.0 * out.get("motion_loss", 0) + 0.1 * out.get("appearance_loss", 0)
    assert out["loss"].item() == pytest.approx(expected.item())
    changed = labels | {"motion": torch.where(labels["valid"] > 0, labels["motion"], 0)}
    assert method(clips, changed)["loss"].item() == out["loss"].item()
    out["loss"].backward()
    assert all(weight.grad is not None for weight in method.parameters())


def test_statistics_accuracy_and_chance():
    method = Statistics(Pixels(), CONFIG, SimpleNamespace(targets="classes", parts="motion"))
    nn.init.zeros_(method.heads["motion"].weight), nn.init.zeros_(method.heads["motion"].bias)  # predicts 0 everywhere
    motion = torch.ones(2, 14, dtype=torch.int64)
    motion[:, 0] = 0
    valid = torch.zeros(2, 14, dtype=torch.int64)
    valid[:, [0, 1, 12]] = 1  # one block of 16, one orientation of 8, one flow of 15
    out = method(torch.randn(2, 3, 16, 4, 4), {"motion": motion, "valid": valid})
    assert out["accuracy"].item() == pytest.approx(1 / 3)
    assert out["chance"].item() == pytest.approx((1 / 16 + 1 / 8 + 1 / 15) / 3)
    assert (out["block"], out["orientation"], out["flow"]) == (1, 0, 0)


def test_unknown_statistics_options():
    with pytest.raises(TrainerError, match="targets is 'ids', expected raw, scaled or classes"):
        Statistics(Pixels(), CONFIG, SimpleNamespace(targets="ids", parts="both"))
    with pytest.raises(TrainerError, match="parts is 'all'"):
        Statistics(Pixels(), CONFIG, SimpleNamespace(targets="raw", parts="all"))


def test_build_depends_on_the_seed_alone():
    def weights(seed):
        settings = SimpleNamespace(method="pace", backbone="r3d10", width=0.06, seed=seed)
        return torch.cat([weight.flatten() for weight in build(settings, CONFIG).parameters()])

    first = weights(0)
    torch.rand(5)
    assert torch.equal(weights(0), first) and not torch.equal(weights(1), first)
