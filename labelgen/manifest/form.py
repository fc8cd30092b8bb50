"""Reading a manifest (YAML), and whether it has the form that docs/manifests.md describes."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from labelgen.errors import ConfigError, ManifestError
from labelgen.manifest.messages import fail
from labelgen.shards import PARTS

# The form of a manifest: a type, [a type] for a non-empty list, a mapping of the keys that may be there.
_VALUE = {"column": str, "pattern": str, "folder": int}
_FORM = {
    "name": str,
    "source": str,
    "licence": str,
    "expected": dict.fromkeys(("videos", "classes", "folds", "pairs"), int),
    "videos": {"folder": str, "extensions": [str]},
    "csv": {"files": [str], "video": str},
    "label": _VALUE,
    "group": _VALUE,
    "classes": {"names": [str], "file": str, "pattern": str},
    "splits": {
        "names": [str],
        "lists": dict.fromkeys(PARTS[1:], str),
        "flags": str,
        "column": str,
        "folder": int,
        "leave_out": str,
    },
}


def builtin_manifests() -> dict[str, Traversable]:
    """The files of data_manifests by the names of their data sets, sorted."""
    files = resources.files("data_manifests").iterdir()
    return {name[:-5]: file for name, file in sorted((file.name, file) for file in files) if name.endswith(".yaml")}


def table() -> list[str]:
    """The lines of the Markdown table of all built-in data sets, for docs/manifests.md."""
    lines = ["| data set | videos | classes | splits | licence |", "|---|---|---|---|---|"]
    for name in builtin_manifests():
        spec = read_manifest(name)
        counts = (f"{count:,}" if count else "" for count in map(spec.get("expected", {}).get, ("videos", "classes")))
        splits = " ".join(spec.get("splits", {}).keys() - {"names"})
        lines.append(f"| `{name}` | {' | '.join(counts)} | {splits.replace('_', ' ')} | {spec.get('licence', '')} |")
    return lines


def names() -> list[str]:
    """A Markdown line: the names of the built-in data sets."""
    return [", ".join(f"`{name}`" for name in builtin_manifests())]


def read_manifest(dataset: str) -> dict[str, Any]:
    """The content of a built-in manifest, by its name, or of a file (.yaml); see `load` for what is raised."""
    source: Path | Traversable
    if dataset.endswith((".yaml", ".yml")):
        source = Path(dataset).expanduser()
        if not source.is_file():
            fail("manifest not found", dataset, "a file", "Check the path", ConfigError)
    else:
        builtin = builtin_manifests()
        if dataset not in builtin:
            names = ", ".join(builtin)
            do = "Take one of these or the path of your own manifest (.yaml)"
            fail("unknown data set", dataset, names, do, ConfigError)
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
            fail(f"wrong type in {where}", value, f"a mapping with the keys {', '.join(form)}", "Correct it")
        for key, item in value.items():
            if key not in form:
                fail(f"unknown key in {where}", key, " or ".join(form), "Correct the spelling or remove it")
            _check_form(item, form[key], f"{where}, {key}")
    elif isinstance(form, list):
        if not isinstance(value, list) or not value:
            fail(f"wrong type in {where}", value, "a list with at least one entry", "Write [a, b]")
        for item in value:
            _check_form(item, form[0], where)
    elif type(value) is not form:
        kind = "text" if form is str else "a whole number"
        fail(f"wrong type in {where}", value, f"{kind}, not {type(value).__name__}", "Correct it; text may need quotes")


def _check_meaning(spec: dict[str, Any], where: str) -> None:
    """What the form cannot say: keys that need each other, and values that cannot be right."""
    if not re.fullmatch(r"[\w-][\w.-]*", spec.get("name", "")):
        fail(f"name in {where}", spec.get("name", ""), "letters, digits, - or _", "It names folders: give one")
    if "csv" in spec and spec["csv"].keys() != {"files", "video"}:
        fail(f"csv in {where}", ", ".join(spec["csv"]), "files and video", "Give both")
    if spec.get("classes", {"names": []}).keys() not in ({"names"}, {"file", "pattern"}):
        fail(f"classes in {where}", ", ".join(spec["classes"]), "names, or file and pattern", "Give one form")
    splits = spec.get("splits", {"folder": 1})
    kinds = splits.keys() - {"names"}
    if len(kinds) != 1:
        fail(f"splits in {where}", ", ".join(kinds), "one of lists, flags, column, folder, leave_out", "Keep one")
    if "names" in splits and not kinds & {"lists", "flags"}:
        fail(f"splits in {where}", "names", "lists or flags beside it", "Remove names")
    if "flags" in splits and "classes" not in spec:
        fail(f"splits in {where}", "flags", "classes in the manifest", "Declare the classes")
    if "leave_out" in splits and (splits["leave_out"] != "group" or "group" not in spec):
        fail(f"leave_out in {where}", splits["leave_out"], "group, with a group in the manifest", "Declare group")
    for key in ("label", "group", "splits"):
        item = spec.get(key, {})
        if "column" in item and "csv" not in spec:
            fail(f"{key} in {where}", item["column"], "a csv section that has this column", "Add csv")
        if item.get("folder", 1) < 1:
            fail(f"{key} in {where}", item["folder"], "1 for the first folder level, 2 for the second", "Correct it")
    for key, name in (("label", "label"), ("group", "group"), ("classes", "label")):
        if (pattern := spec.get(key, {}).get("pattern")) is not None:
            _check_pattern(pattern.replace("{label}", "x") if key == "group" else pattern, name, f"{key} in {where}")


def _check_pattern(pattern: str, name: str, where: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        fail(f"bad regular expression for {where}", pattern, f"a valid one ({error})", "Correct it")
    if name not in compiled.groupindex:
        fail(f"pattern for {where}", pattern, f"a part named (?P<{name}>...)", "Name the part that is wanted")
