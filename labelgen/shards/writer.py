"""Writing a shard: beside its target, synced, re-read and renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from labelgen.errors import ShardError
from labelgen.files import replacing
from labelgen.labels.kind import Arrays
from labelgen.shards.reader import COPY_BYTES, ShardReader, forget
from labelgen.shards.schema import SCHEMA_VERSION, config_hash, fields, kinds_in, labels_sha256

_PACKAGES = ("vssl", "numpy", "numba", "opencv-contrib-python-headless", "opencv-python", "av", "h5py")


def encode_frame(frame: np.ndarray, quality: int) -> bytes:
    """A frame, RGB uint8 [H, W, 3], as the JPEG that shards hold; quality: 1 to 100."""
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
) -> None:
    """Write one shard atomically: afterwards `path` is complete and verified, or as it was before.

    arrays:    every data set of the schema by its full name; texts as lists of str. A label kind may be absent as a whole.
    jpeg:      open binary file holding all JPEG frames end to end; `arrays["frames/offset"]` [frames + 1] cuts it.
    config:    the whole configuration, see docs/shards.md.
    crop_grid: int16 [crops, 2], the y and x of each crop's corner.
    splits:    names of the official splits, one per column of videos/split.

    Raises ShardError where what was written reads back differently, WriteError where the disk is full.
    """
    with replacing(path, RuntimeError) as name:  # what h5py raises where the disk is full at closing
        frames_digest = _write_hdf5(name, arrays, jpeg, config, crop_grid, splits)
        reader = ShardReader(name)
        for what, read, written in (
            ("frames", reader.jpeg_sha256(), frames_digest),
            ("labels", labels_sha256(reader.arrays), labels_sha256(arrays)),
        ):
            if read != written:
                raise ShardError(f"{path}: the {what} read back differ from those written; check the disk")
        forget()  # or the memory of a process that writes many shards would grow


def _write_hdf5(
    name: Path,
    arrays: Arrays,
    jpeg: BinaryIO,
    config: Mapping[str, Any],
    crop_grid: np.ndarray,
    splits: Sequence[str],
) -> str:
    digest, kinds = hashlib.sha256(), kinds_in(arrays)
    with h5py.File(name, "w", libver=("earliest", "v110")) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["config"] = json.dumps(config, sort_keys=True)
        file.attrs["config_hash"] = config_hash(config)
        file.attrs["kinds"] = json.dumps({kind.name: kind.version for kind in kinds})
        file.attrs["crop_grid"] = np.asarray(crop_grid, np.int16)
        file.attrs["splits"] = json.dumps(list(splits))
        file.attrs["versions"] = json.dumps(versions(), sort_keys=True)
        size = int(arrays["frames/offset"][-1])
        frames = file.create_dataset("frames/jpeg", (size,), np.uint8)
        jpeg.seek(0)
        for start in range(0, size, COPY_BYTES):
            block = jpeg.read(min(COPY_BYTES, size - start))
            digest.update(block)
            frames[start : start + len(block)] = np.frombuffer(block, np.uint8)
        file["frames"].attrs["sha256"] = digest.hexdigest()
        file.attrs["labels_sha256"] = labels_sha256(arrays)
        for field in fields(kinds):
            if field.dtype is str:
                encoded = [text.encode() for text in arrays[field.name]]
                text = h5py.string_dtype("utf-8", 1 + max(map(len, encoded), default=0))
                file.create_dataset(field.name, data=np.array(encoded, dtype=text))
            else:
                file.create_dataset(field.name, data=np.asarray(arrays[field.name], field.dtype))
        for kind in kinds:
            for setting in kind.settings:
                file[kind.name].attrs[setting] = json.dumps(config[setting])
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """What shards are made with: Python, vssl, and the packages that change pixels, labels or files."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # OpenCV comes under several names; a source tree may not be installed
            continue
    return found
