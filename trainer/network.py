"""The network that trains one or several methods on one backbone."""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import Tensor, nn

from trainer import backbones, distributed
from trainer.backbones.layers import Stages
from trainer.checkpoint import Checkpoint, backbone_weights
from trainer.data import Batch, Shards
from trainer.methods import method_class, module_name
from trainer.methods.method import Method
from trainer.methods.parts import averaged_copy, update_ema
from trainer.settings import Settings


class Network(nn.Module):
    """One backbone, the heads of its methods side by side and, with settings.ema, averaged weights of all of it."""

    def __init__(self, settings: Settings, shards: Shards, backbone: Stages | None = None) -> None:
        super().__init__()
        self.backbone = build_backbone(settings) if backbone is None else backbone
        self.methods = nn.ModuleDict(
            {
                module_name(name): method_class(name)(self.backbone, settings.options[name], shards)
                for name in settings.methods
            }
        )
        self.weights, self.decay = dict(zip(settings.methods, settings.weights, strict=True)), settings.ema
        self.ema = None
        if self.decay:
            self.ema = averaged_copy(nn.ModuleDict({"backbone": self.backbone, "methods": self.methods}))

    def forward(self, batches: dict[str, Batch]) -> dict[str, Tensor]:
        """The metrics of the method, times the batch's share of the step; for several methods the weighted sum of the
        losses, and each metric as "method.name"."""
        metrics = {}
        for name, batch in batches.items():
            with distributed.sharing(batch.counts):
                found = self.method(name)(self.backbone, batch)
            metrics[name] = {key: batch.share * value.float() for key, value in found.items()}
        if len(metrics) == 1:
            return next(iter(metrics.values()))
        loss = sum(self.weights[name] * found["loss"] for name, found in metrics.items())
        return {"loss": loss} | {
            f"{name}.{key}": value for name, found in metrics.items() for key, value in found.items()
        }

    def compile_networks(self) -> None:
        """Apply torch.compile to the backbone and the networks of the methods, for each of the few batch sizes."""
        networks = [self.backbone, *(each for name in self.weights for each in self.method(name).networks())]
        for network in networks:
            network.compile(dynamic=False)

    def method(self, name: str) -> Method:
        """One of the methods."""
        return cast(Method, self.methods[module_name(name)])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Update averages after a step of the optimiser. progress: share of the training that is done."""
        for name in self.weights:
            self.method(name).after_step(self.backbone, progress)
        if self.ema is not None:
            source = nn.ModuleDict({"backbone": self.backbone, "methods": self.methods})
            update_ema(self.ema, source, self.decay)
            if buffers := [*source.buffers()]:
                torch._foreach_copy_([*self.ema.buffers()], buffers)


@functools.cache
def stage_names(backbone: str, width: float) -> tuple[str, ...]:
    """Names of a backbone's stages, shallow to deep. Nothing is computed."""
    with torch.device("meta"):
        return tuple(backbones.create(backbone, width).eval()(torch.empty(1, 3, 16, 112, 112)))


def build_backbone(settings: Settings, meta: dict | None = None) -> Stages:
    """The backbone with the initial weights of settings.seed. meta: content of a run's checkpoint.json, from which it
    takes the input and the epsilon of batch normalisation."""
    torch.manual_seed(settings.seed)
    backbone = backbones.create(settings.backbone, settings.width)
    if meta is not None:
        backbone.expect(meta)
    return backbone


def trained_backbone(saved: Checkpoint) -> Stages:
    """The backbone of a checkpoint, in evaluation mode."""
    backbone = build_backbone(Settings(**saved.meta["settings"]), saved.meta)
    backbone.load_state_dict(backbone_weights(saved))
    return backbone.eval()
