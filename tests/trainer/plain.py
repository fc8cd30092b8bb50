"""A backbone that loops can follow, and networks as loops over numbers."""

import math

import numpy as np
import torch
from torch import nn


class Colour(nn.Module):
    """A backbone of four features with weights."""

    features = 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 1)

    def forward(self, x):
        return {"conv1": self.conv(x)}


class Pixels(nn.Module):
    """A backbone whose last stage is the clip, its features the mean colour."""

    features = 3

    def forward(self, x):
        return {"conv1": x}


def slow_cross_entropy(logits, label):
    return math.log(sum(map(math.exp, logits))) - logits[label]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_linear(layer, row):
    """A linear layer, or a convolution whose kernel is 1."""
    out = [dot(weights, row) for weights in layer.weight.flatten(1).tolist()]
    return out if layer.bias is None else [y + b for y, b in zip(out, layer.bias.tolist(), strict=True)]


def slow_means(stage):
    """Mean of each channel over time and space."""
    return [sum(channel.flatten().tolist()) / channel.numel() for channel in stage]


def slow_norm(layer, rows):
    """Batch normalisation, in training over the rows, else by the running statistics."""
    columns = []
    known = zip(layer.running_mean.tolist(), layer.running_var.tolist(), strict=True)
    weights = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    for values, (mean, variance), (scale, shift) in zip(zip(*rows, strict=True), known, weights, strict=True):
        if layer.training:
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
        columns.append([(value - mean) / math.sqrt(variance + 1e-5) * scale + shift for value in values])
    return [*map(list, zip(*columns, strict=True))]


def slow_mlp(mlp, rows):
    """Linear layers, batch normalisation over the rows, ReLU."""
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            rows = [slow_linear(layer, row) for row in rows]
        elif isinstance(layer, nn.BatchNorm1d):
            rows = slow_norm(layer, rows)
        else:
            rows = [[max(0.0, x) for x in row] for row in rows]
    return rows


def slow_unit(rows):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def slow_features(backbone, clips):
    """Mean over time and space of a 1 x 1 x 1 convolution."""
    return [slow_linear(backbone.conv, slow_means(clip)) for clip in clips]


def network_input(clips: np.ndarray) -> torch.Tensor:
    """Clips uint8 [..., T, H, W, 3] as networks of one's own see them, float32 [..., 3, T, H, W]."""
    return torch.tensor((clips / 255 - 0.45) / 0.225).float().movedim(-1, -4)
