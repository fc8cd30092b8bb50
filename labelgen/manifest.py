"""Which videos there are: a manifest (YAML) and a folder give a list of videos with label, group and splits.

The form of a manifest is described in docs/manifests.md.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import NoReturn

import yaml

from labelgen.errors import ConfigError, ManifestError

# fmt: off
EXTENSIONS = (
    "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov",
    "mp4", "mpeg", "mpg", "mts", "mxf", "ogm", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m",
)
# fmt: on
PARTS = ("train", "validation", "test")  # stored as 1, 2, 3; 0 is none of them
_PART_WORDS = {"": 0, "none": 0, "train": 1, "val": 2, "valid": 2, "validate": 2, "validation": 2, "test": 3}

# The form of a manifest: a type, [a type] for a non-empty list, a mapping of the keys that may be there.
_VALUE = {"column": str, "pattern": str, "folder": int}
_FORM = {
    "name": str,
    "source": str,
    "licence": str,
    "expected": {"videos": int, "classes": int},
    "videos": {"folder": str, "extensions": [str]},
    "csv": {"files": [str], "video": str},
    "label": _VALUE,
    "group": _VALUE,
    "classes": {"names": [str], "file": str, "pattern": str},
    "splits": {
        "names": [str],
        "lists": dict.fromkeys(PARTS, str),
        "flags": str,
        "column": str,
        "folder": int,
        "leave_out": str,
    },
}


@dataclass(frozen=True)
class Video:
    """One video file."""

    id: str  # path below the video folder, POSIX, with extension; unique, valid UTF-8
    path: Path  # absolute
    label: str  # "" when there is none
    group: str  # "" when there is none
    split: tuple[int, ...]  # one per official split: 0 none, 1 train, 2 validation, 3 test


@dataclass(frozen=True)
class Dataset:
    """The videos of a data set and how they compare with its official lists."""

    name: str
    root: Path
    videos: tuple[Video, ...]  # sorted by id
    splits: tuple[str, ...]  # names of the official splits
    classes: tuple[str, ...]  # official order, else sorted; () when unlabelled
    missing: tuple[str, ...]  # listed officially, not found
    unlisted: tuple[str, ...]  # ids found, in no official list
    others: tuple[str, ...] = ()  # files beside the videos whose extension is no video's
    expected: int = 0  # official number of videos; 0 when it is not fixed

    def summary(self) -> str:
        """A few lines for the terminal: found, missing, unlisted, classes, and the parts of each split."""
        listed = len(self.videos) - len(self.unlisted)
        total = self.expected or (listed + len(self.missing) if self.missing or self.unlisted else 0)
        count = f"{listed:,} of {total:,}" if total else f"{listed:,}"
        lines = [f"{self.name}: {count} videos in {self.root}"]
        what_else = {"missing": self.missing, "unlisted": self.unlisted, "no video by their names": self.others}
        lines += [f"  {what}: {_some(names)}" for what, names in what_else.items() if names]
        found = len({video.label for video in self.videos} - {""})
        lines.append(f"  classes: {found:,} of {len(self.classes):,}" if self.classes else "  no labels")
        unlabelled = [video.id for video in self.videos if not video.label]
        if self.classes and unlabelled:
            lines.append(f"  without a label: {_some(unlabelled)}")
        for k, name in enumerate(self.splits[:10]):
            counts = [sum(video.split[k] == part for video in self.videos) for part in (1, 2, 3)]
            parts = zip(PARTS, counts, strict=True)
            lines.append(f"  split {name}: " + ", ".join(f"{part} {count:,}" for part, count in parts))
        if len(self.splits) > 10:
            lines.append(f"  and {len(self.splits) - 10:,} more splits")
        return "\n".join(lines)


def default_root(name: str) -> Path:
    """Where the videos of a data set are looked for: $VSSL_DATA/NAME, else data/NAME."""
    return Path(os.environ.get("VSSL_DATA") or "data") / name


def load(dataset: str, root: str | Path | None = None) -> Dataset:
    """Find the videos of `dataset`: the name of a built-in manifest, or the path of a manifest (.yaml).

    They are looked for in `root`, else `$VSSL_DATA/NAME`, else `data/NAME`. A data set of the manifest `folder` is named
    after its root. Raises ConfigError where there is no such manifest, ManifestError for whatever in the manifest or in
    the folder is not as expected; videos that are listed but absent are no error.
    """
    spec = _read_manifest(dataset)
    root = default_root(spec["name"]) if root is None else root
    root = Path(os.path.abspath(Path(root).expanduser()))
    name = spec["name"]
    if dataset == "folder":  # or the results of one folder would take the place of another's
        name = re.sub(r"[^\w.-]", "-", root.name).strip("-.") or name
    where = spec.get("videos", {})
    extensions = {"." + e.lower().lstrip(".") for e in where.get("extensions", EXTENSIONS)}
    paths, others = _find_videos(root / where.get("folder", "."), extensions)
    ids = sorted(paths)

    rows = _csv_rows(spec, root)
    classes = _class_names(spec, root)
    names, members = _list_members(spec.get("splits", {}), root, classes)
    located = _locate({**rows, **members}, paths, extensions)
    row_of = {id: rows[entry] for entry, id in located.items() if entry in rows}

    labels = _values("label", spec, ids, row_of)
    column = spec.get("label", {}).get("column")
    known = classes or sorted({row[column] for row in rows.values()} - {""} if column else ())
    labels = _spell_classes(ids, labels, known, declared=bool(classes))
    classes = classes or tuple(sorted({*known, *labels} - {""}))
    groups = _values("group", spec, ids, row_of, labels)

    if names:
        split_of = {id: tuple(members[entry]) for entry, id in located.items() if entry in members}
        split = [split_of.get(id, (0,) * len(names)) for id in ids]
        unlisted = set(ids) - set(located.values())
    else:
        names, split = _split_by_value(spec.get("splits", {}), ids, groups, row_of)
        unlisted = set(ids) - set(located.values()) if "csv" in spec else set()
    fields = zip(ids, labels, groups, split, strict=True)
    return Dataset(
        name=name,
        root=root,
        videos=tuple(Video(id, Path(paths[id]), *rest) for id, *rest in fields),
        splits=names,
        classes=classes,
        missing=tuple(sorted((rows.keys() | members.keys()) - located.keys())),
        unlisted=tuple(sorted(unlisted)),
        others=tuple(sorted(others)),
        expected=spec.get("expected", {}).get("videos", 0),
    )


def select(videos: Iterable[Video], splits: Sequence[str], which: str | None) -> tuple[Video, ...]:
    """The videos of a split ("1"), of a part of the first ("train", "val", "test") or of any ("2/test").

    None selects all. Raises ConfigError when `which` does not exist, ManifestError when no video is left.
    """
    videos = tuple(videos)
    if which is None:
        return videos
    k, part = _find_split(splits, which)
    chosen = tuple(video for video in videos if video.split[k] in ((part,) if part else (1, 2, 3)))
    if not chosen:
        _fail("no video in split", which, f"at least one of {len(videos):,} videos", "Choose another split")
    return chosen


def split_name(splits: Sequence[str], which: str | None) -> str:
    """What `select` selects, in the one form of several that mean the same: "2", "1/train", or "all".

    Raises ConfigError when `which` does not exist.
    """
    if which is None:
        return "all"
    k, part = _find_split(splits, which)
    return f"{splits[k]}/{PARTS[part - 1]}" if part else splits[k]


def _find_split(splits: Sequence[str], which: str) -> tuple[int, int]:
    """Index of the split and its part, 0 for all parts."""
    choices = {name: (k, 0) for k, name in enumerate(splits)}
    for k, name in enumerate(splits):
        for word in ("train", "val", "validation", "test"):
            choices.setdefault(f"{name}/{word}", (k, _PART_WORDS[word]))
            choices.setdefault(word, (0, _PART_WORDS[word]))
    if which not in choices:
        if not splits:
            _fail("unknown split", which, "none, as the data set has no splits", "Leave --split out", ConfigError)
        known = ", ".join([*splits, *PARTS])
        _fail("unknown split", which, f"{known}, or both as in {splits[0]}/train", "Choose one of these", ConfigError)
    return choices[which]


def _fail(what: str, value: object, expected: str, do: str, error: type = ManifestError) -> NoReturn:
    raise error(f"{what}: {str(value)!r}; expected {expected}. {do}.")


def _some(names: Sequence[str]) -> str:
    return f"{len(names):,} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


# --- the manifest ---


def _read_manifest(dataset: str) -> dict:
    if dataset.endswith((".yaml", ".yml")):
        source = Path(dataset).expanduser()
        if not source.is_file():
            _fail("manifest not found", dataset, "a file", "Check the path", ConfigError)
    else:
        builtin = {f.name[:-5]: f for f in resources.files("data_manifests").iterdir() if f.name[-5:] == ".yaml"}
        if dataset not in builtin:
            names = ", ".join(sorted(builtin))
            do = "Take one of these or the path of your own manifest (.yaml)"
            _fail("unknown data set", dataset, names, do, ConfigError)
        source = builtin[dataset]
    try:
        spec = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"cannot read the manifest {dataset}: {error}") from error
    _check_form(spec, _FORM, f"manifest {dataset}")
    _check_meaning(spec, f"manifest {dataset}")
    return spec


def _check_form(value: object, form: object, where: str) -> None:
    if isinstance(form, dict):
        if not isinstance(value, dict):
            _fail(f"wrong type in {where}", value, f"a mapping with the keys {', '.join(form)}", "Correct it")
        for key, item in value.items():
            if key not in form:
                _fail(f"unknown key in {where}", key, " or ".join(form), "Correct the spelling or remove it")
            _check_form(item, form[key], f"{where}, {key}")
    elif isinstance(form, list):
        if not isinstance(value, list) or not value:
            _fail(f"wrong type in {where}", value, "a list with at least one entry", "Write [a, b]")
        for item in value:
            _check_form(item, form[0], where)
    elif type(value) is not form:
        kind = "text" if form is str else "a whole number"
        _fail(
            f"wrong type in {where}", value, f"{kind}, not {type(value).__name__}", "Correct it; text may need quotes"
        )


def _check_meaning(spec: dict, where: str) -> None:
    """What the form cannot say: keys that need each other, and values that cannot be right."""
    if not re.fullmatch(r"[\w-][\w.-]*", spec.get("name", "")):
        _fail(f"name in {where}", spec.get("name", ""), "letters, digits, - or _", "It names folders: give one")
    if "csv" in spec and spec["csv"].keys() != {"files", "video"}:
        _fail(f"csv in {where}", ", ".join(spec["csv"]), "files and video", "Give both")
    if spec.get("classes", {"names": []}).keys() not in ({"names"}, {"file", "pattern"}):
        _fail(f"classes in {where}", ", ".join(spec["classes"]), "names, or file and pattern", "Give one form")
    splits = spec.get("splits", {"folder": 1})
    kinds = splits.keys() - {"names"}
    if len(kinds) != 1:
        _fail(f"splits in {where}", ", ".join(kinds), "one of lists, flags, column, folder, leave_out", "Keep one")
    if "names" in splits and not kinds & {"lists", "flags"}:
        _fail(f"splits in {where}", "names", "lists or flags beside it", "Remove names")
    if "flags" in splits and "classes" not in spec:
        _fail(f"splits in {where}", "flags", "classes in the manifest", "Declare the classes")
    if "leave_out" in splits and (splits["leave_out"] != "group" or "group" not in spec):
        _fail(f"leave_out in {where}", splits["leave_out"], "group, with a group in the manifest", "Declare group")
    for key in ("label", "group", "splits"):
        item = spec.get(key, {})
        if "column" in item and "csv" not in spec:
            _fail(f"{key} in {where}", item["column"], "a csv section that has this column", "Add csv")
        if item.get("folder", 1) < 1:
            _fail(f"{key} in {where}", item["folder"], "1 for the first folder level, 2 for the second", "Correct it")
    for key, name in (("label", "label"), ("group", "group"), ("classes", "label")):
        if (pattern := spec.get(key, {}).get("pattern")) is not None:
            _check_pattern(pattern.replace("{label}", "x") if key == "group" else pattern, name, f"{key} in {where}")


def _check_pattern(pattern: str, name: str, where: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        _fail(f"bad regular expression for {where}", pattern, f"a valid one ({error})", "Correct it")
    if name not in compiled.groupindex:
        _fail(f"pattern for {where}", pattern, f"a part named (?P<{name}>...)", "Name the part that is wanted")


# --- the files ---


def _find_videos(folder: Path, extensions: set[str]) -> tuple[dict[str, str], list[str]]:
    """id -> path of all that has a video extension and is no folder, links to nowhere included; and the ids of all other
    files. Hidden names are left out."""
    if not os.path.isdir(folder):
        _fail("folder not found", folder, "a folder with the videos", "Give --root DIR or set VSSL_DATA")
    paths: dict[str, str] = {}
    others: list[str] = []
    # os.walk, but with loops of links cut, and no system call for a plain file.
    stack: list[tuple[str, str, tuple]] = [(str(folder), "", ())]
    while stack:
        directory, prefix, above = stack.pop()
        try:
            status = os.stat(directory)
            entries = list(os.scandir(directory))
        except OSError as error:
            _fail("cannot read folder", directory, f"a readable folder ({error.strerror})", "Check its permissions")
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            id = os.fsencode(prefix + name).decode("utf-8", "backslashreplace")
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                stack.append((entry.path, f"{prefix}{name}/", (*above, here)))
            elif os.path.splitext(name)[1].lower() not in extensions:
                others.append(id)
            elif id in paths:
                _fail("two videos with one id", id, "distinct names", f"Rename {paths[id]!r} or {entry.path!r}")
            else:
                paths[id] = entry.path
    if not paths:
        kinds = " ".join(sorted(extensions))
        _fail("no videos found in", folder, f"files with one of the extensions {kinds}", "Check the folder or --root")
    return paths, others


def _lines(path: Path) -> Iterator[str]:
    """The non-empty lines of a list file, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="backslashreplace")
    except OSError as error:
        _fail("cannot read list file", path, f"the official file ({error.strerror})", "Put it there as published")
    return (line for raw in text.split("\n") if (line := raw.strip()))


