"""Clip order prediction: in which order are the clips of a video shown? [D. Xu et al., CVPR 2019]"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.methods.method import Method, Shown
from trainer.methods.parts import classification, embedding


class Order(Method):
    """Classify the permutation of a video's clips from the features of every pair of them. [vcop 3.1 to 3.3]

    One sample per video and epoch, of row = epoch modulo rows. Each clip has its own random crop, which its frames share. As in
    the paper no clip is mirrored: if clips were mirrored one by one, motion would change direction between them.
    """

    task = "in which order are the clips shown"
    sample = "a video: row `epoch mod rows`, each clip with its own crop"
    source = "D. Xu et al., CVPR 2019"
    defaults = {
        "epochs": 300,
        "batch_size": 8,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "drop_every": 100,  # assumed, for another schedule
        "jitter": "none",
    }
    answers_depend_on = ("order_clips",)

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        clips, width = shards.config["order_clips"], 512
        self.pair = nn.Linear(2 * backbone.features, width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(math.comb(clips, 2) * width, math.factorial(clips))

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return config["order_clips"], config["clip_length"]

    @classmethod
    def stored_draws(cls, config: dict, options: dict) -> tuple[str, int]:
        return "rows", 1

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for the clips and the frames between them."""
        return shards.with_rows("order/permutation")

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of the clips in the order shown, and the index of that order; no view stays mirrored."""
        labels = reader.arrays["order/permutation"][video]
        row = draw.epoch % len(labels)
        for view in draw.views:
            view["mirror"] = 0
        return reader.order_frames(video, row)[reader.orders[labels[row]]], {"order": labels[row].astype(np.int64)}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        order = [clip + 1 for clip in shards.readers[0].orders[batch.labels["order"][0]].tolist()]
        clips = [(f"clip {number} of the video", clip) for number, clip in zip(order, batch.clips, strict=True)]
        return [f"order {'-'.join(map(str, order))}"], clips

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels: order int64 [B]."""
        features = embedding(backbone, batch.clips).unflatten(0, (len(batch.video), -1))  # [B, n, C]
        return classification(self.logits(features), batch.labels["order"])

    def logits(self, features: Tensor) -> Tensor:
        """Clip features in the order shown, [B, n, C] -> float32 [B, n!]; pairs in the order (0, 1), (0, 2), (1, 2), ...
        [vcop eq. 3]"""
        n = features.shape[1]
        first, second = torch.triu_indices(n, n, 1, device=features.device)
        pairs = torch.cat([features[:, first], features[:, second]], 2)  # [B, n (n - 1) / 2, 2 C]
        return self.head(self.dropout(F.relu(self.pair(pairs)).flatten(1))).float()
