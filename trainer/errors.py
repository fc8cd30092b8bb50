"""Errors of training and evaluation."""

from __future__ import annotations

from pathlib import Path

from labelgen.errors import ConfigError, VsslError


class TrainerError(VsslError):
    """A setting, a checkpoint or the shards do not fit together, or the loss is not finite."""


class SettingError(TrainerError, ConfigError):
    """A setting or an option has an unknown name or an invalid value."""


class Interrupted(VsslError):
    """Training of a run was stopped by a signal after a checkpoint was written; exit_code is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int, run: Path):
        super().__init__(message)
        self.exit_code, self.run = exit_code, run


class ProtocolError(TrainerError):
    """A protocol cannot evaluate this network or data. advice: what helps on the command line."""

    def __init__(self, message: str, advice: str):
        super().__init__(message)
        self.advice = advice
