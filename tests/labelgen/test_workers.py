"""The processes that do the work: what they leave to the one that started them, and what becomes of them without it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.command import ENVIRONMENT

WORK = """
import os, signal, time
from labelgen.run.workers import pool

def work(_):
    print(os.getpid(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
    time.sleep(1000)

with pool(2, None, print) as (each, _):
    list(each(work, [0, 1]))
"""


@pytest.fixture
def parent():
    line = [sys.executable, "-c", WORK]
    with subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_workers_leave_interrupts_to_their_parent_and_end_with_it(parent):
    said = [parent.stdout.readline().split() for _ in range(min(2, len(os.sched_getaffinity(0))))]
    assert {blocked for _, blocked in said} == {"True"}  # the first one, too
    parent.kill()
    parent.wait()
    pids, end = [int(pid) for pid, _ in said], time.monotonic() + 60
    while any(map(_lives, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [pid for pid in pids if _lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
