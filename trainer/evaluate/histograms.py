"""Histograms in the place of a network, see `trainer.histograms`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from trainer.histograms import KINDS, VERSION, Flow, histogram
from trainer.inputs import OURS


class Histogram(nn.Module):
    """A histogram in the place of a backbone: network input float32 [B, 3, T, S, S] -> one stage [B, d, 1, 1, 1], named after the
    kind, one of KINDS."""

    poolings = ("mean",)

    def __init__(self, kind: str, flow: Flow) -> None:
        super().__init__()
        self.kind, self.flow = kind, flow
        self.register_buffer(
            "what", torch.tensor([*f"{kind} {VERSION}".encode()])
        )  # kept features are told apart by it

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pixels = OURS.pixels(x.permute(0, 2, 3, 4, 1).cpu().numpy())
        vectors = torch.from_numpy(np.stack([histogram(clip, self.kind, self.flow) for clip in pixels]))
        return {self.kind: vectors[:, :, None, None, None].to(x.device)}


def histograms(flow: Flow) -> Iterator[tuple[str, Histogram]]:
    """All kinds of histograms, by name."""
    return ((f"{kind} histogram", Histogram(kind, flow)) for kind in KINDS)
