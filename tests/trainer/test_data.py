import numpy as np
import pytest
import torch

from labelgen.shards import ShardReader
from tests.trainer.synthetic import CONFIG, GRID, cropped, video_frames, write_shard
from trainer import augment, data
from trainer.data import readers
from trainer.errors import TrainerError
from trainer.methods.pace import Pace
from trainer.methods.statistics import Statistics
from trainer.settings import Settings, resolve
from trainer.training.streams import training_streams

PACE, STATISTICS = Pace.option_values(), Statistics.option_values()


def keys(batches: data.Batches, steps: range) -> list[list[tuple[int, int]]]:
    return [[tuple(key) for key in batch.tolist()] for batch in batches.sampler(steps)]


def test_epochs_and_seeds_have_orders_of_their_own():
    whole = keys(data.Batches(10, 3, 0), range(12))
    assert sum(whole[:4], []) != [(0, sample) for _, sample in sum(whole[4:8], [])]
    assert whole != keys(data.Batches(10, 3, 1), range(12))


@pytest.mark.parametrize("micro", [1, 2])
def test_processes_and_accumulated_parts_share_the_batch_of_one(micro):
    whole = keys(data.Batches(10, 5, 0), range(4))
    parts = [keys(data.Batches(10, 5, 0, micro=micro, world=2, rank=rank), range(4)) for rank in (0, 1)]
    joined = [first + second for first, second in zip(*parts, strict=True)]
    assert [sum(joined[i : i + micro], []) for i in range(0, 4 * micro, micro)] == whole
    assert data.Batches(10, 5, 0, micro=micro, world=2).shares(0) == ([1] if micro == 1 else [3 / 5, 2 / 5])
    with pytest.raises(TrainerError, match="a batch of 5 samples cannot be shared among 3 processes and 2 accumulated"):
        data.Batches(10, 5, 0, micro=2, world=3)


def test_an_index_keeps_columns_and_few_shards_open(demo, monkeypatch):
    monkeypatch.setattr(readers, "_OPEN", 1)
    source, shards = data.Shards(demo), [ShardReader(demo / f"0000{k}.h5") for k in (0, 1)]
    for k in (1, 0, 1):
        assert (source.readers[k].jpeg(3) == shards[k].jpeg(3)).all()
        assert source.readers._open.cache_info().currsize == 1
    for name in ("videos/n_frames", "videos/split", "clips/video", "pace/pace", "videos/fps"):
        joined = np.concatenate([shard.arrays[name] for shard in shards])
        assert np.array_equal(source.readers.numbers(name), joined)
    assert source.text("videos/label") == [label for shard in shards for label in shard.arrays["videos/label"]]
    assert source.readers.sha256 == [shard.sha256 for shard in shards]


def test_clips_by_difficulty_with_static_ones_last(demo):
    source = data.Shards(demo)
    samples = Statistics.samples(source, STATISTICS)[0]
    scores = np.linspace(1, 2, len(samples)).astype(np.float32)
    scores[-3:] = np.nan
    source.readers.numbers("curriculum/score")[source.train_mask[source.clip_video]] = scores
    n = len(samples)
    assert source.by_difficulty(samples).tolist() == [*range(n - 4, -1, -1), *range(n - 3, n)]
    easy, hard = (source.half(samples, which, 0).tolist() for which in ("easy", "hard"))
    assert n == 27 and easy == samples[10:24].tolist() and hard == [*samples[:11].tolist(), *samples[24:].tolist()]


def test_a_curriculum_is_for_labelled_clips(demo):
    settings = resolve(Settings(method="pace", curriculum=0.5))
    with pytest.raises(TrainerError, match="a curriculum needs labelled clips, which pace does not draw"):
        training_streams(data.Shards(demo), settings)


