"""The names of the files of a video's flow, as the programs that read them expect."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from string import Formatter

from labelgen.errors import ConfigError
from labelgen.files import path_name
from labelgen.shards.checks import escaped

_FIELDS = {"video", "name", "axis", "uv", "index", "step"}
_IMAGES = (".jpg", ".jpeg", ".png")
_NAME = 255  # bytes, the longest name of a file
# visible files of the output folder itself
REPORT, TABLE, FLOW_LIST, FRAME_LIST, CLASSES = (
    "report.json",
    "videos.csv",
    "flow_list.txt",
    "rgb_list.txt",
    "classes.txt",
)
RESERVED = (REPORT, TABLE, FLOW_LIST, FRAME_LIST, CLASSES)


@dataclass(frozen=True)
class Layout:
    """How a program arranges the files of flow.

    flow, frames: templates of the names of flow and frame files; first: number of the first of each
    stepped:      another template of the flow for steps other than 1, if any
    lists:        whether the program reads lists of videos, FLOW_LIST and FRAME_LIST
    """

    flow: str
    frames: str
    first: int
    stepped: str = ""
    lists: bool = False


LAYOUTS = {
    "mmaction2": Layout("{video}/flow_{axis}_{index:05d}.jpg", "{video}/img_{index:05d}.jpg", 1, lists=True),
    "denseflow": Layout(
        *("{video}/flow_{axis}_{index:05d}.jpg", "{video}/img_{index:05d}.jpg", 0),
        stepped="{video}/flow_{axis}_p{step}_{index:05d}.jpg",
    ),
    "uv": Layout("{uv}/{video}/frame{index:06d}.jpg", "jpegs_256/{video}/frame{index:06d}.jpg", 1),
    "npy": Layout("{video}/flow.npy", "{video}/img_{index:05d}.jpg", 1),
    "flo": Layout("{video}/flow_{index:05d}.flo", "{video}/img_{index:05d}.jpg", 1),
}


@dataclass(frozen=True)
class Template:
    """The names of files, with the fields {video}, the path of the video below its folder, without the extension; {name}, the
    last part of it; {axis}, x or y; {uv}, u or v; {step}; {index}, with a width such as {index:05d}. A picture of flow without
    an axis holds x, y and 128 in its channels blue, green and red, the order of OpenCV [MemDPC, CoCLR].

    The files of a video are in separate folders, so that {video} is a whole part of the path before the last one; if
    all of its flow is a single .npy file, {video} may begin the last part.

    frames: whether it names frames, which have no axes. Raises ConfigError for a template that cannot be used.
    """

    text: str
    step: int = 1
    frames: bool = False

    def __post_init__(self) -> None:
        try:
            parts = list(Formatter().parse(self.text))
            fields = [field for _, field, _, _ in parts if field is not None]
            formats = {form for _, field, form, _ in parts if field == "index"}
            plain = all(not form for _, field, form, _ in parts if field not in (None, "index"))
            if set(fields) - _FIELDS or any(conversion for *_, conversion in parts) or not plain:
                raise ValueError(
                    f"expected none but {', '.join(f'{{{name}}}' for name in sorted(_FIELDS))} in brackets"
                )
            if not all(re.fullmatch("(0[1-9])?d?", form or "") for form in formats):
                raise ValueError("expected {index} with a width of at most 9 digits, such as {index:05d}")
            self._check(fields)
        except ValueError as error:
            raise ConfigError(f"the template is {self.text!r}: {error}") from error

    def _check(self, fields: Sequence[str]) -> None:
        folders, last = self._parts
        single = self.suffix == ".npy"
        allowed = _IMAGES if self.frames else (*_IMAGES, ".flo", ".npy")
        if self.suffix not in allowed:
            raise ValueError(f"expected a name that ends in {', '.join(allowed)}")
        if any(part in ("", "..") or part.startswith(".") for part in (*folders, last)):
            raise ValueError("expected a path below the output folder, without hidden names")
        if fields.count("video") != 1 or not ("{video}" in folders or single and last.startswith("{video}")):
            raise ValueError("expected {video} once, as a whole folder such as {video}/flow_{axis}_{index:05d}.jpg")
        if "{video}" in folders and folders[-1] != "{video}":
            raise ValueError("expected the files directly in the folder {video}")
        if single == ("index" in fields) or "index" in fields and "{index" not in last:
            raise ValueError(
                "expected {index} in each name, but not in that of a .npy file, which holds all flow of a video"
            )
        if ("axis" in fields or "uv" in fields) and (self.frames or self.suffix not in _IMAGES):
            raise ValueError("expected {axis} or {uv} only in the names of pictures of flow")

    @property
    def _parts(self) -> tuple[list[str], str]:
        *folders, last = self.text.split("/")
        return folders, last

    @property
    def both(self) -> bool:
        """Whether one file holds both axes."""
        return self.path("v", axis="x") == self.path("v", axis="y")

    @property
    def suffix(self) -> str:
        """The extension of the files: .jpg, .jpeg, .png, .flo or .npy."""
        return os.path.splitext(self.text)[1].lower()

    def path(self, video: str, index: int = 0, axis: str = "x") -> str:
        """The path of a file of a video below the output folder; axis: x or y."""
        fields = {"video": video, "name": PurePosixPath(video).name, "axis": axis, "uv": {"x": "u", "y": "v"}[axis]}
        return self.text.format(**fields, index=index, step=self.step)

    def owned(self, video: str) -> list[str]:
        """The folders, or the file, below the output folder that belong to this video alone."""
        paths = dict.fromkeys(self.path(video, axis=axis) for axis in "xy")
        if self.suffix == ".npy" and "{video}" in self._parts[1]:
            return list(paths)
        return list(dict.fromkeys(os.path.dirname(path) for path in paths))


def owned(templates: Iterable[Template], video: str) -> list[str]:
    """All folders and files below the output folder that belong to this video alone, in order."""
    return list(dict.fromkeys(place for template in templates for place in template.owned(video)))


def names(
    ids: Sequence[str], templates: Sequence[Template], known: Mapping[str, str], spaces: bool = True
) -> dict[str, str]:
    """id -> {video} of its files: the id without the extension; with it, if two videos would share a place or one would
    lie within another's; and with a digest of the id, if they still do.

    known: names from an earlier run, which are kept; spaces: whether white space is kept or becomes _

    Raises ConfigError for a name that the file system cannot hold.
    """
    level = dict.fromkeys(ids, 0)
    while True:
        chosen = {id: known.get(id) or _spelt(id, level[id], spaces) for id in ids}
        places = {id: owned(templates, name) for id, name in chosen.items()}
        count = Counter(place for own in places.values() for place in own)
        above = {parent for place in count for parent in _above(place)}.union(RESERVED)
        clash = [id for id, own in places.items() if any(count[place] > 1 or place in above for place in own)]
        movable = [id for id in clash if level[id] < 2 and id not in known]
        if not movable:
            break
        for id in movable:
            level[id] += 1
    for id, name in chosen.items():
        if id in clash or any(place.split("/")[0] in RESERVED for place in places[id]):
            raise ConfigError(f"{id}: its files would lie in {places[id][0]}, which is taken; rename the video")
        _check_length(id, [template.path(name, 10**8, axis) for template in templates for axis in "xy"])
    return chosen


def _spelt(id: str, level: int, spaces: bool) -> str:
    name = re.sub(r"(^|/)(?=\.)", r"\1_", id if level else os.path.splitext(id)[0])  # no hidden names
    name = escaped(name if spaces else re.sub(r"\s", "_", name))
    return name + "-" + hashlib.sha256(id.encode()).hexdigest()[:8] if level == 2 else name


def _above(place: str) -> list[str]:
    parts = place.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _check_length(id: str, paths: Iterable[str]) -> None:
    for path in paths:
        if long := [part for part in path.split("/") if len(os.fsencode(part)) > _NAME]:
            raise ConfigError(
                f"{path_name(id, limit=80)}: the name of its file, {long[0][:40]}..., would have "
                f"{len(os.fsencode(long[0]))} bytes; expected at most {_NAME}: rename the video, or choose a shorter template"
            )
