"""Pretext methods by name, and the network that trains one or several of them on one backbone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainer.backbones import BACKBONES
from trainer.data import Batch, Shards
from trainer.methods.ascnet import ASCNet
from trainer.methods.method import Method, average
from trainer.methods.order import Order
from trainer.methods.pace import Pace
from trainer.methods.recognition import Recognition
from trainer.methods.rotation import Rotation
from trainer.methods.skip_clip import SkipClip
from trainer.methods.statistics import Statistics
from trainer.methods.tce import TCE

METHODS: dict[str, type[Method]] = {
    "statistics": Statistics,
    "pace": Pace,
    "order": Order,
    "skip_clip": SkipClip,
    "tce": TCE,
    "ascnet": ASCNet,
    "rotation": Rotation,
    "recognition": Recognition,
}


class Network(nn.Module):
    """One backbone, the heads of its methods side by side and, with settings.ema, averaged weights of all of it."""

    def __init__(self, settings, shards: Shards, backbone: nn.Module | None = None):
        super().__init__()
        self.backbone = build_backbone(settings) if backbone is None else backbone
        self.methods = nn.ModuleDict(
            {name: METHODS[name](self.backbone, settings.options[name], shards) for name in settings.method.split("+")}
        )
        self.weights, self.decay = dict(zip(self.methods, settings.weights, strict=True)), settings.ema
        self.ema = None
        if self.decay:
            self.ema = copy.deepcopy(nn.ModuleDict({"backbone": self.backbone, "methods": self.methods}))
            self.ema.requires_grad_(False)

    def forward(self, batches: dict[str, Batch], shares: dict[str, float] | None = None) -> dict[str, Tensor]:
        """The methods' metrics; of several methods the weighted sum of the losses, and each metric as "method.name".

        shares: factors for each method's metrics, the parts of a step's samples that these batches hold.
        """
        metrics = {}
        for name, batch in batches.items():
            share = shares[name] if shares else 1.0
            metrics[name] = {
                key: share * value.float() for key, value in self.methods[name](self.backbone, batch).items()
            }
        if len(metrics) == 1:
            return next(iter(metrics.values()))
        loss = sum(self.weights[name] * own["loss"] for name, own in metrics.items())
        return {"loss": loss} | {f"{name}.{key}": value for name, own in metrics.items() for key, value in own.items()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Averages, after a step of the optimiser."""
        for method in self.methods.values():
            method.after_step(self.backbone, progress)
        if self.ema is not None:
            source = nn.ModuleDict({"backbone": self.backbone, "methods": self.methods})
            average(self.ema, source, self.decay)
            for old, new in zip(self.ema.buffers(), source.buffers(), strict=True):
                old.copy_(new)


def build_backbone(settings) -> nn.Module:
    """The backbone with the initial weights of settings.seed."""
    torch.manual_seed(settings.seed)
    return BACKBONES[settings.backbone](settings.width)
