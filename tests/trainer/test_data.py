import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.trainer.synthetic import CONFIG, GRID, video_frames, write_shard
from trainer import data
from trainer.errors import TrainerError
from trainer.methods.pace import Pace
from trainer.methods.statistics import Statistics


def flatten(batches):
    return [key for batch in batches for key in batch]


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 3), (10, 10), (7, 30), (31, 30), (1, 4)])
def test_each_epoch_is_one_pass_in_even_batches(samples, batch_size):
    per_epoch = data.steps_per_epoch(samples, batch_size)
    batches = list(data.batch_indices(samples, batch_size, 5, range(2 * per_epoch)))
    assert len(batches) == 2 * per_epoch
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    for epoch in (0, 1):
        keys = flatten(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(keys) == [(epoch, sample) for sample in range(samples)]


def test_resumed_in_mid_epoch_skips_exactly():
    whole = list(data.batch_indices(10, 3, 0, range(12)))
    for first in range(13):
        assert list(data.batch_indices(10, 3, 0, range(first, 12))) == whole[first:]
    assert flatten(whole[:4]) != [(0, sample) for _, sample in flatten(whole[4:8])]
    assert whole != list(data.batch_indices(10, 3, 1, range(12)))


def test_split_by_name_number_and_default(demo):
    for split in (None, 1, "1", "split1"):
        source = data.Shards(demo, split)
        assert source.split == "split1" and len(source.videos) == 13 and source.trains.sum() == 8
        assert not source.whole and source.dataset == "demo"
    with pytest.raises(TrainerError, match=r"unknown split '2': the data set has split1 \(or 1 to 1\)"):
        data.Shards(demo, 2)


def test_without_official_training_videos_all_are_used(tmp_path):
    write_shard(tmp_path / "a" / "00000.h5", [64, 64], splits=())
    source = data.Shards(tmp_path / "a")
    assert source.split is None and source.whole and source.trains.all()
    assert len(Statistics.samples(source)[0]) == 8
    with pytest.raises(TrainerError, match="unknown split 'split1': the data set has no splits"):
        data.Shards(tmp_path / "a", "split1")
    write_shard(tmp_path / "b" / "00000.h5", [64, 64], split=[2, 2])
    assert data.Shards(tmp_path / "b").whole


def test_training_clips_belong_to_training_videos(demo):
    source = data.Shards(demo)
    clips, left_out, _ = Statistics.samples(source)
    assert len(clips) == 4 + 4 + 4 + 2 + 4 + 4 + 4 + 1 and left_out == 0
    for shard, clip in clips:
        arrays = source.readers[shard].arrays
        assert arrays["videos/split"][arrays["clips/video"][clip], 0] == 1


def test_a_sample_depends_on_seed_epoch_and_sample_alone(demo):
    source = data.Shards(demo)
    samples, left_out, _ = Pace.samples(source)
    assert len(samples) == 6 and left_out == 2
    one, other = (data.TrainingClips(source, samples, Pace, 3, "frame") for _ in range(2))
    torch.manual_seed(1)
    first = one[2, 4]
    one[0, 0], torch.rand(3)
    second = other[2, 4]
    assert torch.equal(first["clip"], second["clip"])
    assert all(np.array_equal(first["view"][name], second["view"][name]) for name in first["view"])
    views = [
        data.TrainingClips(source, samples, Pace, seed, "frame")[epoch, 4]["view"]
        for seed, epoch in ((3, 2), (4, 2), (3, 3))
    ]
    assert len({view["jitter"].tobytes() for view in views}) == 3


def test_workers_change_nothing(demo):
    source = data.Shards(demo)
    clips = data.TrainingClips(source, Statistics.samples(source)[0], Statistics, 0, "none")
    batches = []
    for workers in (0, 2):
        indices = data.batch_indices(len(clips.samples), 4, 0, range(5))
        batches.append(list(data.loader(clips, workers, torch.device("cpu"), batch_sampler=indices)))
    for one, other in zip(*batches, strict=True):
        assert one["id"] == other["id"] and torch.equal(one["clip"], other["clip"])
        assert all(torch.equal(one["labels"][name], other["labels"][name]) for name in one["labels"])


def test_pace_sample_shows_the_frames_of_its_row(demo):
    source = data.Shards(demo)
    clips = data.TrainingClips(source, Pace.samples(source)[0], Pace, 0, "frame")
    reader = source.readers[0]
    for epoch in range(6):
        item = clips[epoch, 1]  # the second video of the first shard
        row = epoch % CONFIG["rows"]
        pace, start = reader.arrays["pace/pace"][1, row], reader.arrays["pace/start"][1, row]
        assert item["labels"]["pace"] == pace and item["id"] == "00000_1"
        shown = video_frames(1, 70)[start + np.arange(16) * (pace + 1)]
        assert np.abs(item["clip"].numpy().astype(int) - shown).mean() < 6  # JPEG


def test_statistics_labels_are_those_of_the_crop_and_mirror_drawn(demo):
    source = data.Shards(demo)
    samples = Statistics.samples(source)[0]
    clips = data.TrainingClips(source, samples, Statistics, 0, "none")
    seen = set()
    for sample, (shard, clip) in enumerate(samples):
        item = clips[0, sample]
        view, arrays = item["view"], source.readers[shard].arrays
        assert (view["corner"] == GRID[view["crop"]]).all()
        here = clip, view["crop"], view["mirror"]
        assert (item["labels"]["motion"] == arrays["statistics/motion"][here]).all()
        assert (item["labels"]["appearance"] == arrays["statistics/appearance"][here]).all()
        assert (item["labels"]["valid"] == arrays["statistics/valid"][here]).all()
        seen.add((view["crop"], view["mirror"]))
    assert len(seen) > 8


def test_evaluation_views():
    assert data.view_frames(34, 10)[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert data.view_frames(16, 3).tolist() == [list(range(16))] * 3
    assert data.view_frames(6, 2).tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]] * 2


def test_trainer_needs_neither_pyav_nor_numba():
    code = (
        "import sys, trainer.loop, trainer.evaluate.retrieval, trainer.evaluate.features;"
        "print([name for name in ('av', 'numba', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_test_videos_alone_are_not_trained_on(demo, monkeypatch):
    original = data.Shards._all
    monkeypatch.setattr(
        data.Shards,
        "_all",
        lambda self, key: original(self, key) * 0 + 3 if key == "videos/split" else original(self, key),
    )
    with pytest.raises(TrainerError, match="as test and none as train"):
        data.Shards(demo)
