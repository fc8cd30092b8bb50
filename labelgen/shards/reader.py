"""Reading one shard: labels once through HDF5, frames from a memory map of the file."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import DTypeLike

from labelgen.errors import ShardError
from labelgen.labels import kinds
from labelgen.labels.kind import Field, Kind
from labelgen.labels.order import order_permutations
from labelgen.labels.pace import pace_frames
from labelgen.shards.schema import SCHEMA_VERSION, fields

COPY_BYTES = 1 << 24  # frames are copied and checked in pieces of this size
_ATTRIBUTES = ("schema_version", "config", "config_hash", "kinds", "crop_grid", "splits", "versions")
_AGAIN = "delete it and run labelgen again"


@functools.lru_cache(maxsize=256)  # a map holds a file descriptor: bounded, however many shards there are
def _mapped(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def forget() -> None:
    """Let go of the memory maps of all shards."""
    _mapped.cache_clear()


class _Stored(np.lib.mixins.NDArrayOperatorsMixin):
    """A uint8 array that stays in the file and is read where it is indexed: the labels of all crops of all clips are by far
    the largest ones, and a trainer needs one row of them at a time."""

    dtype = np.dtype(np.uint8)

    def __init__(self, path: str, start: int, shape: tuple[int, ...]) -> None:
        self._path, self._start, self.shape = path, start, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        stop = self._start + math.prod(self.shape)
        return np.array(_mapped(self._path)[self._start : stop].reshape(self.shape), dtype or self.dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = (np.asarray(x) if isinstance(x, _Stored) else x for x in inputs)
        return getattr(ufunc, method)(*arrays, **options)

    def __getitem__(self, index: Any) -> np.ndarray:
        stop = self._start + math.prod(self.shape)
        return np.array(_mapped(self._path)[self._start : stop].reshape(self.shape)[index])


class _Arrays(dict[str, Any]):
    """The data sets of a shard; asking for one of a label kind that it lacks is a ShardError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __missing__(self, name: str) -> NoReturn:
        raise ShardError(f"{self._path}: holds no {name}; label the videos again, into another folder")


