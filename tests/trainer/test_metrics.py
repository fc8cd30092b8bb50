"""Intervals by groups, what is kept of every item, splits that are a cross-validation, paired differences."""

import json
import math

import numpy as np
import pytest
import torch

from tests.trainer.planted import Noise, SeesClass, group, keep, write_colored
from tests.trainer.synthetic import write_shard
from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.evaluate.evaluator import Evaluator, measure
from trainer.evaluate.features import Compute, Vectors
from trainer.evaluate.metrics import RESAMPLES, ItemScores, accuracy, by_class, holm, paired, paired_tests
from trainer.evaluate.neighbours import nearest
from trainer.evaluate.protocols.linear import gram_coordinates
from trainer.evaluate.protocols.retrieval import KS, chance
from trainer.evaluate.results import read_results, read_scores
from trainer.pages.compare import compare, format_table
from trainer.settings import Settings
from trainer.training import train

ONE = Compute(16, 0, "cpu")


def scores_of(groups, labels=None):
    n = len(groups)
    labels = np.array(labels or ["a"] * n)
    return ItemScores(np.array([f"v{i}" for i in range(n)]), labels, np.array(groups), np.array(["a", "b"]), {})


def test_the_mean_of_splits_by_hand_and_by_loops():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(12), 5)
    hit = rng.random(60) < 0.6
    assert accuracy([hit], [owner])["value"] == pytest.approx(100 * hit.mean())
    all_right = [np.ones(4, bool), np.ones(6, bool)], [np.arange(4), np.arange(6)]  # six videos
    assert accuracy(*all_right) == {"value": 100, "low": pytest.approx(100 * 6 / (6 + 1.96**2)), "high": 100}
    hits = [np.array([1, 1, 0, 1], bool), np.array([0, 1], bool)]
    owners = [np.array([3, 4, 6, 7]), np.array([4, 9])]  # video 4 is tested twice
    found = accuracy(hits, owners)
    assert found["value"] == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    videos, draws, means = [3, 4, 6, 7, 9], np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn, splits = [videos[i] for i in draws.integers(5, size=5)], []
        for hit, owner in zip(hits, owners, strict=True):
            tested = [hit[list(owner).index(video)] for video in drawn if video in owner]
            splits += [sum(tested) / len(tested)] if tested else []
        means.append(100 * sum(splits) / len(splits))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))


def test_interval_by_video():
    owner = np.repeat(np.arange(50), 10)
    clear = accuracy([np.ones(500, bool)], [owner])
    assert clear == {"value": 100, "low": pytest.approx(100 * 50 / (50 + 1.96**2)), "high": 100}
    hit = np.repeat(np.arange(50) % 2 == 0, 10)  # whole videos hit or miss: ten clips count as one draw
    by_video = accuracy([hit], [owner])
    assert by_video["value"] == 50 and by_video["high"] - by_video["low"] == pytest.approx(
        2 * 1.96 * 50 / 50**0.5, rel=0.15
    )
    by_clip = accuracy([hit], [np.arange(500)])
    assert by_clip["high"] - by_clip["low"] == pytest.approx(2 * 1.96 * 50 / 500**0.5, rel=0.15)


@pytest.mark.parametrize(("right", "of", "videos"), [(10, 10, 10), (0, 10, 10), (3, 10, 10), (1, 2, 1), (0, 1, 7)])
def test_interval_if_all_videos_agree_is_that_of_wilson(right, of, videos):
    """Its ends are the shares p from which the one found lies 1.96 standard deviations sqrt(p (1 - p) / n) away."""
    found = accuracy([np.tile(np.arange(of) < right, videos)], [np.repeat(np.arange(videos), of)])
    share, z = right / of, 1.96**2 / videos
    ends = 100 * np.sort(np.roots([1 + z, -2 * share - z, share**2]).real)
    assert (found["low"], found["high"]) == pytest.approx(tuple(ends), abs=1e-4)
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 100


