"""The page of a training's first samples shows the clips that the training gets, and says what is to be learnt from them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from tests.trainer.pages import Page
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data
from trainer.data.overlay import Overlay
from trainer.inputs import OURS
from trainer.methods import METHODS
from trainer.methods.method import Method
from trainer.methods.statistics import COLORS
from trainer.pages import samples
from trainer.pages.films import Films
from trainer.pages.report import report
from trainer.settings import Settings, resolve
from trainer.training import streams, train

DEVICE = torch.device("cpu")
WORDS = {  # of each method: what its clips are called, and a line about one sample, as regular expressions
    "statistics": (["clip"], r"rings: most diverse block \d, its colour [a-z]+, most stable"),
    "pace": ([r"pace [1-4]"], r"pace [1-4]"),
    "order": ([r"clip [123] of the video"] * 3, r"order [123]-[123]-[123]"),
    "skip_clip": (
        [
            "context",
            *(rf"target {i}, {4 * i} frames later" for i in range(1, 9)),
            *[r"copy of target \d, \d+ degrees"] * 8,
        ],
        "target frames from near to far",
    ),
    "tce": (["anchor", "positive.*", r"copy of the anchor, \d+ degrees"], "rotation of the copy"),
    "ascnet": ([r"speed [12]"] * 2, "appearance: the other clip of the video"),
    "rspnet": ([r"query, speed [12]", *[r"key, speed [12]"] * 2], "both keys are of the query's video"),
    "rotation": (["0 degrees", "90 degrees", "180 degrees", "270 degrees"], "rotation of the copies"),
    "recognition": (["clip"], "class (swim|walk)"),
}


class Watched(Films):
    """Films that keep what they are given."""

    def __init__(self):
        super().__init__({})
        self.given = []

    def clip(self, frames, seconds, alt):
        self.given.append((frames, seconds, alt))
        return super().clip(frames, seconds, alt)


def shown(folder, count=3, **settings):
    """The clips of the first samples, in order, and the page's text, by method."""
    own, films = resolve(Settings(**settings)), Watched()
    source, _ = streams.select_videos(folder, own)
    text = {name: Page(html).text for name, html in samples.samples_html(source, own, count, films, print).items()}
    return films.given, text


def trained_on(folder, **settings):
    """The first batch that a training loads, on the device, and the ids of its videos."""
    own = resolve(Settings(**settings))
    source, _ = streams.select_videos(folder, own)
    (stream,) = streams.training_streams(source, own).values()
    raw = next(stream.load(range(1), 0, DEVICE))
    return stream.on_device(raw, 0.0, DEVICE), raw["id"]


def pixels(clips):
    return [OURS.pixels(clip.permute(1, 2, 3, 0).numpy()) for clip in clips]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "order", "seed": 3},
        {"method": "ascnet", "jitter": "contrast", "crop_area": [0.3, 0.5]},
        {"method": "pace", "holdout": 0.3, "options": {"pace": {"contrast": "same-context"}}},
    ],
)
def test_the_clips_are_those_of_the_training(demo, settings):
    batch, ids = trained_on(demo, **settings)
    given, _ = shown(demo, count=2, **settings)
    n = len(batch.clips) // len(ids)
    assert len(given) == 2 * n
    for (frames, seconds, alt), expected, video in zip(given, pixels(batch.clips), np.repeat(ids, n), strict=False):
        assert np.array_equal(frames, expected) and seconds == 1 / 25 and alt.endswith(f" of {video}")


