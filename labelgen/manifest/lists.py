"""The official lists of a data set: classes, list files, tables."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from labelgen.errors import ManifestError
from labelgen.manifest.messages import fail
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


def _lines(path: Path) -> Iterator[str]:
    """The non-empty lines of a list file, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="backslashreplace")
    except OSError as error:
        fail("cannot read list file", path, f"the official file ({error.strerror})", "Put it there as published")
    return (line for raw in text.split("\n") if (line := raw.strip()))


def class_names(spec: dict[str, Any], root: Path) -> tuple[str, ...]:
    """The declared classes in their order; () when none are declared."""
    classes = spec.get("classes", {})
    names = classes.get("names", [])
    if "file" in classes:
        pattern = re.compile(classes["pattern"])
        path = root / classes["file"]
        for line in _lines(path):
            if not (match := pattern.search(line)):
                fail(f"line in {path}", line, f"the pattern {classes['pattern']}", "Correct the file or the pattern")
            names.append(match["label"])
    if len(set(names)) < len(names):
        fail("class declared twice", next(n for n in names if names.count(n) > 1), "distinct names", "Remove one")
    return tuple(names)


def list_members(
    splits: dict[str, Any], root: Path, classes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Names of the splits, and list entry -> part in each split, from list files ("lists" or "flags")."""
    names = tuple(splits.get("names", ["1"])) if splits.keys() & {"lists", "flags"} else ()
    members: dict[str, list[int]] = {}

    def add(entry: str, k: int, part: int, path: Path) -> None:
        parts = members.setdefault(entry, [NONE] * len(names))
        if parts[k] not in (NONE, part):
            fail(f"two parts of split {names[k]} for one video in {path}", entry, "one", "Remove it from one list")
        parts[k] = part

    for k, name in enumerate(names):
        for part, template in splits.get("lists", {}).items():
            path = root / template.replace("{split}", name)
            for line in _lines(path):
                entry, _, number = line.rpartition(" ")  # "Class/file.avi 1", the number of the class
                add(entry.strip() if entry and number.isdigit() else line, k, PART_WORDS[part], path)
        if "flags" in splits:
            for label in classes:
                path = root / splits["flags"].replace("{split}", name).replace("{class}", label)
                for line in _lines(path):
                    entry, _, flag = line.rpartition(" ")
                    if flag not in ("0", "1", "2"):
                        fail(f"line in {path}", line, "a file name and 0, 1 or 2", "Take the file as published")
                    add(entry.strip(), k, (NONE, TRAIN, TEST)[int(flag)], path)
    return names, members


def csv_rows(spec: dict[str, Any], root: Path) -> dict[str, dict[str, str]]:
    """Which video -> the columns of its row that the manifest asks for."""
    if "csv" not in spec:
        return {}
    wanted = {spec[key]["column"] for key in ("label", "group", "splits") if "column" in spec.get(key, {})}
    files = [root / f for pattern in spec["csv"]["files"] for f in sorted(glob.glob(pattern, root_dir=root))]
    if not files:
        fail("CSV file not found in", root, " or ".join(spec["csv"]["files"]), "Put it there as published")
    try:
        parsed = Formatter().parse(spec["csv"]["video"])
        template = [(literal, field, style or "") for literal, field, style, _ in parsed]
    except ValueError as error:
        fail("csv video", spec["csv"]["video"], f"text with {{column}} in it ({error})", "Correct it")
    fields = {field for _, field, _ in template if field is not None}
    rows: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for path in dict.fromkeys(files):
        try:
            with path.open(encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
                reader = csv.DictReader(file, restval="")
                header = set(reader.fieldnames or ())
                if absent := fields - header:
                    fail(f"column not found in {path}", ", ".join(absent), " or ".join(header), "Correct csv video")
                seen |= header
                for row in reader:
                    entry = _fill(template, row, f"{path}, line {reader.line_num}")
                    values = {column: (row.get(column) or "").strip() for column in wanted}
                    if rows.setdefault(entry, values) != values:
                        fail(f"two different rows for one video in {path}", entry, "one", "Remove one")
        except (OSError, csv.Error) as error:
            raise ManifestError(f"cannot read {path}: {error}") from error
    # A test list may come without labels, so a column has to be in one of the files only.
    if absent := wanted - seen:
        fail("CSV column not found", ", ".join(sorted(absent)), " or ".join(sorted(seen)), "Correct the manifest")
    return rows


def _fill(template: list[tuple[str, str | None, str]], row: dict[str, str], where: str) -> str:
    """str.format for CSV text: numeric formats (`06d`) read the text as a whole number."""
    parts = []
    for literal, field, style in template:
        parts.append(literal)
        if field is not None:
            try:
                parts.append(format(int(row[field]) if style.endswith("d") else row[field].strip(), style))
            except ValueError as error:
                fail(f"{field} in {where}", row[field], f"a value for the format {style} ({error})", "Correct it")
    return "".join(parts)
