"""What can go wrong in training and evaluation."""

from labelgen.errors import VsslError


class TrainerError(VsslError):
    """A setting, a checkpoint or the shards do not fit what is asked, or the loss is not finite."""


class Interrupted(VsslError):
    """Training was stopped by a signal after a checkpoint was written; exit_code is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
