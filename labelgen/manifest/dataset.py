"""The videos of a data set, and the parts of its splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from labelgen.errors import ConfigError
from labelgen.manifest.files import EXTENSIONS, check_levels, find_videos, locate, put_replacements
from labelgen.manifest.form import check_group, read_manifest
from labelgen.manifest.layouts import choose
from labelgen.manifest.lists import PART_WORDS, class_names, list_members
from labelgen.manifest.messages import fail, some
from labelgen.manifest.segments import Part, order, part_name
from labelgen.manifest.tables import csv_rows
from labelgen.manifest.values import Rows, by_index, name_numbers, spell_classes, split_by_value, values
from labelgen.numbered import IMAGES
from labelgen.shards import NONE, PARTS, TEST, TRAIN, VALIDATION

_Listed = TypeVar("_Listed")


@dataclass(frozen=True, slots=True)
class Video:
    """A video: a file, a folder of numbered images, or a part of either."""

    id: str  # POSIX path below the video folder with extension, and the times of a part; unique, valid UTF-8
    file: str | Path  # absolute
    label: str  # "" if there is none
    group: str  # "" if there is none
    split: tuple[int, ...]  # one per official split, see labelgen.shards.PARTS
    part: Part | None = None  # of the file; None: the whole file

    @property
    def path(self) -> Path:
        """The file as a Path, which takes several times the memory of a string."""
        return Path(self.file)


class Videos(Sequence[Video]):
    """Videos stored by columns, as there may be millions; each is created on access.

    paths: paths of files below `folder` that differ from their ids, by id; parts: of files, by id
    """

    def __init__(
        self,
        folder: str | Path,
        paths: Mapping[str, str],
        ids: Sequence[str],
        labels: Sequence[str],
        groups: Sequence[str],
        split: Sequence[tuple[int, ...]],
        parts: Mapping[str, Part] | None = None,
    ):
        self._folder, self._paths, self.parts = os.path.join(folder, ""), paths, parts or {}
        self.ids, self.labels, self.groups, self.split = ids, labels, groups, split

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> Video: ...

    @overload
    def __getitem__(self, at: slice) -> Videos: ...

    def __getitem__(self, at: int | slice) -> Video | Videos:
        if isinstance(at, slice):
            return self.take(range(*at.indices(len(self))))
        id = self.ids[at]
        file, part = self._folder + self._paths.get(id, id), self.parts.get(id)
        return Video(id, file, self.labels[at], self.groups[at], self.split[at], part)

    def take(self, rows: Sequence[int]) -> Videos:
        """Some of the videos."""
        ids, labels, groups = ([column[row] for row in rows] for column in (self.ids, self.labels, self.groups))
        paths = {id: self._paths[id] for id in ids if id in self._paths} if self._paths else {}
        parts = {id: self.parts[id] for id in ids} if self.parts else {}
        return Videos(self._folder, paths, ids, labels, groups, [self.split[row] for row in rows], parts)


@dataclass(frozen=True)
class Dataset:
    """The videos of a data set, compared with its official lists."""

    name: str
    root: Path
    videos: Videos  # sorted by id, parts of a file by their times
    splits: tuple[str, ...]  # names of the official splits
    classes: tuple[str, ...]  # in official order, else sorted; () without labels
    missing: tuple[str, ...]  # in the official lists, but not found
    unlisted: tuple[str, ...]  # ids found, but in no official list
    others: tuple[str, ...] = ()  # files beside the videos without a video's extension
    without: tuple[str, ...] = ()  # files left out because no list names a part of them
    images: tuple[str, ...] = ()  # folders of numbered images left out for lack of a frame rate
    expected: Mapping[str, int] = field(default_factory=dict)  # official numbers: videos, classes, ...
    layout: str = ""  # layout of the folder; "" if the manifest has only one

    def summary(self) -> str:
        """A few lines for the terminal: found, missing, unlisted, classes, groups, and the parts of each split."""
        listed = len(self.videos) - len(self.unlisted)
        total = self.expected.get("videos") or (listed + len(self.missing) if self.missing or self.unlisted else 0)
        count = f"{listed:,} of {total:,}" if total else f"{listed:,}"
        if self.videos.parts:
            count = f"{listed:,} parts of {len({video.file for video in self.videos}):,}"
        lines = [f"{self.name}: {count} videos in {self.root}"]
        lines += [f"  layout: {self.layout}"] if self.layout else []
        what_else = {"missing": self.missing, "unlisted": self.unlisted, "not videos by their names": self.others}
        what_else["left out because no list has a part of them"] = self.without
        what_else["folders of images left out because their frame rate is unknown"] = self.images
        lines += [f"  {what}: {some(names)}" for what, names in what_else.items() if names]
        videos = self.videos
        found = len({*videos.labels} - {""})
        lines.append(f"  classes: {found:,} of {len(self.classes):,}" if self.classes else "  no labels")
        unlabelled = [id for id, label in zip(videos.ids, videos.labels, strict=True) if not label]
        if self.classes and unlabelled:
            lines.append(f"  without a label: {some(unlabelled)}")
        if groups := len({*videos.groups} - {""}):
            alone = [id for id, group in zip(videos.ids, videos.groups, strict=True) if not group]
            lines.append(f"  groups: {groups:,}" + (f"; without one: {some(alone)}" if alone else ""))
        for k, name in enumerate(self.splits[:10]):
            counts = Counter(parts[k] for parts in videos.split)
            parts = (f"{PARTS[part]} {counts[part]:,}" for part in (TRAIN, VALIDATION, TEST))
            lines.append(f"  split {name}: " + ", ".join(parts))
        if len(self.splits) > 10:
            lines.append(f"  and {len(self.splits) - 10:,} more splits")
        return "\n".join(lines)


def default_root(name: str) -> Path:
    """The default folder of a data set's videos: $VSSL_DATA/NAME, else data/NAME."""
    return Path(os.environ.get("VSSL_DATA") or "data") / name


