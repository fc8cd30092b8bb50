import shutil
from pathlib import Path

import pytest
import torch

from tests.trainer.runs import SMALL
from tests.trainer.synthetic import write_shard
from trainer.settings import Settings
from trainer.training import train


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """Two shards, 13 videos: 8 train, 5 test (one shorter than a clip); two train videos are too short for pace 4."""
    folder = tmp_path_factory.mktemp("out") / "demo"
    write_shard(folder / "00000.h5", [64, 70, 64, 40, 66, 64], split=[1, 1, 1, 1, 1, 3])
    write_shard(folder / "00001.h5", [64, 64, 30, 20, 64, 9, 33], split=[1, 1, 1, 3, 3, 3, 3])
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, so that runs/ starts empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks are faster so, and tests do not depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def unbroken(demo, tmp_path_factory):
    """A pace run of 40 steps, two an epoch, which no test changes."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    torch.set_num_threads(1)
    return train(Settings(**SMALL, epochs=20), demo, run)


@pytest.fixture(scope="session")
def pace_run(demo, tmp_path_factory):
    """A small pace run on demo, which no test changes."""
    torch.set_num_threads(1)
    return train(Settings(width=0.06, epochs=1, workers=0, lr=0.1), demo, tmp_path_factory.mktemp("trained") / "pace")


@pytest.fixture(scope="module")
def run(pace_run, tmp_path_factory):
    """The pace run, copied for the results of one module's tests."""
    return Path(shutil.copytree(pace_run, tmp_path_factory.mktemp("runs") / "pace"))