def test_the_bootstrap_draws_groups_if_there_are_ten():
    hit, owner = np.arange(40) % 8 < 5, np.arange(40)
    of_groups = scores_of([f"g{i // 4}" for i in range(40)])
    found = of_groups.accuracy(hit, owner)
    assert {k: found[k] for k in ("value", "low", "high")} == accuracy([hit], [owner // 4])
    rng, means = np.random.default_rng(0), []
    for _ in range(1000):  # once more, with lists
        drawn = [i for g in rng.integers(10, size=10) for i in range(4 * g, 4 * g + 4)]
        means.append(100 * np.mean(hit[drawn]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))
    assert (
        of_groups.describe_units(owner) == "bootstrap of 10 groups"
        and found["high"] != accuracy([hit], [owner])["high"]
    )
    for few in ([f"g{i // 5}" for i in range(40)], [""] + [f"g{i // 2}" for i in range(39)]):  # eight; one without
        by_video = scores_of(few)
        assert by_video.accuracy(hit, owner)["low"] == accuracy([hit], [owner])["low"]
        assert by_video.describe_units(owner) == "bootstrap of 40 videos"


def test_answers_are_kept_and_read(tmp_path):
    one, path = scores_of([""] * 4), tmp_path / "x.npz"
    rows = [one.accuracy(np.array([1, 0, 1, 1], bool), np.array([0, 0, 2, 2]))]
    rows.append(one.accuracy(np.array([1, 0], bool), np.array([2, 0]), np.array([0, 1])))
    read = keep(path, one, rows)
    assert read.items.tolist() == ["v0", "v2"] and read.classes.tolist() == ["a", "b"]  # the tested ones
    assert read.answers[0].right.tolist() == [0.5, 1] and read.answers[0].predicted.tolist() == [-1, -1]
    assert read.answers[1].right.tolist() == [0, 1] and read.answers[1].predicted.tolist() == [1, 0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainerError, match="damaged"):
        read_scores(path)


def drawn_differences(gained):
    rng, n = np.random.default_rng(0), len(gained)
    return tuple(np.percentile([100 * gained[rng.integers(n, size=n)].mean() for _ in range(1000)], (2.5, 97.5)))


def test_paired_differences_by_hand(tmp_path):
    first = np.random.default_rng(1).random(30) < 0.5
    other = first.copy()
    other[:6] = True  # better or the same everywhere
    one, owner = scores_of([""] * 30), np.arange(30)
    files = [keep(tmp_path / "x.npz", one, [one.accuracy(hit, owner)]) for hit in (first, other)]
    found = paired(*files, 0, 0)
    gained = other.astype(float) - first
    assert found["value"] == pytest.approx(100 * gained.mean()) and found["low"] >= 0
    assert (found["low"], found["high"]) == pytest.approx(drawn_differences(gained))
    assert paired(files[0], files[0], 0, 0) == {"value": 0, "low": 0, "high": 0} and paired(*files, 0, 5) is None
    fewer = keep(tmp_path / "x.npz", one, [one.accuracy(first[:29], owner[:29])])
    assert paired(files[0], fewer, 0, 0) is None


def test_holm_by_hand():
    # in order .005, .01, .03, .04: 4 x .005 = .02, 3 x .01 = .03, 2 x .03 = .06, 1 x .04 = .04 but not below .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4, 0.9]) == [1, 1, 1] and holm([]) == [] and holm([0.2]) == [0.2]


def test_p_by_hand(tmp_path):
    def p(first, other):
        items, owner = scores_of([""] * len(first)), np.arange(len(first))
        hits = (np.array(right, bool) for right in (first, other))
        found = keep(tmp_path / "p.npz", items, [items.accuracy(hit, owner) for hit in hits])
        return paired_tests(found, found, [(0, 1)])[0]["p"]

    # of k videos that change, the share of all patterns of signs with a sum of at least their magnitude
    assert p([0] * 40, [1] * 12 + [0] * 28) == 2 / 2**12
    patterns = sum(math.comb(15, k) for k in range(16) if abs(15 - 2 * k) >= 7)  # 11 gained, 4 lost
    assert p([0] * 36 + [1] * 4, [1] * 11 + [0] * 29) == patterns / 2**15
    patterns = sum(math.comb(16, k) for k in range(17) if abs(16 - 2 * k) >= 8)  # 12 gained, 4 lost: drawn
    assert p([0] * 36 + [1] * 4, [1] * 12 + [0] * 28) == pytest.approx(patterns / 2**16, abs=0.003)
    assert p([1, 0] * 20, [1, 0] * 20) == 1
    assert p([0, 0, 0], [1, 1, 1]) == 0.25 and p([0, 1], [1, 1]) == 1  # however few they are


def test_p_of_a_row_does_not_depend_on_the_other_rows(tmp_path):
    rng, items = np.random.default_rng(0), scores_of([""] * 40)
    hits = [rng.random(40) < share for share in (0.2, 0.4, 0.8, 0.8)]
    rows = [items.accuracy(hit, np.arange(40)) for hit in hits] + [items.accuracy(hits[0][:30], np.arange(30))]
    found = keep(tmp_path / "p.npz", items, rows)
    pairs = [(0, 1), (0, 2), (2, 3), (4, 4)]
    together = paired_tests(found, found, [*pairs, (0, 4)])
    assert together == [paired_tests(found, found, [pair])[0] for pair in pairs] + [None]


def test_p_is_rarely_small_without_a_difference(tmp_path):
    rng, small = np.random.default_rng(0), 0
    groups = np.repeat([f"g{i}" for i in range(12)], 5)
    for _ in range(200):
        items, easy = scores_of(groups), rng.random((2, 12))  # videos of a group are alike
        hits = [rng.random(60) < np.repeat(own, 5) for own in easy]
        found = keep(tmp_path / "p.npz", items, [items.accuracy(hit, np.arange(60)) for hit in hits])
        small += paired_tests(found, found, [(0, 1)])[0]["p"] < 0.05
    assert small <= 20  # 10 are expected


def test_differences_by_class_by_hand(tmp_path):
    labels, hits = ["a"] * 12 + ["b"] * 9, np.random.default_rng(2).random((2, 21)) < 0.5
    one = scores_of([""] * 21, labels)
    read = keep(tmp_path / "x.npz", one, [one.accuracy(hit, np.arange(21)) for hit in hits])
    found = by_class(read, read, 0, 1)
    assert [row["value"] for row in found] == sorted((row["value"] for row in found), reverse=True)
    for row in found:
        of_class = np.array(labels) == row["class"]
        means = [100 * hit[of_class].mean() for hit in hits]
        assert (row["first"], row["other"], row["items"]) == (*map(pytest.approx, means), of_class.sum())
        assert row["value"] == pytest.approx(means[1] - means[0])
        assert ("low" in row) == (row["class"] == "a")  # of nine videos an interval would say nothing
    a = next(row for row in found if row["class"] == "a")
    assert (a["low"], a["high"]) == pytest.approx(drawn_differences(hits[1, :12].astype(float) - hits[0, :12]))
    assert by_class(read, read, 0, 5) == []


@pytest.fixture
def left_out(tmp_path):
    """Eight videos of three groups, each group tested by a split of its own, as `leave_out: group` writes it."""
    split = np.where(np.array([0, 0, 0, 1, 1, 1, 2, 2])[:, None] == np.arange(3), 3, 1)
    write_shard(tmp_path / "turns" / "00000.h5", [20] * 8, split, list("abababab"), splits=("1", "2", "3"))
    return tmp_path / "turns"


@pytest.mark.parametrize("name", ["linear", "knn", "retrieval"])
def test_splits_that_test_each_video_once_are_all_used(left_out, run, name, monkeypatch):
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Noise()})
    result = Evaluator(left_out, run, compute=ONE).measure(name)
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
    one = Evaluator(left_out, run, "2", ONE).measure(name)
    found = [r for r in one["rows"] if r["network"] == "pretrained" and r["metric"] == rows[0]["metric"]]
    assert [r["value"] for r in found] == [r["value"] for r in rows if r["split"] == "2"]
    kept = next(r for r in read_results(run)[0] if r.file.name == f"{name}-turns.json")
    assert len(kept.scores.items) == 8
    for i, row in enumerate(kept.content["rows"]):  # the numbers follow from what is kept
        if "low" in row:
            assert 100 * np.nanmean(kept.scores.answers[i].right) == pytest.approx(row["value"])