def test_held_out_videos_are_whole_groups_of_about_the_share(demo, monkeypatch):
    groups = {f"0000{shard}_{video}": f"g{(shard * 6 + video) % 4}" for shard in (0, 1) for video in range(7)}
    original = data.Shards.text
    monkeypatch.setattr(
        data.Shards,
        "text",
        lambda self, key: (
            [groups[name] for name in original(self, "videos/id")] if "group" in key else original(self, key)
        ),
    )
    source, again = data.Shards(demo), data.Shards(demo)
    before = source.train_mask.copy()
    held = source.hold_out(0.5, 0)
    assert not (held & source.train_mask).any() and ((held | source.train_mask) == before).all()
    names = np.array(source.text("videos/group"))
    assert not set(names[held]) & set(names[source.train_mask]) and 0 < held.sum() <= 4
    assert (again.hold_out(0.5, 0) == held).all()
    assert len({tuple(data.Shards(demo).hold_out(0.5, seed)) for seed in range(8)}) > 1
    monkeypatch.setattr(data.Shards, "text", lambda self, key: ["one"] * len(original(self, key)))
    with pytest.raises(TrainerError, match="its 8 training videos are one group, so that none can be held out"):
        data.Shards(demo).hold_out(0.5, 0)


def test_split_by_name_number_and_default(demo):
    for split in (None, 1, "1", "split1"):
        source = data.Shards(demo, split)
        assert source.split == "split1" and len(source.videos) == 13 and source.train_mask.sum() == 8
        assert not source.unsplit_datasets and source.dataset == "demo"
    with pytest.raises(TrainerError, match=r"unknown split '2': the data set has split1 \(or 1 to 1\)"):
        data.Shards(demo, 2)


def test_without_official_training_videos_all_are_used(tmp_path):
    write_shard(tmp_path / "a" / "00000.h5", [64, 64], splits=())
    source = data.Shards(tmp_path / "a")
    assert source.split is None and source.unsplit_datasets and source.train_mask.all()
    assert len(Statistics.samples(source, STATISTICS)[0]) == 8
    with pytest.raises(TrainerError, match="unknown split 'split1': the data set has no splits"):
        data.Shards(tmp_path / "a", "split1")
    write_shard(tmp_path / "b" / "00000.h5", [64, 64], split=[2, 2])
    assert data.Shards(tmp_path / "b").unsplit_datasets


def test_training_clips_belong_to_training_videos(demo):
    source = data.Shards(demo)
    clips, left_out, _ = Statistics.samples(source, STATISTICS)
    assert len(clips) == 4 + 4 + 4 + 2 + 4 + 4 + 4 + 1 and left_out == 0
    for shard, clip in clips:
        arrays = source.readers[shard].arrays
        assert arrays["videos/split"][arrays["clips/video"][clip], 0] == 1


def test_a_sample_depends_on_seed_epoch_and_sample_alone(demo):
    source = data.Shards(demo)
    samples, left_out, _ = Pace.samples(source, PACE)
    assert len(samples) == 6 and left_out == 2
    one, other = (data.TrainingClips(source, samples, Pace, PACE, 3, "frame") for _ in range(2))
    torch.manual_seed(1)
    first = one.batch([(0, 1), (2, 4)])
    torch.rand(3)
    second = other.batch([(2, 4)])
    assert torch.equal(first["clips"][1], second["clips"][0])
    assert all(torch.equal(first["view"][name][1], second["view"][name][0]) for name in first["view"])
    views = [
        data.TrainingClips(source, samples, Pace, PACE, seed, "frame", tag).batch([(epoch, 4)])["view"]
        for seed, epoch, tag in ((3, 2, 0), (4, 2, 0), (3, 3, 0), (3, 2, 1))
    ]
    assert len({view["jitter"].numpy().tobytes() for view in views}) == 4


@pytest.mark.parametrize("seed", [3, 1 << 40])
def test_draws_are_those_of_numpys_generator_of_the_key(demo, seed):
    source = data.Shards(demo)
    clips = data.TrainingClips(source, Pace.samples(source, PACE)[0], Pace, PACE, seed, "frame", 1)
    view = clips.batch([(5, 2)])["view"]
    expected = augment.draw(np.random.default_rng((2, 1, seed, 5, 2)), source.crop_grid, 16, "frame")
    assert all(np.array_equal(view[name][0, 0], expected[name]) for name in expected)


def test_pace_sample_shows_the_frames_of_its_row(demo):
    source = data.Shards(demo)
    clips = data.TrainingClips(source, Pace.samples(source, PACE)[0], Pace, PACE, 0, "frame")
    reader = source.readers[0]
    for epoch in range(6):
        item = clips.batch([(epoch, 1)])  # the second video of the first shard
        row = epoch % CONFIG["rows"]
        pace, start = reader.arrays["pace/pace"][1, row], reader.arrays["pace/start"][1, row]
        assert item["labels"]["pace"] == pace and item["id"] == ["00000_1"] and item["video"] == 1
        shown = cropped(video_frames(1, 70)[start + np.arange(16) * (pace + 1)], item["view"]["corner"][0, 0])
        assert np.abs(item["clips"][0, 0].numpy().astype(int) - shown).mean() < 6  # JPEG


