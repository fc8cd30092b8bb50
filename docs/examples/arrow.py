"""Arrow of time: is the clip played forwards or backwards? [D. Wei et al., CVPR 2018]"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from labelgen.shards import ShardReader
from trainer.data import Batch, Draw, Shards
from trainer.methods.method import Method
from trainer.methods.parts import classification, embedding
from trainer.options import SHARE, Option


class Arrow(Method):
    """Classify the direction in which a labelled clip is played."""

    task = "is the clip played forwards or backwards"
    sample = "a labelled clip, reversed or not"
    source = "D. Wei et al., CVPR 2018"
    defaults = {  # all assumed
        "epochs": 20,
        "batch_size": 30,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "drop_every": 6,
        "jitter": "none",
    }
    options = {"backwards": Option(0.5, "share of the clips that are reversed", SHARE)}
    of_labelled_clips = True  # so that --curriculum may order them

    def __init__(self, backbone: nn.Module, options: dict, shards: Shards):
        super().__init__()
        self.head = nn.Linear(backbone.features, 2)

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The labelled clips."""
        return shards.labelled_clips()

    @staticmethod
    def read(reader: ShardReader, clip: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of the clip, int64 [1, 16], in the order drawn, and whether that is backwards."""
        frames = reader.clip_frames(clip)
        backwards = draw.rng.random() < draw.options["backwards"]
        return (frames[::-1] if backwards else frames)[None], {"backwards": np.int64(backwards)}

    def forward(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """labels: backwards int64 [B]."""
        logits = self.head(embedding(backbone, batch.clips)).float()
        return classification(logits, batch.labels["backwards"])
