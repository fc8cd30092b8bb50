"""The learning rate of every step."""

from __future__ import annotations

import math

import numpy as np

from trainer.settings import Settings

# Exponential pacing: the first share, and its growth; from the public code of Hacohen and Weinshall, ICML 2019
START, GROWTH = 0.04, 1.9


def learning_rate(step: int, settings: Settings, per_epoch: int) -> float:
    """Learning rate of a step, counted from 0. per_epoch: steps per epoch. With a curriculum the whole schedule runs
    twice: over the steps that see a part of the clips, and over those that see all."""
    if settings.schedule == "constant":
        return settings.lr
    steps = settings.epochs * per_epoch
    partial = partial_steps(settings, steps)
    step, total = (step, partial) if step < partial else (step - partial, steps - partial)
    if settings.schedule == "step":
        return settings.lr / 10 ** (step * steps // (total * per_epoch * settings.drop_every))
    warmup = math.ceil(total / 20)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def partial_steps(settings: Settings, steps: int) -> int:
    """The number of steps, at the beginning, that see only a part of the clips."""
    return round(settings.curriculum * steps)


def pacing(settings: Settings, steps: int) -> list[tuple[int, float]]:
    """The stages of a curriculum before that of all clips: the first step after each stage, and the share of the clips,
    from the easiest on, that it shows. [thesis 3.2; Hacohen and Weinshall, ICML 2019]

    single: one half, eq. 3.2. Exponential: START * GROWTH^k, k = 0, 1, ... while less than 1, in stages of equal length
    (fixed) or of lengths proportional to their shares, so that each makes the same number of passes (varied; assumed).
    """
    if not settings.curriculum:
        return []
    if settings.pacing == "single":
        shares = [0.5]
    else:
        shares = [START * GROWTH**k for k in range(math.ceil(-math.log(START) / math.log(GROWTH)))]
    lengths = np.cumsum(shares if settings.pacing == "varied" else np.ones(len(shares)))
    stops = np.rint(partial_steps(settings, steps) * lengths / lengths[-1]).astype(int).tolist()
    return list(zip(stops, shares, strict=True))
