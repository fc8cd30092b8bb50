"""The folder of a run: which one, who writes it, whose it is."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from labelgen import files
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.settings import Settings
from trainer.training.log import say


def new_run(name: str | os.PathLike | None, settings: Settings) -> Path:
    """A new folder: of that name (in runs/) or path, default runs/<method>-<backbone>-<n>. Raises TrainerError where it
    exists and holds something."""
    if name is not None:
        folder = checkpoint.run_path(name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainerError(f"{folder}: exists; resume it, or choose another name for the run")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    n = 1
    while True:
        folder = checkpoint.RUNS / f"{settings.method}-{settings.backbone}-{n}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1


def check_name(name: str | os.PathLike | None) -> None:
    """Raises TrainerError for the name or path of a run that is no UTF-8: what is written there needs one."""
    raw = os.fsencode(name or "")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = raw.decode("utf-8", "backslashreplace")
        raise TrainerError(f"{shown}: a name that is no UTF-8; name the run otherwise, or rename its folder") from error


def locked(folder: Path) -> AbstractContextManager:
    """Keep other processes from training the run. Raises TrainerError where one does."""
    error = TrainerError(f"{folder}: another process is training this run; wait for it, or stop it")
    return files.locked(folder, error, say)


def check_same_data(saved: checkpoint.Checkpoint, found: dict, shards: str | os.PathLike) -> None:
    """Raises TrainerError where what is found in the shards is not what the run was trained on."""
    for name, value in found.items():
        if saved.meta[name] != value:
            raise TrainerError(
                f"cannot resume {saved.run}: {name} of {shards} is {value}, the run has {saved.meta[name]}; "
                "name the run's shards, or start a new run"
            )
