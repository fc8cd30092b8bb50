"""Shared by the methods that compare several clips of a video with each other and with those of other videos: samples, heads,
contrastive losses, a queue of keys, and measures that detect a collapse."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Draw, Shards
from trainer.errors import SettingError, TrainerError
from trainer.methods.method import Method
from trainer.methods.parts import embedding, float32, projection_head, unit
from trainer.options import Option, at_least, between

COMPARED = "to compare them with each other", False  # see Method.needs_two


class SeveralClips(Method):
    """A method whose sample is a video. It sees several clips of it, each with its own start and view.

    The starts are uniform and independent of each other. The density of the distance between two of them then falls linearly,
    to 0 at the largest distance. CVRL draws the second clip from this distribution. [R. Qian et al., CVPR 2021, 3.3]
    """

    sample = "a video: `clips` clips of it, each with its own start"
    options = {
        "clips": Option(2, "clips of each video", at_least(2)),
        "stride": Option(1, "distance between consecutive frames of a clip, in frames", at_least(1)),
    }

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return options["clips"], config["clip_length"]

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for a clip."""
        return shards.long_enough(options["stride"] * (shards.config["clip_length"] - 1) + 1)

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        stride = draw.options["stride"]
        return np.stack([random_clip(reader, video, stride, draw.rng) for _ in range(draw.options["clips"])]), {}


def head_options(layers: int, hidden: int, outputs: int, batch_norm: bool) -> dict[str, Option]:
    """Options for a projection with these defaults, see `projection`."""
    return {
        "layers": Option(layers, "linear layers of the projection", at_least(1)),
        "hidden": Option(hidden, "width of its hidden layers; 0: that of its input", between(0, 65536)),
        "outputs": Option(outputs, "width of its output", at_least(1)),
        "batch_norm": Option(batch_norm, "batch normalisation before each of its ReLUs"),
    }


def projection(inputs: int, options: dict) -> nn.Sequential:
    """[B, inputs] -> [B, outputs], with the options of `head_options`."""
    hidden = options["hidden"] or inputs
    return projection_head(inputs, hidden, options["outputs"], options["batch_norm"], options["layers"])


def encoded(backbone: Stages, head: nn.Module, clips: Tensor) -> Tensor:
    """Unit vectors float32 [B, n, d] for n clips of each sample, [B, n, 3, T, H, W]."""
    return unit(head(embedding(backbone, clips.flatten(0, 1)))).unflatten(0, clips.shape[:2])


