"""Which draws a run shows: repeats, stored draws that run out, fractions and halves, the stages of a curriculum."""

import math
from collections import Counter

import numpy as np
import pytest

from tests.trainer.runs import SMALL, rows
from tests.trainer.synthetic import CONFIG, cropped, video_frames, write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate.splits import trained_on
from trainer.methods.rotation import Rotation
from trainer.methods.statistics import Statistics
from trainer.settings import Settings, resolve, resumed
from trainer.training import train
from trainer.training.schedule import learning_rate, pacing
from trainer.training.streams import training_streams

FIXED = [0.04 * 1.9**k for k in range(6)]  # of the public code of Hacohen and Weinshall; the next would be 1.88


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Four videos, of which three random clips are labelled, one too short for more than two, one too short for any."""
    folder = tmp_path_factory.mktemp("several") / "several"
    write_shard(folder / "00000.h5", [64, 17, 64], config=CONFIG | {"clips": 3})
    write_shard(folder / "00001.h5", [12, 64], config=CONFIG | {"clips": 3})
    return folder


def shown(batches: data.Batches, steps: range) -> list[tuple[int, int]]:
    return [tuple(key) for batch in batches.sampler(steps) for key in batch.tolist()]


# repeats


@pytest.mark.parametrize(
    ("samples", "batch_size", "repeats"), [(10, 3, 4), (7, 30, 10), (31, 8, 2), (10, 10, 1), (31, 30, 1), (1, 4, 1)]
)
def test_an_epoch_shows_every_sample_so_often_each_time_another_draw(samples, batch_size, repeats):
    batches = data.Batches(samples, batch_size, 5, repeats=repeats)
    n = batches.per_epoch
    assert n == math.ceil(samples * repeats / batch_size)
    sizes = [batches.size(step) for step in range(n)]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    for epoch in range(3):
        keys = shown(batches, range(epoch * n, (epoch + 1) * n))
        assert sorted(keys) == [(epoch * repeats + r, sample) for r in range(repeats) for sample in range(samples)]
    whole = shown(batches, range(3 * n))
    for first in range(3 * n):
        done = sum(map(batches.size, range(first)))
        again = data.Batches(samples, batch_size, 5, repeats=repeats)
        assert shown(again, range(first, 3 * n)) == whole[done:]


def test_a_repeated_showing_takes_the_next_row(demo):
    settings = resolve(Settings(method="pace", repeats=3, epochs=2, batch_size=4))
    stream = training_streams(data.Shards(demo), settings)["pace"]
    last = settings.epochs * stream.batches.per_epoch
    for key in np.concatenate(list(stream.batches.sampler(range(last)))):
        shard, video = stream.clips.samples[key[1]]
        stored = stream.clips.shards.readers[shard].arrays["pace/pace"][video]
        assert stream.clips.batch(key[None])["labels"]["pace"] == stored[key[0] % CONFIG["rows"]]
    assert last == 2 * math.ceil(3 * 6 / 4)


def test_a_run_of_an_older_version_has_the_defaults_of_what_it_lacks(here):
    new = ("repeats", "fraction", "subset", "pacing")
    stored = {name: value for name, value in vars(resolve(Settings())).items() if name not in new}
    assert resumed(Settings(repeats=1), stored, here) == resolve(Settings())
    with pytest.raises(TrainerError, match="repeats is 2, but the run has 1"):
        resumed(Settings(repeats=2), stored, here)


# stored draws


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 4}, None),
        ({"epochs": 5}, "pace: each stored draw is shown 2 times; label with --rows 5 to avoid it"),
        ({"epochs": 2, "repeats": 10}, "pace: each stored draw is shown 5 times; label with --rows 20 to avoid it"),
        ({"epochs": 2, "options": {"pace": {"contrast": "same-context"}}}, None),
        (
            {"epochs": 3, "options": {"pace": {"contrast": "same-context"}}},
            "pace: each stored draw is shown 2 times; label with --rows 6 to avoid it",
        ),
        ({"method": "order", "epochs": 9}, "order: each stored draw is shown 3 times; label with --rows 9 to avoid it"),
        ({"method": "statistics", "epochs": 9}, None),
        ({"method": "recognition", "epochs": 9}, None),
    ],
)
def test_training_says_when_stored_draws_repeat(demo, capsys, settings, told):
    training_streams(data.Shards(demo), resolve(Settings(**settings)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "stored draw" in line]
    assert lines == ([f"warning: {told}"] if told else [])


# several random clips per video


@pytest.mark.parametrize("method", [Statistics, Rotation])
def test_a_sample_is_a_video_of_which_each_pass_shows_another_clip(several, method):
    source, options = data.Shards(several), method.option_values()
    samples, left_out, why = method.samples(source, options)
    assert samples.tolist() == [[0, 0], [0, 1], [0, 2], [1, 1]] and (left_out, why) == (1, "without a labelled clip")
    clips = data.TrainingClips(source, samples, method, options, 0, "none")
    for sample, (shard, video) in enumerate(samples):
        reader = source.readers[shard]
        stored = np.flatnonzero(reader.arrays["clips/video"] == video)
        assert len(stored) == (2 if (shard, video) == (0, 1) else 3)
        frames = video_frames(100 * shard + video, reader.arrays["videos/n_frames"][video])
        seen = []
        for number in range(2 * len(stored)):
            batch = clips.batch(np.array([(number, sample)]))
            corner, shown = batch["view"]["corner"][0, 0], batch["clips"][0, 0].numpy().astype(int)
            starts = reader.arrays["clips/start"][stored]
            errors = [np.abs(shown - cropped(frames[start : start + 16], corner)).mean() for start in starts]
            seen.append(int(np.argmin(errors)))
            assert min(errors) < 6 and batch["video"] == source.first_row[shard] + video
            if method is Statistics:
                view = batch["view"]["crop"][0, 0], batch["view"]["mirror"][0, 0]
                label = reader.arrays["statistics/motion"][stored[seen[-1]]][view]
                assert (batch["labels"]["motion"][0].numpy() == label).all()
        assert sorted(seen[: len(stored)]) == list(range(len(stored))) and seen[len(stored) :] == seen[: len(stored)]


def test_a_pass_does_not_show_the_first_clips_of_all_videos(several):
    source = data.Shards(several)
    numbers = []
    for item in (0, 2):
        first, *_ = clips = data.index.sample_clips(source.readers[0], item)
        numbers.append([clips[(number + item) % len(clips)] - first for number in range(3)])
    assert all(one != other for one, other in zip(*numbers, strict=True))


def test_an_epoch_is_one_clip_per_video_and_a_run_says_when_they_repeat(several, here, capsys):
    run = train(Settings(**SMALL, method="statistics", epochs=4), several)
    assert len(rows(run)) == 4 * math.ceil(4 / 3) and checkpoint.load(run).meta["samples"] == {"statistics": 4}
    told = "statistics: each stored draw is shown 2 times; label with --clips 4 to avoid it"
    assert told in capsys.readouterr().out
    train(Settings(**SMALL, method="statistics", epochs=3), several)
    assert "stored draw" not in capsys.readouterr().out


def test_a_video_is_as_easy_as_the_mean_of_its_clips_that_move(several):
    source = data.Shards(several)
    scores = source.readers.numbers("curriculum/score")
    scores[:] = 0.1, 0.2, np.nan, np.nan, np.nan, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2
    samples = source.labelled_clips()[0]
    assert source.by_difficulty(samples).tolist() == [2, 3, 0, 1]


# fractions and halves


def test_fractions_are_drawn_by_the_seed_and_nested(tmp_path):
    write_shard(tmp_path / "many" / "00000.h5", [20] * 24, split=[1] * 20 + [3] * 4)
    write_shard(tmp_path / "many" / "00001.h5", [20] * 12)
    before, kept = np.ones(36, bool), Counter()
    for fraction, n in ((1, 32), (3 / 4, 24), (1 / 2, 16), (1 / 4, 8), (1 / 8, 4), (1 / 16, 2), (1e-9, 1)):
        for seed in range(3):
            source = data.Shards(tmp_path / "many")
            source.subsample(fraction, seed)
            assert source.train_mask.sum() == n and (source.part[source.train_mask] == data.TRAIN).all()
            again = data.Shards(tmp_path / "many")
            again.subsample(fraction, seed)
            assert (again.train_mask == source.train_mask).all()
            kept[fraction, source.train_mask.tobytes()] += 1
            if seed == 0:
                assert not (source.train_mask & ~before).any()
                before = source.train_mask
    assert len([1 for fraction, _ in kept if fraction == 1 / 4]) == 3


def test_a_fraction_is_of_whole_videos_beside_those_held_out(demo, here, capsys):
    run = train(Settings(**SMALL, method="statistics", epochs=1, holdout=0.25, fraction=0.5), demo)
    out = capsys.readouterr().out
    assert "2 training videos are held out, 6 are used for training" in out and "3 of 6 training videos are used" in out
    meta, source = checkpoint.load(run).meta, data.Shards(demo)
    used = trained_on(meta, source)
    expected = data.Shards(demo)
    held = expected.hold_out(0.25, 0)
    expected.subsample(0.5, 0)
    assert used.sum() == 3 and (used == expected.train_mask).all() and not (used & held).any()
    assert meta["samples"]["statistics"] == used[source.clip_video].sum()


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_a_fraction_is_more_than_0_and_at_most_1(fraction):
    with pytest.raises(TrainerError, match=rf"fraction is {fraction}, expected more than 0 and at most 1"):
        resolve(Settings(fraction=fraction))


@pytest.mark.parametrize("folder", ["demo", "several"])
def test_halves_have_one_size_and_easy_and_hard_are_complements(request, folder):
    source = data.Shards(request.getfixturevalue(folder))
    samples = source.labelled_clips()[0]
    rng = np.random.default_rng(0)
    scores = source.readers.numbers("curriculum/score")
    scores[:] = rng.random(len(scores))
    halves = {which: source.half(samples, which, 0).tolist() for which in ("easy", "hard", "random")}
    assert {len(half) for half in halves.values()} == {math.ceil(len(samples) / 2)}
    both = [item for item in halves["easy"] if item in halves["hard"]]
    assert len(both) == len(samples) % 2
    order = source.by_difficulty(samples)
    assert sorted(halves["easy"]) == sorted(samples[order[: math.ceil(len(samples) / 2)]].tolist())
    if folder == "demo":
        drawn = {str(source.half(samples, "random", seed)) for seed in range(4)} | {str(halves["easy"])}
        assert len(drawn) == 5


@pytest.mark.parametrize("subset", ["easy", "hard", "random"])
def test_a_run_on_one_half_shows_that_half_alone(demo, here, capsys, subset):
    source = data.Shards(demo)
    settings = resolve(Settings(method="statistics", subset=subset, epochs=2))
    stream = training_streams(source, settings)["statistics"]
    assert len(stream.clips.samples) == 14
    assert stream.clips.samples.tolist() == source.half(source.labelled_clips()[0], subset, 0).tolist()
    assert f"statistics uses the {subset} half, 14 of 27 samples" in capsys.readouterr().out
    with pytest.raises(TrainerError, match="a subset needs labelled clips, which pace does not draw"):
        training_streams(source, resolve(Settings(method="pace", subset=subset)))


# stages


def test_pacing_by_hand():
    assert pacing(resolve(Settings(method="statistics")), 100) == []
    single = Settings(method="statistics", curriculum=0.5)
    assert pacing(resolve(single), 100) == [(50, 0.5)]
    fixed = pacing(resolve(Settings(method="statistics", curriculum=0.6, pacing="fixed")), 100)
    assert [stop for stop, _ in fixed] == [10, 20, 30, 40, 50, 60]
    varied = pacing(resolve(Settings(method="statistics", curriculum=0.6, pacing="varied")), 10_000)
    assert [share for _, share in fixed] == [share for _, share in varied] == pytest.approx(FIXED)
    lengths = np.diff([0] + [stop for stop, _ in varied])
    assert lengths.sum() == 6000 and lengths / lengths.sum() == pytest.approx(np.array(FIXED) / sum(FIXED), abs=2e-4)
    with pytest.raises(TrainerError, match="pacing is fixed, but curriculum is 0; set curriculum"):
        resolve(Settings(pacing="fixed"))


@pytest.mark.parametrize("pace", ["single", "fixed", "varied"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_stages_show_the_easiest_clips_as_many_in_all_and_no_draw_twice(pace, repeats):
    order = np.random.default_rng(1).permutation(50)
    settings = resolve(Settings(method="statistics", curriculum=0.5, pacing=pace))
    plain = data.Batches(50, 8, 0, repeats=repeats)
    steps = 12 * plain.per_epoch
    stages = [(stop, order[: math.ceil(share * 50)]) for stop, share in pacing(settings, steps)]
    batches = data.Batches(50, 8, 0, stages, repeats)
    per_step = [shown(batches, range(step, step + 1)) for step in range(steps)]
    assert [len(keys) for keys in per_step] == [len(shown(plain, range(step, step + 1))) for step in range(steps)]
    everything = sum(per_step, [])
    assert len(set(everything)) == len(everything) == 12 * 50 * repeats
    assert batches.passes(steps) == max(number for number, _ in everything) + 1
    first = 0
    for stop, chosen in [*stages, (steps, order)]:
        keys = sum(per_step[first:stop], [])
        if len(keys) >= len(chosen):
            assert sorted(sample for _, sample in keys[: len(chosen)]) == sorted(chosen)
        assert {sample for _, sample in keys} <= set(chosen.tolist())
        first = stop
    for step in range(0, steps, 7):  # from any step on
        assert shown(data.Batches(50, 8, 0, stages, repeats), range(step, steps)) == sum(per_step[step:], [])


def test_without_a_part_for_a_stage_it_is_skipped():
    batches = data.Batches(10, 4, 0, [(0, np.array([1])), (2, np.array([1, 2]))])
    assert {sample for _, sample in shown(batches, range(2))} == {1, 2}
    assert sorted(sample for _, sample in shown(batches, range(2, 6))[:10]) == list(range(10))


@pytest.mark.parametrize(("pace", "share"), [("single", 0.5), ("fixed", 0.5), ("varied", 0.25)])
def test_each_stage_of_a_curriculum_has_the_learning_rate_of_its_share(pace, share):
    """The summed learning rates are those of a run without a curriculum, times the shares of the steps."""
    for schedule in ("step", "cosine", "constant"):
        common = {"method": "statistics", "lr": 1.0, "epochs": 20, "schedule": schedule, "drop_every": 4}
        with_it, without = (resolve(Settings(**common, **more)) for more in ({"curriculum": share, "pacing": pace}, {}))
        rates = [learning_rate(step, with_it, 40) for step in range(800)]
        whole = sum(learning_rate(step, without, 40) for step in range(800))
        middle = int(share * 800)
        assert sum(rates[:middle]) == pytest.approx(share * whole, rel=0.01)
        assert sum(rates[middle:]) == pytest.approx((1 - share) * whole, rel=0.01)
        if schedule == "step":
            one = [learning_rate(step, without, 40) for step in range(800)]
            assert rates[:middle] == one[:: round(1 / share)]


@pytest.mark.parametrize("pace", ["fixed", "varied"])
def test_a_run_with_exponential_pacing_logs_the_shares(demo, here, pace):
    settings = Settings(**SMALL, method="rotation", epochs=3, curriculum=0.7, pacing=pace)
    whole = train(settings, demo)
    shares = [float(row["clips_share"]) for row in rows(whole)]
    assert shares == sorted(shares) and shares[-1] == 1 and len(rows(whole)) == 27
    if pace == "fixed":
        assert sorted(set(shares)) == pytest.approx([*FIXED, 1])


def test_every_process_knows_how_many_samples_the_others_have():
    """11 samples in batches of 6 and 5, two parts each, for two processes."""
    processes = [data.Batches(11, 6, 0, micro=2, world=2, rank=rank) for rank in range(2)]
    shown = [[len(items) for items in batches.sampler(range(4))] for batches in processes]
    for batches in processes:
        counts = [pair for step in range(4) for pair in batches.counts(step)]
        assert counts == [list(pair) for pair in zip(*shown, strict=True)]
