import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.plain import Pixels, slow_cross_entropy, slow_linear
from tests.trainer.synthetic import cropped, video_frames
from trainer import data
from trainer.backbones import create
from trainer.data import Batch
from trainer.methods.pace import Pace
from trainer.methods.parts import rotations
from trainer.methods.rotation import Rotation

SMALL = {"method": "rotation", "width": 0.06, "batch_size": 9, "workers": 0, "device": "cpu"}


def test_its_numbers_are_those_of_pace_but_for_the_jitter():
    assert Rotation.defaults | {"jitter": "frame"} == Pace.defaults and Rotation.defaults["weight_decay"] == 5e-3


class Corner(nn.Module):
    """A backbone that sees the upper left pixel alone."""

    features = 3

    def forward(self, x):
        return {"conv1": x[..., :1, :1]}


def batch(clips):
    return Batch(clips, {}, torch.zeros(len(clips), dtype=torch.int64), 0.0)


def test_rotations_by_hand():
    clip = torch.tensor([[1, 2], [3, 4]]).expand(1, 3, 16, 2, 2)
    turned = rotations(clip)
    assert turned.shape == (4, 3, 16, 2, 2)
    expected = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert (turned == torch.tensor(expected)[:, None, None]).all()


def test_rotations_equal_slow_loop():
    clips = torch.randn(2, 3, 4, 5, 5)
    turned = rotations(clips)
    for sample in range(2):
        for y in range(5):
            for x in range(5):
                for turns, (row, column) in enumerate([(y, x), (x, 4 - y), (4 - y, 4 - x), (4 - x, y)]):
                    assert torch.equal(turned[4 * sample + turns, :, :, y, x], clips[sample, :, :, row, column])


def test_a_rotated_clip_gives_the_same_rotations_one_on():
    clips = torch.randn(3, 3, 2, 4, 4)
    once = rotations(torch.rot90(clips, 1, (3, 4))).unflatten(0, (3, 4))
    assert torch.equal(once, rotations(clips).unflatten(0, (3, 4)).roll(-1, 1))


def test_loss_is_the_mean_over_all_rotations_of_all_clips():
    torch.manual_seed(0)
    method = Rotation(Corner(), {}, None)
    clips = torch.randn(5, 3, 2, 4, 4)
    loss, hits = 0.0, 0
    for clip in clips:
        corners = [
            clip[..., 0, 0],
            clip[..., 0, -1],
            clip[..., -1, -1],
            clip[..., -1, 0],
        ]  # what 0 to 3 turns bring there
        for turns, corner in enumerate(corners):
            logits = slow_linear(method.head, corner.mean(1).tolist())
            loss += slow_cross_entropy(logits, turns)
            hits += logits.index(max(logits)) == turns
    out = method(Corner(), batch(clips))
    assert out["loss"].item() == pytest.approx(loss / 20, rel=1e-5) and out["chance"] == 0.25
    assert out["accuracy"].item() == pytest.approx(hits / 20)


def test_features_that_no_rotation_changes_are_right_once_in_four():
    """Each clip is there in all four rotations, so that chance is exact in every batch, and log 4 the best loss."""
    torch.manual_seed(0)
    method = Rotation(Pixels(), {}, None)
    clips = torch.randn(7, 3, 2, 4, 4)
    out = method(Pixels(), batch(clips))
    assert out["accuracy"] == 0.25 and out["loss"] > math.log(4)
    nn.init.zeros_(method.head.weight), nn.init.zeros_(method.head.bias)
    assert method(Pixels(), batch(clips))["loss"].item() == pytest.approx(math.log(4))


def test_clips_with_a_bright_top_are_learnt():
    torch.manual_seed(0)
    clips = torch.zeros(6, 3, 16, 32, 32)
    clips[..., :8, :] = 1 + torch.rand(6, 1, 1, 1, 1)
    backbone = create("r3d10", 0.06)
    method = Rotation(backbone, {}, None)
    optimiser = torch.optim.SGD([*backbone.parameters(), *method.parameters()], 0.1, 0.9)
    for _ in range(15):
        optimiser.zero_grad()
        out = method(backbone, batch(clips))
        out["loss"].backward()
        optimiser.step()
    assert out["accuracy"] == 1


def test_a_sample_is_a_labelled_clip(demo):
    source = data.Shards(demo)
    samples, left_out, _ = Rotation.samples(source, {})
    assert len(samples) == 27 and left_out == 0
    clips = data.TrainingClips(source, samples, Rotation, {}, 0, "none")
    items = clips.batch(np.array([(0, 5), (3, 5)]))  # the second clip of the second video
    assert items["clips"].shape == (2, 1, 16, 32, 32, 3) and items["labels"] == {} and items["id"] == ["00000_1"] * 2
    for clip, corner in zip(items["clips"][:, 0], items["view"]["corner"][:, 0], strict=True):
        assert np.abs(clip.numpy().astype(int) - cropped(video_frames(1, 70)[16:32], corner)).mean() < 6  # JPEG
