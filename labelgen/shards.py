"""The HDF5 shard: the contract between the label generator and everything that reads its labels.

One file holds the frames (JPEG) and all labels of a few videos. It is written beside its target, synced, re-read
and renamed: the final name is the only sign that it is done. The layout is described in docs/shards.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from labelgen.errors import ShardError
from labelgen.sampling import CLIP_LENGTH, order_permutations, pace_frames

SCHEMA_VERSION = 1
NO_ROW = 255  # stored in /pace/pace and /order/permutation where a video is too short; its starts are -1
_COPY_BYTES = 1 << 24

# Every data set of a shard that is made of numbers, with its type; /frames/jpeg, which is not loaded, stands apart.
NUMBERS = {
    "frames/offset": np.int64,
    "videos/split": np.uint8,
    "videos/first_frame": np.int64,
    "videos/n_frames": np.int32,
    "videos/fps": np.float64,
    "videos/width": np.int32,
    "videos/height": np.int32,
    "clips/video": np.int32,
    "clips/start": np.int32,
    "statistics/motion": np.uint8,
    "statistics/appearance": np.uint8,
    "statistics/valid": np.uint8,
    "curriculum/score": np.float32,
    "pace/start": np.int32,
    "pace/pace": np.uint8,
    "pace/wrapped": np.uint8,
    "order/start": np.int32,
    "order/permutation": np.uint8,
}
_TEXTS = ["videos/id", "videos/path", "videos/label", "videos/group"] + [
    f"failures/{name}" for name in ("id", "path", "stage", "reason")
]
_ATTRIBUTES = ("schema_version", "config", "config_hash", "crop_grid", "splits", "versions")
_AGAIN = "delete it and run labelgen again"


def config_hash(config: dict) -> str:
    """16 hexadecimal digits that change with any value of `config`, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def write(path: Path, arrays: dict, jpeg: BinaryIO, config: dict, crop_grid: np.ndarray, splits: Sequence[str]) -> None:
    """Write one shard atomically: afterwards `path` is complete and verified, or as it was before.

    arrays:    every data set of the schema by its full name; texts as lists of str.
    jpeg:      open binary file holding all JPEG frames end to end; `arrays["frames/offset"]` [frames + 1] cuts it.
    crop_grid: int16 [crops, 2], the y and x of each crop's corner.
    splits:    names of the official splits, one per column of videos/split.

    Raises ShardError where what was written reads back differently, OSError where the disk is full.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        try:
            frames_digest = _write_hdf5(name, arrays, jpeg, config, crop_grid, splits)
        except RuntimeError as error:  # what h5py raises where the disk is full at closing
            raise OSError(f"HDF5: {error}") from error
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        reader = ShardReader(name)
        for what, read, written in (
            ("frames", reader.jpeg_sha256(), frames_digest),
            ("labels", labels_sha256(reader.arrays), labels_sha256(arrays)),
        ):
            if read != written:
                raise ShardError(f"{path}: the {what} read back differ from those written; check the disk")
        _mapped.cache_clear()  # or the memory of a process that writes many shards would grow
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_hdf5(name, arrays, jpeg, config, crop_grid, splits) -> str:
    digest = hashlib.sha256()
    with h5py.File(name, "w", libver=("earliest", "v110")) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["config"] = json.dumps(config, sort_keys=True)
        file.attrs["config_hash"] = config_hash(config)
        file.attrs["crop_grid"] = np.asarray(crop_grid, np.int16)
        file.attrs["splits"] = json.dumps(list(splits))
        file.attrs["versions"] = json.dumps(_versions(), sort_keys=True)
        size = int(arrays["frames/offset"][-1])
        frames = file.create_dataset("frames/jpeg", (size,), np.uint8)
        jpeg.seek(0)
        for start in range(0, size, _COPY_BYTES):
            block = jpeg.read(min(_COPY_BYTES, size - start))
            digest.update(block)
            frames[start : start + len(block)] = np.frombuffer(block, np.uint8)
        file["frames"].attrs["sha256"] = digest.hexdigest()
        file.attrs["labels_sha256"] = labels_sha256(arrays)
        for key, dtype in NUMBERS.items():
            file.create_dataset(key, data=np.asarray(arrays[key], dtype))
        for key in _TEXTS:
            encoded = [text.encode() for text in arrays[key]]
            text = h5py.string_dtype("utf-8", 1 + max(map(len, encoded), default=0))
            file.create_dataset(key, data=np.array(encoded, dtype=text))
        file["pace"].attrs["paces"] = json.dumps(config["paces"])
    return digest.hexdigest()


def labels_sha256(arrays: dict) -> str:
    """SHA-256 of every data set but the frames; equals `ShardReader.sha256["labels"]` unless the file was damaged."""
    digest = hashlib.sha256()
    for key, dtype in NUMBERS.items():
        array = np.ascontiguousarray(arrays[key], dtype)
        digest.update(f"{key} {array.shape}\0".encode() + array.tobytes())
    for key in _TEXTS:
        digest.update(f"{key} {len(arrays[key])}\0".encode() + "".join(f"{text}\0" for text in arrays[key]).encode())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@functools.cache
def _versions() -> dict:
    import av
    import cv2
    import numba

    modules = {"numpy": np, "numba": numba, "opencv": cv2, "av": av, "h5py": h5py}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


@functools.lru_cache(maxsize=256)  # a map holds a file descriptor: bounded, however many shards there are
def _mapped(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class _Stored(np.lib.mixins.NDArrayOperatorsMixin):
    """A uint8 array that stays in the file and is read where it is indexed: the labels of all crops of all clips are by far
    the largest ones, and a trainer needs one row of them at a time."""

    dtype = np.dtype(np.uint8)

    def __init__(self, path: str, start: int, shape: tuple[int, ...]):
        self._path, self._start, self.shape = path, start, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        stop = self._start + math.prod(self.shape)
        return np.array(_mapped(self._path)[self._start : stop].reshape(self.shape), dtype or self.dtype)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        arrays = (np.asarray(x) if isinstance(x, _Stored) else x for x in inputs)
        return getattr(ufunc, method)(*arrays, **options)

    def __getitem__(self, index) -> np.ndarray:
        stop = self._start + math.prod(self.shape)
        return np.array(_mapped(self._path)[self._start : stop].reshape(self.shape)[index])


class ShardReader:
    """One shard, read-only. HDF5 is open only while the labels are loaded; frames come from a memory map of the file,
    so that a reader may be used after fork, in threads, and may be pickled.

    arrays:    every data set by its full name ("videos/id", "statistics/motion", ...), see docs/shards.md; those of
               /statistics stay in the file until they are indexed
    config:    the whole configuration the labels were made with; config_hash: its hash
    crop_grid: int16 [crops, 2], y and x of each crop's corner; splits: names of the official splits
    paces:     the set of paces as fractions, e.g. (Fraction(1), Fraction(2)); a pace label is an index into it
    sha256:    {"frames", "labels"}: the digests of what was written, see `jpeg_sha256` and `labels_sha256`

    Raises ShardError when the file is not a whole shard of this schema.
    """

    def __init__(self, path: str | os.PathLike):
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
        absent += [name for name in ("frames/jpeg", *NUMBERS, *_TEXTS) if name not in file]
        if absent:
            raise ShardError(f"{self.path}: not a whole shard, without {', '.join(absent)}; {_AGAIN}")
        self.config: dict = json.loads(file.attrs["config"])
        self.config_hash: str = str(file.attrs["config_hash"])
        self.crop_grid: np.ndarray = file.attrs["crop_grid"]
        self.splits: tuple[str, ...] = tuple(json.loads(file.attrs["splits"]))
        self.versions: dict = json.loads(file.attrs["versions"])
        self.paces = tuple(Fraction(pace) for pace in self.config["paces"])
        self.sha256: dict[str, str] = {
            "frames": str(file["frames"].attrs.get("sha256")),
            "labels": str(file.attrs.get("labels_sha256")),
        }
        self.arrays: dict = {key: self._stored(file[key]) for key in NUMBERS}
        self.arrays |= {key: tuple(file[key].asstr()[...].tolist()) for key in _TEXTS}
        jpeg = file["frames/jpeg"]
        self._jpeg_start, self._jpeg_size = jpeg.id.get_offset() or 0, jpeg.shape[0]

    def _stored(self, dataset: h5py.Dataset) -> np.ndarray | _Stored:
        start = dataset.id.get_offset()
        if dataset.name.startswith("/statistics/") and start is not None and dataset.dtype == np.uint8:
            if start + dataset.size > os.path.getsize(self.path):
                raise ValueError(f"{dataset.name} is cut short")
            return _Stored(self.path, start, dataset.shape)
        return dataset[...]

    def __reduce__(self):
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
        self, indices: Sequence[int], out: np.ndarray | None = None, corner: Sequence[int] = (0, 0)
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
        """Frame indices int64 [16] of labelled clip `clip`, for `frames`."""
        video, start = self.arrays["clips/video"][clip], self.arrays["clips/start"][clip]
        return self.arrays["videos/first_frame"][video] + start + np.arange(CLIP_LENGTH)

    def pace_frames(self, video: int, row: int) -> np.ndarray:
        """Frame indices int64 [16] of a video's pace row: start + floor(i * pace), wrapped where the row is marked so."""
        start, pace = self.arrays["pace/start"][video, row], self.arrays["pace/pace"][video, row]
        frames = pace_frames(int(start), self.paces[pace]) % self.arrays["videos/n_frames"][video]
        return self.arrays["videos/first_frame"][video] + frames

    @property
    def orders(self) -> np.ndarray:
        """The orders that clips are shown in, uint8 [n!, n]: row k, of the permutation labelled k, holds at position i the
        original index of the clip shown there."""
        return order_permutations(self.arrays["order/start"].shape[2])

    def order_frames(self, video: int, row: int) -> np.ndarray:
        """Frame indices int64 [n, 16] of a video's order row, the clips in their original order."""
        starts = self.arrays["order/start"][video, row]
        return self.arrays["videos/first_frame"][video] + starts[:, None] + np.arange(CLIP_LENGTH)

    def jpeg_sha256(self) -> str:
        """SHA-256 of all frames as they now stand in the file; equals `sha256["frames"]` unless the file was damaged."""
        digest, size = hashlib.sha256(), int(self.arrays["frames/offset"][-1])
        with open(self.path, "rb") as file:  # not through the map, whose pages would stay in this process
            file.seek(self._jpeg_start)
            for done in range(0, size, _COPY_BYTES):
                digest.update(file.read(min(_COPY_BYTES, size - done)))
        return digest.hexdigest()


