"""Retrieval: is a video's nearest neighbour in feature space of its class?

Protocol of Xu et al., CVPR 2019: 10 clips per video, cosine; a query is a hit when any of its k nearest gallery items
is of its class. Reported beside the network with random weights, and what a random order would hit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from trainer import data, distributed
from trainer.errors import TrainerError
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, Features, features, networks
from trainer.evaluate.folds import seen

KS = (1, 5, 10, 20, 50)
_CHUNK = 1024  # queries x gallery items compared at a time
_SHOWN = 24  # queries whose neighbours are kept in the result


@dataclass(frozen=True)
class Side:
    """One side of a search: videos of a data set.

    source: the data set; videos: int64 [n], rows of source.videos; labels: str [n]; first: number of the first, which
    tells the videos of two data sets apart
    """

    source: data.Shards
    videos: np.ndarray
    labels: np.ndarray
    first: int = 0

    def items(self, found: Features, key: tuple[str, str], level: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [items, d] and the video of each, int64 [items], counted from `first`."""
        if level == "clip":
            return found.arrays[key], found.owner + self.first
        return found.video_means(key), np.arange(len(self.videos)) + self.first


def retrieval(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
    query: str | os.PathLike | None = None,
    gallery: str | os.PathLike | None = None,
) -> dict:
    """Retrieval accuracy of a checkpoint's backbone on a labelled data set; written into the run's folder, too.

    checkpoint: run, checkpoint folder or .safetensors file, None for the newest run.
    Queries and gallery: see protocol.parts. query, gallery: folders of two data sets instead, the test part (or all) of the
    first searches the training part (or all) of the second; classes are compared by name, queries whose class the
    gallery lacks are left out and counted.

    Raises TrainerError when there are no labels, ShardError, or what checkpoint.load raises.
    """
    saved = protocol.open_checkpoint(checkpoint)
    if (query is None) != (gallery is None):
        raise TrainerError("--query and --gallery go together: name the shards of both data sets")
    if query is None:
        asking, searched, mode, notes = _one(protocol.open_shards(saved, shards, split))
    else:
        asking, searched, mode, notes = _two(data.Shards(query, split), data.Shards(gallery, split))
    classes, targets = np.unique(np.concatenate([asking.labels, searched.labels]), return_inverse=True)
    targets = targets[: len(asking.labels)], targets[len(asking.labels) :]
    device = distributed.pick_device(compute.device)

    rows, shown = [], []
    for network, backbone in networks(saved).items():
        found = [
            features(saved, network, backbone, side.source, side.source.videos[side.videos], "spread", compute)
            for side in (asking, searched)
        ]
        for key in found[0].arrays:
            for level in ("clip", "video"):
                queries, items = (
                    side.items(own, key, level) for side, own in zip((asking, searched), found, strict=True)
                )
                nearest_items = nearest(queries, items, KS[-1], device)
                hit = hits(nearest_items, queries[1] - asking.first, items[1] - searched.first, targets)
                row = {"network": network, "stage": key[0], "pooling": key[1], "level": level}
                for k in KS:
                    own = protocol.accuracy(hit[:, min(k, hit.shape[1]) - 1], queries[1])
                    rows.append({**row, "metric": f"top-{k}", **own, "dimensions": queries[0].shape[1]})
                if hit.shape[1] < KS[-1]:
                    notes.append(f"{level} level: only {hit.shape[1]} gallery items; larger k search them all")
                if network == "pretrained" and key == list(found[0].arrays)[-2] and level == "video":
                    shown = _neighbours(asking, searched, nearest_items)
    same = asking.first == searched.first
    for level, views in (("clip", 10), ("video", 1)):
        for k, value in chance(*targets, views, same).items():
            rows.append({"network": "chance", "level": level, "metric": f"top-{k}", "value": value})
    if value == 0:
        notes.append("no query has another video of its class in the gallery: nothing can be found")

    notes += seen(saved, shards if query is None else query, asking.source, asking.videos)
    counts = np.bincount(targets[1], minlength=len(classes))
    told = protocol.describe(
        saved,
        asking.source,
        backbone,
        mode=mode,
        views="10 clips of 16 frames",
        items=f"{len(asking.videos)} query and {len(searched.videos)} gallery videos",
        classes=len(classes),
        largest_class=round(100 * float((targets[0] == counts.argmax()).mean()), 1),
        gallery=searched.source.dataset,
    )
    result = {"protocol": told, "rows": rows, "notes": list(dict.fromkeys(notes)), "neighbours": shown}
    protocol.write(result, saved.run, "retrieval" if query is None else f"retrieval-{searched.source.dataset}-by")
    return result


def _one(source: data.Shards) -> tuple[Side, Side, str, list[str]]:
    test, train, mode, notes = protocol.parts(source)
    labels = np.array(source.text("videos/label"))
    if not (test & train).any():
        sides = (
            Side(source, np.flatnonzero(mask), labels[mask], first) for mask, first in ((test, 0), (train, len(test)))
        )
        return *sides, mode, notes
    side = Side(source, np.flatnonzero(test), labels[test])
    return side, side, mode, notes


