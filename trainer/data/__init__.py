"""From shards to batches."""

from labelgen.shards import TEST, TRAIN, VALIDATION
from trainer.data.clips import Batch, CentreClips, Draw, ReadClip, TrainingClips
from trainer.data.dataset import ClipDataset
from trainer.data.index import Shards
from trainer.data.loader import Download, prefetch, to_device
from trainer.data.readers import Folders, Readers
from trainer.data.sampler import Batches
from trainer.data.views import TenCrops, Time, VideoViews, adjacent_frames, sliding_frames, spread_frames

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Batch",
    "Batches",
    "CentreClips",
    "ClipDataset",
    "Download",
    "Draw",
    "Folders",
    "ReadClip",
    "Readers",
    "Shards",
    "TenCrops",
    "Time",
    "TrainingClips",
    "VideoViews",
    "adjacent_frames",
    "prefetch",
    "sliding_frames",
    "spread_frames",
    "to_device",
]
