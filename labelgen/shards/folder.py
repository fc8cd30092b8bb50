"""The shards of a data set: which files they are, and whether they belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from labelgen.errors import ShardError
from labelgen.shards.reader import ShardReader
from labelgen.shards.schema import config_hash


def open_shards(folder: str | os.PathLike[str]) -> list[ShardReader]:
    """All shards of one data set in order. `folder` holds the `.h5` files, or one sub-folder that does.

    Raises ShardError when there is none, when several data sets lie side by side, when configurations differ, or when
    shards are missing.
    """
    readers = [ShardReader(path) for path in shard_paths(folder)]
    for fault in disagreements(readers):
        raise ShardError(fault)
    return readers


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of the shards of one data set in order, see `open_shards`.

    Raises ShardError when there is none, or when several data sets lie side by side.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder of shards; make them with `vssl labelgen`, or name another folder")
    paths = sorted(folder.glob("[0-9]*.h5"))
    if not paths:
        subfolders = sorted(sub for sub in folder.iterdir() if sub.is_dir() and any(sub.glob("[0-9]*.h5")))
        if not subfolders:
            raise ShardError(f"{folder}: holds no shards (*.h5); make them with `vssl labelgen`")
        if len(subfolders) > 1:
            names = ", ".join(str(sub) for sub in subfolders)
            raise ShardError(f"{folder}: holds several data sets; name one of them: {names}")
        return shard_paths(subfolders[0])
    return paths


def disagreements(readers: Sequence[ShardReader]) -> Iterator[str]:
    """What keeps shards from being one whole data set: other configurations or splits than the first one's, missing
    shards."""
    first = readers[0]
    for other in readers[1:]:
        if other.header.shared is first.header.shared:
            continue
        if config_hash(other.config) != config_hash(first.config):
            yield (
                f"{other.path} was made with configuration {config_hash(other.config)}, {first.path} with "
                f"{config_hash(first.config)}; label one of the two into another folder"
            )
        elif other.splits != first.splits or not np.array_equal(other.crop_grid, first.crop_grid):
            yield f"{other.path} has other splits or crops than {first.path}; label one of the two into another folder"
    if "videos_per_shard" in first.config and "videos" in first.config:
        expected = -(-int(first.config["videos"].split()[0]) // first.config["videos_per_shard"])
        if len(readers) != expected:
            yield (
                f"{os.path.dirname(first.path)}: {len(readers)} of {expected} shards are there; run the same "
                "`vssl labelgen` command again to finish"
            )