def _class_names(spec: dict, root: Path) -> tuple[str, ...]:
    """The declared classes in their order; () when none are declared."""
    classes = spec.get("classes", {})
    names = classes.get("names", [])
    if "file" in classes:
        pattern = re.compile(classes["pattern"])
        path = root / classes["file"]
        for line in _lines(path):
            if not (match := pattern.search(line)):
                _fail(f"line in {path}", line, f"the pattern {classes['pattern']}", "Correct the file or the pattern")
            names.append(match["label"])
    if len(set(names)) < len(names):
        _fail("class declared twice", next(n for n in names if names.count(n) > 1), "distinct names", "Remove one")
    return tuple(names)


def _list_members(splits: dict, root: Path, classes: Sequence[str]) -> tuple[tuple, dict[str, list[int]]]:
    """Names of the splits, and list entry -> part in each split, from list files ("lists" or "flags")."""
    names = tuple(splits.get("names", ["1"])) if splits.keys() & {"lists", "flags"} else ()
    members: dict[str, list[int]] = {}

    def add(entry: str, k: int, part: int, path: Path) -> None:
        parts = members.setdefault(entry, [0] * len(names))
        if parts[k] not in (0, part):
            _fail(f"two parts of split {names[k]} for one video in {path}", entry, "one", "Remove it from one list")
        parts[k] = part

    for k, name in enumerate(names):
        for part, template in splits.get("lists", {}).items():
            path = root / template.replace("{split}", name)
            for line in _lines(path):
                entry, _, number = line.rpartition(" ")  # "Class/file.avi 1", the number of the class
                add(entry.strip() if entry and number.isdigit() else line, k, _PART_WORDS[part], path)
        if "flags" in splits:
            for label in classes:
                path = root / splits["flags"].replace("{split}", name).replace("{class}", label)
                for line in _lines(path):
                    entry, _, flag = line.rpartition(" ")
                    if flag not in ("0", "1", "2"):
                        _fail(f"line in {path}", line, "a file name and 0, 1 or 2", "Take the file as published")
                    add(entry.strip(), k, (0, 1, 3)[int(flag)], path)
    return names, members


