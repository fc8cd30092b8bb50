"""Retrieval: is a video's nearest neighbour in feature space of its class?

Protocol of Xu et al., CVPR 2019: 10 clips per video, cosine; a query is a hit when any of its k nearest gallery items
is of its class. Reported beside the network with random weights, and what a random order would hit.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from trainer import data, distributed
from trainer.checkpoint import load, newest_run, versions, write_json
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.settings import WORKERS

KS = (1, 5, 10, 20, 50)
_CHUNK = 4096  # queries x gallery items compared at a time


def retrieval(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    batch_size: int = 32,
    workers: int = WORKERS,
    device: str = "auto",
) -> dict:
    """Retrieval accuracy of a checkpoint's backbone on a labelled data set; also written as JSON into the run's folder.

    checkpoint: run, checkpoint folder or .safetensors file, None for the newest run.
    Gallery: the training part of the split; queries: its test part, else its validation part. Where there are no two
    such parts, every labelled video queries all others.

    Returns {"protocol", "rows", "notes"}; a row is one network, stage, pooling and level with "top", per cent of
    queries hit by k. Raises TrainerError when there are no labels, ShardError, or what checkpoint.load raises.
    """
    saved = load(newest_run() if checkpoint is None else checkpoint)
    device = distributed.pick_device(device)
    source = data.Shards(shards, split)
    labels = np.array(source.text("videos/label"))
    query, gallery, protocol, notes = _parts(source, labels)
    used = np.flatnonzero(query | gallery)
    classes, targets = np.unique(labels[used], return_inverse=True)
    query, gallery = query[used], gallery[used]

    rows = []
    for network, backbone in features.backbones(saved).items():
        with tempfile.TemporaryDirectory(prefix=".features-", dir=saved.run) as folder:
            extracted = features.extract(
                backbone, source, source.videos[used], Path(folder), batch_size, workers, device
            )
            for (stage, pooling), clips in extracted.items():
                for level, vectors in (("clip", clips), ("video", video_features(clips)[:, None])):
                    top, k_max = accuracy(vectors, targets, query, gallery, device)
                    row = {"network": network, "stage": stage, "pooling": pooling, "level": level}
                    rows.append({**row, "dimensions": vectors.shape[2], "top": top})
                    if k_max < KS[-1]:
                        notes.append(f"{level} level: only {k_max} gallery items; larger k search them all")
    for level, views in (("clip", features.VIEWS), ("video", 1)):
        rows.append({"network": "chance", "level": level, "top": chance(targets, query, gallery, views)})

    settings = saved.meta["settings"]
    result = {
        "protocol": {
            "dataset": source.dataset,
            "split": source.split,
            **protocol,
            "queries": int(query.sum()),
            "gallery": int(gallery.sum()),
            "classes": len(classes),
            "majority": 100 * float((targets[query] == np.bincount(targets[gallery]).argmax()).mean()),
            "views": f"{features.VIEWS} clips of {data.CLIP_LENGTH} frames, centre crop {source.config['crop']}",
            "pretraining": {
                "method": settings["method"],
                "dataset": saved.meta["dataset"],
                "split": saved.meta["split"],
                "samples": saved.meta["samples"],
                "steps": saved.meta["step"],
                "steps_planned": saved.meta["steps"],
                "batch_size": settings["batch_size"],
                "seed": settings["seed"],
            },
            "backbone": settings["backbone"],
            "width": settings["width"],
            "parameters": sum(weight.numel() for weight in backbone.parameters()),
            "checkpoint": str(saved.file),
            "versions": versions(),
        },
        "rows": rows,
        "notes": list(dict.fromkeys(notes)),
    }
    write_json(saved.run / f"retrieval-{source.dataset}.json", result)
    return result


def _parts(source: data.Shards, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict, list[str]]:
    """Masks bool [videos] of queries and gallery, how they were chosen, and notes for the reader."""
    labelled = labels != ""
    if not labelled.any():
        raise TrainerError(f"{source.dataset}: its videos have no class labels, which retrieval needs")
    gallery = labelled & (source.part == data.TRAIN)
    for name, value in (("test", data.TEST), ("validation", data.VALIDATION)):
        query = labelled & (source.part == value)
        if query.any() and gallery.any():
            unused = np.count_nonzero(~labelled & np.isin(source.part, (data.TRAIN, value)))
            notes = [f"{unused} videos without label left out"] if unused else []
            return query, gallery, {"mode": f"{name} part searches train part"}, notes
    if labelled.sum() < 2:
        raise TrainerError(f"{source.dataset}: only one labelled video, there is nothing to search")
    unused = np.count_nonzero(~labelled)
    notes = [f"{unused} videos without label left out"] if unused else []
    return labelled, labelled, {"mode": "each video searches all others"}, notes


def video_features(clips: np.ndarray) -> np.ndarray:
    """L2-normalised clips [videos, views, d] -> their mean, L2-normalised again, float32 [videos, d]."""
    mean = clips.mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def accuracy(
    vectors: np.ndarray, targets: np.ndarray, query: np.ndarray, gallery: np.ndarray, device: torch.device
) -> tuple[dict[str, float], int]:
    """Per cent of queries with an item of their class among the k nearest, by k, and the largest k there is.

    vectors: L2-normalised float32 [videos, views, d]; targets int64, query and gallery bool [videos]. A query never
    finds a view of its own video.
    """
    videos, views, _ = vectors.shape
    owner = np.repeat(np.arange(videos), views)
    queries, items = np.flatnonzero(query[owner]), np.flatnonzero(gallery[owner])
    k_max = min(KS[-1], len(items) - views * bool((query & gallery).any()))
    found = nearest(vectors.reshape(videos * views, -1), owner, queries, items, k_max, device)
    hit = np.logical_or.accumulate(targets[owner[found]] == targets[owner[queries]][:, None], axis=1)
    if len(hit) != query.sum() * views:
        raise AssertionError(f"{query.sum() * views} queries in, {len(hit)} out")
    return {str(k): 100 * float(hit[:, min(k, k_max) - 1].mean()) for k in KS}, k_max


def nearest(
    vectors: np.ndarray,
    owner: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    device: torch.device,
    chunk: int = _CHUNK,
) -> np.ndarray:
    """The k gallery items most similar to each query, best first; of equals the one that stands first.

    vectors: float32 [n, d]; owner: int [n], a query never finds an item of its own owner; queries, gallery: int64
    indices into vectors. Returns indices int64 [queries, k]. Exact, in memory bounded by chunk.
    """
    excluded = torch.iinfo(torch.int64).min
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), chunk):
        mine = queries[start : start + chunk]
        query = torch.from_numpy(vectors[mine]).to(device)
        best = torch.full((len(mine), k), excluded, device=device)
        for begin in range(0, len(gallery), chunk):
            theirs = gallery[begin : begin + chunk]
            keys = _sort_keys(query @ torch.from_numpy(vectors[theirs]).to(device).T, begin)
            keys[torch.from_numpy(owner[mine][:, None] == owner[theirs]).to(device)] = excluded
            best = torch.cat([best, keys], 1).topk(k).values
        found[start : start + chunk] = gallery[0xFFFFFFFF - (best & 0xFFFFFFFF).cpu().numpy()]
    return found


def _sort_keys(similarity: torch.Tensor, first: int) -> torch.Tensor:
    """float32 [q, g] -> int64 keys that sort by similarity, then by position in the gallery, lowest first: topk leaves
    the order of equal values open."""
    bits = (similarity + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 and 0.0 the same
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # a float's bits, taken as an integer, sort like it
    position = first + torch.arange(similarity.shape[1], device=similarity.device)
    return (ordered << 32) | (0xFFFFFFFF - position)


def chance(targets: np.ndarray, query: np.ndarray, gallery: np.ndarray, views: int) -> dict[str, float]:
    """Per cent of queries that a random order of the gallery would hit, by k (hypergeometric)."""
    own = (query & gallery)[query]
    items = views * (gallery.sum() - own)
    same = views * (np.bincount(targets[gallery], minlength=targets.max() + 1)[targets[query]] - own)
    drawn = np.arange(KS[-1])[:, None]
    step = np.maximum(items - same - drawn, 0) / np.maximum(items - drawn, 1)
    miss = np.cumprod(np.where(drawn < items, step, 1), axis=0)
    return {str(k): 100 * float(1 - miss[k - 1].mean()) for k in KS}


def format_table(result: dict) -> str:
    """The result of `retrieval` for the screen: one line per network, stage and pooling."""
    p = result["protocol"]
    source = p["pretraining"]
    lines = [
        f"retrieval on {p['dataset']}" + f", split {p['split']}" * bool(p["split"]) + f": {p['mode']}",
        f"{p['queries']} query and {p['gallery']} gallery videos of {p['classes']} classes; {p['views']}; "
        f"largest class {p['majority']:.1f} %",
        f"{p['backbone']} (width {p['width']:g}, {p['parameters']:,} parameters), {source['method']} on "
        f"{source['dataset']}, {source['steps']} of {source['steps_planned']} steps, seed {source['seed']}",
        "",
        "% hit among the k nearest        clip level" + " " * 25 + "video level",
        f"{'network':<11}{'stage':<7}{'pooling':<9}"
        + "   ".join("".join(f"{f'k={k}':>6}" for k in KS) for _ in range(2)),
    ]
    groups: dict[tuple, dict[str, dict]] = {}
    for row in result["rows"]:
        key = row["network"], row.get("stage", ""), row.get("pooling", "")
        groups.setdefault(key, {})[row["level"]] = row["top"]
    for (network, stage, pooling), levels in groups.items():
        numbers = "   ".join("".join(f"{levels[level][str(k)]:6.1f}" for k in KS) for level in ("clip", "video"))
        lines.append(f"{network:<11}{stage:<7}{pooling:<9}{numbers}")
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])
