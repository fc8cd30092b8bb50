"""Temporally coherent embeddings: adjacent frames are alike, other videos are not. [J. Knights et al., ICPR 2020]"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.errors import SettingError, TrainerError
from trainer.methods.contrast import check_several, infonce
from trainer.methods.method import Method, Shown
from trainer.methods.parts import NORMALISED, classification, embedding, remembered, rotated, unit
from trainer.options import POSITIVE, Option, at_least, between

EMBEDDING = 128
PRIME = 2**31 - 1


class TCE(Method):
    """Distinguish the frame after the anchor from a bank of other videos, increasingly hard ones, by unit vectors; and, unless
    rotation_weight is 0, predict by how many quarter turns a copy of the anchor is rotated.

    A sample is two adjacent frames of a video, or for 3D backbones two clips of `frames` frames, the second starting where the
    first ends, with the same crop and mirroring for both, as in the authors' code. The bank has one slot per video, which holds
    the anchor's vector from its last visit; a slot of zeros has not been visited yet and is not a negative. The rotated frame
    is a copy, so that anchor and bank stay upright like the positive; the rotation comes from the authors' code, the poster
    does not mention it.
    """

    task = "adjacent frames are alike, other videos are not"
    sample = "a video: two adjacent frames"
    source = "J. Knights et al., ICPR 2020"
    defaults = {  # the poster states only the backbone, the others are from the authors' code
        "backbone": "resnet18",
        "epochs": 50,
        "batch_size": 100,
        "lr": 0.03,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "step",
        "drop_every": 25,
        "jitter": "none",  # ours; the authors' code has one, with which the embedding collapses on small data
    }
    options = {  # from the authors' code, except frames, the share of negatives, and the loss: theirs is nce
        "frames": Option(1, "frames per clip; for a 3D backbone as many as in a clip of the shards", at_least(1)),
        "loss": Option("infonce", "nce: each negative separately against noise", choices=("infonce", "nce")),
        "temperature": Option(0.07, "temperature of the similarities", POSITIVE),
        "negatives": Option(
            0, "negatives per anchor; 0: 8192 or a quarter of the training videos, whichever is less", at_least(0)
        ),
        "lo": Option(-1.0, "similarity that negatives must exceed at the start", between(-1, 1)),
        "hi": Option(1.0, "value towards which lo rises; both -1: any negative", between(-1, 1)),
        "rotation_weight": Option(1.0, "weight of the rotation loss; 0: no rotation", at_least(0)),
    }
    chances = {"rotation_accuracy": 1 / 4}
    remembers_videos = True

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        temporal = any(isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1 for layer in backbone.modules())
        if temporal and options["frames"] == 1:
            raise TrainerError(
                "tce's frames is 1, from which a 3D backbone cannot learn its weights over time; "
                f"set frames to {shards.config['clip_length']}, or choose the backbone resnet18 or resnet50"
            )
        videos = len(self.samples(shards, options)[0])
        check_several("tce", shards, videos)
        self.loss, self.temperature, self.rotation_weight = (
            options[name] for name in ("loss", "temperature", "rotation_weight")
        )
        self.negatives, self.lo, self.hi = options["negatives"], options["lo"], options["hi"]
        if not self.negatives:
            self.negatives = automatic_negatives(videos)
            self.notes = (f"tce draws {self.negatives} negatives per anchor, of {videos - 1} other videos",)
        self.projection = nn.Linear(backbone.features, EMBEDDING)
        self.head: nn.Module = rotation_head(backbone.features) if self.rotation_weight else nn.Identity()
        self.bank: Tensor
        self.register_buffer("bank", torch.zeros(len(shards.videos), EMBEDDING))

    @staticmethod
    def check(options: dict) -> None:
        if not options["lo"] <= options["hi"]:
            raise SettingError(f"lo is {options['lo']}, expected -1 to hi, which is {options['hi']}")

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return NORMALISED if options["rotation_weight"] else ("", False)

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return 2, options["frames"]

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for two clips."""
        return shards.long_enough(2 * options["frames"])

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """turns: quarter turns of the anchor's copy, 0 to 3; draws: two random numbers from which negatives are drawn. The
        second view gets the crop and mirroring of the first."""
        first, second = draw.views
        second |= {name: first[name] for name in first.keys() - {"jitter", "sigma"}}
        length = draw.options["frames"]
        start = draw.rng.integers(reader.arrays["videos/n_frames"][video] - 2 * length + 1)
        frames = reader.arrays["videos/first_frame"][video] + start + np.arange(2 * length).reshape(2, length)
        return frames, {"turns": draw.rng.integers(4), "draws": draw.rng.integers(1, PRIME, 2)}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        lines, clips = ["anchor and positive are alike, other videos are not"], [("anchor", batch.clips[0])]
        clips.append(("positive, starting where the anchor ends", batch.clips[1]))
        if options["rotation_weight"]:
            turns = batch.labels["turns"]
            lines.append("rotation of the copy")
            copy = rotated(batch.clips[:1], turns)[0]
            clips.append((f"copy of the anchor, {90 * int(turns[0])} degrees", copy))
        return lines, clips

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels: turns int64 [B], draws int64 [B, 2]. accuracy: of picking the positive among the negatives; hardness: mean
        similarity of the negatives; loss: the weighted sum of the losses contrast and rotation."""
        anchor, positive = batch.clips.unflatten(0, (-1, 2)).unbind(1)
        turns = batch.labels["turns"]
        copies = [rotated(anchor, turns)] if self.rotation_weight else []
        x, x_turned = embedding(backbone, torch.cat([anchor, positive, *copies])).tensor_split([2 * len(turns)])
        anchor, positive = unit(self.projection(x)).chunk(2)
        limit = threshold(batch.progress, self.lo, self.hi)
        similarity, known = self.similarity(anchor, positive, batch.video, batch.labels["draws"], limit)
        scaled = similarity / self.temperature
        contrast = distributed.mean(infonce(scaled) if self.loss == "infonce" else nce(scaled, self.temperature))
        if self.training:
            self.bank = remembered(self.bank, batch.video, anchor.detach())
        metrics = {
            "loss": contrast,
            "accuracy": distributed.mean((similarity.argmax(1) == 0).float()),
            "chance": distributed.mean(1 / (1 + known.sum(1).float())),
            "contrast": contrast,
            "hardness": distributed.mean(similarity[:, 1:].detach(), known),
        }
        if self.rotation_weight:
            rotation = classification(self.head(x_turned).float(), turns)
            metrics |= {
                "loss": contrast + self.rotation_weight * rotation["loss"],
                "rotation": rotation["loss"],
                "rotation_accuracy": rotation["accuracy"],
            }
        return metrics

    def similarity(
        self, anchor: Tensor, positive: Tensor, video: Tensor, draws: Tensor, limit: float
    ) -> tuple[Tensor, Tensor]:
        """Cosines of each anchor with its positive and its negatives, float32 [B, 1 + K], -inf if there is none, and which
        negatives there are, bool [B, K].

        anchor, positive: unit vectors float32 [B, EMBEDDING]; video: int64 [B]; draws: int64 [B, 2]; limit: see `mine`
        """
        with torch.autocast(anchor.device.type, enabled=False):
            bank = anchor @ self.bank.T  # [B, videos]
        slots = torch.arange(len(self.bank), device=bank.device)
        candidate = self.bank.any(1) & (slots != video[:, None])
        priority = pairwise_random(slots, draws)
        chosen, known = mine(bank.detach(), candidate, priority, limit, self.negatives)
        negative = bank.gather(1, chosen).masked_fill(~known, -torch.inf)
        return torch.cat([(anchor * positive).sum(1, keepdim=True), negative], 1), known


def automatic_negatives(videos: int) -> int:
    """How many negatives an anchor has for this number of training videos: a quarter of them, since mining has no choice if it
    must take nearly all, but at most the 8192 of the authors' code. The quarter is ours."""
    return max(1, min(8192, videos // 4))


def rotation_head(features: int) -> nn.Sequential:
    """[B, features] -> [B, 4], the authors': layers of 200, 200 and 4, batch normalisation after each ReLU."""
    layers = [nn.Linear(features, 200), nn.ReLU(), nn.BatchNorm1d(200)]
    layers += [nn.Linear(200, 200), nn.ReLU(), nn.BatchNorm1d(200)]
    return nn.Sequential(*layers, nn.Linear(200, 4))


def threshold(progress: float, lo: float, hi: float) -> float:
    """Similarity that a negative must exceed: lo + (hi - lo) (1 - exp(-5 progress)). The authors' code has exp(+5 progress).
    Its limit, below which it takes the most similar, falls from the start, so that its mining has no effect."""
    return lo + (hi - lo) * (1 - math.exp(-5 * progress))


def pairwise_random(slots: Tensor, draws: Tensor) -> Tensor:
    """Uniform random numbers in 0..1 for slots int64 [n] and each row of draws int64 [B, 2], float32 [B, n]; those of two slots
    are independent. The numbers of a row do not depend on the process that holds it. [Carter, Wegman 1979]"""
    a, b = draws[:, :, None].unbind(1)
    return (slots * a + b) % PRIME / PRIME


def mine(similarity: Tensor, candidate: Tensor, priority: Tensor, limit: float, k: int) -> tuple[Tensor, Tensor]:
    """The k candidates of the highest priority among those with a similarity above the limit, or, if fewer than k are above it,
    the k most similar. Returns their columns int64 [B, min(k, n)], and which of these are candidates.

    similarity: float32 [B, n] in -1..1; candidate: bool [B, n]; priority: float32 [B, n] in 0..1
    """
    rank = torch.where(similarity > limit, 2 + priority, similarity).masked_fill(~candidate, -torch.inf)
    rank, chosen = rank.topk(min(k, rank.shape[1]), sorted=False)
    return chosen, rank > -torch.inf


def nce(logits: Tensor, temperature: float) -> Tensor:
    """-log h_0 - sum_j log(1 - h_j), h = e^l / (e^l + K c), float32 [B]: is it the positive or one of K noise samples?
    0 if K is 0.

    c is the mean of e^(similarity / temperature) over random unit vectors, whose similarities have variance 1 / EMBEDDING
    and are nearly normal. [Z. Wu et al., CVPR 2018, eq. 5 to 7; they take c from the first batch and a random bank]
    """
    count = (logits[:, 1:] > -torch.inf).sum(1)
    noise = count.clamp(min=1).log() + 1 / (2 * EMBEDDING * temperature**2)
    odds = logits - noise[:, None]  # log(h / (1 - h))
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)) * (count > 0)