def _csv_rows(spec: dict, root: Path) -> dict[str, dict[str, str]]:
    """Which video -> the columns of its row that the manifest asks for."""
    if "csv" not in spec:
        return {}
    wanted = {spec[key]["column"] for key in ("label", "group", "splits") if "column" in spec.get(key, {})}
    files = [root / f for pattern in spec["csv"]["files"] for f in sorted(glob.glob(pattern, root_dir=root))]
    if not files:
        _fail("CSV file not found in", root, " or ".join(spec["csv"]["files"]), "Put it there as published")
    try:
        template = [part[:3] for part in Formatter().parse(spec["csv"]["video"])]
    except ValueError as error:
        _fail("csv video", spec["csv"]["video"], f"text with {{column}} in it ({error})", "Correct it")
    fields = {field for _, field, _ in template if field is not None}
    rows: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for path in dict.fromkeys(files):
        try:
            with path.open(encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
                reader = csv.DictReader(file, restval="")
                header = set(reader.fieldnames or ())
                if absent := fields - header:
                    _fail(f"column not found in {path}", ", ".join(absent), " or ".join(header), "Correct csv video")
                seen |= header
                for row in reader:
                    entry = _fill(template, row, f"{path}, line {reader.line_num}")
                    values = {column: (row.get(column) or "").strip() for column in wanted}
                    if rows.setdefault(entry, values) != values:
                        _fail(f"two different rows for one video in {path}", entry, "one", "Remove one")
        except (OSError, csv.Error) as error:
            raise ManifestError(f"cannot read {path}: {error}") from error
    # A test list may come without labels, so a column has to be in one of the files only.
    if absent := wanted - seen:
        _fail("CSV column not found", ", ".join(sorted(absent)), " or ".join(sorted(seen)), "Correct the manifest")
    return rows


def _fill(template: list[tuple], row: dict[str, str], where: str) -> str:
    """str.format for CSV text: numeric formats (`06d`) read the text as a whole number."""
    parts = []
    for literal, field, style in template:
        parts.append(literal)
        if field is not None:
            try:
                parts.append(format(int(row[field]) if style.endswith("d") else row[field].strip(), style))
            except ValueError as error:
                _fail(f"{field} in {where}", row[field], f"a value for the format {style} ({error})", "Correct it")
    return "".join(parts)


def _locate(entries: Iterable[str], ids: Collection[str], extensions: set[str]) -> dict[str, str]:
    """List entry -> id. An entry is an id, a bare file name, or one of these but for the video extension."""

    def stem(name: str) -> str:
        base, extension = os.path.splitext(name)
        return base if extension.lower() in extensions else name

    by_stem: dict[str, str] = {}
    clashes: dict[str, str] = {}
    for id in ids:
        path = stem(id)
        for key in {path, path.rpartition("/")[2]}:
            if (other := by_stem.setdefault(key, id)) != id:
                clashes[key] = f"{other} and {id}"
    located: dict[str, str] = {}
    owner: dict[str, str] = {}
    for entry in entries:
        id = entry if entry in ids else by_stem.get(stem(entry))
        if id is None:
            continue
        if id != entry and stem(entry) in clashes:
            _fail(f"two videos for {entry!r} of the lists", clashes[stem(entry)], "one", "Remove one")
        if (other := owner.setdefault(id, entry)) != entry:
            _fail(f"two list entries for {id!r}", f"{other} and {entry}", "one", "Correct the lists")
        located[entry] = id
    return located


# --- label, group, split ---


def _values(what: str, spec: dict, ids: list[str], row_of: dict, labels: Sequence[str] = ()) -> list[str]:
    """The label or group of every video: from its CSV row, else its file name, else its folder, else ""."""
    source = spec.get(what, {})
    column, pattern, level = source.get("column"), source.get("pattern"), source.get("folder")
    compiled: dict[str, re.Pattern] = {}
    values = []
    for i, id in enumerate(ids):
        value = row_of[id][column] if column and id in row_of else ""
        if not value and pattern:
            label = labels[i] if labels else ""
            if label not in compiled:
                compiled[label] = re.compile(pattern.replace("{label}", re.escape(label)) if labels else pattern)
            match = compiled[label].search(id.rpartition("/")[2])
            if not match and what == "label":
                _fail("label pattern does not match the file name", id, pattern, "Correct the pattern or the name")
            value = (match[what] or "") if match else ""
        if not value and level:
            folders = id.split("/")[:-1]
            value = folders[level - 1] if len(folders) >= level else ""
        values.append(value)
    # A folder of videos without sub-folders is a data set without labels; but deeper levels are asked for on purpose.
    if level and not any(values) and (level > 1 or what != "label"):
        deepest = max(ids, key=lambda id: id.count("/"))
        levels = deepest.count("/")
        _fail(
            f"{what} by folder level", level, f"a level that is there: {deepest!r} has {levels}", "Correct the manifest"
        )
    if (column or pattern) and what != "split" and not any(values):  # the lists at hand may be of other parts
        _fail(f"no video has a {what} by", pattern or f"column {column}", f"one for {ids[0]!r}", "Correct the manifest")
    return values


def _spell_classes(ids: list[str], labels: list[str], known: Sequence[str], declared: bool) -> list[str]:
    """Labels as their classes are spelt: folder names often lose blanks and punctuation ("using_segway")."""

    def plain(name: str) -> str:
        return "".join(c for c in name.casefold() if c.isalnum())

    by_plain: dict[str, str | None] = {}
    for name in known:
        by_plain[plain(name)] = None if plain(name) in by_plain else name
    spelt = {name: name for name in ("", *known)}
    for id, label in zip(ids, labels, strict=True):
        if label not in spelt:
            spelt[label] = by_plain.get(plain(label)) or label
            if declared and spelt[label] not in known:
                _fail(f"label of {id!r}", label, f"a declared class: {_some(known)}", "Move the file or add the class")
    return [spelt[label] for label in labels]


def _split_by_value(splits: dict, ids: list[str], groups: list[str], row_of: dict) -> tuple[tuple, list]:
    """Names of the splits and each video's parts, from a CSV column, a folder level or the groups."""
    if "leave_out" in splits:
        if "" in groups:
            _fail("video without a group", ids[groups.index("")], "a group for every video", "Correct the pattern")
        names = sorted(set(groups))
        if len(names) < 2:
            _fail("one group only", names[0], "two or more to leave one out", "Add videos or remove splits")
        row = {g: tuple(3 if g == name else 1 for name in names) for g in names}
        return tuple(str(k + 1) for k in range(len(names))), [row[g] for g in groups]
    if not splits:
        return (), [()] * len(ids)
    words = _values("split", {"split": splits}, ids, row_of)
    for id, word in zip(ids, words, strict=True):
        if word.lower() not in _PART_WORDS:
            _fail(f"split of {id!r}", word, "train, val, validation, test or none", "Rename it")
    return ("1",), [(_PART_WORDS[word.lower()],) for word in words]
