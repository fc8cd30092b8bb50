"""A run as one HTML page: what was trained and on what, how well it performs, and what is missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from labelgen.files import write_text
from labelgen.shards import ShardReader, open_shards
from trainer import checkpoint
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.evaluate.metrics import ItemScores
from trainer.evaluate.results import Result, baselines, headline, read_all_scores
from trainer.evaluate.splits import with_split
from trainer.pages.classes import classes_html
from trainer.pages.drawn import drawn_sections
from trainer.pages.films import Films
from trainer.pages.measured import named, overview, result_html
from trainer.pages.page import figure, fill, grid, heading, items, join, page, paragraph, picture, scroll
from trainer.pages.published import published_html
from trainer.pages.queries import neighbours_html
from trainer.pages.samples import samples_of_run
from trainer.pages.sources import configuration_of, find_shards, joined, made_by, results_of, unused
from trainer.pages.trained import NEEDED, read_log, trained_html

_TILES = 4  # at most, one of each protocol
_FIRST = ("recognition", "linear", "retrieval", "training", *PROTOCOLS)  # in order of preference
_READING = (
    "Values are in per cent, with 95 % intervals in brackets and as lines in the plots. An interval shows where the value might "
    "lie with other test videos, by a bootstrap over them, or over their groups (the protocol of a result says which). It does "
    "not cover other training seeds. A difference compares the answers of both networks to the same videos; its interval "
    "resamples them in pairs, so that it may exclude 0 even if the two intervals overlap."
)


@dataclass(frozen=True)
class Sheet:
    """A picture for the page, RGB uint8 [H, W, 3], with a description."""

    caption: str
    alt: str
    picture: np.ndarray


# of shards labelled like those of the run: sheets of the labels of a few clips, and clips from easy to hard
Draw = Callable[[Sequence[ShardReader]], tuple[list[Sheet], list[Sheet]]]


@dataclass(frozen=True)
class Part:
    """A run's place in a study. title: of its page; overlay: the file with the classes and splits that it was trained with;
    link: from its page to that of the study."""

    title: str
    overlay: Path
    link: str


@dataclass(frozen=True)
class _Run:
    """All contents of the page; name: of the run, as given by the user; shards: by folder; scores: by file of the result."""

    saved: checkpoint.Checkpoint
    name: str
    results: list[Result]
    scores: dict[Path, ItemScores]
    shards: dict[str, list[ShardReader]]
    log: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    samples: Markup
    labels: Sequence[Sheet]
    curriculum: Sequence[Sheet]


def report(
    run: str | os.PathLike | None = None,
    shards: Sequence[str | os.PathLike] | None = (),
    draw: Draw | None = None,
    study: Part | None = None,
) -> tuple[Path, list[str]]:
    """Write <run>/report.html, one file that needs no network, and return its path, and notes: which parts of the run are
    damaged and left out, which of the shards are not used.

    run: name or folder, None for the newest; shards: of the data sets whose videos are shown, None for those in the folder
    `out`; draw: also draw sheets of the shards that are labelled like those of the run; study: that the run is part of. The
    results of classifiers that were finetuned from the run, in folders next to it, are also shown.

    Raises TrainerError if there is no run, ShardError for shards that cannot be read.
    """
    run = checkpoint.newest_run() if run is None else run
    saved = checkpoint.load(run, best=True)
    results, damaged = results_of(saved.run)
    scores, unreadable = read_all_scores({result.file: result for result in results})
    damaged += unreadable
    log, of_log = read_log(saved.run / "log.csv", NEEDED)
    held_out, of_held_out = read_log(saved.run / "holdout.csv", ("step",))
    gaps = [note for note in (of_log, of_held_out) if note]
    if shards is None:
        opened, notes = find_shards(saved, results, Path("out"))
    else:
        opened, notes = {str(folder): open_shards(folder) for folder in shards}, []
    alike = next((own for own in opened.values() if configuration_of(own) == saved.meta["config_hash"]), [])
    folders = [name for name, own in opened.items() if own is alike] or joined(saved, opened)
    labels, curriculum = draw(alike) if draw and alike else ([], [])
    films = Films({readers[0].config["dataset"]: readers for readers in opened.values()})
    samples = samples_of_run(saved, folders, films, study.overlay if study else None) if folders else Markup()
    of = _Run(saved, str(run), results, scores, opened, log, held_out, samples, labels, curriculum)
    sections = _sections(of, films, gaps, damaged)
    shown = [section for section in sections if section[2] and not (study and section[0] == "missing")]
    settings, meta = saved.meta["settings"], saved.meta
    lead = (
        f"{settings['method']} with {settings['backbone']}, width {settings['width']:g}, {parameters(saved):,} parameters; "
        f"step {meta['step']:,} of {meta['steps']:,} on {with_split(meta['dataset'], meta['split'])}"
    )
    saved.run.mkdir(parents=True, exist_ok=True)  # a checkpoint without a run has no folder yet
    path, title, top = saved.run / "report.html", saved.run.resolve().name, _tiles(of)
    if study:
        title, back = (
            study.title,
            'A run of a study. <a href="{}">The page of the study</a> compares it with the others.',
        )
        top = paragraph(fill(back, study.link)) + top
    write_text(path, page(title, lead, top, shown, made_by(), films.style()))
    return path, [*notes, *gaps, *damaged, *unused(saved, results, opened)]


def _sections(run: _Run, films: Films, gaps: Sequence[str], damaged: Sequence[str]) -> list[tuple[str, str, Markup]]:
    """Id, heading and content of every section, empty ones included; gaps: notes on the logs; damaged: on the results."""
    meta = run.saved.meta
    measured = [_result(run, result) for result in run.results if not result.drawn]
    about = [paragraph(_READING), overview(run.results, run.scores)] if measured else []
    published = published_html(meta["settings"], meta["initial"], run.results)
    return [
        ("trained", "What was trained", trained_html(meta, run.log, run.held_out, gaps)),
        ("samples", "Training samples", run.samples),
        ("results", "Results", join([*about, *measured, *([items(damaged)] if damaged else [])])),
        ("neighbours", "Nearest neighbours", join(neighbours_html(result, films) for result in run.results)),
        *drawn_sections(run.results, lambda result: _result(run, result)),
        ("classes", "Classes", classes_html(run.results, run.scores, films)),
        ("published", "Published numbers", published),
        ("labels", "Labels of the shards", _labels(run)),
        ("missing", "What is missing", _missing(run, bool(published))),
    ]


def parameters(saved: checkpoint.Checkpoint) -> int:
    """Number of trainable parameters of a checkpoint's backbone."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = checkpoint.backbone_weights(saved)
    return sum(weight.numel() for name, weight in weights.items() if not name.endswith(statistics))


