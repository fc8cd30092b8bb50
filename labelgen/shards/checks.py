"""What the settings, texts and numbers of a shard must be like before anything is done with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from labelgen.config import Config
from labelgen.labels.kind import Arrays, Field, Kind
from labelgen.shards.schema import fields

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ELSEWHERE = re.compile(r"^/|^$|(^|/)\.\.(/|$)", re.MULTILINE)  # of texts that are joined by newlines
_DATASET = re.compile(r"[\w-][\w.-]*")
_VIDEOS = re.compile(r"[0-9]{1,12} [0-9a-f]{16}")
# What readers ask of the configuration. More may be there, and less of what comes after the first line.
_SETTINGS: dict[str, tuple[type, ...]] = {
    **{"dataset": (str,), "height": (int,), "width": (int,), "crop": (int,), "clip_length": (int,), "paces": (list,)},
    **{"clips": (int, type(None)), "rows": (int,), "order_clips": (int,), "allow_wrap": (bool,), "flow": (dict,)},
    **{"wrap_any": (bool,)},
    **{"fps": (int, float, type(None)), "jpeg_quality": (int,), "seed": (int,), "expected": (dict,)},
    **{"split": (str,), "videos": (str,), "videos_per_shard": (int,), "labels": (dict,)},
}
_NEEDED = (
    "dataset",
    "height",
    "width",
    "crop",
    "clip_length",
    "paces",
    "clips",
    "rows",
    "order_clips",
    "allow_wrap",
    "flow",
)


def escaped(text: str) -> str:
    """A text whose control characters are written as escapes, as shards want it."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def check_texts(name: str, texts: Sequence[str], paths: bool = False) -> None:
    """Raises ValueError for texts with control characters or lone surrogates, and for paths that lead elsewhere: absolute
    ones, empty ones, and with `..`."""
    if found := _CONTROL.search("".join(texts)):
        raise ValueError(f"{name} has the control character {found[0]!r}")
    joined = "\n".join(texts)
    if paths and texts and (found := _ELSEWHERE.search(joined)):
        line = joined[joined.rfind("\n", 0, found.start() + 1) + 1 :].partition("\n")[0]
        raise ValueError(f"{name} has {line[:100]!r}, expected a path below the folder of the videos")


def check_settings(config: Mapping[str, Any]) -> tuple[Fraction, ...]:
    """The paces of a configuration. Raises ValueError where a setting that readers ask for is absent or cannot be."""
    if absent := [name for name in _NEEDED if name not in config]:
        raise ValueError(f"its configuration is without {', '.join(absent)}")
    for name, types in _SETTINGS.items():
        if name in config and type(config[name]) not in types:
            expected = " or ".join("none" if one is type(None) else one.__name__ for one in types)
            raise ValueError(f"its configuration has {name} {config[name]!r:.100}, expected {expected}")
    if not all(isinstance(pace, str) for pace in config["paces"]):
        raise ValueError(f"its configuration has paces {config['paces']!r:.100}, expected texts")
    if not isinstance(config["flow"].get("backend"), str):
        raise ValueError("its configuration does not name the backend of the flow")
    if not all(type(number) is int for number in config.get("expected", {}).values()):
        raise ValueError(f"its configuration has expected {config['expected']!r:.100}, expected numbers")
    for name, pattern in (("dataset", _DATASET), ("videos", _VIDEOS)):
        if name in config and not pattern.fullmatch(config[name]):
            raise ValueError(f"its configuration has {name} {config[name]!r:.100}, expected {pattern.pattern}")
    if config.get("videos_per_shard", 1) < 1:
        raise ValueError(f"its configuration has videos_per_shard {config['videos_per_shard']}, expected at least 1")
    given = {field.name: config[field.name] for field in dataclasses.fields(Config) if field.name in config}
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return Config(**settings | {"flow": config["flow"]["backend"]}).fractions


def out_of_range(arrays: Arrays, config: Mapping[str, Any], kinds: Iterable[Kind]) -> Iterator[tuple[str, bool]]:
    """Each data set that is loaded, and whether a value of it cannot be."""
    for field in fields(kinds):
        if field.limit is not None and not field.in_file:
            yield field.name, beyond(field, arrays[field.name], config)
    n_frames = arrays["videos/n_frames"]
    yield "videos/first_frame", bool((arrays["videos/first_frame"] != np.cumsum(n_frames) - n_frames).any())
    fps = arrays["videos/fps"]
    yield "videos/fps", bool(((fps != 0) & ~((fps >= 2.0**-31) & (fps <= 2.0**31))).any())
    for name in ("videos/width", "videos/height"):
        yield name, bool((arrays[name] < 1).any())
    video, start = arrays["clips/video"], arrays["clips/start"].astype(np.int64)
    yield "clips/video", bool(((video < 0) | (video >= len(n_frames))).any() or (np.diff(video) < 0).any())
    yield "clips/start", bool(((start < 0) | (start + config["clip_length"] > n_frames[video])).any())
    for kind in kinds:
        yield from kind.faults(arrays, config)


def beyond(field: Field, values: np.ndarray, config: Mapping[str, Any]) -> bool:
    """Whether an id is not below its limit, and not the sign of a missing one."""
    assert field.limit is not None
    found = values >= field.limit(config)
    return bool((found & (values != field.missing)).any() if field.missing else found.any())
