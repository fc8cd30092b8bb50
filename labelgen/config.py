"""The settings of the label generator: each one that changes a stored byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import get_type_hints

from labelgen.errors import ConfigError

CLIP_LENGTH = 16  # the default of Config.clip_length
_CLIP_PIXELS = 1 << 28
MAX_PIXELS = 8192 * 4320  # 8K; a few bytes can declare a picture of gigabytes
_PACE = re.compile(r"[+-]?(\d{1,6}(/\d{1,6}|\.\d{0,6})?|\.\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class Config:
    """Settings of the label generator; together with the list of videos they determine a shard's configuration hash.

    Parameters
    ----------
    height, width : int
        Size of the stored frames in pixels.
    crop : int
        Side of the labelled crops in pixels, a multiple of 8.
    region : four floats
        Left, top, right and bottom of the part of the picture to keep, as shares of it; None keeps all of it.
    fps : float
        Constant frame rate to resample to; None keeps every frame of the file.
    image_fps : float
        Rate of folders of images, which have none; None: `fps`.
    max_pixels : int
        Largest picture; files with larger ones fail.
    jpeg_quality : int
        Of the stored frames, 1 to 100.
    flow : str
        A key of `labelgen.flow.BACKENDS`.
    clip_length : int
        Frames of a clip, a multiple of 8.
    clips : int
        Labelled clips per video, drawn at random; None labels all clips without overlap.
    paces : tuple of str
        Such as ("1/2", "1", "2"); a negative one plays backwards.
    order_clips : int
        Clips per order row, 2 to 5.
    rows : int
        Pace and order rows per video.
    allow_wrap, wrap_any : bool
        Pace rows of videos that are too short continue from the first frame; and any row may, which then starts anywhere.
    seed : int
        Of every random draw.

    Raises
    ------
    ConfigError
        For a value that cannot be used.

    Examples
    --------
    >>> from labelgen.config import Config
    >>> Config(paces=("1/2", "1", "2")).fractions
    (Fraction(1, 2), Fraction(1, 1), Fraction(2, 1))
    """

    height: int = 128  # of the stored frames, pixels
    width: int = 171
    crop: int = 112  # side of the labelled crops, pixels
    region: tuple[float, ...] | None = (
        None  # left, top, right, bottom of the part of the picture to keep, as shares of it
    )
    fps: float | None = None  # constant frame rate to resample to; None keeps every frame of the file
    image_fps: float | None = None  # rate of folders of images, which have none; None: fps
    max_pixels: int = MAX_PIXELS  # per picture; files with larger ones fail
    jpeg_quality: int = 90  # 1..100
    flow: str = "tvl1"  # backend, a key of labelgen.flow.BACKENDS
    clip_length: int = CLIP_LENGTH  # frames of a clip
    clips: int | None = None  # labelled clips per video, drawn at random; None labels all clips without overlap
    paces: tuple[str, ...] = ("1", "2", "3", "4")
    order_clips: int = 3  # clips per order row
    rows: int = 32  # pace and order rows per video
    allow_wrap: bool = False  # pace rows of videos too short for the largest pace continue from the first frame
    wrap_any: bool = False  # pace rows start anywhere in a video, and any may continue from the first frame
    seed: int = 0

    def __post_init__(self) -> None:
        from labelgen.reading import validate  # not above: `vssl --help` imports no YAML

        for name, hint in get_type_hints(Config).items():
            try:
                validate(getattr(self, name), hint, name)
            except ValueError as error:
                raise ConfigError(str(error).replace("_", "-")) from error
        limits = {
            "height": (16, 4096),
            "width": (16, 4096),
            "jpeg_quality": (1, 100),
            "order_clips": (2, 5),
            "rows": (1, 65535),
            "max_pixels": (1, 1 << 30),
            "seed": (0, (1 << 63) - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name.replace('_', '-')} is {value}; expected {low} to {high}")
        if self.crop % 8 or not 16 <= self.crop <= min(self.height, self.width):
            raise ConfigError(
                f"crop is {self.crop}; expected a multiple of 8 from 16 to the smaller side of the frames "
                f"({self.height} x {self.width})"
            )
        if self.region is not None:
            edges = self.region
            numbers = len(edges) == 4 and all(type(edge) in (int, float) for edge in edges)
            if not numbers or not (0 <= edges[0] < edges[2] <= 1 and 0 <= edges[1] < edges[3] <= 1):
                raise ConfigError(
                    f"region is {', '.join(map(str, edges))}; expected left, top, right, bottom as shares of the picture, "
                    "such as 0.25, 0.5, 0.75, 1"
                )
        if self.clip_length % 8 or not 8 <= self.clip_length <= 256:  # ids of flows are stored as uint8
            raise ConfigError(f"clip-length is {self.clip_length}; expected a multiple of 8 from 8 to 256 frames")
        if self.clips is not None and not 0 < self.clips < 1 << 31:
            raise ConfigError(f"clips is {self.clips}; expected 'all' or a number of clips per video, at least 1")
        for name in ("fps", "image_fps"):
            if (rate := getattr(self, name)) is not None and not 0 < rate <= 1000:
                wanted = "expected frames per second, more than 0 and at most 1000"
                raise ConfigError(f"{name.replace('_', '-')} is {rate}; {wanted}")
        if self.clip_length * self.height * self.width > _CLIP_PIXELS:
            raise ConfigError(
                f"clips have {self.clip_length} frames of {self.height} x {self.width}; expected {_CLIP_PIXELS:,} pixels at "
                "most, such as 16 frames of 4096 x 4096"
            )
        try:
            if not all(_PACE.fullmatch(pace) for pace in self.paces):  # 1e9999999999 would take all memory
                raise ValueError("of at most six digits each")
            paces = [Fraction(pace) for pace in self.paces]
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"paces are {', '.join(map(str, self.paces)):.200}; expected numbers such as 1,2,4 or 1/2,1,2 ({error})"
            ) from error
        if len(set(paces)) != len(paces) or not 2 <= len(paces) <= 255 or 0 in paces:
            raise ConfigError(
                f"paces are {', '.join(self.paces)}; expected at least two different paces, none of them 0"
            )

    @property
    def fractions(self) -> tuple[Fraction, ...]:
        """The paces as numbers."""
        return tuple(Fraction(pace) for pace in self.paces)
