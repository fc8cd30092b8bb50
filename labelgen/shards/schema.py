"""The data sets of a shard: those of every shard, and those of the label kinds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from labelgen.files import json_sha256
from labelgen.labels import known
from labelgen.labels.kind import Arrays, Field, Kind

SCHEMA_VERSION = 4
NONE, TRAIN, VALIDATION, TEST = range(4)  # values of videos/split
PARTS = ("none", "train", "validation", "test")  # and their names

COMMON = (
    Field("frames/offset", np.int64, ("offsets",), "frame `i` is `jpeg[offset[i]:offset[i + 1]]`"),
    Field(
        "frames/time",
        np.float64,
        ("frames",),
        "seconds, presentation time as stored in the video file, so that a video need not begin at 0; NaN in all frames of a "
        "video without time stamps",
    ),
    Field(
        "frames/damage",
        np.uint8,
        ("frames",),
        "0 none, 1 the decoder reports damage, 2 frames are lost just before it, 3 both",
        lambda config: 4,
    ),
    Field("videos/id", str, ("videos",), "unique in the data set"),
    Field("videos/path", str, ("videos",), "relative to the root of the data set"),
    Field("videos/label", str, ("videos",), "class, may be empty"),
    Field("videos/group", str, ("videos",), "source of the video, such as a person or a film, may be empty"),
    Field(
        "videos/split",
        np.uint8,
        ("videos", "splits"),
        "part of each official split: " + ", ".join(f"{code} {word}" for code, word in enumerate(PARTS)),
        lambda config: len(PARTS),
    ),
    Field("videos/first_frame", np.int64, ("videos",), "index of the video's first frame in the shard"),
    Field("videos/n_frames", np.int32, ("videos",), "number of frames"),
    Field("videos/fps", np.float64, ("videos",), "frames per second"),
    Field("videos/width", np.int32, ("videos",), "pixels, of the upright video before resizing"),
    Field("videos/height", np.int32, ("videos",), "likewise"),
    Field("clips/video", np.int32, ("clips",), "video of each labelled clip"),
    Field("clips/start", np.int32, ("clips",), "first frame of the clip, counted from the video's first"),
    Field("failures/id", str, ("failures",), "videos that could not be labelled, or not completely"),
    Field("failures/path", str, ("failures",), "likewise"),
    Field("failures/stage", str, ("failures",), "decode, label or process"),
    Field("failures/reason", str, ("failures",), "why"),
)


def fields(of: Iterable[Kind] | None = None) -> tuple[Field, ...]:
    """The data sets of a shard with these label kinds (default: all), except /frames/jpeg, which is not loaded."""
    return COMMON + tuple(field for kind in (known() if of is None else of) for field in kind.fields)


def kinds_in(arrays: Arrays) -> list[Kind]:
    """The label kinds with at least one data set among the arrays."""
    return [kind for kind in known() if any(field.name in arrays for field in kind.fields)]


def sizes(arrays: Arrays, config: Mapping[str, Any], crops: int, splits: int) -> dict[str, Any]:
    """The length of every axis that a field may name, see `Field.shape`."""
    frames = int(np.sum(arrays["videos/n_frames"]))
    return {
        **config,
        "offsets": frames + 1,
        "frames": frames,
        "videos": len(arrays["videos/id"]),
        "splits": splits,
        "clips": len(arrays["clips/video"]),
        "crops": crops,
        "failures": len(arrays["failures/id"]),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """A hash that distinguishes configurations, see `json_sha256`."""
    return json_sha256(config)


def labels_sha256(arrays: Arrays) -> str:
    """SHA-256 of all data sets except the frames; equals `ShardReader.sha256["labels"]` unless the file was damaged."""
    digest = hashlib.sha256()
    for field in fields(kinds_in(arrays)):
        values = arrays[field.name]
        if field.dtype is str:
            digest.update(f"{field.name} {len(values)}\0".encode() + "".join(f"{text}\0" for text in values).encode())
        else:
            array: np.ndarray = np.ascontiguousarray(values, field.dtype)
            digest.update(f"{field.name} {array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()


def attributes(shared: Mapping[str, Any], sha256: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The attributes that other programs find in the HDF5 file, by group. shared: as in the header of a shard."""
    found: dict[str, dict[str, Any]] = {
        "/": {
            "schema_version": SCHEMA_VERSION,
            **{name: json.dumps(shared[name], sort_keys=True) for name in ("config", "kinds", "splits", "versions")},
            "config_hash": shared["config_hash"],
            "crop_grid": np.array(shared["crop_grid"], np.int16),
            "labels_sha256": sha256["labels"],
        },
        "frames": {"sha256": sha256["frames"]},
    }
    for kind in known():
        if kind.settings and kind.name in shared["kinds"]:
            found[kind.name] = {setting: json.dumps(shared["config"][setting]) for setting in kind.settings}
    return found
