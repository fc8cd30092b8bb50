"""`pace`: which clips it reads, and its contrastive part."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.plain import Pixels, dot
from tests.trainer.synthetic import CONFIG, cropped, video_frames, write_shard
from trainer import data
from trainer.data import Batch, Draw
from trainer.errors import TrainerError
from trainer.methods.contrast import contrastive
from trainer.methods.pace import Pace, literal

OPTIONS = Pace.option_values({"contrast": "same-context"})


def exponentials(z, temperature):
    """e^(z_i z_j / temperature) of all i, j."""
    return [[math.exp(dot(x, y) / temperature) for y in z] for x in z]


def same_context(z, temperature):
    """Eq. 4.3: clips 2 k and 2 k + 1 are of one video, and all clips of other videos are the negatives."""
    total = 0.0
    for i, e in enumerate(exponentials(z, temperature)):
        positive = e[i ^ 1]
        total -= math.log(positive / (positive + sum(e[j] for j in range(len(z)) if j // 2 != i // 2)))
    return total / len(z)


def same_pace(z, pace, temperature):
    """Eq. 4.4: mean over the clips that have a positive, of each the mean over its positives."""
    of_clips = []
    for i, e in enumerate(exponentials(z, temperature)):
        negatives = sum(e[k] for k in range(len(z)) if pace[k] != pace[i])
        positives = [j for j in range(len(z)) if j != i and pace[j] == pace[i]]
        terms = [-math.log(e[j] / (e[j] + negatives)) for j in positives]
        if terms:
            of_clips.append(sum(terms) / len(terms))
    return sum(of_clips) / len(of_clips) if of_clips else 0.0


def literal_loop(z, group):
    """Eq. 4.3 and 4.4 as figure 4.4 draws them: the denominator is the sum over the map of all pairs, the sum over all
    positive pairs is divided by the number of clips."""
    whole, total = 0.0, 0.0
    for k, x in enumerate(z):
        for m, y in enumerate(z):
            if k != m:
                whole += math.exp(dot(x, y))
    for i, x in enumerate(z):
        for j, y in enumerate(z):
            if j != i and group[j] == group[i]:
                total -= math.log(math.exp(dot(x, y)) / whole)
    return total / len(z)


def unit(*shape):
    return nn.functional.normalize(torch.randn(*shape), dim=1)


@pytest.mark.parametrize("videos", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 4, 128])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_same_context_equals_slow_loop(videos, width, temperature):
    torch.manual_seed(videos + width)
    z = unit(2 * videos, width)
    loss = contrastive(z, torch.arange(videos).repeat_interleave(2), temperature)
    assert loss.item() == pytest.approx(same_context(z.tolist(), temperature), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("pace", [[0, 1, 1, 1], [0, 0, 1, 1, 2, 3, 3], [2, 2, 2], [0, 1, 2], [3]])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_same_pace_equals_slow_loop(pace, temperature):
    torch.manual_seed(len(pace))
    z = unit(len(pace), 6).requires_grad_()
    loss = contrastive(z, torch.tensor(pace), temperature)
    assert loss.item() == pytest.approx(same_pace(z.tolist(), pace, temperature), rel=1e-4, abs=1e-6)
    loss.backward()
    assert z.grad.isfinite().all()  # also where no clip has a positive, or none a negative


def test_equal_features():
    """All similarities are equal: -log of one over one and the number of negatives."""
    z, video = torch.ones(8, 1), torch.arange(4).repeat_interleave(2)
    assert contrastive(z, video, 0.1).item() == pytest.approx(math.log(1 + 6))
    pace = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    expected = (3 * math.log(1 + 5) + 2 * math.log(1 + 6) + 3 * math.log(1 + 5)) / 8
    assert contrastive(z, pace, 0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthogonal_videos(temperature):
    """Two equal clips of each of n orthogonal videos: log(1 + (2 n - 2) e^(-1 / temperature))."""
    for n in (1, 2, 8):
        loss = contrastive(torch.eye(n).repeat_interleave(2, 0), torch.arange(n).repeat_interleave(2), temperature)
        expected = math.log1p((2 * n - 2) * math.exp(-1 / temperature))
        assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_clip_without_a_positive_is_left_out_but_is_a_negative():
    z = torch.eye(3)  # all similarities 0
    assert contrastive(z, torch.tensor([0, 0, 1]), 1.0).item() == pytest.approx(math.log(2))  # not 2/3 of it
    far = torch.tensor([[1.0, 0], [1, 0], [-50, 0]])
    assert contrastive(far, torch.tensor([0, 0, 1]), 1.0).item() == pytest.approx(0, abs=1e-12)
    assert contrastive(z, torch.tensor([0, 1, 2]), 1.0) == 0


def test_a_clip_is_neither_its_own_positive_nor_its_own_negative():
    z = torch.tensor([[9.0], [1.0], [2.0]])  # with itself the first clip has 81, far more than any other pair
    expected = [math.log1p(math.exp(18 - 9)), math.log1p(math.exp(2 - 9))]  # s(0, 2) - s(0, 1), s(1, 2) - s(1, 0)
    assert contrastive(z, torch.tensor([0, 0, 1]), 1.0).item() == pytest.approx(sum(expected) / 2)


def build(**options):
    torch.manual_seed(0)
    return Pace(Pixels(), OPTIONS | options, SimpleNamespace(config=CONFIG))


def batch(clips, pace, video):
    return Batch(clips.flatten(0, 1), {"pace": pace}, video, 0.0)


@pytest.mark.parametrize("contrast", ["same-context", "same-pace"])
def test_loss_is_the_weighted_sum_and_the_features_are_projected_and_normalised(contrast):
    method = build(contrast=contrast, contrast_weight=0.3, temperature=0.2)
    n = 2 if contrast == "same-context" else 1
    clips, pace = torch.randn(4, n, 3, 2, 4, 4), torch.tensor([0, 1, 0, 3, 3, 0, 2, 0])[: 4 * n].reshape(4, n)
    out = method(Pixels(), batch(clips, pace, torch.arange(4) + 5))
    pooled = clips.flatten(0, 1).mean((2, 3, 4))
    z = [[x / math.hypot(*row) for x in row] for row in method.projection(pooled).tolist()]
    expected = same_context(z, 0.2) if n == 2 else same_pace(z, pace.flatten().tolist(), 0.2)
    assert out["contrast"].item() == pytest.approx(expected, rel=1e-4)
    cross_entropy = nn.functional.cross_entropy(method.head(pooled), pace.flatten())
    assert out["loss"].item() == pytest.approx(cross_entropy.item() + 0.3 * expected, rel=1e-4)
    with torch.no_grad():
        method.projection[2].weight *= 3
        method.projection[2].bias *= 3
    assert method(Pixels(), batch(clips, pace, torch.arange(4)))["contrast"].item() == pytest.approx(expected, rel=1e-4)


def test_the_projection_is_as_wide_as_the_features_and_ends_in_128():
    assert [tuple(weight.shape) for weight in build().projection.parameters()] == [(3, 3), (3,), (128, 3), (128,)]
    assert not any([*build(**options).projection.parameters()] for options in ({"contrast": "none"}, {"literal": True}))


@pytest.mark.parametrize("group", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1], [0, 0, 1, 2, 3, 3], [2, 2, 2], [0, 1, 2], [3]])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_literal_equals_slow_loop(group, scale):
    torch.manual_seed(len(group))
    z = (scale * torch.randn(len(group), 5)).requires_grad_()
    loss = literal(z, torch.tensor(group))
    assert loss.item() == pytest.approx(literal_loop(z.tolist(), group), rel=1e-4, abs=1e-6)
    loss.backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(("contrast", "group"), [("same-context", [7, 7, 3, 3, 8, 8]), ("same-pace", [0, 2, 2])])
def test_literal_is_the_dot_product_of_pooled_features(contrast, group):
    """Trap: of whole maps, of normalised vectors, divided by a temperature, or against clips of other groups alone."""
    method = build(contrast=contrast, literal=True, temperature=0.01)
    clips = torch.randn(3, len(group) // 3, 3, 2, 2, 2)
    pace, video = torch.tensor([0, 2, 2])[:, None].expand(3, clips.shape[1]), torch.tensor([7, 3, 8])
    out = method(Pixels(), batch(clips, pace, video))
    pooled = clips.flatten(0, 1).flatten(2).mean(2)
    assert out["contrast"].item() == pytest.approx(literal_loop(pooled.tolist(), group), rel=1e-4)


def test_literal_features_that_are_all_alike_cost_the_number_of_pairs():
    """Of 2 N clips 2 N (2 N - 1) pairs: at 30 videos log 3540, and not hundreds as of whole maps."""
    z = torch.randn(1, 512).expand(60, 512) * 0.04
    assert literal(z, torch.arange(30).repeat_interleave(2)).item() == pytest.approx(math.log(60 * 59), rel=1e-5)


def test_literal_sums_over_the_positives_of_a_clip():
    """All similarities 0: each positive costs log of the 12 pairs. Of groups of three and one six pairs are positive, over
    four clips; the clip without one counts, too."""
    z = torch.zeros(4, 8)
    assert literal(z, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(6 * math.log(12) / 4)
    assert literal(z, torch.tensor([0, 0, 0, 0])).item() == pytest.approx(12 * math.log(12) / 4)
    assert literal(z, torch.tensor([0, 1, 2, 3])).item() == 0
    # a batch of 30 clips, paces as even as can be: 8 8 7 7 clips have 7 7 6 6 positives each
    pace = torch.arange(30) % 4
    expected = (2 * 8 * 7 + 2 * 7 * 6) / 30 * math.log(30 * 29)
    assert literal(torch.zeros(30, 8), pace).item() == pytest.approx(expected, rel=1e-5) and 44 < expected < 45


def test_the_contrast_alone_classifies_nothing():
    method = build(pace_weight=0.0, contrast_weight=0.3)
    clips, pace = torch.randn(3, 2, 3, 2, 4, 4), torch.tensor([[0, 1], [2, 2], [3, 0]])
    out = method(Pixels(), batch(clips, pace, torch.arange(3)))
    assert out.keys() == {"loss", "contrast"} and not [*method.head.parameters()]
    assert out["loss"].item() == pytest.approx(0.3 * out["contrast"].item())
    other = method(Pixels(), batch(clips, pace.flip(1), torch.arange(3)))
    assert other["loss"] == out["loss"]  # whatever the paces are
    weighted = build(pace_weight=0.5)(Pixels(), batch(clips, pace, torch.arange(3)))
    whole = build()(Pixels(), batch(clips, pace, torch.arange(3)))
    classified = whole["loss"] - 0.1 * whole["contrast"]
    assert weighted["loss"].item() == pytest.approx((0.5 * classified + 0.1 * whole["contrast"]).item())


def test_random_backwards_reverses_every_second_clip_and_keeps_its_class(demo):
    source = data.Shards(demo)
    reader, plain = source.readers[0], OPTIONS
    options, backwards = plain | {"random_backwards": True}, 0
    for seed in range(200):
        views = [{}, {}]
        forwards, labels = Pace.read(reader, 1, Draw(seed, np.random.default_rng(seed), views, plain))
        shown, same = Pace.read(reader, 1, Draw(seed, np.random.default_rng(seed), views, options))
        assert np.array_equal(labels["pace"], same["pace"]) and shown.shape == forwards.shape
        for clip, straight in zip(shown.tolist(), forwards.tolist(), strict=True):
            assert clip in (straight, straight[::-1])
            backwards += clip != straight
    assert 160 < backwards < 240  # of 400, each drawn on its own


def test_random_backwards_of_backward_paces_is_refused(tmp_path):
    write_shard(tmp_path / "both" / "00000.h5", [64, 70], config=CONFIG | {"paces": ["1", "-1"]})
    source = data.Shards(tmp_path / "both")
    with pytest.raises(TrainerError, match="random_backwards .* and the shards have -1 as separate classes"):
        Pace.samples(source, Pace.option_values({"random_backwards": True}))
    assert len(Pace.samples(source, Pace.option_values())[0]) == 2


def test_two_samples_of_one_video_are_no_negatives():
    """The group is the video, not the place in the batch."""
    method = build(literal=True)
    clips = torch.zeros(2, 2, 3, 2, 2, 2)
    pace = torch.zeros(2, 2, dtype=torch.int64)
    assert method(Pixels(), batch(clips, pace, torch.tensor([4, 5])))["contrast"].item() == pytest.approx(math.log(12))
    method = build()
    nn.init.zeros_(method.projection[2].weight)
    assert method(Pixels(), batch(clips, pace, torch.tensor([4, 4])))["contrast"] == 0
    other = method(Pixels(), batch(clips, pace, torch.tensor([4, 5])))["contrast"]
    assert other.item() == pytest.approx(math.log(3))


def test_same_context_shows_two_rows_of_different_paces_of_one_video(demo):
    source = data.Shards(demo)
    assert (
        Pace.shape(source.config, OPTIONS) == (2, 16)
        and Pace.shape(source.config, OPTIONS | {"contrast": "none"})[0] == 1
    )
    clips = data.TrainingClips(source, Pace.samples(source, OPTIONS)[0], Pace, OPTIONS, 0, "none")
    starts, paces = (source.readers[0].arrays[f"pace/{name}"][1] for name in ("start", "pace"))
    for epoch in range(5):
        first = 2 * epoch % len(paces)
        second = next(row % len(paces) for row in range(first + 1, 99) if paces[row % len(paces)] != paces[first])
        items = clips.batch(np.array([(epoch, 1)]))
        assert items["id"] == ["00000_1"] and items["labels"]["pace"].tolist() == [paces[[first, second]].tolist()]
        for clip, corner, row in zip(items["clips"][0], items["view"]["corner"][0], (first, second), strict=True):
            shown = cropped(video_frames(1, 70)[starts[row] + np.arange(16) * (paces[row] + 1)], corner)
            assert np.abs(clip.numpy().astype(int) - shown).mean() < 6  # JPEG


def test_same_context_pairs_are_equally_often_any_two_paces():
    """Of four paces the first clip has each, and the second each of the others, equally often."""
    paces = np.random.default_rng(0).integers(4, size=(40, 400)).astype(np.uint8)
    reader = SimpleNamespace(arrays={"pace/pace": paces}, pace_frames=lambda video, row: np.full(16, row))
    counts = np.zeros((4, 4), int)
    for video in range(40):
        for epoch in range(200):
            frames, labels = Pace.read(reader, video, Draw(epoch, None, [{}, {}], OPTIONS))
            first, second = frames[:, 0]
            assert first == 2 * epoch and labels["pace"].tolist() == paces[video, [first, second]].tolist()
            counts[tuple(labels["pace"])] += 1
    assert not counts.diagonal().any()
    assert counts[~np.eye(4, dtype=bool)] == pytest.approx([8000 / 12] * 12, rel=0.15)


def test_same_context_leaves_out_videos_whose_rows_have_one_pace(tmp_path):
    write_shard(
        tmp_path / "two" / "00000.h5", [64, 70, 66, 80, 90, 64, 77], config=CONFIG | {"rows": 2, "paces": ["1", "2"]}
    )
    source = data.Shards(tmp_path / "two")
    paces = source.readers[0].arrays["pace/pace"]
    usable = np.flatnonzero(paces[:, 0] != paces[:, 1])
    assert 0 < len(usable) < 7
    samples, lacking, why = Pace.samples(source, OPTIONS)
    assert samples[:, 1].tolist() == usable.tolist() and lacking == 7 - len(usable) and why.endswith("equal rows only")
    assert len(Pace.samples(source, Pace.option_values())[0]) == 7


@pytest.mark.parametrize("options", [{}, {"contrast": "same-pace", "contrast_weight": 0.0}], ids=str)
def test_without_classification_and_contrast_nothing_is_learnt(options):
    with pytest.raises(TrainerError, match="pace_weight is 0 and contrast is none"):
        Pace.option_values({"pace_weight": 0.0, **options})


def test_the_projection_has_the_parameters_that_its_docstring_tells():
    projection = Pace(SimpleNamespace(features=512), OPTIONS, SimpleNamespace(config=CONFIG)).projection
    assert sum(weight.numel() for weight in projection.parameters()) == 328_320 and "328,320" in Pace.__doc__


def test_defaults_of_the_authors_code():
    assert (Pace.defaults["weight_decay"], Pace.defaults["momentum"]) == (5e-3, 0.9)
