"""Small runs, and what is compared of them."""

import csv

import torch

from trainer import checkpoint
from trainer.training import loop
from trainer.training.schedule import learning_rate

TIMES = ("data_ms", "compute_ms", "total_ms", "clips_per_s")
SMALL = {"width": 0.06, "batch_size": 3, "workers": 0, "device": "cpu"}


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one, other):
    assert rows(one) == rows(other)
    first, second = checkpoint.load(one), checkpoint.load(other)
    assert first.meta["step"] == second.meta["step"]
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())
    states = first.optimiser_state(), second.optimiser_state()
    assert all(torch.equal(value, states[1][i][name]) for i in states[0] for name, value in states[0][i].items())


def at_step(monkeypatch, step, action):
    """Do something in the middle of a step."""

    def hook(now, *args):
        if now == step:
            action()
        return learning_rate(now, *args)

    monkeypatch.setattr(loop, "learning_rate", hook)
