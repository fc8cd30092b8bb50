"""Videos of shards on a page: a still of each that moves while it is pointed at, tapped or reached with the tab key."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from markupsafe import Markup

from labelgen.shards import ShardReader
from labelgen.times import frame_bounds
from trainer.pages.page import fill, join

_FRAMES, _EVERY = 12, 2  # a film shows every second frame of about a second
_HEIGHT, _QUALITY = 96, 50  # at most, pixels; of the WebP
_FPS = 25.0  # of a video without times
_RULE = (
    ".v{0}{{aspect-ratio:{1}/{2};background-image:url(data:image/jpeg;base64,{3})}}\n"
    ".v{0}:is(:hover,:focus)::after{{background-image:url(data:image/webp;base64,{4})}}\n"
)


class Films:
    """The videos that a page shows. Each is on the page once, as a rule of its style sheet, however often it is shown.

    readers: of the shards, by data set
    """

    def __init__(self, readers: Mapping[str, Sequence[ShardReader]]):
        self._places = {
            (dataset, name): (reader, row)
            for dataset, of_dataset in readers.items()
            for reader in of_dataset
            for row, name in enumerate(reader.arrays["videos/id"])
        }
        self._numbers: dict[tuple[str, str], int] = {}

    def __contains__(self, video: tuple[str, str]) -> bool:
        """Whether the shards of a video (data set, id) are given."""
        return video in self._places

    def __len__(self) -> int:
        """How many videos were shown."""
        return len(self._numbers)

    def show(self, dataset: str, name: str, alt: str) -> Markup:
        """A video, or a blank if its shards are not given."""
        video = dataset, name
        if video not in self:
            return fill('<span class="film blank" role="img" aria-label="{}"></span>', alt)
        number = self._numbers.setdefault(video, len(self._numbers))
        return fill('<span class="film v{}" role="img" tabindex="0" aria-label="{}"></span>', number, alt)

    def style(self) -> Markup:
        """The rules of all videos that were shown."""
        return join(self._rule(number, *self._places[video]) for video, number in self._numbers.items())

    def _rule(self, number: int, reader: ShardReader, row: int) -> Markup:
        first, length = (int(reader.arrays[f"videos/{key}"][row]) for key in ("first_frame", "n_frames"))
        height, width = reader.frame_size
        still = reader.jpeg(first + length // 2).tobytes()
        shown, fps = frames_of(length), float(reader.arrays["videos/fps"][row])
        bounds = frame_bounds(reader.arrays["frames/time"][first : first + length], fps)
        seconds = bounds[np.minimum(shown + _EVERY, length)] - bounds[shown]
        film = animation(reader.frames(first + shown), np.nan_to_num(seconds, nan=_EVERY / _FPS))
        return fill(_RULE, number, width, height, *(base64.b64encode(data).decode() for data in (still, film)))


def frames_of(length: int) -> np.ndarray:
    """Frames of a video of `length` frames that make its film, around its middle, int64 [at most 12]."""
    count = min(_FRAMES, -(-length // _EVERY))
    return max(0, (length - _EVERY * count) // 2) + _EVERY * np.arange(count)


def animation(frames: np.ndarray, seconds: float | np.ndarray) -> bytes:
    """RGB frames uint8 [n, H, W, 3] as an animated WebP of at most 96 lines, in a loop; seconds: of each frame, or of all."""
    height, width = frames.shape[1:3]
    scale = min(1.0, _HEIGHT / height)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    film = cv2.Animation()
    film.frames = [cv2.resize(frame[..., ::-1], size, interpolation=cv2.INTER_AREA) for frame in frames]
    film.durations = np.broadcast_to(np.clip(1000 * np.asarray(seconds), 20, 1000), len(frames)).astype(int).tolist()
    film.loop_count = 0  # for ever
    return cv2.imencodeanimation(".webp", film, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()