def load(dataset: str, root: str | Path | None = None, group: str | None = None, images: bool = True) -> Dataset:
    """Find the videos of a data set. Missing videos are not an error.

    Parameters
    ----------
    dataset : str
        The name of a built-in manifest, or the path of a manifest (.yaml). "folder" takes any folder of videos; the data set
        is named after it.
    root : str or path
        The folder of the videos; default: `$VSSL_DATA/NAME`, else `data/NAME`.
    group : str
        A pattern that replaces the manifest's; its bracketed part is the group, and needs a name only if there are several.
    images : bool
        Whether folders of numbered images are videos; else they are left out.

    Returns
    -------
    Dataset
        `videos`, sorted by id, with label, group and splits; `splits`, `classes`, and what is missing or not listed.

    Raises
    ------
    ConfigError
        For an unknown manifest, a bad pattern, and if all videos are folders of images, which are left out.
    ManifestError
        For all faults of the manifest and the folder.

    Examples
    --------
    >>> from labelgen.manifest import load
    >>> dataset = load("folder", "videos")
    >>> dataset.name, [video.id for video in dataset.videos], dataset.classes
    ('videos', ['run/b.mp4', 'walk/a.mp4'], ('run', 'walk'))
    """
    spec = read_manifest(dataset)
    root = default_root(spec["name"]) if root is None else root
    root = Path(os.path.abspath(Path(root).expanduser()))
    name = spec["name"]
    if dataset == "folder":  # else results of one folder would replace those of another
        name = re.sub(r"[^\w.-]", "-", root.name).strip("-.") or name
    spec, layout = choose(spec, root)
    if group is not None:
        check_group(group)
        spec["group"] = {"pattern": group}
    where = spec.get("videos", {})
    extensions = {"." + e.lower().lstrip(".") for e in where.get("extensions", EXTENSIONS + IMAGES)}
    folder, lists = root / where.get("folder", "."), root / spec.get("lists", ".")
    paths, of_images, others = find_videos(folder, extensions, where.get("within"))
    if images:
        paths |= of_images
    elif not paths:
        do = "Give their frames per second, as in --fps 25"
        fail(
            f"only folders of images, whose frame rate is unknown, in {folder}",
            some(sorted(of_images)),
            "a rate",
            do,
            ConfigError,
        )
    if "replacements" in where:
        put_replacements(paths, where["replacements"])
    ids = sorted(paths)
    if "levels" in where:
        check_levels(ids, where["levels"], folder)

    rows, parts = csv_rows(spec, lists, paths)
    classes = class_names(spec, lists)
    names, members, numbers = list_members(spec.get("splits", {}), lists, classes)
    located = locate(rows, members, paths, extensions, spec.get("csv", {}).get("may_lack"))

    def by_id(listed: dict[str, _Listed]) -> dict[str, _Listed]:
        """The values of list entries by the ids of the videos that they name."""
        named = {id: listed[entry] for entry, id in located.items() if entry in listed}
        return listed | named if named else listed

    without: list[str] = []
    part_of: dict[str, Part] = {}
    if "segments" in spec:
        named = by_id(parts)
        without = [id for id in ids if id not in named]
        cut = [(id, part) for id in ids for part in sorted(named.get(id, ()), key=order)]
        if not cut:
            fail(
                f"no part of a video of {folder} in the tables of {lists}",
                some(sorted(rows)),
                f"parts of {some(ids)}",
                "Correct csv video",
            )
        ids, own = [id for id, _ in cut], [named[id][part] for id, part in cut]
        part_of = {part_name(spec["segments"], id, part): part for id, part in cut}
    else:
        row_of = by_id(rows)
        own = [row_of.get(id, {}) for id in ids]
    if spec.get("label", {}).get("number"):
        if unnumbered := members.keys() - numbers.keys():
            expected = "a video and the number of its class"
            fail(f"line of the lists in {lists}", min(unnumbered), expected, "Correct the list")
        number_of = by_id(numbers)
        labels, classes = name_numbers([number_of.get(id, "") for id in ids], ids)
    else:
        told = [row for own in parts.values() for row in own.values()] if part_of else rows.values()
        labels, classes = _labels(spec, ids, own, told, classes)
    groups = values("group", spec, ids, own, labels)
    if names:
        split = _parts(by_id(members), ids, len(names))
    else:
        names, split = split_by_value(spec.get("splits", {}), ids, groups, own)
    entries = rows.keys() | members.keys() if members else rows.keys()
    official = bool(names and members) or "csv" in spec
    means = set(located.values())
    unlisted = tuple(id for id in ids if official and not part_of and id not in entries and id not in means)
    of_other = {id: path for id, path in paths.items() if id != path}
    if part_of:
        of_other, ids = {name: paths[id] for name, id in zip(part_of, ids, strict=True)}, list(part_of)
    return Dataset(
        name=name,
        root=root,
        videos=Videos(folder, of_other, ids, labels, groups, split, part_of),
        splits=names,
        classes=classes,
        missing=tuple(sorted(entry for entry in entries if entry not in paths and entry not in located)),
        unlisted=unlisted,
        others=tuple(sorted(others)),
        without=tuple(without),
        images=() if images else tuple(sorted(of_images)),
        expected=spec.get("expected", {}),
        layout=layout,
    )


