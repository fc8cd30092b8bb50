"""Loggers by name, which get what log.csv gets: TensorBoard, Weights & Biases, MLflow.

Each has a thread of its own, so that no step waits for it. One that fails is left out from then on, with a warning at once and
another at the end: log.csv has every step in any case.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from labelgen.errors import ReadError
from labelgen.files import write_json
from labelgen.progress import WARNING, say
from labelgen.reading import load_json, validate
from trainer import distributed
from trainer.errors import Interrupted, TrainerError

PROJECT = "vssl"  # of the runs at Weights & Biases and MLflow, unless their environment variables name another one
PATIENCE = 120.0  # seconds that the end of a training waits for a logger
Row = tuple[int, dict[str, float]]  # steps done, and numbers by name, "train/loss"


class Logger:
    """Where the numbers of a run go. package: what pip installs"""

    package: ClassVar[str]

    def __init__(self, folder: Path, about: Mapping[str, Any], first: int, id: str | None):
        """Open it for a run. about: its hyperparameters; first: steps done before; id: of the run that it continues"""
        self.id: str | None = None

    def log(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError

    def close(self, ending: str) -> None:
        """ending: "finished", "interrupted" or "failed" """
        raise NotImplementedError


class TensorBoard(Logger):
    """Event files in RUN/tensorboard."""

    package = "tensorboard"

    def __init__(self, folder: Path, about: Mapping[str, Any], first: int, id: str | None):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.id = None
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first + 1)
        plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in about.items()}
        for summary in hparams(plain, {"train/loss": 0.0}):
            self.writer._get_file_writer().add_summary(summary)  # `add_hparams` would make a second run of them

    def log(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, ending: str) -> None:
        self.writer.close()


class WandB(Logger):
    """A run at Weights & Biases, with files in RUN/wandb; WANDB_PROJECT, WANDB_MODE=offline and others hold."""

    package = "wandb"

    def __init__(self, folder: Path, about: Mapping[str, Any], first: int, id: str | None):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_name(folder),
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(about),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.id = self.run.id

    def log(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            if step >= self.run.starting_step:  # it has the steps before that
                self.run.log(values, step=step)

    def close(self, ending: str) -> None:
        self.run.finish(exit_code=int(ending != "finished"))


class MLflow(Logger):
    """A run in the store of MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

    package = "mlflow"

    def __init__(self, folder: Path, about: Mapping[str, Any], first: int, id: str | None):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client, self.seen = MlflowClient(), {"train": 0, "holdout": 0}
        if id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            place = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            self.run: str = self.client.create_run(place, run_name=_name(folder)).info.run_id
            params = [Param(name, str(value)[:500]) for name, value in about.items()]
            for begin in range(0, len(params), 100):  # most per call
                self.client.log_batch(self.run, params=params[begin : begin + 100])
        else:
            self.run = id
            self.client.update_run(id, status="RUNNING")
            for part in self.seen:  # the steps that it has, as it would store them twice
                history = self.client.get_metric_history(id, f"{part}/loss")
                self.seen[part] = max((metric.step for metric in history), default=0)
        self.id = self.run

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name, value, now, step)
            for step, values in rows
            for name, value in values.items()
            if step > self.seen[name.partition("/")[0]]
        ]
        for begin in range(0, len(metrics), 1000):  # most per call
            self.client.log_batch(self.run, metrics=metrics[begin : begin + 1000])

    def close(self, ending: str) -> None:
        status = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[ending]
        self.client.set_terminated(self.run, status)


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Loggers:
    """The loggers of a run, in its first process. The ids of their runs are in RUN/loggers.json, so that a resumed run continues
    them.

    names: of LOGGERS; meta: of the run, see checkpoint.metadata; first: steps done before. Raises TrainerError if one of them is
    not installed or cannot be opened.
    """

    def __init__(self, names: Sequence[str], folder: Path, meta: Mapping[str, Any], first: int):
        self.threads: list[_Thread] = []
        distributed.on_rank_zero(lambda: self._open(names, folder, meta, first))

    def _open(self, names: Sequence[str], folder: Path, meta: Mapping[str, Any], first: int) -> None:
        path, ids = folder / "loggers.json", dict[str, str]()
        if path.exists():
            try:
                validate(ids := load_json(path), {"*": str}, "it")
            except (ReadError, ValueError) as error:
                raise TrainerError(f"{path}: damaged ({error}); delete it, and the loggers begin new runs") from error
        for name in dict.fromkeys(names):
            try:
                logger = LOGGERS[name](folder, hyperparameters(meta), first, ids.get(name))
            except ImportError as error:
                self.close("failed")
                raise TrainerError(f"{name} is not installed ({error}): pip install {LOGGERS[name].package}") from error
            except Exception as error:  # whatever the package raises
                self.close("failed")
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise TrainerError(
                    f"{name} cannot be opened ({reason:.500}); mend that, or leave the logger out"
                ) from error
            self.threads.append(_Thread(name, logger))
            if logger.id is not None:
                ids[name] = logger.id
        if ids:
            write_json(path, ids)

    def __enter__(self) -> Self:
        self.hook, threading.excepthook = threading.excepthook, self._ended
        return self

    def _ended(self, what: threading.ExceptHookArgs) -> None:
        """Print nothing if TensorBoard's own thread cannot write: the logger then gets its error."""
        if "tensorboard" not in type(what.thread).__module__:
            self.hook(what)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, Interrupted | KeyboardInterrupt)
        self.close("interrupted" if stopped else "failed" if kind else "finished")
        threading.excepthook = self.hook

    def log(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Give the numbers after a step to all loggers, without waiting; part: "train" or "holdout"."""
        row = {f"{part}/{name}": float(value) for name, value in values.items()}
        for thread in self.threads:
            thread.rows.put((step, row))

    def close(self, ending: str) -> None:
        """Wait until all is logged, at most PATIENCE seconds; loggers that failed are said again."""
        for thread in self.threads:
            thread.rows.put(ending)
        until = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                thread.failure = f"has not finished within {PATIENCE:g} s"
            if thread.failure:
                say(f"{WARNING}{thread.name} {thread.failure}: it may lack steps after {thread.last}; log.csv has all")
        self.threads = []


class _Thread(threading.Thread):
    """The thread of a logger. last: the newest step that it has; failure: why it ended early"""

    def __init__(self, name: str, logger: Logger):
        super().__init__(name=name, daemon=True)
        self.logger, self.last, self.failure = logger, 0, ""
        self.rows: queue.SimpleQueue[Row | str] = queue.SimpleQueue()  # the last one is the ending
        self.start()

    def run(self) -> None:
        try:
            ending = None
            while ending is None:
                found = [self.rows.get()]
                with suppress(queue.Empty):  # all that wait, in one call
                    while True:
                        found.append(self.rows.get_nowait())
                rows = [row for row in found if not isinstance(row, str)]
                ending = next((row for row in found if isinstance(row, str)), None)
                if rows:
                    self.logger.log(rows)
                    self.last = rows[-1][0]
            self.logger.close(ending)
        except Exception as error:  # whatever the package raises: it must not end the training
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.failure = f"failed ({reason:.300})"
            say(f"{WARNING}{self.name} {self.failure}: training goes on without it, log.csv has every step")
            with suppress(Exception):
                self.logger.close("failed")


def hyperparameters(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, its data and its environment, by name: "lr", "options.pace.contrast", "samples.pace"."""
    kept = ("dataset", "split", "samples", "videos", "steps", "config_hash", "environment")
    return _flat({**meta["settings"], **{name: meta[name] for name in kept}})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _name(folder: Path) -> str:
    """The name of a run: that of its folder, with the one above unless it is runs/."""
    return "/".join(folder.absolute().parts[-2:]).removeprefix("runs/")
