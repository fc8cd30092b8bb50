"""A folder of shards that grows: new videos of a collection are labelled, deleted ones are dropped.

The configuration of a new shard names the new videos alone. If a video of a shard was deleted or its file has changed, the
shard is rewritten without it by copying the other rows: readers need not know about deletions, and nothing is labelled again.
Before the work begins, `collection.json` lists all shards, and which videos are still to be labelled into which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelgen.errors import ShardError
from labelgen.manifest import Dataset, Video
from labelgen.run.finished import Finished
from labelgen.run.plan import differences, in_order
from labelgen.shards import ShardReader
from labelgen.shards.checks import escaped
from labelgen.shards.collection import read_collection, write_collection
from labelgen.shards.folder import alike
from labelgen.shards.subset import keep_videos

Identity = Callable[[Sequence[Video], np.ndarray], dict[str, Any]]
_SHARDS = 8  # least number of shards of an addition, so that several workers have some


class Growth(NamedTuple):
    """What is to be labelled, and what was found. videos, sizes, rows: see Plan, for new videos only; shards: names of
    all shards, with the ids to be labelled into new ones; new, kept: numbers of videos; forgotten: ids of deleted
    videos; changed: ids of videos whose file has changed, which count as new, too."""

    videos: Sequence[Video]
    sizes: np.ndarray
    rows: dict[str, slice]
    shards: dict[str, list[str]]
    new: int
    kept: int
    forgotten: list[str]
    changed: list[str]


def grow(
    folder: Path,
    dataset: Dataset,
    videos: Sequence[Video],
    sizes: np.ndarray,
    identity: Identity,
    per_shard: int | None,
    finished: Finished,
) -> Growth:
    """Bring the finished shards of a folder up to date, and plan shards of new videos. After an interruption the same
    call has the same result.

    Raises ShardError if the existing shards have other settings or splits, or are of an unfinished run.
    """
    row_of = {escaped(video.id): row for row, video in enumerate(videos)}
    planned = read_collection(folder)
    there = sorted(folder.glob("[0-9]*.h5"))
    if planned is None and there:
        _check_whole(folder, there)
    if planned is None:
        planned = {path.name: [] for path in there}
        write_collection(folder, planned)  # before any shard changes
    known: set[int] = set()
    forgotten: list[str] = []
    changed: list[str] = []
    for path in there:
        own, gone, other = _update(path, dataset, videos, sizes, row_of, identity, finished)
        known |= own
        forgotten += gone
        changed += other
    names = {path.name for path in folder.glob("[0-9]*.h5")}
    chosen: dict[str, list[int]] = {}
    for name, ids in planned.items():
        if name not in names and (rows := [row_of[id] for id in ids if id in row_of and row_of[id] not in known]):
            chosen[name] = rows
            known |= set(rows)
    new = [row for row in range(len(videos)) if row not in known]
    per_shard = per_shard or min(32, max(-(-len(new) // 64), -(-min(len(new), 32 * _SHARDS) // _SHARDS)))
    first = 1 + max((int(name.removesuffix(".h5")) for name in (*names, *chosen)), default=-1)
    for name, at in in_order(len(new), per_shard or 1, first).items():
        chosen[name] = new[at]
    shards: dict[str, list[str]] = {name: [] for name in names}
    shards |= {name: [escaped(videos[row].id) for row in rows] for name, rows in chosen.items()}
    write_collection(folder, shards)
    order = [row for rows in chosen.values() for row in rows]
    bounds = np.cumsum([0, *map(len, chosen.values())]).tolist()
    return Growth(
        [videos[row] for row in order],
        sizes[order],
        {name: slice(*bounds[at : at + 2]) for at, name in enumerate(chosen)},
        shards,
        len(order),
        len(videos) - len(order),
        forgotten,
        changed,
    )


def _update(
    path: Path,
    dataset: Dataset,
    videos: Sequence[Video],
    sizes: np.ndarray,
    row_of: dict[str, int],
    identity: Identity,
    finished: Finished,
) -> tuple[set[int], list[str], list[str]]:
    """Rewrite a shard if videos of it were deleted or changed, or have other labels, groups or splits now. Returns the
    rows of the remaining videos, and the ids of the deleted and of the changed ones."""
    summary = finished.summary(path)
    reader = ShardReader(path)
    _check_alike(path, reader, dataset, identity(videos[:0], sizes[:0]))
    arrays, known = reader.arrays, summary.get("sizes", {})
    stored = list(dict.fromkeys((*arrays["videos/id"], *arrays["failures/id"])))
    gone = [id for id in stored if id not in row_of]
    changed = [id for id in stored if id in row_of and known.get(id, sizes[row_of[id]]) != sizes[row_of[id]]]
    left = [id for id in stored if id not in {*gone, *changed}]
    rows = {row_of[id] for id in left}
    told = {
        id: {"label": escaped(video.label), "group": escaped(video.group), "split": video.split}
        for id in left
        for video in (videos[row_of[id]],)
    }
    columns = zip(*(arrays[f"videos/{key}"] for key in ("id", "label", "group", "split")), strict=True)
    same = all(
        {"label": label, "group": group, "split": tuple(split.tolist())} == told[id]
        for id, label, group, split in columns
        if id in told
    )
    if not left:
        path.unlink()
    elif gone or changed or not same:
        own = [row_of[id] for id in left]
        keep_videos(path, told, identity([videos[row] for row in own], sizes[own]))
    if left:
        finished.summary(path, {id: int(sizes[row_of[id]]) for id in left})
    return rows, gone, changed


def _check_whole(folder: Path, there: Sequence[Path]) -> None:
    first = ShardReader(there[0]).config
    expected = -(-int(first["videos"].split()[0]) // first["videos_per_shard"]) if "videos_per_shard" in first else 0
    if len(there) < expected:
        raise ShardError(
            f"{folder}: {len(there)} of {expected} shards are done; first finish the run that began them, without --add, on the "
            "same videos, or delete the folder"
        )


def _check_alike(path: Path, reader: ShardReader, dataset: Dataset, identity: dict[str, Any]) -> None:
    if differing := differences(alike(reader.config, True), alike(identity, True)):
        raise ShardError(
            f"{path} was made with other settings ({'; '.join(differing.values())}); add with the same settings, or "
            "choose another output folder"
        )
    if reader.splits != dataset.splits:
        there, now = (", ".join(names) or "none" for names in (reader.splits, dataset.splits))
        raise ShardError(
            f"{path}: its splits are {there:.200}, those of the data set are now {now:.200}; choose another output folder"
        )
