"""Which files are videos, and which of them the entries of a list mean."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from labelgen.manifest.messages import fail

# fmt: off
EXTENSIONS = (
    "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov",
    "mp4", "mpeg", "mpg", "mts", "mxf", "ogm", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m",
)
# fmt: on


def find_videos(folder: Path, extensions: set[str]) -> tuple[dict[str, str], list[str]]:
    """id -> path of all that has a video extension and is no folder, links to nowhere included; and the ids of all other
    files. Hidden names are left out."""
    if not os.path.isdir(folder):
        fail("folder not found", folder, "a folder with the videos", "Name another root or set VSSL_DATA")
    paths: dict[str, str] = {}
    others: list[str] = []
    # os.walk, but with loops of links cut, and no system call for a plain file.
    stack: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(str(folder), "", ())]
    while stack:
        directory, prefix, above = stack.pop()
        try:
            status = os.stat(directory)
            entries = list(os.scandir(directory))
        except OSError as error:
            fail("cannot read folder", directory, f"a readable folder ({error.strerror})", "Check its permissions")
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
                fail("two videos with one id", id, "distinct names", f"Rename {paths[id]!r} or {entry.path!r}")
            else:
                paths[id] = entry.path
    if not paths:
        kinds = " ".join(sorted(extensions))
        fail(
            "no videos found in",
            folder,
            f"files with one of the extensions {kinds}",
            "Check the folder or name another root",
        )
    return paths, others


def locate(entries: Iterable[str], ids: Collection[str], extensions: set[str]) -> dict[str, str]:
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
        found = entry if entry in ids else by_stem.get(stem(entry))
        if found is None:
            continue
        if found != entry and stem(entry) in clashes:
            fail(f"two videos for {entry!r} of the lists", clashes[stem(entry)], "one", "Remove one")
        if (other := owner.setdefault(found, entry)) != entry:
            fail(f"two list entries for {found!r}", f"{other} and {entry}", "one", "Correct the lists")
        located[entry] = found
    return located
