"""`vssl` in this process, as a user types it, and a disk that is full."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from cli.main import main

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}  # of processes that import the project


def vssl(*arguments: object, code: int = 0) -> str:
    """All that `vssl` prints; code: the exit status to expect."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done.output


@contextlib.contextmanager
def file_size_limit(most: int) -> Iterator[None]:
    """Files may have so many bytes: the kernel's limit in the place of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
