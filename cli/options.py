"""Options that several commands share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import click


class _Written(click.Path):
    """A path to write; the writing libraries need it in UTF-8."""

    def convert(self, value, param, ctx):
        path = super().convert(value, param, ctx)
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError:
            from labelgen.texts import path_text

            self.fail(f"{path_text(path)}: the name is not valid UTF-8; expected one that is", param, ctx)
        return path


WRITTEN = _Written(path_type=Path)
TABLES = click.option(
    "--in",
    "features",
    type=click.Path(path_type=Path),
    multiple=True,
    default=[Path("features.parquet")],
    help="Table that embed wrote; repeatable, if the tables were made in the same way.",
)
IMAGE_FPS = click.option(
    "--fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Frames per second of folders of images.  [default: those of the network's training, if it had a constant rate]",
)
# of all commands that compute features: names and declarations
COMPUTE: dict[str, dict[str, Any]] = {
    "--batch-size": {
        "default": 32,
        "type": click.IntRange(1),
        "help": "Clips per batch; no effect on the result.",
    },
    "--workers": {
        "type": click.IntRange(0),
        "help": "Threads that decode frames; embed: also processes that decode videos.  [default: half of the available cores, "
        "1 to 8]",
    },
    "--device": {"default": "auto", "help": "cpu, cuda, cuda:1; auto: cuda if there is one."},
}


def computing(command):
    """Give a command the options of COMPUTE, see `compute`."""
    for name, declaration in reversed(COMPUTE.items()):
        command = click.option(name, **declaration)(command)
    return command


def compute(batch_size: int, workers: int | None, device: str):
    """The trainer.evaluate.features.Compute of the options of COMPUTE."""
    from trainer.evaluate.features import Compute
    from trainer.settings import WORKERS

    return Compute(batch_size, WORKERS if workers is None else workers, device)


def _once(ctx, param, value: tuple[Path, ...]) -> Path | None:
    if len(value) > 1:
        advice = "search several by their tables, --in ONE --in OTHER"
        raise click.BadParameter(f"given {len(value)} times, expected once; {advice}", ctx, param)
    return value[0] if value else None


def one_folder_of_shards(text: str):
    """The option --shards, given once, instead of videos or tables. text: its help."""
    return click.option("--shards", type=click.Path(path_type=Path), multiple=True, callback=_once, help=text)


def on_workers(local: str, about: str):
    """Decorator that adds the options of work in several processes, see `check_scheduler`. local: the --backend of this machine;
    about: help of --workers"""

    def decorate(command):
        for option in (
            click.option("--scheduler", help="Address of the cluster, such as tcp://HOST:8786; with --backend dask."),
            click.option(
                "--backend",
                default=local,
                type=click.Choice([local, "dask"]),
                help="This machine, or a Dask cluster (docs/clusters.md).",
            ),
            click.option("--workers", default=1, type=click.IntRange(1), help=about),
        ):
            command = option(command)
        return command

    return decorate


def making_videos(command):
    """Give a command the options of work on videos in several processes."""
    return on_workers("loky", "Worker processes; at most one per core is started.")(command)


def making_runs(command):
    """Give a command the options of what makes the runs of a study."""
    device = click.option(
        "--device",
        default="auto",
        help="cpu, cuda, or GPUs such as cuda:0,cuda:2: each run gets one; auto: cuda if there is a GPU.",
    )
    return on_workers("joblib", "Runs at a time, at most four per core; they share the cores.")(device(command))


def check_scheduler(backend: str, scheduler: str | None) -> None:
    """Raises UsageError if one of the two is given without the other."""
    if (backend == "dask") != (scheduler is not None):
        raise click.UsageError(
            f"--backend is {backend}, --scheduler {scheduler}; give both --backend dask and --scheduler"
        )


def stop(*_) -> None:
    """Handles Ctrl-C: the first one stops the run in an orderly way, later ones must not disturb that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
