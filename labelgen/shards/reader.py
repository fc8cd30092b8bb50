"""Reading a shard: labels once, frames from a memory map of the file."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from labelgen.errors import ShardError
from labelgen.labels import known
from labelgen.labels.kind import Field, Kind
from labelgen.labels.order import order_permutations
from labelgen.labels.pace import pace_frames
from labelgen.reading import regular_handle
from labelgen.shards.checks import check_texts, out_of_range
from labelgen.shards.header import Header, Stored, digests, read_exactly, read_header
from labelgen.shards.jpeg import header
from labelgen.shards.schema import fields, labels_sha256

_NO_MAPS = {errno.ENODEV, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_MOST_TEXTS = 1_000_000  # largest number of videos or failures of a shard
_LONGEST_JPEG_HEADER = 1 << 12  # bytes
_MOST_BYTES = 1 << 32  # of all labels of a shard
_AGAIN = "delete it and run labelgen again"
_COUNTED = {
    "offsets": "frames/offset",
    "frames": "frames/time",
    "videos": "videos/id",
    "clips": "clips/video",
    "failures": "failures/id",
}
_PATHS = {"videos/id", "videos/path", "failures/id", "failures/path"}


@functools.lru_cache(maxsize=256)  # bounded, as each map holds a file descriptor
def _mapped(path: str, size: int) -> np.ndarray | None:
    with _opened(path, size) as handle:
        try:
            return np.frombuffer(mmap.mmap(handle, size, access=mmap.ACCESS_READ), np.uint8)
        except OSError as error:
            if error.errno not in _NO_MAPS:
                raise
            return None


@contextlib.contextmanager
def _opened(path: str, size: int) -> Iterator[int]:
    try:
        handle = regular_handle(path)
        try:
            if os.fstat(handle).st_size != size:
                raise ValueError("the file was replaced after it was opened")
            yield handle
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: can no longer be read ({error})") from error


def _bytes(path: str, size: int, start: int, stop: int) -> np.ndarray:
    """Bytes `start` to `stop` of a shard, uint8: a view of the memory map of the file or, if its file system has no
    maps, a copy."""
    if (mapped := _mapped(path, size)) is not None:
        return mapped[start:stop]
    with _opened(path, size) as handle:
        return np.frombuffer(read_exactly(handle, start, stop - start), np.uint8)


def warn_without_maps(path: str) -> None:
    """Warn on standard error, once, if the file system of a shard has no memory maps."""
    global _warned
    if not _warned and _mapped(path, os.path.getsize(path)) is None:
        _warned = True
        folder = os.path.dirname(path)
        print(f"warning: {folder}: this file system has no memory maps: shards are read more slowly", file=sys.stderr)


_warned = False


def forget() -> None:
    """Release the memory maps of all shards."""
    _mapped.cache_clear()


class _Stored(np.lib.mixins.NDArrayOperatorsMixin):
    """A uint8 array that stays in the file and is read when indexed: the labels of all crops of all clips are by far
    the largest ones, but a trainer needs one row at a time."""

    dtype = np.dtype(np.uint8)

    def __init__(self, path: str, size: int, stored: Stored, name: str, limit: int | np.ndarray) -> None:
        self._path, self._size, self._stored, self._name, self._limit = path, size, stored, name, limit
        self.shape = stored.shape

    def __len__(self) -> int:
        return self.shape[0]

    def _whole(self) -> np.ndarray:
        return self._rows(0, len(self))

    def _rows(self, start: int, stop: int) -> np.ndarray:
        offset, row = self._stored.offset, math.prod(self.shape[1:])
        found = _bytes(self._path, self._size, offset + start * row, offset + stop * row)
        return found.reshape(stop - start, *self.shape[1:])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._whole(), dtype or self.dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = (np.asarray(x) if isinstance(x, _Stored) else x for x in inputs)
        return getattr(ufunc, method)(*arrays, **options)

    def __getitem__(self, index: Any) -> np.ndarray:
        """A part, a copy. Raises ShardError if an id in it is out of range."""
        first, *others = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int | np.integer) and -len(self) <= first < len(self):  # only this row is read
            row = int(first) % len(self)
            values = np.array(self._rows(row, row + 1)[(0, *others)])
        else:
            values = np.array(self._whole()[index])
        if (values >= np.broadcast_to(self._limit, self.shape)[index]).any():
            raise ShardError(f"{self._path}: {self._name} is out of range; {_AGAIN}")
        return values


class _Arrays(dict[str, Any]):
    """The data sets of a shard; a missing one raises ShardError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __missing__(self, name: str) -> NoReturn:
        raise ShardError(f"{self._path}: holds no {name}; label the videos again, into another folder")


