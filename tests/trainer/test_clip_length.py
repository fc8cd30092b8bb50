"""Clips are as long as those of the shards, from the samples of every method to evaluation and export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.trainer.runs import SMALL, rows
from tests.trainer.synthetic import CONFIG, cropped, video_frames, write_shard
from trainer import backbones, checkpoint, data
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.export import export
from trainer.methods import METHODS, method_class
from trainer.methods.statistics import SIZES, label_sizes
from trainer.settings import Settings
from trainer.training import train

LENGTH = 32
ONE = Compute(4, 0, "cpu")
OPTIONS = {
    "pace": {"contrast": "same-context"},
    "statistics": {"hidden": 8},
    "skip_clip": {"spacing": 1, "targets": 4},
    "tce": {"frames": LENGTH},
    "lejepa": {"hidden": 8, "outputs": 8},
}
BACKBONES = {"statistics": "c3d_light", "skip_clip": "resnet3d18", "rotation": "s3dg", "tce": "c3d"}
SHAPES = {
    "pace": (2, LENGTH),
    "order": (3, LENGTH),
    "skip_clip": (1, LENGTH + 4),
    "tce": (2, LENGTH),
    **dict.fromkeys(("ascnet", "simclr", "moco", "byol"), (2, LENGTH)),
    "rspnet": (3, LENGTH),
    "lejepa": (4, LENGTH),
}


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """Eight videos of 130 frames, labelled in clips of 32 frames; two of them for testing."""
    folder = tmp_path_factory.mktemp("long") / "long"
    labels = ["swim", "walk"] * 2
    write_shard(folder / "00000.h5", [130] * 4, [1, 1, 1, 3], labels, config=CONFIG | {"clip_length": LENGTH})
    write_shard(folder / "00001.h5", [130] * 4, [1, 1, 1, 3], labels[::-1], config=CONFIG | {"clip_length": LENGTH})
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_long_clips(long, here, method, monkeypatch):
    seen = []
    forward = method_class(method).forward

    def spied(self, backbone, batch):
        seen.append((len(batch.clips) // len(batch.video), batch.clips.shape[2]))
        return forward(self, backbone, batch)

    monkeypatch.setattr(method_class(method), "forward", spied)
    options = {method: OPTIONS[method]} if method in OPTIONS else None
    backbone = BACKBONES.get(method, "r3d10")
    labelled = method_class(method).of_labelled_clips
    settings = Settings(
        **SMALL | {"batch_size": 12 if labelled else 3},
        method=method,
        backbone=backbone,
        options=options,
        epochs=1,
        holdout=0.0,
    )
    run = train(settings, long)
    clips, frames = SHAPES.get(method, (1, LENGTH))
    assert len(rows(run)) == 2 and set(seen) == {(clips, frames)}
    assert checkpoint.load(run).meta["config"]["clip_length"] == LENGTH


def test_the_flow_of_most_motion_is_one_of_the_clip():
    for length in (16, LENGTH):
        sizes = label_sizes(length)
        assert sizes["motion"] == (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, length - 1, length - 1)
        assert sizes["appearance"] == SIZES["appearance"]


def test_samples_and_views_show_the_frames_of_long_clips(long):
    source = data.Shards(long)
    method = method_class("statistics")
    samples, options = method.samples(source, {})[0], method.option_values()
    assert len(samples) == 24 and source.clip_length == LENGTH
    clips = data.TrainingClips(source, samples, method, options, 0, "frame")
    batch = clips.batch(np.array([(0, 6)]))  # the third clip of the second video
    assert batch["clips"].shape == (1, 1, LENGTH, 32, 32, 3) and batch["view"]["jitter"].shape == (1, 1, LENGTH, 4)
    expected = cropped(video_frames(1, 130)[64:96], batch["view"]["corner"][0, 0])
    assert np.abs(batch["clips"][0, 0].numpy().astype(int) - expected).mean() < 6  # JPEG
    views = data.VideoViews(source, source.videos[:1], data.spread_frames)
    assert views.frames[:, 0].tolist() == [round(i * 98 / 9) for i in range(10)] and views.frames.shape == (10, LENGTH)
    assert views.batch([0, 1])["clips"].shape == (2, LENGTH, 40, 48, 3)
    assert data.sliding_frames(130, LENGTH)[:, 0].tolist() == [0, 16, 32, 48, 64, 80, 96]


def test_a_network_finetuned_on_long_clips_is_tested_explained_and_exported(long, here):
    small = SMALL | {"batch_size": 3}
    pretrained = train(Settings(**small, method="rotation", epochs=1), long, "rotation")
    run = train(
        Settings(**small | {"width": None}, method="recognition", epochs=1, holdout=0.0), long, initial=pretrained
    )
    assert measure("recognition", long, run, compute=ONE)["protocol"]["views"] == "10 clips of 32 frames, mean softmax"
    moment = measure("smoothness", long, pretrained, compute=ONE)["protocol"]["views"]
    assert moment.endswith("of a clip of 32 frames, one every 16 frames")
    result = measure("retrieval", long, pretrained, compute=ONE)
    assert result["protocol"]["views"] == "10 clips of 32 frames"
    assert {row["stage"] for row in result["rows"] if "stage" in row} == {f"conv{i}" for i in range(1, 6)}
    scenes = measure("scenes", long, pretrained, compute=ONE)["protocol"]["views"]
    assert scenes == "all clips of 32 frames with 16 overlapping, averaged"
    attention = measure("attention", long, pretrained, compute=ONE)
    assert attention["protocol"]["views"] == "the middle clip of 32 frames"
    about, difference = export(pretrained, here / "backbone.safetensors")
    assert about["input"]["frames"] == LENGTH and difference < 1e-3
    assert about["stages"]["conv1"][1] == LENGTH


def test_a_checkpoint_from_before_the_clip_length_was_stored_had_16_frames(pace_run, here):
    saved = checkpoint.load(pace_run)
    del saved.meta["config"]["clip_length"]
    weights = {name: weight.contiguous() for name, weight in saved.weights.items()}
    save_file(weights, here / "old.safetensors", {"vssl": json.dumps(saved.meta)})
    about, _ = export(here / "old.safetensors", here / "backbone.safetensors")
    assert about["input"]["frames"] == 16


@pytest.mark.parametrize("name", [name for name in backbones.BACKBONES if name != "resnet50"])
def test_backbones_take_clips_of_64_frames(name):
    with torch.device("meta"):
        short, long = (backbones.create(name)(torch.empty(1, 3, t, 112, 112)) for t in (16, 64))
    for stage in short:
        (*before, t, h, w), (*after, s, y, x) = short[stage].shape, long[stage].shape
        assert (before, h, w) == (after, y, x) and s == 4 * t
