"""Videos whose class is their colour, a network that sees it, and one that returns noise."""

import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.synthetic import write_shard
from trainer import data
from trainer.evaluate.metrics import ItemScores
from trainer.evaluate.results import read_scores, write_scores

COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)])


def colored(seed: int, n: int) -> np.ndarray:
    """Frames of the color of class `seed % 4` with noise of their own, RGB uint8 [n, 40, 48, 3]."""
    noise = np.random.default_rng(seed).integers(-30, 31, (n, 40, 48, 3))
    return np.clip(COLORS[seed % 4] + noise, 0, 255).astype(np.uint8)


def write_colored(path, videos: int, length=24, **options) -> list[str]:
    """A shard of videos of classes 0, 1, 2, 3, 0, 1, ... and their labels."""
    labels = [f"color{video % 4}" for video in range(videos)]
    write_shard(path, [length] * videos, labels=labels, frames=colored, **options)
    return labels


def group(monkeypatch, groups: dict[str, str]) -> None:
    """Have the videos (by id) belong to these source groups."""
    original = data.Shards.text
    monkeypatch.setattr(
        data.Shards,
        "text",
        lambda self, key: (
            [groups[name] for name in original(self, "videos/id")] if key == "videos/group" else original(self, key)
        ),
    )


def kept_scores(result: dict) -> ItemScores:
    """What a result keeps of every tested item, from which its numbers follow."""
    kept = read_scores(Path(result["file"]).with_suffix(".npz"))
    measured = {i: row["value"] for i, row in enumerate(result["rows"]) if "low" in row}
    assert kept.answers.keys() == measured.keys()
    for i, value in measured.items():
        assert 100 * np.nanmean(kept.answers[i].right) == pytest.approx(value, abs=1e-4)
    return kept


def keep(path: Path, items: ItemScores, rows: Iterable[dict]) -> ItemScores:
    """Items with the answers behind rows of a result, as they are read from the file beside it."""
    write_scores(path, replace(items, answers={i: row["answers"] for i, row in enumerate(rows)}))
    return read_scores(path)


class SeesClass(nn.Module):
    """Stage features are the one-hot class of the clip."""

    features = 4

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        color = clip.mean((1, 2, 3)).cpu().numpy() * 0.225 + 0.45
        distance = [((color - wanted / 255) ** 2).sum() for wanted in COLORS]
        return torch.eye(4)[int(np.argmin(distance))]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        code = torch.stack([self.encode(clip) for clip in x]).to(x.device)
        stage = code[:, :, None, None, None].expand(-1, -1, 2, 3, 3).contiguous()
        return {"conv3": stage, "conv4": stage, "conv5": stage}


class Noise(SeesClass):
    """Stage features are random numbers that depend on the clip alone."""

    features = 16

    def encode(self, clip):
        generator = torch.Generator().manual_seed(zlib.crc32(clip.cpu().contiguous().numpy().tobytes()))
        return torch.rand(16, generator=generator)
