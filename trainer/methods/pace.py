"""Pace prediction: at which speed is the clip played? [thesis 4.2; J. Wang, J. Jiao, Y.-H. Liu, ECCV 2020]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import CLIP_LENGTH, ShardReader
from trainer import distributed
from trainer.data import Batch, Draw, Shards
from trainer.errors import TrainerError
from trainer.methods.method import Method
from trainer.methods.parts import classification, float32, last_stage, projection_head, unit
from trainer.options import POSITIVE, Option, at_least

CONTRASTS = ("none", "same-context", "same-pace")


class Pace(Method):
    """Classify the pace of a clip; with options.contrast also tell clips that belong together from others.

    One sample per video and epoch, of row = epoch modulo rows; with "same-context" the video gives two clips, of two rows.
    """

    task = "at which speed is the clip played"
    sample = "a video: the row `epoch mod rows` of its stored draws, or two rows"
    source = "J. Wang et al., ECCV 2020"
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
    options = {
        "contrast": Option("none", "which clips belong together: those of one video or of one pace", choices=CONTRASTS),
        "contrast_weight": Option(0.1, "of that loss", at_least(0)),
        "temperature": Option(0.1, "of that loss", POSITIVE),  # not stated in the thesis
        "literal": Option(
            False,
            "that loss as the thesis writes it: dot products of whole feature maps, no projection, no temperature",
        ),
    }

    def __init__(self, backbone: nn.Module, options: dict, shards: Shards):
        super().__init__()
        self.contrast, self.weight = options["contrast"], options["contrast_weight"]
        self.temperature, self.literal = options["temperature"], options["literal"]
        self.head = nn.Linear(backbone.features, len(shards.config["paces"]))
        self.projection = None
        if self.contrast != "none" and not self.literal:
            self.projection = projection_head(backbone.features, backbone.features, 128)

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return (2 if options["contrast"] == "same-context" else 1), CLIP_LENGTH

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos long enough for every pace. Raises TrainerError where they have too few rows."""
        if options["contrast"] == "same-context" and shards.config["rows"] < 2:
            raise TrainerError("same-context needs two pace rows per video, the shards have 1; label two rows or more")
        return shards.with_rows("pace/pace")

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        paces = reader.arrays["pace/pace"][video]
        n = len(draw.views)
        rows = [(n * draw.epoch + clip) % len(paces) for clip in range(n)]
        return np.stack([reader.pace_frames(video, row) for row in rows]), {"pace": paces[rows].astype(np.int64)}

    def forward(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """labels: pace int64 [B, n]."""
        last = last_stage(backbone, batch.clips.flatten(0, 1))  # [B n, C, T, H, W]
        pooled, pace = last.mean((2, 3, 4)), batch.labels["pace"].flatten()
        metrics = classification(self.head(pooled).float(), pace)
        if self.contrast != "none":
            z = last.flatten(1).float() if self.literal else unit(self.projection(pooled))
            group = pace if self.contrast == "same-pace" else batch.video.repeat_interleave(batch.clips.shape[1])
            contrast = contrastive(z, group, 1.0 if self.literal else self.temperature)
            metrics |= {"loss": metrics["loss"] + self.weight * contrast, "contrast": contrast}
        return metrics


@float32
def contrastive(z: Tensor, group: Tensor, temperature: float) -> Tensor:
    """Mean of -log(e^s(i,j) / (e^s(i,j) + sum over k of other groups of e^s(i,k))), s = z_i z_j / temperature, over all
    ordered pairs i, j of one group: first over a clip's positives j, then over the clips i that have one. [thesis eq. 4.3
    with the video as group, eq. 4.4 with the pace]

    z: float32 [N, d]; group: int64 [N]; both are joined over all processes.
    """
    everything, begin = distributed.gather(z)
    groups, _ = distributed.gather(group)
    rows = torch.arange(len(z), device=z.device)
    similarity = z @ everything.T / temperature  # [N, all]
    same = group[:, None] == groups
    positive = same.index_put((rows, begin + rows), same.new_tensor(False))
    others = similarity.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    terms = F.softplus(others - similarity).masked_fill(~positive, 0)
    count = positive.sum(1)
    return distributed.mean(terms.sum(1) / count.clamp(min=1), count > 0)
