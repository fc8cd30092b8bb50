import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.plain import Colour, slow_features, slow_mlp, slow_unit
from tests.trainer.synthetic import extent, write_shard
from trainer.data import Batch, Draw, Shards, TrainingClips
from trainer.errors import TrainerError
from trainer.methods import ascnet
from trainer.methods.ascnet import ASCNet, consistency
from trainer.network import Network
from trainer.settings import Settings, resolve
from trainer.training.streams import training_streams

OPTIONS = ASCNet.option_values()
SPEEDS = torch.tensor([[1, 2], [2, 1], [1, 2], [2, 1], [2, 1]])


@pytest.fixture
def shards(demo):
    return Shards(demo)


@pytest.fixture
def make(shards, monkeypatch):
    """A backbone and the method on it, with heads small enough for loops."""

    def build(**options):
        monkeypatch.setattr(ascnet, "HIDDEN", 6)
        monkeypatch.setattr(ascnet, "EMBEDDING", 4)
        torch.manual_seed(0)
        backbone = Colour()
        return backbone, ASCNet(backbone, OPTIONS | options, shards)

    return build


def batch(clips, other, video=None):
    """A batch of clips [B, 2, 3, T, H, W] that gives the clips `other` [B, 3, T, H, W] of whatever videos are asked for, and a
    list of the rows that were."""
    video = torch.arange(len(clips)) if video is None else video
    asked = []

    def clips_of(rows, read):
        asked.append(rows.tolist())
        return other

    given = Batch(clips.flatten(0, 1), {"speed": SPEEDS[: len(clips)]}, video, 0.0, clips_of=clips_of)
    return given, asked


def slow_losses(backbone, method, clips_i, clips_j, clips_k):
    """Algorithm 1: lines 6 to 20."""
    losses = []
    for name, positive in (("appearance", clips_j), ("speed", clips_k)):
        online = slow_mlp(method.projections[name], slow_features(backbone, clips_i))
        predicted = slow_unit(slow_mlp(method.predictors[name], online))
        averaged = method.target["backbone"], method.target["projections"][name]
        wanted = slow_unit(slow_mlp(averaged[1], slow_features(averaged[0], positive)))
        distances = [
            sum((p - w) ** 2 for p, w in zip(a, b, strict=True)) for a, b in zip(predicted, wanted, strict=True)
        ]
        losses.append(sum(distances) / len(distances))
    return losses


@pytest.mark.parametrize(("n", "gamma"), [(2, 0.5), (5, 0.5), (4, 0.2)])
def test_loss_equals_slow_loop(make, n, gamma):
    backbone, method = make(gamma=gamma)
    for weight in method.parameters():  # the averaged network is another one than the online network
        weight.data += 0.3 * torch.randn_like(weight)
    clips, other = torch.randn(n, 2, 3, 2, 3, 3), torch.randn(n, 3, 2, 3, 3)
    out = method(backbone, batch(clips, other)[0])
    appearance, speed = slow_losses(backbone, method, clips[:, 0], clips[:, 1], other)
    assert out["appearance"].item() == pytest.approx(appearance, rel=1e-4)
    assert out["speed"].item() == pytest.approx(speed, rel=1e-4)
    assert out["loss"].item() == pytest.approx(gamma * speed + (1 - gamma) * appearance, rel=1e-4)


def constant(mlp, *vector):
    nn.init.zeros_(mlp[3].weight)
    mlp[3].bias.data = torch.tensor(vector)


@pytest.mark.parametrize(
    ("appearance", "speed", "loss"),
    [((1.0, 0, 0, 0), (0.0, 2, 0, 0), 1), ((3.0, 0, 0, 0), (5.0, 0, 0, 0), 0), ((0.0, 0, 1, 0), (-1.0, 0, 0, 0), 3)],
)
def test_unit_vectors_that_agree_are_at_right_angles_or_opposite(make, appearance, speed, loss):
    """Squared distances 0, 2 and 4."""
    backbone, method = make()
    constant(method.predictors["appearance"], *appearance)
    constant(method.predictors["speed"], *speed)
    for target in method.target["projections"].values():
        constant(target, 2.0, 0.0, 0.0, 0.0)
    out = method(backbone, batch(torch.randn(3, 2, 3, 2, 3, 3), torch.randn(3, 3, 2, 3, 3))[0])
    assert out["loss"].item() == pytest.approx(loss, abs=1e-6)
    assert out["spread"].item() == pytest.approx(0, abs=1e-6)  # all are one
    assert out["constant"].item() == pytest.approx(0, abs=1e-6)


def test_spread_is_1_for_opposite_diagonals_and_losses_are_weighted():
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    targets = {"appearance": torch.full((4, 4), 0.5) * signs, "speed": torch.eye(4)}
    out = consistency({"appearance": targets["appearance"], "speed": -torch.eye(4)}, targets, 0.25)
    assert out["spread"].item() == pytest.approx(1)
    assert out["constant"].item() == pytest.approx(2)  # the mean is 0
    assert (out["appearance"], out["speed"], out["loss"]) == (0, 4, 1)


