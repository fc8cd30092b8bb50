"""Every method, one backbone of each family, joint training, held-out scores, resuming, evaluation and two processes on a
stand-in for a GPU: nothing mixes devices, nothing sensitive runs in bfloat16, and the host waits no more often than is known."""

import pytest
import torch

from tests.standin.rehearsal import CASES, PROTOCOLS, evaluate, train, train_in_two
from trainer.methods import METHODS

# How often the host waits for the device in one training step, at most. To be lowered to 1.
WAITS = {
    "statistics": 2,
    "statistics-raw": 2,
    "pace": 2,
    "pace-context": 5,
    "pace-pace": 3,
    "order": 2,
    "skip_clip": 4,
    "tce": 2,
    "tce-nce": 2,
    "ascnet": 6,
    "rotation": 2,
    "recognition": 2,
    "recognition-freeze": 2,
    "joint": 3,
    "c3d": 2,
    "r2plus1d": 2,
    "resnet3d": 2,
    "s3dg": 2,
    "resnet2d": 2,
}
WAITS_IN_TWO = {  # processes
    "statistics": 4,
    "pace-context": 19,
    "order": 4,
    "skip_clip": 12,
    "tce-nce": 10,
    "ascnet": 17,
    "recognition-freeze": 4,
    "joint": 5,
}
WAITS_PER_BATCH = {"retrieval": 20, "smoothness": 1, "recognition": 20}  # of the videos, in an evaluation


def test_every_method_is_rehearsed():
    assert {word for case in CASES.values() for word in case.replace("+", " ").split()} | {"recognition"} >= {*METHODS}


@pytest.mark.parametrize("name", CASES)
def test_training_scoring_and_resuming(rehearse, name):
    found = rehearse(train, name)
    assert found.differs == [] and found.low == []
    assert found.waits.total() <= WAITS[name], str(found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluation(rehearse, protocol):
    found = rehearse(evaluate, protocol)
    assert found.low == []
    assert found.waits.total() <= WAITS_PER_BATCH[protocol], str(found)


@pytest.mark.parametrize("name", WAITS_IN_TWO)
def test_two_processes(rehearse_in_two, name):
    for rank in rehearse_in_two(train_in_two, name):
        found = rank.result()
        print(found)
        assert found.waits.total() <= WAITS_IN_TWO[name], str(found)


def test_the_device_stays_out_of_this_process(processes):
    with pytest.raises(RuntimeError, match="standin"):
        torch.device("standin")
