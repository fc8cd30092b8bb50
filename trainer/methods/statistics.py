"""Motion and appearance statistics: where is the largest motion, in which direction does it go, which block is the most
diverse, which the most stable, what are their colours? [thesis 2.2; J. Wang et al., CVPR 2019]"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import CLIP_LENGTH, ShardReader
from trainer import distributed
from trainer.data import Batch, Draw, Shards
from trainer.methods.method import Method
from trainer.methods.parts import last_stage
from trainer.options import Option, at_least

# How many values each label takes, and what it says. Motion: p_u o_u p_v o_v of the three patterns, I_u, I_v;
# appearance: p_l c_l p_s c_s of the three patterns, C.
SIZES = {
    "motion": (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, 15, 15),
    "appearance": (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, 8),
}
KINDS = {
    "motion": ("block", "orientation") * 6 + ("flow", "flow"),
    "appearance": ("place", "color") * 6 + ("color",),
}
WEIGHTS = {"motion": 1.0, "appearance": 0.1}


class Statistics(Method):
    """Predict the 14 motion and 13 appearance labels of a clip, each set by a branch of its own.

    The losses of the two are weighted 1.0 and 0.1; labels marked invalid are left out. A branch is a linear layer on the
    mean of the last stage over its cells; with options.hidden it is that of light C3D [thesis table 2.1], see `branch`.
    """

    task = "where, in which direction and when does most move; which block is most diverse, which most stable, of which colour"
    sample = "a labelled clip, with the labels of its crop and mirror"
    source = "J. Wang et al., CVPR 2019"
    defaults = {
        "epochs": 20,
        "batch_size": 30,
        "lr": 5e-4,
        "momentum": 0.9,
        "weight_decay": 5e-4,  # not stated in the paper
        "schedule": "step",
        "drop_every": 6,
        "jitter": "none",  # the labels are colours
    }
    options = {
        "targets": Option(
            "classes",
            "classes: a classifier per label (ours); raw: regress the ids, as published; scaled: ids scaled to 0..1",
            choices=("raw", "scaled", "classes"),
        ),
        "parts": Option("both", "the labels to learn; their losses have weights 1 and 0.1", choices=(*SIZES, "both")),
        "hidden": Option(0, "width of two hidden layers per branch, published 2048; 0: none", at_least(0)),
    }
    of_labelled_clips = True

    def __init__(self, backbone: nn.Module, options: dict, shards: Shards):
        super().__init__()
        self.targets = options["targets"]
        self.parts = tuple(SIZES) if options["parts"] == "both" else (options["parts"],)
        outputs = {part: sum(SIZES[part]) if self.targets == "classes" else len(SIZES[part]) for part in self.parts}
        self.hidden = options["hidden"]
        if self.hidden:
            cells = pooled_cells(backbone, shards.config["crop"])
            heads = {part: branch(cells, self.hidden, n) for part, n in outputs.items()}
        else:
            heads = {part: nn.Linear(backbone.features, n) for part, n in outputs.items()}
        self.heads = nn.ModuleDict(heads)

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The labelled clips."""
        return shards.labelled_clips()

    @staticmethod
    def read(reader: ShardReader, clip: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of a labelled clip, and the labels of the very crop and mirror drawn."""
        here = clip, draw.views[0]["crop"], draw.views[0]["mirror"]
        labels = {name: reader.arrays[f"statistics/{name}"][here] for name in ("motion", "valid", "appearance")}
        return reader.clip_frames(clip)[None], {name: label.astype(np.int64) for name, label in labels.items()}

    def forward(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """labels: motion int64 [B, 14], valid [B, 14], appearance int64 [B, 13] -> loss, accuracy and chance over all
        valid labels, the loss of each part, the accuracy of each kind of label."""
        last = last_stage(backbone, batch.clips.flatten(0, 1))  # [B, C, T, H, W]
        features = last if self.hidden else last.mean((2, 3, 4))
        losses, metrics, hits, known, guess = {}, {}, [], [], []
        for part in self.parts:
            ids = batch.labels[part]
            valid = batch.labels["valid"] > 0 if part == "motion" else torch.ones_like(ids, dtype=torch.bool)
            outputs = self.heads[part](features).float()
            losses[part], predicted = part_loss(outputs, ids, valid, SIZES[part], self.targets)
            hit = (predicted == ids).float()
            hits.append(hit), known.append(valid)
            guess.append((1 / torch.tensor(SIZES[part], device=ids.device)).expand(ids.shape))
            metrics[f"{part}_loss"] = losses[part]
            for kind in dict.fromkeys(KINDS[part]):
                columns = [column for column, name in enumerate(KINDS[part]) if name == kind]
                metrics[kind] = distributed.mean(hit[:, columns], valid[:, columns])
        loss = sum(WEIGHTS[part] * value for part, value in losses.items())
        known = torch.cat(known, 1)
        accuracy, chance = (distributed.mean(torch.cat(terms, 1), known) for terms in (hits, guess))
        return {"loss": loss, "accuracy": accuracy, "chance": chance, **metrics}


def pool() -> nn.Module:
    """Pool 5 of light C3D: the largest of 2 x 2 x 2 cells, sizes rounded up. [thesis table 2.1]"""
    return nn.MaxPool3d(2, ceil_mode=True)


def pooled_cells(backbone: nn.Module, crop: int) -> int:
    """How many values `pool` leaves of the last stage for a clip of crop x crop pixels; nothing is computed."""
    shapes = copy.deepcopy(backbone).to("meta").eval()
    clip = torch.empty(1, 3, CLIP_LENGTH, crop, crop, device="meta")
    return math.prod(pool()(last_stage(shapes, clip)).shape)


def branch(cells: int, hidden: int, outputs: int) -> nn.Sequential:
    """Last stage [B, C, T, H, W] -> [B, outputs]: pooling to `cells` values, two hidden layers with ReLU, the outputs.

    As published [thesis table 2.1 and 2.2.4] but for the initial weights, which the thesis does not state: PyTorch's. The
    original C3D has dropout here; the thesis names none, so there is none.
    """
    layers = [nn.Linear(cells, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(pool(), nn.Flatten(), *layers)


def part_loss(
    outputs: Tensor, ids: Tensor, valid: Tensor, sizes: tuple[int, ...], targets: str
) -> tuple[Tensor, Tensor]:
    """Mean loss over the valid labels (0 where there is none), and the ids predicted int64 [B, labels].

    outputs: float32 [B, labels], or [B, sum(sizes)] for targets "classes"; ids int64, valid bool [B, labels].
    """
    if targets == "classes":
        logits = outputs.split(sizes, dim=1)
        terms = torch.stack([F.cross_entropy(x, ids[:, i], reduction="none") for i, x in enumerate(logits)], 1)
        predicted = torch.stack([x.argmax(1) for x in logits], 1)
    else:
        scale = torch.tensor(sizes, device=ids.device) - 1 if targets == "scaled" else 1
        terms = (outputs - ids / scale) ** 2
        predicted = (outputs.detach() * scale).round().long()
    return distributed.mean(terms, valid), predicted
