"""One call in a process of its own, whose death harms nothing else."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class ProcessLost(Exception):
    """The process of a call died; `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"killed its process (signal {-status})" if status < 0 else f"its process ended with {status}")
        self.status = status


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new process with one thread; raises what it raises, or ProcessLost where it dies."""
    command = [sys.executable, "-c", f"from labelgen.run.process import _answer; _answer({os.getpid()})"]
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
    """The other side of `in_new_process`."""
    import cv2

    cv2.setNumThreads(1)
    end_with(parent)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not mix with the answer
        function, arguments = pickle.load(sys.stdin.buffer)
        try:
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, error
        pickle.dump(answer, out)


def end_with(parent: int) -> None:
    """Let this process end within a second after its parent, the process of that id, however that one ended."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