def _tiles(run: _Run) -> Markup:
    """The most important numbers: at most four, selected without looking at the values."""
    tiles: dict[str, tuple[str, str, str]] = {}
    log, held_out = run.log, run.held_out
    if "accuracy" in (of := held_out or log):
        last = of["accuracy"][-1 if held_out else -max(1, len(log["step"]) // 10) :]
        which = "held-out videos" if held_out else "last tenth of the training"
        chance = f"chance {100 * of['chance'][-1]:.1f}" if "chance" in of else ""
        tiles["training"] = f"Training accuracy, {which}", f"{100 * last.mean():.1f} %", chance
    for result in run.results:
        if result.kind not in tiles and (row := headline(result)):
            others = (f"{name} {value:.1f}" for name, value in baselines(result, row).items())
            beside = " · ".join([f"95 %: {row['low']:.1f} to {row['high']:.1f}", *others])
            title = result.title if result.run == run.saved.run else f"{result.title} ({result.run.name})"
            tiles[result.kind] = f"{title}: {named(row)}", f"{row['value']:.1f} %", beside
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
        about = "Clips by the share of their motion that lies in one block, each above its motion boundaries."
        clips = (figure(clip.caption, picture(clip.picture, clip.alt)) for clip in run.curriculum)
        out += [heading("From easy to hard"), paragraph(about), grid(clips, "clips")]
    return join(out)


def _sheet(sheet: Sheet) -> Markup:
    return figure(sheet.caption, scroll(sheet.caption, picture(sheet.picture, sheet.alt)))


def _result(run: _Run, result: Result) -> Markup:
    of_this_run = result.run.resolve() == run.saved.run.resolve()
    out = [result_html(result, "" if of_this_run else f", finetuned as {result.run.name}")]
    step = result.protocol["pretraining"]["steps"]
    if of_this_run and step != run.saved.meta["step"]:
        now = run.saved.meta["step"]
        out.append(paragraph(f"Measured at step {step:,}; the checkpoint is now at step {now:,}."))
    return join(out)


def _missing(run: _Run, published: bool) -> Markup:
    name = shlex.quote(run.name)
    shards = shlex.quote(next(iter(run.shards))) if run.shards else "FOLDER"
    datasets = {readers[0].config["dataset"] for readers in run.shards.values()}
    again = f"vssl report {name} --shards FOLDER"
    lines = []
    if not run.samples and run.saved.meta["settings"]["method"] != checkpoint.IMPORTED:
        lines.append(("Clips and targets, from the shards that it was trained on", again))
    if not run.labels:
        lines.append(("Sheets of labels, from the shards that it was trained on", again))
    if not run.curriculum:
        lines.append(("The curriculum of those shards", again))
    for result in run.results:
        absent = {result.protocol["dataset"], result.protocol.get("gallery")} - datasets - {None}
        if result.content.get("neighbours") and absent:
            lines.append((f"Pictures of the videos of {' and '.join(sorted(absent))}", again))
    measured = {result.kind for result in run.results}
    for protocol in PROTOCOLS:
        if protocol not in measured:
            declared = protocol_class(protocol)
            lines.append((declared.title, declared.command(protocol, name, shards)))
    entries = [fill("{}: <code>{}</code>", *line) for line in dict.fromkeys(lines)]
    if not published:
        entries.append(fill("Published numbers: none known for this method with this backbone"))
    return items(entries) if entries else Markup()
