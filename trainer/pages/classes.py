"""A result by class: accuracies next to those of random weights, and which class is predicted for which videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from trainer.evaluate.metrics import GROUPS, ItemScores, by_class
from trainer.evaluate.results import Result, headline, place_of
from trainer.pages import plots
from trainer.pages.differences import Line, differences_table, value_cell
from trainer.pages.films import Films
from trainer.pages.measured import against_random, named
from trainer.pages.page import details, figure, fill, grid, heading, join, paragraph, scroll, table

_MANY_CLASSES = 60  # with more, the whole matrix is not shown
_FEW_CLASSES = 24  # at most this many are compared in one table
_MOST_COMPARED = 10  # classes that gain most, and that lose most, if there are more
_CLICKED = 40  # at most this many classes make the cells of the matrix large enough to select
_LISTED = 12  # confusions in the table
_OF_A_CELL, _OF_A_PAGE = 6, 200  # videos shown with a picture
ABOUT = (
    "Differences by class compare the answers of both networks to the same videos. A hollow mark has no interval: the class "
    f"has fewer than {GROUPS} videos, or groups of them. Among many classes some differ by chance."
)


@dataclass(frozen=True)
class Confusion:
    """Videos by true and predicted class.

    counts: int64 [classes, classes]; videos: the ids of the videos in each cell, by (true, predicted), if stored
    """

    classes: list[str]
    counts: np.ndarray
    videos: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)


def classes_html(results: Sequence[Result], scores: Mapping[Path, ItemScores], films: Films) -> Markup:
    """Accuracy by class and the confusion matrix for the results that have them. The first matrix is open, the others are
    folded.

    scores: answers to the videos, by the file of the result; films: those of the page, shown in cells
    """
    out: list[Markup] = []
    opened = False
    for i, result in enumerate(results):
        by_class, matrix = _of_result(result, scores.get(result.file), films, f"cell-{i}")
        if by_class or matrix:
            if not out:
                out.append(paragraph(ABOUT))
            folded = details("Which class was predicted", matrix) if matrix and opened else matrix
            out += [heading(result.title), by_class, folded]
            opened = opened or bool(matrix)
    return join(out)


def _of_result(result: Result, scores: ItemScores | None, films: Films, name: str) -> tuple[Markup, Markup]:
    """Accuracy by class, and the confusion matrix; name: prefix of the ids of its cells."""
    out, row = [], headline(result)
    rows = [row for row in result.content["rows"] if "class" in row]
    clips = {row["class"]: row for row in rows if row.get("level") == "clip"}
    rows = sorted((row for row in rows if row.get("level") != "clip"), key=lambda row: -row["value"])
    if row and (compared := against_random(result, row, scores, by_class)):
        out.append(paragraph(f"{named(row)}; this network minus random weights", "muted"))
        out.append(compared_html(compared, "Random", "This network"))
    elif rows:
        out.append(_class_bars(rows))
        head, body = ["Class", "Accuracy", "Videos"], [[r["class"], value_cell(r), r.get("videos", "")] for r in rows]
        if clips:
            head.append("Of clips")
            body = [[*line, value_cell(clips[line[0]])] for line in body]
        out.append(details("Numbers", table("Accuracy by class, %", head, body, range(1, len(head)))))
    found = confusion(result, row, scores)
    matrix = _confusion(found, result.protocol["dataset"], films, name) if found else Markup()
    return join(out), matrix


def compared_html(compared: Sequence[dict], first: str, other: str) -> Markup:
    """Tables of the accuracies of two networks by class, see metrics.by_class: all classes if they are few, else those that
    gain and lose most, and all on demand."""
    if len(compared) <= _FEW_CLASSES:
        return _compared("Accuracy by class, %", compared, first, other)
    losing = compared[: -_MOST_COMPARED - 1 : -1]
    return join(
        (
            _compared("The classes that gain most, %", compared[:_MOST_COMPARED], first, other),
            _compared("The classes that lose most, %", losing, first, other),
            details(f"All {len(compared)} classes", _compared("All classes, %", compared, first, other)),
        )
    )


def _compared(caption: str, compared: Sequence[dict], first: str, other: str) -> Markup:
    lines = [
        Line(one["class"], [f"{one['other']:.1f}", f"{one['first']:.1f}", one["items"]], {"Difference": one})
        for one in compared
    ]
    return differences_table(caption, "Class", (other, first, "Tested"), lines)


def confusion(result: Result, row: dict | None, scores: ItemScores | None) -> Confusion | None:
    """Which class was predicted for the videos of a result's headline row; None if unknown."""
    answers = scores.answers.get(place_of(result, row)) if scores and row else None
    if scores is not None and answers is not None and (answers.predicted >= 0).any():
        classes = scores.classes.tolist()
        index = {name: i for i, name in enumerate(classes)}
        videos: dict[tuple[int, int], list[str]] = {}
        for item, label, one in zip(
            scores.items.tolist(), scores.labels.tolist(), answers.predicted.tolist(), strict=True
        ):
            if label in index and 0 <= one < len(classes):
                videos.setdefault((index[label], one), []).append(item)
        counts = np.zeros((len(classes),) * 2, np.int64)
        for cell, of_cell in videos.items():
            counts[cell] = len(of_cell)
        if videos:
            return Confusion(classes, counts, videos)
    if stored := result.content.get("confusion"):
        return Confusion(stored["classes"], np.array(stored["counts"]))
    return None


