"""A run as one HTML page: what was trained and on what, what it is worth, and what is missing."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from labelgen.files import write_text
from labelgen.shards import ShardReader, open_shards
from trainer import checkpoint, plots
from trainer.page import Html, details, facts, figure, grid, html, image, items, page, paragraph, picture, scroll, table
from trainer.plots import Series, number
from trainer.published import published_html
from trainer.results import TITLES, Result, beside, classes_html, flat, headline, read_results, result_html

_POINTS = 240  # of a curve at most; more steps are averaged
_QUERIES = 12
_NO_METRICS = ("step", "epoch", "lr", "data_ms", "compute_ms", "total_ms", "clips_per_s", "easier_half")
_RATE = "clips_per_s"


@dataclass(frozen=True)
class Sheet:
    """A picture for the page, RGB uint8 [H, W, 3], with what it shows in words."""

    caption: str
    alt: str
    picture: np.ndarray


@dataclass(frozen=True)
class _Run:
    """All that the page is made of; name: the run as the user calls it; readers: of the shards, by data set."""

    saved: checkpoint.Checkpoint
    name: str
    results: list[Result]
    shards: Sequence[str | os.PathLike]
    readers: dict[str, list[ShardReader]]
    log: dict[str, np.ndarray]
    held: dict[str, np.ndarray]
    labels: Sequence[Sheet]
    curriculum: Sheet | None


def report(
    run: str | os.PathLike,
    shards: Sequence[str | os.PathLike] = (),
    labels: Sequence[Sheet] = (),
    curriculum: Sheet | None = None,
) -> tuple[Path, list[str]]:
    """Write <run>/report.html, one file that needs no network, and return its path, and notes: what of the run is damaged
    and left out, which of the shards are not used.

    run: name or folder; shards: of the data sets whose videos are shown; labels, curriculum: sheets of the
    shards that the run was trained on. Recognition results of runs beside it that started from it are shown, too.

    Raises TrainerError where there is no run, ShardError for shards that cannot be read.
    """
    saved = checkpoint.load(run, best=True)
    results, damaged = read_results(saved.run)
    for folder in _started_from(saved.run):
        finetuned, others = read_results(folder)
        results += [result for result in finetuned if result.name == "recognition"]
        damaged += others
    needed = ("step", "epoch", "lr", "data_ms", "total_ms", _RATE)
    needed += ("easier_half",) * bool(saved.meta["settings"]["curriculum"])
    (log, cut), (held, gaps) = read_log(saved.run / "log.csv", needed), read_log(saved.run / "holdout.csv", ("step",))
    gaps = [told for told in (cut, gaps) if told]
    opened = {str(folder): open_shards(folder) for folder in shards}
    readers = {own[0].config["dataset"]: own for own in opened.values()}
    of = _Run(saved, str(run), results, shards, readers, log, held, labels, curriculum)
    measured = "".join(_result(of, result) for result in results if result.name != "attention")
    about = paragraph(
        "Values are per cent; behind them, and as lines in the plots, stand 95 % intervals by test video."
    )
    published = published_html(saved.meta["settings"], saved.meta["initial"], results)
    sections = [
        ("trained", "What was trained", _trained(of, gaps)),
        ("results", "Results", (about if measured else "") + measured + (items(damaged) if damaged else "")),
        ("neighbours", "Nearest neighbours", "".join(_neighbours(of, result) for result in results)),
        ("attention", "Attention", "".join(_attention(of, result) for result in results)),
        ("classes", "Classes", "".join(map(classes_html, results))),
        ("published", "Published numbers", published),
        ("labels", "Labels of the shards", _labels(of)),
        ("missing", "What is not here", _missing(of, bool(published))),
    ]
    settings, meta = saved.meta["settings"], saved.meta
    lead = (
        f"{settings['method']} with {settings['backbone']}, width {settings['width']:g}, {parameters(saved):,} parameters; "
        f"step {meta['step']:,} of {meta['steps']:,} on {_data(meta)}"
    )
    foot = "Made by vssl {vssl}, Python {python}, torch {torch}.".format(**checkpoint.versions())
    saved.run.mkdir(parents=True, exist_ok=True)  # a checkpoint that stands alone has no folder yet
    path = saved.run / "report.html"
    write_text(path, page(saved.run.resolve().name, lead, _tiles(of), [s for s in sections if s[2]], foot))
    return path, [*gaps, *damaged, *_unused(of, opened)]


def _unused(run: _Run, opened: dict[str, list[ShardReader]]) -> list[str]:
    """Notes on shards, by folder, from which nothing can be on the page."""
    shown = [result.protocol for result in run.results if result.content.get("neighbours")]
    datasets = {p[key] for p in shown for key in ("dataset", "gallery") if key in p}
    used = [id(own) for dataset, own in run.readers.items() if dataset in datasets]
    return [
        f"{folder} is not used: the page shows no videos of {own[0].config['dataset']} from there, and the run was not "
        "trained on this configuration of shards"
        for folder, own in opened.items()
        if own[0].config_hash != run.saved.meta["config_hash"] and id(own) not in used
    ]


def _started_from(run: Path) -> list[Path]:
    """Runs beside this one whose training started from one of its checkpoints."""
    own, found = run.resolve(), []
    for path in sorted(own.parent.glob("*/checkpoints/[0-9]*/checkpoint.json")):
        try:
            initial = Path(json.loads(path.read_text())["initial"]["file"]).resolve()
        except (OSError, ValueError, LookupError, TypeError):
            continue  # from random weights; or another run's damage, of which its own report tells
        if own in initial.parents:
            found.append(path.parents[2])
    return found


def parameters(saved: checkpoint.Checkpoint) -> int:
    """Trainable parameters of a checkpoint's backbone."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = checkpoint.backbone_weights(saved)
    return sum(weight.numel() for name, weight in weights.items() if not name.endswith(statistics))


