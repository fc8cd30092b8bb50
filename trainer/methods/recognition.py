"""Action recognition with labels: finetuning, a linear probe, or training from scratch. [thesis 3.4, vcop 4.3]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.shards import CLIP_LENGTH, ShardReader
from trainer.data import Batch, Draw, Shards
from trainer.errors import TrainerError
from trainer.methods.method import Method
from trainer.methods.parts import classification, embedding
from trainer.options import SHARE, Option


class Recognition(Method):
    """Classify the action; one clip per video and epoch, of 16 frames with a uniform start, short videos in a loop."""

    task = "which class is it, with labels (`vssl finetune`)"
    sample = "a labelled video: 16 frames, in a loop if it is short"
    source = ""
    defaults = {
        "epochs": 150,
        "batch_size": 16,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "drop_every": 60,  # not stated in the paper
        "jitter": "none",
        "holdout": 0.1,
    }
    options = {
        "freeze": Option(False, "train the classifier alone, on features of the backbone in evaluation mode"),
        "dropout": Option(0.5, "before the classifier", SHARE),
    }
    supervised = True

    def __init__(self, backbone: nn.Module, options: dict, shards: Shards):
        super().__init__()
        self.freeze = options["freeze"]
        if self.freeze:
            backbone.requires_grad_(False)
        self.dropout = nn.Dropout(options["dropout"])
        self.head = nn.Linear(backbone.features, len(shards.classes))
        self.register_buffer("targets", torch.from_numpy(shards.targets), persistent=False)

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that have a label. Raises TrainerError where there are fewer than two classes."""
        if len(shards.classes) < 2:
            raise TrainerError(f"{shards.dataset} has {len(shards.classes)} classes, recognition needs two or more")
        labelled = shards.targets >= 0
        return shards.videos[shards.trains & labelled], int((shards.trains & ~labelled).sum()), "without a label"

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        n = int(reader.arrays["videos/n_frames"][video])
        frames = (draw.rng.integers(max(1, n - CLIP_LENGTH + 1)) + np.arange(CLIP_LENGTH)) % n
        return reader.arrays["videos/first_frame"][video] + frames[None], {}

    def forward(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits, target = self.logits(backbone, batch.clips.flatten(0, 1)), self.targets[batch.video]
        return classification(logits, target)

    def logits(self, backbone: nn.Module, clips: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> float32 [B, classes]."""
        if self.freeze:
            backbone.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = embedding(backbone, clips)
        return self.head(self.dropout(features)).float()
