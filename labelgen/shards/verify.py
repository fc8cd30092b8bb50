"""Checks that the shards of a folder are undamaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from labelgen.errors import ShardError
from labelgen.labels.patterns import crop_grid
from labelgen.shards.checks import beyond
from labelgen.shards.folder import disagreements, shard_paths
from labelgen.shards.hdf5 import Viewer
from labelgen.shards.header import Shared
from labelgen.shards.reader import ShardReader, warn_without_maps
from labelgen.shards.schema import fields


def verify(
    folder: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, list[str]]:
    """Read all shards of a folder completely: returns their number, and a line for each fault.

    progress: called before each shard with the number read so far and the number of all

    Raises ShardError if there is none.
    """
    paths = shard_paths(folder)
    warn_without_maps(str(paths[0]))
    found: list[str] = []
    good: dict[str, Shared] = {}
    with Viewer() as viewer:
        for done, path in enumerate(paths):
            progress(done, len(paths))
            try:
                shard = ShardReader(path)
                found += problems(shard, viewer)
                good[shard.path] = shard.header.shared
            except ShardError as error:
                found.append(str(error))
    if len(good) == len(paths):
        found += disagreements(good)
    return len(paths), found


def problems(shard: ShardReader, viewer: Viewer) -> Iterator[str]:
    """A line for each fault of a shard that can be opened: hashes, frames, labels, and what other programs see of it."""
    path, now = shard.path, shard.now_sha256()
    wrong = {what for what, digest in now.items() if digest != shard.sha256[what]}
    if "frames" in wrong:
        yield f"{path}: the frames were changed after writing (SHA-256)"
    if shard.unknown:
        yield f"{path}: holds labels of unknown kinds: {', '.join(shard.unknown)}"
    elif "labels" in wrong:
        yield f"{path}: the labels were changed after writing (SHA-256)"
    elif "rest" in wrong:
        yield f"{path}: its HDF5 structure was changed after writing (SHA-256)"
    elif not wrong and (fault := viewer.fault(path, shard.header)):
        yield f"{path}: its HDF5 structure {fault}"
    for frame in range(len(shard.arrays["frames/offset"]) - 1):
        try:
            shard.frames([frame])
        except ShardError as error:
            yield str(error)
    grid = crop_grid(shard.config["height"], shard.config["width"], shard.config["crop"])
    if not np.array_equal(shard.crop_grid, grid):
        yield f"{path}: crop_grid differs from that of its configuration"
    for field in fields(shard.kinds):
        if (
            field.in_file
            and field.limit is not None
            and beyond(field, np.asarray(shard.arrays[field.name]), shard.config)
        ):
            yield f"{path}: {field.name} is out of range"