def _data(meta: dict) -> str:
    return meta["dataset"] + f", split {meta['split']}" * bool(meta["split"])


def _tiles(run: _Run) -> Html:
    """The first numbers to look at."""
    tiles, log, held = [], run.log, run.held
    if "accuracy" in (held or log):
        last = (held or log)["accuracy"][-1 if held else -max(1, len(log["step"]) // 10) :]
        told = "held-out videos" if held else "last tenth of the training"
        chance = f"guessing {100 * (held or log)['chance'][-1]:.1f}" if "chance" in (held or log) else ""
        tiles.append((f"Accuracy in training, {told}", f"{100 * last.mean():.1f} %", chance))
    for result in run.results:
        if row := headline(result):
            named = ", ".join(str(row[key]) for key in ("metric", "level", "stage", "pooling") if key in row)
            others = (f"{name} {value:.1f}" for name, value in beside(result, row).items())
            told = " · ".join([f"95 %: {row['low']:.1f} to {row['high']:.1f}", *others])
            of = f" ({result.run.name})" * (result.run != run.saved.run)
            tiles.append((f"{result.title}{of}: {named}", f"{row['value']:.1f} %", told))
    cells = (f"<li><span>{html(a)}</span><strong>{html(b)}</strong><small>{html(c)}</small></li>" for a, b, c in tiles)
    return Html(f'<ul class="tiles">{"".join(cells)}</ul>\n' if tiles else "")


# --- what was trained


def _trained(run: _Run, damaged: Sequence[str]) -> Html:
    meta, settings, log = run.saved.meta, run.saved.meta["settings"], run.log
    samples = (f"{n:,}" + f" ({name})" * (len(meta["samples"]) > 1) for name, n in meta["samples"].items())
    told = [
        ("Data", f"{_data(meta)}, {meta['videos']:,} videos in the shards"),
        ("Samples per epoch", ", ".join(samples)),
        ("Budget", f"{settings['epochs']} epochs, {meta['steps']:,} steps of at most {settings['batch_size']} samples"),
        ("Optimiser", f"{settings['optimizer']}, learning rate {settings['lr']:g}, schedule {settings['schedule']}"),
        ("Seed", settings["seed"]),
        ("Made with", ", ".join(f"{key} {value}" for key, value in meta["environment"].items())),
    ]
    if initial := meta["initial"]:
        by = f"{initial['settings']['method']} on {_data(initial)}, step {initial['step']:,}: {initial['file']}"
        told.insert(0, ("Started from", by))
    if log:
        log["total_ms"] = np.maximum(log["total_ms"], 0.1)  # what the log resolves: means are weighted with it
        minutes, waited = log["total_ms"].sum() / 6e4, log["data_ms"].sum() / log["total_ms"].sum()
        spent = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
        told.append(("Time", f"{spent}, {100 * waited:.1f} % of it waiting for data"))
    out = facts("The run", told) + (items(damaged) if damaged else "")
    if log:
        out += _curves(log, run.held, settings["curriculum"])
    elif not damaged:
        out += paragraph("No step is logged yet.", "muted")
    out += details("All settings", table("Settings of the run", ("Setting", "Value"), flat(settings)))
    configuration = table("Configuration of the shards", ("Setting", "Value"), flat(meta["config"]))
    return Html(out + details("How the labels were made", configuration))


def read_log(path: Path, needed: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], str]:
    """Columns of log.csv or holdout.csv, float64 [rows], and what of it is damaged, in words. No columns where the file is
    missing, cannot be read, lacks one of `needed` or has no whole row."""
    try:
        with open(path, newline="") as file:
            head, *lines = [*csv.reader(file)] or [[]]
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, csv.Error) as error:
        return {}, f"{path.name} cannot be read ({error})"
    missing = [name for name in needed if name not in head]
    if missing and head:
        return {}, f"{path.name} is damaged: it has no column {', '.join(missing)}"
    rows = [row for row in map(_numbers, lines) if len(row) == len(head)]
    left = len(lines) - len(rows)
    told = f"{path.name}: {left} of {len(lines)} rows are damaged and left out" if left else ""
    return dict(zip(head, np.array(rows).T, strict=False)), told


