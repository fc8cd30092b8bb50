"""Appearance and speed consistency: a clip predicts the appearance of another clip of its video that is played at a different
speed, and the speed of a clip of a similar video that is played at the same speed. [ascnet; D. Huang et al., ICCV 2021]"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.methods.contrast import check_speeds, like_a_constant, random_clip, spread
from trainer.methods.method import Method, Shown
from trainer.methods.parts import (
    NORMALISED,
    averaged_copy,
    embedding,
    projection_head,
    remembered,
    target_decay,
    unit,
    update_ema,
)
from trainer.options import Option, between

HIDDEN, EMBEDDING = 1024, 128  # widths of the heads


class ASCNet(Method):
    """Two consistencies without negatives, as in BYOL: an online network f, g, h follows an averaged one f', g'.

    A sample is a video: clips c_i and c_j, each with its own start and view, at two different speeds. Appearance:
    L_a = |h_a(g_a(f(c_i))) - g_a'(f'(c_j))|^2. Speed: L_m = |h_m(g_m(f(c_i))) - g_m'(f'(c_k))|^2, where c_k is a clip at
    the speed of c_i from the other video whose entry in the bank is nearest to g_a'(f'(c_j)). The bank holds the online
    network's output for the last c_i of each video, g_a(f(c_i)) [line 12]; until every video has an entry, c_k is taken from
    the same video (assumed). All vectors have unit length (assumed). L = gamma L_m + (1 - gamma) L_a. [ascnet alg. 1, whose
    line 18 lacks the projection g_m]

    The bank is searched before the entries of the step are added.
    """

    task = "same video at another speed, similar video at the same speed"
    sample = "a video: two clips at two speeds"
    source = "D. Huang et al., ICCV 2021"
    defaults = {  # the poster states none of these; its backbones are 3D R18 and S3D-G, the default is ours
        "epochs": 200,  # assumed
        "batch_size": 64,  # assumed
        "lr": 1e-2,  # assumed
        "momentum": 0.9,  # assumed
        "weight_decay": 1e-4,  # assumed
        "schedule": "cosine",  # assumed
        "drop_every": 100,  # assumed, for another schedule
        "jitter": "clip",  # assumed; without it the colours of a video identify its other clip
        "sync_bn": True,  # assumed
    }
    options = {
        "speeds": Option([1, 2], "two or more whole numbers"),
        # assumed, like the next one
        "gamma": Option(0.5, "weight of the speed loss; the appearance loss gets the rest", between(0, 1)),
        "decay": Option(0.99, "decay of the averaged network at the start, from which it rises to 1", between(0, 1)),
    }

    scored = False
    remembers_videos = True
    former_buffers = ("sought", "nearest")

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.gamma, self.decay = options["gamma"], options["decay"]
        self.projections = nn.ModuleDict({name: _head(backbone.features) for name in ("appearance", "speed")})
        self.predictors = nn.ModuleDict({name: _head(EMBEDDING) for name in self.projections})
        self.target: Any = averaged_copy(nn.ModuleDict({"backbone": backbone, "projections": self.projections}))
        self.videos = len(self.samples(shards, options)[0])
        self.bank: Tensor
        self.register_buffer("bank", torch.zeros(len(shards.videos), EMBEDDING))
        self.filled: Tensor
        self.register_buffer("filled", torch.zeros(len(shards.videos), dtype=torch.bool))

    @staticmethod
    def check(options: dict) -> None:
        check_speeds(options["speeds"])

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return 2, config["clip_length"]

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for the highest speed."""
        return shards.long_enough(max(options["speeds"]) * (shards.config["clip_length"] - 1) + 1)

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        speeds = draw.rng.choice(draw.options["speeds"], 2, replace=False)
        return np.stack([random_clip(reader, video, speed, draw.rng) for speed in speeds]), {
            "speed": speeds.astype(np.int64)
        }

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return NORMALISED

    @classmethod
    def at_chance(cls, means: dict[str, float], samples: int) -> str:
        return like_a_constant("appearance loss", means.get("appearance", 0.0), means.get("constant", 1.0))

    def networks(self) -> list[nn.Module]:
        return [self.target["backbone"]]

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        speeds = batch.labels["speed"][0].tolist()
        lines = ["appearance: the other clip of the video"]
        lines.append(
            f"speed: a clip of a similar video at speed {speeds[0]}, which the network selects during training"
        )
        return lines, [(f"speed {speed}", clip) for speed, clip in zip(speeds, batch.clips, strict=True)]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels: speed int64 [B, 2]. See `consistency` for the metrics."""
        first, second = batch.clips.unflatten(0, (-1, 2)).unbind(1)
        with torch.no_grad():
            appearance = self._averaged("appearance", second)
            other = batch.clips_of(self.neighbours(appearance, batch.video), _at_the_speed_of_the_first)
            targets = {"appearance": appearance, "speed": self._averaged("speed", other)}
        x = embedding(backbone, first)
        online = {name: g(x) for name, g in self.projections.items()}
        predicted = {name: unit(self.predictors[name](projected)) for name, projected in online.items()}
        if self.training:
            with torch.no_grad():
                self.bank = remembered(self.bank, batch.video, unit(online["appearance"]))
                self.filled = self.filled.index_fill(0, distributed.gather(batch.video)[0], True)
        return consistency(predicted, targets, self.gamma)

    def _averaged(self, name: str, clips: Tensor) -> Tensor:
        """Unit vectors float32 [B, EMBEDDING] that the averaged network computes for clips [B, 3, T, H, W]."""
        return unit(self.target["projections"][name](embedding(self.target["backbone"], clips)))

    def neighbours(self, appearance: Tensor, video: Tensor) -> Tensor:
        """Rows int64 [B] of the videos with the nearest entries, other than the samples' rows `video` int64 [B]; the samples'
        rows themselves if there is no other entry or the bank is not full yet."""
        with torch.autocast(appearance.device.type, enabled=False):
            similarity = appearance @ self.bank.T
        similarity = similarity.masked_fill(~self.filled, -torch.inf).scatter(1, video[:, None], -torch.inf)
        highest, rows = similarity.max(1)
        return torch.where((self.filled.sum() >= self.videos) & (highest > -torch.inf), rows, video)

    def after_step(self, backbone: Stages, progress: float) -> None:
        online = nn.ModuleDict({"backbone": backbone, "projections": self.projections})
        update_ema(self.target, online, target_decay(self.decay, progress))


def consistency(predicted: dict[str, Tensor], targets: dict[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """Squared distances of the predicted vectors from their targets, both unit vectors float32 [B, d] of "appearance" and
    "speed": each loss, their sum weighted by gamma, and:

    spread:   of the targets of appearance, see `contrast.spread`
    constant: the appearance loss of the best prediction that is the same for all samples of the step, 2 - 2 |mean|; below it
              the network has learnt more than the mean direction of the averaged network's vectors
    """
    losses = {name: distributed.mean((predicted[name] - target).square().sum(1)) for name, target in targets.items()}
    deviation, mean = spread(targets["appearance"])
    return {
        "loss": gamma * losses["speed"] + (1 - gamma) * losses["appearance"],
        **losses,
        "spread": deviation,
        "constant": 2 - 2 * mean,
    }


def _at_the_speed_of_the_first(reader: ShardReader, video: int, labels: dict[str, Tensor], draw: Draw) -> np.ndarray:
    """Frames int64 [T] of a clip of a video, at the speed of the first clip in the sample with these labels."""
    return random_clip(reader, video, int(labels["speed"][0]), draw.rng)


def _head(inputs: int) -> nn.Sequential:
    return projection_head(inputs, HIDDEN, EMBEDDING, batch_norm=True)