def _labels(
    spec: Mapping[str, Any],
    ids: list[str],
    own: Rows,
    told: Iterable[Mapping[str, str]],
    declared: tuple[str, ...],
) -> tuple[list[str], tuple[str, ...]]:
    """The label of every video, spelt like its class, and the classes: the declared ones, else those of the table and
    the videos."""
    labels = values("label", spec, ids, own)
    if spec.get("label", {}).get("index"):
        labels = by_index(labels, declared, ids)
    column = spec.get("label", {}).get("column")
    known = declared or sorted({row[column] for row in told} - {""} if column else ())
    labels = spell_classes(ids, labels, known, declared=bool(declared))
    return labels, declared or tuple(sorted({*known, *labels} - {""}))


def _parts(parts_of: Mapping[str, list[int]], ids: list[str], splits: int) -> list[tuple[int, ...]]:
    """The parts of every video in all splits of lists; equal ones share one tuple."""
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}
    parts = (tuple(parts_of.get(id, [NONE] * splits)) for id in ids)
    return [shared.setdefault(own, own) for own in parts]


def select(videos: Videos, splits: Sequence[str], which: str | None) -> Videos:
    """The videos of a split ("1"), of a part of the first ("train", "val", "test") or of any ("2/test").

    None selects all. Raises ConfigError if `which` does not exist, ManifestError if no video is left.
    """
    if which is None:
        return videos
    k, part = _find_split(splits, which)
    wanted = (part,) if part else (TRAIN, VALIDATION, TEST)
    rows = [row for row, parts in enumerate(videos.split) if parts[k] in wanted]
    if not rows:
        fail("no video in split", which, f"at least one of {len(videos):,} videos", "Choose another split")
    return videos.take(rows)


def split_name(splits: Sequence[str], which: str | None) -> str:
    """The canonical name of a selection, see `select`: "2", "1/train", or "all".

    Raises ConfigError if `which` does not exist.
    """
    if which is None:
        return "all"
    k, part = _find_split(splits, which)
    return f"{splits[k]}/{PARTS[part]}" if part else splits[k]


def _find_split(splits: Sequence[str], which: str) -> tuple[int, int]:
    """Index of the split and its part, 0 for all parts."""
    choices = {name: (k, 0) for k, name in enumerate(splits)}
    for k, name in enumerate(splits):
        for word in ("train", "val", "validation", "test"):
            choices.setdefault(f"{name}/{word}", (k, PART_WORDS[word]))
            choices.setdefault(word, (0, PART_WORDS[word]))
    if which not in choices:
        if not splits:
            fail("unknown split", which, "none, as the data set has no splits", "Choose none", ConfigError)
        known = ", ".join([*splits, *PARTS[1:]])
        fail("unknown split", which, f"{known}, or both as in {splits[0]}/train", "Choose one of these", ConfigError)
    return choices[which]
