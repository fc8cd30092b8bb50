import math

import pytest
import torch
from torch import nn

from trainer.methods.parts import (
    averaged_copy,
    classification,
    embedding,
    projection_head,
    remembered,
    rotated,
    rotations,
    target_decay,
    unit,
    update_ema,
)


def test_classification_by_hand():
    found = classification(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([1, 0]))
    assert found["loss"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert found["accuracy"].item() == found["chance"].item() == 0.5  # of equal logits the first wins


def test_an_embedding_is_the_mean_of_the_last_stage_over_its_cells():
    clips = torch.randn(2, 3, 4, 5, 6)
    found = embedding(lambda x: {"conv1": x, "conv2": 2 * x}, clips)
    assert torch.allclose(found, 2 * clips.flatten(2).mean(2), atol=1e-6)
    assert (
        torch.allclose(unit(found.double()).norm(dim=1), torch.ones(2)) and unit(found.double()).dtype == torch.float32
    )


def test_each_clip_is_rotated_by_its_own_turns():
    clips, turns = torch.randn(5, 3, 2, 4, 4), torch.tensor([0, 1, 2, 3, 1])
    for clip, turn, found in zip(clips, turns.tolist(), rotated(clips, turns), strict=True):
        assert torch.equal(found, torch.rot90(clip, turn, (2, 3)))


def test_a_memory_bank_is_a_new_one():
    bank = torch.zeros(4, 2)
    new = remembered(bank, torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert new.tolist() == [[3, 4], [0, 0], [1, 2], [0, 0]] and not bank.any()


def test_rotated_clips_stay_channels_last():
    clips = torch.randn(2, 3, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    for turned in (rotations(clips), rotated(clips, torch.tensor([1, 3]))):
        assert turned.is_contiguous(memory_format=torch.channels_last_3d)


def test_an_average_follows_the_weights_alone():
    network = nn.BatchNorm1d(2)
    averaged = averaged_copy(network)
    with torch.no_grad():
        network.weight += 1
        network.running_mean += 1
    update_ema(averaged, network, 0.75)
    assert averaged.weight.tolist() == [1.25, 1.25] and not averaged.running_mean.any()
    assert not any(weight.requires_grad for weight in averaged.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_projection_head_has_a_bias_or_a_normalisation_before_its_relu(batch_norm):
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear] if batch_norm else [nn.Linear, nn.ReLU, nn.Linear]
    head = projection_head(3, 5, 2, batch_norm)
    assert [type(layer) for layer in head] == kinds and (head[0].bias is None) == batch_norm
    assert head(torch.randn(4, 3)).shape == (4, 2)


def test_decay_by_hand():
    assert [target_decay(0.99, progress) for progress in (0, 1 / 3, 0.5, 1)] == pytest.approx([0.99, 0.9925, 0.995, 1])
