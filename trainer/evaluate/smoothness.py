"""Smoothness: how alike are moments of a video, the further they lie apart?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.errors import TrainerError
from trainer.evaluate.protocol import Protocol

if TYPE_CHECKING:
    from torch import nn

    from trainer.data import Shards

FARTHEST = 128  # frames
MOST_VIDEOS = 200  # evenly spread ones are taken of more


class Smoothness(Protocol):
    """Measure how alike moments of a video are, the further they lie apart."""

    title = "Smoothness"
    question = "How alike are two moments of a video, by the frames between them?"
    items = (
        "Moments of at most 200 videos of the split's test part, else of all. A moment is the last stage, averaged over space "
        "and made of length 1: of a frame for a 2D network; for a 3D one, which sees no frame by itself, of a clip, "
        "averaged over time, too, the clips half of their length apart."
    )
    classifier = (
        "None: 100 x the mean cosine by the distance of the first frames; `other video` is the mean over moments of "
        "different videos."
    )
    left_out = "Videos shorter than a clip; distances of more than 128 frames."
    source = "Knights et al. (TCE), ICPR 2020, fig. 3."
    index = ("network", "stage")
    columns = ("distance",)
    published = ()

    def choose(self) -> Shards:
        import numpy as np

        from trainer import data

        source = self.bench.source()
        lengths = source.readers.numbers("videos/n_frames")
        tested = source.part == data.TEST
        asked = np.flatnonzero((lengths >= source.clip_length) & (tested if tested.any() else True))
        if not len(asked):
            raise TrainerError(f"{source.dataset}: no video has {source.clip_length} frames")
        self.videos = source.videos[asked[np.unique(np.linspace(0, len(asked) - 1, MOST_VIDEOS).astype(int))]]
        return source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        import numpy as np

        from trainer.evaluate.moments import by_distance, last_stage_moments

        self.stage, self.spacing, moments, owner = last_stage_moments(
            backbone, self.shards, self.videos, self.bench.compute
        )
        self.moments = len(moments)
        inside, outside = by_distance(moments, owner)
        row = {"stage": self.stage, "metric": "cosine"}
        for step in range(1, len(inside)):
            if step * self.spacing <= FARTHEST and np.isfinite(inside[step]):
                yield {**row, "distance": step * self.spacing, "value": 100 * float(inside[step])}
        if np.isfinite(outside):
            yield {**row, "distance": "other video", "value": 100 * float(outside)}

    def conditions(self) -> dict[str, Any]:
        over, moment = "space and time", f"a clip of {self.shards.clip_length} frames, one every {self.spacing} frames"
        if self.spacing == 1:
            over, moment = "space", "a frame"
        return {
            "mode": "100 x mean cosine of two moments of a video by the frames from the first of one to the first of the other",
            "views": f"a moment is {self.stage}, mean over {over}, of {moment}",
            "items": f"{self.moments} moments of {len(self.videos)} videos",
        }