def pairs(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs each query with the key of every other clip of its sample: [B, n, d] for n clips -> twice [B, n (n - 1), d]."""
    others = range(1, queries.shape[1])
    return queries.repeat(1, len(others), 1), torch.cat([keys.roll(by, 1) for by in others], 1)


def check_several(method: str, shards: Shards, videos: int) -> None:
    """Raises TrainerError if a method that compares videos has only one."""
    if videos < 2:
        raise TrainerError(
            f"{method} compares videos, and {shards.dataset} has {videos} that it can train on; it needs 2 or more"
        )


def random_clip(reader: ShardReader, video: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Frames int64 [T] of a clip of a video, `stride` apart, with a uniform start."""
    offsets = stride * np.arange(reader.clip_length)
    start = rng.integers(reader.arrays["videos/n_frames"][video] - offsets[-1])
    return reader.arrays["videos/first_frame"][video] + start + offsets


@float32
def contrastive(z: Tensor, group: Tensor, temperature: float) -> Tensor:
    """Mean of -log(e^s(i,j) / (e^s(i,j) + sum over k of other groups e^s(i,k))), s = z_i z_j / temperature, over all ordered
    pairs i, j of the same group: first over a clip's positives j, then over the clips i that have one. [thesis eq. 4.3
    with the video as group, eq. 4.4 with the pace; with two clips of each video it is NT-Xent: T. Chen et al., SimCLR,
    ICML 2020, alg. 1]

    z: float32 [N, d]; group: int64 [N]; both are joined over all processes.
    """
    everything, _ = distributed.gather(z)
    similarity = z @ everything.T / temperature  # [N, all]
    same, positive = belonging(group)
    others = similarity.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    terms, count = F.softplus(others - similarity), positive.sum(1)
    return distributed.mean(terms.masked_fill(~positive, 0).sum(1) / count.clamp(min=1), count > 0)


def belonging(group: Tensor) -> tuple[Tensor, Tensor]:
    """For groups int64 [N] of this process: whether each clip of all processes has the same group, and whether it also is a
    different clip, bool [N, all]."""
    groups, begin = distributed.gather(group)
    rows = torch.arange(len(group), device=group.device)
    same = group[:, None] == groups
    return same, same.scatter(1, begin + rows[:, None], False)


@float32
def nearest(z: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """For z float32 [N, d] and groups int64 [N]: whether the most similar other clip of all processes has the same group, and
    the probability of that by chance, float32 [N]."""
    everything, begin = distributed.gather(z)
    rows = begin + torch.arange(len(z), device=z.device)
    chosen = (z @ everything.T).scatter(1, rows[:, None], -torch.inf).argmax(1, keepdim=True)
    _, positive = belonging(group)
    return positive.gather(1, chosen)[:, 0].float(), positive.float().sum(1) / max(1, len(everything) - 1)


def infonce(logits: Tensor) -> Tensor:
    """-log(e^l_0 / sum_j e^l_j), float32 [B]. logits: [B, 1 + K], the positive first, -inf for a missing negative."""
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="none")


class Queue(nn.Module):
    """The newest keys of all processes, oldest first, and their videos. The queue is empty at the start.

    keys: float32 [size, d]; video: int64 [size], rows of Shards.videos, -1 if there is no key yet
    """

    keys: Tensor
    video: Tensor

    def __init__(self, size: int, dimensions: int):
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dimensions))
        self.register_buffer("video", torch.full((size,), -1))

    @float32
    def products(self, queries: Tensor, positives: Tensor, video: Tensor) -> Tensor:
        """Products of each query with its positive, then with the keys of other videos, float32 [B, 1 + size]; -inf if a key is
        missing or belongs to the query's video. queries, positives: [B, d]; video: int64 [B]."""
        absent = (self.video == video[:, None]) | (self.video < 0)
        others = (queries @ self.keys.T).masked_fill(absent, -torch.inf)
        return torch.cat([(queries * positives).sum(1, keepdim=True), others], 1)

    def append(self, keys: Tensor, video: Tensor) -> None:
        """Add keys [B, d] of videos int64 [B] from every process, in the order of the processes, and drop as many of the
        oldest. The tensors are replaced, since gradients may still need the old keys."""
        for name, new in (("keys", keys.detach().float()), ("video", video)):
            old, new = getattr(self, name), distributed.gather(new)[0]
            setattr(self, name, torch.cat([old[len(new) :], new[-len(old) :]]))


def spread(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """For unit vectors float32 [B, d] of all processes: the standard deviation over the samples, averaged over the dimensions,
    times the square root of d, which is 0 if all vectors are equal and 1 if they are spread evenly; and the length of their
    mean, 1 and 0 in these cases."""
    everything, _ = distributed.gather(vectors)
    return everything.std(0, correction=0).mean() * math.sqrt(everything.shape[1]), everything.mean(0).norm()


def like_a_constant(name: str, value: float, constant: float) -> str:
    """See Method.at_chance. A distance from the targets within 2 % of that of the best constant prediction is no better than
    chance."""
    return "" if value < 0.98 * constant else f"{name} {value:.3f}, that of the best constant prediction {constant:.3f}"


def check_speeds(speeds: list[int]) -> None:
    """Raises SettingError unless there are two or more different speeds."""
    if not all(speed > 0 for speed in speeds) or not 1 < len(set(speeds)) == len(speeds):
        raise SettingError(f"speeds is {speeds}, expected two or more different whole numbers from 1, e.g. [1, 2]")