class ShardReader:
    """One shard, read-only. HDF5 is open only while the labels are loaded; frames come from a memory map of the file,
    so that a reader may be used after fork, in threads, and may be pickled.

    arrays:    every data set by its full name ("videos/id", "statistics/motion", ...), see docs/shards.md; large ones
               stay in the file until they are indexed
    kinds:     the label kinds that it has; unknown: names of those that it has and that are not registered here
    config:    the whole configuration the labels were made with; config_hash: its hash
    crop_grid: int16 [crops, 2], y and x of each crop's corner; splits: names of the official splits
    clip_length: frames of a clip
    paces:     the set of paces as fractions, e.g. (Fraction(1), Fraction(2)); a pace label is an index into it
    sha256:    {"frames", "labels"}: the digests of what was written, see `jpeg_sha256` and `labels_sha256`

    Raises ShardError when the file is not a whole shard of this schema.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        try:
            with h5py.File(self.path, "r") as file:
                self._read(file)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # whatever h5py makes of damage
            raise ShardError(f"{path}: not a readable shard ({error.args[-1]}); {_AGAIN}") from error
        offset = self.arrays["frames/offset"]
        if (
            not len(offset)
            or self._jpeg_size != offset[-1]
            or self._jpeg_start + self._jpeg_size > os.path.getsize(path)
        ):
            raise ShardError(f"{path}: frames are cut short; {_AGAIN}")

    def _read(self, file: h5py.File) -> None:
        version = int(file.attrs.get("schema_version", SCHEMA_VERSION))
        if version != SCHEMA_VERSION:
            raise ShardError(
                f"{self.path}: shard schema {version}, expected {SCHEMA_VERSION}; label the videos again with this version"
            )
        absent = [name for name in _ATTRIBUTES if name not in file.attrs]
        stored = [] if "kinds" in absent else json.loads(file.attrs["kinds"])
        self.kinds: list[Kind] = [kind for kind in kinds() if kind.name in stored]
        self.unknown: list[str] = sorted(set(stored) - {kind.name for kind in self.kinds})
        of_shard = fields(self.kinds)
        absent += [name for name in ("frames/jpeg", *(field.name for field in of_shard)) if name not in file]
        if absent:
            raise ShardError(f"{self.path}: not a whole shard, without {', '.join(absent)}; {_AGAIN}")
        self.config: dict[str, Any] = json.loads(file.attrs["config"])
        self.config_hash: str = str(file.attrs["config_hash"])
        self.crop_grid: np.ndarray = file.attrs["crop_grid"]
        self.splits: tuple[str, ...] = tuple(json.loads(file.attrs["splits"]))
        self.versions: dict[str, str] = json.loads(file.attrs["versions"])
        self.paces = tuple(Fraction(pace) for pace in self.config["paces"])
        self.clip_length: int = self.config["clip_length"]
        self.sha256: dict[str, str] = {
            "frames": str(file["frames"].attrs.get("sha256")),
            "labels": str(file.attrs.get("labels_sha256")),
        }
        self.arrays: dict[str, Any] = _Arrays(self.path)
        self.arrays |= {field.name: self._stored(file[field.name], field) for field in of_shard}
        jpeg = file["frames/jpeg"]
        self._jpeg_start, self._jpeg_size = jpeg.id.get_offset() or 0, jpeg.shape[0]

    def _stored(self, dataset: h5py.Dataset, field: Field) -> tuple[str, ...] | np.ndarray | _Stored:
        if field.dtype is str:
            return tuple(dataset.asstr()[...].tolist())
        start = dataset.id.get_offset()
        if field.in_file and start is not None and dataset.dtype == np.uint8:
            if start + dataset.size > os.path.getsize(self.path):
                raise ValueError(f"{dataset.name} is cut short")
            return _Stored(self.path, start, dataset.shape)
        return dataset[...]

    def __reduce__(self) -> tuple[type[ShardReader], tuple[str]]:
        return ShardReader, (self.path,)

    def __repr__(self) -> str:
        return f"ShardReader({self.path!r}: {self.n_videos} videos, {self.n_clips} clips)"

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
        start, stop = self.arrays["frames/offset"][frame : frame + 2] + self._jpeg_start
        return _mapped(self.path)[start:stop]

    def frames(
        self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None, corner: Sequence[int] = (0, 0)
    ) -> np.ndarray:
        """Decoded frames of the shard, RGB uint8 [len(indices), height, width, 3]; equal indices are decoded once.

        out: where to write them; None for a new array. If it is smaller than the frames, it gets the crop with its upper
        left pixel at corner (y, x)."""
        import cv2

        if out is None:
            out = np.empty((len(indices), *self.frame_size, 3), np.uint8)
        (y, x), (height, width) = corner, out.shape[1:3]
        done: dict[int, int] = {}
        for position, frame in enumerate(map(int, indices)):
            if frame in done:
                out[position] = out[done[frame]]
                continue
            decoded = cv2.imdecode(self.jpeg(frame), cv2.IMREAD_COLOR_RGB)
            if decoded is None or decoded.shape != (*self.frame_size, 3):
                raise ShardError(f"{self.path}: frame {frame} does not decode to {self.frame_size}; run labelgen again")
            out[position] = decoded[y : y + height, x : x + width]
            done[frame] = position
        return out

    def clip_frames(self, clip: int) -> np.ndarray:
        """Frame indices int64 [clip_length] of labelled clip `clip`, for `frames`."""
        video, start = self.arrays["clips/video"][clip], self.arrays["clips/start"][clip]
        return self.arrays["videos/first_frame"][video] + start + np.arange(self.clip_length)

    def pace_frames(self, video: int, row: int) -> np.ndarray:
        """Frame indices int64 [clip_length] of a video's pace row: start + floor(i * pace), wrapped where it is marked so."""
        start, pace = self.arrays["pace/start"][video, row], self.arrays["pace/pace"][video, row]
        frames = pace_frames(int(start), self.paces[pace], self.clip_length) % self.arrays["videos/n_frames"][video]
        return self.arrays["videos/first_frame"][video] + frames

    @property
    def orders(self) -> np.ndarray:
        """The orders that clips are shown in, uint8 [n!, n]: row k, of the permutation labelled k, holds at position i the
        original index of the clip shown there."""
        return order_permutations(self.arrays["order/start"].shape[2])

    def order_frames(self, video: int, row: int) -> np.ndarray:
        """Frame indices int64 [n, clip_length] of a video's order row, the clips in their original order."""
        starts = self.arrays["order/start"][video, row]
        return self.arrays["videos/first_frame"][video] + starts[:, None] + np.arange(self.clip_length)

    def jpeg_sha256(self) -> str:
        """SHA-256 of all frames as they now stand in the file; equals `sha256["frames"]` unless the file was damaged."""
        digest, size = hashlib.sha256(), int(self.arrays["frames/offset"][-1])
        with open(self.path, "rb") as file:  # not through the map, whose pages would stay in this process
            file.seek(self._jpeg_start)
            for done in range(0, size, COPY_BYTES):
                digest.update(file.read(min(COPY_BYTES, size - done)))
        return digest.hexdigest()
