"""A shard reduced to some of its videos, by copying their rows and frames."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelgen.errors import ShardError
from labelgen.shards.header import COPY_BYTES
from labelgen.shards.reader import ShardReader
from labelgen.shards.schema import fields
from labelgen.shards.writer import write


def keep_videos(path: Path, videos: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Rewrite a shard with only these of its videos (and failures), as `write` does; nothing is labelled again.

    videos: by id, the new "label", "group" and "split" of each; config: the new configuration

    Raises ShardError if the shard cannot be read, or holds labels of an unknown kind.
    """
    reader = ShardReader(path)
    if reader.unknown:
        raise ShardError(
            f"{path}: holds labels of unknown kinds: {', '.join(reader.unknown)}; it cannot be rewritten without their code"
        )
    arrays = reader.arrays
    own = np.array([row for row, id in enumerate(arrays["videos/id"]) if id in videos], np.int64)
    first, count = arrays["videos/first_frame"][own], arrays["videos/n_frames"][own]
    frames = np.concatenate([np.arange(0), *(np.arange(a, a + n) for a, n in zip(first, count, strict=True))]).astype(
        np.int64
    )
    rows = {
        "videos": own,
        "frames": frames,
        "clips": np.flatnonzero(np.isin(arrays["clips/video"], own)),
        "failures": np.array([row for row, id in enumerate(arrays["failures/id"]) if id in videos], np.int64),
    }
    kept: dict[str, Any] = {}
    for field in fields(reader.kinds):
        values = arrays[field.name]
        if field.axes[0] in rows:
            chosen = rows[field.axes[0]]
            kept[field.name] = [values[row] for row in chosen] if field.dtype is str else np.asarray(values)[chosen]
    offset = arrays["frames/offset"]
    kept["frames/offset"] = np.cumsum(np.append(0, offset[frames + 1] - offset[frames]))
    kept["videos/first_frame"] = np.cumsum(count, dtype=np.int64) - count
    kept["clips/video"] = np.searchsorted(own, kept["clips/video"])
    for name in ("label", "group"):
        kept[f"videos/{name}"] = [videos[id][name] for id in kept["videos/id"]]
    splits = [videos[id]["split"] for id in kept["videos/id"]]
    kept["videos/split"] = np.array(splits, np.uint8).reshape(len(own), len(reader.splits))
    with tempfile.TemporaryFile(dir=path.parent) as jpeg, open(path, "rb") as file:
        for begin, n in zip(first.tolist(), count.tolist(), strict=True):
            _copy(file, jpeg, reader.header.stored["frames/jpeg"].offset, offset[[begin, begin + n]])
        write(path, kept, jpeg, config, reader.crop_grid, reader.splits, reader.versions)


def _copy(file: Any, to: Any, offset: int, bounds: Sequence[int]) -> None:
    file.seek(offset + int(bounds[0]), os.SEEK_SET)
    left = int(bounds[1] - bounds[0])
    while left and (block := file.read(min(COPY_BYTES, left))):
        to.write(block)
        left -= len(block)
