"""BYOL on videos: a clip predicts the averaged network's output for another clip of its video. [J.-B. Grill et al.,
NeurIPS 2020; C. Feichtenhofer et al., CVPR 2021]"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Shards
from trainer.methods.contrast import (
    SeveralClips,
    encoded,
    head_options,
    like_a_constant,
    pairs,
    projection,
    spread,
)
from trainer.methods.parts import NORMALISED, averaged_copy, target_decay, update_ema
from trainer.options import POSITIVE, Option, between


class BYOL(SeveralClips):
    """Without negatives: an online network f, g, h follows an averaged one f', g'. The loss is -cos(h(g(f(x))), g'(f'(y))) / T,
    mean over all pairs of different clips x, y of a video, in both orders. [Feichtenhofer et al., eq. 3]"""

    task = "a clip predicts another clip of its video"
    source = "J.-B. Grill et al., NeurIPS 2020; C. Feichtenhofer et al., CVPR 2021"
    defaults = {  # on Kinetics-400 the optimiser of the papers is LARS, see the recipes
        "epochs": 200,  # of PySlowFast
        "batch_size": 64,  # of PySlowFast
        "lr": 0.1,  # assumed
        "momentum": 0.9,  # of PySlowFast
        "weight_decay": 1e-4,  # assumed
        "schedule": "cosine",  # of PySlowFast
        "drop_every": 100,  # assumed, for another schedule
        "jitter": "contrast",
        "sync_bn": True,  # of PySlowFast
    }
    options = SeveralClips.options | {
        **head_options(2, 4096, 256, True),  # of PySlowFast
        "temperature": Option(0.5, "the loss is divided by it", POSITIVE),  # of PySlowFast
        # of PySlowFast
        "decay": Option(0.996, "decay of the averaged network at the start, from which it rises to 1", between(0, 1)),
    }
    scored = False

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.clips, self.temperature = options["clips"], options["temperature"]
        self.decay = options["decay"]
        self.projection = projection(backbone.features, options)
        self.predictor = projection(options["outputs"], options)
        self.target: Any = averaged_copy(nn.ModuleDict({"backbone": backbone, "projection": self.projection}))

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return NORMALISED if options["batch_norm"] else ("", False)

    @classmethod
    def at_chance(cls, means: dict[str, float], samples: int) -> str:
        return like_a_constant("distance", means.get("distance", 0.0), means.get("constant", 1.0))

    def networks(self) -> list[nn.Module]:
        return [self.target["backbone"]]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """distance: 1 - cosine, mean over the pairs; constant: that of the best prediction that is the same for all clips of the
        step; spread: of the targets, see `contrast.spread`."""
        clips = batch.clips.unflatten(0, (-1, self.clips))
        predicted = encoded(backbone, nn.Sequential(self.projection, self.predictor), clips)
        with torch.no_grad():
            targets = encoded(self.target["backbone"], self.target["projection"], clips)
        one, other = pairs(predicted, targets)
        distance = 1 - distributed.mean((one * other).sum(2))
        deviation, mean = spread(targets.flatten(0, 1))
        return {
            "loss": (distance - 1) / self.temperature,
            "distance": distance,
            "spread": deviation,
            "constant": 1 - mean,
        }

    def after_step(self, backbone: Stages, progress: float) -> None:
        online = nn.ModuleDict({"backbone": backbone, "projection": self.projection})
        update_ema(self.target, online, target_decay(self.decay, progress))
