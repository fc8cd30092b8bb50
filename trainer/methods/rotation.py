"""Rotation prediction: by how many quarter turns is the clip rotated? [3DRotNet: L. Jing et al., arXiv 1811.11387]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.shards import ShardReader
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.methods.method import Method, Shown
from trainer.methods.parts import classification, embedding, rotations


class Rotation(Method):
    """Classify the rotation of a clip by 0, 90, 180 or 270 degrees.

    As in 3DRotNet the batch holds all four rotations of the same crop of each clip, and the loss is the mean over them. No
    rotation is drawn at random, the classes are balanced in every step, and a sample passes through the backbone four times.
    """

    task = "by how many quarter turns is the clip rotated"
    sample = "a labelled clip in four rotations"
    source = "L. Jing et al., 2018"
    defaults = {  # assumed, after those of pace; the paper's backbone, resnet3d18, is not the default
        "epochs": 20,
        "batch_size": 30,  # clips, each in four rotations
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-3,
        "schedule": "step",
        "drop_every": 6,
        "jitter": "none",
    }
    of_labelled_clips = True

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.head = nn.Linear(backbone.features, 4)

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The labelled clips."""
        return shards.labelled_clips()

    @staticmethod
    def read(reader: ShardReader, clip: int, draw: Draw) -> tuple[np.ndarray, dict]:
        return reader.clip_frames(clip)[None], {}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        turned = [(f"{90 * turns} degrees", clip) for turns, clip in enumerate(rotations(batch.clips))]
        return ["rotation of the copies"], turned

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        turns = torch.arange(4, device=batch.clips.device).repeat(len(batch.clips))
        return classification(self.head(embedding(backbone, rotations(batch.clips))).float(), turns)
