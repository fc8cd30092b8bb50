"""Every method, one backbone of each family, joint training, held-out scores, resuming, evaluation and two processes on a
stand-in for a GPU: nothing mixes devices, nothing sensitive runs in bfloat16, and the host waits once a step at most.

`make test` runs three of the cases, `make test-all` all."""

import pytest
import torch

from tests.standin.rehearsal import CASES, PROTOCOLS, evaluate, fused, train, train_in_two
from trainer.methods import METHODS

WAITS = (
    1  # of the host for the device in a step or, in an evaluation, a batch, at most: for the metrics of the step before
)
MORE = {"ascnet": 1}  # for the rows of the similar videos, whose clips it decodes
QUICK = {"tce-nce", "joint", "recognition"}  # negatives, two methods and EMA, a finetuning and its test
REDUCED = {  # small sums over two processes per step: one of all metrics, and per pass one of counts, one of gradients
    "statistics": 2,
    "pace-context": 5,
    "order": 1,
    "skip_clip": 3,
    "tce-nce": 2,
    "ascnet": 1,
    "simclr": 3,
    "moco": 1,
    "byol": 1,
    "rspnet": 1,
    "lejepa": 2,
    "recognition-freeze": 1,
    "joint": 2,
}


def cases(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_every_method_is_rehearsed():
    assert {word for case in CASES.values() for word in case.replace("+", " ").split()} | {"recognition"} >= {*METHODS}


@pytest.mark.parametrize("name", cases(CASES))
def test_training_scoring_and_resuming(rehearse, name):
    found = rehearse(train, name)
    assert found.differs == [] and found.low == []
    assert found.waits.total() <= WAITS + MORE.get(name, 0), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pace", "pace-context", "pace-pace"])
def test_sgd_lars_and_adamw_are_fused(rehearse, name):
    assert rehearse(fused, name)


@pytest.mark.parametrize("protocol", cases(PROTOCOLS))
def test_evaluation(rehearse, protocol):
    found = rehearse(evaluate, protocol)
    assert found.low == []
    assert found.waits.total() <= WAITS, str(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_two_processes(rehearse_in_two, name):
    for rank in rehearse_in_two(train_in_two, name):
        found = rank.result()
        print(found)
        assert found.waits.total() <= WAITS + MORE.get(name, 0), str(found)
        small = [n for what, n in found.calls.items() if what.startswith("trainer/distributed") and "reduce" in what]
        assert sum(small) <= REDUCED[name], str(found)


@pytest.mark.slow
def test_the_device_stays_out_of_this_process(processes):
    with pytest.raises(RuntimeError, match="standin"):
        torch.device("standin")
