"""Motion and appearance statistics: where is the largest motion, and in which direction? Which blocks are the most and the
least diverse, and what are their colours? [thesis 2.2; J. Wang et al., CVPR 2019]"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.errors import SettingError
from trainer.methods.method import Method, Shown
from trainer.methods.parts import branch, last_stage, pooled_cells
from trainer.options import Option, between

# How many values each label takes, and its meaning. Motion: p_u o_u p_v o_v of the three patterns, I_u, I_v;
# appearance: p_l c_l p_s c_s of the three patterns, C. I_u and I_v are flows of a clip of 16 frames, see `label_sizes`.
SIZES = {
    "motion": (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, 15, 15),
    "appearance": (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, 8),
}
KINDS = {
    "motion": ("block", "orientation") * 6 + ("flow", "flow"),
    "appearance": ("place", "color") * 6 + ("color",),
}
NAMES = {
    "motion": ("u moves most in block", "towards", "v moves most in block", "towards") * 3
    + ("u moves most in flow", "v in flow"),
    "appearance": ("most diverse block", "its colour", "most stable block", "its colour") * 3 + ("colour",),
}
COLORS = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")  # each channel split at 128
PATTERNS = ("grid", "rings", "triangles")  # four labels of each in turn, then the global ones
WEIGHTS = {"motion": 1.0, "appearance": 0.1}  # if both are learnt [thesis 3.4.2]


class Statistics(Method):
    """Predict the 14 motion and 13 appearance labels of a clip, or some of them, with a separate branch for each set.

    The two losses have weights 1.0 and 0.1, a single one weight 1; labels marked invalid are left out. A branch is a linear
    layer on the mean of the last stage over its cells, as in the authors' code for all backbones except light C3D; with
    options.hidden it is that of light C3D [thesis table 2.1], see parts.branch. The original C3D has dropout in it; the thesis
    mentions none and the authors' code switches it off here, so there is none.
    """

    task = "place, direction and time of the largest motion; most and least diverse block, their colours"
    sample = "a labelled clip, with the labels of its crop and mirror"
    source = "J. Wang et al., CVPR 2019"
    defaults = {
        "epochs": 20,
        "batch_size": 30,
        "lr": 5e-4,
        "momentum": 0.9,  # of the authors' code
        "weight_decay": 5e-3,  # of the authors' code; for light C3D it has it only on the fully connected weights
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
        "parts": Option(
            "both", "the labels to learn; with both, the losses have weights 1 and 0.1", choices=(*SIZES, "both")
        ),
        "patterns": Option(list(PATTERNS), f"patterns whose labels are learnt, of {', '.join(PATTERNS)}; may be empty"),
        "global_labels": Option(True, "also learn the labels of the whole crop: I_u and I_v, or the colour C"),
        "hidden": Option(0, "width of two hidden layers per branch, 2048 in light C3D; 0: none", between(0, 65536)),
        "mirror": Option(True, "mirror a random half of the clips, as thesis 3.4.2 does; 2.3.2 mentions only crops"),
    }
    of_labelled_clips = True
    labels_of_crops = True

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.targets = options["targets"]
        self.weights = WEIGHTS if options["parts"] == "both" else {options["parts"]: 1.0}
        self.columns = {part: learnt(part, options["patterns"], options["global_labels"]) for part in self.weights}
        sizes = label_sizes(shards.config["clip_length"])
        self.sizes = {part: tuple(sizes[part][i] for i in columns) for part, columns in self.columns.items()}
        for part, columns in self.columns.items():  # buffers, or each step would wait for their upload
            kinds = [KINDS[part][i] for i in columns]
            of_kind = {kind: [i for i, name in enumerate(kinds) if name == kind] for kind in dict.fromkeys(kinds)}
            for name, numbers in {"columns": columns, "sizes": self.sizes[part], **of_kind}.items():
                self.register_buffer(f"{part}_{name}", torch.tensor(numbers), persistent=False)
        outputs = {part: sum(s) if self.targets == "classes" else len(s) for part, s in self.sizes.items()}
        self.hidden = options["hidden"]
        if self.hidden:
            cells = pooled_cells(backbone, shards.config["crop"], shards.config["clip_length"])
            heads: dict[str, nn.Module] = {part: branch(cells, self.hidden, n) for part, n in outputs.items()}
        else:
            heads = {part: nn.Linear(backbone.features, n) for part, n in outputs.items()}
        self.heads = nn.ModuleDict(heads)

    @staticmethod
    def check(options: dict) -> None:
        patterns = options["patterns"]
        if not set(patterns) <= set(PATTERNS) or len(set(patterns)) < len(patterns):
            raise SettingError(f"patterns is {patterns}, expected different ones of: {', '.join(PATTERNS)}")
        if not patterns and not options["global_labels"]:
            raise SettingError(
                "patterns is empty and global_labels false, so that no label is left to learn; set one of them"
            )

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The labelled clips."""
        return shards.labelled_clips()

    @staticmethod
    def read(reader: ShardReader, clip: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of a labelled clip, and the labels of the crop and mirroring drawn; without options.mirror its view does not
        stay mirrored."""
        if not draw.options["mirror"]:
            draw.views[0]["mirror"] = 0
        here = clip, draw.views[0]["crop"], draw.views[0]["mirror"]
        labels = {name: reader.arrays[f"statistics/{name}"][here] for name in ("motion", "valid", "appearance")}
        return reader.clip_frames(clip)[None], {name: label.astype(np.int64) for name, label in labels.items()}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        """Blocks and flows are numbered from 0, directions are counter-clockwise from the right."""
        lines = []
        for part in SIZES if options["parts"] == "both" else [options["parts"]]:
            ids, valid = (batch.labels[name][0].tolist() for name in (part, "valid"))
            words = {"orientation": lambda i: f"{45 * i} to {45 * i + 45} degrees", "color": COLORS.__getitem__}
            for group, columns in groupby(
                learnt(part, options["patterns"], options["global_labels"]), lambda column: column // 4
            ):
                known = [i for i in columns if part == "appearance" or valid[i]]
                told = ", ".join(f"{NAMES[part][i]} {words.get(KINDS[part][i], str)(ids[i])}" for i in known)
                lines.append(f"{(*PATTERNS, 'whole crop')[group]}: {told or 'no motion'}")
        return lines, [("clip", batch.clips[0])]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels: motion int64 [B, 14], valid [B, 14], appearance int64 [B, 13] -> loss, accuracy and chance over all
        valid labels that are learnt, the loss of each part, the accuracy of each kind of label."""
        last = last_stage(backbone, batch.clips)  # [B, C, T, H, W]
        return self.metrics(last if self.hidden else last.mean((2, 3, 4)), batch.labels)

    def metrics(self, features: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics for the heads' input, float32 [B, C] or with options.hidden [B, C, T, H, W]; labels: as in `forward`."""
        terms, hits, known, chances = {}, [], [], []
        for part, sizes in self.sizes.items():
            columns = self.get_buffer(f"{part}_columns")
            ids = labels[part].index_select(1, columns)
            valid = torch.ones_like(ids, dtype=torch.bool)
            if part == "motion":
                valid = labels["valid"].index_select(1, columns) > 0
            outputs, numbers = self.heads[part](features).float(), self.get_buffer(f"{part}_sizes")
            scale = numbers - 1 if self.targets == "scaled" else 1
            losses, predicted = part_terms(outputs, ids, sizes, self.targets, scale)
            hit = (predicted == ids).float()
            hits.append(hit)
            known.append(valid)
            chances.append((1 / numbers).expand(ids.shape))
            terms[f"{part}_loss"] = losses, valid
            for kind in dict.fromkeys(KINDS[part][i] for i in self.columns[part]):
                columns = self.get_buffer(f"{part}_{kind}")
                terms[kind] = hit.index_select(1, columns), valid.index_select(1, columns)
        valid = torch.cat(known, 1)
        terms = {"accuracy": (torch.cat(hits, 1), valid), "chance": (torch.cat(chances, 1), valid), **terms}
        metrics = dict(zip(terms, distributed.means([*terms.values()]), strict=True))
        loss: Any = sum(weight * metrics[f"{part}_loss"] for part, weight in self.weights.items())
        return {"loss": loss, **metrics}


def label_sizes(length: int) -> dict[str, tuple[int, ...]]:
    """How many values each label takes for clips of `frames` frames, which have one flow less."""
    return {
        part: tuple(length - 1 if kind == "flow" else n for n, kind in zip(sizes, KINDS[part], strict=True))
        for part, sizes in SIZES.items()
    }


def learnt(part: str, patterns: list[str], global_labels: bool) -> list[int]:
    """Columns of a part's labels: those of the patterns, in the order stored, and the global ones. [thesis tables 2.2, 2.3]"""
    columns = [4 * i + k for i, pattern in enumerate(PATTERNS) if pattern in patterns for k in range(4)]
    return columns + list(range(4 * len(PATTERNS), len(SIZES[part]) if global_labels else 4 * len(PATTERNS)))


def part_terms(
    outputs: Tensor, ids: Tensor, sizes: tuple[int, ...], targets: str, scale: Tensor | int = 1
) -> tuple[Tensor, Tensor]:
    """Loss of each label float32 [B, labels], and the ids predicted int64 [B, labels].

    outputs: float32 [B, labels], or [B, sum(sizes)] for targets "classes"; ids: int64 [B, labels]; scale: for targets
    "scaled" int64 [labels], sizes - 1
    """
    if targets == "classes":
        logits = outputs.split(sizes, dim=1)
        terms = torch.stack([F.cross_entropy(x, ids[:, i], reduction="none") for i, x in enumerate(logits)], 1)
        predicted = torch.stack([x.argmax(1) for x in logits], 1)
    else:
        terms = (outputs - ids / scale) ** 2
        predicted = (outputs.detach() * scale).round().long()
    return terms, predicted