def _two(asking: data.Shards, searched: data.Shards) -> tuple[Side, Side, str, list[str]]:
    queries, gallery = protocol.parts(asking)[0], protocol.parts(searched)[1]
    labels, theirs = (np.array(source.text("videos/label")) for source in (asking, searched))
    known = queries & np.isin(labels, theirs[gallery])
    if not known.any():
        raise TrainerError(f"{asking.dataset} and {searched.dataset} have no class in common")
    notes = [f"{(queries & ~known).sum()} queries left out, whose class {searched.dataset} lacks"] * bool(
        (queries & ~known).any()
    )
    query = Side(asking, np.flatnonzero(known), labels[known])
    return (
        query,
        Side(searched, np.flatnonzero(gallery), theirs[gallery], len(labels)),
        f"{_told(asking, queries)} against {_told(searched, gallery)}",
        notes,
    )


def _told(source: data.Shards, chosen: np.ndarray) -> str:
    names = {data.TRAIN: "train part", data.VALIDATION: "validation part", data.TEST: "test part"}
    first, *others = set(source.part[chosen])
    return f"{source.dataset} ({'all videos' if others else names.get(first, 'all videos')})"


def _neighbours(asking: Side, searched: Side, nearest_items: np.ndarray) -> list[dict]:
    """A few queries, evenly spread, with the videos found for them, by name and class."""
    names, theirs = asking.source.text("videos/id"), searched.source.text("videos/id")
    chosen = np.unique(np.linspace(0, len(asking.videos) - 1, _SHOWN).astype(int))
    return [
        {
            "query": names[asking.videos[q]],
            "label": str(asking.labels[q]),
            "nearest": [[theirs[searched.videos[g]], str(searched.labels[g])] for g in nearest_items[q, :5]],
        }
        for q in chosen
    ]


def hits(found: np.ndarray, query_video: np.ndarray, item_video: np.ndarray, targets: tuple) -> np.ndarray:
    """Whether one of the k nearest is of the query's class, bool [queries, k] for k = 1, 2, ..."""
    return np.logical_or.accumulate(targets[1][item_video[found]] == targets[0][query_video][:, None], axis=1)


def nearest(
    queries: tuple[np.ndarray, np.ndarray],
    gallery: tuple[np.ndarray, np.ndarray],
    k: int,
    device: torch.device,
    chunk: int = _CHUNK,
) -> np.ndarray:
    """The gallery items whose cosine to each query is largest, best first; of equals the one that stands first.

    queries, gallery: vectors float32 [n, d] of any length, and the video of each, int64 [n]: a query never finds an item
    of its own video. Returns indices into the gallery, int64 [queries, k]; fewer columns where there are fewer items for
    some query. Exact, in memory bounded by chunk.
    """
    own = np.bincount(gallery[1], minlength=max(queries[1].max(initial=0), gallery[1].max(initial=0)) + 1)
    k = min(k, len(gallery[1]) - int(own[queries[1]].max()))
    excluded = torch.iinfo(torch.int64).min
    found = np.empty((len(queries[1]), k), np.int64)
    for start in range(0, len(queries[1]), chunk):
        query, query_video = _chunk(queries, start, chunk, device)
        best = torch.full((len(query), k), excluded, device=device)
        for begin in range(0, len(gallery[1]), chunk):
            item, item_video = _chunk(gallery, begin, chunk, device)
            keys = _sort_keys(query @ item.T, begin)
            keys[query_video[:, None] == item_video] = excluded
            best = torch.cat([best, keys], 1).topk(k).values
        found[start : start + chunk] = 0xFFFFFFFF - (best & 0xFFFFFFFF).cpu().numpy()
    return found


def _chunk(items: tuple[np.ndarray, np.ndarray], begin: int, size: int, device: torch.device):
    vectors, video = (torch.from_numpy(np.array(array[begin : begin + size])).to(device) for array in items)
    return F.normalize(vectors, dim=1), video


def _sort_keys(similarity: torch.Tensor, first: int) -> torch.Tensor:
    """float32 [q, g] -> int64 keys that sort by similarity, then by position in the gallery, lowest first: topk leaves
    the order of equal values open."""
    bits = (similarity + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 and 0.0 the same
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # a float's bits, taken as an integer, sort like it
    position = first + torch.arange(similarity.shape[1], device=similarity.device)
    return (ordered << 32) | (0xFFFFFFFF - position)


def chance(query: np.ndarray, gallery: np.ndarray, views: int, same: bool) -> dict[int, float]:
    """Per cent of queries that a random order of the gallery would hit, by k (hypergeometric).

    query, gallery: classes of their videos, int64; same: they are the same videos, of which a query finds all others.
    """
    own = int(same)
    items = views * (len(gallery) - own)
    same_class = views * (np.bincount(gallery, minlength=query.max() + 1)[query] - own)
    drawn = np.arange(KS[-1])[:, None]
    step = np.maximum(items - same_class - drawn, 0) / np.maximum(items - drawn, 1)
    miss = np.cumprod(np.where(drawn < items, step, 1), axis=0)
    return {k: 100 * float(1 - miss[k - 1].mean()) for k in KS}


def format_table(result: dict) -> str:
    """The result of `retrieval` for the screen: one line per network, stage and pooling."""
    lines = protocol.header(result, "retrieval")
    lines += ["% hit among the k nearest, with the 95 % interval of k = 1"]
    rows = [{key: row[key] for key in row if key != "low" or row["metric"] == "top-1"} for row in result["rows"]]
    lines += protocol.table(rows, ("network", "stage", "pooling"), ("level", "metric"))
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