def open_shards(folder: str | os.PathLike) -> list[ShardReader]:
    """All shards of one data set in order. `folder` holds the `.h5` files, or one sub-folder that does.

    Raises ShardError when there is none, when several data sets lie side by side, when configurations differ, or when
    shards are missing.
    """
    readers = [ShardReader(path) for path in shard_paths(folder)]
    for fault in disagreements({reader.path: reader.config for reader in readers}):
        raise ShardError(fault)
    return readers


def shard_paths(folder: str | os.PathLike) -> list[Path]:
    """The files of the shards of one data set in order, see `open_shards`.

    Raises ShardError when there is none, or when several data sets lie side by side.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(
            f"{folder}: no such folder of shards; make them with `vssl labelgen`, or name it with --shards"
        )
    paths = sorted(folder.glob("[0-9]*.h5"))
    if not paths:
        subfolders = sorted(sub for sub in folder.iterdir() if sub.is_dir() and any(sub.glob("[0-9]*.h5")))
        if not subfolders:
            raise ShardError(f"{folder}: holds no shards (*.h5); make them with `vssl labelgen`")
        if len(subfolders) > 1:
            names = ", ".join(str(sub) for sub in subfolders)
            raise ShardError(f"{folder}: holds several data sets; name one with --shards: {names}")
        return shard_paths(subfolders[0])
    return paths


def disagreements(configs: dict[str, dict]) -> Iterator[str]:
    """What keeps shards from being one whole data set: other configurations than the first one's, missing shards.

    configs: the configuration of each shard by its path.
    """
    first, *others = configs
    config, expected_hash = configs[first], config_hash(configs[first])
    for path in others:
        if (found := config_hash(configs[path])) != expected_hash:
            yield (
                f"{path} was made with configuration {found}, {first} with {expected_hash}; "
                "label one of the two into another folder"
            )
    if "videos_per_shard" in config:
        expected = -(-int(config["videos"].split()[0]) // config["videos_per_shard"])
        if len(configs) != expected:
            yield (
                f"{os.path.dirname(first)}: {len(configs)} of {expected} shards are there; run the same `vssl labelgen` "
                "command again to finish"
            )
