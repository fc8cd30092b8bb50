"""Folders of numbered images, which are videos: the names of their frames."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Sequence

IMAGES = ("bmp", "jpeg", "jpg", "png", "webp")
_NUMBERED = re.compile(rf"(.*?)([0-9]{{1,15}})\.(?:{'|'.join(IMAGES)})", re.IGNORECASE | re.DOTALL)
_FLOW = re.compile(r"flow|[xyuv]_?$", re.IGNORECASE)  # names of optical flow beside the images


def numbered(names: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Numbered images among the names of a folder's files, by the part of the name before the number, in the order of
    the numbers; series of a single image and of optical flow are left out."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            found.setdefault(match[1], []).append((int(match[2]), name))
    return {begin: sorted(own) for begin, own in found.items() if len(own) > 1 and not _FLOW.match(begin)}


def frame_files(folder: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Number and name of each frame of a folder of images, in order. Raises ValueError if the images are not those of
    one video, OSError if the folder cannot be read."""
    with os.scandir(folder) as entries:
        series = numbered(entry.name for entry in entries if entry.name[0] != ".")
    if not series:
        raise ValueError("a folder without numbered images; expected a regular file, or images such as img_00001.jpg")
    if len(series) > 1:
        some = ", ".join(f"{len(own):,} such as {own[0][1]}" for own in list(series.values())[:3])
        raise ValueError(f"images of {len(series)} videos ({some}); expected one folder per video")
    (frames,) = series.values()
    for (one, name), (other, twin) in itertools.pairwise(frames):
        if one == other:
            raise ValueError(f"two images have the number {one}: {name} and {twin}")
    return frames


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """The files of a video: itself, or the images of a folder except broken links. Raises OSError if the folder cannot
    be read."""
    if not os.path.isdir(path):
        return [os.fspath(path)]
    with contextlib.suppress(ValueError):
        names = [os.path.join(path, name) for _, name in frame_files(path)]
        return [name for name in names if os.path.exists(name) or not os.path.islink(name)]
    return []


def stamp_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds of a video file, or of a folder's images together.
    Raises OSError."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size, status.st_mtime_ns
    images = [os.stat(name) for name in files_of(path)]
    return sum(one.st_size for one in images), max([status.st_mtime_ns, *(one.st_mtime_ns for one in images)])


def image_times(files: Sequence[tuple[int, str]], rate: float) -> list[float]:
    """Times of `frame_files` in seconds, at `rate` frames per second. The smallest step between numbers is one frame."""
    numbers = [number for number, _ in files]
    step = min(after - before for before, after in itertools.pairwise(numbers))
    return [(number - numbers[0]) / step / rate for number in numbers]
