"""The project's errors: whatever a user can cause is a VsslError whose message says what to do."""

from __future__ import annotations


class VsslError(Exception):
    """Base of every error that bad input, a full disk or a wrong option can cause."""


class ManifestError(VsslError, ValueError):
    """A data set description, or the folder that it describes, is not as expected."""


class DecodeError(VsslError):
    """A video file cannot be decoded; `reason` says why, without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return DecodeError, (str(self)[: -len(self.reason) - 2], self.reason)


class ConfigError(VsslError, ValueError):
    """An option has a value that cannot be used."""


class ShardError(VsslError):
    """A shard is missing, damaged or does not belong with the others."""


class WriteError(VsslError, OSError):
    """A file cannot be written: the disk is full, or the folder may not be written."""


class ClusterError(VsslError):
    """A Dask cluster cannot be reached, has no workers, or they lack what the work needs."""


class ReadError(VsslError, OSError):
    """A file cannot be read, or what it holds is not what it may hold."""


class MachineError(VsslError):
    """The machine failed, and not the file that it was at: memory, a disk, a network or a process. Another try may succeed."""
