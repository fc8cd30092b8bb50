"""Shards -> batches."""

from labelgen.shards import TEST, TRAIN, VALIDATION
from trainer.data.clips import (
    Batch,
    CentreClips,
    Draw,
    TrainingClips,
    VideoViews,
    adjacent_frames,
    sliding_frames,
    spread_frames,
)
from trainer.data.index import Shards
from trainer.data.readers import Folders, Readers
from trainer.data.sampler import Batches
from trainer.data.transport import Download, ending_workers, loader, received, started, to_device

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Batch",
    "Batches",
    "CentreClips",
    "Download",
    "Draw",
    "Folders",
    "Readers",
    "Shards",
    "TrainingClips",
    "VideoViews",
    "ending_workers",
    "loader",
    "received",
    "adjacent_frames",
    "sliding_frames",
    "spread_frames",
    "started",
    "to_device",
]
