"""Each result of a run as plots and tables of a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from trainer.evaluate.results import MEASURED, OTHER_VIDEO, Result, beside, flat, headline, of_the_network
from trainer.evaluate.tables import overall, shown
from trainer.pages import plots
from trainer.pages.page import details, figure, fill, grid, heading, items, join, paragraph, scroll, table
from trainer.pages.plots import Point, Series

_MANY_ROWS, _MANY_CLASSES = 8, 60
_NETWORKS = {"pretrained": "this network, 95 % interval", "random": "random weights", "chance": "chance"}


def value_cell(row: dict) -> Markup:
    """A value with its interval."""
    value, _, interval = shown(row).partition(" ")
    return fill("{} <small>{}</small>", value, interval) if interval else fill("{}", value)


def result_html(result: Result, of: str = "") -> Markup:
    """Heading, protocol, plots and tables of a result; of: words behind the title."""
    p = result.protocol
    told = "; ".join(str(p[key]) for key in ("mode", "views", "classifier", "items") if key in p)
    out = [heading(result.title + of), paragraph(f"{told}.", "muted"), _values(result), _distances(result)]
    for head, rows, left in _tables(result.content["rows"]):
        text = table(f"{result.title}: {', '.join(head[left:])}", head, rows, range(left, len(head)))
        out.append(details(f"{len(rows)} rows of numbers", text) if len(rows) > _MANY_ROWS else text)
    if result.content["notes"]:
        out.append(items(f"Note: {note}" for note in result.content["notes"]))
    if any("low" in row for row in result.content["rows"]):
        about = "Values in per cent; behind them, and as lines in the plots, 95 % intervals by test video."
        out.append(paragraph(about, "muted"))
    return join([*out, details("Protocol", table(f"Protocol: {result.title}", ("What", "Value"), flat(p)))])


def _values(result: Result) -> Markup:
    """Plots of the first metric, one per level: a row per stage and pooling, pretrained and random network side by side; and
    of hits by k, where there are several."""
    rows = [row for row in overall(result.content["rows"]) if not row.keys() & {"class", "video", "distance"}]
    places = {(row.get("stage"), row.get("pooling")) for row in rows if "low" in row}
    if len(places) < 2:
        return Markup()  # a table says as much
    metric = next(row["metric"] for row in rows if "low" in row)
    found, kinds = [], set()
    for level in dict.fromkeys(row.get("level") for row in rows):
        of_level = [row for row in rows if row["metric"] == metric and row.get("level") == level]
        points = _points(of_level)
        kinds |= {point.kind for place in points.values() for point in place}
        told = "; ".join(f"{name}: " + ", ".join(f"{p.kind} {p.value:.1f}" for p in ps) for name, ps in points.items())
        caption = f"{metric}, %, {level} level" if level else f"{metric}, %"
        found.append(figure(caption, plots.intervals([*points.items()], f"{caption}. {told}")))
    legend = plots.legend([(kind, name) for kind, name in _NETWORKS.items() if kind in kinds])
    return join((legend, grid([*found, _by_k(result)])))


def _points(rows: list[dict]) -> dict[str, list[Point]]:
    chance = [Point("chance", row["value"]) for row in rows if row.get("network") == "chance"]
    points: dict[str, list[Point]] = {}
    for row in rows:
        if row.get("network") != "chance":
            name = " ".join(str(row[key]) for key in ("stage", "pooling") if key in row)
            point = Point(row.get("network", "pretrained"), row["value"], row.get("low"), row.get("high"))
            points.setdefault(name, [*chance]).append(point)
    return points


def _by_k(result: Result) -> Markup:
    """Plot of the row that stands for the result by the k of its metrics top-k."""
    row = headline(result)
    if not row or not row["metric"].removeprefix("top-").isdecimal():
        return Markup()
    keys = row.keys() - {"metric", *MEASURED}
    lines: dict[str, dict[int, float]] = {}
    for other in of_the_network(result):
        k = other["metric"].removeprefix("top-")
        if k.isdecimal() and all(other.get(key) == row[key] for key in keys):
            for network, value in {"pretrained": other["value"], **beside(result, other)}.items():
                lines.setdefault(network, {})[int(k)] = value
    kinds = {"pretrained": "dots line", "random": "dots", "chance": "level"}
    series = [Series(network, [*of_k], [*of_k.values()], kinds[network]) for network, of_k in lines.items()]
    told = "; ".join(f"{s.name}: " + ", ".join(f"{value:.1f}" for value in s.y) for s in series)
    ks = ", ".join(map(str, lines["pretrained"]))
    named = " ".join(str(row[key]) for key in ("level", "stage", "pooling") if key in row)
    caption = f"hit among the k nearest, %, {named}"
    return figure(caption, plots.lines(series, f"{caption}, k = {ks}. {told}", "k", zero=True))


def _distances(result: Result) -> Markup:
    """Plot of the values by distance in frames, where the rows have one."""
    rows = [row for row in result.content["rows"] if "distance" in row]
    if not rows:
        return Markup()
    series, told = [], []
    for network, kind in (("pretrained", "line"), ("random", "dots")):
        of_network = [row for row in rows if row.get("network") == network]
        points = [(row["distance"], row["value"]) for row in of_network if row["distance"] != OTHER_VIDEO]
        if not points:  # one moment of each video
            return Markup()
        x, y = zip(*points, strict=True)
        series.append(Series(network, x, y, kind))
        told.append(f"{network}: from {y[0]:.1f} at {x[0]} frames to {y[-1]:.1f} at {x[-1]}")
        others = [row["value"] for row in of_network if row["distance"] == OTHER_VIDEO]
        series += [
            Series(f"{network}, {OTHER_VIDEO}", (x[0], x[-1]), (value,) * 2, f"{kind} level") for value in others
        ]
    kinds = [("line", "this network"), ("dots", "random weights"), ("level", "moments of different videos")]
    plot = plots.lines(series, "; ".join(told), "frames")
    return join((plots.legend(kinds), grid([figure("100 x cosine of two moments, by their distance", plot)])))


def _tables(rows: list[dict]) -> list[tuple[list[str], list[list], int]]:
    """Head, rows and number of columns that are no values, of one table for rows of single videos and one for the others; a
    column per metric. Rows of single classes have a section of their own."""
    found = []
    for kind in (set(), {"video"}):
        of_kind = [row for row in rows if "class" not in row and row.keys() & {"video"} == kind]
        index = list(dict.fromkeys(key for row in of_kind for key in row if key not in ("metric", *MEASURED)))
        metrics = list(dict.fromkeys(row["metric"] for row in of_kind))
        lines: dict[tuple, dict[str, Markup]] = {}
        for row in of_kind:
            lines.setdefault(tuple(str(row.get(key, "")) for key in index), {})[row["metric"]] = value_cell(row)
        body = [[*place, *(cells.get(metric, "") for metric in metrics)] for place, cells in lines.items()]
        if of_kind:
            found.append(([*index, *metrics], body, len(index)))
    return found


def classes_html(result: Result) -> Markup:
    """Accuracy by class, best first, and the confusion matrix, where the result has them."""
    out = []
    rows = sorted((row for row in result.content["rows"] if "class" in row), key=lambda row: -row["value"])
    if rows:
        out += [heading(f"{result.title}: accuracy by class"), _class_bars(rows)]
        body = [(row["class"], value_cell(row), row.get("videos", "")) for row in rows]
        out.append(details("Numbers", table("Accuracy by class, %", ("Class", "Accuracy", "Videos"), body, (1, 2))))
    if confusion := result.content.get("confusion"):
        out += [heading(f"{result.title}: confusions"), _confusion(confusion["classes"], confusion["counts"])]
    return join(out)


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


def _confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    counts = np.array(counts)
    present = counts.sum(0) + counts.sum(1) > 0
    classes, counts = [name for name, kept in zip(classes, present, strict=True) if kept], counts[present][:, present]
    label = f"Confusion matrix of {len(classes)} classes: {np.trace(counts)} of {counts.sum()} videos on the diagonal"
    caption = "Rows: true class; columns: predicted; shade: share of the row"
    out = [figure(caption, scroll(label, plots.matrix(classes, counts, label)))]
    wrong = sorted((-counts[t, p], t, p) for t, p in np.argwhere(counts) if t != p)
    head = ("True class", "Taken for", "Videos", "% of the class")
    body = [(classes[t], classes[p], -n, f"{-100 * n / counts[t].sum():.0f}") for n, t, p in wrong[:12]]
    if body:
        out.append(table("The most frequent confusions", head, body, (2, 3)))
    if len(classes) <= _MANY_CLASSES:
        full = [(name, *(count or "" for count in row)) for name, row in zip(classes, counts.tolist(), strict=True)]
        numbers = table("Videos by true class (rows) and predicted class", ("True class", *classes), full, range(1, 99))
        out.append(details("The whole matrix", numbers))
    return join(out)
