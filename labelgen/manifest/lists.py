"""The official lists of a data set: classes, list files, tables."""

from __future__ import annotations

import csv
import glob
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from string import Formatter
from typing import Any

from labelgen.errors import ManifestError, ReadError
from labelgen.manifest.messages import fail
from labelgen.manifest.segments import Part, part_name, read_part
from labelgen.reading import open_regular, read_bytes
from labelgen.shards import NONE, TEST, TRAIN, VALIDATION

# How lists and folders write the parts of a split.
PART_WORDS = {
    "": NONE,
    "none": NONE,
    "train": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validate": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}


_LINE = 10_000  # characters of a line of a list, and of a cell that names a video
_FIELDS = 20  # columns that name a video
_STYLE = re.compile(r"([<>^]?0?\d{0,2}[ds]?)?")  # formats of columns; wider ones would fill the memory


def _lines(path: Path) -> Iterator[str]:
    """The non-empty lines of a list file, stripped."""
    try:
        text = read_bytes(path).decode("utf-8-sig", "backslashreplace")
    except ReadError as error:
        fail("cannot read list file", path, f"the official file ({error})", "Put it there as published")
    for raw in text.split("\n"):
        if line := raw.strip():
            if len(line) > _LINE or "\0" in line:
                fail(
                    f"line in {path}", line[:80], f"text of at most {_LINE:,} characters", "Take the file as published"
                )
            yield line


def class_names(spec: Mapping[str, Any], root: Path) -> tuple[str, ...]:
    """The declared classes in their order; () when none are declared."""
    classes = spec.get("classes", {})
    names = list(classes.get("names", []))
    if "file" in classes:
        pattern = re.compile(classes["pattern"])
        path = root / classes["file"]
        for line in _lines(path):
            if not (match := pattern.search(line)):
                fail(f"line in {path}", line, f"the pattern {classes['pattern']}", "Correct the file or the pattern")
            names.append(match["label"] or "")
    if len(set(names)) < len(names):
        fail("class declared twice", next(n for n in names if names.count(n) > 1), "distinct names", "Remove one")
    return tuple(names)


def _part_files(splits: Mapping[str, Any], root: Path, name: str) -> Iterator[tuple[int, Path]]:
    """Each list file of a split and its part; those of optional lists may be absent, their names are patterns."""
    for part, template in splits.get("lists", {}).items():
        file = template.replace("{split}", name)
        found = sorted(glob.glob(file, root_dir=root)) if splits.get("optional") else [file]
        yield from ((PART_WORDS[part], root / path) for path in found)


def list_files(splits: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The list files of the first split of which one has to be there; [] if there are no lists."""
    name = splits.get("names", ["1"])[0]
    if "flags" in splits:
        return [_flags_file(splits, name, label) for label in classes[:1]]
    return [template.replace("{split}", name) for template in splits.get("lists", {}).values()]


def _flags_file(splits: Mapping[str, Any], name: str, label: str) -> str:
    return splits["flags"].replace("{split}", name).replace("{class}", label)


def list_members(
    splits: Mapping[str, Any], root: Path, classes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, list[int]], dict[str, str]]:
    """Names of the splits, list entry -> part in each split, and list entry -> number of its class, if it stands behind it,
    from list files ("lists" or "flags")."""
    names = tuple(splits.get("names", ["1"])) if splits.keys() & {"lists", "flags"} else ()
    members: dict[str, list[int]] = {}
    numbers: dict[str, str] = {}

    def add(entry: str, k: int, part: int, path: Path) -> None:
        parts = members.setdefault(entry, [NONE] * len(names))
        if parts[k] not in (NONE, part):
            fail(f"two parts of split {names[k]} for one video in {path}", entry, "one", "Remove it from one list")
        parts[k] = part

    for k, name in enumerate(names):
        for part, path in _part_files(splits, root, name):
            for line in _lines(path):
                # "Class/file.avi 1", the number of the class; some write a comma
                match = re.fullmatch(r"(.*\S)(?:\s+|\s*,\s*)(\d+)", line)
                entry = match[1] if match else line
                if splits.get("by_name"):
                    entry = entry.rpartition("/")[2]
                if match and numbers.setdefault(entry, sys.intern(match[2])) != match[2]:
                    fail(f"two class numbers for one video in {path}", entry, numbers[entry], "Correct the lists")
                add(entry, k, part, path)
        if "flags" in splits:
            for label in classes:
                path = root / _flags_file(splits, name, label)
                for line in _lines(path):
                    entry, _, flag = line.rpartition(" ")
                    if flag not in ("0", "1", "2"):
                        fail(f"line in {path}", line, "a file name and 0, 1 or 2", "Take the file as published")
                    add(entry.strip(), k, (NONE, TRAIN, TEST)[int(flag)], path)
    return names, members, numbers


def csv_files(table: Mapping[str, Any], root: Path) -> list[Path]:
    """The files of the csv section that are there, in its order."""
    found = [root / file for pattern in table["files"] for file in sorted(glob.glob(pattern, root_dir=root))]
    return list(dict.fromkeys(found))


def csv_header(path: Path) -> list[str]:
    """The columns of a CSV file. Raises ManifestError if it cannot be read."""
    with _table(path) as reader:
        return next(reader, [])


def csv_template(table: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """The text that names a row's video, in parts: literal text, the column behind it or None, and its format."""
    try:
        found = [(literal, field, style or "") for literal, field, style, _ in Formatter().parse(table["video"])]
        if len(found) > _FIELDS or not all(_STYLE.fullmatch(style) for _, _, style in found):
            raise ValueError("a few columns, numbers with formats such as 06d")
    except ValueError as error:
        fail("csv video", table["video"][:200], f"text with {{column}} in it ({error})", "Correct it")
    return found


@contextmanager
def _table(path: Path) -> Iterator[Any]:  # a csv.reader, whose type has no public name
    try:
        with open_regular(path) as raw, TextIOWrapper(raw, "utf-8-sig", "backslashreplace", "") as file:
            yield csv.reader(file)
    except (OSError, csv.Error) as error:
        raise ManifestError(f"cannot read {path}: {error}") from error


_Parts = dict[str, dict[Part, dict[str, str]]]


def csv_rows(spec: Mapping[str, Any], root: Path, ids: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], _Parts]:
    """Which video -> the columns of its row that the manifest asks for, or of one of its rows if each is about a part of a video;
    and then, which video -> part -> the columns. Equal rows are one and the same dict, names that are those of `ids`
    (id -> path) the same text."""
    parts: _Parts = {}
    if "csv" not in spec:
        return {}, parts
    wanted = {spec[key]["column"] for key in ("label", "group", "splits") if "column" in spec.get(key, {})}
    segments = spec.get("segments", {})
    bounds = [segments[key] for key in ("start", "end")] if segments else []
    files = csv_files(spec["csv"], root)
    if not files:
        fail("CSV file not found in", root, " or ".join(spec["csv"]["files"]), "Put it there as published")
    template = csv_template(spec["csv"])
    fields = {field for _, field, _ in template if field is not None}
    rows: dict[str, dict[str, str]] = {}
    distinct: dict[tuple[str, ...], dict[str, str]] = {}  # a large table repeats few labels and splits
    seen: set[str] = set()
    for path in files:
        with _table(path) as reader:
            place = {column: i for i, column in enumerate(next(reader, ()))}
            if absent := (fields | {*bounds}) - place.keys():
                what = "segments" if absent & {*bounds} else "csv video"
                fail(f"column not found in {path}", ", ".join(sorted(absent)), " or ".join(place), f"Correct {what}")
            seen |= place.keys()
            columns = [place.get(column) for column in wanted]
            for row in reader:
                if not row:
                    continue
                row += [""] * (len(place) - len(row))
                entry = _fill(template, place, row, path, reader.line_num)
                entry = known if (known := ids.get(entry)) == entry else entry  # one text for both
                cells = tuple(["" if i is None else row[i].strip() for i in columns])
                if any("\0" in cell for cell in cells):
                    fail(f"value in {path}, line {reader.line_num}", cells, "text without NUL", "Correct the table")
                if (values := distinct.get(cells)) is None:
                    values = distinct[cells] = dict(zip(wanted, cells, strict=True))
                if segments:
                    rows.setdefault(entry, values)
                    start, end = (row[place[column]].strip() for column in bounds)
                    try:
                        part = read_part(segments, start, end)
                    except ValueError as error:
                        told, _, expected = str(error).partition(", expected ")
                        fail(
                            f"part of {entry!r} in {path}, line {reader.line_num}", told, expected, "Correct the table"
                        )
                    if parts.setdefault(entry, {}).setdefault(part, values) != values:
                        name = part_name(segments, entry, part)
                        fail(f"two different rows for one part of a video in {path}", name, "one", "Remove one")
                elif rows.setdefault(entry, values) != values:
                    fail(f"two different rows for one video in {path}", entry, "one", "Remove one")
    # A test list may come without labels, so a column has to be in one of the files only.
    if absent := wanted - seen:
        fail("CSV column not found", ", ".join(sorted(absent)), " or ".join(sorted(seen)), "Correct the manifest")
    return rows, parts


def _fill(
    template: list[tuple[str, str | None, str]], place: Mapping[str, int], row: list[str], path: Path, line: int
) -> str:
    """str.format for CSV text: numeric formats (`06d`) read the text as a whole number."""
    parts = []
    for literal, field, style in template:
        parts.append(literal)
        if field is not None:
            cell = row[place[field]].strip()
            try:
                if "\0" in cell or len(cell) > _LINE:
                    raise ValueError("text without NUL, and not so long")
                parts.append(format(int(cell) if style.endswith("d") else cell, style) if style else cell)
            except ValueError as error:
                what = f"{field} in {path}, line {line}"
                fail(what, cell[:80], f"a value for the format {style} ({error})", "Correct it")
    return "".join(parts)
