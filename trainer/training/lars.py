"""LARS, an optimiser for large batches, which PyTorch does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

TRUST = 1e-3  # eta of algorithm 1, as in its table 2 and in the public code of SimCLR, BYOL and PySlowFast


class LARS(SGD):
    """SGD with momentum in which the length of each weight's step is proportional to that of the weight. Before each
    step the gradient g of a weight w becomes

        TRUST |w| / (|g| + weight_decay |w|) (g + weight_decay w)

    or, if w or g is zero, g + weight_decay w. Parameters of one dimension (biases and normalisations) have plain SGD
    without weight decay. [Y. You, I. Gitman, B. Ginsburg, arXiv 1708.03888, alg. 1; leaving out one dimension: J.-B.
    Grill et al., BYOL, NeurIPS 2020, 3.2]
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, **of_sgd: Any) -> None:
        super().__init__(weights, lr, **of_sgd)
        self.decay = weight_decay
        self.register_step_pre_hook(_scale_gradients)


@torch.no_grad()
def _scale_gradients(optimiser: Optimizer, *_: object) -> None:
    """Scale the gradients as LARS does, without waiting for the device."""
    assert isinstance(optimiser, LARS)
    own = [w for group in optimiser.param_groups for w in group["params"] if w.grad is not None and w.dim() > 1]
    if not own:
        return
    gradients = [w.grad for w in own]
    sizes, slopes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (own, gradients))
    rates = TRUST * sizes / (slopes + optimiser.decay * sizes)
    rates = torch.where((sizes > 0) & (slopes > 0), rates, 1)
    torch._foreach_add_(gradients, [w.detach() for w in own], alpha=optimiser.decay)
    torch._foreach_mul_(gradients, list(rates.unbind()))
