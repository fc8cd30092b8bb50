"""RSPNet: what a sample shows, and the losses against a plain reference with a queue."""

import math

import numpy as np
import pytest
import torch

from tests.trainer.plain import Colour, dot, slow_features, slow_mlp, slow_unit
from tests.trainer.synthetic import extent
from trainer.data import Batch, Shards, TrainingClips
from trainer.errors import SettingError
from trainer.methods import rspnet
from trainer.methods.rspnet import RSPNet, closer

OPTIONS = RSPNet.option_values()


@pytest.fixture
def make(demo, monkeypatch):
    def build(**options):
        monkeypatch.setattr(rspnet, "EMBEDDING", 5)
        torch.manual_seed(0)
        backbone = Colour()
        return backbone, RSPNet(backbone, OPTIONS | options, Shards(demo))

    return build


def test_keys_begin_together_and_differ_in_their_speed_alone(demo):
    shards = Shards(demo)
    samples, left, why = RSPNet.samples(shards, OPTIONS)
    assert (len(samples), left, why) == (7, 1, "shorter than 31 frames")
    clips = TrainingClips(shards, samples, RSPNet, OPTIONS, seed=0, jitter="clip")
    seen, starts = set(), []
    for epoch in range(30):
        for number, (shard, video) in enumerate(samples):
            reader, draw = shards.readers[shard], clips._draw(2, (epoch, number), 3)
            frames, labels = RSPNet.read(reader, video, draw)
            first, length = extent(reader, video)
            query, same, other = speeds = [int(clip[1] - clip[0]) for clip in frames]
            assert labels["speed"].tolist() == [query, other] and {*speeds} == {1, 2} and query == same
            assert all((np.diff(clip) == speed).all() for clip, speed in zip(frames, speeds, strict=True))
            assert first <= frames.min() and frames.max() < first + length and frames[1, 0] == frames[2, 0]
            for name, value in draw.views[1].items():
                assert np.array_equal(value, draw.views[2][name])
            seen.add(query)
            starts.append(frames[0, 0] == frames[1, 0])
    assert seen == {1, 2} and 0 < np.mean(starts) < 0.5
    batch = clips.batch(np.array([(0, 0)]))
    corners = batch["view"]["corner"][0]
    assert corners[1].tolist() == corners[2].tolist() and batch["clips"].shape[:3] == (1, 3, 16)


@pytest.mark.parametrize("speeds", [[1], [2, 2], [0, 1]])
def test_speeds_that_cannot_be_compared_are_refused(speeds):
    with pytest.raises(SettingError, match="speeds is .*, expected two or more different whole numbers"):
        RSPNet.option_values({"speeds": speeds})


def test_how_much_closer_by_hand():
    query, same, other = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert closer(query, same, other).item() == pytest.approx(-0.2)
    assert closer(query, query, other).item() == pytest.approx(0.2)


def slow_vectors(backbone, head, clips):
    return slow_unit(slow_mlp([head], slow_features(backbone, clips)))


def slow_losses(backbone, method, clips, video, queue, temperature, margin):
    """Mean losses of appearance and speed, and the keys that the queue takes. queue: (key, video), oldest first."""
    averaged, of = method.target["backbone"], {}
    for name in ("appearance", "speed"):
        of[name] = (
            slow_vectors(backbone, method.heads[name], clips[:, 0]),
            *(slow_vectors(averaged, method.target["heads"][name], clips[:, i]) for i in (1, 2)),
        )
    appearance, speed = [], []
    for i, own in enumerate(video.tolist()):
        query, *keys = (rows[i] for rows in of["appearance"])
        others = [math.exp(dot(query, key) / temperature) for key, other in queue if other != own]
        positives = [math.exp(dot(query, key) / temperature) for key in keys]
        appearance.append(sum(-math.log(p / (p + sum(others))) for p in positives))
        query, same, other = (rows[i] for rows in of["speed"])
        speed.append(max(0.0, margin - (dot(query, same) - dot(query, other)) / temperature))
    taken = list(zip(of["appearance"][2], video.tolist(), strict=True))
    return sum(appearance) / len(video), sum(speed) / len(video), taken


@pytest.mark.parametrize(("temperature", "margin", "weight"), [(0.07, 2.0, 1.0), (0.5, 0.3, 0.4)])
def test_losses_equal_the_plain_reference(make, temperature, margin, weight):
    backbone, method = make(queue=5, temperature=temperature, margin=margin, speed_weight=weight)
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    queue = []
    for step in range(4):
        clips, video = torch.randn(3, 3, 3, 2, 4, 4), torch.tensor([step % 3, 3, 4])
        found = method(backbone, Batch(clips.flatten(0, 1), {}, video, 0.0))
        appearance, speed, taken = slow_losses(backbone, method, clips, video, queue[-5:], temperature, margin)
        assert found["appearance"].item() == pytest.approx(appearance, rel=1e-4, abs=1e-5)
        assert found["speed"].item() == pytest.approx(speed, rel=1e-4, abs=1e-5)
        assert found["loss"].item() == pytest.approx(appearance + weight * speed, rel=1e-4)
        queue += taken
    found["loss"].backward()
    assert all(weight.grad is None for weight in method.target.parameters())
    assert all(weight.grad.any() for weight in (*backbone.parameters(), *method.heads.parameters()))


def test_the_averaged_network_follows_and_held_out_clips_leave_the_queue(make):
    backbone, method = make(decay=0.75)
    before = method.target["heads"]["speed"].weight.clone()
    with torch.no_grad():
        method.heads["speed"].weight += 1
    method.after_step(backbone, 0.5)
    assert torch.allclose(method.target["heads"]["speed"].weight, before + 0.25)
    method.eval()
    found = method(backbone, Batch(torch.randn(6, 3, 2, 4, 4), {}, torch.arange(2), 0.0))
    assert (method.queue.video < 0).all() and found["accuracy"].item() == found["chance"].item() == 1
    assert method.queue.keys.shape == (13, 5)  # as many as there are videos
