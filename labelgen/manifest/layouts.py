"""The layouts of a data set on disk, of which the first one that fits a folder is used."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelgen.manifest.files import entries_of, search_folders
from labelgen.manifest.lists import list_files
from labelgen.manifest.messages import fail
from labelgen.manifest.tables import csv_files, csv_header, csv_template


def choose(spec: Mapping[str, Any], root: Path) -> tuple[dict[str, Any], str]:
    """The manifest with the keys of its first layout that fits `root`, and the name of this layout; "" if it has no layouts.

    Raises ManifestError if none fits, with what each layout expects and what was found.
    """
    common = {key: value for key, value in spec.items() if key != "layouts"}
    if "layouts" not in spec or not root.is_dir():  # a missing root raises another error
        return common, ""
    looked_for = []
    for layout in spec["layouts"]:
        candidate = {**common, **layout, "name": spec["name"]}
        lacking = _lacking(candidate, root)
        if not lacking:
            return candidate, layout["name"]
        looked_for.append(f"\n  {layout['name']}: {lacking} is missing")
    fail(
        f"no layout of {spec['name']} fits",
        root,
        f"one of{''.join(looked_for)}\nFound there: {entries_of(root)}",
        "Choose another root, or write a manifest",
    )


def _lacking(spec: Mapping[str, Any], root: Path) -> str:
    """What a folder lacks for a layout, "" if it fits."""
    where = spec.get("videos", {})
    folder = root / where.get("folder", ".")
    if not folder.is_dir():
        return f"the folder {where['folder']}"
    searched = search_folders(folder, where.get("within"))
    if not searched:
        return f"one of the folders {', '.join(where['within'])}"
    lists = root / spec.get("lists", ".")
    if not lists.is_dir():
        return f"the folder {spec['lists']}"
    if "csv" in spec:
        files = csv_files(spec["csv"], lists)
        if not files:
            return f"one of the files {', '.join(spec['csv']['files'])}"
        for path in files:
            asked = {field for _, field, _ in csv_template(spec["csv"]) if field}
            asked |= {spec["segments"][key] for key in ("start", "end")} if "segments" in spec else set()
            if absent := asked - set(csv_header(path, spec["csv"])):
                return f"the column {' or '.join(sorted(absent))} of {path.relative_to(root)}"
    else:
        level = spec.get("label", {}).get("folder", 0)
        if level and not any(_reaches(path, level - prefix.count("/")) for path, prefix in searched):
            return f"a folder {'/'.join(['*'] * level)} below {', '.join(prefix or '.' for _, prefix in searched)}"
    names = list_files(spec.get("splits", {}), spec.get("classes", {}).get("names", []))
    if names and not any(glob.glob(name, root_dir=lists) for name in names):
        return f"one of the files {', '.join(os.path.relpath(lists / name, root) for name in names)}"
    return ""


def _reaches(folder: str, levels: int) -> bool:
    """Whether there are folders this many levels below."""
    if levels <= 0:
        return True
    with os.scandir(folder) as entries:
        return any(_reaches(entry.path, levels - 1) for entry in entries if entry.is_dir() and entry.name[0] != ".")
