import numpy as np
import pytest
from torch import nn

from tests.trainer.planted import Noise, SeesClass, kept_scores, write_colored
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols.smoothness import Smoothness, by_distance, ordered_triples, whole_clips
from trainer.evaluate.results import headline, read_results


def test_by_distance_equals_slow_pairs():
    rng = np.random.default_rng(0)
    owner = np.array([0] * 4 + [1] * 6 + [2])
    x = rng.normal(size=(11, 5))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    inside, outside = by_distance(x, owner)
    pairs = [(i, j, float(x[i] @ x[j])) for i in range(11) for j in range(11)]
    for step in range(6):
        values = [s for i, j, s in pairs if owner[i] == owner[j] and j - i == step]
        assert inside[step] == pytest.approx(np.mean(values), rel=1e-5)
    assert outside == pytest.approx(np.mean([s for i, j, s in pairs if owner[i] != owner[j]]), rel=1e-5)
    assert np.isnan(by_distance(x[:4], owner[:4])[1])


def test_ordered_triples_by_hand():
    angles = np.deg2rad([0, 10, 20, 30])
    line = 5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    assert ordered_triples(line) == 1
    assert ordered_triples(line[[0, 3, 1]]) == 0  # one triple, whose third is nearer
    assert ordered_triples(line[[0, 0, 0, 0, 0]]) == 0.5 == ordered_triples(line[:2])


def test_clips_follow_one_another():
    assert whole_clips(47, 16)[:, 0].tolist() == [0, 16] and whole_clips(15, 16).shape == (0, 16)


def test_planted_features(tmp_path, run, monkeypatch):
    """A network that sees the class is the same at any distance, noise that is new in each clip is far at any."""
    write_colored(tmp_path / "colors" / "00000.h5", 8, length=64, splits=())
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass(), "random": Noise()})
    result = measure("smoothness", tmp_path, run, compute=Compute(4, 0, "cpu"))
    triples = {row["network"]: row for row in result["rows"] if row["metric"] == "ordered triples"}
    assert (triples["pretrained"]["value"], triples["chance"]["value"]) == (50, 50)  # ties all
    assert abs(triples["random"]["value"] - 50) < 25 and len(kept_scores(result).items) == 8
    assert (
        headline(next(one for one in read_results(run)[0] if one.name == "smoothness"))["metric"] == "ordered triples"
    )
    found = {(row["network"], row["distance"]): row["value"] for row in result["rows"] if "distance" in row}
    assert [found["pretrained", step] for step in range(8, 49, 8)] == pytest.approx([100] * 6)
    assert found["pretrained", "other video"] == pytest.approx(100 * 8 / 56)  # one of seven others has its class
    assert [found["random", step] for step in (8, 16, 40)] == pytest.approx([found["random", "other video"]] * 3, abs=6)
    assert found["random", 8] < 90 and len(found) == 14
    told = "a moment is conv5, mean over space and time, of a clip of 16 frames, one every 8 frames"
    assert told in result["protocol"]["views"] and told in Smoothness.format_table(result)
    assert result["protocol"][
        "items"
    ] == "8 videos, 56 moments of 8 videos" and "other video" in Smoothness.format_table(result)
    again = measure("smoothness", tmp_path, run, compute=Compute(3, 2, "cpu"))
    assert again["rows"] == result["rows"]


class Brightness(nn.Module):
    """2D: each frame by itself."""

    def forward(self, x):
        mean = x.mean((1, 3, 4))[:, None, :, None, None]
        return {"conv5": nn.functional.pad(mean + 3, (0, 0, 0, 0, 0, 0, 0, 1), value=1.0)}


def test_frames_of_a_2d_network_are_moments(tmp_path, run, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 3, length=32, splits=())
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Brightness()})
    result = measure("smoothness", tmp_path, run, compute=Compute(4, 0, "cpu"))
    assert result["protocol"]["views"].endswith("a moment is conv5, mean over space, of a frame")
    assert [row["distance"] for row in result["rows"] if "distance" in row] == [*range(1, 32), "other video"]


def test_too_short(tmp_path, run):
    write_colored(tmp_path / "short" / "00000.h5", 3, length=9, splits=())
    with pytest.raises(TrainerError, match="short: no video has 16 frames"):
        measure("smoothness", tmp_path, run)
