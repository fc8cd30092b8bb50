"""Writing a shard: beside its target, synced, re-read and renamed."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from labelgen.errors import ShardError
from labelgen.files import replacing
from labelgen.labels.kind import Arrays, Field
from labelgen.shards.header import COPY_BYTES, Stored, digests, header_bytes
from labelgen.shards.reader import ShardReader, forget
from labelgen.shards.schema import attributes, config_hash, fields, kinds_in, labels_sha256

_PACKAGES = ("vssl", "numpy", "numba", "opencv-contrib-python-headless", "opencv-python", "av", "h5py")


def encode_frame(frame: np.ndarray, quality: int) -> bytes:
    """A frame, RGB uint8 [H, W, 3], as JPEG for a shard; quality: 1 to 100."""
    import cv2

    return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ].tobytes()


def write(
    path: Path,
    arrays: Arrays,
    jpeg: BinaryIO,
    config: Mapping[str, Any],
    crop_grid: np.ndarray,
    splits: Sequence[str],
    made_with: Mapping[str, str] | None = None,
) -> None:
    """Write one shard atomically: afterwards `path` is complete and verified, or unchanged.

    arrays:    every data set of the schema by its full name; texts as lists of str. All data sets of a label kind may
               be absent.
    jpeg:      open binary file holding all JPEG frames end to end; `arrays["frames/offset"]` [frames + 1] cuts it.
    config:    the whole configuration, see docs/shards.md.
    crop_grid: int16 [crops, 2], the y and x of each crop's corner.
    splits:    names of the official splits, one per column of videos/split.
    made_with: the versions that made the labels, None for the installed ones.

    Raises ShardError if what was written reads back differently, WriteError if the disk is full.
    """
    kinds = kinds_in(arrays)
    shared = {
        "config": dict(config),
        "config_hash": config_hash(config),
        "crop_grid": np.asarray(crop_grid, np.int16).tolist(),
        "kinds": {kind.name: kind.version for kind in kinds},
        "splits": list(splits),
        "versions": dict(made_with or versions()),
    }
    with replacing(path) as name:
        written = _write_file(name, arrays, jpeg, shared, fields(kinds))
        if (found := ShardReader(name).now_sha256()) != written:
            differing = ", ".join(what for what in written if found[what] != written[what])
            raise ShardError(f"{path}: the {differing} read back differ from those written; check the disk")
        forget()  # else the memory of a process that writes many shards would grow


def _write_file(
    name: Path, arrays: Arrays, jpeg: BinaryIO, shared: dict[str, Any], of_shard: Sequence[Field]
) -> dict[str, str]:
    """Write the HDF5 file, then the header in front of it; returns the digests."""
    import h5py  # not above: reading shards needs no h5py

    size = int(arrays["frames/offset"][-1])
    data = {field.name: _as_array(field, arrays[field.name]) for field in of_shard}
    types = {"frames/jpeg": ("|u1", (size,))} | {key: (array.dtype.str, array.shape) for key, array in data.items()}
    longest = {key: Stored(*kind, 1 << 62) for key, kind in types.items()}
    length = len(header_bytes(0, shared, longest, dict.fromkeys(("frames", "labels", "rest"), "0" * 64), 1 << 62))
    with open(name, "r+b", buffering=0) as raw:
        disk = _Disk(raw.fileno())
        with h5py.File(disk, "w", libver=("earliest", "v110"), userblock_size=length) as file:
            frames, digest = file.create_dataset("frames/jpeg", (size,), np.uint8), hashlib.sha256()
            jpeg.seek(0)
            for start in range(0, size, COPY_BYTES):
                block = jpeg.read(min(COPY_BYTES, size - start))
                digest.update(block)
                frames[start : start + len(block)] = np.frombuffer(block, np.uint8)
                disk.check()
            for key, array in data.items():
                if array.dtype.kind == "S":
                    array = array.astype(h5py.string_dtype("utf-8", array.itemsize))
                file.create_dataset(key, data=array)
            sha256 = {"frames": digest.hexdigest(), "labels": labels_sha256(arrays)}
            for group, values in attributes(shared, sha256).items():
                file[group].attrs.update(values)
            stored = {  # an empty array has no place
                key: Stored(*kind, file[key].id.get_offset() if file[key].size else length)
                for key, kind in types.items()
            }
        disk.check()
        total = os.fstat(raw.fileno()).st_size
        sha256["rest"] = digests(raw.fileno(), length, stored["frames/jpeg"], total)["rest"]
        disk.seek(0)
        disk.write(header_bytes(length, shared, stored, sha256, total))
        disk.check()
    return sha256


class _Disk(io.RawIOBase):
    """The file of a shard, for the HDF5 library to write to. Errors of the system, such as a full disk, are kept for
    `check` to raise: the library would end the process if it could not write while closing a file."""

    def __init__(self, handle: int) -> None:
        self._handle, self._at = handle, 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raises the OSError of a call that failed."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (os.fstat(self._handle).st_size if start is None else start)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = self._kept(os.pread, self._handle, len(view), self._at) or b""
        view[: len(found)] = found
        view[len(found) :] = bytes(len(view) - len(found))  # not written yet
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self._error is None:
            done += self._kept(os.pwrite, self._handle, view[done : done + COPY_BYTES], self._at + done) or 0
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._kept(os.ftruncate, self._handle, size)
        return size or 0

    def _kept(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            self._error = self._error or error
            return None


def _as_array(field: Field, values: Any) -> np.ndarray:
    if field.dtype is not str:
        return np.asarray(values, field.dtype)
    encoded = [text.encode() for text in values]
    return np.array(encoded, f"S{1 + max(map(len, encoded), default=0)}")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what makes shards: Python, vssl, and the packages that affect pixels, labels or files."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # OpenCV has several package names; a source tree may not be installed
            continue
    return found
