"""Which shards are to be made, and the configuration that all of them share."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelgen import decode, shards
from labelgen.config import Config
from labelgen.errors import MachineError, ShardError
from labelgen.flow import find as find_backend
from labelgen.labels import LABELS, clip, kinds, sampling
from labelgen.labels.patterns import GRID_STEP
from labelgen.manifest import Dataset, Video
from labelgen.numbered import stamp_of
from labelgen.run.finished import Finished
from labelgen.run.jobs import Job
from labelgen.shards.checks import escaped

_NO_FILE = {errno.ELOOP, errno.ENAMETOOLONG}


@dataclass(frozen=True)
class ShardTask(Job):
    """One shard to make. identity: the whole configuration, as stored in the shard."""

    splits: tuple[str, ...]
    config: Config
    identity: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All shards of a run. rows: the videos of each shard, by its file name; identity: (videos, sizes) -> configuration
    of their shard; sizes: see `file_sizes`; the others as in ShardTask."""

    folder: Path
    dataset: Dataset
    videos: Sequence[Video]
    sizes: np.ndarray
    rows: Mapping[str, slice]
    config: Config
    identity: Callable[[Sequence[Video], np.ndarray], dict[str, Any]]
    stall: float
    labels: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The file names of all shards."""
        return [*self.rows]

    def count(self, name: str) -> int:
        """The number of videos of a shard."""
        return len(self.sizes[self.rows[name]])

    def bytes_of(self, name: str) -> dict[str, int]:
        """The size of the file of each video of a shard, by the id that the shard stores."""
        videos, sizes = self.videos[self.rows[name]], self.sizes[self.rows[name]].tolist()
        return {escaped(video.id): size for video, size in zip(videos, sizes, strict=True)}

    def missing(self, there: Iterable[str]) -> list[str]:
        """The shards that are not among these, those of the largest files first: otherwise a long video that begins
        last would keep the whole run waiting for one worker."""
        of_name = {name: int(self.sizes[rows].sum()) for name, rows in self.rows.items()}
        return sorted(of_name.keys() - set(there), key=lambda name: (-of_name[name], name))

    def task(self, name: str, isolated: bool) -> ShardTask:
        """The task of making a shard; isolated: see ShardTask."""
        batch, own = self.videos[self.rows[name]], self.sizes[self.rows[name]]
        sizes = dict(zip((video.id for video in batch), own.tolist(), strict=True))
        path, data, identity = self.folder / name, self.dataset, self.identity(batch, own)
        return ShardTask(
            path, batch, data.root, data.splits, self.config, identity,
            stall=self.stall, sizes=sizes, isolated=isolated, labels=self.labels,
        )  # fmt: skip


def in_order(count: int, per_shard: int, first: int = 0) -> dict[str, slice]:
    """The names of shards, numbered from `first`, each with its slice of `count` videos in order."""
    numbers = range(-(-count // per_shard))
    return {f"{first + number:05d}.h5": slice(number * per_shard, (number + 1) * per_shard) for number in numbers}


def file_sizes(videos: Sequence[Video]) -> np.ndarray:
    """Sizes of the videos in bytes, int64 [videos], see `stamp_of`; -1 for broken links and names that are too long.
    The files are not opened.

    Raises MachineError if a listed file does not exist, or its disk or network fails.
    """

    def size(file: str | Path) -> int:
        try:
            return stamp_of(file)[0]
        except OSError as error:
            if error.errno in _NO_FILE or error.errno == errno.ENOENT and os.path.islink(file):
                return -1
            raise MachineError(
                f"{file}: is in its folder, but cannot be accessed ({error.strerror}); nothing was labelled: check the "
                "disk or the network, and run the same command again"
            ) from error

    return np.fromiter((size(video.file) for video in videos), np.int64, len(videos))


def configuration(
    dataset: Dataset,
    videos: Sequence[Video],
    sizes: np.ndarray,
    split: str,
    config: Config,
    per_shard: int | None,
    labels: Mapping[str, str] = LABELS,
) -> dict[str, Any]:
    """Everything that determines the bytes of the shards: the videos and their sizes (`file_sizes`), the settings, and
    the version, constants and parameters of all code that computes the `labels`, see `run`. per_shard: None for a
    single shard of a folder that grows."""
    digest = hashlib.sha256()
    for video, size in zip(videos, sizes.tolist(), strict=True):
        bytes_ = "none" if size < 0 else size
        digest.update(f"{video.id}\0{bytes_}\0{video.label}\0{video.group}\0{video.split}\n".encode())
    backend = find_backend(config.flow)
    settings = asdict(config)
    if config.image_fps is None:  # older shards have neither this setting nor parts of files
        del settings["image_fps"]
    if parts := [video.part for video in videos[:1] if video.part is not None]:
        settings["segments"] = "frames" if parts[0].frames else "seconds"
    return {
        "dataset": dataset.name,
        "expected": dict(dataset.expected),
        "split": split,
        "videos": f"{len(videos)} {digest.hexdigest()[:16]}",
        **({} if per_shard is None else {"videos_per_shard": per_shard}),
        **settings,
        "paces": list(config.paces),
        "frames": {"version": decode.VERSION},
        "draws": {"version": sampling.VERSION},
        "crop_step": GRID_STEP,
        "flow": {"backend": config.flow, "version": backend.version, **backend.parameters},
        "boundaries": {"version": clip.VERSION, "max_flow": clip.MAX_FLOW},
        "labels": {kind.name: {"version": kind.version, **kind.constants} for kind in kinds(labels)},
    }


def check_configuration(
    paths: Sequence[Path], finished: Finished, identity: dict[str, Any], videos: Sequence[Video]
) -> None:
    """Raises ShardError if an existing shard has another configuration."""
    expected = shards.config_hash(identity)
    for path in paths:
        if finished.summary(path)["config_hash"] != expected:
            found = shards.ShardReader(path)
            differing = differences(found.config, identity)
            only_videos = differing.keys() <= {"videos"}
            if differing.pop("videos", ""):
                ids = {video.id for video in videos}
                differing["videos"] = _other_videos(paths, found.config["videos"], identity["videos"], ids)
            raise ShardError(
                f"{path} was made with configuration {found.config_hash}, this run's is {expected} "
                f"({'; '.join(differing.values())}); choose another output folder, or delete this one"
                + ", or add what is new with --add"
                * only_videos
            )


def _other_videos(paths: Sequence[Path], there: str, here: str, videos: set[str]) -> str:
    """How the videos differ from those of the shards, in words: counts, and the first one that is gone or new."""
    arrays = [shards.ShardReader(path).arrays for path in paths]
    stored = {video for array in arrays for key in ("videos/id", "failures/id") for video in array[key]}
    count = int(there.split()[0])
    text = f"videos: {count} there, {here.split()[0]} now, with other paths, sizes or labels"
    if gone := stored - videos:
        text += f"; gone is {min(gone)}"
    if len(stored) == count and (new := videos - stored):
        text += f"; new is {min(new)}"
    return text


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """The values in which two configurations differ, in words, by their names."""
    found, asked = _flat(there), _flat(here)
    keys = [key for key in sorted(found | asked) if found.get(key) != asked.get(key)]
    # each backend has other parameters, which add nothing to a different name of the backend
    keys = [key for key in keys if key in found and key in asked] or keys
    return {key: f"{key}: {found.get(key)} there, {asked.get(key)} now" for key in keys}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every value as JSON by its joined names: {"flow": {"backend": "dis"}} gives "flow backend"."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {prefix + key: json.dumps(value)}
    return flat
