"""The fully connected branches of `statistics`."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.trainer.plain import Pixels, slow_cross_entropy, slow_linear
from trainer import checkpoint, data
from trainer.backbones import BACKBONES, create
from trainer.data import Batch
from trainer.errors import TrainerError
from trainer.methods.parts import branch, pooled_cells
from trainer.methods.statistics import KINDS, SIZES, Statistics
from trainer.settings import Settings
from trainer.training import train

OPTIONS = Statistics.option_values({"targets": "raw"})
SHARDS = SimpleNamespace(config={"clip_length": 16})
SMALL = {"width": 0.06, "batch_size": 9, "epochs": 2, "workers": 0, "device": "cpu"}


def slow_branch(last, layers):
    """Table 2.1 below conv 5: max over 2 x 2 x 2 with sizes rounded up, fc 6, fc 7, outputs; last [C, T, H, W]."""
    c, t, h, w = last.shape
    cells = [
        max(
            last[channel, k, i, j].item()
            for k in range(z, min(z + 2, t))
            for i in range(y, min(y + 2, h))
            for j in range(x, min(x + 2, w))
        )
        for channel in range(c)
        for z in range(0, t, 2)
        for y in range(0, h, 2)
        for x in range(0, w, 2)
    ]
    fc6, fc7, outputs = layers
    hidden = [max(0.0, value) for value in slow_linear(fc6, cells)]
    return slow_linear(outputs, [max(0.0, value) for value in slow_linear(fc7, hidden)])


@pytest.mark.parametrize("shape", [(2, 2, 7, 7), (3, 1, 4, 3), (1, 3, 2, 2)])
def test_branch_equals_slow_loop(shape):
    torch.manual_seed(0)
    cells = shape[0] * math.prod(math.ceil(size / 2) for size in shape[1:])
    head, last = branch(cells, 5, 4), torch.randn(3, *shape)
    layers = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    expected = [slow_branch(clip, layers) for clip in last]
    assert torch.allclose(head(last), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_light_c3d_has_the_published_sizes():
    with torch.device("meta"):
        shards = SimpleNamespace(config={"clip_length": 16, "crop": 112})
        method = Statistics(create("c3d_light"), OPTIONS | {"hidden": 2048}, shards)
    layers = {name: tuple(weight.shape) for name, weight in method.named_parameters() if "weight" in name}
    for part, outputs in (("motion", 14), ("appearance", 13)):  # 256 x 1 x 4 x 4 = 4096 cells of pool 5
        assert [layers.pop(f"heads.{part}.{k}.weight") for k in (2, 4, 6)] == [
            (2048, 4096),
            (2048, 2048),
            (outputs, 2048),
        ]
    assert not layers


@pytest.mark.parametrize("name", BACKBONES)
def test_branches_fit_every_backbone_and_leave_it_as_it_was(name):
    torch.manual_seed(0)
    backbone = create(name, 0.06)
    before, drawn = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    cells = pooled_cells(backbone, 48, 16)
    assert torch.equal(torch.get_rng_state(), drawn) and backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    last = [*backbone(torch.randn(2, 3, 16, 48, 48)).values()][-1]
    assert branch(cells, 4, 2)(last).shape == (2, 2)


@pytest.mark.parametrize("targets", ["raw", "scaled", "classes"])
def test_each_part_has_a_branch_of_its_own_that_learns(targets):
    torch.manual_seed(0)
    backbone = create("c3d_light", 0.06)
    method = Statistics(
        backbone, OPTIONS | {"targets": targets, "hidden": 8}, SimpleNamespace(config={"clip_length": 16, "crop": 32})
    )
    labels = {part: torch.stack([torch.randint(n, (4,)) for n in SIZES[part]], 1) for part in SIZES}
    labels["valid"] = torch.ones(4, 14, dtype=torch.int64)
    clips = torch.randn(4, 3, 16, 32, 32)
    out = method(backbone, Batch(clips, labels, torch.zeros(4, dtype=torch.int64), 0.0))
    for part, other in (("motion", "appearance"), ("appearance", "motion")):
        method.zero_grad()
        out[f"{part}_loss"].backward(retain_graph=True)
        assert all(weight.grad.any() for weight in method.heads[part].parameters())
        assert not any(weight.grad is not None and weight.grad.any() for weight in method.heads[other].parameters())


def test_hidden_branches_see_where_and_linear_heads_do_not():
    torch.manual_seed(0)
    clips = torch.randn(2, 3, 16, 8, 8)
    moved = clips.roll((4, 4), (3, 4))  # whole cells of the pooling
    labels = {part: torch.ones(2, len(SIZES[part]), dtype=torch.int64) for part in SIZES}
    labels["valid"] = torch.ones(2, 14, dtype=torch.int64)
    for hidden, same in ((0, True), (8, False)):
        method = Statistics(
            Pixels(), OPTIONS | {"hidden": hidden}, SimpleNamespace(config={"clip_length": 16, "crop": 8})
        )
        loss, loss_moved = (
            method(Pixels(), Batch(x, labels, torch.zeros(2), 0.0))["loss"].item() for x in (clips, moved)
        )
        assert (loss == pytest.approx(loss_moved, rel=1e-5)) == same


@pytest.mark.parametrize("mirror", [True, False])
def test_clips_are_mirrored_or_not_and_their_labels_with_them(demo, mirror):
    shards, options = data.Shards(demo), Statistics.option_values({"mirror": mirror})
    samples = Statistics.samples(shards, options)[0]
    clips = data.TrainingClips(shards, samples, Statistics, options, seed=0, jitter="none")
    keys = np.array([(epoch, i) for epoch in range(4) for i in range(len(samples))])
    raw = clips.batch(keys)
    mirrored, crops = (raw["view"][name].flatten().tolist() for name in ("mirror", "crop"))
    assert set(mirrored) == ({0, 1} if mirror else {0}) and len(set(crops)) > 4
    for (_, i), crop, turned, label in zip(keys, crops, mirrored, raw["labels"]["motion"].tolist(), strict=True):
        shard, clip = samples[i]
        assert shards.readers[shard].arrays["statistics/motion"][clip, crop, turned].tolist() == label


def drawn_labels(n):
    torch.manual_seed(n)
    labels = {part: torch.stack([torch.randint(size, (n,)) for size in SIZES[part]], 1) for part in SIZES}
    return labels | {"valid": (torch.rand(n, 14) < 0.8).long()}


# the experiments of tables 2.2 and 2.3 and what they learn: of motion, of appearance
CHOICES = {
    ("grid",): ([0, 1, 2, 3, 12, 13], [0, 1, 2, 3, 12]),
    ("rings",): ([4, 5, 6, 7, 12, 13], [4, 5, 6, 7, 12]),
    ("triangles",): ([8, 9, 10, 11, 12, 13], [8, 9, 10, 11, 12]),
    (): ([12, 13], [12]),
    ("triangles", "grid"): ([0, 1, 2, 3, 8, 9, 10, 11, 12, 13], [0, 1, 2, 3, 8, 9, 10, 11, 12]),
    ("grid", "rings", "triangles"): (list(range(14)), list(range(13))),
}


@pytest.mark.parametrize("patterns", CHOICES, ids=str)
@pytest.mark.parametrize("global_labels", [True, False])
@pytest.mark.parametrize("targets", ["raw", "classes"])
def test_some_labels_alone(patterns, global_labels, targets):
    """Loss, accuracy and heads are those of the chosen labels; all others may change."""
    options = {"patterns": list(patterns), "global_labels": global_labels, "targets": targets}
    if not patterns and not global_labels:
        with pytest.raises(TrainerError, match="patterns is empty and global_labels false"):
            Statistics.option_values(options)
        return
    method = Statistics(Pixels(), Statistics.option_values(options), SHARDS)
    clips, labels = torch.randn(6, 3, 2, 4, 4), drawn_labels(6)
    out = method(Pixels(), Batch(clips, labels, torch.zeros(6), 0.0))
    loss, hits, chances = 0.0, [], []
    for part, columns, weight in zip(SIZES, CHOICES[patterns], (1.0, 0.1), strict=True):
        columns = [column for column in columns if column < 12 or global_labels]
        outputs, start, terms = method.heads[part](clips.mean((2, 3, 4))), 0, []
        for column in columns:
            size = SIZES[part][column] if targets == "classes" else 1
            values, start = outputs[:, start : start + size], start + size
            for row, wanted in zip(range(6), labels[part][:, column].tolist(), strict=True):
                if part == "motion" and not labels["valid"][row, column]:
                    continue
                logits = values[row].tolist()
                if targets == "classes":
                    terms.append(slow_cross_entropy(logits, wanted))
                    hits.append(logits.index(max(logits)) == wanted)
                else:
                    terms.append((logits[0] - wanted) ** 2)
                    hits.append(round(logits[0]) == wanted)
                chances.append(1 / SIZES[part][column])
        assert start == outputs.shape[1]
        loss += weight * sum(terms) / len(terms)
        assert {kind for kind in KINDS[part] if kind in out} == {KINDS[part][column] for column in columns}
    assert out["loss"].item() == pytest.approx(loss, rel=1e-4)
    assert out["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert out["chance"].item() == pytest.approx(sum(chances) / len(chances))


@pytest.mark.parametrize("part", ["motion", "appearance"])
def test_a_part_alone_has_weight_1(part):
    """The weights 1 and 0.1 are relative between the two: alone appearance would learn with a tenth of the step."""
    method = Statistics(Pixels(), OPTIONS | {"parts": part}, SHARDS)
    out = method(Pixels(), Batch(torch.randn(6, 3, 2, 4, 4), drawn_labels(6), torch.zeros(6), 0.0))
    assert out["loss"] == out[f"{part}_loss"]


@pytest.mark.parametrize("patterns", [["circles"], ["grid", "grid"], [1]])
def test_patterns_that_make_no_sense(patterns):
    with pytest.raises(
        TrainerError, match=r"patterns is (\[.*\], expected different ones of: grid, rings, triangles|1, expected text)"
    ):
        Statistics.option_values({"patterns": patterns})


def test_defaults_of_the_authors_code():
    assert (Statistics.defaults["weight_decay"], Statistics.defaults["momentum"]) == (5e-3, 0.9)


def test_fc_6_and_fc_7_have_the_parameters_that_their_docstring_tells():
    with torch.device("meta"):
        layers = branch(4096, 2048, 101)
    assert sum(weight.numel() for weight in [*layers[2].parameters(), *layers[4].parameters()]) == 12_587_008
    assert "12,587,008" in branch.__doc__


def test_a_hidden_layer_is_saved_and_not_changed_on_resume(demo, here):
    options = {"statistics": {"hidden": 16, "targets": "scaled"}}
    run = train(Settings(**SMALL, method="pace+statistics", options=options), demo)
    assert checkpoint.load(run).weights["methods.statistics.heads.motion.4.weight"].shape == (16, 16)
    with pytest.raises(TrainerError, match="hidden is 8, but the run has 16"):
        train(Settings(options={"statistics": {"hidden": 8}}), demo, resume=run)
