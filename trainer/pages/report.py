"""A run as one HTML page: what was trained and on what, what it is worth, and what is missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup

from labelgen.errors import ReadError, ShardError
from labelgen.files import write_text
from labelgen.reading import load_json, read_bytes
from labelgen.shards import ShardReader, hash_of_all, open_shards
from labelgen.shards.folder import shard_paths
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.evaluate.metrics import ItemScores
from trainer.evaluate.protocols.attention import overlay, tiles_of
from trainer.evaluate.results import Result, baselines, headline, read_results
from trainer.evaluate.splits import with_split
from trainer.pages.classes import classes_html
from trainer.pages.films import Films
from trainer.pages.neighbours import neighbours_html
from trainer.pages.page import figure, fill, grid, heading, items, join, page, paragraph, picture, scroll
from trainer.pages.published import published_html
from trainer.pages.results import named, overview, result_html
from trainer.pages.trained import NEEDED, read_log, trained_html

# at most so many tiles, of the protocols that are measured in this order, one of each
_TILES, _FIRST = 4, ("recognition", "linear", "retrieval", "training", *PROTOCOLS)
_SHEET_BYTES, _SHEET_PIXELS = 1 << 26, 1 << 24  # of a drawn sheet, at most


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
    curriculum: Sequence[Sheet]
    kept: dict[Path, ItemScores]
    films: Films


def report(
    run: str | os.PathLike,
    shards: Sequence[str | os.PathLike] = (),
    labels: Sequence[Sheet] = (),
    curriculum: Sequence[Sheet] = (),
) -> tuple[Path, list[str]]:
    """Write <run>/report.html, one file that needs no network, and return its path, and notes: what of the run is damaged
    and left out, which of the shards are not used.

    run: name or folder; shards: of the data sets whose videos are shown; labels: sheets of the shards that the run was
    trained on; curriculum: clips of them, from easy to hard. Recognition results of runs beside it that started from it are
    shown, too.

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
    kept = _kept(results, damaged)
    opened = {str(folder): open_shards(folder) for folder in shards}
    readers = {of_dataset[0].config["dataset"]: of_dataset for of_dataset in opened.values()}
    films = Films(readers)
    of = _Run(saved, str(run), results, shards, readers, log, held, labels, curriculum, kept, films)
    measured = [_result(of, result) for result in results if not result.drawn]
    settings, meta = saved.meta["settings"], saved.meta
    published = published_html(settings, meta["initial"], results)
    sections = [
        ("trained", "What was trained", trained_html(meta, log, held, gaps)),
        (
            "results",
            "Results",
            join([*([_overview(of)] if measured else []), *measured, *([items(damaged)] if damaged else [])]),
        ),
        ("neighbours", "Nearest neighbours", join(neighbours_html(result, films) for result in results)),
        *_drawn(of),
        ("classes", "Classes", classes_html(results, kept, films)),
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
    write_text(path, page(saved.run.resolve().name, lead, _tiles(of), shown, made_by(), films.style()))
    return path, [*gaps, *damaged, *_unused(of, opened)]


def shards_of(run: str | os.PathLike, folder: Path) -> tuple[list[Path], list[str]]:
    """Folders of shards, `folder` or below it, of the data sets that a run was trained or measured on, one of each: the one
    that was labelled as the run's, else the first; and notes: of which data sets there are none, which shards are damaged.
    Raises TrainerError where there is no run."""
    saved = checkpoint.load(run, best=True)
    measured = [result.protocol for own in (saved.run, *_started_from(saved.run)) for result in read_results(own)[0]]
    named = dict.fromkeys([*checkpoint.trained_splits(saved.meta)])
    named |= dict.fromkeys(p[key] for p in measured for key in ("dataset", "gallery") if key in p)
    found: dict[str, dict[str, Path]] = {}
    notes = []
    for own in sorted({path.parent for path in (*folder.glob("[0-9]*.h5"), *folder.glob("*/[0-9]*.h5"))}):
        try:
            first = ShardReader(shard_paths(own)[0])
            if (dataset := first.config["dataset"]) in named:
                hashes = [reader.config_hash for reader in open_shards(own)]  # all of them are there
                found.setdefault(dataset, {}).setdefault(hash_of_all(hashes), own)
        except ShardError as error:
            notes.append(f"{error}; these shards are left out")
    if absent := ", ".join(name for name in named if name not in found):
        notes.append(
            f"{folder} holds no shards of {absent}: the page shows none of their videos and labels unless their folder is named"
        )
    return [of.get(saved.meta["config_hash"]) or next(iter(of.values())) for of in found.values()], notes


def _unused(run: _Run, opened: dict[str, list[ShardReader]]) -> list[str]:
    """Notes on shards, by folder, from which nothing can be on the page."""
    shown = [result.protocol for result in run.results if result.content.get("neighbours")]
    datasets = {p[key] for p in shown for key in ("dataset", "gallery") if key in p}
    used = [id(of_dataset) for dataset, of_dataset in run.readers.items() if dataset in datasets]
    return [
        f"{folder} is not used: the page shows no videos of {of_dataset[0].config['dataset']} from there, and the run was not "
        "trained on this configuration of shards"
        for folder, of_dataset in opened.items()
        if hash_of_all([reader.config_hash for reader in of_dataset]) != run.saved.meta["config_hash"]
        and id(of_dataset) not in used
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


def _kept(results: Sequence[Result], damaged: list[str]) -> dict[Path, ItemScores]:
    """What is kept of the videos of each result, by its file; damaged: notes, to which those on damaged files are added."""
    kept = {}
    for result in results:
        try:
            if result.scores is not None:
                kept[result.file] = result.scores
        except TrainerError as error:
            damaged.append(str(error))
    return kept


def _tiles(run: _Run) -> Markup:
    """The first numbers to look at: at most four, by a rule that does not look at the values."""
    tiles: dict[str, tuple[str, str, str]] = {}
    log, held = run.log, run.held
    if "accuracy" in (held or log):
        last = (held or log)["accuracy"][-1 if held else -max(1, len(log["step"]) // 10) :]
        told = "held-out videos" if held else "last tenth of the training"
        chance = f"chance {100 * (held or log)['chance'][-1]:.1f}" if "chance" in (held or log) else ""
        tiles["training"] = f"Accuracy in training, {told}", f"{100 * last.mean():.1f} %", chance
    for result in run.results:
        if result.kind not in tiles and (row := headline(result)):
            others = (f"{name} {value:.1f}" for name, value in baselines(result, row).items())
            told = " · ".join([f"95 %: {row['low']:.1f} to {row['high']:.1f}", *others])
            title = result.title if result.run == run.saved.run else f"{result.title} ({result.run.name})"
            tiles[result.kind] = f"{title}: {named(row)}", f"{row['value']:.1f} %", told
    if not tiles:
        return Markup()
    chosen = [kind for kind in dict.fromkeys((*_FIRST, *tiles)) if kind in tiles][:_TILES]
    template = "<li><span>{}</span><strong>{}</strong><small>{}</small></li>"
    return fill('<ul class="tiles">{}</ul>\n', join(fill(template, *tiles[kind]) for kind in chosen))


def _labels(run: _Run) -> Markup:
    out = []
    if run.labels:
        out += [heading("A few clips"), *map(_sheet, run.labels)]
    if run.curriculum:
        about = "Clips by the share of their motion that is in one block, each over its motion boundaries."
        clips = (figure(clip.caption, picture(clip.picture, clip.alt)) for clip in run.curriculum)
        out += [heading("From easy to hard"), paragraph(about), grid(clips, "clips")]
    return join(out)


def _sheet(sheet: Sheet) -> Markup:
    return figure(sheet.caption, scroll(sheet.caption, picture(sheet.picture, sheet.alt)))


# --- what it is worth


def _overview(run: _Run) -> Markup:
    """How to read the numbers, once for all of them, and the first of them."""
    about = (
        "Values are per cent. In brackets behind them, and as lines in the plots, stand 95 % intervals: where the value might "
        "lie with other test videos, by a bootstrap over them, or over their groups (the protocol of a result says which). They "
        "do not cover other training seeds. A difference is of the same videos answered by both networks; its interval draws "
        "them in pairs, so that it may leave out 0 where the two intervals overlap."
    )
    return join((paragraph(about), overview(run.results, run.kept)))


def _result(run: _Run, result: Result) -> Markup:
    of_this_run = result.run.resolve() == run.saved.run.resolve()
    out = [result_html(result, "" if of_this_run else f", finetuned as {result.run.name}")]
    step = result.protocol["pretraining"]["steps"]
    if of_this_run and step != run.saved.meta["step"]:
        now = run.saved.meta["step"]
        out.append(paragraph(f"Measured at step {step:,}; the checkpoint is now that of step {now:,}."))
    return join(out)


def _drawn(run: _Run) -> list[tuple[str, str, Markup]]:
    """A section for every protocol that draws sheets: id, heading, content."""
    sections = []
    for name in PROTOCOLS:
        results = [result for result in run.results if result.kind == name and result.drawn]
        if results:
            protocol = protocol_class(name)
            about = (paragraph(protocol.about_sheets), _color_scale(*protocol.scale))
            sheets = (
                join((*(_drawn_sheet(result.run, sheet) for sheet in result.content["sheets"]), _result(run, result)))
                for result in results
            )
            sections.append((f"drawn-{name}", protocol.title, join((*about, *sheets))))
    return sections


def _color_scale(low: str, high: str) -> Markup:
    """The colours of maps over grey, between what their ends mean."""
    bar = overlay(np.full((16, 256, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 256, dtype=np.float32), (16, 1)))
    shown = picture(bar, f"Colours from {low} to {high}")
    return fill('<p class="scale"><span>{}</span>{}<span>{}</span></p>\n', low, shown, high)


def _drawn_sheet(run: Path, sheet: dict) -> Markup:
    path = run / "results" / sheet["file"]
    caption = f"{sheet['video']} ({sheet['label']})" if sheet["label"] else sheet["video"]
    inside = os.path.realpath(run / "results") + os.sep  # and nothing from another folder
    own = "\0" not in sheet["file"] and os.path.realpath(path).startswith(inside)
    drawn = _png(path) if own else None
    tiles = [] if drawn is None else tiles_of(drawn[..., ::-1], len(sheet["shown"]))
    if not tiles:
        return paragraph(f"{caption}: {path} is missing or damaged; measure again to draw it.")
    shown = zip(sheet["shown"], tiles, strict=True)
    pictures = (figure(name, picture(tile, f"{caption}: {name}")) for name, tile in shown)
    return join((paragraph(fill("<strong>{}</strong>", caption)), grid(pictures, "tiles-of-a-sheet")))


def _png(path: Path) -> np.ndarray | None:
    """A picture BGR uint8 [H, W, 3]; None where it is missing, damaged or declares more than a sheet has: pixels, or bytes of a
    chunk, for which OpenCV makes room before it reads them."""
    try:
        content = read_bytes(path, _SHEET_BYTES)
    except (ReadError, ValueError):
        return None
    size = int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    at, kind = 8, b""
    while at < len(content) and kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        at += 12 + length if kind in (b"IHDR", b"IDAT", b"IEND") else len(content)  # a sheet has no others
    whole = content.startswith(b"\x89PNG") and at == len(content) and 0 < size <= _SHEET_PIXELS
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if whole else None


# --- what is missing


def _missing(run: _Run, published: bool) -> Markup:
    name = shlex.quote(run.name)
    shards = shlex.quote(str(run.shards[0])) if run.shards else "FOLDER"
    again = f"vssl report {name} --shards FOLDER"
    lines = []
    if not run.labels:
        lines.append(("Sheets of labels, of the shards that it was trained on", again))
    if not run.curriculum:
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
