"""Parts of video files that are videos of a data set: their entries in lists, and their names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:[.,]\d{1,9})?)", re.ASCII)  # 01:02:03.5, also 62:03.5
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


class Part(NamedTuple):
    """A part of a video: from `begin` to `end` in seconds after its first frame; or, in frames, from the first to the
    last number, counted from 0. An end of None is the end of the video."""

    begin: float = 0.0
    end: float | None = None
    frames: bool = False


def read_part(spec: Mapping[str, Any], start: str, end: str) -> Part:
    """The part given by two cells of a table. spec: the section `segments` of a manifest. Raises ValueError."""
    frames = spec.get("unit", "seconds") == "frames"
    first = spec.get("first", 0)
    begin = _value(start, frames) - first if start else 0
    last = _value(end, frames) - first if end else None
    if begin < 0:
        raise ValueError(f"frame {start}, expected at least {first}, the number of the first one")
    if last is not None and (last < begin or last == begin and not frames):
        raise ValueError(f"from {start or 0} to {end}, expected an end after the start")
    return Part(begin, last, frames)


def part_name(spec: Mapping[str, Any], video: str, part: Part) -> str:
    """The id of a part of a video, `film.mp4@12.5-17.25`, which does not depend on the rest of the list. spec: see
    `read_part`."""
    first = spec.get("first", 0)
    begin, end = (None if value is None else value + first * part.frames for value in (part.begin, part.end))
    return f"{video}@{_text(begin)}-{_text(end)}"


def order(part: Part) -> tuple[float, float]:
    """The sort key of parts of one video."""
    return part.begin, math.inf if part.end is None else part.end


def _value(text: str, frames: bool) -> float:
    if frames:
        if not text.isdecimal() or len(text) > 12:
            raise ValueError(f"{text[:40]!r}, expected the number of a frame")
        return int(text)
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = match.groups()
        return round(3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", ".")), 9)
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text[:40]!r}, expected seconds, such as 72.5 or 00:01:12.5")
    return float(text)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.9f}".rstrip("0").rstrip(".")


def seconds_of(part: Part, times: list[float]) -> tuple[float, float]:
    """A part given in frames as seconds after the first frame. times: of all frames, in order. Raises ValueError."""
    if not times or part.begin >= len(times):
        raise ValueError(f"no frame {part.begin:g}, the video has {len(times)}")
    last = math.inf if part.end is None else part.end + 1
    return times[int(part.begin)] - times[0], times[int(last)] - times[0] if last < len(times) else math.inf
