"""Motion and appearance statistics: where is the largest motion, in which direction does it go, which block is the most
diverse, which the most stable, what are their colours? [thesis 2.2; J. Wang et al., CVPR 2019]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer.errors import TrainerError

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


class Statistics(nn.Module):
    """Predict the 14 motion and 13 appearance labels of a clip, each set by a branch of its own.

    settings.parts:   "motion", "appearance" or "both"; the losses are weighted 1.0 and 0.1
    settings.targets: "raw": squared error of the ids, as published; "scaled": of ids scaled to 0..1; "classes": one
                      classifier per label, cross entropy (ours). Labels marked invalid are left out.
    """

    defaults = {
        "epochs": 20,
        "batch_size": 30,
        "lr": 5e-4,
        "momentum": 0.9,
        "weight_decay": 5e-4,  # not stated in the paper
        "schedule": "step",
        "drop_every": 6,
        "targets": "classes",
        "jitter": "none",  # the labels are colours
        "parts": "both",
    }

    def __init__(self, backbone: nn.Module, config: dict, settings):
        super().__init__()
        if settings.targets not in ("raw", "scaled", "classes"):
            raise TrainerError(f"targets is {settings.targets!r}, expected raw, scaled or classes")
        if settings.parts not in (*SIZES, "both"):
            raise TrainerError(f"parts is {settings.parts!r}, expected motion, appearance or both")
        self.targets = settings.targets
        self.parts = tuple(SIZES) if settings.parts == "both" else (settings.parts,)
        self.backbone = backbone
        outputs = {part: sum(SIZES[part]) if self.targets == "classes" else len(SIZES[part]) for part in self.parts}
        self.heads = nn.ModuleDict({part: nn.Linear(backbone.features, n) for part, n in outputs.items()})

    @staticmethod
    def samples(shards) -> tuple[np.ndarray, int, str]:
        """The labelled clips, int64 [n, 2], how many videos were left out, and why."""
        used = shards.trains[shards.owner]
        left_out = shards.trains.sum() - len(np.unique(shards.owner[used]))
        return shards.clips[used], int(left_out), "without a labelled clip"

    @staticmethod
    def read(reader: ShardReader, clip: int, epoch: int, view: dict) -> tuple[np.ndarray, dict]:
        """Frames int64 [16] of a labelled clip, and the labels of the very crop and mirror drawn."""
        here = clip, view["crop"], view["mirror"]
        motion, valid, appearance = (
            reader.arrays[f"statistics/{name}"][here].astype(np.int64) for name in ("motion", "valid", "appearance")
        )
        return reader.clip_frames(clip), {"motion": motion, "valid": valid, "appearance": appearance}

    def forward(self, clips: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """clips [B, 3, T, H, W]; labels: motion int64 [B, 14], valid [B, 14], appearance int64 [B, 13] -> loss,
        accuracy and chance over all valid labels, the loss of each part, the accuracy of each kind of label."""
        features = [*self.backbone(clips).values()][-1].mean((2, 3, 4))
        loss, right, known, chance, metrics = 0, 0, 0, 0, {}
        for part in self.parts:
            ids = labels[part]
            valid = labels["valid"] > 0 if part == "motion" else torch.ones_like(ids, dtype=torch.bool)
            own_loss, predicted = part_loss(self.heads[part](features).float(), ids, valid, SIZES[part], self.targets)
            loss = loss + WEIGHTS[part] * own_loss
            hit = (predicted == ids) & valid
            right, known = right + hit.sum(), known + valid.sum()
            chance = chance + (valid / torch.tensor(SIZES[part], device=ids.device)).sum()
            metrics[f"{part}_loss"] = own_loss
            for kind in dict.fromkeys(KINDS[part]):
                columns = [column for column, name in enumerate(KINDS[part]) if name == kind]
                metrics[kind] = hit[:, columns].sum() / valid[:, columns].sum().clamp(min=1)
        known = known.clamp(min=1)
        return {"loss": loss, "accuracy": right / known, "chance": chance / known, **metrics}


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
    return (terms * valid).sum() / valid.sum().clamp(min=1), predicted
