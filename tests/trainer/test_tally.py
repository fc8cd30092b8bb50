"""Intervals by groups, what is kept of every item, splits that are a cross-validation, paired differences, progress."""

import json
import re
import time

import numpy as np
import pytest
import torch

from tests.trainer.planted import Noise, SeesClass, group, write_colored
from tests.trainer.synthetic import write_shard
from trainer.errors import TrainerError
from trainer.evaluate import bench, classifiers, features, numbers
from trainer.evaluate.bench import Bench, measure
from trainer.evaluate.features import Compute
from trainer.evaluate.neighbours import chance, nearest
from trainer.evaluate.numbers import holm
from trainer.evaluate.progress import Progress
from trainer.evaluate.results import read_results
from trainer.evaluate.retrieval import KS
from trainer.evaluate.tally import Predictions, Tally, by_class, paired, paired_test
from trainer.pages.compare import compare, format_table
from trainer.settings import Settings
from trainer.training import train

ONE = Compute(16, 0, "cpu")


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    torch.set_num_threads(1)
    return train(Settings(width=0.06, epochs=1, workers=0, lr=0.1), demo, tmp_path_factory.mktemp("runs") / "pace")


def tally(groups):
    names = [f"v{i}" for i in range(len(groups))]
    return Tally(names, ["a"] * len(groups), groups, ["a", "b"])


def test_the_bootstrap_draws_groups_where_there_are_ten():
    hit = np.arange(40) % 8 < 5
    of_groups, owner = tally([f"g{i // 4}" for i in range(40)]), np.arange(40)
    found = of_groups.accuracy(hit, owner)
    assert {k: found[k] for k in ("value", "low", "high")} == numbers.accuracy(hit, owner // 4)
    rng, means = np.random.default_rng(0), []
    for _ in range(1000):  # once more, with lists
        drawn = [i for g in rng.integers(10, size=10) for i in range(4 * g, 4 * g + 4)]
        means.append(100 * np.mean(hit[drawn]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))
    assert of_groups.drawn(owner) == "bootstrap of 10 groups" and found["high"] != numbers.accuracy(hit, owner)["high"]
    for few in ([f"g{i // 5}" for i in range(40)], [""] + [f"g{i // 2}" for i in range(39)]):  # eight; one without
        by_video = tally(few)
        assert by_video.accuracy(hit, owner)["low"] == numbers.accuracy(hit, owner)["low"]
        assert by_video.drawn(owner) == "bootstrap of 40 videos"


def test_predictions_are_kept_and_read(tmp_path):
    one = tally([""] * 4)
    kept = [one.accuracy(np.array([1, 0, 1, 1], bool), np.array([0, 0, 2, 2]))["kept"]]
    kept.append(one.accuracy(np.array([1, 0], bool), np.array([2, 0]), np.array([0, 1]))["kept"])
    one.write(tmp_path / "x.npz", [3, 7], kept)
    read = Predictions(tmp_path / "x.npz")
    assert read.items.tolist() == ["v0", "v2"] and read.classes.tolist() == ["a", "b"]  # the tested ones
    assert read.right[3].tolist() == [0.5, 1] and read.named[3].tolist() == [-1, -1]
    assert read.right[7].tolist() == [0, 1] and read.named[7].tolist() == [1, 0]
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    with pytest.raises(TrainerError, match="damaged"):
        Predictions(tmp_path / "x.npz")


def test_paired_differences_by_hand(tmp_path):
    rng = np.random.default_rng(1)
    first = rng.random(30) < 0.5
    other = first.copy()
    other[:6] = True  # better or the same everywhere
    files = []
    for name, hit in (("a", first), ("b", other)):
        one = tally([""] * 30)
        one.write(tmp_path / f"{name}.npz", [0], [one.accuracy(hit, np.arange(30))["kept"]])
        files.append(Predictions(tmp_path / f"{name}.npz"))
    found = paired(*files, 0, 0)
    gained = other.astype(float) - first
    assert found["value"] == pytest.approx(100 * gained.mean()) and found["low"] >= 0
    rng = np.random.default_rng(0)
    means = [100 * gained[rng.integers(30, size=30)].mean() for _ in range(1000)]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))
    assert paired(files[0], files[0], 0, 0) == {"value": 0, "low": 0, "high": 0} and paired(*files, 0, 5) is None
    fewer = tally([""] * 30)
    fewer.write(tmp_path / "c.npz", [0], [fewer.accuracy(first[:29], np.arange(29))["kept"]])
    assert paired(files[0], Predictions(tmp_path / "c.npz"), 0, 0) is None


