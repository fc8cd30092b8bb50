import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.plain import Pixels, slow_cross_entropy, slow_linear
from tests.trainer.synthetic import CONFIG
from trainer import distributed
from trainer.backbones import create
from trainer.data import Batch, Draw, Shards
from trainer.methods import method_class
from trainer.methods.statistics import SIZES, part_terms
from trainer.network import Network
from trainer.settings import Settings, resolve

SHARDS = SimpleNamespace(config=CONFIG)


def make(name, **options):
    return method_class(name)(Pixels(), method_class(name).option_values(options), SHARDS)


def run(method, clips, labels):
    """The method's metrics; clips [B, 3, T, H, W], one per sample."""
    return method(Pixels(), Batch(clips, labels, torch.arange(len(clips)), 0.0))


def test_pace_uniform_logits_give_log_of_the_number_of_paces():
    method = make("pace")
    nn.init.zeros_(method.head.weight), nn.init.zeros_(method.head.bias)
    out = run(method, torch.randn(8, 3, 16, 4, 4), {"pace": torch.arange(8)[:, None] % 4})
    assert out["loss"].item() == pytest.approx(math.log(4)) and out["chance"] == 0.25
    assert out["accuracy"] == 0.25  # class 0 for all


def test_pace_equals_slow_cross_entropy():
    torch.manual_seed(0)
    method = make("pace")
    clips, pace = torch.randn(5, 3, 16, 4, 4), torch.tensor([0, 3, 1, 2, 3])
    expected = 0.0
    for clip, label in zip(clips, pace.tolist(), strict=True):
        expected += slow_cross_entropy(slow_linear(method.head, [channel.mean().item() for channel in clip]), label)
    assert run(method, clips, {"pace": pace[:, None]})["loss"].item() == pytest.approx(expected / 5, rel=1e-5)


def slow_loss(outputs, ids, valid, sizes, targets):
    terms, predicted = [], []
    for row in range(len(ids)):
        start = 0
        for label, size in enumerate(sizes):
            wanted = int(ids[row, label])
            if targets == "classes":
                logits = outputs[row, start : start + size].tolist()
                term = slow_cross_entropy(logits, wanted)
                predicted.append(logits.index(max(logits)))
                start += size
            else:
                scale = size - 1 if targets == "scaled" else 1
                term = (outputs[row, label].item() - wanted / scale) ** 2
                predicted.append(round(outputs[row, label].item() * scale))
            if valid[row, label]:
                terms.append(term)
    return sum(terms) / max(1, len(terms)), torch.tensor(predicted).reshape(ids.shape)


def part_loss(outputs, ids, valid, sizes, targets):
    """Mean loss of the valid labels, and the ids predicted."""
    scale = torch.tensor(sizes) - 1 if targets == "scaled" else 1
    terms, predicted = part_terms(outputs, ids, sizes, targets, scale)
    return distributed.mean(terms, valid), predicted


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
    method = make("statistics", targets=targets, parts=parts)
    clips = torch.randn(4, 3, 16, 4, 4)
    labels = {part: torch.stack([torch.randint(n, (4,)) for n in SIZES[part]], 1) for part in SIZES}
    labels["valid"] = (torch.rand(4, 14) < 0.5).long()
    out = run(method, clips, labels)
    weight = 0.1 if parts == "both" else 1.0
    expected = 1.0 * out.get("motion_loss", 0) + weight * out.get("appearance_loss", 0)
    assert out["loss"].item() == pytest.approx(expected.item())
    changed = labels | {"motion": torch.where(labels["valid"] > 0, labels["motion"], 0)}
    assert run(method, clips, changed)["loss"].item() == out["loss"].item()
    out["loss"].backward()
    assert all(weight.grad is not None for weight in method.parameters())


def test_statistics_accuracy_and_chance():
    method = make("statistics", parts="motion")
    nn.init.zeros_(method.heads["motion"].weight), nn.init.zeros_(method.heads["motion"].bias)  # predicts 0 everywhere
    motion = torch.ones(2, 14, dtype=torch.int64)
    motion[:, 0] = 0
    valid = torch.zeros(2, 14, dtype=torch.int64)
    valid[:, [0, 1, 12]] = 1  # one block of 16, one orientation of 8, one flow of 15
    out = run(method, torch.randn(2, 3, 16, 4, 4), {"motion": motion, "valid": valid})
    assert out["accuracy"].item() == pytest.approx(1 / 3)
    assert out["chance"].item() == pytest.approx((1 / 16 + 1 / 8 + 1 / 15) / 3)
    assert (out["block"], out["orientation"], out["flow"]) == (1, 0, 0)


def test_initial_weights_depend_on_the_seed_alone(demo):
    def weights(seed):
        settings = resolve(Settings(method="pace+statistics", width=0.06, seed=seed))
        return torch.cat([weight.flatten() for weight in Network(settings, Shards(demo)).parameters()])

    first = weights(0)
    torch.rand(5)
    assert torch.equal(weights(0), first) and not torch.equal(weights(1), first)


def test_recognition_reads_a_clip_and_knows_its_class(demo):
    shards = Shards(demo)
    recognition = method_class("recognition")
    samples, left_out, _ = recognition.samples(shards, recognition.option_values())
    assert len(samples) == 8 and left_out == 0 and shards.classes == ["swim", "walk"]
    for n, video in ((64, 0), (30, 2)):
        shard = 0 if n == 64 else 1
        starts = set()
        for seed in range(40):
            draw = Draw(0, np.random.default_rng(seed), [], recognition.option_values())
            frames, labels = recognition.read(shards.readers[shard], video, draw)
            frames = frames - shards.readers[shard].arrays["videos/first_frame"][video]
            assert frames.shape == (1, 16) and (np.diff(frames) == 1).all() and labels == {}
            starts.add(int(frames[0, 0]))
        assert min(starts) >= 0 and max(starts) <= n - 16 and len(starts) > 8
    draw = Draw(0, np.random.default_rng(0), [], recognition.option_values())
    frames, _ = recognition.read(shards.readers[1], 5, draw)  # 9 frames
    assert (frames[0] - shards.readers[1].arrays["videos/first_frame"][5]).tolist() == [*range(9), *range(7)]


def test_recognition_loss_and_frozen_backbone(demo):
    shards = Shards(demo)
    backbone = create("r3d10", 0.06)
    recognition = method_class("recognition")
    method = recognition(backbone, recognition.option_values({"freeze": True, "dropout": 0.0}), shards)
    nn.init.zeros_(method.head.weight), nn.init.zeros_(method.head.bias)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train()
    clips = torch.randn(3, 3, 16, 32, 32)
    out = method(backbone, Batch(clips, {}, torch.tensor([0, 1, 2]), 0.0))
    assert out["loss"].item() == pytest.approx(math.log(2)) and out["accuracy"].item() == pytest.approx(2 / 3)
    out["loss"].backward()
    assert all(weight.grad is None for weight in backbone.parameters()) and method.head.weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
