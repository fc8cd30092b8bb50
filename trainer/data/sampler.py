"""The samples of each step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from labelgen.progress import counted
from trainer.data.keys import ORDER
from trainer.errors import TrainerError


class Batches:
    """The samples of each step, as a pure function of the step.

    Without a curriculum each epoch consists of `repeats` random passes over all samples, cut into batches whose sizes differ by
    at most one and do not exceed batch_size: no sample is dropped, and no last batch of one or two samples disturbs batch
    normalisation. Pass r of epoch e has number e * repeats + r, so that its draws differ from those of others.

    stages: of a curriculum, each with the first step after it and the samples, int64 indices, of its passes; steps
    after the last stage pass over all samples. Batches have the same sizes, so that the total number of samples is that
    without a curriculum; the count of passes continues.
    micro: micro-batches per step (gradient accumulation); world: processes; rank: number of this process. The joined
    batch of a step does not depend on them.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        stages: Sequence[tuple[int, np.ndarray]] = (),
        repeats: int = 1,
        micro: int = 1,
        world: int = 1,
        rank: int = 0,
    ):
        self.seed, self.shown = seed, samples * repeats  # in an epoch
        self.per_epoch = math.ceil(self.shown / batch_size)
        self.micro, self.world, self.rank = micro, world, rank
        self.least = self.shown // self.per_epoch  # samples of a step
        if self.least < (needed := self.micro * self.world):
            raise TrainerError(
                f"a batch of {counted(self.least, 'sample')} cannot be shared among {counted(world, 'process', 'processes')} and "
                f"{counted(micro, 'accumulated part')}; {self.advice(needed)}"
            )
        self._stages = []  # first step, first pass, samples
        step = number = 0
        for stop, chosen in stages:
            self._stages.append((step, number, chosen))
            number += math.ceil((self._shown_before(stop) - self._shown_before(step)) / len(chosen))
            step = stop
        self._stages.append((step, number, np.arange(samples)))
        self._pass = functools.lru_cache(maxsize=4)(self._permuted)

    def advice(self, needed: int) -> str:
        """What to do so that every step has this number of samples, more than it has."""
        fewer = ["accumulate fewer parts"] * (self.micro > 1) + ["use fewer processes"] * (self.world > 1)
        more = "raise the batch size" if self.shown >= needed else f"train on more videos, at least {needed}"
        return ", or ".join([more, *fewer])

    def _shown_before(self, step: int) -> int:
        """The number of samples in all steps before this one."""
        epoch, place = divmod(step, self.per_epoch)
        small, longer = divmod(self.shown, self.per_epoch)
        return epoch * self.shown + place * small + min(place, longer)

    def _permuted(self, number: int, stage: int) -> np.ndarray:
        return np.random.default_rng((ORDER, self.seed, number)).permutation(self._stages[stage][2])

    def joined(self, step: int) -> np.ndarray:
        """(pass, sample) of every item of a step, int64 [n, 2]. Passes are counted from 0; draws depend on them."""
        stage = max(i for i, (first, _, _) in enumerate(self._stages) if first <= step)
        first, number, samples = self._stages[stage]
        items = np.arange(self._shown_before(step), self._shown_before(step + 1)) - self._shown_before(first)
        passes, places = np.divmod(items, len(samples))
        passes += number
        return np.array([(k, self._pass(k, stage)[place]) for k, place in zip(passes.tolist(), places, strict=True)])

    def passes(self, steps: int) -> int:
        """The number of passes begun in the first `steps` steps."""
        return int(self.joined(steps - 1)[-1, 0]) + 1

    def size(self, step: int) -> int:
        """Number of samples of a step, over all processes."""
        return self._shown_before(step + 1) - self._shown_before(step)

    def shares(self, step: int) -> list[float]:
        """Share of the step's samples that each micro-batch holds, over all processes."""
        n = self.size(step)
        return [len(part) / n for part in np.array_split(np.arange(n), self.micro)]

    def counts(self, step: int) -> list[list[int]]:
        """The number of samples of each process in each micro-batch."""
        micros = [len(part) for part in np.array_split(np.arange(self.size(step)), self.micro)]
        return [[len(part) for part in np.array_split(np.arange(n), self.world)] for n in micros]

    def sampler(self, steps: range) -> Iterator[np.ndarray]:
        """Items of this process in every micro-batch of the steps, int64 [n, 2] each."""
        for step in steps:
            for batch in np.array_split(self.joined(step), self.micro):
                yield np.array_split(batch, self.world)[self.rank]