def test_holm_by_hand():
    # in order .005, .01, .03, .04: 4 x .005 = .02, 3 x .01 = .03, 2 x .03 = .06, 1 x .04 = .04 but not below .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4, 0.9]) == [1, 1, 1] and holm([]) == [] and holm([0.2]) == [0.2]


def test_p_by_hand(tmp_path):
    def p(first, other):
        own = Tally([f"v{i}" for i in range(len(first))], ["a"] * len(first), [""] * len(first), ["a"])
        for hits in (first, other):
            own.accuracy(np.array(hits, bool), np.arange(len(first)))
        own.write(tmp_path / "p.npz", [0, 1], [0, 1])
        found = Predictions(tmp_path / "p.npz")
        return paired_test(found, found, 0, 1)["p"]

    # 12 of 40 videos gained: mean .3, spread of the mean (.3 x .7 / 40) ** .5 = .0725, t = 4.14 of 39 degrees: p = .00018;
    # by changing signs 2 / 2^12 = .0005 at least
    assert p([0] * 40, [1] * 12 + [0] * 28) == pytest.approx(2 / 2**12)
    # 12 gained, 4 lost: mean .2, spread ((.4 - .04) / 40) ** .5 = .0949, t = 2.108: p = .0415
    assert p([0] * 36 + [1] * 4, [1] * 12 + [0] * 28) == pytest.approx(0.0415, rel=0.2)
    assert p([1, 0] * 20, [1, 0] * 20) == 1
    assert p([0, 0, 0], [1, 1, 1]) == 0.25 and p([0, 1], [1, 1]) == 1  # however few they are


def test_p_is_rarely_small_without_a_difference(tmp_path):
    rng, small = np.random.default_rng(0), 0
    groups = np.repeat([f"g{i}" for i in range(12)], 5)
    for _ in range(200):
        own = Tally([f"v{i}" for i in range(60)], ["a"] * 60, groups, ["a"])
        for easy in rng.random((2, 12)):  # videos of a group are alike
            own.accuracy(rng.random(60) < np.repeat(easy, 5), np.arange(60))
        own.write(tmp_path / "p.npz", [0, 1], [0, 1])
        found = Predictions(tmp_path / "p.npz")
        small += paired_test(found, found, 0, 1)["p"] < 0.05
    assert small <= 20  # 10 are expected


def test_differences_by_class_by_hand(tmp_path):
    rng = np.random.default_rng(2)
    labels, hits = ["a"] * 12 + ["b"] * 9, rng.random((2, 21)) < 0.5
    one = Tally([f"v{i}" for i in range(21)], labels, [""] * 21, ["a", "b"])
    kept = [one.accuracy(hit, np.arange(21))["kept"] for hit in hits]
    one.write(tmp_path / "x.npz", [0, 1], kept)
    read = Predictions(tmp_path / "x.npz")
    found = by_class(read, read, 0, 1)
    assert [told["value"] for told in found] == sorted((told["value"] for told in found), reverse=True)
    for told in found:
        own = np.array(labels) == told["class"]
        means = [100 * hit[own].mean() for hit in hits]
        assert (told["first"], told["other"], told["items"]) == (*map(pytest.approx, means), own.sum())
        assert told["value"] == pytest.approx(means[1] - means[0])
        assert ("low" in told) == (told["class"] == "a")  # of nine videos an interval would tell nothing
    gained = hits[1, :12].astype(float) - hits[0, :12]
    rng = np.random.default_rng(0)
    drawn = [100 * gained[rng.integers(12, size=12)].mean() for _ in range(1000)]
    a = next(told for told in found if told["class"] == "a")
    assert (a["low"], a["high"]) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))
    assert by_class(read, read, 0, 5) == []


