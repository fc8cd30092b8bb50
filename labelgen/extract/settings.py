"""Settings of flow on disk: everything that changes a stored byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

from labelgen import decode
from labelgen.config import MAX_PIXELS
from labelgen.errors import ConfigError
from labelgen.extract.layouts import LAYOUTS, Layout, Template
from labelgen.flow import find
from labelgen.reading import validate

VERSION = 1  # counts up with every change that may change a stored byte


@dataclass(frozen=True)
class Extraction:
    """Settings of `extract`. Raises ConfigError for a value that cannot be used."""

    layout: str = "mmaction2"  # a key of LAYOUTS
    template: str | None = None  # for the files of the flow, instead of the layout's; see Template
    frames_template: str | None = None  # for the files of the frames
    first: int | None = None  # number of the first flow and frame, instead of the layout's
    flow: str = "tvl1"  # backend, a key of labelgen.flow.BACKENDS
    bound: float = 20.0  # pixels: 8 bits hold values from -bound to bound
    step: int = 1  # flow from frame t to frame t + step
    short: int | None = 256  # pixels of the shorter side
    height: int | None = None  # of the frames, instead of `short`
    width: int | None = None
    frames: bool = False  # write the frames, too
    quality: int = 95  # of JPEGs, 1..100
    max_pixels: int = MAX_PIXELS  # largest picture of a video

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Extraction).items():
            try:
                validate(getattr(self, name), hint, name)
            except ValueError as error:
                raise ConfigError(str(error).replace("_", "-")) from error
        limits = {
            **{"first": (0, 10**6), "step": (1, 1000), "short": (16, 4096), "height": (16, 4096), "width": (16, 4096)},
            **{"quality": (1, 100), "max_pixels": (1, 1 << 30), "bound": (1e-3, 1e4)},
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name.replace('_', '-')} is {value:g}; expected {low:g} to {high:g}")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout is {self.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if (self.height is None) != (self.width is None) or (self.height is None) == (self.short is None):
            size = f"{self.height} x {self.width}"
            raise ConfigError(
                f"short is {self.short} and the size {size}; expected either the shorter side, or height and width"
            )
        if self.frames_template is not None and not self.frames:
            raise ConfigError(
                f"the template of frames is {self.frames_template!r}, but no frames are written; choose to write them, too"
            )
        find(self.flow)
        both = {self.flow_template.path("v", index, axis) for index in range(30) for axis in "xy"}
        if self.frames and both & {self.frame_template.path("v", index) for index in range(30)}:
            raise ConfigError(
                f"frames and flow have the same template, {self.flow_template.text!r}; choose another one for frames"
            )

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self.layout]

    @property
    def flow_template(self) -> Template:
        """The template of the files of the flow."""
        stepped = self.step != 1 and self._layout.stepped
        return Template(self.template or stepped or self._layout.flow, self.step)

    @property
    def frame_template(self) -> Template:
        """The template of the files of the frames."""
        return Template(self.frames_template or self._layout.frames, self.step, frames=True)

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates of all files that are written."""
        return (self.flow_template, self.frame_template) if self.frames else (self.flow_template,)

    @property
    def begin(self) -> int:
        """The number of the first flow and frame."""
        return self._layout.first if self.first is None else self.first

    @property
    def lists(self) -> bool:
        """Whether lists of the videos are written."""
        return self._layout.lists

    @property
    def bounded(self) -> bool:
        """Whether the flow is stored in 8 bits, which hold values between the bounds."""
        return self.flow_template.suffix not in (".npy", ".flo")

    def configuration(self, dataset: str) -> dict[str, Any]:
        """Everything that determines the bytes of a video's files, and the data set that they are from."""
        backend = find(self.flow)
        pictures = self.bounded and self.flow_template.suffix != ".png" or self.frames
        return {
            "dataset": dataset,
            "extraction": {"version": VERSION},
            "layout": self.layout,
            "template": self.flow_template.text,
            "frames": self.frame_template.text if self.frames else None,
            "first": self.begin,
            "step": self.step,
            "size": {"short": self.short} if self.short else {"height": self.height, "width": self.width},
            "bound": self.bound if self.bounded else None,
            "quality": self.quality if pictures else None,
            "max_pixels": self.max_pixels,
            "decode": {"version": decode.VERSION},
            "flow": {"backend": self.flow, "version": backend.version, **backend.parameters},
        }
