"""Whether the shards of a folder are sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from labelgen.errors import ShardError
from labelgen.labels.kind import Field
from labelgen.labels.patterns import crop_grid
from labelgen.shards.folder import disagreements, shard_paths
from labelgen.shards.reader import ShardReader
from labelgen.shards.schema import config_hash, fields, labels_sha256, sizes


def verify(
    folder: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, list[str]]:
    """Read all shards of a folder again: how many there are, and everything that is wrong with them, a line each.

    progress: called with the shards read and those in all, before each

    Raises ShardError where there is none.
    """
    paths, found, configs = shard_paths(folder), [], {}
    for done, path in enumerate(paths):
        progress(done, len(paths))
        try:
            shard = ShardReader(path)
        except ShardError as error:
            found.append(str(error))
            continue
        configs[shard.path] = shard.config
        found += problems(shard)
    if len(configs) == len(paths):
        found += disagreements(configs)
    return len(paths), found


def problems(shard: ShardReader) -> Iterator[str]:
    """Everything that is wrong with one shard, a line each: hashes, frames, offsets, shapes, ranges."""
    arrays, path = shard.arrays, shard.path
    if shard.jpeg_sha256() != shard.sha256["frames"]:
        yield f"{path}: the frames are not those that were written (SHA-256)"
    if shard.unknown:
        yield f"{path}: holds labels that are not known here: {', '.join(shard.unknown)}"
    elif labels_sha256(arrays) != shard.sha256["labels"]:
        yield f"{path}: the labels are not those that were written (SHA-256)"
    if config_hash(shard.config) != shard.config_hash:
        yield f"{path}: the configuration does not have its hash {shard.config_hash}"
        return  # it says what the rest must be like
    offset = arrays["frames/offset"]
    if offset[0] != 0 or (np.diff(offset) <= 0).any():
        yield f"{path}: frames/offset does not grow from 0"
    else:
        for frame in range(len(offset) - 1):
            if _picture_size(shard.jpeg(frame)) != shard.frame_size:
                yield f"{path}: frame {frame} does not decode to {shard.frame_size}"
    misshapen = list(_misshapen(shard))
    yield from (f"{path}: {text}" for text in misshapen)
    if not misshapen:
        faulty = dict.fromkeys(name for name, fault in _faults(shard) if fault)
        yield from (f"{path}: {name} is out of range" for name in faulty)


def _picture_size(jpeg: np.ndarray) -> tuple[int, ...]:
    try:
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    except cv2.error:  # a header that asks for an absurd size
        return ()
    return () if picture is None else picture.shape[:2]


def _misshapen(shard: ShardReader) -> Iterator[str]:
    """Data sets whose type or shape is not what texts, configuration and first frames ask for."""
    length = sizes(shard.arrays, shard.config, len(shard.crop_grid), len(shard.splits))
    for field in fields(shard.kinds):
        values, shape = shard.arrays[field.name], field.shape(length)
        if field.dtype is str:
            if (len(values),) != shape:
                yield f"{field.name} has {len(values)} texts, expected {shape[0]}"
        elif values.dtype != field.dtype or values.shape != shape:
            expected = np.dtype(field.dtype).name
            yield f"{field.name} is {values.dtype} {values.shape}, expected {expected} {shape}"


def _faults(shard: ShardReader) -> Iterator[tuple[str, bool]]:
    """Each data set, and whether a value of it cannot be."""
    arrays, config = shard.arrays, shard.config
    n_frames = arrays["videos/n_frames"]
    grid = crop_grid(config["height"], config["width"], config["crop"])
    yield "crop_grid", not np.array_equal(shard.crop_grid, grid)
    yield "videos/n_frames", bool((n_frames < 1).any())
    yield "videos/first_frame", bool((arrays["videos/first_frame"] != np.cumsum(n_frames) - n_frames).any())
    video, start = arrays["clips/video"], arrays["clips/start"]
    inside = (video >= 0) & (video < len(n_frames))
    yield "clips/video", not inside.all()
    outside = start[inside] + shard.clip_length > n_frames[video[inside]]
    yield "clips/start", bool((start < 0).any() or outside.any())
    for field in fields(shard.kinds):
        if field.limit is not None:
            yield field.name, _beyond(field, np.asarray(arrays[field.name]), field.limit(config))
    for kind in shard.kinds:
        yield from kind.faults(arrays, config)


def _beyond(field: Field, values: np.ndarray, limit: int | np.ndarray) -> bool:
    """Whether an id is not below its limit, and not the sign of a missing one."""
    beyond = values >= limit
    return bool((beyond & (values != field.missing)).any() if field.missing else beyond.any())
