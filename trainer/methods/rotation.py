"""Rotation prediction: by how many quarter turns is the clip rotated? [3DRotNet: L. Jing et al., arXiv 1811.11387]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.data import Batch, Draw, Shards
from trainer.methods.method import Method


class Rotation(Method):
    """Classify the rotation of a clip by 0, 90, 180 or 270 degrees.

    As in 3DRotNet all four rotations of each clip, made of one crop, are in the batch and the loss is the mean over them:
    no rotation is drawn, the classes are balanced in every step, and a sample passes the backbone four times.
    """

    defaults = {  # those of pace, but for the jitter: assumed
        "epochs": 20,
        "batch_size": 30,  # clips, each in four rotations
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "drop_every": 6,
        "jitter": "none",
    }
    of_labelled_clips = True

    def __init__(self, backbone: nn.Module, options: dict, shards: Shards):
        super().__init__()
        self.head = nn.Linear(backbone.features, 4)

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The labelled clips."""
        return shards.labelled_clips()

    @staticmethod
    def read(reader: ShardReader, clip: int, draw: Draw) -> tuple[np.ndarray, dict]:
        return reader.clip_frames(clip)[None], {}

    def forward(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        clips = batch.clips.flatten(0, 1)
        logits = self.head([*backbone(rotations(clips)).values()][-1].mean((2, 3, 4))).float()
        turns = torch.arange(4, device=clips.device).repeat(len(clips))
        return {
            "loss": distributed.mean(F.cross_entropy(logits, turns, reduction="none")),
            "accuracy": distributed.mean((logits.argmax(1) == turns).float()),
            "chance": logits.new_tensor(1 / 4),
        }


def rotations(clips: Tensor) -> Tensor:
    """Square clips [B, 3, T, S, S] -> [4 B, 3, T, S, S]: each by 0, 1, 2, 3 quarter turns counter-clockwise."""
    return torch.stack([torch.rot90(clips, turns, (3, 4)) for turns in range(4)], 1).flatten(0, 1)
