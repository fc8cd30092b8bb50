"""Label, group and parts of every video, from its row in a table, its file name or its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from labelgen.manifest.lists import PART_WORDS
from labelgen.manifest.messages import compiled, composed, fail, some
from labelgen.manifest.tables import OF_FILE
from labelgen.shards import NONE, TEST, TRAIN

Rows = Sequence[Mapping[str, str]]  # the row of each video in a table, empty if it has none


def values(what: str, spec: Mapping[str, Any], ids: list[str], own: Rows, labels: Sequence[str] = ()) -> list[str]:
    """The label or group of every video, from its CSV row, else its file name (for a pattern with a "/", its path),
    else its folder, else "". ids: of the files."""
    source = spec.get(what, {})
    column, pattern, level = source.get("column"), source.get("pattern"), source.get("folder")
    of_label: dict[str, re.Pattern[str]] = {}
    values = []
    for i, id in enumerate(ids):
        value = own[i].get(column, "") if column else ""
        if not value and pattern:
            label = labels[i] if labels else ""
            if label not in of_label:
                of_label[label] = compiled(pattern.replace("{label}", re.escape(label)) if labels else pattern, what)
            match = of_label[label].search(id if "/" in pattern else id.rpartition("/")[2])
            if not match and what == "label":
                fail("label pattern does not match the file name", id, pattern, "Correct the pattern or the name")
            value = (match[what if what in match.re.groupindex else 1] or "") if match else ""
        if not value and level:
            folders = id.split("/")[:-1]
            value = folders[level - 1] if len(folders) >= level else ""
        values.append(value)
    # A folder of videos without sub-folders is a data set without labels; but deeper levels are given on purpose.
    if level and not any(values) and (level > 1 or what != "label"):
        deepest = max(ids, key=lambda id: id.count("/"))
        levels = deepest.count("/")
        fail(f"{what} by folder level", level, f"an existing level: {deepest!r} has {levels}", "Correct the manifest")
    if labels and pattern and "{label}" in pattern and not any(labels):
        fail(
            "no label, but the pattern of the group contains it",
            ids[0],
            "a folder of each class",
            "Move the videos into them",
        )
    if (column or pattern) and what != "split" and not any(values):  # the lists present may be those of other parts
        fail(f"no video has a {what} by", pattern or f"column {column}", f"one for {ids[0]!r}", "Correct the manifest")
    return values


def name_numbers(numbers: Sequence[str], ids: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Labels from class numbers ("" if a video has none), and the classes in the order of the numbers. A class is named
    after the folder of its videos, or, if folders and classes do not correspond, by its number."""
    pairs = {
        (number, id.rpartition("/")[0].rpartition("/")[2]) for number, id in zip(numbers, ids, strict=True) if number
    }
    name_of = {number: number for number, _ in sorted(pairs, key=lambda pair: int(pair[0]))}
    spelt = {(number, plain(folder)) for number, folder in pairs}
    folders = {folder for _, folder in spelt}
    if len(spelt) == len(name_of) == len(folders) and not folders & PART_WORDS.keys():
        name_of |= dict(sorted(pairs))
    return [name_of.get(number, "") for number in numbers], tuple(name_of.values())


def by_index(numbers: Sequence[str], classes: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Labels from their indices among the declared classes, counted from 0."""
    for number, id in zip(numbers, ids, strict=True):
        if number and not (number.isdecimal() and len(number) < 9 and int(number) < len(classes)):
            fail(
                f"label of {id!r}",
                number,
                f"the index of one of {len(classes)} classes, counted from 0",
                "Correct the list",
            )
    return [classes[int(number)] if number else "" for number in numbers]


def plain(name: str) -> str:
    """The name of a class or folder without case, blanks and punctuation, which folder names often lose
    ("using_segway")."""
    return "".join(c for c in composed(name).casefold() if c.isalnum())


def spell_classes(ids: list[str], labels: list[str], known: Sequence[str], declared: bool) -> list[str]:
    """Labels in the spelling of their classes, see `plain`."""
    by_plain: dict[str, str | None] = {}
    for name in known:
        by_plain[plain(name)] = None if plain(name) in by_plain else name
    spelt = {name: name for name in ("", *known)}
    for id, label in zip(ids, labels, strict=True):
        if label not in spelt:
            spelt[label] = by_plain.get(plain(label)) or label
            if declared and spelt[label] not in known:
                fail(f"label of {id!r}", label, f"a declared class: {some(known)}", "Move the file or add the class")
    return [spelt[label] for label in labels]


def split_by_value(
    splits: Mapping[str, Any], ids: list[str], groups: list[str], own: Rows
) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Names of the splits and parts of each video, from a CSV column, a folder level or the groups."""
    if "leave_out" in splits:
        if "" in groups:
            fail("video without a group", ids[groups.index("")], "a group for every video", "Correct the pattern")
        names = sorted(set(groups))
        if len(names) < 2:
            fail("one group only", names[0], "two or more to leave one out", "Add videos or remove splits")
        row = {g: tuple(TEST if g == name else TRAIN for name in names) for g in names}
        return tuple(str(k + 1) for k in range(len(names))), [row[g] for g in groups]
    if not splits:
        return (), [()] * len(ids)
    if "match" in splits:
        return tuple(splits["names"]), _matched(splits, ids)
    if "files" in splits:
        splits = {"column": OF_FILE}
    words = values("split", {"split": splits}, ids, own)
    for id, word in zip(ids, words, strict=True):
        if word.lower() not in PART_WORDS:
            fail(f"split of {id!r}", word, "train, val, validation, test or none", "Rename it")
    parts = {word: (PART_WORDS[word.lower()],) for word in set(words)}
    return ("1",), [parts[word] for word in words]


def _matched(splits: Mapping[str, Any], ids: Sequence[str]) -> list[tuple[int, ...]]:
    """The parts of each video: those whose expression, one per split, matches a place in the file name."""
    parts = {
        PART_WORDS[word]: [compiled(pattern, f"splits, {word}") for pattern in own]
        for word, own in splits["match"].items()
    }
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    rows = []
    for id in ids:
        name = id if any("/" in own.pattern for of in parts.values() for own in of) else id.rpartition("/")[2]
        row = []
        for k, split in enumerate(splits["names"]):
            own = [part for part, patterns in parts.items() if patterns[k].search(name)]
            if len(own) > 1:
                fail(f"two parts of split {split} for one video", id, "one", "Correct the manifest")
            row.append(own[0] if own else NONE)
        rows.append(found.setdefault(tuple(row), tuple(row)))
    return rows
