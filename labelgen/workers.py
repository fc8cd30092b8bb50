"""Processes that do the work: on this machine (joblib), on a Dask cluster, or one for a single call."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from labelgen.errors import ClusterError

_CLUSTER_SECONDS = 10  # to wait for a Dask scheduler, and for a worker


class WorkerLost(Exception):
    """A worker process of this machine was killed."""


@contextlib.contextmanager
def pool(workers: int, scheduler: str | None, say: Callable[[str], None]) -> Iterator[tuple[Callable, int]]:
    """Processes for many calls: a function `each(function, items)`, and how many calls it makes at a time.

    workers: processes of this machine, at most one per core; scheduler: address of a Dask cluster to use in their place

    `each` yields the results of `function(item)` as they come. It raises WorkerLost where a process of this machine was
    killed, ClusterError where the cluster fails; what a Dask worker was at when it went away is made by another one.
    Raises ClusterError where the cluster cannot be reached within ten seconds, or has no worker.
    """
    if scheduler is None:
        cores = len(os.sched_getaffinity(0))
        if workers > cores:
            say(f"{workers} workers asked for, {cores} cores here: {cores} at work")
        yield functools.partial(_each_here, workers=min(workers, cores)), min(workers, cores)
        return
    with _client(scheduler) as client:
        threads = client.nthreads()
        say(f"{scheduler}: {len(threads)} Dask workers, {sum(threads.values())} shards at a time; --workers is unused")
        yield functools.partial(_each_on_cluster, client=client), sum(threads.values())


def _each_here(function: Callable, items: Sequence, workers: int) -> Iterator:
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    workers = min(workers, len(items))
    # With n_jobs=1 joblib would stay in this process, which a broken video may kill: two processes, one of them busy.
    parallel = joblib.Parallel(
        n_jobs=max(workers, 2),
        backend="loky",
        batch_size=1,
        pre_dispatch=workers if workers == 1 else 2 * workers,
        return_as="generator_unordered",
    )
    try:
        with _deaf():
            results = parallel(joblib.delayed(function)(item) for item in items)
        yield from results
    except TerminatedWorkerError as error:
        raise WorkerLost from error


@contextlib.contextmanager
def _deaf():
    """Processes started here never see Ctrl-C, which goes to the whole group: ending them is this process's affair."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _client(scheduler: str):
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(f"--backend dask needs Dask: pip install 'dask[distributed]' ({error})") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what goes wrong is raised
    try:
        client = Client(scheduler, timeout=_CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{scheduler}: no Dask scheduler answers there ({error}); expected an address such as tcp://HOST:8786, as "
            "`dask scheduler` prints it"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CLUSTER_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"{scheduler}: the Dask cluster has no worker; start some with `dask worker {scheduler}`"
            ) from error
        yield client


def _each_on_cluster(function: Callable, items: Sequence, client) -> Iterator:
    # Dask's own interface: joblib's waits for ever where one call ends several workers.
    from distributed import CancelledError, KilledWorker, as_completed

    futures = client.map(function, items, pure=False)
    try:
        for future in as_completed(futures, loop=client.loop):
            yield future.result()
    except (KilledWorker, CancelledError, ImportError) as error:
        raise ClusterError(
            f"the Dask cluster failed ({error}); finished shards are kept: the same command goes on from them"
        ) from error
    finally:
        client.cancel(futures)


class ProcessLost(Exception):
    """The process of a call died; `status` is its exit status, negative for a signal."""

    def __init__(self, status: int):
        super().__init__(f"killed its process (signal {-status})" if status < 0 else f"its process ended with {status}")
        self.status = status


def apart(function: Callable, *arguments):
    """`function(*arguments)` in a new process with one thread; raises what it raises, or ProcessLost where it dies."""
    command = [sys.executable, "-c", f"from labelgen.workers import _answer; _answer({os.getpid()})"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, input=pickle.dumps((function, arguments)), env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        raise ProcessLost(done.returncode)
    good, answer = pickle.loads(done.stdout)
    if not good:
        raise answer
    return answer


def _answer(parent: int) -> None:
    """The other side of `apart`."""
    import cv2

    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not mix with the answer
        function, arguments = pickle.load(sys.stdin.buffer)
        try:
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, error
        pickle.dump(answer, out)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
