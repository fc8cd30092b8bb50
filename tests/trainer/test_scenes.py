import numpy as np
import pytest

from tests.trainer.planted import Noise, SeesClass, kept_scores, write_colored
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols import scenes
from trainer.evaluate.protocols.scenes import Scenes, leave_one_out

ONE = Compute(8, 0, "cpu")


def test_leave_one_out_equals_a_plain_svm_on_all_coordinates():
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    targets = np.arange(24) % 3
    x = (np.eye(3)[targets] @ rng.normal(size=(3, 50)) + 4 * rng.normal(size=(24, 50))).astype(np.float32)
    slow = []
    for i in range(24):
        others = [j for j in range(24) if j != i]
        machine = LinearSVC(random_state=0, max_iter=100_000, tol=1e-8).fit(x[others], targets[others])
        slow.append(machine.predict(x[[i]])[0])
    assert leave_one_out(x, targets).tolist() == slow
    assert 8 < (leave_one_out(x, targets) == targets).sum() < 24  # neither all right nor all wrong


def test_a_class_of_one_video_is_never_predicted_for_it():
    assert leave_one_out(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))[0] == 1


def test_planted_classes_and_noise(tmp_path, run, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 40, splits=())
    saved = checkpoint.load(run)
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass(), "random": Noise()})
    result = measure("scenes", tmp_path, run, compute=ONE)
    *measured, chance = (row for row in result["rows"] if row["metric"] == "accuracy")
    assert chance == {"network": "chance", "metric": "accuracy", "value": 25} and "chance" in Scenes.format_table(
        result
    )
    assert "note: leaving videos out makes" in Scenes.format_table(result) and result["notes"][0].endswith(": 0.0 %")
    top = {(row["network"], row["stage"], row["pooling"]): row for row in measured}
    assert len(top) == 2 * 3 * 2
    for (network, _, _), row in top.items():
        if network == "pretrained":
            assert (row["value"], row["high"]) == (100, 100) and row["low"] == pytest.approx(100 * 40 / (40 + 1.96**2))
        else:
            assert row["value"] < 55 and row["low"] < 25 + 15
    assert {row["class"]: row["value"] for row in result["rows"] if row["metric"] == "class accuracy"} == {
        f"color{k}": 100.0 for k in range(4)
    }
    assert result["protocol"]["items"] == "40 videos" and result["protocol"]["largest_class"] == 25
    assert (saved.run / "results/scenes-colors.json").exists() and "leave one video out" in Scenes.format_table(result)
    kept = kept_scores(result)
    assert len(kept.items) == 40 and kept.classes.tolist() == [f"color{k}" for k in range(4)]


def test_features_are_those_of_overlapping_clips(demo, run):
    """20 frames: one clip; 33: three, from 0, 8 and 16."""
    saved, source = checkpoint.load(run), data.Shards(demo)
    backbone = features.networks(saved)["pretrained"]
    found = features.features(saved, "pretrained", backbone, source, source.videos[[9, 12]], "sliding", ONE)
    assert found.owner.tolist() == [0, 1, 1, 1]
    mean = found.arrays["conv5", "mean"][1:].mean(0)
    assert found.video_means(("conv5", "mean"))[1] == pytest.approx(mean / np.linalg.norm(mean), rel=1e-4)


def test_what_cannot_be_scored(tmp_path, run, monkeypatch):
    write_shard(tmp_path / "one" / "00000.h5", [20, 20], splits=(), labels=["a", "a"])
    with pytest.raises(TrainerError, match="one: 1 class with labelled videos, expected two or more"):
        measure("scenes", tmp_path / "one", run)
    config = {**CONFIG, "expected": {"videos": 420, "classes": 14}}
    write_shard(tmp_path / "yupenn" / "00000.h5", [20] * 4, splits=(), labels=["a", "b", "a", ""], config=config)
    result = measure("scenes", tmp_path / "yupenn", run, compute=ONE)
    assert result["notes"][0] == "1 video without label left out" and "not the whole data set" in result["notes"][1]
    monkeypatch.setattr(scenes, "MOST_VIDEOS", 2)
    with pytest.raises(TrainerError, match="3 videos, expected at most 2"):
        measure("scenes", tmp_path / "yupenn", run)