@pytest.fixture
def left_out(tmp_path):
    """Eight videos of three groups, each group tested by a split of its own, as `leave_out: group` writes it."""
    split = np.where(np.array([0, 0, 0, 1, 1, 1, 2, 2])[:, None] == np.arange(3), 3, 1)
    write_shard(tmp_path / "turns" / "00000.h5", [20] * 8, split, list("abababab"), splits=("1", "2", "3"))
    return tmp_path / "turns"


@pytest.mark.parametrize("name", ["linear", "knn", "retrieval"])
def test_splits_that_test_each_video_once_are_all_used(left_out, run, name):
    result = Bench(left_out, run, compute=ONE).measure(name)
    assert result["protocol"]["split"] is None and result["protocol"]["mode"].startswith(
        "each video once over splits 1, 2, 3"
    )
    assert result["protocol"]["items"].startswith("8 ") and result["file"].endswith(f"{name}-turns.json")
    rows = [r for r in result["rows"] if r["network"] == "pretrained" and r["metric"] == result["rows"][0]["metric"]]
    assert {row["split"] for row in rows} == {"1", "2", "3", "all"}
    same = [
        r
        for r in rows
        if (r["stage"], r["pooling"], r["level"]) == (rows[0]["stage"], rows[0]["pooling"], rows[0]["level"])
    ]
    of = {row["split"]: row["value"] for row in same}
    assert of["all"] == pytest.approx((3 * of["1"] + 3 * of["2"] + 2 * of["3"]) / 8)
    one = Bench(left_out, run, "2", ONE).measure(name)
    found = [r for r in one["rows"] if r["network"] == "pretrained" and r["metric"] == rows[0]["metric"]]
    assert [r["value"] for r in found] == [r["value"] for r in rows if r["split"] == "2"]
    kept = next(r for r in read_results(run)[0] if r.file.name == f"{name}-turns.json")
    assert len(kept.predictions.items) == 8
    for i, row in enumerate(kept.content["rows"]):  # the numbers follow from what is kept
        if "low" in row:
            assert 100 * np.nanmean(kept.predictions.right[i]) == pytest.approx(row["value"])


def test_all_protocols_use_them(left_out, run):
    told = {name: table for name, table, _ in bench.measure_all(Bench(left_out, run, compute=ONE), {})}
    assert all("over splits 1, 2, 3" in told[name] for name in ("linear", "knn", "retrieval"))


def test_the_own_group_can_be_left_out(tmp_path, run, monkeypatch):
    """Two videos of each actor, who alone is what the network sees: all hits are of the actor, and none without."""
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass()})
    folder = tmp_path / "actors"
    write_colored(folder / "00000.h5", 8, splits=())  # color i % 4
    labels = [f"{'ab'[i % 2]}" for i in range(8)]
    original = bench.data.Shards.text
    group(monkeypatch, {f"00000_{i}": f"actor{i % 4}" for i in range(8)})
    with_groups = bench.data.Shards.text
    monkeypatch.setattr(
        bench.data.Shards, "text", lambda self, key: labels if key == "videos/label" else with_groups(self, key)
    )
    result = measure("retrieval", folder, run, compute=ONE)
    top = {r["level"]: r["value"] for r in result["rows"] if (r.get("stage"), r["metric"]) == ("conv5", "top-1")}
    assert top["video"] == 100
    assert "100 % of the top-1 hits (video level, conv5, max) are videos of the query's own group" in result["notes"]
    alone = measure("retrieval", folder, run, compute=ONE, leave_group_out=True)
    found = json.loads((run / "results" / "retrieval-other_groups-actors.json").read_text())
    assert found["protocol"]["mode"] == "each video against all others, but those of its own group" and "file" in alone
    assert not any("own group" in note for note in alone["notes"])
    by_chance = [
        r["value"] for r in alone["rows"] if (r["network"], r["metric"], r["level"]) == ("chance", "top-1", "video")
    ]
    assert by_chance == [pytest.approx(100 * 2 / 6)]  # of six others two have the class
    monkeypatch.setattr(bench.data.Shards, "text", original)
    with pytest.raises(TrainerError, match="their groups are known"):
        measure("retrieval", folder, run, compute=ONE, leave_group_out=True)


def test_chance_without_the_own_group_by_hand():
    classes, groups = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    # one of two others; the same; two of two; none
    assert chance(classes, classes, 1, KS, groups)[1] == pytest.approx(100 * (1 / 2 + 1 / 2 + 1 + 0) / 4)


