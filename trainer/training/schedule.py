"""The learning rate of every step."""

from __future__ import annotations

import math

import numpy as np

from trainer.settings import Settings

# Of exponential pacing: the share shown first, and by what it grows; of the public code of Hacohen and Weinshall, ICML 2019
START, GROWTH = 0.04, 1.9


def learning_rate(step: int, settings: Settings, per_epoch: int) -> float:
    """Learning rate of a step, counted from 0; per_epoch: steps per epoch. With a curriculum the whole schedule runs twice,
    over the steps that see a part of the clips and over those that see them all."""
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
    """How many of the steps, the first ones, see a part of the clips only."""
    return round(settings.curriculum * steps)


def pacing(settings: Settings, steps: int) -> list[tuple[int, float]]:
    """The stages of a curriculum before that of all clips: the first step after each, and the share of the clips, the easiest
    ones, that it shows. [thesis 3.2; Hacohen and Weinshall, ICML 2019]

    single: one half, eq. 3.2. Exponential: START * GROWTH^k, k = 0, 1, ... as long as it is less than 1, in stages of one
    length (fixed) or of lengths in proportion to their shares, so that each has as many passes (varied; assumed).
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
