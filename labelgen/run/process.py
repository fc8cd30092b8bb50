"""One call in a process of its own, whose death harms nothing else."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from labelgen.errors import MachineError
from labelgen.processes import environment

_BEGUN = b"\1"  # what a process says before its call; what it says after it is the answer
_STALLED = b"Timeout ("  # what faulthandler says where it ends a process, with exit status 1
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGXCPU}
_answers: BinaryIO | None = None  # of a process that `in_new_process` has started


class ProcessLost(Exception):
    """The process of a call died.

    status: its exit status, negative for a signal; stalled: it was ended by `end_unless_called`; of_machine: it did not come to
    the call, or was killed from outside, as the kernel does where memory is short
    """

    def __init__(self, status: int, said: bytes = _BEGUN) -> None:
        self.stalled = status == 1 and said.startswith(_BEGUN + _STALLED)
        self.of_machine = not said or -status in _FROM_OUTSIDE
        how = f"killed its process (signal {-status})" if status < 0 else f"its process ended with {status}"
        super().__init__(f"{how} before it began" if not said else how)
        self.status = status


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new process with one thread; raises what it raises, ProcessLost where it dies, and
    MachineError where none can be started."""
    command = [sys.executable, "-c", f"from labelgen.run.process import _answer; _answer({os.getpid()})"]
    try:
        done = subprocess.run(
            command, input=pickle.dumps((function, arguments)), env=environment(threads=1), stdout=subprocess.PIPE
        )
    except OSError as error:
        raise no_process(error) from error
    said = done.stdout.removeprefix(_BEGUN)
    if done.returncode or not said:
        raise ProcessLost(done.returncode, done.stdout)
    good, answer = pickle.loads(said)
    if not good:
        raise answer
    return answer


def no_process(error: Exception) -> MachineError:
    """The system starts no more processes or threads, as `error` says."""
    why = getattr(error, "strerror", None) or error
    return MachineError(
        f"no process or thread can be started ({why}); check `ulimit -u` and memory, or take fewer workers"
    )


def _answer(parent: int) -> None:
    """The other side of `in_new_process`."""
    global _answers
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not mix with the answer
        try:
            end_with(parent)
            import cv2

            cv2.setNumThreads(1)
            function, arguments = pickle.load(sys.stdin.buffer)
        except MemoryError:
            answer: Any = False, MachineError("not enough memory to start a process")
        else:
            _answers = out
            out.write(_BEGUN)
            out.flush()
            try:
                answer = True, function(*arguments)
            except Exception as error:
                answer = False, error
        out.write(pickle.dumps(answer))


def end_unless_called(seconds: float) -> None:
    """End this process, with all that hangs in foreign code, unless this is called again within so many seconds, or
    `faulthandler.cancel_dump_traceback_later`. If `in_new_process` has started it, ProcessLost tells that it stalled."""
    global _answers
    if _answers is None:
        _answers = open(os.devnull, "wb")  # noqa: SIM115 - faulthandler needs a file that stays open
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_answers)
    except RuntimeError as error:  # it needs a thread
        raise no_process(error) from error


def end_with(parent: int) -> None:
    """Let this process end within a second after its parent, the process of that id, however that one ended; and now, if the
    system starts no thread to wait for that."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:
        os._exit(1)


def check_threads(count: int) -> None:
    """Raises MachineError if the system does not start so many threads or processes now."""
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
