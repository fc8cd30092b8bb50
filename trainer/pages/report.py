"""A run as one HTML page: what was trained and on what, what it is worth, and what is missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup

from labelgen.errors import ReadError
from labelgen.files import write_text
from labelgen.reading import load_json, read_bytes
from labelgen.shards import ShardReader, open_shards
from trainer import checkpoint
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.evaluate.results import Result, beside, headline, read_results
from trainer.evaluate.tables import with_split
from trainer.pages.page import figure, fill, heading, image, items, join, page, paragraph, picture, scroll
from trainer.pages.published import published_html
from trainer.pages.results import classes_html, result_html
from trainer.pages.trained import NEEDED, read_log, trained_html

_QUERIES = 12
_SHEET_BYTES, _SHEET_PIXELS = 1 << 26, 1 << 26  # of a drawn sheet, at most


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
        results += [result for result in finetuned if (protocol := result.measured_by) and protocol.of_finetuned]
        damaged += others
    log, cut = read_log(saved.run / "log.csv", NEEDED)
    held, gaps = read_log(saved.run / "holdout.csv", ("step",))
    gaps = [told for told in (cut, gaps) if told]
    opened = {str(folder): open_shards(folder) for folder in shards}
    readers = {of_dataset[0].config["dataset"]: of_dataset for of_dataset in opened.values()}
    of = _Run(saved, str(run), results, shards, readers, log, held, labels, curriculum)
    measured = [_result(of, result) for result in results if not result.drawn]
    about = paragraph(
        "Values are per cent; behind them, and as lines in the plots, stand 95 % intervals by test video."
    )
    settings, meta = saved.meta["settings"], saved.meta
    published = published_html(settings, meta["initial"], results)
    sections = [
        ("trained", "What was trained", trained_html(meta, log, held, gaps)),
        (
            "results",
            "Results",
            join([*([about] if measured else []), *measured, *([items(damaged)] if damaged else [])]),
        ),
        ("neighbours", "Nearest neighbours", join(_neighbours(of, result) for result in results)),
        *_drawn(of),
        ("classes", "Classes", join(map(classes_html, results))),
        ("published", "Published numbers", published),
        ("labels", "Labels of the shards", _labels(of)),
        ("missing", "What is not here", _missing(of, bool(published))),
    ]
    lead = (
        f"{settings['method']} with {settings['backbone']}, width {settings['width']:g}, {parameters(saved):,} parameters; "
        f"step {meta['step']:,} of {meta['steps']:,} on {with_split(meta['dataset'], meta['split'])}"
    )
    saved.run.mkdir(parents=True, exist_ok=True)  # a checkpoint that stands alone has no folder yet
    path = saved.run / "report.html"
    shown = [section for section in sections if section[2]]
    write_text(path, page(saved.run.resolve().name, lead, _tiles(of), shown, made_by()))
    return path, [*gaps, *damaged, *_unused(of, opened)]


def _unused(run: _Run, opened: dict[str, list[ShardReader]]) -> list[str]:
    """Notes on shards, by folder, from which nothing can be on the page."""
    shown = [result.protocol for result in run.results if result.content.get("neighbours")]
    datasets = {p[key] for p in shown for key in ("dataset", "gallery") if key in p}
    used = [id(of_dataset) for dataset, of_dataset in run.readers.items() if dataset in datasets]
    return [
        f"{folder} is not used: the page shows no videos of {of_dataset[0].config['dataset']} from there, and the run was not "
        "trained on this configuration of shards"
        for folder, of_dataset in opened.items()
        if of_dataset[0].config_hash != run.saved.meta["config_hash"] and id(of_dataset) not in used
    ]


def _started_from(run: Path) -> list[Path]:
    """Runs beside this one whose training started from one of its checkpoints."""
    folder, found = run.resolve(), []
    for path in sorted(folder.parent.glob("*/checkpoints/[0-9]*/checkpoint.json")):
        try:
            initial = Path(os.path.realpath(load_json(path)["initial"]["file"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # from random weights; or another run's damage, of which its own report tells
        if folder in initial.parents:
            found.append(path.parents[2])
    return found


def parameters(saved: checkpoint.Checkpoint) -> int:
    """Trainable parameters of a checkpoint's backbone."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = checkpoint.backbone_weights(saved)
    return sum(weight.numel() for name, weight in weights.items() if not name.endswith(statistics))


def made_by() -> str:
    """What a page was made with."""
    return "Made by vssl {vssl}, Python {python}, torch {torch}.".format(**checkpoint.versions())


def _tiles(run: _Run) -> Markup:
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
            title = result.title if result.run == run.saved.run else f"{result.title} ({result.run.name})"
            tiles.append((f"{title}: {named}", f"{row['value']:.1f} %", told))
    if not tiles:
        return Markup()
    template = "<li><span>{}</span><strong>{}</strong><small>{}</small></li>"
    return fill('<ul class="tiles">{}</ul>\n', join(fill(template, *tile) for tile in tiles))


def _labels(run: _Run) -> Markup:
    out = []
    if run.labels:
        out += [heading("A few clips"), *map(_sheet, run.labels)]
    if run.curriculum is not None:
        out += [heading("From easy to hard"), _sheet(run.curriculum)]
    return join(out)


def _sheet(sheet: Sheet) -> Markup:
    return figure(sheet.caption, scroll(sheet.caption, picture(sheet.picture, sheet.alt)))


# --- what it is worth


