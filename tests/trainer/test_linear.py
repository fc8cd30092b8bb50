import math
import re

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.trainer.planted import Noise, SeesClass, colored, group, write_colored
from tests.trainer.synthetic import write_shard
from trainer import checkpoint, data
from trainer.evaluate import features, protocol_class
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.neighbours import votes
from trainer.evaluate.protocols import linear
from trainer.evaluate.protocols.knn import KS, TEMPERATURE, KNearest
from trainer.evaluate.protocols.linear import STRENGTHS, Linear, predictions, probe
from trainer.evaluate.results import overall
from trainer.evaluate.splits import grouped_folds

ONE = Compute(8, 0, "cpu")


class OneStage:
    """The deepest stage of a planted network alone: three times as fast."""

    def forward(self, x):
        return {"conv5": super().forward(x)["conv5"]}


class ClassAlone(OneStage, SeesClass):
    pass


class NoiseAlone(OneStage, Noise):
    pass


@pytest.fixture
def planted(monkeypatch):
    """The class as the pretrained network, noise as the random one."""
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": ClassAlone(), "random": NoiseAlone()})


@pytest.fixture
def noise(monkeypatch):
    """Noise alone, so that equal accuracies are no accident."""
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": NoiseAlone()})


def values(result, *keys) -> dict:
    return {tuple(row.get(key) for key in ("network", *keys)): row["value"] for row in result["rows"]}


# the linear probe


def slow_logistic(x, targets, c, test):
    """Multinomial logistic regression in all coordinates: minimise the sum of the losses + |W|^2 / (2 C)."""
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation == 0] = 1
    x, test = ((part.astype(np.float64) - mean) / deviation / math.sqrt(x.shape[1]) for part in (x, test))
    names, index = np.unique(targets, return_inverse=True)
    onehot = np.eye(len(names))[index]

    def loss(parameters):
        weight, bias = parameters[: -len(names)].reshape(len(names), -1), parameters[-len(names) :]
        logits = x @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        value = -np.log(probability[onehot == 1]).sum() + (weight**2).sum() / (2 * c)
        slope = probability - onehot
        return value, np.concatenate([(slope.T @ x + weight / c).ravel(), slope.sum(0)])

    start = np.zeros(len(names) * (x.shape[1] + 1))
    best = minimize(loss, start, jac=True, options={"gtol": 1e-7, "maxiter": 5000}).x
    weight, bias = best[: -len(names)].reshape(len(names), -1), best[-len(names) :]
    return names[(test @ weight.T + bias).argmax(1)]


