"""Tests of time: clips whose frames are shuffled, reversed or still; pairs of opposite actions; numbers of labels."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cli.main import main
from labelgen.errors import ConfigError, ManifestError
from labelgen.manifest.form import builtin_manifests, opposites, read_manifest
from tests.trainer.pages import Page
from tests.trainer.planted import write_colored
from tests.trainer.studies import make_study, write_study
from tests.trainer.synthetic import write_shard
from trainer import data
from trainer.errors import SettingError, TrainerError
from trainer.evaluate import features, splits
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.metrics import ItemScores, paired
from trainer.evaluate.results import read_scores
from trainer.study.study import show_plan

ONE = Compute(8, 0, "cpu")
CLASSES = ("up", "down", "flat")


def brightening(seed: int, n: int) -> np.ndarray:
    """Frames that grow brighter, darker or stay as they are, by the class of the video, RGB uint8 [n, 40, 48, 3]."""
    slope = (3, -3, 0)[seed % 3]
    level = 120 + seed + slope * (np.arange(n) - n / 2)
    return np.broadcast_to(level[:, None, None, None], (n, 40, 48, 3)).astype(np.uint8)


class SeesTime(nn.Module):
    """How much brighter, and darker, the second half of the clip is than the first; and a feature that never changes."""

    features = 3

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        first, second = x.mean((1, 3, 4)).unflatten(1, (2, -1)).mean(2).T
        grows = second - first
        stage = torch.stack([grows.relu(), (-grows).relu(), torch.full_like(grows, 0.1)], 1)
        return {"conv5": stage[:, :, None, None, None].expand(-1, -1, 2, 3, 3).contiguous()}


class Blind(SeesTime):
    """All clips alike."""

    def forward(self, x):
        return {"conv5": torch.ones(len(x), 2, 2, 3, 3)}


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """24 videos of three classes, of which every second trio is tested."""
    folder = tmp_path_factory.mktemp("out") / "ramps"
    labels, part = [CLASSES[i % 3] for i in range(24)], [(1, 3)[i // 3 % 2] for i in range(24)]
    write_shard(folder / "00000.h5", [24] * 24, part, labels, frames=brightening)
    return folder


@pytest.fixture
def seeing(monkeypatch):
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesTime(), "random": Blind()})


def values(result, network="pretrained", pooling="mean"):
    return {
        (row["metric"], row.get("time"), row.get("pair")): (row["value"], row.get("low"), row.get("high"))
        for row in result["rows"]
        if row.get("network") == network and row.get("pooling", pooling) == pooling and row.get("level") == "video"
    }


def test_frames_by_hand(ramps):
    frames = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert data.Time("reversed").of(frames, "a").tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]
    assert data.Time("still").of(frames, "a").tolist() == [[2] * 4, [6] * 4]
    long = np.arange(64).reshape(4, 16)
    shuffled = data.Time("shuffled", 3).of(long, "a")
    assert (np.sort(shuffled) == long).all() and (shuffled != long).any(1).all()
    assert (data.Time("shuffled", 3).of(long[2:3], "a") == shuffled[2]).all()  # whichever clips stand beside it
    assert len({tuple(clip % 16) for clip in shuffled}) == 4
    others = [data.Time("shuffled", 4).of(long, "a"), data.Time("shuffled", 3).of(long, "b")]
    assert all((other != shuffled).any(1).all() for other in others)
    source = data.Shards(ramps)
    plain, turned = (
        data.VideoViews(source, source.videos[:2], data.spread_frames, time=t) for t in (None, data.Time("reversed"))
    )
    assert torch.equal(turned.batch([11])["clips"], plain.batch([11])["clips"].flip(1))


@pytest.mark.parametrize("name", ["linear", "knn", "retrieval"])
def test_a_network_that_sees_time_loses_and_one_that_does_not_loses_nothing(ramps, run, seeing, name):
    result = measure(name, ramps, run, compute=ONE, times=("reversed", "still", "shuffled"))
    metric = {"linear": "accuracy", "knn": "1-NN", "retrieval": "top-1"}[name]
    found = values(result)
    assert found[metric, "normal", None][0] == 100
    assert found[metric, "reversed", None][0] == pytest.approx(100 / 3)  # what is flat alone
    value, low, high = found[f"{metric} drop", "reversed", None]
    assert value == pytest.approx(200 / 3) and 0 < low < value < high < 100
    assert found[metric, "still", None][0] == pytest.approx(100 / 3)
    assert found[f"{metric} drop", "shuffled", None][0] > 20
    blind = values(result, "random")
    assert [blind[f"{metric} drop", time, None] for time in ("reversed", "still", "shuffled")] == [(0, 0, 0)] * 3
    assert result["file"].endswith(f"{name}-reversed-still-shuffled-ramps-split1.json")
    assert "reversed; still; shuffled, seed 0" in result["protocol"]["time"]
    # the interval is that of the paired difference of the answers that are kept
    kept, rows = read_scores(result["file"][:-5] + ".npz"), result["rows"]
    at = {(row["network"], row.get("pooling"), row["metric"], row.get("time")): i for i, row in enumerate(rows)}
    place = [at["pretrained", "mean", metric, time] for time in ("reversed", "normal")]
    difference = paired(kept, kept, *place)
    assert difference == pytest.approx(dict(zip(("value", "low", "high"), (value, low, high), strict=True)))


def test_normal_clips_are_those_of_the_cache_and_give_the_same_number(ramps, run, seeing):
    plain = measure("linear", ramps, run, compute=ONE)
    before = {path.name for path in (run / "features").iterdir()}
    result = measure("linear", ramps, run, compute=ONE, times=("shuffled",), seed=1)
    again = measure("linear", ramps, run, compute=ONE, times=("shuffled",), seed=1)
    new = {path.name for path in (run / "features").iterdir()} - before
    assert len(new) == 2 and {
        json.loads((run / "features" / name / "about.json").read_text())["videos"] for name in new
    } == {12}
    assert again["rows"] == result["rows"]
    own = {key: value for key, value in values(result).items() if key[1] == "normal"}
    assert [*own.values()] == [*values(plain).values()]
    with pytest.raises(SettingError, match="'backwards', expected one of: shuffled, reversed, still"):
        measure("linear", ramps, run, compute=ONE, times=("backwards",))


def test_drop_of_splits_and_of_unequal_items_by_hand():
    scores = ItemScores(*np.array([["a", "b", "c"], ["x", "x", "y"], [""] * 3]), np.array(["x", "y"]), {})
    first, other = np.array([1, 1, 0, 1], bool), np.array([0, 1, 0, 0], bool)
    owner = np.array([0, 0, 1, 2])
    *_, drop = scores.rows("accuracy", {"normal": [first], "still": [other]}, [owner])
    assert drop["metric"] == "accuracy drop" and drop["time"] == "still" and drop["value"] == 50
    slow, rng = [], np.random.default_rng(0)
    for _ in range(1000):
        drawn = np.concatenate([np.flatnonzero(owner == video) for video in rng.integers(3, size=3)])
        slow.append(100 * (first[drawn].mean() - other[drawn].mean()))
    assert [drop["low"], drop["high"]] == pytest.approx([*np.percentile(slow, (2.5, 97.5))])
    halves = [[of[:2], of[2:]] for of in (first, other)]
    *_, drop = scores.rows("accuracy", dict(zip("ab", halves, strict=True)), [owner[:2], owner[2:]], ["1", "2"], False)
    assert drop["split"] == "mean" and drop["value"] == 50  # of 100 - 50 and 50 - 0


def test_pairs_of_opposites(ramps, run, seeing, tmp_path):
    pairs = [("up", "down"), ("flat", "sideways")]
    result = measure("linear", ramps, run, compute=ONE, opposites=pairs, times=("reversed",))
    found = values(result)
    assert found["accuracy", "normal", None][0] == found["accuracy", "normal", "up / down"][0] == 100
    assert found["accuracy", "reversed", None][0] == 0 == found["accuracy", "reversed", "up / down"][0]
    assert {row["value"] for row in result["rows"] if row["network"] == "chance"} == {50}
    assert result["protocol"]["items"] == "8 tested videos" and result["protocol"]["classes"] == 2
    assert "pair left out, a class is absent: flat / sideways" in result["notes"]
    (tmp_path / "mine.yaml").write_text("name: mine\nopposites: [[up, flat], [down, flat]]\n")
    common = ["--shards", ramps, "--checkpoint", run, "--workers", 0, "--device", "cpu"]
    told = CliRunner().invoke(main, [*map(str, ["eval", "knn", *common, "--opposites", tmp_path / "mine.yaml"])])
    assert told.exit_code == 0 and "down / flat" in told.output and "chance" in told.output
    kept = json.loads((run / "results/knn-opposites-ramps-split1.json").read_text())
    assert kept["protocol"]["opposites"] == ["up / flat", "down / flat"]
    with pytest.raises(TrainerError, match="none of the 1 pairs .* its classes are down, flat, up"):
        measure("linear", ramps, run, compute=ONE, opposites=[("a", "b")])


def test_notes_beside_pairs_are_not_of_all_classes(run, seeing, tmp_path):
    write_shard(tmp_path / "00000.h5", [24] * 9, [0] * 9, [CLASSES[i % 3] for i in range(9)], frames=brightening)
    of_all, of_pair = (
        measure("knn", tmp_path, run, compute=ONE, opposites=pairs) for pairs in (None, [("up", "down")])
    )
    assert any("most frequent class of the others" in note for note in of_all["notes"])
    assert not any("most frequent class of the others" in note for note in of_pair["notes"])


def test_a_pair_of_unequal_classes_has_a_chance_of_a_half():
    from trainer.evaluate.protocols.linear import predictions

    rng, right = np.random.default_rng(0), []
    for _ in range(20):
        x, targets = rng.normal(size=(100, 5)).astype(np.float32), (np.arange(100) < 15).astype(int)
        test, wanted = rng.normal(size=(100, 5)).astype(np.float32), (np.arange(100) < 15).astype(int)
        right.append((predictions(x, targets, test, [1.0], balanced=True)[0] == wanted).mean())
    assert np.mean(right) == pytest.approx(0.5, abs=0.06)


def test_opposites_of_manifests(tmp_path):
    for name in builtin_manifests():
        for pair in read_manifest(name).get("opposites", ()):
            assert len({*pair}) == 2, name
    assert opposites("arid") == [("Sit", "Stand")] and len(opposites("jester")) == 10
    with pytest.raises(ConfigError, match="opposites in manifest weizmann.* arid, hmdb51, jester"):
        opposites("weizmann")
    for text in ("[[a]]", "[[a, a]]", "[[a, b, c]]"):
        (tmp_path / "x.yaml").write_text(f"name: x\nopposites: {text}\n")
        with pytest.raises(ManifestError, match="two different classes"):
            opposites(str(tmp_path / "x.yaml"))


# numbers of labels


def draw(labels, count, seed=0, ids=None, train=None):
    labels = np.array(labels)
    ids = np.array([f"v{i:03}" for i in range(len(labels))]) if ids is None else ids
    return splits.draw(labels, ids, np.ones(len(labels), bool) if train is None else train, count, seed)


def test_absolute_numbers_of_labels_are_nested_and_hold_the_shares_of_the_classes():
    labels = ["a"] * 40 + ["b"] * 20 + ["c"] * 20 + [""] * 5
    sets = [draw(labels, f"{n} videos", seed=2) for n in (1, 4, 5, 16, 33, 80)]
    assert [int(of.sum()) for of in sets] == [1, 4, 5, 16, 33, 80] and not sets[-1][80:].any()
    assert all((small <= large).all() for small, large in zip(sets, sets[1:], strict=False))
    assert np.unique(np.array(labels)[sets[1]], return_counts=True)[1].tolist() == [2, 1, 1]  # four of 40, 20 and 20
    assert np.unique(np.array(labels)[sets[3]], return_counts=True)[1].tolist() == [8, 4, 4]
    assert draw(labels, "81 videos") is None
    assert (draw(labels, "16 videos", seed=3) != sets[3]).any()
    order = np.random.default_rng(0).permutation(85)  # of the shards
    again = draw(np.array(labels)[order], "16 videos", 2, np.array([f"v{i:03}" for i in order]))
    assert (again == sets[3][order]).all()


def test_words_of_numbers_of_labels():
    assert [splits.number_of_labels(n) for n in (5, "5 per class", "1000 videos")] == [5, 5, "1000 videos"]
    for wrong in (0, "1000", "0 videos", "5 classes", 1.5, True):
        with pytest.raises(SettingError, match="'5 per class', or a total, such as '1000 videos'"):
            splits.number_of_labels(wrong)


def test_a_probe_learns_from_so_many_labels(ramps, run, seeing):
    result = measure("linear", ramps, run, compute=ONE, labels="6 videos", seed=1)
    assert "labels of 6 videos by seed 1" in result["protocol"]["mode"] and result["protocol"]["labels"] == "6 videos"
    assert (
        result["file"].endswith("linear-6_videos-ramps-split1.json")
        and values(result)["accuracy", None, None][0] == 100
    )
    for number in ("13 videos", 5):
        with pytest.raises(TrainerError, match="12 labelled videos to learn from, too few for"):
            measure("knn", ramps, run, compute=ONE, labels=number)


def test_a_study_gives_what_disturbed_clips_lose(tmp_path, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 16, 24, split=[[1]] * 8 + [[3]] * 8)
    probes = {"protocol": "linear", "pooling": "mean", "labels": ["4 videos", "99 videos"], "time": ["reversed"]}
    few = {"protocol": "finetune", "labels": [1], "clips": 4, "settings": {"batch_size": 4}, "time": ["still"]}
    pairs = {"protocol": "knn", "pooling": "mean", "k": 1, "opposites": [["color0", "color1"]]}
    path = write_study(tmp_path, seeds=[0], measures=[probes, few, pairs], baselines=["flow"])

    def flow(first, second):
        return np.zeros((*first.shape, 2), np.float32)

    plan = "\n".join(show_plan(path, tmp_path / "out", 1, "cpu"))
    assert plan.count("frozen   measure on colors, seed 0, 240 clips") == 1  # 16 videos, 8 of them disturbed
    content = make_study(monkeypatch, path, tmp_path / "out", flow=flow)
    titles = [column["measure"] for column in content["columns"]]
    found = {(entry["row"], titles[entry["column"]]): entry for entry in content["numbers"]}
    normal, turned = (
        found["random weights", f"linear probe, conv5, mean, 4 videos{time}"] for time in ("", ", reversed")
    )
    assert normal["value"] - turned["value"] == pytest.approx(turned["drop"]["value"]) and "drop" not in normal
    assert ("flow histogram", "linear probe, conv5, mean, 4 videos, reversed") not in found
    assert "drop" in found["turns <i>", "finetune, 1 per class, still"]
    assert found["random weights", "1-NN, conv5, mean, 1 pairs of opposites"]["videos"] == 4
    assert any("labels of 99 videos" in one["reason"] for one in content["absent"]) and not content["failures"]
    assert "(lost " in (tmp_path / "out/table.md").read_text()
    assert not any(column["headline"] for column in content["columns"] if "reversed" in column["measure"])


def test_pages_show_pairs_and_what_is_lost(ramps, run, seeing):
    measure("linear", ramps, run, compute=ONE, opposites=[("up", "down")], times=("reversed",))
    told = CliRunner().invoke(main, ["report", str(run), "--shards", str(ramps)])
    assert told.exit_code == 0, told.output
    text = Page((run / "report.html").read_text()).text
    assert "Linear probe (opposites-reversed) on ramps, split split1: accuracy, video, conv5, max" in text
    assert "up / down" in text and "accuracy drop" in text and "1 pairs of opposite classes" in text
