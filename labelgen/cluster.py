"""A Dask cluster that the user has started."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from labelgen.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

_SECONDS = 10  # to wait for the scheduler, and for a worker


@contextlib.contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of the Dask cluster whose scheduler has this address. Raises ClusterError if Dask is not installed, and
    if the cluster cannot be reached within ten seconds, or has no worker."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(f"a Dask cluster needs Dask: pip install 'dask[distributed]' ({error})") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors are raised
    connect = functools.partial(Client, scheduler, timeout=_SECONDS, set_as_default=False)
    try:
        try:
            client = connect()
        except AssertionError:  # Dask gives its thread ten seconds to start; a machine may be suspended for longer
            client = connect()
    except (OSError, ValueError, TypeError) as error:  # TypeError: without certificates
        raise ClusterError(
            f"{scheduler}: no Dask scheduler answers there ({error}); expected an address such as tcp://HOST:8786, as "
            "`dask scheduler` prints it, and for tls://HOST:8786 certificates in the settings of Dask"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"{scheduler}: the Dask cluster has no worker; start some with `dask worker {scheduler}`"
            ) from error
        yield client
