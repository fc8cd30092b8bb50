"""Tables (CSV and JSON) that give label, group and split of each video, or of parts of it."""

from __future__ import annotations

import csv
import glob
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import TextIOWrapper
from pathlib import Path
from string import Formatter
from typing import Any

from labelgen.errors import ManifestError
from labelgen.manifest.messages import fail
from labelgen.manifest.segments import Part, part_name, read_part
from labelgen.reading import TEXT_BYTES, load_json, open_regular, validate

_CELL = 10_000  # largest length of a cell that names a video
_FIELDS = 20  # largest number of columns that name a video
_STYLE = re.compile(r"([<>^]?0?\d{0,2}[ds]?)?")  # formats of columns; larger widths would fill the memory


def csv_files(table: Mapping[str, Any], root: Path) -> list[Path]:
    """The existing files of the csv section, in its order."""
    found = [root / file for pattern in table["files"] for file in sorted(glob.glob(pattern, root_dir=root))]
    return list(dict.fromkeys(found))


def csv_header(path: Path, table: Mapping[str, Any]) -> list[str]:
    """The columns of a table. Raises ManifestError if it cannot be read."""
    with _table(path, table) as rows:
        return next(rows, (0, []))[1]


def csv_template(table: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """The template of a row's video, in parts: literal text, the column after it or None, and its format."""
    try:
        found = [(literal, field, style or "") for literal, field, style, _ in Formatter().parse(table["video"])]
        if len(found) > _FIELDS or not all(_STYLE.fullmatch(style) for _, _, style in found):
            raise ValueError("a few columns, numbers with formats such as 06d")
    except ValueError as error:
        fail("csv video", table["video"][:200], f"text with {{column}} in it ({error})", "Correct it")
    return found


@contextmanager
def _table(path: Path, table: Mapping[str, Any]) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Number and cells of each row of a table, the names of its columns first; cells of a JSON table are the strings
    and integers of its mappings. table: the section csv of a manifest. Raises ManifestError if it cannot be read."""
    try:
        if path.suffix.lower() == ".json":
            yield iter(list(enumerate(_of_json(load_json(path, TEXT_BYTES)))))
            return
        with open_regular(path) as raw, TextIOWrapper(raw, "utf-8-sig", "backslashreplace", "") as file:
            reader = csv.reader(file, delimiter=table.get("delimiter", ","))
            rows = ((reader.line_num, row) for row in reader)
            yield itertools.chain([(0, table["columns"])], rows) if "columns" in table else rows
    except (OSError, csv.Error, ValueError) as error:
        raise ManifestError(f"cannot read {path}: {error}") from error


def _of_json(content: Any) -> Iterator[list[str]]:
    validate(content, [dict], "it")
    columns = list(dict.fromkeys(key for row in content for key in row))
    yield columns
    for row in content:
        yield [str(value) if type(value := row.get(key)) in (str, int) else "" for key in columns]


OF_FILE = "\0"  # the column of the part that the name of the table implies
_Parts = dict[str, dict[Part, dict[str, str]]]


def csv_rows(spec: Mapping[str, Any], root: Path, ids: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], _Parts]:
    """Video -> those columns of its row that the manifest uses (of one of its rows, if rows are parts of videos), and in the
    latter case video -> part -> columns. Equal rows share one dict; names that occur in `ids` (id -> path) share the string."""
    parts: _Parts = {}
    if "csv" not in spec:
        return {}, parts
    wanted = {spec[key]["column"] for key in ("label", "group", "splits") if "column" in spec.get(key, {})}
    if by_file := spec.get("splits", {}).get("files", {}):
        wanted.add(OF_FILE)
    segments = spec.get("segments", {})
    bounds = [segments[key] for key in ("start", "end")] if segments else []
    files = csv_files(spec["csv"], root)
    if not files:
        fail("CSV file not found in", root, " or ".join(spec["csv"]["files"]), "Put it there as published")
    template = csv_template(spec["csv"])
    fields = {field for _, field, _ in template if field is not None}
    rows: dict[str, dict[str, str]] = {}
    distinct: dict[tuple[str, ...], dict[str, str]] = {}  # large tables repeat few labels and splits
    seen: set[str] = set()
    for path in files:
        part_of_file = next((word for word, own in by_file.items() if fnmatchcase(path.name, own)), "")
        with _table(path, spec["csv"]) as table:
            place = {column: i for i, column in enumerate(next(table, (0, []))[1])}
            if absent := (fields | {*bounds}) - place.keys():
                what = "segments" if absent & {*bounds} else "csv video"
                fail(f"column not found in {path}", ", ".join(sorted(absent)), " or ".join(place), f"Correct {what}")
            seen |= place.keys()
            columns = [place.get(column) for column in wanted]
            for number, row in table:
                if not row:
                    continue
                row += [""] * (len(place) - len(row))
                entry = _fill(template, place, row, path, number)
                entry = known if (known := ids.get(entry)) == entry else entry  # one string for both
                cells = tuple(
                    [
                        part_of_file if name == OF_FILE else "" if i is None else row[i].strip()
                        for name, i in zip(wanted, columns, strict=True)
                    ]
                )
                if any("\0" in cell for cell in cells):
                    fail(f"value in {path}, line {number}", cells, "text without NUL", "Correct the table")
                if (values := distinct.get(cells)) is None:
                    values = distinct[cells] = dict(zip(wanted, cells, strict=True))
                if segments:
                    rows.setdefault(entry, values)
                    start, end = (row[place[column]].strip() for column in bounds)
                    try:
                        part = read_part(segments, start, end)
                    except ValueError as error:
                        found, _, expected = str(error).partition(", expected ")
                        fail(f"part of {entry!r} in {path}, line {number}", found, expected, "Correct the table")
                    if parts.setdefault(entry, {}).setdefault(part, values) != values:
                        name = part_name(segments, entry, part)
                        fail(f"two different rows for one part of a video in {path}", name, "one", "Remove one")
                elif rows.setdefault(entry, values) != values:
                    fail(f"two different rows for one video in {path}", entry, "one", "Remove one")
    # A test list may have no labels, so that a column must be in one of the files only.
    if absent := wanted - seen - {OF_FILE}:
        fail("CSV column not found", ", ".join(sorted(absent)), " or ".join(sorted(seen)), "Correct the manifest")
    return rows, parts


def _fill(
    template: list[tuple[str, str | None, str]], place: Mapping[str, int], row: list[str], path: Path, line: int
) -> str:
    """str.format for CSV text: numeric formats (`06d`) read the text as an integer."""
    parts = []
    for literal, field, style in template:
        parts.append(literal)
        if field is not None:
            cell = row[place[field]].strip()
            try:
                if "\0" in cell or len(cell) > _CELL:
                    raise ValueError("shorter text without NUL")
                parts.append(format(int(cell) if style.endswith("d") else cell, style) if style else cell)
            except ValueError as error:
                what = f"{field} in {path}, line {line}"
                fail(what, cell[:80], f"a value for the format {style} ({error})", "Correct it")
    return "".join(parts)
