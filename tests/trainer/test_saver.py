"""Checkpoints are written beside the training, with the promises of those that are not."""

import os
import shutil
import signal
import threading

import pytest
import torch
from safetensors import SafetensorError

from labelgen.errors import WriteError
from tests.trainer.runs import SMALL, assert_same_run, at_step, rows
from trainer import checkpoint
from trainer.errors import Interrupted
from trainer.settings import Settings
from trainer.training import log, train

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


@pytest.mark.parametrize("board", [True, False])
def test_a_run_folder_that_is_deleted_ends_the_training_with_one_line(demo, here, monkeypatch, capfd, board):
    """At the next checkpoint, or before it where TensorBoard writes there."""
    if not board:
        monkeypatch.setattr(log, "_tensorboard", lambda *_: None)
    at_step(monkeypatch, 3, lambda: shutil.rmtree("runs/gone"))
    with pytest.raises(
        WriteError, match=r"runs/gone/(checkpoints|tensorboard): cannot be written \(No such file or dir"
    ):
        train(Settings(**SMALL, epochs=20), demo, "gone")
    assert "Traceback" not in capfd.readouterr().err and not os.path.exists("runs/gone")
