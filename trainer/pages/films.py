"""Videos and clips on a page: a still picture of each, which moves while it is hovered over, tapped or
focused with the tab key."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from markupsafe import Markup

from labelgen.shards import ShardReader
from labelgen.times import frame_bounds
from trainer.pages.page import fill, join

_FRAMES, _EVERY = 12, 2  # a film shows every second frame over about a second
_HEIGHT, _CLIP, _THUMBNAIL, _QUALITY = 96, 112, 72, 50  # heights of videos, clips and thumbnails in pixels; of the WebP
_FPS = 25.0  # for a video without timestamps
PLAY = Markup(
    '<p><label><input type="checkbox" class="play"> play all pictures</label></p>\n'
)  # of all films of a page
_STILL = ".v{0}{{aspect-ratio:{1}/{2};background-image:url(data:image/jpeg;base64,{3})}}\n"
_MOVING = ".v{0}{{--film:url(data:image/webp;base64,{1})}}\n"  # page.css shows it


class Films:
    """The moving pictures of a page. The page holds each video once, as a rule in its style sheet, however often it is shown.
    Films in an element of the class "together" move while it is hovered over, those in one of the class "playing" while its
    checkbox is checked.

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
        self._rules: list[Markup] = []

    def __contains__(self, video: tuple[str, str]) -> bool:
        """Whether the shards of a video (data set, id) are available."""
        return video in self._places

    def __len__(self) -> int:
        """How many videos were shown."""
        return len(self._numbers)

    def show(self, dataset: str, name: str, alt: str) -> Markup:
        """A video, or a blank if its shards are not available."""
        video = dataset, name
        if video not in self:
            return fill('<span class="film blank" role="img" aria-label="{}"></span>', alt)
        if video not in self._numbers:
            self._numbers[video] = self._video(*self._places[video])
        number = self._numbers[video]
        return fill('<span class="film v{}" role="img" tabindex="0" aria-label="{}"></span>', number, alt)

    def thumbnail(self, dataset: str, name: str) -> bytes:
        """The middle frame of a video with available shards, small, as JPEG."""
        reader, row = self._places[dataset, name]
        first, length = (int(reader.arrays[f"videos/{key}"][row]) for key in ("first_frame", "n_frames"))
        frame = _small(reader.frames(np.array([first + length // 2]))[0], _THUMBNAIL)
        return cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()

    def clip(
        self, frames: np.ndarray, seconds: float | np.ndarray, alt: str, most: int = _CLIP, alone: bool = False
    ) -> Markup:
        """A clip, RGB uint8 [n, H, W, 3], of at most `most` lines, that moves with its enclosing element; seconds: of each
        frame, or of all. alone: it moves by itself, too, as a video does. A single frame does not move."""
        still = cv2.imencode(".jpg", frames[len(frames) // 2, ..., ::-1])[1].tobytes()
        film = animation(frames, seconds, most) if len(frames) > 1 else None
        number = self._add(frames.shape[1], frames.shape[2], still, film)
        focus = Markup(' tabindex="0"') if alone else ""
        return fill('<span class="film v{}" role="img"{} aria-label="{}"></span>', number, focus, alt)

    def style(self) -> Markup:
        """The style rules of all videos and clips shown."""
        return join(self._rules)

    def _add(self, height: int, width: int, still: bytes, film: bytes | None) -> int:
        number = len(self._rules)
        rule = fill(_STILL, number, width, height, base64.b64encode(still).decode())
        if film is not None:
            rule += fill(_MOVING, number, base64.b64encode(film).decode())
        self._rules.append(rule)
        return number

    def _video(self, reader: ShardReader, row: int) -> int:
        first, length = (int(reader.arrays[f"videos/{key}"][row]) for key in ("first_frame", "n_frames"))
        height, width = reader.frame_size
        still = reader.jpeg(first + length // 2).tobytes()
        shown, fps = frames_of(length), float(reader.arrays["videos/fps"][row])
        bounds = frame_bounds(reader.arrays["frames/time"][first : first + length], fps)
        seconds = bounds[np.minimum(shown + _EVERY, length)] - bounds[shown]
        film = animation(reader.frames(first + shown), np.nan_to_num(seconds, nan=_EVERY / _FPS))
        return self._add(height, width, still, film)


def frame_seconds(reader: ShardReader, row: int) -> float:
    """How long a frame of a video is shown, in seconds."""
    fps = float(reader.arrays["videos/fps"][row])
    return 1 / (fps if fps > 0 else _FPS)


def frames_of(length: int) -> np.ndarray:
    """Frames that make the film of a video of `length` frames, around its middle, int64 [at most 12]."""
    count = min(_FRAMES, -(-length // _EVERY))
    return max(0, (length - _EVERY * count) // 2) + _EVERY * np.arange(count)


def animation(frames: np.ndarray, seconds: float | np.ndarray, most: int = _HEIGHT) -> bytes:
    """RGB frames uint8 [n, H, W, 3] as an animated, looping WebP of at most `most` lines; seconds: of each, or of all."""
    film = cv2.Animation()
    film.frames = [_small(frame[..., ::-1], most) for frame in frames]
    film.durations = np.broadcast_to(np.clip(1000 * np.asarray(seconds), 20, 1000), len(frames)).astype(int).tolist()
    film.loop_count = 0  # endless
    return cv2.imencodeanimation(".webp", film, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()


def _small(frame: np.ndarray, most: int) -> np.ndarray:
    """A picture uint8 [H, W, 3] of at most `most` lines."""
    height, width = frame.shape[:2]
    scale = min(1.0, most / height)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
