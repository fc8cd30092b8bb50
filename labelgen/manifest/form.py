"""Reads a manifest (YAML), and checks that it has the form described in docs/manifests.md."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from labelgen.errors import ConfigError, ManifestError, ReadError
from labelgen.manifest.messages import compiled, fail
from labelgen.reading import Only, load_yaml, validate
from labelgen.shards import PARTS

_VALUE = Only({"column?": str, "pattern?": str, "folder?": int})
_WHERE = {  # places on disk: keys of the manifest, or of one of its layouts
    "videos?": Only(
        {
            **{"folder?": str, "extensions?": [str, ...], "within?": [str, ...], "levels?": [int, ...]},
            "replacements?": str,
        }
    ),
    "lists?": str,
    "csv?": Only({"files?": [str, ...], "video?": str, "may_lack?": str, "columns?": [str, ...], "delimiter?": str}),
    "segments?": Only({"start": str, "end": str, "unit?": str, "first?": int}),
    "label?": Only({**_VALUE, "number?": bool, "index?": bool}),
    "group?": _VALUE,
    "classes?": Only({"names?": [str, ...], "file?": str, "pattern?": str}),
    "splits?": Only(
        {
            **{"names?": [str, ...], "lists?": Only(dict.fromkeys((f"{part}?" for part in PARTS[1:]), str))},
            **{"optional?": bool, "by_name?": bool, "flags?": str, "column?": str, "folder?": int, "leave_out?": str},
            "files?": Only(dict.fromkeys((f"{part}?" for part in PARTS[1:]), str)),
            "match?": Only(dict.fromkeys((f"{part}?" for part in PARTS[1:]), [str, ...])),
        }
    ),
}
_FORM = Only(
    {
        **dict.fromkeys(("name?", "like?", "source?", "licence?"), str),
        "expected?": Only(dict.fromkeys(("videos?", "classes?", "folds?", "pairs?"), int)),
        **_WHERE,
        "opposites?": [[str], ...],
        "layouts?": [Only({"name?": str, **_WHERE}), ...],
    }
)
_LEVELS = 100  # largest depth of folders
_CHOICES = {"names", "optional", "by_name"}  # keys of splits that do not name a kind of split


def builtin_manifests() -> dict[str, Traversable]:
    """The files of data_manifests, by the names of their data sets, sorted."""
    files = resources.files("data_manifests").iterdir()
    return {name[:-5]: file for name, file in sorted((file.name, file) for file in files) if name.endswith(".yaml")}


def read_manifest(dataset: str) -> dict[str, Any]:
    """The content of a built-in manifest, by its name, or of a file (.yaml). Raises as `load` does."""
    source: Path | Traversable
    if dataset.endswith((".yaml", ".yml")):
        source = Path(dataset).expanduser()
        if not source.exists():
            fail("manifest not found", dataset, "a file", "Check the path", ConfigError)
    else:
        builtin = builtin_manifests()
        if dataset not in builtin:
            names = ", ".join(builtin)
            do = "Choose one of these or the path of a manifest (.yaml)"
            fail("unknown data set", dataset, names, do, ConfigError)
        source = builtin[dataset]
    try:
        spec = load_yaml(source)
    except ReadError as error:
        raise ManifestError(f"cannot read the manifest {dataset}: {error}") from error
    where = f"manifest {dataset}"
    try:
        validate(spec, _FORM, "it")
    except ValueError as error:
        raise ManifestError(f"{where}: {error}. Correct it; text may need quotes.") from error
    if not re.fullmatch(r"[\w-][\w.-]{0,99}", spec.get("name", "")):
        fail(
            f"name in {where}",
            spec.get("name", ""),
            "at most 100 letters, digits, - or _",
            "Give one, as it names folders",
        )
    if "like" in spec:
        if spec["like"] not in builtin_manifests():
            known = ", ".join(builtin_manifests())
            fail(f"like in {where}", spec["like"], f"a built-in data set: {known}", "Correct the name")
        model = read_manifest(spec["like"])
        if "layouts" in model:  # what is given here applies to all of them
            kept = [
                {key: value for key, value in layout.items() if key == "name" or key not in spec}
                for layout in model["layouts"]
            ]
            model["layouts"] = kept
        spec = {**model, **spec}
    named = spec.get("classes", {}).get("names", ())
    for pair in spec.get("opposites", ()):
        if len(pair) != 2 or len({*pair}) < 2 or (named and not {*pair} <= {*named}):
            fail(f"opposites in {where}", ", ".join(pair), "two different classes a pair", "Correct the pair")
    layouts = spec.get("layouts", [{}])
    for number, layout in enumerate(layouts, 1):
        if "layouts" in spec and "name" not in layout:
            fail(f"layout {number} of {where}", ", ".join(layout), "a name", "Give it one")
        _check_meaning({**spec, **layout}, where)
    return spec


def opposites(dataset: str) -> list[tuple[str, str]]:
    """The pairs of opposite classes of a manifest, see `read_manifest`. Raises ConfigError if it has none."""
    pairs = read_manifest(dataset).get("opposites", [])
    if not pairs:
        known = ", ".join(name for name in builtin_manifests() if read_manifest(name).get("opposites"))
        fail(f"opposites in manifest {dataset}", "none", f"pairs, as of {known}", "Add pairs of classes", ConfigError)
    return [(first, second) for first, second in pairs]


def _check_meaning(spec: dict[str, Any], where: str) -> None:
    """Checks beyond the form: keys that need each other, and impossible values."""
    if "csv" in spec and spec["csv"].keys() - {"may_lack", "columns", "delimiter"} != {"files", "video"}:
        fail(f"csv in {where}", ", ".join(spec["csv"]), "files and video", "Give both")
    segments = spec.get("segments")
    if segments is not None:
        if "csv" not in spec:
            fail(f"segments in {where}", segments["start"], "a csv section that has this column", "Add csv")
        if segments.get("unit", "seconds") not in ("seconds", "frames"):
            fail(f"unit of segments in {where}", segments["unit"], "seconds or frames", "Correct it")
        if segments.get("first", 0) and (segments["first"] != 1 or segments.get("unit") != "frames"):
            fail(
                f"first of segments in {where}",
                segments["first"],
                "0 or 1, the number of the first frame",
                "Correct it",
            )
    classes = spec.get("classes", {"names": []})
    json = classes.keys() == {"file"} and classes["file"].lower().endswith(".json")
    if classes.keys() not in ({"names"}, {"file", "pattern"}) and not json:
        fail(f"classes in {where}", ", ".join(classes), "names, file and pattern, or a JSON file", "Give one form")
    if len(spec.get("csv", {}).get("delimiter", ",")) != 1:
        fail(f"delimiter in {where}", spec["csv"]["delimiter"], "one character", "Correct it")
    if spec.get("label", {}).get("index") and "classes" not in spec:
        fail(f"label in {where}", "index", "classes in the manifest", "Declare the classes")
    splits = spec.get("splits", {"folder": 1})
    kinds = splits.keys() - _CHOICES
    if len(kinds) != 1:
        fail(
            f"splits in {where}",
            ", ".join(kinds),
            "one of lists, files, flags, match, column, folder, leave_out",
            "Keep one",
        )
    if "names" in splits and not kinds & {"lists", "flags", "match"}:
        fail(f"splits in {where}", "names", "lists, flags or match beside it", "Remove names")
    for word, patterns in splits.get("match", {}).items():
        if len(patterns) != len(splits.get("names", ())):
            fail(
                f"match in {where}, {word}",
                ", ".join(patterns),
                "names, and an expression for each of them",
                "Correct it",
            )
        for pattern in patterns:
            compiled(pattern, f"match in {where}, {word}")
    if "files" in splits and "csv" not in spec:
        fail(f"splits in {where}", "files", "a csv section that these files belong to", "Add csv")
    if splits.keys() & {"optional", "by_name"} and "lists" not in splits:
        fail(f"splits in {where}", ", ".join(splits), "lists beside optional or by_name", "Remove them")
    if spec.get("label", {}).get("number") and ("lists" not in splits or len(spec["label"]) > 1):
        fail(f"label in {where}", "number", "nothing beside it, and lists in splits", "Give one form")
    if "flags" in splits and "classes" not in spec:
        fail(f"splits in {where}", "flags", "classes in the manifest", "Declare the classes")
    if "leave_out" in splits and (splits["leave_out"] != "group" or "group" not in spec):
        fail(f"leave_out in {where}", splits["leave_out"], "group, with a group in the manifest", "Declare group")
    for key in ("label", "group", "splits"):
        item = spec.get(key, {})
        if "column" in item and "csv" not in spec:
            fail(f"{key} in {where}", item["column"], "a csv section that has this column", "Add csv")
        if not 1 <= item.get("folder", 1) <= _LEVELS:
            fail(f"{key} in {where}", item["folder"], "1 for the first folder level, 2 for the second", "Correct it")
    if not all(0 <= level <= _LEVELS for level in spec.get("videos", {}).get("levels", [])):
        fail(f"levels in {where}", spec["videos"]["levels"], f"numbers from 0 to {_LEVELS}", "Correct it")
    if (pattern := spec.get("csv", {}).get("may_lack")) is not None:
        compiled(pattern, f"csv, may_lack in {where}")
    for key, name in (("label", "label"), ("group", "group"), ("classes", "label")):
        if (pattern := spec.get(key, {}).get("pattern")) is not None:
            _check_pattern(pattern.replace("{label}", "x") if key == "group" else pattern, name, f"{key} in {where}")


def _check_pattern(pattern: str, name: str, where: str) -> None:
    if name not in compiled(pattern, where).groupindex:
        fail(f"pattern for {where}", pattern, f"a part named (?P<{name}>...)", "Name this part")


def check_group(pattern: str) -> None:
    """Raises ConfigError if a pattern that replaces a manifest's does not mark the group."""
    found = compiled(pattern.replace("{label}", "x"), "the group", ConfigError)
    if found.groups != 1 and "group" not in found.groupindex:
        fail("group pattern", pattern, "one part in brackets, or one named (?P<group>...)", "Correct it", ConfigError)