def _numbers(line: Sequence[str]) -> list[float]:
    """Numbers of a line; none where one of them is no number that can be drawn."""
    try:
        numbers = [float(text) for text in line]
    except ValueError:
        return []
    return numbers if all(abs(number) < 1e30 for number in numbers) else []


def binned(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Of a curve float [n] at most 240 points: the last x, the (weighted) mean, the smallest and the largest y of each."""
    parts = np.array_split(np.arange(len(x)), min(len(x), _POINTS))
    weights = np.ones(len(x)) if weights is None else weights
    points = [(x[p[-1]], np.average(y[p], weights=weights[p]), y[p].min(), y[p].max()) for p in parts]
    return tuple(np.array(column) for column in zip(*points, strict=True))


def _curves(log: dict, held: dict, curriculum: float) -> Html:
    metrics = [name for name in log if name not in _NO_METRICS and not name.endswith("chance")]
    main = [name for name in metrics if name.split(".")[-1] in ("loss", "accuracy")]
    several = len(log["step"]) > _POINTS
    kinds = [("line", "training" + ", mean and range of several steps" * several)]
    kinds += [("dots", "held-out videos")] * bool(held) + [("level", "guessing")] * any(
        "chance" in name for name in log
    )
    out = plots.legend(kinds) + grid((_curve(name, log, held) for name in (*main, "lr", _RATE)), "small")
    if curriculum:
        easier = int(log["easier_half"].sum())
        out += paragraph(f"Curriculum: the first {easier:,} steps saw the easier half of the clips only.")
    others = [name for name in metrics if name not in main]
    if others:
        out += details("More curves", grid((_curve(name, log, held) for name in others), "small"))
    return Html(out + details("Numbers by epoch", _by_epoch(log, held)))


def _curve(name: str, log: dict, held: dict) -> Html:
    share = name.endswith("accuracy")
    scale, weights = 100 if share else 1, log["total_ms"] if name == _RATE else None
    x, mean, low, high = binned(log["step"], scale * log[name], weights)
    series = [Series("training", x, mean, "line", *((low, high) if len(log["step"]) > len(x) else ()))]
    told = f"{name} over {len(log['step']):,} steps, from {number(mean[0])} to {number(mean[-1])}"
    if name in held and name != "lr":
        series.append(Series("held-out videos", held["step"], scale * held[name], "dots"))
        told += f"; on held-out videos from {number(scale * held[name][0])} to {number(scale * held[name][-1])}"
    chance = name.removesuffix("accuracy") + "chance"
    if share and chance in log:
        x, mean, *_ = binned(log["step"], scale * log[chance])
        series.append(Series("guessing", x, mean, "level"))
        told += f"; guessing gives {number(mean[-1])}"
    title = {"lr": "learning rate", _RATE: "clips per second"}.get(name, name.replace("_", " ")) + ", %" * share
    return figure(title, plots.lines(series, told, zero=share or name in ("lr", _RATE)))


def _by_epoch(log: dict, held: dict) -> Html:
    names = [name for name in log if name not in _NO_METRICS or name in ("lr", _RATE)]
    scored = [name for name in held if name in ("loss", "accuracy")]
    rows = []
    for epoch in np.unique(log["epoch"]):
        own = log["epoch"] == epoch
        weights = {_RATE: log["total_ms"][own]}
        means = [np.average(log[name][own], weights=weights.get(name)) for name in names]
        last = log["step"][own][-1]
        scores = [number(held[name][held["step"] == last][0]) for name in scored if (held["step"] == last).any()]
        scores += [""] * (len(scored) - len(scores))
        rows.append([f"{epoch + 1:.0f}", f"{last:,.0f}", *map(number, means), *scores])
    head = ["Epoch", "Last step", *names, *(f"held-out {name}" for name in scored)]
    return table("Means over the steps of each epoch", head, rows, range(len(head)))


def _labels(run: _Run) -> Html:
    out = ""
    if run.labels:
        out += "<h3>A few clips</h3>" + "".join(map(_sheet, run.labels))
    if run.curriculum is not None:
        out += "<h3>From easy to hard</h3>" + _sheet(run.curriculum)
    return Html(out)


def _sheet(sheet: Sheet) -> Html:
    return figure(sheet.caption, scroll(sheet.caption, picture(sheet.picture, sheet.alt)))


# --- what it is worth


def _result(run: _Run, result: Result) -> Html:
    own = result.run.resolve() == run.saved.run.resolve()
    out = result_html(result, "" if own else f", finetuned as {result.run.name}")
    step = result.protocol["pretraining"]["steps"]
    if own and step != run.saved.meta["step"]:
        out += paragraph(f"Measured at step {step:,}; the checkpoint is now that of step {run.saved.meta['step']:,}.")
    return Html(out)


def _neighbours(run: _Run, result: Result) -> Html:
    shown = result.content.get("neighbours")
    if not shown:
        return Html()
    chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, _QUERIES).astype(int))]
    about = (
        f"{len(chosen)} of the queries, spread evenly over all, each with the five videos found first. "
        "A solid frame and ✓: of the query's class. A dashed frame and ✗: of another class."
    )
    p = result.protocol
    sides = [_middle_frames(run.readers.get(name, ())) for name in (p["dataset"], p.get("gallery", p["dataset"]))]
    queries = "".join(_query(query, *sides) for query in chosen)
    return Html(f'<h3>{html(result.title)}</h3>{paragraph(about)}<ul class="found">{queries}</ul>\n')


def _middle_frames(readers: Sequence[ShardReader]) -> Callable[[str, str], Html]:
    """(id, alternative text) -> the middle frame of a video, or a blank where its shards are not given."""
    places = {name: (reader, row) for reader in readers for row, name in enumerate(reader.arrays["videos/id"])}

    def show(name: str, alt: str) -> Html:
        if name not in places:
            return Html(f'<span class="blank" role="img" aria-label="{html(alt)}"></span>')
        reader, row = places[name]
        middle = reader.arrays["videos/first_frame"][row] + reader.arrays["videos/n_frames"][row] // 2
        return image(reader.jpeg(int(middle)).tobytes(), "jpeg", alt, reader.frame_size)

    return show


def _query(query: dict, of_queries: Callable, of_gallery: Callable) -> Html:
    label = query["label"]
    cells = [("query", of_queries(query["query"], f"Query {query['query']}"), f"query: <strong>{html(label)}</strong>")]
    for place, (name, found) in enumerate(query["nearest"], 1):
        kind, sign = ("right", "✓") if found == label else ("wrong", "✗")
        shown = of_gallery(name, f"Found {place}, {kind}: {name}")
        cells.append((kind, shown, f'<b aria-hidden="true">{sign}</b> {html(found)}'))
    entries = (
        f'<li class="{kind}"><figure>{shown}<figcaption>{told}</figcaption></figure></li>'
        for kind, shown, told in cells
    )
    return Html(f'<li><ol aria-label="{html(query["query"])}">{"".join(entries)}</ol></li>\n')


def _attention(run: _Run, result: Result) -> Html:
    if result.name != "attention":
        return Html()
    out = "".join(_attention_sheet(result.run, sheet) for sheet in result.content.get("sheets", ()))
    about = (
        "Brighter: the network is more active there. The motion boundaries show where the clip moves. The numbers "
        "are 100 x the correlation of the two over the map's cells."
    )
    return Html(paragraph(about) + out + _result(run, result))


def _attention_sheet(run: Path, sheet: dict) -> Html:
    path = run / "results" / sheet["file"]
    caption = sheet["video"] + f" ({sheet['label']})" * bool(sheet["label"])
    drawn = cv2.imread(str(path))
    if drawn is None:
        return paragraph(f"{caption}: {path} is missing or damaged; draw it again with vssl eval attention.")
    return _sheet(Sheet(caption, f"{caption}, side by side: {', '.join(sheet['shown'])}", drawn[..., ::-1]))


# --- what is missing


def _missing(run: _Run, published: bool) -> Html:
    name = shlex.quote(run.name)
    shards = shlex.quote(str(run.shards[0])) if run.shards else "FOLDER"
    again = f"vssl report {name} --shards FOLDER"
    lines = [("Sheets of labels, of the shards that it was trained on", again)] * (not run.labels)
    lines += [("The curriculum of those shards", again)] * (run.curriculum is None)
    for result in run.results:
        absent = {result.protocol["dataset"], result.protocol.get("gallery")} - run.readers.keys() - {None}
        if result.content.get("neighbours") and absent:
            lines.append((f"Pictures of the videos of {' and '.join(sorted(absent))}", again))
    for protocol, title in TITLES.items():
        command = f"vssl eval {protocol} --checkpoint {name} --shards {shards}"
        if protocol == "recognition":
            command = f"vssl finetune --checkpoint {name} --shards {shards}; vssl eval recognition --shards {shards}"
        elif protocol == "similarity":
            command += " --pairs FILE"
        if not any(result.name.partition("-")[0] == protocol for result in run.results):
            lines.append((title, command))
    told = [Html(f"{html(what)}: <code>{html(command)}</code>") for what, command in dict.fromkeys(lines)]
    told += ["Published numbers: we know none of this method with this backbone"] * (not published)
    return items(told) if told else Html()
