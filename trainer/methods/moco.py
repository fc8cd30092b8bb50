"""MoCo on videos: clips of one video are alike, those of other videos in a queue are not. [K. He et al., CVPR 2020;
C. Feichtenhofer et al., CVPR 2021; InfoNCE of T. Han et al., CoCLR, NeurIPS 2020]"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Shards
from trainer.methods.contrast import (
    Queue,
    SeveralClips,
    check_several,
    encoded,
    head_options,
    infonce,
    pairs,
    projection,
)
from trainer.methods.parts import NORMALISED, averaged_copy, target_decay, update_ema
from trainer.options import POSITIVE, Option, at_least, between

LONGEST = 65536  # queue, of MoCo and PySlowFast


class MoCo(SeveralClips):
    """Distinguish the key, another clip of the query's video, from the keys of other videos in a queue. The network f, g
    computes the queries, an averaged one f', g' the keys. Keys of the query's video are not negatives; the queue is empty at
    the start.

    If query and key were normalised over the same batch, its statistics would reveal the key among those of earlier batches.
    The papers therefore shuffle the keys over the GPUs; here f', g' normalises as in evaluation, with averages of the
    running statistics of f, g by the same decay, which also works in a single process. [Z. Cai et al., EMAN, CVPR 2021]
    """

    task = "clips of a video are alike, those of other videos in a queue are not"
    source = "K. He et al., CVPR 2020; C. Feichtenhofer et al., CVPR 2021"
    defaults = {
        "epochs": 200,  # of PySlowFast
        "batch_size": 64,  # of PySlowFast
        "lr": 0.1,  # of PySlowFast, whose loss is the sum over the query clips, ours the mean
        "momentum": 0.9,  # of PySlowFast
        "weight_decay": 1e-4,  # of PySlowFast
        "schedule": "cosine",  # of PySlowFast
        "drop_every": 100,  # assumed, for another schedule
        "jitter": "contrast",
        "sync_bn": True,  # assumed
    }
    options = SeveralClips.options | {
        **head_options(3, 2048, 128, False),  # of PySlowFast
        "temperature": Option(0.1, "temperature of the similarities", POSITIVE),  # of PySlowFast
        "queue": Option(0, f"keys in the queue; 0: {LONGEST} or the number of videos, whichever is less", at_least(0)),
        "decay": Option(0.994, "decay of the averaged network", between(0, 1)),  # of PySlowFast
        "rising": Option(True, "let the decay rise to 1, by a cosine"),  # of PySlowFast
        "symmetric": Option(True, "every clip is a query for the others; else only the first one"),  # of PySlowFast
    }
    remembers_videos = True

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        check_several("moco", shards, len(self.samples(shards, options)[0]))
        self.clips, self.temperature = options["clips"], options["temperature"]
        self.decay, self.rising, self.symmetric = (options[name] for name in ("decay", "rising", "symmetric"))
        self.projection = projection(backbone.features, options)
        online = nn.ModuleDict({"backbone": backbone, "projection": self.projection})
        self.target: Any = averaged_copy(online).eval()
        self.queue = Queue(options["queue"] or min(LONGEST, len(shards.videos)), options["outputs"])
        if not options["queue"]:
            self.notes = (f"moco's queue holds {len(self.queue.video)} keys",)

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return NORMALISED if options["batch_norm"] else ("", False)

    def train(self, mode: bool = True) -> MoCo:
        super().train(mode)
        self.target.eval()
        return self

    def networks(self) -> list[nn.Module]:
        return [self.target["backbone"]]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """accuracy: how often the positive key is more similar to the query than every key in the queue."""
        clips = batch.clips.unflatten(0, (-1, self.clips))
        asking, answering = (clips, clips) if self.symmetric else (clips[:, :1], clips[:, 1:])
        with torch.no_grad():
            keys = encoded(self.target["backbone"], self.target["projection"], answering)
        queries = encoded(backbone, self.projection, asking)
        queries, positives = pairs(queries, keys) if self.symmetric else (queries.expand_as(keys), keys)
        products = self.queue.products(
            queries.flatten(0, 1), positives.flatten(0, 1), batch.video.repeat_interleave(positives.shape[1])
        )
        if self.training:
            self.queue.append(keys.flatten(0, 1), batch.video.repeat_interleave(keys.shape[1]))
        return {
            "loss": distributed.mean(infonce(products / self.temperature)),
            "accuracy": distributed.mean((products.argmax(1) == 0).float()),
            "chance": distributed.mean(1 / (products > -torch.inf).sum(1)),
        }

    def after_step(self, backbone: Stages, progress: float) -> None:
        online = nn.ModuleDict({"backbone": backbone, "projection": self.projection})
        decay = target_decay(self.decay, progress) if self.rising else self.decay
        update_ema(self.target, online, decay)
        statistics = ([b for b in network.buffers() if b.is_floating_point()] for network in (self.target, online))
        if averaged := next(statistics):
            torch._foreach_lerp_(averaged, next(statistics), 1 - decay)
