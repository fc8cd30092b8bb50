"""One call in a separate process, whose death harms nothing else."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from labelgen.errors import MachineError
from labelgen.processes import ending, finished

_BEGUN = b"\1"  # what a process writes before its call; what it writes after that is the answer
_STALLED = b"Timeout ("  # what faulthandler writes as it ends a process with exit status 1
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGXCPU}
_answers: BinaryIO | None = None  # in a process that `in_new_process` has started


class ProcessLost(Exception):
    """The process of a call died.

    status: its exit status, negative for a signal; stalled: `end_unless_called` ended it; of_machine: it died before
    the call began, or was killed from outside, as the kernel does if memory is short
    """

    def __init__(self, status: int, said: bytes = _BEGUN) -> None:
        self.stalled = status == 1 and said.startswith(_BEGUN + _STALLED)
        self.of_machine = not said or -status in _FROM_OUTSIDE
        super().__init__(ending(status) + " before it began" * (not said))
        self.status = status


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new process with one thread. Raises what the function raises, ProcessLost if the
    process dies, and MachineError if none can be started."""
    try:
        status, said = finished(_answer, function, arguments, threads=1, stdout=subprocess.PIPE)
    except OSError as error:
        raise no_process(error) from error
    answer = said.removeprefix(_BEGUN)
    if status or not answer:
        raise ProcessLost(status, said)
    good, value = pickle.loads(answer)
    if not good:
        raise value
    return value


def no_process(error: Exception) -> MachineError:
    """The error for a system that starts no more processes or threads, as `error` says."""
    why = getattr(error, "strerror", None) or error
    return MachineError(
        f"no process or thread can be started ({why}); check `ulimit -u` and memory, or use fewer workers"
    )


def _answer(function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The other side of `in_new_process`."""
    global _answers
    import cv2

    cv2.setNumThreads(1)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print must not mix with the answer
        _answers = out
        out.write(_BEGUN)
        out.flush()
        try:
            answer: Any = True, function(*arguments)
        except Exception as error:
            answer = False, error
        out.write(pickle.dumps(answer))


def end_unless_called(seconds: float) -> None:
    """End this process, even if it hangs in foreign code, unless this function or
    `faulthandler.cancel_dump_traceback_later` is called within this many seconds. If `in_new_process` has started it,
    ProcessLost says that it stalled."""
    global _answers
    if _answers is None:
        _answers = open(os.devnull, "wb")  # noqa: SIM115 - faulthandler needs a file that stays open
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_answers)
    except RuntimeError as error:  # it needs a thread
        raise no_process(error) from error


def check_threads(count: int) -> None:
    """Raises MachineError if the system cannot start this many threads or processes now."""
    waiting = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=waiting.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise no_process(error) from error
    finally:
        waiting.set()
        for thread in started:
            thread.join()
