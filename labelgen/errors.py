"""The project's errors: everything that a user can cause is a VsslError whose message says what to do."""

from __future__ import annotations


class VsslError(Exception):
    """Base of every error that bad input, a full disk or a wrong option can cause.

    Examples
    --------
    >>> from labelgen.errors import VsslError
    >>> from labelgen.shards import open_shards
    >>> try:
    ...     open_shards("nowhere")
    ... except VsslError as error:
    ...     print(error)
    nowhere: no such folder of shards; make them with `vssl labelgen`, or choose another folder
    """


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
    """A file cannot be written: the disk is full, or the folder is not writable."""


class ClusterError(VsslError):
    """A Dask cluster cannot be reached, has no workers, or its workers lack what the work needs."""


class ReadError(VsslError, OSError):
    """A file cannot be read, or its content is not allowed."""


class MachineError(VsslError):
    """The machine failed, not the file being processed: memory, a disk, a network or a process. A retry may succeed."""