def _result(run: _Run, result: Result) -> Markup:
    of_this_run = result.run.resolve() == run.saved.run.resolve()
    out = [result_html(result, "" if of_this_run else f", finetuned as {result.run.name}")]
    step = result.protocol["pretraining"]["steps"]
    if of_this_run and step != run.saved.meta["step"]:
        now = run.saved.meta["step"]
        out.append(paragraph(f"Measured at step {step:,}; the checkpoint is now that of step {now:,}."))
    return join(out)


def _neighbours(run: _Run, result: Result) -> Markup:
    shown = result.content.get("neighbours")
    if not shown:
        return Markup()
    chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, _QUERIES).astype(int))]
    about = (
        f"{len(chosen)} of the queries, spread evenly over all, each with the five videos found first. "
        "A solid frame and ✓: of the query's class. A dashed frame and ✗: of another class."
    )
    p = result.protocol
    sides = [_middle_frames(run.readers.get(name, ())) for name in (p["dataset"], p.get("gallery", p["dataset"]))]
    queries = join(_query(query, *sides) for query in chosen)
    return join((heading(result.title), paragraph(about), fill('<ul class="found">{}</ul>\n', queries)))


def _middle_frames(readers: Sequence[ShardReader]) -> Callable[[str, str], Markup]:
    """(id, alternative text) -> the middle frame of a video, or a blank where its shards are not given."""
    places = {name: (reader, row) for reader in readers for row, name in enumerate(reader.arrays["videos/id"])}

    def show(name: str, alt: str) -> Markup:
        if name not in places:
            return fill('<span class="blank" role="img" aria-label="{}"></span>', alt)
        reader, row = places[name]
        middle = reader.arrays["videos/first_frame"][row] + reader.arrays["videos/n_frames"][row] // 2
        return image(reader.jpeg(int(middle)).tobytes(), "jpeg", alt, reader.frame_size)

    return show


def _query(query: dict, of_queries: Callable, of_gallery: Callable) -> Markup:
    label = query["label"]
    shown = of_queries(query["query"], f"Query {query['query']}")
    cells = [("query", shown, fill("query: <strong>{}</strong>", label))]
    for place, (name, found) in enumerate(query["nearest"], 1):
        kind, sign = ("right", "✓") if found == label else ("wrong", "✗")
        shown = of_gallery(name, f"Found {place}, {kind}: {name}")
        cells.append((kind, shown, fill('<b aria-hidden="true">{}</b> {}', sign, found)))
    template = '<li class="{}"><figure>{}<figcaption>{}</figcaption></figure></li>'
    entries = join(fill(template, *cell) for cell in cells)
    return fill('<li><ol aria-label="{}">{}</ol></li>\n', query["query"], entries)


def _drawn(run: _Run) -> list[tuple[str, str, Markup]]:
    """A section for every protocol that draws sheets: id, heading, content."""
    sections = []
    for name in PROTOCOLS:
        results = [result for result in run.results if result.kind == name and result.drawn]
        if results:
            protocol = protocol_class(name)
            about = paragraph(protocol.about_sheets)
            sheets = (
                join((*(_drawn_sheet(result.run, sheet) for sheet in result.content["sheets"]), _result(run, result)))
                for result in results
            )
            sections.append((f"drawn-{name}", protocol.title, join((about, *sheets))))
    return sections


def _drawn_sheet(run: Path, sheet: dict) -> Markup:
    path = run / "results" / sheet["file"]
    caption = f"{sheet['video']} ({sheet['label']})" if sheet["label"] else sheet["video"]
    inside = os.path.realpath(run / "results") + os.sep  # and nothing from another folder
    own = "\0" not in sheet["file"] and os.path.realpath(path).startswith(inside)
    drawn = _png(path) if own else None
    if drawn is None:
        return paragraph(f"{caption}: {path} is missing or damaged; measure again to draw it.")
    return _sheet(Sheet(caption, f"{caption}, side by side: {', '.join(sheet['shown'])}", drawn[..., ::-1]))


def _png(path: Path) -> np.ndarray | None:
    """A picture BGR uint8 [H, W, 3]; None where it is missing, damaged or declares more pixels than a sheet has."""
    try:
        content = read_bytes(path, _SHEET_BYTES)
    except (ReadError, ValueError):
        return None
    size = int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    whole = content.startswith(b"\x89PNG") and 0 < size <= _SHEET_PIXELS
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if whole else None


# --- what is missing


def _missing(run: _Run, published: bool) -> Markup:
    name = shlex.quote(run.name)
    shards = shlex.quote(str(run.shards[0])) if run.shards else "FOLDER"
    again = f"vssl report {name} --shards FOLDER"
    lines = []
    if not run.labels:
        lines.append(("Sheets of labels, of the shards that it was trained on", again))
    if run.curriculum is None:
        lines.append(("The curriculum of those shards", again))
    for result in run.results:
        absent = {result.protocol["dataset"], result.protocol.get("gallery")} - run.readers.keys() - {None}
        if result.content.get("neighbours") and absent:
            lines.append((f"Pictures of the videos of {' and '.join(sorted(absent))}", again))
    measured = {result.kind for result in run.results}
    for protocol in PROTOCOLS:
        if protocol not in measured:
            declared = protocol_class(protocol)
            lines.append((declared.title, declared.command(protocol, name, shards)))
    told = [fill("{}: <code>{}</code>", *line) for line in dict.fromkeys(lines)]
    if not published:
        told.append(fill("Published numbers: we know none of this method with this backbone"))
    return items(told) if told else Markup()
