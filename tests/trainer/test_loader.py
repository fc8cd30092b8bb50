"""Batches that are decoded in threads."""

import os
import threading
from itertools import count

import pytest
import torch

from labelgen.errors import ShardError
from labelgen.processes import cores
from tests.trainer.runs import SMALL
from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.settings import Settings, resolve
from trainer.training import train
from trainer.training.streams import training_streams

CPU = torch.device("cpu")


def same(one, other) -> bool:
    if isinstance(one, dict):
        return all(same(value, other[name]) for name, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


class Numbers:
    """Batches that are numbers; those of some keys are damaged."""

    def __init__(self, *damaged):
        self.damaged, self.asked, self.threads, self.go = damaged, [], set(), threading.Event()
        self.go.set()

    def batch(self, key):
        assert self.go.wait(60)
        self.asked.append(key)
        self.threads.add(threading.current_thread())
        if key in self.damaged:
            raise ShardError(f"{key} is damaged")
        return {"n": torch.tensor(key)}


@pytest.mark.parametrize("method", ["pace", "statistics"])
def test_the_number_of_threads_changes_nothing(demo, method):
    stream = training_streams(data.Shards(demo), resolve(Settings(**SMALL, method=method)))[method]
    expected = [*stream.load(range(7), 0, CPU)]
    for workers in (1, 3):
        found = stream.load(range(7), workers, CPU)
        assert all(same(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_is_raised_in_the_place_of_its_batch(workers):
    batches = data.prefetch(Numbers(2, 3), range(9), workers, CPU)
    assert [int(next(batches)["n"]) for _ in range(2)] == [0, 1]
    with pytest.raises(ShardError, match="2 is damaged"):
        next(batches)


def test_threads_decode_a_few_batches_ahead_and_end_when_the_iterator_is_closed():
    numbers, before = Numbers(), threading.active_count()
    batches = data.prefetch(numbers, count(), 2, CPU)
    assert [int(next(batches)["n"]) for _ in range(5)] == [0, 1, 2, 3, 4]
    numbers.go.clear()
    waiting = threading.active_count() - before
    numbers.go.set()
    batches.close()
    assert 1 <= waiting <= 2 and len(numbers.asked) <= 5 + 2 * 2
    assert not any(thread.is_alive() for thread in numbers.threads)


def test_threads_are_bounded():
    numbers = Numbers()
    list(data.prefetch(numbers, range(40 * cores()), 100_000, CPU))
    assert len(numbers.threads) <= 4 * cores()


def test_no_more_threads_says_what_to_do(monkeypatch):
    def full(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(TrainerError, match=r"\(can't start new thread\); .*ulimit -u.*--workers 0"):
        next(data.prefetch(Numbers(), range(3), 1, CPU))


def test_names_that_only_linux_has_are_not_needed(demo, here, monkeypatch):
    """To train and to measure, as on macOS."""
    for name in ("sched_getaffinity", "posix_fallocate", "posix_fadvise", "memfd_create", "pipe2", "waitid", "fork"):
        monkeypatch.delattr(os, name, raising=False)
    run = train(Settings(**SMALL | {"workers": 1}, epochs=1), demo)
    assert measure("retrieval", demo, run, compute=Compute(workers=1))["rows"]
