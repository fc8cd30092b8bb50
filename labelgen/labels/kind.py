"""The declaration of a label kind. All code that writes, reads, checks, counts or prints labels loops over these
declarations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from labelgen.config import Config
    from labelgen.labels.clip import Clip

NO_ROW = 255  # in place of an id: the video is too short

Arrays = Mapping[str, Any]  # the data sets of a shard, by full name
Settings = Mapping[str, Any]  # the configuration as a shard stores it
Labels = dict[str, Any]  # the part of a clip or video in each data set of a kind


@dataclass(frozen=True)
class Field:
    """One data set of a shard.

    Parameters
    ----------
    name : str
        Including its group, such as "pace/start".
    dtype : type
        NumPy type, or str.
    axes : tuple
        "clips" or "videos", then other names (of things that a shard has many of, or of a setting) and plain lengths.
    about : str
        Its meaning, for docs/shards.md.
    limit : callable
        For ids: their exclusive upper bound, a number or one per column, from the configuration.
    missing : int
        Value for videos without labels of the kind; no labelled video has it in all fields of the kind.
    in_file : bool
        Read from the file only when indexed, because it is large; uint8.
    """

    name: str
    dtype: type
    axes: tuple[str | int, ...]
    about: str
    limit: Callable[[Settings], int | np.ndarray] | None = None
    missing: int = 0
    in_file: bool = False

    def shape(self, sizes: Mapping[str, Any]) -> tuple[int, ...]:
        """Its shape; `sizes` has the length of every named axis."""
        return tuple(axis if isinstance(axis, int) else int(sizes[axis]) for axis in self.axes)


@dataclass(frozen=True)
class Kind:
    """A kind of labels.

    Parameters
    ----------
    name : str
        Its group in the shard, and its key in LABELS.
    version : int
        Counts up with every change that may change a stored byte; part of the configuration of the shards.
    fields : tuple of Field
        Its data sets, all per clip or all per video.
    settings : tuple of str
        Settings that a reader of the labels needs, stored as JSON attributes of the group.
    constants : mapping
        Everything else that changes a stored byte; part of the configuration, too.
    of_clip : callable
        (clip, config) -> the labels of one clip, for a kind with fields per clip.
    of_video : callable
        (number of frames, config, generator of this video and kind, damage) -> the labels of one video, None if it is too
        short, for a kind with fields per video; damage: uint8 [frames] as in the data set frames/damage; no clip should
        include any, see `sampling.sound_starts`.
    faults : callable
        (arrays, configuration) -> name of each data set, and whether it holds impossible values within types, shapes and
        limits.
    lines : callable
        (joined arrays of all shards, configuration) -> lines of text, such as histograms.
    counts : callable
        arrays -> counts for the report by name, words joined by "_".

    Examples
    --------
    >>> import numpy as np
    >>> from labelgen.labels.kind import Field, Kind
    >>> brightness = Field("brightness/mean", np.float32, ("clips",), "mean grey level, 0 to 255")
    >>> kind = Kind("brightness", 1, (brightness,), of_clip=lambda clip, config: {"brightness/mean": clip.frames.mean()})
    >>> kind.fields[0].shape({"clips": 7})
    (7,)
    """

    name: str
    version: int
    fields: tuple[Field, ...]
    settings: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    of_clip: Callable[[Clip, Config], Labels] | None = None
    of_video: Callable[[int, Config, np.random.Generator, np.ndarray], Labels | None] | None = None
    faults: Callable[[Arrays, Settings], Iterator[tuple[str, bool]]] = lambda arrays, config: iter(())
    lines: Callable[[Arrays, Settings], Iterator[str]] = lambda arrays, config: iter(())
    counts: Callable[[Arrays], dict[str, int]] = lambda arrays: {}

    def too_short(self, arrays: Arrays) -> np.ndarray:
        """The videos without labels of this kind, bool [videos]."""
        missing = np.ones(len(arrays["videos/n_frames"]), bool)
        for one in self.fields:
            absent = np.asarray(arrays[one.name]) == one.missing
            missing &= absent.all(axis=tuple(range(1, absent.ndim)))
        return missing


def histogram(name: str, values: np.ndarray, size: int) -> str:
    """A line with the frequency of each of `size` ids, in per cent."""
    shares = np.bincount(values, minlength=size) / max(1, len(values)) * 100
    line = f"{name:14} % of each id: " + " ".join(f"{share:.0f}" for share in shares[:30])
    return f"{line} ..." if size > 30 else line
