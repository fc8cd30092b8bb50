"""The shards of one or several folders: an index of all their videos is in memory, everything else is read on access."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from labelgen.errors import ShardError
from labelgen.files import json_sha256
from labelgen.shards import ShardReader
from labelgen.shards.folder import disagreements, shard_paths
from labelgen.shards.header import Shared
from trainer.data.overlay import read_overlay

_OPEN = 512  # readers kept, the last used ones; one of 32 videos of ten seconds takes about 100 kB
_NUMBERS = (
    "videos/n_frames",
    "videos/split",
    "clips/video",
    "curriculum/score",
    "pace/pace",
    "order/permutation",
)
_TEXTS = ("videos/id", "videos/label", "videos/group")
_OF_ONE = {
    "dataset",
    "expected",
    "split",
    "videos",
    "videos_per_shard",
}  # keys of a configuration that do not affect labels

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def each_folder(folders: Folders) -> list[str | os.PathLike[str]]:
    """One or several folders as a list."""
    return [folders] if isinstance(folders, (str, os.PathLike)) else [*folders]


class Readers(Sequence[ShardReader]):
    """The readers of all shards, in order, of one data set or of several that were labelled with the same settings; few
    of them are open at a time.

    overlay: file with other classes and splits of the videos, see `trainer.data.overlay`
    datasets: the shards of each data set by name; if there are several, the name precedes the id and group of each video
    splits: the names of the splits of each data set
    n_videos, n_clips: int64 [shards]; sha256, config_hashes: of each shard, see ShardReader; digest: of the content of
    all shards

    Raises ShardError as `open_shards` does, and if data sets were labelled with different settings; TrainerError if the
    overlay is damaged or for other shards.
    """

    def __init__(self, folders: Folders, overlay: str | os.PathLike[str] | None = None) -> None:
        sets = [[str(path) for path in shard_paths(folder)] for folder in each_folder(folders)]
        self._paths = [path for paths in sets for path in paths]
        numbers: dict[str, list[np.ndarray]] = {name: [] for name in _NUMBERS}
        texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        shared: dict[str, Shared] = {}
        n_videos, n_clips, self.sha256, self.config_hashes = [], [], [], list[str]()
        self._open = functools.lru_cache(_OPEN)(ShardReader)
        for path in self._paths:
            reader = self._open(path)
            shared[path] = reader.header.shared
            n_videos.append(reader.n_videos)
            n_clips.append(reader.n_clips)
            self.sha256.append(reader.sha256)
            self.config_hashes.append(reader.config_hash)
            for name, parts in numbers.items():
                if name in reader.arrays:
                    parts.append(reader.arrays[name])
            for name in _TEXTS:
                texts[name].append("\0".join(reader.arrays[name]))
        self.datasets: dict[str, range] = {}
        self.splits: dict[str, tuple[str, ...]] = {}
        first = shared[self._paths[0]].config
        for paths in sets:
            for fault in disagreements({path: shared[path] for path in paths}):
                raise ShardError(fault)
            own = shared[paths[0]].config
            if own["dataset"] in self.datasets:
                raise ShardError(f"{paths[0]}: {own['dataset']} is given twice; give each data set once")
            for key in sorted((own.keys() | first.keys()) - _OF_ONE):
                if own.get(key) != first.get(key):
                    raise ShardError(
                        f"{paths[0]}: {key} is {own.get(key)}, but in {self._paths[0]} it is {first.get(key)}; label data sets "
                        "for joint training with the same options"
                    )
            if not np.array_equal(shared[paths[0]].crop_grid, shared[self._paths[0]].crop_grid):
                raise ShardError(f"{paths[0]} and {self._paths[0]} have different crops; label one of the two again")
            begin = self._paths.index(paths[0])
            self.datasets[own["dataset"]] = range(begin, begin + len(paths))
            self.splits[own["dataset"]] = shared[paths[0]].splits
        if len(sets) > 1:
            splits = max(part.shape[1] for part in numbers["videos/split"])
            numbers["videos/split"] = [
                np.pad(part, ((0, 0), (0, splits - part.shape[1]))) for part in numbers["videos/split"]
            ]
        self.n_videos, self.n_clips = np.array(n_videos), np.array(n_clips)
        whole = {name: parts for name, parts in numbers.items() if len(parts) == len(self._paths)}
        self._numbers = {name: np.concatenate(parts) for name, parts in whole.items()}
        self.digest = json_sha256([[shared[paths[0]].config for paths in sets], self.sha256])
        if overlay is not None:
            other = read_overlay(overlay, self.digest, int(self.n_videos.sum()))
            self.splits = dict.fromkeys(self.datasets, tuple(other.splits))
            self._numbers["videos/split"] = np.stack([*other.splits.values()], axis=1)
            ends = np.cumsum(self.n_videos)
            texts["videos/label"] = [
                "\0".join(other.labels[end - n : end]) for n, end in zip(n_videos, ends, strict=True)
            ]
        self._texts = {name: [part.encode() for part in parts] for name, parts in texts.items()}

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> ShardReader: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShardReader]: ...

    def __getitem__(self, index: int | slice) -> ShardReader | list[ShardReader]:
        if isinstance(index, slice):
            return [self._open(path) for path in self._paths[index]]
        return self._open(self._paths[index])

    def numbers(self, name: str) -> np.ndarray:
        """A data set of all shards by its full name, joined. Raises ShardError if a shard lacks it."""
        if name not in self._numbers:
            return np.concatenate([reader.arrays[name] for reader in self])
        return self._numbers[name]

    def texts(self, name: str) -> Iterator[str]:
        """A text data set of all videos by its full name."""
        several = len(self.datasets) > 1 and name != "videos/label"
        for dataset, shards in self.datasets.items():
            for shard in shards:
                texts = self._texts[name][shard].decode().split("\0") if self.n_videos[shard] else []
                yield from (f"{dataset}/{text}" if several and text else text for text in texts)
