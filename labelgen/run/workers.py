"""Processes that do the work: on this machine (joblib) or on a Dask cluster."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from labelgen.cluster import connected
from labelgen.errors import ClusterError
from labelgen.processes import cores, end_with, safe_path
from labelgen.progress import WARNING, counted
from labelgen.run.process import check_threads, no_process

if TYPE_CHECKING:
    from distributed import Client, Future


class WorkerLost(Exception):
    """A worker process of this machine was killed."""


@contextlib.contextmanager
def pool(
    workers: int, scheduler: str | None, say: Callable[[str], None], what: str = "shards"
) -> Iterator[tuple[Callable[..., Iterator[Any]], int]]:
    """Processes for many calls: yields a function `each(function, tasks)`, and how many calls it makes at a time.

    workers: processes of this machine, at most one per core; scheduler: address of a Dask cluster to use instead
    what: the results of calls, for messages

    `each` yields the results of `function(task)` as they come. It takes a few tasks at a time from their iterator,
    because all of them would not fit into memory. It raises WorkerLost if a process of this machine was killed,
    ClusterError if the cluster fails; if a Dask worker leaves, another one repeats its tasks. Raises ClusterError if
    the cluster cannot be reached within ten seconds or has no workers.
    """
    if scheduler is None:
        most = cores()
        if workers > most:
            say(
                f"{WARNING}{counted(workers, 'worker')} requested, but this machine has {counted(most, 'core')}: "
                f"{counted(most, 'worker is', 'workers are')} used"
            )
        yield functools.partial(_each_here, workers=min(workers, most)), min(workers, most)
        return
    with connected(scheduler) as client:
        threads = client.nthreads()
        say(f"{scheduler}: {counted(len(threads), 'Dask worker')}, {sum(threads.values())} {what} at a time")
        yield functools.partial(_each_on_cluster, client=client), sum(threads.values())


def _each_here(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    left = iter(tasks)
    first = list(itertools.islice(left, workers))
    workers = len(first)
    check_threads(6 + 3 * max(workers, 2))  # else joblib would wait forever for a thread that did not start
    with safe_path():
        # With n_jobs=1 joblib would stay in this process, which a broken video may kill: so two processes, one of them idle.
        parallel = joblib.Parallel(
            n_jobs=max(workers, 2),
            backend="loky",
            batch_size=1,
            pre_dispatch=workers if workers == 1 else 2 * workers,
            return_as="generator_unordered",
            initializer=end_with,
            initargs=(os.getpid(),),
        )
        try:
            with _ignoring_interrupts():
                results = parallel(joblib.delayed(function)(task) for task in itertools.chain(first, left))
        except (BlockingIOError, RuntimeError) as error:  # such as when `ulimit -u` is reached
            raise no_process(error) from error
        try:
            yield from results
        except TerminatedWorkerError as error:
            raise WorkerLost from error


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started within the block never see Ctrl-C, which goes to the whole group: this process ends them."""
    resource_tracker.ensure_running()  # here: if it were started with the first worker, it would let signals through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _each_on_cluster(function: Callable[[Any], Any], tasks: Iterable[Any], client: Client) -> Iterator[Any]:
    # The interface of Dask: that of joblib waits forever if one call ends several workers.
    from distributed import CancelledError, KilledWorker, as_completed

    left = iter(tasks)
    futures: set[Future] = set()
    done = as_completed(loop=client.loop)

    def submit() -> None:
        """Submit up to two calls per thread, which are counted each time, as workers may join and leave."""
        try:
            threads = sum(client.nthreads().values())
        except OSError as error:  # raised below as a failure of the cluster, not of a call
            raise CancelledError(str(error)) from error
        missing = max(1, 2 * threads) - len(futures)
        for task in itertools.islice(left, max(0, missing)):
            future = client.submit(function, task, pure=False)
            futures.add(future)
            done.add(future)

    try:
        submit()
        for future in done:
            futures.remove(future)
            result = future.result()
            submit()
            yield result
    except (KilledWorker, CancelledError, ImportError) as error:
        raise ClusterError(
            f"the Dask cluster failed ({error}); finished shards are kept: the same command continues from them"
        ) from error
    finally:
        client.cancel(list(futures))
