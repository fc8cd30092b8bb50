"""Each result of a run as plots and tables on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from trainer.evaluate.metrics import NORMAL, ItemScores, paired
from trainer.evaluate.results import (
    MEASURED,
    OTHER_VIDEO,
    Result,
    baseline_rows,
    baselines,
    flat,
    headline,
    network_rows,
    overall,
    place_of,
)
from trainer.pages import plots
from trainer.pages.differences import Line, differences_table, value_cell
from trainer.pages.page import details, figure, grid, heading, items, join, paragraph, table
from trainer.pages.plots import Point, Series

T = TypeVar("T")
_MANY_ROWS = 8
_NETWORKS = {"pretrained": "this network, 95 % interval", "random": "random weights", "chance": "chance"}


def named(row: dict) -> str:
    """What a row measured, as text: top-1, video, conv5, max."""
    return ", ".join(str(row[key]) for key in ("metric", "level", "stage", "pooling") if key in row)


def against_random(
    result: Result, row: dict, scores: ItemScores | None, measure: Callable[[ItemScores, ItemScores, int, int], T]
) -> T | None:
    """The result of a function of two accuracies, see metrics.paired, for a row and that of random weights; None if they cannot
    be compared."""
    random = baseline_rows(result, row).get("random")
    if scores is None or random is None:
        return None
    return measure(scores, scores, place_of(result, random), place_of(result, row))


def overview(results: Sequence[Result], scores: Mapping[Path, ItemScores]) -> Markup:
    """A table of the headline row of each result, next to random weights and chance; scores: by the file of the result."""
    lines = []
    for result in results:
        if row := headline(result):
            others = baseline_rows(result, row)
            cells = [f"{others[name]['value']:.1f}" if name in others else "" for name in ("random", "chance")]
            pair = against_random(result, row, scores.get(result.file), paired)
            name = f"{result.title}: {named(row)}"
            lines.append(Line(name, [value_cell(row), *cells], {"Difference from random": pair}))
    values = ["This network", "Random", "Chance"]
    return differences_table("Headline row of each result, %", "Result", values, lines) if lines else Markup()


def result_html(result: Result, of: str = "") -> Markup:
    """Heading, protocol, plots and tables of a result; of: words after the title."""
    p = result.protocol
    how = "; ".join(str(p[key]) for key in ("mode", "views", "classifier", "items") if key in p)
    out = [heading(result.title + of), paragraph(f"{how}.", "muted"), _values(result), _distances(result)]
    for head, rows, left in _tables(result.content["rows"]):
        text = table(f"{result.title}: {', '.join(head[left:])}", head, rows, range(left, len(head)))
        out.append(details(f"{len(rows)} rows of numbers", text) if len(rows) > _MANY_ROWS else text)
    if result.content["notes"]:
        out.append(items(f"Note: {note}" for note in result.content["notes"]))
    return join([*out, details("Protocol", table(f"Protocol: {result.title}", ("What", "Value"), flat(p)))])


def _values(result: Result) -> Markup:
    """Plots of the first metric, one per level: a row per stage and pooling, pretrained and random network side by side; and of
    hits by k, if there are several k."""
    rows = [row for row in overall(result.content["rows"]) if not row.keys() & {"class", "pair", "video", "distance"}]
    rows = [row for row in rows if row.get("time", NORMAL) == NORMAL]
    rows = [row for row in rows if row.get("network", "pretrained") in _NETWORKS]
    places = {(row.get("stage"), row.get("pooling")) for row in rows if "low" in row}
    if len(places) < 2:
        return Markup()  # a table shows the same
    metric = next(row["metric"] for row in rows if "low" in row)
    found, kinds = [], set()
    for level in dict.fromkeys(row.get("level") for row in rows):
        of_level = [row for row in rows if row["metric"] == metric and row.get("level") == level]
        points = _points(of_level)
        kinds |= {point.kind for place in points.values() for point in place}
        label = "; ".join(f"{name}: " + ", ".join(f"{p.kind} {p.value:.1f}" for p in ps) for name, ps in points.items())
        caption = f"{metric}, %, {level} level" if level else f"{metric}, %"
        found.append(figure(caption, plots.intervals([*points.items()], f"{caption}. {label}")))
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
    """Plot of the result's headline row by the k of its top-k metrics."""
    row = headline(result)
    if not row or not row["metric"].removeprefix("top-").isdecimal():
        return Markup()
    keys = row.keys() - {"metric", *MEASURED}
    lines: dict[str, dict[int, float]] = {}
    for other in network_rows(result):
        k = other["metric"].removeprefix("top-")
        if k.isdecimal() and all(other.get(key) == row[key] for key in keys):
            for network, value in {"pretrained": other["value"], **baselines(result, other)}.items():
                lines.setdefault(network, {})[int(k)] = value
    kinds = {"pretrained": "dots line", "random": "dots", "chance": "level"}
    series = [Series(network, [*of_k], [*of_k.values()], kinds[network]) for network, of_k in lines.items()]
    label = "; ".join(f"{s.name}: " + ", ".join(f"{value:.1f}" for value in s.y) for s in series)
    ks = ", ".join(map(str, lines["pretrained"]))
    features = " ".join(str(row[key]) for key in ("level", "stage", "pooling") if key in row)
    caption = f"hit among the k nearest, %, {features}"
    return figure(caption, plots.lines(series, f"{caption}, k = {ks}. {label}", "k", zero=True))


def _distances(result: Result) -> Markup:
    """Plot of the values by distance in frames, if the rows have one."""
    rows = [row for row in result.content["rows"] if "distance" in row]
    if not rows:
        return Markup()
    series, labels = [], []
    for network, kind in (("pretrained", "line"), ("random", "dots")):
        of_network = [row for row in rows if row.get("network") == network]
        points = [(row["distance"], row["value"]) for row in of_network if row["distance"] != OTHER_VIDEO]
        if not points:  # only one moment of each video
            return Markup()
        x, y = zip(*points, strict=True)
        series.append(Series(network, x, y, kind))
        labels.append(f"{network}: from {y[0]:.1f} at {x[0]} frames to {y[-1]:.1f} at {x[-1]}")
        others = [row["value"] for row in of_network if row["distance"] == OTHER_VIDEO]
        series += [
            Series(f"{network}, {OTHER_VIDEO}", (x[0], x[-1]), (value,) * 2, f"{kind} level") for value in others
        ]
    kinds = [("line", "this network"), ("dots", "random weights"), ("level", "moments of different videos")]
    plot = plots.lines(series, "; ".join(labels), "frames")
    return join((plots.legend(kinds), grid([figure("100 x cosine of two moments, by their distance", plot)])))


def _tables(rows: list[dict]) -> list[tuple[list[str], list[list], int]]:
    """Head, rows and number of leading columns that are not values, of one table for rows of single videos and one for the
    others, with a column per metric. Rows of single classes have a separate section."""
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
