"""How far a long piece of work is."""

from __future__ import annotations

import sys

from tqdm import tqdm

from labelgen.progress import telling


class Progress:
    """A bar on a terminal; elsewhere a plain line every ten seconds: what is done and how much is left. As a context manager
    it gives the function to call after each unit of work.

    what: is done; total: units of work; unit: name of one
    """

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=not sys.stderr.isatty())
        self.lines = telling(self.line if self.bar.disable else None)

    def __enter__(self):
        self.lines.__enter__()
        return self.step

    def __exit__(self, *error):
        self.lines.__exit__(*error)
        self.bar.close()

    def step(self, units: int = 1) -> None:
        self.done += units
        self.bar.update(units)

    def line(self, seconds: float) -> str:
        left = f", about {duration(seconds / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}s{left}"


def duration(seconds: float) -> str:
    """About so long, in words."""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
