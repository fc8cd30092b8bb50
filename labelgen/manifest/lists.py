"""The official lists of a data set: classes, list files, tables."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelgen.errors import ManifestError, ReadError
from labelgen.manifest.messages import fail
from labelgen.reading import load_json, read_bytes, validate
from labelgen.shards import NONE, TEST, TRAIN, VALIDATION

# The words of lists and folders for the parts of a split.
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


_LINE = 10_000  # characters of a line of a list


def _lines(path: Path) -> Iterator[str]:
    """The non-empty lines of a list file, stripped."""
    try:
        text = read_bytes(path).decode("utf-8-sig", "backslashreplace")
    except ReadError as error:
        fail("cannot read list file", path, f"the official file ({error})", "Put the published file there")
    for raw in text.split("\n"):
        if line := raw.strip():
            if len(line) > _LINE or "\0" in line:
                fail(f"line in {path}", line[:80], f"at most {_LINE:,} characters", "Use the published file")
            yield line


def class_names(spec: Mapping[str, Any], root: Path) -> tuple[str, ...]:
    """The declared classes in their order; () if none are declared."""
    classes = spec.get("classes", {})
    names = list(classes.get("names", []))
    if "file" in classes:
        path = root / classes["file"]
        if path.suffix.lower() == ".json":
            names = _json_classes(path)
        pattern = re.compile(classes.get("pattern", ""))
        for line in [] if names else _lines(path):
            if not (match := pattern.search(line)):
                fail(f"line in {path}", line, f"the pattern {classes['pattern']}", "Correct the file or the pattern")
            names.append(match["label"] or "")
    if len(set(names)) < len(names):
        fail("class declared twice", next(n for n in names if names.count(n) > 1), "distinct names", "Remove one")
    return tuple(names)


def _json_classes(path: Path) -> list[str]:
    """Classes of a JSON file: the keys of a mapping to their numbers, or a list; lists of strings within it are joined."""
    try:
        content = load_json(path)
        if isinstance(content, dict):
            validate(content, {"*": str | int}, "it")
            return sorted(content, key=lambda name: int(content[name]))
        return [" ".join(one) if isinstance(one, list) else str(one) for one in content]
    except (OSError, TypeError, ValueError) as error:
        raise ManifestError(f"cannot read the classes of {path}: {error}") from error


def _part_files(splits: Mapping[str, Any], root: Path, name: str) -> Iterator[tuple[int, Path]]:
    """Each list file of a split and its part; optional lists may be missing, and their names are patterns."""
    for part, template in splits.get("lists", {}).items():
        file = template.replace("{split}", name)
        found = sorted(glob.glob(file, root_dir=root)) if splits.get("optional") else [file]
        yield from ((PART_WORDS[part], root / path) for path in found)


def list_files(splits: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The list files of the first split, at least one of which must exist; [] if there are no lists."""
    name = splits.get("names", ["1"])[0]
    if "flags" in splits:
        return [_flags_file(splits, name, label) for label in classes[:1]]
    return [template.replace("{split}", name) for template in splits.get("lists", {}).values()]


def _flags_file(splits: Mapping[str, Any], name: str, label: str) -> str:
    return splits["flags"].replace("{split}", name).replace("{class}", label)


def list_members(
    splits: Mapping[str, Any], root: Path, classes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, list[int]], dict[str, str]]:
    """Names of the splits, list entry -> part in each split, and list entry -> number of its class, if the entry has
    one, from list files ("lists" or "flags")."""
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
                # "Class/file.avi 1" with the number of the class; some lists have a comma
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
                        fail(f"line in {path}", line, "a file name and 0, 1 or 2", "Use the published file")
                    add(entry.strip(), k, (NONE, TRAIN, TEST)[int(flag)], path)
    return names, members, numbers
