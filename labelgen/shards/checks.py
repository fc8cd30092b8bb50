"""Checks of the settings, texts and numbers of a shard, made before anything uses them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from labelgen.config import Config
from labelgen.labels.kind import Arrays, Field, Kind
from labelgen.labels.sampling import crossed
from labelgen.reading import validate
from labelgen.shards.schema import fields

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ELSEWHERE = re.compile(r"^/|^$|(^|/)\.\.(/|$)", re.MULTILINE)  # in texts joined by newlines
_DATASET = re.compile(r"[\w-][\w.-]*")
_VIDEOS = re.compile(r"[0-9]{1,12} [0-9a-f]{16}")
# The part of the configuration that readers need. It may hold more; keys with a question mark are optional.
_SETTINGS = {
    **{"dataset": str, "height": int, "width": int, "crop": int, "clip_length": int, "paces": [str]},
    **{"clips": int | None, "rows": int, "order_clips": int, "allow_wrap": bool, "flow": {"backend": str}},
    **{"wrap_any?": bool, "fps?": float | None, "jpeg_quality?": int, "seed?": int, "expected?": {"*": int}},
    **{"segments?": str, "split?": str, "videos?": str, "videos_per_shard?": int, "labels?": dict},
}


def escaped(text: str) -> str:
    """A text whose control characters are written as escapes, as required in shards."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def check_texts(name: str, texts: Sequence[str], paths: bool = False) -> None:
    """Raises ValueError for texts with control characters or lone surrogates, and for paths that lead elsewhere:
    absolute or empty ones, or with `..`."""
    if found := _CONTROL.search("".join(texts)):
        raise ValueError(f"{name} has the control character {found[0]!r}")
    joined = "\n".join(texts)
    if paths and texts and (found := _ELSEWHERE.search(joined)):
        line = joined[joined.rfind("\n", 0, found.start() + 1) + 1 :].partition("\n")[0]
        raise ValueError(f"{name} has {line[:100]!r}, expected a path below the folder of the videos")


def check_settings(config: Mapping[str, Any]) -> tuple[Fraction, ...]:
    """The paces of a configuration. Raises ValueError if a setting that readers need is missing or impossible."""
    try:
        validate(config, _SETTINGS, "it")
    except ValueError as error:
        raise ValueError(f"its configuration is damaged: {error}") from error
    for name, pattern in (("dataset", _DATASET), ("videos", _VIDEOS)):
        if name in config and not pattern.fullmatch(config[name]):
            raise ValueError(f"its configuration has {name} {config[name]!r:.100}, expected {pattern.pattern}")
    if config.get("videos_per_shard", 1) < 1:
        raise ValueError(f"its configuration has videos_per_shard {config['videos_per_shard']}, expected at least 1")
    given = {field.name: config[field.name] for field in dataclasses.fields(Config) if field.name in config}
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return Config(**settings | {"flow": config["flow"]["backend"]}).fractions


def out_of_range(arrays: Arrays, config: Mapping[str, Any], kinds: Iterable[Kind]) -> Iterator[tuple[str, bool]]:
    """Each loaded data set, and whether it holds an impossible value. Stop at the first fault: later checks rely on
    earlier ones."""
    for field in fields(kinds):
        if field.limit is not None and not field.in_file:
            yield field.name, beyond(field, arrays[field.name], config)
    n_frames, first = arrays["videos/n_frames"], arrays["videos/first_frame"]
    yield "videos/first_frame", bool((first != np.cumsum(n_frames) - n_frames).any())
    time = arrays["frames/time"]
    inside = np.ones(len(time), bool)
    inside[first] = False  # only the steps within a video
    steps = (time[1:] < time[:-1]) | (np.isnan(time[1:]) != np.isnan(time[:-1]))
    yield "frames/time", bool(np.isinf(time).any() or (steps & inside[1:]).any())
    fps = arrays["videos/fps"]
    yield "videos/fps", bool(((fps != 0) & ~((fps >= 2.0**-31) & (fps <= 2.0**31))).any())
    for name in ("videos/width", "videos/height"):
        yield name, bool((arrays[name] < 1).any())
    video, start = arrays["clips/video"], arrays["clips/start"].astype(np.int64)
    yield "clips/video", bool(((video < 0) | (video >= len(n_frames))).any() or (np.diff(video) < 0).any())
    last = start + config["clip_length"] - 1
    yield (
        "clips/start",
        bool(((start < 0) | (last >= n_frames[video])).any() or crossed(arrays, video, start, last).any()),
    )
    for kind in kinds:
        yield from kind.faults(arrays, config)


def beyond(field: Field, values: np.ndarray, config: Mapping[str, Any]) -> bool:
    """Whether an id reaches its limit and does not mark a missing value."""
    assert field.limit is not None
    found = values >= field.limit(config)
    return bool((found & (values != field.missing)).any() if field.missing else found.any())
