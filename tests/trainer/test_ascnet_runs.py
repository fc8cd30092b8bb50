"""Whole runs of ascnet."""

import torch

from tests.trainer.runs import SMALL, rows
from trainer import checkpoint, data
from trainer.data import Shards
from trainer.methods.ascnet import ASCNet
from trainer.settings import Settings
from trainer.training import train

OPTIONS = ASCNet.option_values()


def test_never_stores_a_held_out_video(demo, here):
    settings = Settings(**SMALL, method="ascnet", epochs=4, holdout=0.3, options={"ascnet": {"speeds": [1, 2]}})
    whole = train(settings, demo, "whole")
    assert [*rows(whole)[0]] == ["step", "epoch", "lr", "loss", "appearance", "speed", "spread", "constant"]
    with open(whole / "holdout.csv") as file:
        assert file.readline().strip() == "step,loss,appearance,speed,spread,constant" and len(file.readlines()) == 4
    source = Shards(demo)
    source.hold_out(0.3, 0)
    trained = sorted(source.first_row[shard] + video for shard, video in ASCNet.samples(source, OPTIONS)[0])
    filled = checkpoint.load(whole).weights["methods.ascnet.filled"]
    assert filled.nonzero()[:, 0].tolist() == trained and len(trained) < 7


def test_neighbours_change_from_the_videos_themselves_to_others_after_one_epoch(demo, here, monkeypatch):
    asked, of_videos = [], data.TrainingClips.of_videos

    def noted(self, raw, rows, read):
        asked.append((rows == raw["video"].numpy()).tolist())
        return of_videos(self, raw, rows, read)

    monkeypatch.setattr(data.TrainingClips, "of_videos", noted)
    train(Settings(**SMALL, method="ascnet", epochs=2), demo, "run")
    assert [len(step) for step in asked] == [3, 2, 2] * 2
    assert all(sum(asked[:3], [])) and not any(sum(asked[3:], []))


def test_averaged_networks_start_from_the_given_checkpoint(demo, here):
    """Not from the random weights that it replaces."""
    once = SMALL | {"epochs": 1}
    trained = checkpoint.load(train(Settings(**once, lr=0.1), demo, "first")).weights
    settings = Settings(**once, method="ascnet", ema=0.9, lr=1e-9, seed=5, options={"ascnet": {"decay": 1.0}})
    weights = checkpoint.load(train(settings, demo, "second", initial="first")).weights
    names = [name for name in trained if name.startswith("backbone.") and name.endswith("weight")]
    for name in names:
        assert torch.equal(weights[f"methods.ascnet.target.{name}"], trained[name])
        assert torch.allclose(weights[f"ema.{name}"], trained[name], atol=1e-6)
    assert len(names) > 20
