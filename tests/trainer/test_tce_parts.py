"""The parts of `tce`: losses, mining, the rotation head."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.methods.contrast import infonce
from trainer.methods.tce import (
    EMBEDDING,
    PRIME,
    automatic_negatives,
    mine,
    nce,
    pairwise_random,
    rotation_head,
    threshold,
)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_equal_similarities_give_log_of_their_number(k):
    logits = torch.full((2, 1 + k), 5.0)
    assert infonce(logits).tolist() == pytest.approx([math.log(1 + k)] * 2)
    absent = torch.full((2, 4), -torch.inf)
    assert torch.equal(infonce(torch.cat([logits, absent], 1)), infonce(logits))
    assert torch.equal(nce(torch.cat([logits, absent], 1), 0.07), nce(logits, 0.07))


@pytest.mark.parametrize("form", [infonce, lambda logits: nce(logits, 0.5)])
def test_without_negatives_there_is_nothing_to_learn(form):
    logits = torch.tensor([[3.0, -torch.inf], [3.0, 1.0]], requires_grad=True)
    terms = form(logits)
    terms.sum().backward()
    assert terms[0] == 0 < terms[1] and torch.equal(logits.grad[0], torch.zeros(2)) and logits.grad.isfinite().all()


def test_the_constant_of_nce_is_that_of_random_unit_vectors():
    """With e^l = K c the odds are even."""
    torch.manual_seed(0)
    similarity = F.normalize(torch.randn(200_000, EMBEDDING), dim=1)[:, 0]
    for temperature in (0.07, 0.2):
        c = (similarity.double() / temperature).exp().mean().item()
        even = nce(torch.tensor([[math.log(c), -20.0]]), temperature)  # the negative costs nothing
        assert even.item() == pytest.approx(math.log(2), abs=0.01)


def test_threshold_by_hand():
    assert [threshold(p, -1.0, 1.0) for p in (0, 0.2, 1)] == pytest.approx([-1, 0.264241, 0.986524], abs=1e-6)
    assert threshold(0.2, 0.5, 0.5) == 0.5
    values = [threshold(p / 50, -0.3, 0.8) for p in range(51)]
    assert values == sorted(values) and -0.3 <= values[0] < values[-1] < 0.8


def test_mine_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5, -0.2, 0.7]])
    priority = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2]])
    candidate = torch.tensor([[True, True, True, True, False]])

    def chosen(limit, k):
        columns, known = mine(similarity, candidate, priority, limit, k)
        return sorted(columns[known].tolist())

    assert chosen(-1.0, 2) == [1, 3]  # all pass: the two of the highest priority
    assert chosen(0.0, 2) == [1, 2]  # 0, 1, 2 pass
    assert chosen(0.3, 2) == [0, 2]  # 0, 2 pass
    assert chosen(0.6, 2) == [0, 2]  # one passes: the hardest two
    assert chosen(0.95, 1) == [0] and chosen(0.95, 3) == [0, 1, 2]
    assert chosen(0.3, 4) == chosen(0.3, 99) == [0, 1, 2, 3]


def slow_mine(similarity, candidate, priority, limit, k):
    columns = [j for j, known in enumerate(candidate) if known]
    passing = [j for j in columns if similarity[j] > limit]
    key, among = (priority, passing) if len(passing) >= k else (similarity, columns)
    return sorted(sorted(among, key=lambda j: key[j])[-k:])


@pytest.mark.parametrize("limit", [-1.0, -0.2, 0.0, 0.3, 0.9])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_mine_equals_slow_loop(limit, k):
    torch.manual_seed(k)
    similarity, priority, candidate = torch.rand(6, 15) * 2 - 1, torch.rand(6, 15), torch.rand(6, 15) < 0.8
    columns, known = mine(similarity, candidate, priority, limit, k)
    for i in range(6):
        expected = slow_mine(*(x[i].tolist() for x in (similarity, candidate, priority)), limit, k)
        assert sorted(columns[i][known[i]].tolist()) == expected


def test_pairwise_random_by_hand():
    values = pairwise_random(torch.tensor([0, 1, 10**6]), torch.tensor([[3, 5], [PRIME - 1, 1]]))
    expected = [[5, 8, 3 * 10**6 + 5], [1, 0, (1 - 10**6) % PRIME]]
    assert values.numpy() == pytest.approx(np.array(expected) / PRIME, abs=1e-6)


@pytest.mark.parametrize(
    ("videos", "expected"), [(2, 1), (8, 2), (9_536, 2_384), (32_767, 8_191), (32_768, 8_192), (240_000, 8_192)]
)
def test_negatives_are_a_quarter_of_the_training_videos_and_8192_at_most(videos, expected):
    assert automatic_negatives(videos) == expected


def test_the_rotation_head_is_the_authors():
    kinds = [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Linear]
    head = rotation_head(512)
    assert [type(layer) for layer in head] == kinds
    assert [layer.in_features for layer in head if isinstance(layer, nn.Linear)] == [512, 200, 200]