def test_statistics_labels_are_those_of_the_crop_and_mirror_drawn(demo):
    source = data.Shards(demo)
    samples = Statistics.samples(source, STATISTICS)[0]
    clips = data.TrainingClips(source, samples, Statistics, STATISTICS, 0, "none")
    batch = clips.batch([(0, sample) for sample in range(len(samples))])
    view, seen = {name: value[:, 0].numpy() for name, value in batch["view"].items()}, set()
    for sample, (shard, clip) in enumerate(samples):
        crop, mirror, arrays = view["crop"][sample], view["mirror"][sample], source.readers[shard].arrays
        assert (view["corner"][sample] == GRID[crop]).all()
        for name in ("motion", "appearance", "valid"):
            assert (batch["labels"][name][sample].numpy() == arrays[f"statistics/{name}"][clip, crop, mirror]).all()
        owner = arrays["clips/video"][clip]
        assert (
            batch["video"][sample] == source.first_row[shard] + owner and batch["id"][sample] == f"0000{shard}_{owner}"
        )
        seen.add((crop, mirror))
    assert len(seen) > 8


def test_clips_of_other_videos_show_what_is_asked_for_with_draws_of_their_own(demo):
    def read(reader, video, labels, draw):
        return reader.arrays["videos/first_frame"][video] + np.arange(16) + labels["start"].item()

    source = data.Shards(demo)
    clips = data.TrainingClips(source, Pace.samples(source, PACE)[0], Pace, PACE, 0, "none")
    raw = {"key": torch.tensor([(0, 1), (3, 2)]), "labels": {"start": torch.tensor([0, 1])}}
    found = clips.of_videos(raw, np.array([7, 1]), read)
    for i, (name, video) in enumerate(((101, 64), (1, 70))):
        expected = cropped(video_frames(name, video)[i : i + 16], found["view"]["corner"][i, 0])
        assert np.abs(found["clips"][i, 0].numpy().astype(int) - expected).mean() < 6
    raw = {"key": torch.tensor([(3, 2)]), "labels": {"start": torch.tensor([0])}}
    again = clips.of_videos(raw, np.array([0]), read)["view"]
    assert all(torch.equal(value[1], again[name][0]) for name, value in found["view"].items())


def test_evaluation_views():
    assert data.spread_frames(34, 16)[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert data.spread_frames(16, 16, 3).tolist() == [list(range(16))] * 3
    assert data.sliding_frames(40, 16)[:, 0].tolist() == [0, 8, 16, 24] and data.sliding_frames(39, 16)[-1, 0] == 16
    assert data.sliding_frames(3, 16).tolist() == [[0, 1, 2] * 5 + [0]]
    assert data.spread_frames(6, 16, 2).tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]] * 2


def test_test_videos_alone_are_not_trained_on(demo, monkeypatch):
    original = data.Shards._all
    monkeypatch.setattr(
        data.Shards,
        "_all",
        lambda self, key: original(self, key) * 0 + 3 if key == "videos/split" else original(self, key),
    )
    with pytest.raises(TrainerError, match="as test and none as train"):
        data.Shards(demo)


def test_ten_crops_by_hand(demo):
    shards = data.Shards(demo)
    ten, whole = (of(shards, shards.videos[:2], data.adjacent_frames) for of in (data.TenCrops, data.VideoViews))
    assert len(ten) == 10 * len(whole)
    order = [13, 4, 19, 10]  # of two clips, mixed
    batch = ten.batch(order)
    assert batch["index"].tolist() == order
    first, second = whole.batch([0, 1])["clips"]
    for shown, frames, (y, x), mirrored in (
        (batch["clips"][0], second, (8, 16), False),  # lower right
        (batch["clips"][1], first, (4, 8), False),  # centre
        (batch["clips"][2], second, (4, 8), True),
        (batch["clips"][3], second, (0, 0), False),
    ):
        crop = frames[:, y : y + 32, x : x + 32]
        assert (shown == (crop.flip(2) if mirrored else crop)).all()
