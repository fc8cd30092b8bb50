"""The learning rate of every step."""

from __future__ import annotations

import math

from trainer.settings import Settings


def learning_rate(step: int, settings: Settings, per_epoch: int) -> float:
    """Learning rate of a step, counted from 0; per_epoch: steps per epoch."""
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        return settings.lr / 10 ** (step // per_epoch // settings.drop_every)
    total = settings.epochs * per_epoch
    warmup = math.ceil(total / 20)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