def test_gradients_reach_the_online_network_alone(make):
    backbone, method = make()
    online = [*backbone.parameters(), *method.projections.parameters(), *method.predictors.parameters()]
    for _ in range(2):  # the second time against a bank with entries
        for weight in online:
            weight.grad = None
        out = method(backbone, batch(torch.randn(5, 2, 3, 2, 3, 3), torch.randn(5, 3, 2, 3, 3))[0])
        out["loss"].backward()
        assert all(weight.grad.abs().sum() > 0 for weight in online)
    assert all(not weight.requires_grad and weight.grad is None for weight in method.target.parameters())
    assert len([*method.parameters()]) + len([*backbone.parameters()]) == len(online) + len(
        [*method.target.parameters()]
    )
    assert not method.bank.requires_grad


def fill(method, entries):
    for row, entry in entries.items():
        method.bank[row], method.filled[row] = torch.tensor(entry), True
    method.videos = len(entries)


def test_neighbours_by_hand(make):
    _, method = make()
    fill(method, {0: [1.0, 0, 0, 0], 2: [0.0, 1, 0, 0], 5: [0.8, 0.6, 0, 0]})
    method.bank[7] = torch.tensor([9.0, 9, 9, 9])  # not filled: a test video, say
    a = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0.0, 1, 0, 0], [0.0, 1, 0, 0], [0.6, 0.8, 0, 0]])
    assert method.neighbours(a, torch.tensor([1, 0, 2, 5, 5])).tolist() == [0, 5, 5, 2, 2]


def test_neighbours_are_the_videos_themselves_until_the_bank_is_full(make):
    _, method = make()
    fill(method, {0: [1.0, 0, 0, 0], 2: [0.0, 1, 0, 0]})
    a = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    assert method.neighbours(a, torch.tensor([0, 1])).tolist() == [2, 0]
    method.videos = 3
    assert method.neighbours(a, torch.tensor([0, 1])).tolist() == [0, 1]
    method.filled[2], method.videos = False, 1  # one video alone
    assert method.neighbours(a, torch.tensor([0, 1])).tolist() == [0, 0]


def test_neighbours_are_compared_in_float32(make):
    """bfloat16 keeps 8 bits: 1 and 0.999 are one."""
    _, method = make()
    fill(method, {0: [0.999, 0.0447, 0, 0], 1: [1.0, 0, 0, 0], 2: [0.999, 0.0447, 0, 0]})
    with torch.autocast("cpu", torch.bfloat16):
        assert method.neighbours(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([4])).tolist() == [1]


def test_the_bank_holds_the_online_appearance_of_the_first_clip_and_is_asked_by_the_averaged_one(make, shards):
    """Algorithm 1, lines 12 and 13."""
    backbone, method = make()
    for weight in method.target.parameters():  # another network than the online one
        weight.data += 0.5 * torch.randn_like(weight)
    video = torch.tensor([3, 0, 4, 7, 6])
    method.videos = 5
    clips = torch.randn(5, 2, 3, 2, 3, 3)
    given, asked = batch(clips, torch.randn(5, 3, 2, 3, 3), video)
    method(backbone, given)
    expected = slow_unit(slow_mlp(method.projections["appearance"], slow_features(backbone, clips[:, 0])))
    assert np.allclose(method.bank[video], expected, atol=1e-5)
    assert method.filled.nonzero()[:, 0].tolist() == [0, 3, 4, 6, 7] and not method.bank[~method.filled].any()
    target = method.target["backbone"], method.target["projections"]["appearance"]
    asking = slow_unit(slow_mlp(target[1], slow_features(target[0], clips[:, 1])))
    similarity = np.array(asking) @ np.array(expected).T - 9 * np.eye(5)
    method(backbone, given)
    assert asked == [video.tolist(), video[similarity.argmax(1)].tolist()]


