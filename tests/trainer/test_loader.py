"""The processes that decode: started in any way, under a long path, short of memory, silent."""

import multiprocessing
import os
import resource
import signal
import tempfile
import time

import pytest
import torch
from torch.utils.data import Dataset
from trainer.evaluate.bench import measure

from tests.trainer.runs import SMALL
from trainer import data
from trainer.data import transport
from trainer.errors import LoaderLost
from trainer.evaluate.features import Compute
from trainer.settings import Settings, resolve
from trainer.training import train
from trainer.training.streams import training_streams

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def ended():
    with data.ending_workers():
        yield


@pytest.fixture
def stream(demo):
    return training_streams(data.Shards(demo), resolve(Settings(**SMALL)))["pace"]


def same(one, other) -> bool:
    if isinstance(one, dict):
        return all(same(value, other[name]) for name, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture
def long_path(tmp_path, monkeypatch):
    """A folder for temporary files below which a socket's path would be too long, and nothing made in another one yet."""
    folder = tmp_path / ("x" * 110)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    config = multiprocessing.current_process()._config
    before = config.pop("tempdir", None)
    yield folder
    config.pop("tempdir", None)
    if before is not None:
        config["tempdir"] = before


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_batches_do_not_depend_on_how_processes_start(stream, method, monkeypatch, long_path):
    """Nor does what ends them."""
    expected = [*stream.start(range(3), 0, CPU)]
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        with data.ending_workers():
            batches = stream.start(range(3), 1, CPU)
            found = [next(batches) for _ in range(3)]
            repeated = stream.start_repeated(1, CPU)
            assert same([*data.received(repeated)][1], [*data.received(repeated)][1])
            children = multiprocessing.active_children()
        assert all(same(one, other) for one, other in zip(expected, found, strict=True))
        assert children and not any(child.is_alive() for child in children)
    finally:
        multiprocessing.set_start_method(before, force=True)
        if method == "forkserver":  # its socket is in the folder of this test
            multiprocessing.forkserver._forkserver._stop()


def test_names_that_only_linux_has_are_not_needed(demo, here, monkeypatch):
    """To train and to measure, with processes that are not forked."""
    for name in ("sched_getaffinity", "posix_fallocate", "posix_fadvise", "memfd_create", "pipe2", "waitid"):
        monkeypatch.delattr(os, name, raising=False)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        run = train(Settings(**SMALL | {"workers": 1}, epochs=1), demo)
        assert measure("retrieval", demo, run, compute=Compute(workers=0))["rows"]
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_what_cannot_be_sent_is_told(stream, monkeypatch, long_path):
    """And not waited for, as where a thread that PyTorch does not watch would have sent it."""
    monkeypatch.setattr(transport, "_shorten_sockets", lambda: None)
    with pytest.raises(LoaderLost, match=r"cannot send them \(AF_UNIX path too long\); check .* none \(--workers 0\)"):
        next(stream.start(range(3), 1, CPU))


def test_a_folder_that_is_too_long_and_no_other_is_told(stream, monkeypatch, long_path):
    make = tempfile.mkdtemp

    def full(prefix=None, dir=None, **named):
        if (dir or tempfile.gettempdir()) in ("/tmp", "/var/tmp"):
            raise OSError("full")
        return make(prefix=prefix, dir=dir, **named)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(LoaderLost, match="too long a path for a socket, .* set TMPDIR to a folder"):
        stream.start(range(3), 1, CPU)


def test_full_shared_memory_says_what_to_do(stream):
    """With the kernel's limit of a file's size in its place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        batches = stream.start(range(3), 1, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(LoaderLost, match=r"/dev/shm.* has no room for a batch of 0 MB; .*--shm-size=2g.*--workers 0"):
        next(batches)


def test_processes_that_cannot_be_started_are_told(stream, monkeypatch, capsys):
    fork, forks = os.fork, []

    def few():
        forks.append(1)
        if len(forks) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", few)
    with pytest.raises(LoaderLost, match=r"can be started \(\[Errno 11\] Resource .*ulimit -u.*--workers 0"):
        stream.start(range(3), 2, CPU)
    assert capsys.readouterr().err == ""


class Slow(Dataset):
    """Batches of clips, each of which takes a while."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __getitems__(self, keys):
        for _ in keys:
            time.sleep(self.seconds)
            transport.alive()
        return {"keys": torch.tensor(keys)}


def test_silence_ends_and_slowness_does_not(monkeypatch):
    monkeypatch.setattr(transport, "_LOOK", 0.5)
    monkeypatch.setattr(transport, "STALLED", 1)
    batches = data.received(data.loader(Slow(0.2), 1, CPU, batch_sampler=[[*range(12)], [0]]))
    assert len(next(batches)["keys"]) == 12  # after twice as long as silence may last
    assert next(batches)["keys"].tolist() == [0]
    message = "live, and have decoded nothing for 1 s; check the disk .*--workers 0"
    with pytest.raises(LoaderLost, match=message), data.ending_workers():
        batches = data.received(data.loader(Slow(0.2), 1, CPU, batch_sampler=[[0]] * 9))
        next(batches)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGSTOP)
        for _ in range(8):
            next(batches)


def test_a_signal_to_all_processes_leaves_the_batches(stream):
    batches = stream.start(range(3), 1, CPU)
    next(batches)
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
    assert len([*batches]) == 2