def test_the_own_group_can_be_left_out(tmp_path, run, monkeypatch):
    """Two videos of each actor, who alone is what the network sees: all hits are of the actor, and none without."""
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass()})
    folder = tmp_path / "actors"
    write_colored(folder / "00000.h5", 8, splits=())  # color i % 4
    labels = [f"{'ab'[i % 2]}" for i in range(8)]
    original = data.Shards.text
    group(monkeypatch, {f"00000_{i}": f"actor{i % 4}" for i in range(8)})
    with_groups = data.Shards.text
    monkeypatch.setattr(
        data.Shards, "text", lambda self, key: labels if key == "videos/label" else with_groups(self, key)
    )
    result = measure("retrieval", folder, run, compute=ONE)
    top = {r["level"]: r["value"] for r in result["rows"] if (r.get("stage"), r["metric"]) == ("conv5", "top-1")}
    assert top["video"] == 100
    assert "100 % of the top-1 hits (video level, conv5, max) are videos of the query's group" in result["notes"]
    alone = measure("retrieval", folder, run, compute=ONE, leave_group_out=True)
    found = json.loads((run / "results" / "retrieval-other_groups-actors.json").read_text())
    assert found["protocol"]["mode"] == "each video against all others, but those of its own group" and "file" in alone
    assert not any("own group" in note for note in alone["notes"])
    by_chance = [
        r["value"] for r in alone["rows"] if (r["network"], r["metric"], r["level"]) == ("chance", "top-1", "video")
    ]
    assert by_chance == [pytest.approx(100 * 2 / 6)]  # of six others two have the class
    monkeypatch.setattr(data.Shards, "text", original)
    with pytest.raises(TrainerError, match="their groups are known"):
        measure("retrieval", folder, run, compute=ONE, leave_group_out=True)


