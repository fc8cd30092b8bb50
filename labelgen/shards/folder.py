"""The shards of a data set: which files they are, and whether they belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from labelgen.errors import ShardError
from labelgen.shards.collection import read_collection
from labelgen.shards.header import Shared
from labelgen.shards.reader import ShardReader, warn_without_maps
from labelgen.shards.schema import config_hash


def open_shards(folder: str | os.PathLike[str]) -> list[ShardReader]:
    """All shards of one data set in order.

    Parameters
    ----------
    folder : str or path
        Holds the `.h5` files, or one sub-folder that does.

    Returns
    -------
    list of ShardReader
        Opened, with their labels in memory.

    Raises
    ------
    ShardError
        If there is none, if several data sets lie side by side, if configurations differ, or if shards are missing.

    Examples
    --------
    >>> from labelgen.shards import open_shards
    >>> shards = open_shards("out/demo")
    >>> [shard.n_videos for shard in shards]
    [6, 7]
    """
    readers = [ShardReader(path) for path in shard_paths(folder)]
    warn_without_maps(readers[0].path)
    for fault in disagreements({reader.path: reader.header.shared for reader in readers}):
        raise ShardError(fault)
    return readers


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of the shards of one data set in order, see `open_shards`.

    Raises ShardError if there is none, or if several data sets lie side by side.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(
            f"{folder}: no such folder of shards; make them with `vssl labelgen`, or choose another folder"
        )
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


def alike(config: Mapping[str, Any], grown: bool) -> dict[str, Any]:
    """The part of a configuration that all shards of a folder share: in a folder that has grown, all but the videos."""
    return {
        key: value
        for key, value in config.items()
        if not grown or key not in ("expected", "videos", "videos_per_shard")
    }


def disagreements(shared: Mapping[str, Shared]) -> Iterator[str]:
    """Reasons why shards are not one complete data set: configurations or splits that differ from the first shard's,
    missing shards. In a folder that has grown, configurations differ in their videos.

    shared: by path, what each shard should have in common with all others of its data set.
    """
    path, first = next(iter(shared.items()))
    folder = os.path.dirname(path)
    grown = read_collection(folder)
    for other, own in shared.items():
        if own is first:
            continue
        if alike(own.config, grown is not None) != alike(first.config, grown is not None):  # whatever hash they claim
            yield (
                f"{other} was made with configuration {config_hash(own.config)}, {path} with {config_hash(first.config)}; "
                "label one of the two into another folder"
            )
        elif own.splits != first.splits or not np.array_equal(own.crop_grid, first.crop_grid):
            yield f"{other} has other splits or crops than {path}; label one of the two into another folder"
    if grown is not None:
        if missing := grown.keys() - {os.path.basename(path) for path in shared}:
            yield (
                f"{folder}: {len(grown) - len(missing)} of {len(grown)} shards are done, {min(missing)} is missing; run the same "
                "`vssl labelgen --add` command again to finish"
            )
    elif "videos_per_shard" in first.config and "videos" in first.config:
        expected = -(-int(first.config["videos"].split()[0]) // first.config["videos_per_shard"])
        if len(shared) != expected:
            yield (
                f"{folder}: {len(shared)} of {expected} shards are done; run the same "
                "`vssl labelgen` command again to finish"
            )