def test_held_out_samples_change_nothing(make):
    backbone, method = make()
    fill(method, {0: [1.0, 0, 0, 0], 2: [0.0, 1, 0, 0]})
    method.eval(), backbone.eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for n in (3, 1):
        given, asked = batch(torch.randn(n, 2, 3, 2, 3, 3), torch.randn(n, 3, 2, 3, 3), torch.tensor([8, 9, 10])[:n])
        with torch.no_grad():
            method(backbone, given)
        assert {*asked[0]} <= {0, 2}
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_two_speeds_of_one_video(shards):
    samples = ASCNet.samples(shards, OPTIONS)[0]
    orders, starts = set(), set()
    for epoch in range(12):
        for sample, (shard, video) in enumerate(samples):
            draw = Draw(epoch, np.random.default_rng((epoch, sample)), [], OPTIONS)
            frames, labels = ASCNet.read(shards.readers[shard], video, draw)
            first, length = extent(shards.readers[shard], video)
            assert sorted(labels["speed"]) == [1, 2] and labels["speed"].dtype == np.int64
            for clip, speed in zip(frames, labels["speed"], strict=True):
                assert clip.tolist() == [clip[0] + speed * i for i in range(16)]
                assert first <= clip[0] and clip[-1] < first + length
            orders.add(tuple(labels["speed"]))
            starts.add(tuple(frames[:, 0] - first))
    assert orders == {(1, 2), (2, 1)} and len(starts) > 60  # drawn one by one
    clips = TrainingClips(shards, samples, ASCNet, OPTIONS, 0, "clip")
    crops = clips.batch(np.array([(epoch, i) for epoch in range(9) for i in range(len(samples))]))["view"]["crop"]
    assert (crops[:, 0] != crops[:, 1]).any() and len({*map(tuple, crops.tolist())}) > 30


def test_starts_reach_both_ends_of_the_video(tmp_path):
    write_shard(tmp_path / "short" / "00000.h5", [33])
    source = Shards(tmp_path / "short")
    starts = {1: set(), 2: set()}
    for epoch in range(150):
        frames, labels = ASCNet.read(source.readers[0], 0, Draw(epoch, np.random.default_rng(epoch), [], OPTIONS))
        for clip, speed in zip(frames, labels["speed"].tolist(), strict=True):
            starts[speed].add(int(clip[0]))
    assert starts == {1: set(range(18)), 2: {0, 1, 2}}


def test_the_clip_of_a_similar_video_has_the_speed_of_the_first(demo, shards, monkeypatch):
    settings = resolve(Settings(method="ascnet", width=0.06, workers=0, device="cpu"))
    network, stream = Network(settings, shards), training_streams(shards, settings)["ascnet"]
    raw = next(stream.load(range(1), 0, torch.device("cpu")))
    given, read, speeds, shown = (
        stream.on_device(raw, 0.0, torch.device("cpu")),
        ascnet.random_clip,
        raw["labels"]["speed"],
        [],
    )

    def noted(reader, video, speed, rng):
        shown.append((shards.readers.index(reader), video, speed, read(reader, video, speed, rng)))
        return shown[-1][-1]

    monkeypatch.setattr(ascnet, "random_clip", noted)
    metrics = network({"ascnet": given})
    assert metrics["loss"].isfinite()
    expected = [(*shards.videos[row], speed) for row, speed in zip(raw["video"], speeds[:, 0].tolist(), strict=True)]
    assert sorted(one[:3] for one in shown) == sorted(expected) and {speed for *_, speed in expected} == {1, 2}
    for shard, video, speed, frames in shown:
        arrays = shards.readers[shard].arrays
        first = arrays["videos/first_frame"][video]
        assert frames.tolist() == [frames[0] + speed * t for t in range(16)]
        assert first <= frames[0] and frames[-1] < first + arrays["videos/n_frames"][video]


def test_the_target_starts_as_the_online_network_and_follows_it(make):
    backbone, method = make()
    pairs = [*zip([*backbone.parameters(), *method.projections.parameters()], method.target.parameters(), strict=True)]
    assert all(torch.equal(online, target) and online is not target for online, target in pairs)
    before = []
    for online, target in pairs:
        online.data += torch.randn_like(online)
        before.append(target.clone())
    method.projections["speed"][1].running_mean += 1  # of other weights
    method.after_step(backbone, 0.5)
    for (online, target), old in zip(pairs, before, strict=True):
        assert torch.allclose(target, 0.995 * old + 0.005 * online, atol=1e-6)
        before[0] = pairs[0][1].clone()
    assert not method.target["projections"]["speed"][1].running_mean.any()
    method.after_step(backbone, 1.0)
    assert torch.equal(pairs[0][1], before[0])  # the last step leaves it


def test_short_videos_are_left_out(shards, tmp_path):
    for speeds, left in (([1, 2], 1), ([1, 3], 2), ([2, 1, 4], 2)):
        samples, left_out, reason = ASCNet.samples(shards, OPTIONS | {"speeds": speeds})
        assert (left_out, reason) == (left, f"shorter than {15 * max(speeds) + 1} frames") and len(samples) + left == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speeds": [1]}, r"speeds is \[1\], expected two or more different whole numbers from 1, e.g. \[1, 2\]"),
        ({"speeds": [1, 1]}, "two or more different"),
        ({"speeds": [0, 1]}, "whole numbers from 1"),
        ({"speeds": [1, 0.5]}, "speeds is 0.5, expected a whole number"),
        ({"gamma": 1.5}, "gamma is 1.5, expected 0 to 1"),
        ({"decay": -0.1}, "decay is -0.1, expected 0 to 1"),
        ({"speeds": 2}, "speeds is 2, expected a list"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(TrainerError, match=message):
        ASCNet.option_values(options)
