"""Signals that end a run after the step in hand."""

from __future__ import annotations

import os
import signal
import threading

from trainer import distributed


class StopSignals:
    """Notes SIGINT and SIGTERM in `caught`, so that a step can be ended and saved; in one process a second one acts at
    once."""

    def __init__(self):
        self.caught: signal.Signals | None = None
        self._before = {}  # handlers by signal

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _frame) -> None:
        self.caught = signal.Signals(number)
        alone = distributed.world() == 1  # a launcher passes signals on, which its processes may have had before
        again = " (again to stop at once)" if alone else ""
        os.write(2, f"\n{self.caught.name}: stopping after this step{again}\n".encode())
        if alone:
            self.__exit__()

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
