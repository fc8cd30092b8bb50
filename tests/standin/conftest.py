"""Processes with a stand-in device; the process of the tests has none, because a device cannot be taken away again."""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.standin import device
from tests.trainer.synthetic import write_shard


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Two of them, as executors. Skipped without a compiler; the first build takes about a minute."""
    if reason := device.missing():
        pytest.skip(f"the stand-in device cannot be built: {reason}")
    from tests.standin import rehearsal

    library, folder = device.build(), tmp_path_factory.mktemp("standin")
    write_shard(folder / "demo" / "00000.h5", [64, 66] * 6, split=[1] * 10 + [3] * 2)
    spawn = multiprocessing.get_context("spawn")
    options = {"max_workers": 1, "mp_context": spawn, "initializer": rehearsal.start, "initargs": (library, folder)}
    with ProcessPoolExecutor(**options) as one, ProcessPoolExecutor(**options) as other:
        yield one, other


@pytest.fixture
def rehearse(processes):
    """Run a function of rehearsal.py where the device is; its result, which is printed."""

    def run(function, *arguments):
        result = processes[0].submit(function, *arguments).result()
        print(result)
        return result

    return run


@pytest.fixture
def rehearse_in_two(processes):
    """The same of two processes at once: function(name, rank, ...); the results of both."""

    def run(function, name, *arguments) -> list[Future]:
        return [process.submit(function, name, rank, *arguments) for rank, process in enumerate(processes)]

    return run