def test_more_samples_than_a_step_or_an_epoch_has(demo):
    few = shown(demo, count=7, method="pace", batch_size=2)[0]
    many = shown(demo, count=7, method="pace", batch_size=30)[0]
    assert len(few) == 7 and all(np.array_equal(one[0], other[0]) for one, other in zip(few, many, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_is_to_be_learnt(demo, method):
    given, text = shown(demo, count=2, method=method, holdout=0.0)
    names, line = WORDS.get(method, (None, "views of one video"))
    assert re.search(line, text[method]) and "`" not in text[method]
    told = [alt.rpartition(" of ")[0] for _, _, alt in given]
    if names:
        assert len(told) == 2 * len(names)
        assert all(re.fullmatch(name, said) for name, said in zip(2 * names, told, strict=True))
    assert all(frames.dtype == np.uint8 and frames.shape[1:] == (32, 32, 3) for frames, _, _ in given)


def test_orders_and_turns_are_those_of_the_clips(demo):
    batch, _ = trained_on(demo, method="order")
    orders = data.Shards(demo).readers[0].orders[batch.labels["order"]] + 1
    text = shown(demo, count=3, method="order")[1]["order"]
    assert re.findall(r"order ([-\d]+)", text) == ["-".join(map(str, order)) for order in orders[:3]]
    given, text = shown(demo, count=1, method="skip_clip", options={"skip_clip": {"targets": 3}})
    assert "a clip and 3 later frames" in text["skip_clip"]
    given = shown(demo, count=1, method="rotation")[0]
    assert all(np.array_equal(np.rot90(given[0][0], k, (1, 2)), given[k][0]) for k in range(4))
    (anchor, _, copy) = shown(demo, count=1, method="tce")[0]
    turns = int(re.search(r"(\d+) degrees", copy[2])[1]) // 90
    assert np.array_equal(np.rot90(anchor[0], turns, (1, 2)), copy[0])


def test_statistics_says_the_labels_that_are_learnt(demo):
    options = {"statistics": {"parts": "appearance", "patterns": ["rings"], "global_labels": True}}
    batch, _ = trained_on(demo, method="statistics", options=options)
    text = shown(demo, count=1, method="statistics", options=options)[1]["statistics"]
    ids = batch.labels["appearance"][0].tolist()
    assert (
        f"rings: most diverse block {ids[4]}, its colour {COLORS[ids[5]]}, most stable block {ids[6]}, its colour "
        f"{COLORS[ids[7]]} whole crop: colour {COLORS[ids[12]]}" in text
    )
    assert "grid" not in text and "u moves" not in text


def test_a_method_that_says_nothing_shows_its_views_and_labels():
    clips = torch.rand(2, 3, 4, 8, 8)
    batch = data.Batch(clips, {"speed": torch.tensor([[1, 2]])}, torch.tensor([0]), 0.0)
    lines, views = Method.shown(batch, None, {})
    assert lines == ["2 views of one video", "speed [1, 2]"] and [name for name, _ in views] == ["view 1", "view 2"]
    assert torch.equal(views[1][1], clips[1])
    lines, views = Method.shown(data.Batch(clips[:1], {}, torch.tensor([0]), 0.0), None, {})
    assert lines == [] and views[0][0] == "clip"


def test_a_run_shows_its_own_samples_and_none_of_another_choice_of_videos(pace_run, demo):
    saved, films = checkpoint.load(pace_run), Watched()
    assert "pace" in samples.samples_of_run(saved, str(demo), films)
    batch, _ = trained_on(demo, **saved.meta["settings"])
    assert all(np.array_equal(frames, own) for (frames, *_), own in zip(films.given, pixels(batch.clips), strict=False))
    for change in ({"samples": {"pace": 5}}, {"settings": saved.meta["settings"] | {"split": "other"}}):
        assert samples.samples_of_run(replace(saved, meta=saved.meta | change), str(demo), films) == ""


def test_a_run_of_other_classes_or_of_several_data_sets_shows_its_samples(demo, tmp_path):
    opened, films = data.Shards(demo), Films({})
    parts = np.where(np.arange(len(opened.videos)) < 6, 1, 3).astype(np.uint8)
    overlay = Overlay(["x"] * len(parts), {"mine": parts}).write(tmp_path, "own", opened.readers.digest)
    settings = Settings(width=0.06, epochs=1, workers=0, holdout=0.0)
    saved = checkpoint.load(train(settings, demo, tmp_path / "run", overlay=overlay))
    assert "pace" in samples.samples_of_run(saved, str(demo), films, overlay)
    assert samples.samples_of_run(saved, str(demo), films) == ""  # of others
    other = {**CONFIG, "dataset": "other"}
    write_shard(tmp_path / "other" / "00000.h5", [64, 64], split=[1, 1], config=other)
    run = train(replace(settings, split=None), [demo, tmp_path / "other"], tmp_path / "both")
    text = Page(report(run, [tmp_path / "other", demo])[0].read_text()).text
    assert "Samples of pace" in text and "Samples of pace" not in Page(report(run, [demo])[0].read_text()).text


@pytest.fixture(scope="module")
def path(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages") / "new" / "samples.html"
    options = ["--method", "ascnet+pace", "--jitter", "contrast", "--set", "contrast=same-context", "--count", "2"]
    done = CliRunner().invoke(main, ["show", "samples", "--shards", str(demo), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    assert f"{out} (" in done.output and "pace leaves out: 2 videos too short" in done.output
    return out


def test_the_command_writes_one_page_of_all_methods(path):
    text, found = path.read_text(encoding="ascii"), Page(path.read_text())
    assert [section["id"] for section in found.all("section")] == ["samples-0", "samples-1"]
    assert "colour jitter contrast of strength 1, crops of 0.2 to 1 of the frame" in found.text
    groups = [div for div in found.all("div") if div.get("class") == "together"]
    assert len(groups) == 4 and all(group["tabindex"] == "0" and group["aria-label"] for group in groups)
    films = [span for span in found.all("span") if span.get("role") == "img"]
    assert len(films) == 8 and all(text.count(f".{film['class'].split()[1]}{{--film") == 1 for film in films)
    assert not re.search(r"(?:src|href)=.https?:|@import|url\((?!data:)", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "statistics", "--jitter", "contrast"], "statistics learns labels of the grid crops"),
        (["--method", "pace", "--crop-area", "0.5,1"], "jitter is frame, which does not use it"),
        (["--method", "pace", "--subset", "easy"], "a subset needs labelled clips"),
        (["--method", "none"], "unknown method 'none'"),
    ],
)
def test_what_a_training_refuses_is_refused(demo, tmp_path, options, message):
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["show", "samples", "--shards", str(demo), "--out", str(out), *options])
    assert done.exit_code and message in done.output and not out.exists()


def test_the_clips_of_a_sample_move_together(path, browser):
    films = "[...document.querySelector('.together').querySelectorAll('.film')]"
    moving = f"{films}.filter(one => getComputedStyle(one, '::after').backgroundImage.includes('webp')).length"
    assert browser.faults(path) == []
    assert browser.run(moving) == 0
    browser.run("document.querySelector('.together').focus()")
    assert browser.run(moving) == 2
