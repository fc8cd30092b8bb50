"""Checkpoints are written beside the training, with the promises of those that are not."""

import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from labelgen.errors import WriteError
from tests.trainer.runs import SMALL, assert_same_run, at_step, rows
from trainer import checkpoint
from trainer.errors import Interrupted, TrainerError
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.settings import Settings
from trainer.training import train

OFTEN = Settings(**SMALL, epochs=20, checkpoint_minutes=0.0)


def test_training_goes_on_while_a_checkpoint_is_written(unbroken, demo, here, monkeypatch):
    """That of the first step is written until the tenth, and holds the weights of the first."""
    write, later, written = checkpoint.save_file, threading.Event(), []

    def slow(weights, file, meta=None):
        if meta is None:  # of the optimiser
            return write(weights, file)
        if len(written) == 1:
            assert later.wait(60)
        write(weights, file, meta)
        written.append(file)
        if len(written) == 2:
            os.link(file, here / "first.safetensors")

    monkeypatch.setattr(checkpoint, "save_file", slow)
    at_step(monkeypatch, 9, later.set)
    assert_same_run(train(OFTEN, demo, "run"), unbroken)
    at_step(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(OFTEN, demo, "stopped")
    first, stopped = checkpoint.load("first.safetensors"), checkpoint.load("stopped")
    assert first.meta["step"] == stopped.meta["step"] == 1
    assert all(torch.equal(weight, stopped.weights[name]) for name, weight in first.weights.items())


def test_a_checkpoint_that_cannot_be_written_ends_the_training(demo, here, monkeypatch):
    """Where the disk fills up in the midst of it, and the last one is whole."""
    write, files = checkpoint.save_file, []

    def full(weights, file, meta=None):
        if meta is None:
            return write(weights, file)
        files.append(file)
        if len(files) == 3:
            raise SafetensorError("No space left on device")
        write(weights, file, meta)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WriteError, match=r"checkpoints/\d+: cannot be written \(No space left on device\)"):
        train(OFTEN, demo, "full")
    assert len(files) == 3 and len(rows(here / "runs/full")) < 40
    assert checkpoint.load("full").meta["step"] < len(rows(here / "runs/full"))
    assert len(os.listdir("runs/full/checkpoints")) == 1


def test_checkpoints_are_minutes_apart(demo, here, monkeypatch):
    """None but the first and the last within five minutes."""
    steps, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda run, step, **named: (steps.append(step), save(run, step, **named))[1]
    )
    train(Settings(**SMALL, epochs=4), demo, "run")
    assert steps == [0, 8]


def test_one_checkpoint_of_every_few_epochs_stays(unbroken, demo, here, monkeypatch):
    """Those of a run that is stopped and resumed are those of the unbroken one; each has its own results."""
    every = replace(Settings(**SMALL, epochs=20), keep_every=6)
    at_step(monkeypatch, 30, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(every, demo, "run")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert sorted(os.listdir("runs/run/kept")) == ["00000012", "00000024"]
    assert_same_run(train(None, demo, resume="run"), unbroken)
    assert sorted(os.listdir("runs/run/kept")) == ["00000012", "00000024", "00000036"]
    assert os.listdir("runs/run/checkpoints") == ["00000040"]
    for epochs, kept in ((6, "runs/run/kept/00000012"), (18, "runs/run/kept/00000036")):
        at_step(monkeypatch, 2 * epochs - 1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(Settings(**SMALL, epochs=20), demo, f"until {epochs}")
        stopped, saved = checkpoint.load(f"until {epochs}"), checkpoint.load(kept)
        assert saved.meta["step"] == stopped.meta["step"] == 2 * epochs
        assert all(torch.equal(weight, stopped.weights[name]) for name, weight in saved.weights.items())
        result = measure("smoothness", demo, kept, compute=Compute(8, 0, "cpu"))
        assert result["file"].startswith(f"{kept}/results/smoothness-") and os.path.exists(result["file"])
        assert sorted(os.listdir(kept)) == ["checkpoint.json", "features", "results", "weights.safetensors"]
    with pytest.raises(TrainerError, match="does not belong to a run whose training could continue"):
        train(None, demo, resume=kept)
    assert checkpoint.newest_run().name == "until 18"


def test_a_run_folder_that_is_deleted_ends_the_training_with_one_line(demo, here, monkeypatch, capfd):
    at_step(monkeypatch, 3, lambda: shutil.rmtree("runs/gone"))
    with pytest.raises(WriteError, match=r"runs/gone/checkpoints: cannot be written \(No such file or dir"):
        train(Settings(**SMALL, epochs=20), demo, "gone")
    assert "Traceback" not in capfd.readouterr().err and not os.path.exists("runs/gone")
