"""Skip-Clip: which future frame comes first, given a clip of the preceding frames? [A. El-Nouby et al., 2019]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.backbones.resnet2d import resnet18
from trainer.data import Batch, Draw, Shards
from trainer.methods.contrast import COMPARED
from trainer.methods.method import Method, Shown
from trainer.methods.parts import classification, last_stage, rotated
from trainer.options import Option, at_least


class SkipClip(Method):
    """Score future frames by their likeness to a context clip, so that a nearer one scores higher than a later one and
    any of them higher than frames of other videos; and, unless rotation_weight is 0, predict by how many quarter turns copies
    of them are rotated.

    A sample is one clip with one view: a clip of context and `targets` frames after it, `spacing` apart. The backbone
    encodes the context, h = g(c), averaged over time. Single frames have a separate encoder, z = f(x): a 2D ResNet-18
    with as many features as the backbone, 512 at most, a convolution of kernel 1 and adaptive average pooling to the cells
    of h. The ranked frames stay upright, since a rotation would misalign their cells with those of the context.
    """

    task = "which future frame is nearer"
    sample = "a video: a clip and `targets` later frames"
    source = "A. El-Nouby et al., 2019"
    defaults = {  # the poster states only the backbone
        "backbone": "resnet3d18",
        "epochs": 100,  # assumed
        "batch_size": 32,  # assumed
        "lr": 1e-2,  # assumed
        "momentum": 0.9,  # assumed
        "weight_decay": 5e-4,  # assumed
        "schedule": "step",  # assumed
        "drop_every": 40,  # assumed
        "jitter": "none",  # assumed
    }
    options = {  # all assumed
        "targets": Option(8, "future frames", at_least(2)),
        "spacing": Option(
            4, "distance from the context to the first target and between targets, in frames", at_least(1)
        ),
        "rank_margin": Option(0.1, "margin between a nearer and a later frame", at_least(0)),
        "negative_margin": Option(0.1, "margin between a future frame and those of other videos", at_least(0)),
        "negative_weight": Option(
            1.0, "weight of the loss against other videos; the ranking loss has weight 1", at_least(0)
        ),
        "rotation_weight": Option(0.5, "weight of the rotation loss; 0: no rotation", at_least(0)),
    }
    chances = {"rotation_accuracy": 1 / 4}

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.rank_margin, self.negative_margin = options["rank_margin"], options["negative_margin"]
        self.negative_weight, self.rotation_weight = options["negative_weight"], options["rotation_weight"]
        self.encoder = resnet18(min(1, backbone.features / 512))
        self.match = nn.Conv3d(self.encoder.features, backbone.features, 1)
        self.head: nn.Module = nn.Linear(backbone.features, 4) if self.rotation_weight else nn.Identity()

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return COMPARED if options["negative_weight"] else ("", False)

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return 1, config["clip_length"] + options["targets"]

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for context and targets."""
        return shards.long_enough(_length(shards.config["clip_length"], options))

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """turns: quarter turns of each target's copy, 0 to 3; negatives: random numbers, one per negative."""
        targets, length = draw.options["targets"], reader.clip_length
        after = length - 1 + draw.options["spacing"] * np.arange(1, targets + 1)
        start = draw.rng.integers(reader.arrays["videos/n_frames"][video] - _length(length, draw.options) + 1)
        frames = reader.arrays["videos/first_frame"][video] + start + np.concatenate([np.arange(length), after])
        return frames[None], {
            "turns": draw.rng.integers(4, size=targets),
            "negatives": draw.rng.integers(2**31, size=targets),
        }

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        count, spacing = options["targets"], options["spacing"]
        context, targets = batch.clips[0].tensor_split([-count], 1)
        frames = targets.transpose(0, 1)[:, :, None]  # [M, 3, 1, S, S]
        lines = ["target frames from near to far, then those of other videos"]
        clips = [("context", context)]
        clips += [(f"target {i}, {i * spacing} frames later", frame) for i, frame in enumerate(frames, 1)]
        if options["rotation_weight"]:
            turns = batch.labels["turns"][0]
            lines.append("rotation of the copies")
            copies = zip(turns.tolist(), rotated(frames, turns), strict=True)
            clips += [(f"copy of target {i}, {90 * turn} degrees", frame) for i, (turn, frame) in enumerate(copies, 1)]
        return lines, clips

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels: turns int64 [B, targets], negatives int64 [B, targets]. accuracy: share of the pairs of targets that are
        ranked correctly; loss: the weighted sum of the losses rank, negative and rotation."""
        context, targets = batch.clips.tensor_split([-batch.labels["negatives"].shape[1]], 2)
        h = last_stage(backbone, context).mean(2)
        frames = targets.transpose(1, 2).flatten(0, 1)[:, :, None]  # [B M, 3, 1, S, S]
        turns, upright = batch.labels["turns"].flatten(), len(frames)
        if self.rotation_weight:
            frames = torch.cat([frames, rotated(frames, turns)])
        z, z_turned = self.encode(frames, (h.shape[2], h.shape[3])).tensor_split([upright])
        metrics = self.ranked(h, z.unflatten(0, (len(h), -1)), batch.video, batch.labels["negatives"])
        if self.rotation_weight:
            rotation = classification(self.head(z_turned.mean((2, 3))).float(), turns)
            metrics |= {
                "loss": metrics["loss"] + self.rotation_weight * rotation["loss"],
                "rotation": rotation["loss"],
                "rotation_accuracy": rotation["accuracy"],
            }
        return metrics

    def ranked(self, h: Tensor, z: Tensor, video: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """Losses of the ranking and against frames of other videos, and the share of the pairs that are ranked correctly.

        h: contexts [B, C, H, W]; z: targets [B, M, C, H, W], nearest first; video: int64 [B]; draws: see `negatives`
        """
        scores = gamma(h, z)
        terms, right = ranking(scores, self.rank_margin)
        others, known = negatives(z, video, draws)
        against = gamma(h, others).mean(1, keepdim=True)
        losses = {
            "rank": distributed.mean(terms),
            "negative": distributed.mean(F.relu(against - scores + self.negative_margin).mean(1), known),
        }
        return {
            "loss": losses["rank"] + self.negative_weight * losses["negative"],
            "accuracy": distributed.mean(right),
            "chance": scores.new_full((), 1 / 2),
            **losses,
        }

    def networks(self) -> list[nn.Module]:
        return [self.encoder]

    def encode(self, frames: Tensor, cells: tuple[int, int]) -> Tensor:
        """f: frames [N, 3, 1, S, S] -> [N, C, *cells]."""
        return F.adaptive_avg_pool2d(self.match(last_stage(self.encoder, frames)).squeeze(2), cells)


def _length(context: int, options: dict) -> int:
    return context + options["targets"] * options["spacing"]


def gamma(h: Tensor, z: Tensor) -> Tensor:
    """Mean cosine of aligned cells: [B, C, H, W] and [B, M, C, H, W] -> float32 [B, M]."""
    return F.cosine_similarity(h[:, None].float(), z.float(), dim=2).mean((2, 3))


def ranking(scores: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """max(0, -score_i + score_j + margin) of all pairs of a nearer frame i and a later one j, float32 [B, M (M - 1) / 2],
    and whether score_i > score_j, 0 or 1. scores: float32 [B, M], nearest frame first."""
    near, late = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    difference = scores[:, near] - scores[:, late]
    return F.relu(margin - difference), (difference > 0).float()


def negatives(z: Tensor, video: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample as many frames of other videos as `draws` has columns, drawn from the targets of the batch over all
    processes, [B, M, C, H, W]; and whether there is another video, bool [B].

    z: targets [B, M, C, H, W]; video: int64 [B]; draws: uniform whole numbers int64 [B, M], far larger than the batch.
    """
    everything, videos = distributed.gather(z.float())[0], distributed.gather(video)[0]
    same = video[:, None] == videos
    rows = same.int().argsort(dim=1, stable=True)  # those of other videos first
    count = (~same).sum(1)
    places = draws % (count * z.shape[1]).clamp(min=1)[:, None]  # of the frames of the rows, one row after the other
    row, frame = places // z.shape[1], places % z.shape[1]
    return everything[rows.gather(1, row), frame], count > 0