class ShardReader:
    """A shard from any source, read-only: it relies only on the header (see `labelgen.shards.header`), and checks all
    of it and every index before use. Frames come from a memory map of the file, so that a reader can be used after
    fork, in threads, and can be pickled.

    Parameters
    ----------
    path : str or path
        The `.h5` file.

    Attributes
    ----------
    arrays : dict
        Every data set by its full name ("videos/id", "statistics/motion", ...), see docs/shards.md; large ones are read when
        indexed.
    kinds, unknown : list
        The label kinds that it has, and the names of those that are not registered here.
    config, config_hash : dict, str
        The whole configuration of the labels, and its hash.
    crop_grid : int16 [crops, 2]
        y and x of each crop's corner, in pixels.
    splits : tuple of str
        Names of the official splits.
    clip_length : int
        Frames of a clip.
    paces : tuple of Fraction
        A pace label is an index into them.
    sha256 : dict
        The digests "frames", "labels" and "rest" of what was written, see `digests` and `labels_sha256`.

    Raises
    ------
    ShardError
        If the file is not a complete shard of this schema.

    Examples
    --------
    >>> from labelgen.shards import ShardReader
    >>> shard = ShardReader("out/demo/00000.h5")
    >>> shard.frames(shard.clip_frames(0)).shape  # RGB uint8 of the first labelled clip
    (16, 40, 48, 3)
    >>> shard.arrays["statistics/motion"].shape[:2] == (shard.n_clips, len(shard.crop_grid))
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self.arrays: dict[str, Any] = _Arrays(self.path)
        self._jpeg_header = b""  # of an earlier frame
        try:
            handle = regular_handle(path)
            try:
                self.header = read_header(handle)
                self._read(handle, self.header)
            finally:
                os.close(handle)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ShardError(f"{path}: not a readable shard ({reason}); {_AGAIN}") from error

    def _read(self, handle: int, header: Header) -> None:
        shared, stored = header.shared, header.stored
        self.config, self.config_hash, self.paces = shared.config, shared.config_hash, shared.paces
        self.crop_grid, self.splits, self.versions = shared.crop_grid, shared.splits, shared.versions
        self.sha256 = header.sha256
        self.clip_length: int = self.config["clip_length"]
        self.kinds: list[Kind] = [kind for kind in known() if kind.name in shared.kinds]
        self.unknown: list[str] = sorted(set(shared.kinds) - {kind.name for kind in self.kinds})
        of_shard = fields(self.kinds)
        if absent := [name for name in ("frames/jpeg", *(field.name for field in of_shard)) if name not in stored]:
            raise ValueError(f"without {', '.join(absent)}")
        rows = max(stored[f"{group}/id"].shape[0] for group in ("videos", "failures"))
        size = sum(stored[field.name].nbytes for field in of_shard)
        if rows > _MOST_TEXTS or size > _MOST_BYTES:
            raise ValueError(
                f"{rows:,} videos and {size:,} bytes of labels, expected {_MOST_TEXTS:,} and {_MOST_BYTES:,}"
            )
        counts = {axis: stored[name].shape[0] for axis, name in _COUNTED.items()}
        lengths = self.config | counts | {"splits": len(self.splits), "crops": len(self.crop_grid)}
        for field in of_shard:
            self.arrays[field.name] = self._load(handle, field, lengths)
        jpeg, offset, n_frames = stored["frames/jpeg"], self.arrays["frames/offset"], self.arrays["videos/n_frames"]
        if (n_frames < 1).any() or not n_frames.sum(dtype=np.int64) == len(self.arrays["frames/time"]) == len(
            offset
        ) - 1:
            raise ValueError(f"videos/n_frames does not add up to {len(offset) - 1:,} frames")
        if jpeg.dtype != "|u1" or jpeg.shape != (offset[-1],) or offset[0] != 0 or (offset[1:] <= offset[:-1]).any():
            raise ValueError(f"frames/offset does not grow from 0 to the {jpeg.nbytes:,} bytes of the frames")
        for name, fault in out_of_range(self.arrays, self.config, self.kinds):
            if fault:
                raise ValueError(f"{name} is out of range")

    def _load(self, handle: int, field: Field, lengths: dict[str, Any]) -> tuple[str, ...] | np.ndarray | _Stored:
        stored = self.header.stored[field.name]
        try:
            shape = field.shape(lengths)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"its configuration does not determine the shape of {field.name}") from None
        texts = field.dtype is str
        dtype = stored.dtype if texts else np.dtype(field.dtype).str
        if stored.shape != shape or stored.dtype != dtype or dtype.startswith("|S") != texts:
            expected = "texts" if texts else dtype
            raise ValueError(f"{field.name} is {stored.dtype} {stored.shape}, expected {expected} {shape}")
        if field.in_file and dtype == "|u1":
            limit = 256 if field.limit is None else field.limit(self.config)
            return _Stored(self.path, self.header.size, stored, field.name, limit)
        data = read_exactly(handle, stored.offset, stored.nbytes)
        values = np.frombuffer(data, dtype).reshape(stored.shape)
        if not texts:
            return values.copy()  # else it would be read-only
        column = tuple(text.decode() for text in values.tolist())
        check_texts(field.name, column, field.name in _PATHS)
        return column

    def __reduce__(self) -> tuple[type[ShardReader], tuple[str]]:
        return ShardReader, (self.path,)

    def __repr__(self) -> str:
        return f"ShardReader({self.path!r})"

    @property
    def n_videos(self) -> int:
        return len(self.arrays["videos/id"])

    @property
    def n_clips(self) -> int:
        return len(self.arrays["clips/video"])

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the stored frames in pixels."""
        return self.config["height"], self.config["width"]

    def jpeg(self, frame: int) -> np.ndarray:
        """The JPEG bytes of one frame of the shard, uint8 [bytes], a view of the file."""
        start, stop = self.arrays["frames/offset"][frame : frame + 2] + self.header.stored["frames/jpeg"].offset
        return _bytes(self.path, self.header.size, int(start), int(stop))

    def frames(
        self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None, corner: Sequence[int] = (0, 0)
    ) -> np.ndarray:
        """Decoded frames of the shard, RGB uint8 [len(indices), height, width, 3]; equal indices are decoded once.

        out: where to write them; None for a new array. If it is smaller than the frames, it gets the crop with its upper
        left pixel at corner (y, x)."""
        if out is None:
            out = np.empty((len(indices), *self.frame_size, 3), np.uint8)
        (y, x), (height, width) = corner, out.shape[1:3]
        at = self._bounds(
            np.asarray(indices, np.int64)
        ).tolist()  # for all frames at once, which takes a fraction of the time
        done: dict[int, int] = {}
        for position, (frame, (start, stop)) in enumerate(zip(map(int, indices), at, strict=True)):
            if frame in done:
                out[position] = out[done[frame]]
                continue
            decoded = self._decoded(frame, _bytes(self.path, self.header.size, start, stop))
            out[position] = decoded[y : y + height, x : x + width]
            done[frame] = position
        return out

    def _bounds(self, frames: np.ndarray) -> np.ndarray:
        """Begin and end of the JPEG bytes of frames int64 [n] in the file, int64 [n, 2]."""
        offset = self.arrays["frames/offset"]
        return np.stack([offset[frames], offset[frames + 1]], 1) + self.header.stored["frames/jpeg"].offset

    def _decoded(self, frame: int, jpeg: np.ndarray) -> np.ndarray:
        import cv2

        picture = None
        # all frames encoded with the same settings have the same header
        known = self._jpeg_header  # read once: other threads may change it
        if not known or jpeg[: len(known)].tobytes() != known:
            length, size = header(jpeg[:_LONGEST_JPEG_HEADER].tobytes())
            known = jpeg[: length if size == self.frame_size else 0].tobytes()
            self._jpeg_header = known or self._jpeg_header
        if known:
            picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
        if picture is None or picture.shape != (*self.frame_size, 3):
            raise ShardError(f"{self.path}: frame {frame} does not decode to {self.frame_size}; run labelgen again")
        return picture

    def clip_frames(self, clip: int) -> np.ndarray:
        """Frame indices int64 [clip_length] of labelled clip `clip`, for `frames`."""
        video, start = self.arrays["clips/video"][clip], self.arrays["clips/start"][clip]
        return self.arrays["videos/first_frame"][video] + start + np.arange(self.clip_length)

    def pace_frames(self, video: int, row: int) -> np.ndarray:
        """Frame indices int64 [clip_length] of a video's pace row: start + floor(i * pace), wrapped if the row is
        marked as such."""
        start, pace = self.arrays["pace/start"][video, row], self.arrays["pace/pace"][video, row]
        frames = pace_frames(int(start), self.paces[pace], self.clip_length) % self.arrays["videos/n_frames"][video]
        return self.arrays["videos/first_frame"][video] + frames

    @property
    def orders(self) -> np.ndarray:
        """The orders in which clips are shown, uint8 [n!, n]: row k, for the permutation labelled k, holds at position
        i the original index of the clip shown there."""
        return order_permutations(self.arrays["order/start"].shape[2])

    def order_frames(self, video: int, row: int) -> np.ndarray:
        """Frame indices int64 [n, clip_length] of a video's order row, the clips in their original order."""
        starts = self.arrays["order/start"][video, row]
        return self.arrays["videos/first_frame"][video] + starts[:, None] + np.arange(self.clip_length)

    def now_sha256(self) -> dict[str, str]:
        """The digests of the file as it is now; they equal `sha256` unless the file was damaged. It is read once, and
        not through the map, whose pages would stay in this process."""
        handle = regular_handle(self.path)
        try:
            found = digests(handle, self.header.length, self.header.stored["frames/jpeg"], self.header.size)
        finally:
            os.close(handle)
        return found | {"labels": labels_sha256(self.arrays)}