def test_queries_that_can_only_miss_are_told(tmp_path, run):
    write_shard(tmp_path / "lone" / "00000.h5", [20] * 5, splits=(), labels=list("aabbc"))
    notes = measure("retrieval", tmp_path / "lone", run, compute=ONE)["notes"]
    assert "1 of 5 queries can only miss: no other video of their class is in the gallery" in notes


def test_near_ties_are_ranked_in_float64():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(1, 4000)).astype(np.float32)
    away = rng.normal(size=4000)
    gallery = np.stack([query[0] + s * away for s in 0.5 + 1e-8 * rng.permutation(300)]).astype(np.float32)
    exact = gallery.astype(np.float64)
    cosine = (exact @ query[0].astype(np.float64)) / np.linalg.norm(exact, axis=1)
    cosine /= np.linalg.norm(query.astype(np.float64))
    order = sorted(range(300), key=lambda i: (-round(cosine[i] * 2**32), i))
    found = nearest((query, np.array([0])), (gallery, np.arange(1, 301)), 12, torch.device("cpu"))
    assert found[0].tolist() == order[:12]


def test_class_bars_of_scenes_are_of_the_last_stage(tmp_path, run, monkeypatch):
    class Early(Noise):
        """The class is seen in conv4 alone."""

        def forward(self, x):
            return {**SeesClass.forward(self.sees, x), "conv5": super().forward(x)["conv5"]}

        def __init__(self):
            super().__init__()
            self.sees = SeesClass()

    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Early()})
    write_colored(tmp_path / "s" / "00000.h5", 12, splits=())
    rows = measure("scenes", tmp_path / "s", run, compute=ONE)["rows"]
    classes = [row for row in rows if "class" in row]
    assert {(row["stage"], row["pooling"]) for row in classes} == {("conv5", "max")}
    last = next(row for row in rows if (row.get("stage"), row.get("pooling")) == ("conv5", "max"))
    assert np.mean([row["value"] for row in classes]) == pytest.approx(last["value"]) and last["value"] < 100


def test_probe_in_gram_coordinates_equals_that_in_singular_vectors():
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(20, 300)), rng.normal(size=(5, 300))
    x -= x.mean(0)
    coordinates, of_test = classifiers.gram_coordinates(x, test)
    assert coordinates.shape == (20, 19)
    assert np.allclose(coordinates @ coordinates.T, x @ x.T) and np.allclose(of_test @ coordinates.T, test @ x.T)


def test_progress_without_a_terminal_tells_what_is_left_also_while_a_step_lasts(monkeypatch, capsys):
    monkeypatch.setattr("labelgen.progress.EVERY", 0.05)
    with Progress("linear probe", 50, "fold") as step:
        time.sleep(0.12)
        step(3)
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "linear probe: 0 of 50 folds"
    assert re.fullmatch("linear probe: 3 of 50 folds, about [2-9] s left", lines[-1])
    told = Progress("linear probe", 50, "fold")
    told.step(48)
    assert told.line(4 * 48) == "linear probe: 48 of 50 folds, about 8 s left"


def test_compare_pairs_the_videos(demo, tmp_path):
    runs = [train(Settings(width=0.06, epochs=1, workers=0, seed=seed), demo, tmp_path / str(seed)) for seed in (0, 1)]
    for made in runs:
        measure("retrieval", demo, made, compute=ONE)
    result = compare(runs)
    rows = result["tables"][0]["rows"]
    for row in rows:
        difference = row["differences"]["1"]
        assert difference["value"] == pytest.approx(row["of"]["1"]["value"] - row["of"]["0"]["value"], abs=1e-4)
        sign = "▲" if difference["low"] > 0 else "▼" if difference["high"] < 0 else ""
        assert row["marks"]["1"] == (sign if difference["adjusted"] <= 0.05 else "")
        assert difference["p"] <= difference["adjusted"] <= min(1, len(rows) * difference["p"])
    assert f"({rows[0]['differences']['1']['value']:+.1f} [" in format_table(result)
    (runs[1] / "results" / "retrieval-demo-split1.npz").write_bytes(b"no")
    result = compare(runs)
    assert not any(row["differences"] for row in result["tables"][0]["rows"])
    assert any("damaged" in note for note in result["notes"])