def _class_bars(rows: list[dict]) -> Markup:
    size = max(10, -(-len(rows) // 3))
    parts = [(f"Classes {i + 1} to {min(i + size, len(rows))}", rows[i : i + size]) for i in range(0, len(rows), size)]
    if len(rows) > _MANY_CLASSES:
        parts = [(f"The 20 best of {len(rows)} classes", rows[:20]), ("The 20 worst", rows[-20:])]
    found = []
    for caption, part in parts:
        counts = [f" of {row['videos']}" if "videos" in row else "" for row in part]
        bars = [(row["class"], row["value"], f"{row['value']:.0f} %{n}") for row, n in zip(part, counts, strict=True)]
        found.append(figure(caption, plots.bars(bars, "; ".join(f"{name} {text}" for name, _, text in bars))))
    return grid(found)


def _confusion(found: Confusion, dataset: str, films: Films, name: str) -> Markup:
    present = np.flatnonzero(found.counts.sum(0) + found.counts.sum(1) > 0)
    classes, counts = [found.classes[i] for i in present], found.counts[np.ix_(present, present)]
    wrong = sorted((-counts[t, p], t, p) for t, p in np.argwhere(counts) if t != p)
    cells = [(t, p) for _, t, p in wrong[: None if len(classes) <= _CLICKED else _LISTED]]
    cells += [(i, i) for i in range(len(classes)) if counts[i, i]] if len(classes) <= _CLICKED else []
    links, shown = {}, []
    for t, p in cells:
        if videos := found.videos.get((present[t], present[p])):
            taken = f"taken for {classes[p]}" if t != p else "recognised"
            label = f"{classes[t]} {taken}: {len(videos)} {'video' if len(videos) == 1 else 'videos'}"
            links[t, p] = f"{name}-{t}-{p}", label
            shown.append(_cell(*links[t, p], videos, dataset, films))
    label = f"Confusion matrix of {len(classes)} classes: {np.trace(counts)} of {counts.sum()} videos on the diagonal"
    caption = "Rows: true class; columns: predicted class; shade: share of the row"
    drawn = figure(caption, scroll(label, plots.matrix(classes, counts, label, links)))
    if shown:
        hint = paragraph("Select a number in the matrix or the table to see its videos here.", "muted hint")
        template = '<div class="confusion">{}<div class="cells">{}{}</div></div>\n'
        drawn = fill(template, drawn, hint, join(shown))
    out = [drawn]
    head = ("True class", "Taken for", "Videos", "% of the class")
    body = [
        (classes[t], classes[p], _linked(-n, links.get((t, p))), f"{-100 * n / counts[t].sum():.0f}")
        for n, t, p in wrong[:_LISTED]
    ]
    if body:
        out.append(table("The most frequent confusions", head, body, (2, 3)))
    if len(classes) <= _MANY_CLASSES:
        full = [(name, *(count or "" for count in row)) for name, row in zip(classes, counts.tolist(), strict=True)]
        numbers = table("Videos by true class (rows) and predicted class", ("True class", *classes), full, range(1, 99))
        out.append(details("The whole matrix", numbers))
    return join(out)


def _linked(count: int, link: tuple[str, str] | None) -> object:
    return fill('<a href="#{}" aria-label="{}">{}</a>', *link, count) if link else count


def _cell(name: str, label: str, videos: Sequence[str], dataset: str, films: Films) -> Markup:
    """The videos of a cell of the matrix, which appear next to the matrix if the cell is selected."""
    pictured = [video for video in videos[:_OF_A_CELL] if (dataset, video) in films] if len(films) < _OF_A_PAGE else []
    template = "<figure>{}<figcaption>{}</figcaption></figure>"
    figures = join(fill(template, films.show(dataset, video, video), video) for video in pictured)
    others = [video for video in videos if video not in pictured]
    text = f"{'And ' if pictured else ''}{', '.join(others[:_OF_A_CELL])}" if others else ""
    if len(others) > _OF_A_CELL:
        text += f" and {len(others) - _OF_A_CELL} more"
    return fill(
        '<div class="taken" id="{}"><p><strong>{}</strong></p>{}{}</div>\n',
        name,
        label,
        fill('<div class="films">{}</div>', figures) if pictured else "",
        paragraph(text, "muted") if text else "",
    )
