"""LeJEPA: clips of a video have the same embedding, and the embeddings of all videos are normally distributed. [R. Balestriero,
Y. LeCun, arXiv 2511.08544]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Shards
from trainer.data.keys import DIRECTION
from trainer.methods.contrast import COMPARED, SeveralClips, head_options, projection
from trainer.methods.parts import embedding, float32
from trainer.options import Option, at_least, between

KNOTS, LIMIT = 17, 3.0  # of the characteristic function, from 0 to the limit


class LeJEPA(SeveralClips):
    """It has no averaged copy, no queue and no negatives. SIGReg prevents a collapse of the embeddings: it compares their
    distribution with the normal one, see `sigreg`.

    (1 - weight) invariance + weight sigreg: invariance is the mean over clips, videos and dimensions of (z - mean of z over the
    video's clips)^2. All clips are treated alike. The authors use 2 larger and 6 smaller crops of an image and average only the
    larger ones; this is not implemented here.
    """

    task = "clips of a video have the same embedding, those of all videos are normally distributed"
    source = "R. Balestriero, Y. LeCun, arXiv 2511.08544"
    defaults = {  # of the authors' public code, for images and ResNets
        "epochs": 100,
        "batch_size": 64,  # assumed; the method needs no negatives, so that small batches suffice
        "optimizer": "adamw",
        "lr": 5e-4,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "drop_every": 50,  # assumed, for another schedule
        "jitter": "contrast",
        "sync_bn": True,  # assumed
    }
    options = SeveralClips.options | {
        "clips": Option(4, "clips of each video", at_least(2)),
        **head_options(3, 2048, 64, True),  # outputs: the authors' are 16 to 128
        "weight": Option(0.05, "weight of SIGReg; the invariance gets the rest", between(0, 1)),
        "directions": Option(256, "random directions on which SIGReg projects, new ones in each step", at_least(1)),
    }
    scored = False

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.clips, self.weight = options["clips"], options["weight"]
        self.dimensions = options["outputs"], options["directions"]
        self.projection = projection(backbone.features, options)

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return COMPARED if options["weight"] else ("", False)

    @classmethod
    def at_chance(cls, means: dict[str, float], samples: int) -> str:
        """An invariance within 2 % of that of clips unrelated to their videos is no better than chance."""
        invariance, unrelated = means.get("invariance", 0.0), means.get("unrelated", 1.0)
        if invariance < 0.98 * unrelated:
            return ""
        return f"invariance {invariance:.3g}, that of unrelated clips {unrelated:.3g}"

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """See `losses`."""
        z = self.projection(embedding(backbone, batch.clips)).float().unflatten(0, (-1, self.clips))
        return losses(z, directions(batch.key, *self.dimensions, z.device), self.weight)


@float32
def losses(z: Tensor, along: Tensor, weight: float) -> dict[str, Tensor]:
    """invariance, sigreg, their weighted sum loss, and unrelated, the expected invariance if clips were unrelated to their
    videos.

    z: float32 [B, V, d], for V clips of each video; along: see `sigreg`
    """
    invariance = distributed.mean((z - z.mean(1, keepdim=True)).square())
    everything, _ = distributed.gather(z)
    gaussian = sigreg(everything, along)
    clips, spread = z.shape[1], everything.detach().flatten(0, 1).var(0).mean()
    return {
        "loss": (1 - weight) * invariance + weight * gaussian,
        "invariance": invariance,
        "sigreg": gaussian,
        "unrelated": spread * (clips - 1) / clips,
    }


def sigreg(z: Tensor, along: Tensor) -> Tensor:
    """Mean over directions and clips of the Epps-Pulley statistic against the standard normal distribution of N projections x,

        N integral of |mean e^(i t x) - e^(-t^2 / 2)|^2 e^(-t^2 / 2) dt over t = -3..3

    by the trapezoidal rule over 17 values of t from 0, doubled since the function is even. It is about 1 for a normal sample of
    any size, and grows with N for others. [the authors' public code]

    z: float32 [N, V, d], a clip of each of N videos at a time; along: unit vectors, float32 [d, directions]
    """
    t = torch.linspace(0, LIMIT, KNOTS, device=z.device)
    normal = torch.exp(-t.square() / 2)
    angle = (z @ along)[..., None] * t  # [N, V, directions, t]
    difference = (angle.cos().mean(0) - normal).square() + angle.sin().mean(0).square()
    return 2 * len(z) * torch.trapezoid(difference * normal, dx=LIMIT / (KNOTS - 1)).mean()


def directions(key: tuple[int, int], dimensions: int, count: int, device: torch.device) -> Tensor:
    """Random unit vectors, float32 [dimensions, count], which depend only on the key (seed, step), so that all processes get
    the same."""
    x = np.random.default_rng((DIRECTION, *key)).standard_normal((dimensions, count), np.float32)
    drawn = torch.from_numpy(x / np.linalg.norm(x, axis=0))
    return drawn if device.type == "cpu" else drawn.pin_memory().to(device, non_blocking=True)
