"""What can go wrong in training and evaluation."""

from __future__ import annotations

from pathlib import Path

from labelgen.errors import ConfigError, VsslError


class TrainerError(VsslError):
    """A setting, a checkpoint or the shards do not fit what is asked, or the loss is not finite."""


class SettingError(TrainerError, ConfigError):
    """A setting or an option has a name or a value that there is not."""


class Interrupted(VsslError):
    """Training of a run was stopped by a signal after a checkpoint was written; exit_code is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int, run: Path):
        super().__init__(message)
        self.exit_code, self.run = exit_code, run


class ProtocolError(TrainerError):
    """A protocol cannot measure what it was given; `advice`: what on the command line helps."""

    def __init__(self, message: str, advice: str):
        super().__init__(message)
        self.advice = advice
