"""What was trained, and how: the facts, the curves and the settings of a run as a part of its page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from labelgen.errors import ReadError
from labelgen.progress import duration
from labelgen.reading import read_text
from trainer import inputs
from trainer.checkpoint import IMPORTED
from trainer.evaluate.results import flat
from trainer.evaluate.splits import with_split
from trainer.pages import plots
from trainer.pages.page import details, facts, figure, grid, items, join, paragraph, table
from trainer.pages.plots import Series, number

_POINTS = 240  # of a curve at most; more steps are averaged
_NO_METRICS = ("step", "epoch", "lr", "data_ms", "compute_ms", "total_ms", "clips_per_s", "clips_share")
_RATE = "clips_per_s"
NEEDED = ("step", "epoch", "lr", "data_ms", "total_ms", _RATE)  # columns of every log.csv


def trained_html(
    meta: dict, log: dict[str, np.ndarray], held_out: dict[str, np.ndarray], damaged: Sequence[str]
) -> Markup:
    """Facts, curves and settings of a run.

    meta: of its checkpoint; log, held_out: from its log.csv and holdout.csv, see read_log; damaged: notes about them
    """
    settings, several = meta["settings"], len(meta["samples"]) > 1
    shown = {name: n * settings.get("repeats", 1) for name, n in meta["samples"].items()}
    samples = (f"{n:,} ({name})" if several else f"{n:,}" for name, n in shown.items())
    rows = [
        ("Data", f"{with_split(meta['dataset'], meta['split'])}, {meta['videos']:,} videos in the shards"),
        ("Samples per epoch", ", ".join(samples)),
        ("Budget", f"{settings['epochs']} epochs, {meta['steps']:,} steps of at most {settings['batch_size']} samples"),
        ("Optimiser", f"{settings['optimizer']}, learning rate {settings['lr']:g}, schedule {settings['schedule']}"),
        ("Seed", settings["seed"]),
        ("Made with", ", ".join(f"{key} {value}" for key, value in meta["environment"].items())),
    ]
    if initial := meta["initial"]:
        trained_on = with_split(initial["dataset"], initial["split"])
        by = f"{initial['settings']['method']} on {trained_on}, step {initial['step']:,}: {initial['file']}"
        if initial["settings"]["method"] == IMPORTED:
            by = f"imported weights, {initial['dataset']}: {initial['file']}"
        rows.insert(0, ("Started from", by))
    if own := meta.get("imported"):  # its training is unknown
        rows = [("Imported from", f"{own['file']}, SHA-256 {own['sha256']}"), ("Weights of", own["about"]), rows[-1]]
    rows.insert(-1, ("Input of the network", inputs.of_run(meta).described))
    if log:
        log = {
            **log,
            "total_ms": np.maximum(log["total_ms"], 0.1),
        }  # the log's resolution, since the times are weights of means
        spent, waited = duration(log["total_ms"].sum() / 1e3), log["data_ms"].sum() / log["total_ms"].sum()
        rows.append(("Time", f"{spent}, {100 * waited:.1f} % of it waiting for data"))
    out = [facts("The run", rows)]
    if damaged:
        out.append(items(damaged))
    if log:
        out.append(_curves(log, held_out))
    elif not damaged and not own:
        out.append(paragraph("No steps logged yet.", "muted"))
    out.append(details("All settings", table("Settings of the run", ("Setting", "Value"), flat(settings))))
    configuration = table("Configuration of the shards", ("Setting", "Value"), flat(meta["config"]))
    return join([*out, details("How the labels were made", configuration)])


def read_log(path: Path, needed: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], str]:
    """Columns of log.csv or holdout.csv, float64 [rows], and a text about what is damaged. No columns if the file is missing,
    cannot be read, lacks one of `needed` or has no complete row."""
    try:
        if not path.exists():
            return {}, ""
        head, *lines = [*csv.reader(read_text(path).splitlines())] or [[]]
    except (ReadError, csv.Error) as error:
        return {}, f"{path.name} cannot be read ({error})"
    missing = [name for name in needed if name not in head]
    if missing and head:
        return {}, f"{path.name} is damaged: it has no column {', '.join(missing)}"
    rows = [row for row in map(_numbers, lines) if len(row) == len(head)]
    left = len(lines) - len(rows)
    note = f"{path.name}: {left} of {len(lines)} rows are damaged and left out" if left else ""
    return dict(zip(head, np.array(rows).T, strict=False)), note


def _numbers(line: Sequence[str]) -> list[float]:
    """Numbers of a line; none if one of them cannot be drawn."""
    try:
        numbers = [float(text) for text in line]
    except ValueError:
        return []
    return numbers if all(abs(number) < 1e30 for number in numbers) else []


def binned(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None, points: int = _POINTS
) -> tuple[np.ndarray, ...]:
    """At most `points` points of a curve float [n]: the last x and the (weighted) mean, smallest and largest y of each."""
    parts = np.array_split(np.arange(len(x)), min(len(x), points))
    weights = np.ones(len(x)) if weights is None else weights
    found = [(x[p[-1]], np.average(y[p], weights=weights[p]), y[p].min(), y[p].max()) for p in parts]
    return tuple(np.array(column) for column in zip(*found, strict=True))


def _curves(log: dict, held_out: dict) -> Markup:
    metrics = [name for name in log if name not in _NO_METRICS and not name.endswith("chance")]
    main = [name for name in metrics if name.split(".")[-1] in ("loss", "accuracy")]
    several = len(log["step"]) > _POINTS
    kinds = [("line", "training, mean and range of several steps" if several else "training")]
    if held_out:
        kinds.append(("dots", "held-out videos"))
    if any("chance" in name for name in log):
        kinds.append(("level", "chance"))
    out = [plots.legend(kinds), grid((curve(name, log, held_out) for name in (*main, "lr", _RATE)), "small")]
    if "clips_share" in log:  # there is a curriculum
        share = log["clips_share"]
        easier = f"the first {(share < 1).sum():,} steps used only easier clips, {100 * share.min():.0f} % of all clips at first."
        out.append(paragraph(f"Curriculum: {easier}"))
    others = [name for name in metrics if name not in main]
    if others:
        out.append(details("More curves", grid((curve(name, log, held_out) for name in others), "small")))
    return join([*out, details("Numbers by epoch", _by_epoch(log, held_out))])


def curve(name: str, log: dict, held_out: dict) -> Markup:
    """Plot of a column of log.csv, together with that of the held-out videos and chance; log, held_out: see read_log."""
    share = name.endswith("accuracy")
    scale, weights = 100 if share else 1, log["total_ms"] if name == _RATE else None
    x, mean, low, high = binned(log["step"], scale * log[name], weights)
    series = [Series("training", x, mean, "line", *((low, high) if len(log["step"]) > len(x) else ()))]
    label = f"{name} over {len(log['step']):,} steps, from {number(mean[0])} to {number(mean[-1])}"
    if name in held_out and name != "lr":
        series.append(Series("held-out videos", held_out["step"], scale * held_out[name], "dots"))
        label += (
            f"; on held-out videos from {number(scale * held_out[name][0])} to {number(scale * held_out[name][-1])}"
        )
    chance = name.removesuffix("accuracy") + "chance"
    if share and chance in log:
        x, mean, *_ = binned(log["step"], scale * log[chance])
        series.append(Series("chance", x, mean, "level"))
        label += f"; chance is {number(mean[-1])}"
    title = {"lr": "learning rate", _RATE: "clips per second"}.get(name, name.replace("_", " "))
    if share:
        title += ", %"
    return figure(title, plots.lines(series, label, zero=share or name in ("lr", _RATE)))


def _by_epoch(log: dict, held_out: dict) -> Markup:
    names = [name for name in log if name not in _NO_METRICS or name in ("lr", _RATE)]
    scored = [name for name in held_out if name in ("loss", "accuracy")]
    rows = []
    for epoch in np.unique(log["epoch"]):
        steps = log["epoch"] == epoch
        weights = {_RATE: log["total_ms"][steps]}
        means = [np.average(log[name][steps], weights=weights.get(name)) for name in names]
        last = log["step"][steps][-1]
        scores = [
            number(held_out[name][held_out["step"] == last][0]) for name in scored if (held_out["step"] == last).any()
        ]
        scores += [""] * (len(scored) - len(scores))
        rows.append([f"{epoch + 1:.0f}", f"{last:,.0f}", *map(number, means), *scores])
    head = ["Epoch", "Last step", *names, *(f"held-out {name}" for name in scored)]
    return table("Means over the steps of each epoch", head, rows, range(len(head)))
