"""Which files are videos, and which of them the entries of a list refer to."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from labelgen.manifest.messages import apart, composed, fail
from labelgen.numbered import IMAGES, numbered

# fmt: off
EXTENSIONS = (
    "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov",
    "mp4", "mpeg", "mpg", "mts", "mxf", "ogm", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m",
)
# fmt: on
_SHOWN = 12  # entries of a folder in a message
_PATH_BYTES = 4096  # PATH_MAX of Linux, including the final NUL


def search_folders(folder: Path, within: Sequence[str] | None) -> list[tuple[str, str]]:
    """Path and id prefix of each folder to search: `folder`, or the existing ones of its sub-folders `within`."""
    if within is None:
        return [(str(folder), "")]
    return [(str(folder / name), f"{name}/") for name in within if os.path.isdir(folder / name)]


def entries_of(folder: Path) -> str:
    """The first names in a folder, for a message."""
    names = sorted(
        entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder) if not entry.name.startswith(".")
    )
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "nothing"


class FolderContent(NamedTuple):
    """The content of a folder of videos. files, images: id -> path below it, for video files and for folders of
    numbered images; the path is the same object as the id if they are equal. others: ids of all other files."""

    files: dict[str, str]
    images: dict[str, str]
    others: list[str]


def find_videos(folder: Path, extensions: set[str], within: Sequence[str] | None = None) -> FolderContent:
    """All files with a video extension, including broken links, and all folders without a video file that hold at least
    two numbered images with one of the extensions. Hidden names are left out; `within` names the sub-folders to search,
    None searches all."""
    if not os.path.isdir(folder):
        fail("folder not found", folder, "a folder with the videos", "Choose another root or set VSSL_DATA")
    if not (searched := search_folders(folder, within)):
        wanted = ", ".join(f"{name}/" for name in within or ())
        there = entries_of(folder)
        fail(
            "no folder of videos in",
            folder,
            f"one of {wanted}; found there: {there}",
            "Check the folder or choose another root",
        )
    found = FolderContent({}, {}, [])
    pictures = {f".{kind}" for kind in IMAGES} & extensions

    def add(kind: dict[str, str], path: str, name: str) -> None:
        id = _text(name)
        if other := found.files.get(id) or found.images.get(id):
            fail("two videos with one id", id, "distinct names", f"Rename {other!r} or {path!r} in {folder}")
        kind[id] = id if id == path else path  # one string for both

    for start in searched:
        for prefix, names in _files_below(*start):
            kind_of = {name: os.path.splitext(name)[1].lower() for name in names}
            taken = extensions - pictures
            films = [name for name in names if kind_of[name] in taken]
            for name in films:
                add(found.files, prefix + name, prefix + name)
            if not films and numbered(name for name in names if kind_of[name] in pictures):
                add(found.images, prefix.rstrip("/") or ".", prefix.rstrip("/") or folder.resolve().name)
                taken = pictures
            found.others.extend(_text(prefix + name) for name in names if kind_of[name] not in taken)
    if not found.files and not found.images:
        fail(
            "no videos found in",
            folder,
            f"files with one of the extensions {' '.join(sorted(extensions - pictures))}"
            + ", or folders of numbered images" * bool(pictures),
            "Check the folder or choose another root",
        )
    return found


def _text(path: str) -> str:
    """A path as an id: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _files_below(folder: str, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Walk a folder and those below: yields `prefix` with the path of each, and the names of everything in it that is not a
    folder. A folder that links lead to is visited once: under its real path if that is below `folder`, else by the first link;
    links with the fewest links on their path come first, then the order of paths. Plain files need no system call."""
    seen: set[tuple[int, int]] = set()
    links, linked = [(folder, prefix)], False
    while links:
        stack, links = sorted(links, reverse=True), []
        while stack:
            directory, prefix = stack.pop()
            try:
                with _opened(directory) as place:
                    status = os.stat(place)
                    here = (status.st_dev, status.st_ino)
                    if linked and here in seen:
                        continue
                    seen.add(here)
                    entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
                    kinds = [(_is_folder(entry), entry.is_symlink()) for entry in entries]
            except OSError as error:
                fail("cannot read folder", directory, f"a readable folder ({error.strerror})", "Check its permissions")
            inner: list[tuple[str, str]] = []
            for entry, (is_folder, is_link) in zip(entries, kinds, strict=True):
                if is_folder:
                    (links if is_link else inner).append(
                        (os.path.join(directory, entry.name), f"{prefix}{entry.name}/")
                    )
            yield prefix, [entry.name for entry, (is_folder, _) in zip(entries, kinds, strict=True) if not is_folder]
            stack += sorted(inner, reverse=True)
        linked = True


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[str | int]:
    """A folder for os.stat and os.scandir: its path or, if that is too long for the system, a handle."""
    if len(os.fsencode(folder)) < _PATH_BYTES:
        yield folder
        return
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in folder.split("/")[1:]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def check_levels(ids: Iterable[str], levels: Sequence[int], folder: Path) -> None:
    """Raises ManifestError if the folder depth of a video is none of `levels`, as its label would be the name of a
    wrong folder."""
    for id in ids:
        if (found := id.count("/")) not in levels:
            fail(
                f"video at the wrong folder level in {folder}",
                id,
                f"{' or '.join(map(str, levels))} folder{'s' * (levels != [1])} above every video, not {found}",
                "Give the folder that holds the class folders as root, or choose another data set, or write a manifest",
            )


def put_replacements(paths: dict[str, str], folder: str) -> None:
    """Replace files by those of the same name below the sub-folder `folder`, which take their ids; a file that replaces
    none is listed directly below `folder`, as sub-folders of that are not classes."""
    prefix = folder.rstrip("/") + "/"
    found = {id: paths.pop(id) for id in [id for id in paths if id.startswith(prefix)]}
    better = {composed(id.rpartition("/")[2]): id for id in found}
    originals = {id: composed(id.rpartition("/")[2]) for id in paths} if better else {}
    paths.update({id: found[better[name]] for id, name in originals.items() if name in better})
    unused = better.keys() - originals.values()
    paths.update({prefix + better[name].rpartition("/")[2]: found[better[name]] for name in unused})


def locate(
    rows: Mapping[str, object],
    members: Mapping[str, object],
    ids: Collection[str],
    extensions: set[str],
    may_lack: str | None = None,
) -> dict[str, str]:
    """List entry -> id, for entries that are not ids themselves. An entry, of a table or of list files, is an id or a bare file
    name, with or without the video extension, with / or, as on Windows, \\ between folders; the name of a file that no entry
    names may lack the part of an entry of the table that the regular expression `may_lack` matches. Accented letters may be one
    character or several (Unicode normal forms): macOS writes names in one way, most lists in the other."""

    def stem(name: str) -> str:
        base, extension = os.path.splitext(composed(name))
        return base if extension.lower() in extensions else composed(name)

    located: dict[str, str] = {}
    elsewhere = [entry for entry in chain(rows, members) if entry not in ids]
    shorter: dict[str, str] = {}
    if may_lack is not None:
        lacking = re.compile(may_lack)
        shorter = {entry: composed(lacking.sub("", entry)) for entry in elsewhere if entry in rows}
    if not elsewhere:
        return located
    slashed = {entry: stem(entry.replace("\\", "/")) for entry in elsewhere if "\\" in entry}
    wanted = {*map(stem, elsewhere), *slashed.values(), *shorter.values()}
    by_stem: dict[str, str] = {}
    clashes: dict[str, str] = {}
    for id in ids:
        path = stem(id)
        for key in {path, path.rpartition("/")[2]} & wanted:
            if (other := by_stem.setdefault(key, id)) != id:
                clashes[key] = apart(other, id)
    owner = {found: found for found in by_stem.values() if found in rows or found in members}
    for entry in elsewhere:
        key = stem(entry)
        if key not in by_stem:
            key = slashed.get(entry, key)
        found = by_stem.get(key)
        if found is None:
            continue
        if key in clashes:
            fail(f"two videos for {entry!r} of the lists", clashes[key], "one", "Remove one")
        if (other := owner.setdefault(found, entry)) != entry:
            fail(f"two list entries for {found!r}", apart(other, entry), "one", "Correct the lists")
        located[entry] = found
    short_owner: dict[str, str] = {}
    for entry, short in shorter.items():
        found = by_stem.get(short)
        if entry in located or found is None or found in owner:
            continue
        if short in clashes:
            fail(f"two videos for {entry!r} of the lists", clashes[short], "one", "Remove one")
        if (other := short_owner.setdefault(found, entry)) == entry:
            located[entry] = found
        elif rows[other] != rows[entry]:
            fail(f"two list entries for {found!r}", apart(other, entry), "one", "Give the video its full name")
    return located
