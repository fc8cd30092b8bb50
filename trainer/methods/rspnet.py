"""RSPNet: clips of a video are alike at any speed; and which of two clips is played as fast as a third? [P. Chen et
al., AAAI 2021, and their public code]"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.methods.contrast import Queue, check_several, check_speeds, infonce
from trainer.methods.method import Method, Shown
from trainer.methods.parts import averaged_copy, embedding, float32, unit, update_ema
from trainer.options import POSITIVE, Option, at_least, between

EMBEDDING, LONGEST = 128, 16384  # width of the heads, and the authors' queue


class RSPNet(Method):
    """Appearance (A-VID): distinguish a query's video from those in a queue, by a clip of it at the query's speed and by one at
    another speed; the two losses are added. Relative speed (RSP): the query is nearer to the clip at its speed, by a margin. An
    averaged network f', g' computes the keys, as in MoCo; g_A and g_M are one linear layer each.

    A sample is a video: a query, and two keys with the same first frame and the same view, so that they differ only in speed;
    the query's speed is drawn each time. The queue gets the keys at the other speed. [both as in the public code]
    """

    task = "clips of a video are alike at any speed; which of two is as fast as a third"
    sample = "a video: a clip, and two from another moment, only one of them as fast"
    source = "P. Chen et al., AAAI 2021"
    defaults = {  # of the authors' public code, for ResNet-18; its learning rate is for 64 videos in a step
        "epochs": 200,
        "batch_size": 64,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "drop_every": 100,  # assumed, for another schedule
        "jitter": "contrast",
        "sync_bn": True,  # ours; the code shuffles the keys over the GPUs
    }
    options = {
        "speeds": Option([1, 2], "two or more whole numbers"),
        "queue": Option(0, f"keys in the queue; 0: {LONGEST} or the number of videos, whichever is less", at_least(0)),
        "temperature": Option(0.07, "temperature of the similarities", POSITIVE),
        "decay": Option(0.999, "decay of the averaged network", between(0, 1)),
        "margin": Option(2.0, "margin between the two speeds, of similarities by temperature", at_least(0)),
        "speed_weight": Option(1.0, "weight of the speed loss; the appearance loss has weight 1", at_least(0)),
    }
    chances = {"speed_accuracy": 1 / 2}
    remembers_videos = True

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        check_several("rspnet", shards, len(self.samples(shards, options)[0]))
        self.temperature, self.decay = options["temperature"], options["decay"]
        self.margin, self.speed_weight = options["margin"], options["speed_weight"]
        self.heads = nn.ModuleDict({name: nn.Linear(backbone.features, EMBEDDING) for name in ("appearance", "speed")})
        self.target: Any = averaged_copy(nn.ModuleDict({"backbone": backbone, "heads": self.heads}))
        self.queue = Queue(options["queue"] or min(LONGEST, len(shards.videos)), EMBEDDING)
        if not options["queue"]:
            self.notes = (f"rspnet's queue holds {len(self.queue.video)} keys",)

    @staticmethod
    def check(options: dict) -> None:
        check_speeds(options["speeds"])

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return 3, config["clip_length"]

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for the highest speed."""
        return shards.long_enough(max(options["speeds"]) * (shards.config["clip_length"] - 1) + 1)

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of the query, of the key at its speed and of the key at another speed, int64 [3, T], and these two speeds."""
        _, same, other = draw.views
        other |= same
        speeds = draw.rng.choice(draw.options["speeds"], 2, replace=False).astype(np.int64)
        offsets = speeds[:, None] * np.arange(reader.clip_length)
        query, key = draw.rng.integers(reader.arrays["videos/n_frames"][video] - offsets.max(), size=2)
        frames = np.stack([query + offsets[0], key + offsets[0], key + offsets[1]])
        return reader.arrays["videos/first_frame"][video] + frames, {"speed": speeds}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        same, other = batch.labels["speed"][0].tolist()
        names = f"query, speed {same}", f"key, speed {same}", f"key, speed {other}"
        lines = ["appearance: both keys are of the query's video", "speed: the query is nearer to the key at its speed"]
        return lines, [*zip(names, batch.clips, strict=True)]

    def networks(self) -> list[nn.Module]:
        return [self.target["backbone"]]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels are only for display. accuracy: how often the key at the query's speed is more similar to it than every key in
        the queue; speed_accuracy: than the key at the other speed; loss: appearance plus weighted speed."""
        query, same, other = batch.clips.unflatten(0, (-1, 3)).unbind(1)
        with torch.no_grad():
            x = embedding(self.target["backbone"], torch.cat([same, other]))
            keys = {name: unit(head(x)).chunk(2) for name, head in self.target["heads"].items()}
        x = embedding(backbone, query)
        queries = {name: unit(head(x)) for name, head in self.heads.items()}
        same, other = (self.queue.products(queries["appearance"], key, batch.video) for key in keys["appearance"])
        appearance = distributed.mean(infonce(same / self.temperature) + infonce(other / self.temperature))
        nearer = closer(queries["speed"], *keys["speed"])
        speed = distributed.mean(F.relu(self.margin - nearer / self.temperature))
        if self.training:
            self.queue.append(keys["appearance"][1], batch.video)
        return {
            "loss": appearance + self.speed_weight * speed,
            "accuracy": distributed.mean((same.argmax(1) == 0).float()),
            "chance": distributed.mean(1 / (same > -torch.inf).sum(1)),
            "appearance": appearance,
            "speed": speed,
            "speed_accuracy": distributed.mean((nearer > 0).float()),
        }

    def after_step(self, backbone: Stages, progress: float) -> None:
        update_ema(self.target, nn.ModuleDict({"backbone": backbone, "heads": self.heads}), self.decay)


@float32
def closer(query: Tensor, same: Tensor, other: Tensor) -> Tensor:
    """How much more similar a query is to one key than to another, float32 [B]; all are unit vectors [B, d]."""
    return (query * (same - other)).sum(1)
