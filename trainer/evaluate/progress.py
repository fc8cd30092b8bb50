"""How far a long piece of work is."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

EVERY = 10  # seconds from one plain line to the next


class Progress:
    """A bar on a terminal; elsewhere a plain line every ten seconds: what is done and how much is left. As a context manager
    it gives the function to call after each unit of work.

    what: is done; total: units of work; unit: name of one
    """

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.begin = self.told = time.monotonic()
        self.bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=not sys.stderr.isatty())

    def __enter__(self):
        return self.step

    def __exit__(self, *_):
        self.bar.close()

    def step(self, units: int = 1) -> None:
        self.done += units
        self.bar.update(units)
        now = time.monotonic()
        if self.bar.disable and now - self.told >= EVERY:
            self.told = now
            left = (now - self.begin) / self.done * (self.total - self.done)
            told = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}s, about {_duration(left)} left"
            print(told, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