def clusters(n, d, classes, noise, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    x = rng.normal(size=(classes, d))[targets] + noise * rng.normal(size=(n, d))
    x[:, 0] = 3  # a feature that never changes
    return x.astype(np.float32), targets


@pytest.mark.parametrize(("n", "d"), [(24, 60), (60, 8)])  # fewer and more videos than features
def test_predictions_equal_a_logistic_regression_by_hand(n, d):
    x, targets = clusters(n, d, 3, 1.5)
    test, wanted = clusters(90, d, 3, 1.5, seed=0)
    test = test + np.random.default_rng(1).normal(size=test.shape).astype(np.float32)
    found = predictions(x, targets + 4, test, STRENGTHS[1:4])
    slow = [slow_logistic(x, targets + 4, c, test) for c in STRENGTHS[1:4]]
    assert (found == slow).mean() > 0.99  # the optimisers stop at slightly different places
    assert all(0.4 < (own == wanted + 4).mean() < 1 for own in found)


def test_strength_is_chosen_on_whole_groups_of_the_training_part(monkeypatch):
    x, targets = clusters(48, 30, 4, 3)
    groups = np.array([f"g{i // 6}" for i in range(48)])
    right = dict.fromkeys(STRENGTHS, 0)
    for held in grouped_folds(targets, groups):
        kept = [i for i in range(48) if i not in held]
        assert not set(groups[kept]) & set(groups[held])
        for c in STRENGTHS:
            right[c] += (predictions(x[kept], targets[kept], x[held], [c])[0] == targets[held]).sum()
    best = min(c for c in STRENGTHS if right[c] == max(right.values()))
    test = clusters(20, 30, 4, 3, seed=5)[0]
    predicted, strength, validated = probe(x, targets, groups, test)
    assert validated == 100 * right[best] / 48
    assert strength == best and (predicted == predictions(x, targets, test, [best])[0]).all()
    assert probe(x, targets, groups, -100 * test)[1] == best  # the test part has no say
    assert len(set(right.values())) > 1


def test_one_class_one_group_one_video_of_each_class():
    x = np.eye(4, dtype=np.float32)
    assert predictions(x, np.full(4, 2), x, [1, 10]).tolist() == [[2] * 4] * 2
    assert probe(x, np.arange(4), np.arange(4), x)[1:] == (STRENGTHS[0], 0)  # nothing to choose on
    x, targets = clusters(40, 6, 2, 0.1)
    assert (probe(x, targets, np.full(40, "all"), x)[0] == targets).all()


def test_fits_that_do_not_converge_are_counted(run, planted, tmp_path, monkeypatch, recwarn):
    write_colored(tmp_path / "a" / "00000.h5", 10, splits=())
    assert not any("unconverged" in note for note in measure("linear", tmp_path, run, compute=ONE)["notes"])
    monkeypatch.setattr(linear, "ITERATIONS", 1)
    notes = measure("linear", tmp_path, run, compute=ONE)["notes"]
    assert any(re.match(r"\d+ fits, including those that choose C, did not converge in 1 iter", n) for n in notes)
    assert not any("converge" in str(warning.message) for warning in recwarn)


# both protocols


@pytest.mark.parametrize("which", ["parts", "folds", "groups", "splits"])
def test_planted_classes_and_noise(tmp_path, run, planted, monkeypatch, which):
    halves = np.array([1, 3])[np.arange(40) // 4 % 2]
    split = {"parts": halves, "splits": np.where(np.arange(40)[:, None] // 4 % 2 == np.arange(2), 3, 1)}
    splits = {"parts": ("1",), "splits": ("1", "2")}.get(which, ())
    write_colored(tmp_path / "colors" / "00000.h5", 40, split=split.get(which), splits=splits)
    if which == "groups":
        group(monkeypatch, {f"00000_{i}": f"actor{i // 8}" for i in range(40)})
    tested, mode = {
        "parts": (20, "test part against train part"),
        "folds": (40, "5 stratified folds of videos"),
        "groups": (40, "leave one group out, 5 groups"),
        "splits": (40, "each video once over splits 1, 2, test part against train part"),
    }[which]
    for name in ("linear", "knn"):
        result = measure(name, tmp_path, run, split="all" if which == "splits" else None, compute=ONE)
        assert result["protocol"]["items"] == f"{tested} tested videos" and result["protocol"]["mode"] == mode
        assert result["protocol"]["classes"] == 4 and result["protocol"]["largest_class"] == 25
        assert len(overall(result["rows"])) == 2 * 2 * (1 if name == "linear" else 6)
        chance = [row for row in overall(result["rows"]) if row["network"] == "random"]
        assert 10 < np.mean([row["value"] for row in chance]) < 40 and all(row["low"] <= 30 for row in chance)
        sure = [row for row in overall(result["rows"]) if row["network"] == "pretrained"]
        assert all((row["value"], row["high"]) == (100, 100) and 80 < row["low"] < 92 for row in sure)
        assert sum(note.startswith("leaving videos out makes") for note in result["notes"]) == (which != "parts")
        assert mode in protocol_class(name).format_table(result)
        file = f"{name}-colors-1.json" if which == "parts" else f"{name}-colors.json"
        assert (run / "results" / file).exists()


def test_no_group_helps_its_own_videos(tmp_path, run, planted, monkeypatch):
    """The network sees the group and the class is the group's: nothing that carries over to another group."""
    write_colored(tmp_path / "colors" / "00000.h5", 16, splits=())
    group(monkeypatch, {f"00000_{i}": f"actor{i % 4}" for i in range(16)})
    for name in ("linear", "knn"):
        result = measure(name, tmp_path, run, compute=ONE)
        assert {row["value"] for row in result["rows"]} == {0}
        assert "16 test videos count as wrong: their class has no training video" in result["notes"]


def test_splits_that_leave_one_group_out_equal_leaving_groups_out(tmp_path, run, noise, monkeypatch):
    actor = np.arange(24) // 8
    write_colored(tmp_path / "free" / "free" / "00000.h5", 24, splits=())
    leave = np.where(actor[:, None] == np.arange(3), 3, 1)
    write_colored(tmp_path / "official" / "free" / "00000.h5", 24, split=leave, splits=("1", "2", "3"))
    group(monkeypatch, {f"00000_{i}": f"actor{actor[i]}" for i in range(24)})
    for name in ("linear", "knn"):
        one = measure(name, tmp_path / "free", run, compute=ONE)
        other = measure(name, tmp_path / "official", run, "all", compute=ONE)
        keys = ("stage", "pooling", "level", "metric", "split")
        pooled = {key: value for key, value in values(other, *keys).items() if key[-1] == "all"}
        assert [*pooled.values()] == [*values(one, *keys).values()] and len(other["rows"]) == 4 * len(one["rows"])


def test_mean_over_splits_that_do_not_cover_the_videos(tmp_path, run, noise):
    split = np.ones((24, 2), int)
    split[:8, 0] = split[4:16, 1] = 3
    write_colored(tmp_path / "two" / "00000.h5", 24, split=split, splits=("1", "2"))
    both = measure("knn", tmp_path, run, "all", compute=ONE)
    assert both["protocol"]["mode"] == "mean over splits 1, 2, test part against train part"
    keys = ("stage", "pooling", "level", "metric")
    single = [values(measure("knn", tmp_path, run, name, compute=ONE), *keys) for name in "12"]
    for key in single[0]:
        rows = {row["split"]: row["value"] for row in both["rows"] if key[1:] == tuple(row[name] for name in keys)}
        mean = (single[0][key] + single[1][key]) / 2
        assert rows == {"1": single[0][key], "2": single[1][key], "mean": pytest.approx(mean)}


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_the_order_of_the_shards_has_no_effect(tmp_path, run, noise, protocol):
    found = []
    for name, order in (("one", range(24)), ("other", range(23, -1, -1))):
        for shard in (0, 1):
            part = [order[12 * shard + i] for i in range(12)]
            write_shard(
                tmp_path / name / "same" / f"0000{shard}.h5",
                [20] * 12,
                labels=[f"color{i % 4}" for i in part],
                names=[f"v{i:02d}" for i in part],
                splits=(),
                frames=lambda seed, n, part=part: colored(part[seed % 100], n),
            )
        found.append(measure(protocol, tmp_path / name, run, compute=ONE))
    assert values(found[0], "stage", "pooling", "level", "metric") == values(
        found[1], "stage", "pooling", "level", "metric"
    )
    assert any(row["value"] for row in found[0]["rows"])


def test_features_are_shared_with_retrieval(demo, run, monkeypatch):
    measure("retrieval", demo, run, compute=ONE)
    monkeypatch.setattr(features, "stage_outputs", None)  # nothing is extracted again
    result = measure("linear", demo, run, compute=ONE)
    assert result["protocol"]["items"] == "5 tested videos" and result["notes"] == []
    assert {row["dimensions"] for row in result["rows"] if row["stage"] == "conv4"} == {15, 15 * 18}
    assert all(float(row["C"]) in STRENGTHS for row in result["rows"])
    table = Linear.format_table(result).splitlines()
    assert max(map(len, table)) <= 140 and sum(line.startswith("random") for line in table) == 10


# nearest neighbours


def test_votes_by_hand():
    """Cosines .9 for class 1, .89 and .85 for class 0: e^(.9/.07) < e^(.89/.07) + e^(.85/.07)."""
    cosine = np.array([0.9, 0.89, 0.85])
    gallery = np.stack([cosine, np.sqrt(1 - cosine**2)], 1).astype(np.float32) * [[2], [1], [5]]
    queries, found = np.array([[7, 0]], np.float32), np.array([[0, 1, 2]])
    assert votes(queries, gallery.astype(np.float32), found, np.array([1, 0, 0]), KS, TEMPERATURE).tolist() == [
        [1],
        [0],
        [0],
    ]
    far = np.array([[0.9, np.sqrt(0.19)], [0.7, np.sqrt(0.51)], [0.7, np.sqrt(0.51)]], np.float32)
    assert votes(queries, far, found, np.array([1, 0, 0]), KS, TEMPERATURE).tolist() == [
        [1],
        [1],
        [1],
    ]  # 17 times closer wins


def test_knn_equals_slow_protocol(demo, run):
    """The protocol once more, with loops, from the clips' features."""
    result = measure("knn", demo, run, compute=ONE)
    source, saved = data.Shards(demo), checkpoint.load(run)
    backbone = features.networks(saved)["pretrained"]
    clips = features.features(saved, "pretrained", backbone, source, source.videos, "spread", ONE)
    vectors, labels = clips.arrays["conv5", "mean"].astype(np.float64), source.text("videos/label")

    def unit(vector):
        return vector / np.linalg.norm(vector)

    for level in ("clip", "video"):
        items = {"train": [], "test": []}
        for video in range(13):
            own = [unit(vectors[i]) for i in range(len(vectors)) if clips.owner[i] == video]
            own = own if level == "clip" else [unit(sum(vectors[clips.owner == video]))]
            items["train" if source.part[video] == 1 else "test"] += [(vector, labels[video]) for vector in own]
        for k in (1, 5, 20):
            right = 0
            for query, label in items["test"]:
                nearest = sorted(((float(query @ vector), other) for vector, other in items["train"]), reverse=True)[:k]
                sums = {}
                for cosine, other in nearest:
                    sums[other] = sums.get(other, 0) + math.exp(cosine / 0.07)
                right += max(sums, key=sums.get) == label
            row = next(
                row
                for row in result["rows"]
                if (row["network"], row["stage"], row["pooling"], row["level"], row["metric"])
                == ("pretrained", "conv5", "mean", level, f"{k}-NN")
            )
            assert row["value"] == pytest.approx(100 * right / len(items["test"]))
    assert result["notes"] == ["video level: only 8 training items; larger k use all of them"]
    assert "exp(cosine / 0.07)" in KNearest.format_table(result)
