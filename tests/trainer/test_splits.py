"""Which videos are tested and which are learnt from, and accuracies over several splits."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.trainer.planted import group, write_colored
from tests.trainer.synthetic import write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate import evaluator, splits
from trainer.evaluate.evaluator import Evaluator
from trainer.evaluate.splits import grouped_folds


@pytest.fixture
def plan(monkeypatch):
    """(shards, split) -> the plan for a run that was trained on other data."""
    saved = SimpleNamespace(meta={"dataset": "another", "split": None, "settings": {"method": "pace"}})
    monkeypatch.setattr(evaluator, "load", lambda *_, **__: saved)
    return lambda shards, split=None: splits.learnable(Evaluator(shards, "run", split).folds())


def test_grouped_folds_hold_each_video_once_and_ignore_the_order():
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(3, size=50), rng.integers(12, size=50)
    held = grouped_folds(targets, groups)
    assert sorted(np.concatenate(held)) == list(range(50)) and len(held) == 5
    assert sum(len(set(groups[fold])) for fold in held) == len(set(groups))
    order = rng.permutation(50)
    again = grouped_folds(targets[order], groups[order])
    assert {frozenset(fold) for fold in held} == {frozenset(order[fold]) for fold in again}
    assert grouped_folds(np.arange(9), np.arange(9)) == [] and grouped_folds(np.zeros(9, int), np.zeros(9)) == []


def test_the_most_frequent_class_of_the_others():
    from sklearn.dummy import DummyClassifier

    targets = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    for fold in (np.arange(10), np.arange(10) // 3, np.arange(10) % 5):
        masks = [(fold == number, fold != number) for number in np.unique(fold)]
        right = [
            DummyClassifier(strategy="most_frequent").fit(targets[train], targets[train]).predict(targets[test])
            == targets[test]
            for test, train in masks
        ]
        assert splits.rarer(targets, masks).endswith(f": {100 * np.mean(np.concatenate(right)):.1f} %")
    balanced = np.arange(12) % 3
    assert splits.rarer(balanced, [(np.arange(12) == i, np.arange(12) != i) for i in range(12)]).endswith(": 0.0 %")


def test_groups_are_left_out_in_turn(tmp_path, monkeypatch, plan):
    write_colored(tmp_path / "a" / "00000.h5", 10, splits=())
    group(monkeypatch, {f"00000_{i}": f"actor{i // 4}" for i in range(10)})
    found = plan(tmp_path)
    assert found.mode == "leave one group out, 3 groups" and found.pooled and not found.splits
    assert splits.unfair(found) == [splits.rarer(found.source.targets, found.parts)]
    assert [test.tolist() for test, _ in found.parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(sorted([*test, *train]) == list(range(10)) for test, train in found.parts)
    monkeypatch.setattr(splits, "MOST_GROUPS", 2)
    found = plan(tmp_path)
    assert found.mode == "3 stratified folds of videos, groups kept together"
    assert sorted(np.concatenate([test for test, _ in found.parts])) == list(range(10))


def test_without_groups_there_are_stratified_folds(tmp_path, plan):
    write_colored(tmp_path / "a" / "00000.h5", 20, splits=())
    found = plan(tmp_path)
    assert found.mode == "5 stratified folds of videos"
    assert [sorted(found.source.targets[test]) for test, _ in found.parts] == [[0, 1, 2, 3]] * 5


def test_what_cannot_be_planned(tmp_path, plan):
    write_shard(tmp_path / "few" / "00000.h5", [20] * 3, splits=(), labels=["a", "b", "c"])
    with pytest.raises(TrainerError, match="few: 3 labelled videos, 3 groups and no class with two videos: no folds"):
        plan(tmp_path / "few")
    write_shard(tmp_path / "one" / "00000.h5", [20] * 3, split=[1, 1, 3], labels=["a", "a", "b"])
    with pytest.raises(TrainerError, match="one: 2 labelled videos of 1 class to learn from, expected two or more"):
        plan(tmp_path / "one")
    write_shard(tmp_path / "no" / "00000.h5", [20] * 4, [[1, 1], [3, 1]] * 2, list("aabb"), splits=("1", "2"))
    with pytest.raises(TrainerError, match="no: split 2 has no test part"):
        plan(tmp_path / "no", "all")
    assert plan(tmp_path / "no").splits == ()


def test_trained_on(demo, run, tmp_path):
    saved, source = checkpoint.load(run), data.Shards(demo)
    assert (splits.trained_on(saved.meta, source) == (source.part == data.TRAIN)).all()
    assert splits.seen(saved, source, np.flatnonzero(source.part == data.TEST)) == []
    assert splits.seen(saved, source, np.arange(13)) == [
        "8 of the 13 tested videos are training videos of pace, split split1 (without labels)"
    ]
    other = {**saved.meta, "settings": {**saved.meta["settings"], "holdout": 0.3}, "initial": saved.meta}
    held = data.Shards(demo)
    held.hold_out(0.3, 0)
    assert (splits.trained_on(other, source) == held.train_mask).all() and held.train_mask.sum() == 6
    notes = splits.seen(checkpoint.Checkpoint(saved.file, run, other, {}), source, np.arange(13))
    assert [note[:2] for note in notes] == ["6 ", "8 "]
    assert not splits.trained_on({**saved.meta, "datasets": {"other": "1"}}, source).any()
    assert splits.trained_on({**saved.meta, "datasets": {source.dataset: "gone"}}, source).all()
