"""What all protocols share: which videos are compared, what is told with every number, intervals, tables and files.

A result is a plain dict: "protocol" (how it was measured), "rows" and "notes", and what else a protocol has to tell. A row
is one number: what it belongs to ("network", "stage", ...), "metric", "value" in per cent, and "low", "high", the ends
of its 95 % interval by video, where it is an accuracy.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path

import numpy as np

from labelgen.files import write_json, write_text
from trainer import data
from trainer.checkpoint import Checkpoint, load, newest_run, versions
from trainer.errors import TrainerError

RESAMPLES = 1000


def open_checkpoint(path: str | os.PathLike | None) -> Checkpoint:
    """A run, checkpoint folder or .safetensors file; None: the newest run."""
    return load(newest_run() if path is None else path, best=True)


def open_shards(saved: Checkpoint, shards: str | os.PathLike, split: str | int | None) -> data.Shards:
    """The data set, seen through the split asked for; by default, on the data set that the run was trained on, through the
    run's own: the test videos of another one were among its training videos."""
    source = data.Shards(shards, split)
    if split is None and source.dataset == saved.meta["dataset"] and saved.meta["split"] not in (None, source.split):
        return data.Shards(shards, saved.meta["split"])
    return source


def parts(source: data.Shards) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Masks bool [videos] of the labelled videos that are tested and of those learnt from (or searched), how they were
    chosen, and notes for the reader.

    The split's test part, else its validation part, and its training part. Where there are no two such parts both masks
    are all labelled videos: a protocol then leaves one video, or one group of videos, out at a time. Raises TrainerError
    when there are no labels.
    """
    labelled = source.targets >= 0
    if not labelled.any():
        raise TrainerError(f"{source.dataset}: its videos have no class labels, which this protocol needs")
    train = labelled & (source.part == data.TRAIN)
    for name, value in (("test", data.TEST), ("validation", data.VALIDATION)):
        test = labelled & (source.part == value)
        if test.any() and train.any():
            unused = np.count_nonzero(~labelled & np.isin(source.part, (data.TRAIN, value)))
            return test, train, f"{name} part against train part", _left_out(unused)
    if labelled.sum() < 2:
        raise TrainerError(f"{source.dataset}: only one labelled video, there is nothing to compare it with")
    return labelled, labelled, "each video against all others", _left_out(np.count_nonzero(~labelled))


def _left_out(videos: int) -> list[str]:
    return [f"{videos} videos without label left out"] if videos else []


def describe(saved: Checkpoint, source: data.Shards, backbone, **own) -> dict:
    """What is told with every number: data set, split, pretraining and its budget, seed, parameters, versions."""
    meta, settings = saved.meta, saved.meta["settings"]
    pretraining = {
        "method": settings["method"],
        "options": settings["options"],
        "dataset": meta["dataset"],
        "split": meta["split"],
        "samples": meta["samples"],
        "steps": meta["step"],
        "steps_planned": meta["steps"],
        "epochs": settings["epochs"],
        "batch_size": settings["batch_size"],
        "seed": settings["seed"],
    }
    return {
        "dataset": source.dataset,
        "split": source.split,
        **own,
        "crop": source.config["crop"],
        "config_hash": source.config_hash,
        "pretraining": pretraining,
        "initial": meta.get("initial"),
        "backbone": settings["backbone"],
        "width": settings["width"],
        "parameters": sum(weight.numel() for weight in backbone.parameters()),
        "checkpoint": str(saved.file),
        "versions": versions(),
    }


def accuracy(hit: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Per cent of items that hit (bool [n], owner int [n] the video of each), with its `interval`: "value", "low", "high"."""
    _, owner = np.unique(owner, return_inverse=True)
    hits, items = np.bincount(owner, hit), np.bincount(owner)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(items), size=len(items)) for _ in range(RESAMPLES)]
    means = [100 * hits[videos].sum() / items[videos].sum() for videos in drawn]
    return interval(100 * float(np.mean(hit)), means, len(items))


def interval(value: float, means: list[float], videos: int) -> dict[str, float]:
    """A value in per cent with its 95 % interval, "low" to "high", by the values of RESAMPLES draws of its videos; where all
    are the same, as of videos that are all right, the Wilson interval [Wilson, 1927] of as many videos."""
    low, high = map(float, np.percentile(means, (2.5, 97.5)))
    if low == high:
        low, high = 100 * _wilson(value / 100, videos), 100 - 100 * _wilson(1 - value / 100, videos)
    return {"value": value, "low": low, "high": high}


def _wilson(share: float, n: int) -> float:
    """Lower end of the 95 % interval of a share of n."""
    z = 1.96**2 / n
    return (share + z / 2 - math.sqrt(share * (1 - share) * z + z * z / 4)) / (1 + z)


def shown(row: dict) -> str:
    """The value of a row, with its interval where it has one: 69.1 [64.0, 73.8]."""
    return f"{row['value']:.1f}" + (f" [{row['low']:.1f}, {row['high']:.1f}]" if "low" in row else "")


def write(result: dict, run: Path, name: str) -> None:
    """Write <run>/results/<name>-<data set>[-split].json, and its rows as .csv beside it; result["file"] is then its path."""
    protocol = result["protocol"]
    parts = [name, protocol["dataset"], protocol["split"]]
    folder = run / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "-".join(str(part).replace("/", "_") for part in parts if part)
    columns = list(dict.fromkeys(column for row in result["rows"] for column in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(result["rows"])
    write_text(folder / f"{stem}.csv", text.getvalue())
    write_json(folder / f"{stem}.json", result)
    result["file"] = str(folder / f"{stem}.json")


def header(result: dict, title: str) -> list[str]:
    """The protocol in words, for the screen."""
    p = result["protocol"]
    source = p["pretraining"]
    lines = [f"{title} on {p['dataset']}" + f", split {p['split']}" * bool(p["split"])]
    told = ("mode", "views", "classes", "items", "largest_class")
    lines += ["; ".join(f"{key.replace('_', ' ')}: {p[key]}" for key in told if key in p)]
    lines.append(
        f"{p['backbone']} (width {p['width']:g}, {p['parameters']:,} parameters), {source['method']} on "
        f"{source['dataset']}, {source['steps']} of {source['steps_planned']} steps, seed {source['seed']}"
    )
    return [*lines, ""]


def table(rows: list[dict], index: tuple[str, ...], columns: tuple[str, ...]) -> list[str]:
    """Lines of a table for the screen: one line per combination of the index keys, one column per combination of the
    column keys, values as `shown`."""
    names = list(dict.fromkeys(tuple(row.get(key, "") for key in columns) for row in rows))
    lines: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        place = tuple(str(row.get(key, "")) for key in index)
        lines.setdefault(place, {})[tuple(row.get(key, "") for key in columns)] = shown(row)
    body = [[*place, *(cells.get(name, "") for name in names)] for place, cells in lines.items()]
    heads = [[*index, *(str(name[level]) for name in names)] for level in range(len(columns))]
    for head in heads[:-1]:  # a name that spans several columns stands over the first of them
        head[: len(index)] = [""] * len(index)
        head[len(index) :] = [
            "" if i and names[i][:1] == names[i - 1][:1] else cell for i, cell in enumerate(head[len(index) :])
        ]
    grid = [*heads, *body]
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < len(index) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in grid
    ]
