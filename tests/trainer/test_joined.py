"""Several data sets trained on together."""

import signal

import numpy as np
import pytest

from labelgen.errors import ShardError
from tests.command import vssl
from tests.trainer.runs import SMALL, assert_same_run, at_step
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data
from trainer.errors import Interrupted, TrainerError
from trainer.evaluate.evaluator import Evaluator
from trainer.evaluate.splits import trained_on
from trainer.settings import Settings, resolve
from trainer.training import train
from trainer.training.streams import training_streams


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Data sets a, of two shards, and b, whose split marks nothing; both have a group g."""
    folder = tmp_path_factory.mktemp("two")
    write_shard(folder / "a" / "00000.h5", [64, 70, 64], split=[1, 1, 3], groups=["g", "g", "h"])
    write_shard(folder / "a" / "00001.h5", [64], split=[1], groups=["i"])
    write_shard(folder / "b" / "00000.h5", [66, 64], splits=(), groups=["g", "k"])
    return folder / "a", folder / "b"


def test_videos_of_all_stand_side_by_side(two):
    joined = data.Shards(two)
    assert joined.dataset == "a+b" and joined.splits == {"a": "split1", "b": None} and joined.unsplit_datasets == ["b"]
    assert joined.train_mask.tolist() == [True, True, False, True, True, True]
    assert joined.text("videos/id")[0].startswith("a/") and joined.text("videos/id")[4].startswith("b/")
    assert joined.text("videos/group") == ["a/g", "a/g", "a/h", "a/i", "b/g", "b/k"]
    assert joined.videos[4].tolist() == [2, 0] and joined.first_row.tolist() == [0, 3, 4]
    assert joined.config_hash not in {data.Shards(one).config_hash for one in two}
    assert data.Shards(two[0]).text("videos/group")[0] == "g"


def test_what_was_labelled_in_another_way_is_refused(two, tmp_path):
    write_shard(tmp_path / "c" / "00000.h5", [64], config=CONFIG | {"paces": ["1", "2"]})
    with pytest.raises(ShardError, match=r"paces is \['1', '2'\], but in"):
        data.Shards([two[0], tmp_path / "c"])
    with pytest.raises(ShardError, match="a is given twice"):
        data.Shards([two[0], two[0]])


def test_weights_show_other_draws_of_the_same_video(two):
    settings = resolve(Settings(**SMALL, epochs=2, shard_weights=[1, 3]))
    shards = data.Shards(two)
    clips = training_streams(shards, settings)["pace"].clips
    assert clips.samples.tolist() == [[0, 0], [0, 1], [1, 0]] + [[2, 0]] * 3 + [[2, 1]] * 3
    stored = [shards.readers[shard].arrays["pace/pace"][0] for shard in (0, 2)]
    for sample, shard, rows in (
        (0, 0, (0, 1)),
        (3, 1, (0, 3)),
        (4, 1, (1, 0)),
        (5, 1, (2, 1)),
    ):  # of 4 rows the next one
        shown = clips.batch(np.array([(epoch, sample) for epoch in (0, 1)]))["labels"]["pace"][:, 0]
        assert shown.tolist() == stored[shard][[*rows]].tolist()


def test_a_run_on_two_data_sets_resumes_bit_for_bit_and_knows_what_it_saw(two, tmp_path, monkeypatch):
    settings, part = Settings(**SMALL, epochs=4, shard_weights=[1, 2]), tmp_path / "part"
    whole = train(settings, two, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        train(settings, two, part)
    train(None, two, resume=part)
    assert_same_run(whole, part)
    first = checkpoint.load(whole)
    assert first.meta["dataset"] == "a+b" and first.meta["datasets"] == {"a": "split1", "b": None}
    for one, seen in zip(two, ([True, True, False, True], [True, True]), strict=True):
        source = Evaluator(one, whole).source()
        assert trained_on(first.meta, source).tolist() == seen
    with pytest.raises(TrainerError, match="dataset of .* is a, but the run has a\\+b"):
        train(None, two[0], resume=part)


def test_the_command_takes_several(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--epochs", 1, "--width", 0.05, "--workers", 0, "--batch-size", 4, "--device", "cpu", "--run", "run")
    line = ("train", "--shards", two[0], "--shards", two[1], *small)
    told = "shard_weights are [2], expected one for each of a, b"
    assert told in vssl(*line, "--shard-weights", 2, code=1)
    assert "expected whole numbers" in vssl(*line, "--shard-weights", "0.5,1", code=2)
    assert "labels of one data set" in vssl(*line, "--method", "recognition", code=1)
    told = vssl(*line, "--repeats", 2)
    assert "5 samples of a+b, each 2 times, 1 epoch " in told and "b marks no video as train: all are used" in told
