"""Signals that end a run after the step in hand."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any, Self

from trainer import distributed

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP (a terminal or a connection that was closed) in `caught`, so that a step can be ended and
    saved; in one process a second one acts at once. One that the caller ignores, as `nohup` has it, is ignored."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers by signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.caught = signal.Signals(number)
        alone = distributed.world() == 1  # a launcher passes signals on, which its processes may have had before
        again = " (again to stop at once)" if alone else ""
        with suppress(OSError):  # of a terminal that was closed
            os.write(2, f"\n{self.caught.name}: stopping after this step{again}\n".encode())
        if alone:
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
