"""Attentive probe: its form, its fit, what it sees that a mean does not, and the cells that it is made of."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.optimize import minimize
from torch import nn

from cli.main import main
from tests.trainer.planted import kept_scores, write_colored
from tests.trainer.studies import make_study, write_study
from tests.trainer.synthetic import write_shard
from trainer import data
from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate import features
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols import attentive
from trainer.evaluate.protocols.attentive import attend
from trainer.evaluate.protocols.linear import predictions
from trainer.study.file import read

ONE = Compute(8, 0, "cpu")


def marked(n: int, seed: int = 0):
    """Cells float32 [n, 6, 4] of which one is marked in channel 0 and has the class in channel 1; the others make up for it, so
    that the mean over cells says nothing; and the classes."""
    rng, targets = np.random.default_rng(seed), np.arange(n) % 2
    x = rng.normal(size=(n, 6, 4), scale=0.3)
    cell, sign = rng.integers(6, size=n), 2 * targets - 1
    x[:, :, 1] -= 0.4 * sign[:, None]
    x[np.arange(n), cell, 1] += 2.4 * sign
    x[np.arange(n), cell, 0] += 3
    return x.astype(np.float32), targets


def cells_of(x):
    return lambda places: torch.from_numpy(x[places[:, 0]])


def places(begin, end):
    return np.arange(begin, end)[:, None]


def test_attention_sees_what_the_mean_hides():
    (x, targets), (test, wanted) = marked(48), marked(40, seed=1)
    both = np.concatenate([x, test])
    found = attend(cells_of(both), places(0, 48), targets + 3, places(48, 88), [10.0, 100.0])
    assert (found == wanted + 3).mean(1).tolist() == [1, 1]
    assert (predictions(x.mean(1), targets, test.mean(1), [10.0])[0] == wanted).mean() < 0.7
    again = attend(cells_of(both), places(0, 48), targets + 3, places(48, 88), [10.0, 100.0])
    assert (found == again).all()
    assert (attend(cells_of(both), places(0, 4), np.full(4, 7), places(48, 51), [1.0]) == 7).all()


def test_the_fit_reaches_the_minimum_of_the_form_in_the_docs(monkeypatch):
    """The loss written out in NumPy, minimised by L-BFGS from where the probe ends: it falls no further."""
    (x, targets), c, kept = marked(30), 10.0, []
    original = torch.optim.Adam

    def adam(parameters, rate):
        kept[:] = parameters
        return original(parameters, rate)

    monkeypatch.setattr(torch.optim, "Adam", adam)
    attend(cells_of(x), places(0, 30), targets, places(0, 30), [c])
    d, z = 4, (x - x.mean((0, 1))) / x.std((0, 1))
    z = z.astype(np.float64) / np.sqrt(d)

    def loss(parameters):
        u, w, b = parameters[:d], parameters[d : 3 * d].reshape(2, d), parameters[3 * d :]
        total = 0.0
        for cells, target in zip(z, targets, strict=True):
            a = np.exp(cells @ u)
            logits = w @ (a / a.sum() @ cells) + b
            total += np.log(np.exp(logits).sum()) - logits[target]
        return total / len(z) + ((w**2).sum() + (u**2).sum()) / (2 * c * len(z))

    query, weight, bias = (np.asarray(of.detach(), np.float64)[0] for of in kept)
    reached = np.concatenate([query * np.sqrt(d), (weight * np.sqrt(d)).ravel(), bias])
    assert loss(np.zeros(3 * d + 2)) == pytest.approx(np.log(2))
    assert loss(reached) == pytest.approx(minimize(loss, reached).fun, rel=0.02) and loss(reached) < 0.4


def test_balanced_classes_weigh_the_same():
    x = np.zeros((12, 3, 2), np.float32)  # nothing to see: the larger class without weights, no side with them
    x[:, :, 0] = np.random.default_rng(0).normal(size=(12, 1))
    targets = np.array([0] * 9 + [1] * 3)
    assert (attend(cells_of(x), places(0, 12), targets, places(0, 12), [1e-3]) == 0).all()
    twice = np.concatenate([x, x[9:], x[9:]])
    doubled = np.concatenate([targets, [1] * 6])
    found = attend(cells_of(x), places(0, 12), targets, places(0, 12), [0.5], balanced=True)
    assert (found == attend(cells_of(twice), places(0, 18), doubled, places(0, 12), [0.75])).all()


class Corner(nn.Module):
    """Two stages, of which the last has the brightness of each corner of the clip, and their mean."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        cells = nn.functional.adaptive_avg_pool3d(x, (2, 2, 2))
        return {"conv4": x.mean((2, 3, 4), keepdim=True), "conv5": torch.cat([cells, cells.abs()], 1)}