def test_chance_without_the_own_group_by_hand():
    classes, groups = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    # one of two others; the same; two of two; none
    assert chance(classes, classes, 1, KS, groups)[1] == pytest.approx(100 * (1 / 2 + 1 / 2 + 1 + 0) / 4)


def test_queries_that_can_only_miss_are_told(tmp_path, run):
    write_shard(tmp_path / "lone" / "00000.h5", [20] * 5, splits=(), labels=list("aabbc"))
    notes = measure("retrieval", tmp_path / "lone", run, compute=ONE)["notes"]
    assert "1 of 5 queries cannot hit: no other video of their class is in the gallery" in notes


def test_near_ties_are_ranked_in_float64():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(1, 4000)).astype(np.float32)
    away = rng.normal(size=4000)
    gallery = np.stack([query[0] + s * away for s in 0.5 + 1e-8 * rng.permutation(300)]).astype(np.float32)
    exact = gallery.astype(np.float64)
    cosine = (exact @ query[0].astype(np.float64)) / np.linalg.norm(exact, axis=1)
    cosine /= np.linalg.norm(query.astype(np.float64))
    order = sorted(range(300), key=lambda i: (-round(cosine[i] * 2**32), i))
    found = nearest(Vectors(query, np.array([0])), Vectors(gallery, np.arange(1, 301)), 12, torch.device("cpu"))
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
    coordinates, of_test = gram_coordinates(x, test)
    assert coordinates.shape == (20, 19)
    assert np.allclose(coordinates @ coordinates.T, x @ x.T) and np.allclose(of_test @ coordinates.T, test @ x.T)


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
