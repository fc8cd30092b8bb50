"""What every method is: the samples it draws, the clips and labels it reads, its heads and its loss."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.shards import CLIP_LENGTH, ShardReader
from trainer.data import Batch, Draw, Shards
from trainer.errors import TrainerError


def float32(function: Callable) -> Callable:
    """Decorator: compute in float32 whatever precision the network runs in; for similarities and what follows them."""

    @functools.wraps(function)
    def run(*arguments, **named):
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            tensors = (x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments)
            return function(*tensors, **named)

    return run


def check_options(options: dict, *checks: tuple[str, bool, str]) -> None:
    """Raises TrainerError for the first option that does not fit; checks: its name, whether it fits, what is expected."""
    for name, fits, expected in checks:
        if not fits:
            raise TrainerError(f"{name} is {options[name]}, expected {expected}")


class Method(nn.Module):
    """A pretext task. The module holds the heads; the backbone is shared with other methods and passed in.

    defaults: settings as published: epochs, batch_size, lr, momentum, weight_decay, schedule, drop_every, jitter
    options:  settings of this method alone, with their defaults (`vssl train --set name=value`)
    choices:  the values that an option may take, where they are few
    of_labelled_clips: the samples are labelled clips, so that a curriculum may order them by difficulty
    supervised: learns class labels; the checkpoint with the best held-out accuracy is kept

    A child is made of (backbone, options, shards).
    """

    defaults: dict
    options: dict = {}
    choices: dict[str, tuple] = {}
    of_labelled_clips = False
    supervised = False

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        """Clips per sample and frames per clip."""
        return 1, CLIP_LENGTH

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The samples of an epoch, int64 [n, 2] (shard, item of it), how many videos were left out, and why."""
        raise NotImplementedError

    @staticmethod
    def read(reader: ShardReader, item: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of one sample, int64 [clips, frames] in the shard, and its labels by name (numbers or arrays)."""
        raise NotImplementedError

    def forward(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name: "loss", "accuracy" and "chance" where there are any, and others. Means over samples are taken
        by trainer.distributed.mean, other samples of the batch by trainer.distributed.gather."""
        raise NotImplementedError

    def after_step(self, backbone: nn.Module, progress: float) -> None:
        """What follows a step of the optimiser, such as an average of weights; progress: share of the training done."""


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, decay: float) -> None:
    """target = decay * target + (1 - decay) * source, for parameters; buffers stay as they are."""
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.lerp_(new.to(old.dtype), 1 - decay)
