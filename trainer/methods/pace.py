"""Pace prediction: at which speed is the clip played? [thesis 4.2.2; J. Wang et al., ECCV 2020]"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import NO_ROW, ShardReader


class Pace(nn.Module):
    """Classify the pace of a clip by cross entropy; one clip per video and epoch, row = epoch modulo rows."""

    defaults = {
        "epochs": 20,
        "batch_size": 30,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,  # not stated in the paper
        "schedule": "step",
        "drop_every": 6,
        "jitter": "frame",  # one common to all frames would leave the shortcut open that it is there to close
    }

    def __init__(self, backbone: nn.Module, config: dict, settings):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.features, len(config["paces"]))

    @staticmethod
    def samples(shards) -> tuple[np.ndarray, int, str]:
        """The videos long enough for every pace, int64 [n, 2], how many were left out, and why."""
        videos = shards.videos[shards.trains]
        usable = [bool((shards.readers[shard].arrays["pace/pace"][video] != NO_ROW).all()) for shard, video in videos]
        return videos[usable], usable.count(False), "too short for the fastest pace"

    @staticmethod
    def read(reader: ShardReader, video: int, epoch: int, view: dict) -> tuple[np.ndarray, dict]:
        """Frames int64 [16] and label of a video in an epoch."""
        paces = reader.arrays["pace/pace"][video]
        row = epoch % len(paces)
        return reader.pace_frames(video, row), {"pace": int(paces[row])}

    def forward(self, clips: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """clips [B, 3, T, H, W], labels["pace"] int64 [B] -> loss and metrics."""
        features = [*self.backbone(clips).values()][-1].mean((2, 3, 4))
        logits = self.head(features).float()
        pace = labels["pace"]
        return {
            "loss": F.cross_entropy(logits, pace),
            "accuracy": (logits.argmax(1) == pace).float().mean(),
            "chance": logits.new_tensor(1 / logits.shape[1]),
        }
