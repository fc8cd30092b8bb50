"""Parts that several methods share: embeddings, heads, losses, rotations, memory banks, averaged networks."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import distributed
from trainer.backbones.layers import Stages


def last_stage(backbone: Stages, clips: Tensor) -> Tensor:
    """Output of the backbone's last stage for clips [B, 3, T, H, W], float32 [B, C, T', H', W'], since heads and losses do not
    run in the precision of the backbone."""
    return [*backbone(clips).values()][-1].float()


def embedding(backbone: Stages, clips: Tensor) -> Tensor:
    """Mean of the last stage over its cells, float32 [B, C], for clips [B, 3, T, H, W]."""
    return last_stage(backbone, clips).mean((2, 3, 4))


def unit(x: Tensor) -> Tensor:
    """Rows of [B, d] scaled to length 1, float32."""
    return F.normalize(x.float(), dim=1)


def projection_head(inputs: int, hidden: int, outputs: int, batch_norm: bool = False, layers: int = 2) -> nn.Sequential:
    """Linear layers with ReLUs between them, [B, inputs] -> [B, outputs]; batch_norm: with batch normalisation before each
    ReLU."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
        parts += [nn.Linear(inputs, hidden, bias=not batch_norm), *norm, nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


NORMALISED = "for its batch normalisation", True  # see Method.needs_two


def pool() -> nn.Module:
    """Pool 5 of light C3D: max pooling over 2 x 2 x 2 cells, sizes rounded up. [thesis table 2.1]"""
    return nn.MaxPool3d(2, ceil_mode=True)


def pooled_cells(backbone: Stages, crop: int, frames: int) -> int:
    """How many values `pool` returns from the last stage for a clip of `frames` frames of crop x crop pixels, without computing
    it."""
    shapes = copy.deepcopy(backbone).to("meta").eval()
    clip = torch.empty(1, 3, frames, crop, crop, device="meta")
    return math.prod(pool()(last_stage(shapes, clip)).shape)


def branch(cells: int, hidden: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Last stage [B, C, T, H, W] -> [B, outputs]: pooling to `cells` values, two hidden layers with ReLU, each followed by
    dropout if it is not 0, and the output layer. These are fc 6, fc 7 and the last layer of light C3D.

    As published [thesis table 2.1 and 2.2.4], except for the initial weights, which the thesis does not state; they are
    PyTorch's. With 2048 hidden units and 4096 cells fc 6 and fc 7 have 12,587,008 parameters.
    """
    drop = [nn.Dropout(dropout)] if dropout else []
    first, second = nn.Linear(cells, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(
        pool(), nn.Flatten(), first, nn.ReLU(), *drop, second, nn.ReLU(), *drop, nn.Linear(hidden, outputs)
    )


def classification(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy "loss", "accuracy" and its "chance" level, means over the samples of all processes.

    logits: float32 [B, classes]; targets: int64 [B]
    """
    return {
        "loss": distributed.mean(F.cross_entropy(logits, targets, reduction="none")),
        "accuracy": distributed.mean((logits.argmax(1) == targets).float()),
        "chance": logits.new_full((), 1 / logits.shape[1]),
    }


def rotations(clips: Tensor) -> Tensor:
    """Square clips [B, 3, T, S, S] -> [4 B, 3, T, S, S]: each by 0, 1, 2, 3 quarter turns counter-clockwise."""
    return _channels_second(_turned(clips).flatten(0, 1))


def rotated(clips: Tensor, turns: Tensor) -> Tensor:
    """Square clips [B, 3, T, S, S], each turned by its own number of quarter turns, int64 [B] of 0 to 3."""
    return _channels_second(_turned(clips)[torch.arange(len(turns), device=turns.device), turns])


def _turned(clips: Tensor) -> Tensor:
    """[B, 3, T, S, S] -> [B, 4, T, S, S, 3], channels last as convolutions take them: by 0, 1, 2, 3 quarter turns."""
    clips = clips.permute(0, 2, 3, 4, 1)
    return torch.stack([torch.rot90(clips, turns, (2, 3)) for turns in range(4)], 1)


def _channels_second(clips: Tensor) -> Tensor:
    return clips.permute(0, 4, 1, 2, 3)


def remembered(bank: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A memory bank [n, ...] with the values [B, ...] of all processes in their rows int64 [B]. The old bank stays unchanged,
    since the gradients may still need it."""
    return bank.index_copy(0, distributed.gather(rows)[0], distributed.gather(values)[0])


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy that `update_ema` turns into the moving average of the network's weights; no gradients reach it."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def update_ema(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network, for parameters; buffers stay as they are."""
    torch._foreach_lerp_([*averaged.parameters()], [*network.parameters()], 1 - decay)


def target_decay(start: float, progress: float) -> float:
    """Decay of an averaged network: 1 - (1 - start) (cos(pi progress) + 1) / 2, which rises from start to 1. [J.-B. Grill et al.,
    BYOL, NeurIPS 2020, 3.3]"""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def float32(function: Callable) -> Callable:
    """Decorator: compute in float32, whatever the precision of the network; for similarities and the losses that use them."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*map(whole, arguments), **{name: whole(value) for name, value in named.items()})

    def whole(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

    return run
