"""Pretext methods by name.

A method is an nn.Module made of (backbone, shard configuration, settings) with
    defaults                            the published settings
    samples(shards)                     its samples, int64 [n, 2] (shard, item), how many videos it leaves out, and why
    read(reader, item, epoch, view)     frames and labels of one sample
    forward(clips, labels)              scalars by name: "loss", "accuracy" and "chance" where there are any, and others
"""

import torch
from torch import nn

from trainer.backbones import BACKBONES
from trainer.methods.pace import Pace
from trainer.methods.statistics import Statistics

METHODS = {"pace": Pace, "statistics": Statistics}


def build(settings, config: dict) -> nn.Module:
    """The method's network with the initial weights of settings.seed; config: the shards' configuration."""
    torch.manual_seed(settings.seed)
    return METHODS[settings.method](BACKBONES[settings.backbone](settings.width), config, settings)