def spots(seed: int, n: int) -> np.ndarray:
    """Frames with a red or green spot in a random corner, and the other colour faintly everywhere else."""
    frames = np.full((n, 40, 48, 3), 100, np.uint8)
    y, x = np.random.default_rng(seed).integers(2, size=2) * 20
    frames[:, 4 + y : 16 + y, 10 + x : 22 + x] = ((220, 60, 60), (60, 220, 60))[seed % 2]
    return frames


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Corner()})
    write_shard(tmp_path / "spots" / "00000.h5", [20] * 16, [1, 1, 3, 3] * 4, list("ab") * 8, frames=spots)
    return tmp_path / "spots"


def test_protocol_and_its_cells(shards, run):
    result = measure("attentive", shards, run, compute=ONE, clips=2, times=("reversed",))
    kept_scores({**result, "rows": [row for row in result["rows"] if "drop" not in row["metric"]]})
    first, *_ = result["rows"]
    assert first["value"] == 100 and (first["stage"], first["pooling"], first["dimensions"]) == ("conv5", "cells", 6)
    assert [row["value"] for row in result["rows"] if row["metric"] == "accuracy drop"] == [0]
    assert result["protocol"]["views"] == "2 clips of 16 frames" and result["file"].endswith(
        "attentive-reversed-spots-split1.json"
    )
    made = [path.parent for path in (run / "features").glob("*/conv5-cells.npy")]
    assert sorted(json.loads((folder / "about.json").read_text())["views"] for folder in made) == [
        *["2, cells"] * 2,
        "2, reversed, cells",
    ]
    source = data.Shards(shards)
    views = data.VideoViews(
        source, source.videos[source.part == data.TRAIN], lambda *lengths: data.spread_frames(*lengths, 2)
    )
    whole = {
        tuple(index): stages["conv5"]
        for index, stages in features.stage_outputs(Corner(), views, Compute(64, 0, "cpu"))
    }
    ((_, wanted),) = whole.items()
    kept = [np.load(folder / "conv5-cells.npy") for folder in made]
    assert all(of.dtype == np.float16 and of.shape == (16, 8, 6) for of in kept)
    assert any(np.allclose(of, wanted.flatten(2).transpose(1, 2), atol=2e-3) for of in kept)


def test_what_does_not_fit_is_refused(shards, run, monkeypatch):
    monkeypatch.setattr(
        attentive, "MOST_BYTES", 1600
    )  # a video has 8 cells of 6 numbers of 2 bytes: one clip of each is 1,536
    with pytest.raises(ProtocolError) as error:
        measure("attentive", shards, run, compute=ONE, clips=2)
    assert error.value.advice == "use --clips 1, or `vssl eval linear`"
    monkeypatch.setattr(attentive, "MOST_BYTES", 1000)
    with pytest.raises(
        ProtocolError, match="the cells of conv5 take .* GiB .*, 2 clips, 16 videos.*, expected at most"
    ):
        measure("attentive", shards, run, compute=ONE, clips=2)
    told = CliRunner().invoke(
        main, [*map(str, ["eval", "attentive", "--shards", shards, "--checkpoint", run, "--device", "cpu"])]
    )
    assert told.exit_code == 1 and "use `vssl eval linear`" in told.output
    monkeypatch.undo()
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Large()})
    with pytest.raises(TrainerError, match="stage conv5 gives values up to .*, too large for float16"):
        measure("attentive", shards, run, compute=ONE)


def test_a_study_measures_with_it(tmp_path, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 12, 24, split=[[1]] * 8 + [[3]] * 4)
    probe = {"protocol": "attentive", "time": ["still"], "opposites": [["color0", "color2"]]}
    linear = {"protocol": "linear", "pooling": "mean"}
    path = write_study(
        tmp_path, seeds=[0], measures=[probe, linear], rows={"turns": {"method": "rotation"}}, baselines=["colour"]
    )
    content = make_study(monkeypatch, path, tmp_path / "out", flow=lambda *_: None)
    titles = [column["measure"] for column in content["columns"]]
    found = {(entry["row"], titles[entry["column"]]): entry for entry in content["numbers"]}
    name = "attentive probe, conv5, cells, 1 pairs of opposites"
    assert found["random weights", name]["value"] == 100 and found["random weights", name]["videos"] == 2
    assert found["random weights", f"{name}, still"]["drop"]["value"] == 0 and not content["failures"]
    assert ("colour histogram", "linear probe, conv5, mean") in found and ("colour histogram", name) not in found
    for wrong in ({"stage": "conv4"}, {"pooling": "max"}, {"parts": 5}):
        with pytest.raises(TrainerError, match=f"attentive, {[*wrong][0]} is"):
            read(write_study(tmp_path, measures=[{"protocol": "attentive", **wrong}]))


class Large(Corner):
    def forward(self, x):
        return {name: 1e6 * stage for name, stage in super().forward(x).items()}
