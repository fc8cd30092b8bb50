"""Action recognition with labels: finetuning, a linear probe, or training from scratch. [thesis 3.4, vcop 4.3]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import CLIP_LENGTH, ShardReader
from trainer import distributed
from trainer.data import Batch, Draw, Shards
from trainer.errors import TrainerError
from trainer.methods.method import Method, check_options


class Recognition(Method):
    """Classify the action; one clip per video and epoch, of 16 frames with a uniform start, short videos in a loop."""

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
        "freeze": False,  # train the classifier alone, on the features of a backbone in evaluation mode
        "dropout": 0.5,  # before the classifier
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
        """The videos that have a label. Raises TrainerError for options that make no sense."""
        check_options(options, ("dropout", 0 <= options["dropout"] < 1, "0 or more and less than 1"))
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
        return {
            "loss": distributed.mean(F.cross_entropy(logits, target, reduction="none")),
            "accuracy": distributed.mean((logits.argmax(1) == target).float()),
            "chance": logits.new_tensor(1 / logits.shape[1]),
        }

    def logits(self, backbone: nn.Module, clips: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> float32 [B, classes]."""
        if self.freeze:
            backbone.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = [*backbone(clips).values()][-1].mean((2, 3, 4))
        return self.head(self.dropout(features)).float()
