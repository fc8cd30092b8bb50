"""Which samples each step shows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from trainer.data.keys import ORDER
from trainer.errors import TrainerError


class Batches:
    """Which samples each step shows, a pure function of the step.

    Without a curriculum each epoch is one random pass over all samples, cut into batches that differ by at most one
    sample, none larger than batch_size: nothing is dropped and no rest of one or two samples upsets batch
    normalisation. The first `easy_steps` steps pass over the samples `easy` (int64 indices) alone, with batches of the
    same sizes, so that the total number of samples is that without a curriculum.

    micro: micro-batches of a step (gradient accumulation); world: processes; rank: number of this process. The joined
    batch of a step does not depend on them.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        easy: np.ndarray | None = None,
        easy_steps: int = 0,
        micro: int = 1,
        world: int = 1,
        rank: int = 0,
    ):
        self.samples, self.seed, self.easy, self.easy_steps = samples, seed, easy, easy_steps
        self.per_epoch = math.ceil(samples / batch_size)
        self.micro, self.world, self.rank = micro, world, rank
        if samples // self.per_epoch < self.micro * self.world:
            raise TrainerError(
                f"a batch of {samples // self.per_epoch} samples cannot be shared among {self.world} processes and "
                f"{self.micro} accumulated parts; raise the batch size or accumulate fewer parts"
            )
        self._pass = functools.lru_cache(maxsize=4)(self._permuted)

    def _shown_before(self, step: int) -> int:
        """How many samples the steps before this one show."""
        epoch, place = divmod(step, self.per_epoch)
        small, longer = divmod(self.samples, self.per_epoch)
        return epoch * self.samples + place * small + min(place, longer)

    def _permuted(self, number: int, easy: bool) -> np.ndarray:
        rng = np.random.default_rng((ORDER, self.seed, number))
        return rng.permutation(self.easy) if easy else rng.permutation(self.samples)

    def joined(self, step: int) -> np.ndarray:
        """(pass, sample) of every item of a step, int64 [n, 2]. Passes are counted from 0 and tell draws apart."""
        easy = step < self.easy_steps
        length = len(self.easy) if easy else self.samples
        start = 0 if easy else self._shown_before(self.easy_steps)  # of the passes over these samples
        easy_passes = 0 if easy or not self.easy_steps else math.ceil(start / len(self.easy))
        items = np.arange(self._shown_before(step), self._shown_before(step + 1)) - start
        passes, places = np.divmod(items, length)
        passes += easy_passes
        return np.array([(k, self._pass(k, easy)[place]) for k, place in zip(passes.tolist(), places, strict=True)])

    def size(self, step: int) -> int:
        """Samples of a step, over all processes."""
        return self._shown_before(step + 1) - self._shown_before(step)

    def shares(self, step: int) -> list[float]:
        """Share of the step's samples that each micro-batch holds, over all processes."""
        n = self.size(step)
        return [len(part) / n for part in np.array_split(np.arange(n), self.micro)]

    def sampler(self, steps: range) -> Iterator[np.ndarray]:
        """Items of this process of every micro-batch of the steps, int64 [n, 2] each."""
        for step in steps:
            for batch in np.array_split(self.joined(step), self.micro):
                yield np.array_split(batch, self.world)[self.rank]
