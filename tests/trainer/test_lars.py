"""LARS: a step by hand, a plain reference, what it leaves alone, and runs."""

import pytest
import torch
from torch import nn

from trainer.training.lars import LARS, TRUST


def test_a_step_by_hand():
    """|w| = 5, |g| = 10, weight decay .1: the rate is .001 x 5 / (10 + .1 x 5) = .005 / 10.5."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimiser = LARS([weight], lr=21.0, weight_decay=0.1, momentum=0.5)
    for step in (1, 1.5):  # the second one has half of the first one's velocity besides its own
        with torch.no_grad():
            weight.copy_(torch.tensor([[3.0, 4.0]]))
        weight.grad = torch.tensor([[6.0, -8.0]])
        optimiser.step()
        assert weight.tolist()[0] == pytest.approx([3 - 0.01 * 6.3 * step, 4 + 0.01 * 7.6 * step])


def reference(values, gradients, lr, decay, momentum):
    """The weights after steps of these gradients, one number at a time."""
    velocity = [[0.0] * len(value) for value in values]
    for step in gradients:
        for w, v, g, one_dimensional in zip(values, velocity, step, (False, True, False), strict=True):
            size, slope = (sum(x * x for x in row) ** 0.5 for row in (w, g))
            here = 0.0 if one_dimensional else decay
            rate = 1.0 if one_dimensional or not size or not slope else 0.001 * size / (slope + decay * size)
            for i in range(len(w)):
                v[i] = momentum * v[i] + rate * (g[i] + here * w[i])
                w[i] -= lr * v[i]
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("zero", ["nothing", "a weight", "a gradient"])
def test_steps_equal_the_plain_reference(seed, zero):
    """A kernel of a 3D convolution, a bias, and a matrix."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 3, 1, 2, 2), (4,), (3, 2)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    if zero == "a weight":
        weights[2].data.zero_()
    if zero == "a gradient":
        gradients[0][0].zero_()
    expected = reference(
        [w.flatten().tolist() for w in weights], [[g.flatten().tolist() for g in of] for of in gradients], 2.0, 0.3, 0.9
    )
    optimiser = LARS(weights, lr=2.0, weight_decay=0.3, momentum=0.9)
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        optimiser.step()
    for weight, numbers in zip(weights, expected, strict=True):
        assert weight.flatten().tolist() == pytest.approx(numbers, rel=1e-4, abs=1e-6)


def test_biases_and_normalisations_have_plain_sgd_without_decay():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = [weight.detach().clone() for weight in network.parameters()]
    optimiser = LARS(network.parameters(), lr=0.5, weight_decay=0.1)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    matrix, *others = (new - old for new, old in zip(network.parameters(), before, strict=True))
    assert all(torch.allclose(change, torch.full_like(change, -0.5)) for change in others)
    assert matrix.norm().item() <= 0.5 * TRUST * before[0].norm().item() * 1.001  # however large its gradient


def test_weights_without_gradients_stay_as_they_are():
    weight, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([weight, other], lr=1.0)
    optimiser.step()
    other.grad = torch.ones(2, 2)
    optimiser.step()
    assert weight.tolist() == [[1, 1], [1, 1]] and (other < 1).all()
