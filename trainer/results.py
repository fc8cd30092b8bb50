"""The results in a run's folder, and each of them as plots and tables of a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer import plots
from trainer.evaluate.protocol import shown
from trainer.page import Html, details, figure, grid, html, items, paragraph, scroll, table
from trainer.plots import Point, Series

TITLES = {
    "retrieval": "Retrieval",
    "knn": "k-NN",
    "linear": "Linear probe",
    "recognition": "Recognition",
    "scenes": "Scenes",
    "similarity": "Similarity",
    "smoothness": "Smoothness",
    "attention": "Attention",
}
MEASURED = ("value", "low", "high", "dimensions", "C", "videos")  # what of a row does not say what was measured
_OTHER = "other video"
_NUMBER = int | float
_SHAPE = {  # of a file; names with ? may be missing
    "protocol": {
        "dataset": str,
        "split": str | None,
        "gallery?": str,
        "mode": str,
        "views": str,
        "pretraining": {"method": str, "dataset": str, "steps": int},
        "initial": dict | None,
    },
    "rows": [
        {"metric": str, "value": _NUMBER, "low?": _NUMBER, "high?": _NUMBER, "distance?": int | str}
        | dict.fromkeys(("network?", "stage?", "pooling?", "level?", "split?", "class?", "video?"), str)
    ],
    "notes": [str],
    "neighbours?": [{"query": str, "label": str, "nearest": [[str]]}],
    "sheets?": [{"video": str, "label": str, "file": str, "shown": [str]}],
    "confusion?": {"classes": [str], "counts": [[int]]},
}
_MANY_ROWS, _MANY_CLASSES = 8, 60


@dataclass(frozen=True)
class Result:
    """One file of <run>/results: the name of the protocol, what the file holds, and the run's folder."""

    name: str
    content: dict
    run: Path

    @property
    def protocol(self) -> dict:
        return self.content["protocol"]

    @property
    def title(self) -> str:
        p, title = self.protocol, TITLES.get(self.name, self.name)
        title += f" on {p['dataset']}"
        if self.name.startswith("retrieval-"):
            title = f"Retrieval from {p['gallery']} by {p['dataset']}"
        return title + f", split {p['split']}" * bool(p["split"])


def read_results(run: Path) -> tuple[list[Result], list[str]]:
    """The results of a run, in the order of TITLES, and a note about each file that no `vssl eval` wrote."""
    found, notes = [], []
    for path in sorted((run / "results").glob("*.json")):
        try:
            content = json.loads(path.read_text())
            _check(content)
        except (OSError, ValueError, RecursionError) as error:
            notes.append(f"{path}: not a result of vssl eval, or damaged ({error}); delete it and measure again")
            continue
        of = [content["protocol"][key] for key in ("dataset", "split") if content["protocol"][key]]
        found.append(Result(path.stem.removesuffix("-" + "-".join(of).replace("/", "_")), content, run))
    order = [*TITLES]
    return sorted(found, key=lambda result: order.index(result.name) if result.name in order else len(order)), notes


def _check(content: object) -> None:
    """Raise ValueError for what is not the content of a result."""
    _fit(content, _SHAPE, "it")
    if initial := content["protocol"]["initial"]:
        _fit(initial, {"settings": {"method": str}, "dataset": str}, "initial")
    for row in content["rows"]:
        numbers = [row.get(key, 0) for key in ("value", "low", "high")]
        other = isinstance(row.get("distance"), str) and row["distance"] != _OTHER
        if other or ("low" in row) != ("high" in row) or not all(abs(number) < 1e6 for number in numbers):
            raise ValueError(f"row {str(row):.60}")
    if not all(len(pair) == 2 for query in content.get("neighbours", ()) for pair in query["nearest"]):
        raise ValueError("neighbours without their class")
    if confusion := content.get("confusion"):
        classes, counts = confusion["classes"], np.array(confusion["counts"])  # ValueError where rows differ in length
        if counts.shape != (len(classes),) * 2 or not counts.any():
            raise ValueError(f"{len(classes)} classes, confusions {counts.shape}")


def _fit(value: object, shape: object, name: str) -> None:
    if not isinstance(value, type(shape) if isinstance(shape, (dict, list)) else shape):
        raise ValueError(f"{name} is {value!r:.60}")
    if isinstance(shape, list):
        for one in value:
            _fit(one, shape[0], name)
    elif isinstance(shape, dict):
        for key, own in shape.items():
            if key.removesuffix("?") in value:
                _fit(value[key.removesuffix("?")], own, key.removesuffix("?"))
            elif not key.endswith("?"):
                raise ValueError(f"no {key}")


def overall(result: Result) -> list[dict]:
    """The rows of a result; of several splits those of all together."""
    return [row for row in result.content["rows"] if row.get("split", "all") in ("all", "mean")]


def own_rows(result: Result) -> list[dict]:
    """The rows of the run's own network, without those of single classes and videos."""
    rows = [row for row in overall(result) if row.get("network", "pretrained") == "pretrained"]
    return [row for row in rows if not row.keys() & {"class", "video"}]


def headline(result: Result) -> dict | None:
    """The one row that stands for a result, by a rule that does not look at the values: the first metric, video level, the
    last stage, max pooling, as far as there are several. None where no row has an interval."""
    rows = [row for row in own_rows(result) if "low" in row]
    for key, wanted in (("metric", None), ("level", "video"), ("stage", None), ("pooling", "max")):
        values = [row[key] for row in rows if key in row]
        if values:
            value = wanted if wanted in values else values[0] if key == "metric" else values[-1]
            rows = [row for row in rows if row.get(key) == value]
    return rows[0] if rows else None


def beside(result: Result, row: dict) -> dict[str, float]:
    """Values of the random network and of chance for what a row measured, by network."""
    keys = row.keys() - {"network", *MEASURED}
    return {
        other["network"]: other["value"]
        for other in overall(result)
        if other.get("network") in ("random", "chance") and all(other.get(key, row[key]) == row[key] for key in keys)
    }


def value_cell(row: dict) -> Html:
    """A value with its interval."""
    value, _, interval = shown(row).partition(" ")
    return Html(value + f" <small>{interval}</small>" * bool(interval))


def flat(values: dict, before: str = "") -> list[tuple[str, object]]:
    """Names and values of a nested dict, without those that are None."""
    rows = []
    for name, value in values.items():
        if value is not None:
            rows += flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return rows


def result_html(result: Result, of: str = "") -> Html:
    """Heading, protocol, plots and tables of a result; of: words behind the title."""
    p = result.protocol
    told = "; ".join(str(p[key]) for key in ("mode", "views", "classifier", "items") if key in p)
    out = f"<h3>{html(result.title + of)}</h3>" + paragraph(f"{told}.", "muted")
    out += _values(result) + _distances(result)
    for head, rows, left in _tables(result.content["rows"]):
        text = table(f"{result.title}: {', '.join(head[left:])}", head, rows, range(left, len(head)))
        out += details(f"{len(rows)} rows of numbers", text) if len(rows) > _MANY_ROWS else text
    if result.content["notes"]:
        out += items(f"Note: {note}" for note in result.content["notes"])
    if any("low" in row for row in result.content["rows"]):
        out += paragraph(
            "Values in per cent; behind them, and as lines in the plots, 95 % intervals by test video.", "muted"
        )
    return Html(out + details("Protocol", table(f"Protocol: {result.title}", ("What", "Value"), flat(p))))


def _values(result: Result) -> Html:
    """Plots of the first metric, one per level: a row per stage and pooling, pretrained and random network side by side; and
    of hits by k, where there are several."""
    rows = [row for row in overall(result) if not row.keys() & {"class", "video", "distance"}]
    places = {(row.get("stage"), row.get("pooling")) for row in rows if "low" in row}
    if len(places) < 2:
        return Html()  # a table says as much
    metric = next(row["metric"] for row in rows if "low" in row)
    found, kinds = [], set()
    for level in dict.fromkeys(row.get("level") for row in rows):
        own = [row for row in rows if row["metric"] == metric and row.get("level") == level]
        points = _points(own)
        kinds |= {point.kind for place in points.values() for point in place}
        told = "; ".join(f"{name}: " + ", ".join(f"{p.kind} {p.value:.1f}" for p in ps) for name, ps in points.items())
        caption = f"{metric}, %" + f", {level} level" * bool(level)
        found.append(figure(caption, plots.intervals([*points.items()], f"{caption}. {told}")))
    names = {"pretrained": "this network, 95 % interval", "random": "random weights", "chance": "chance"}
    legend = plots.legend([(kind, name) for kind, name in names.items() if kind in kinds])
    return Html(legend + grid([*found, _by_k(result)]))


def _points(rows: list[dict]) -> dict[str, list[Point]]:
    chance = [Point("chance", row["value"]) for row in rows if row.get("network") == "chance"]
    points: dict[str, list[Point]] = {}
    for row in rows:
        if row.get("network") != "chance":
            name = " ".join(str(row[key]) for key in ("stage", "pooling") if key in row)
            point = Point(row.get("network", "pretrained"), row["value"], row.get("low"), row.get("high"))
            points.setdefault(name, [*chance]).append(point)
    return points


def _by_k(result: Result) -> str:
    """Plot of the row that stands for the result by the k of its metrics top-k."""
    row = headline(result)
    if not row or not row["metric"].removeprefix("top-").isdecimal():
        return ""
    keys = row.keys() - {"metric", *MEASURED}
    lines: dict[str, dict[int, float]] = {}
    for own in own_rows(result):
        k = own["metric"].removeprefix("top-")
        if k.isdecimal() and all(own.get(key) == row[key] for key in keys):
            for network, value in {"pretrained": own["value"], **beside(result, own)}.items():
                lines.setdefault(network, {})[int(k)] = value
    kinds = {"pretrained": "dots line", "random": "dots", "chance": "level"}
    series = [Series(network, [*of_k], [*of_k.values()], kinds[network]) for network, of_k in lines.items()]
    told = "; ".join(f"{s.name}: " + ", ".join(f"{value:.1f}" for value in s.y) for s in series)
    ks = ", ".join(map(str, lines["pretrained"]))
    named = " ".join(str(row[key]) for key in ("level", "stage", "pooling") if key in row)
    caption = f"hit among the k nearest, %, {named}"
    return figure(caption, plots.lines(series, f"{caption}, k = {ks}. {told}", "k", zero=True))


def _distances(result: Result) -> Html:
    """Plot of the values by distance in frames, where the rows have one."""
    rows = [row for row in result.content["rows"] if "distance" in row]
    if not rows:
        return Html()
    series, told = [], []
    for network, kind in (("pretrained", "line"), ("random", "dots")):
        own = [row for row in rows if row.get("network") == network]
        points = [(row["distance"], row["value"]) for row in own if row["distance"] != _OTHER]
        if not points:  # one moment of each video
            return Html()
        x, y = zip(*points, strict=True)
        series.append(Series(network, x, y, kind))
        told.append(f"{network}: from {y[0]:.1f} at {x[0]} frames to {y[-1]:.1f} at {x[-1]}")
        others = [row["value"] for row in own if row["distance"] == _OTHER]
        series += [Series(f"{network}, {_OTHER}", (x[0], x[-1]), (value,) * 2, f"{kind} level") for value in others]
    kinds = [("line", "this network"), ("dots", "random weights"), ("level", "moments of different videos")]
    plot = plots.lines(series, "; ".join(told), "frames")
    return Html(plots.legend(kinds) + grid([figure("100 x cosine of two moments, by their distance", plot)]))


def _tables(rows: list[dict]) -> list[tuple[list[str], list[list], int]]:
    """Head, rows and number of columns that are no values, of one table for rows of single videos and one for the others; a
    column per metric. Rows of single classes have a section of their own."""
    found = []
    for kind in (set(), {"video"}):
        own = [row for row in rows if "class" not in row and row.keys() & {"video"} == kind]
        index = list(dict.fromkeys(key for row in own for key in row if key not in ("metric", *MEASURED)))
        metrics = list(dict.fromkeys(row["metric"] for row in own))
        lines: dict[tuple, dict[str, Html]] = {}
        for row in own:
            lines.setdefault(tuple(str(row.get(key, "")) for key in index), {})[row["metric"]] = value_cell(row)
        body = [[*place, *(cells.get(metric, "") for metric in metrics)] for place, cells in lines.items()]
        if own:
            found.append(([*index, *metrics], body, len(index)))
    return found


def classes_html(result: Result) -> Html:
    """Accuracy by class, best first, and the confusion matrix, where the result has them."""
    out = ""
    rows = sorted((row for row in result.content["rows"] if "class" in row), key=lambda row: -row["value"])
    if rows:
        out += f"<h3>{html(result.title)}: accuracy by class</h3>" + _class_bars(rows)
        body = [(row["class"], value_cell(row), row.get("videos", "")) for row in rows]
        out += details("Numbers", table("Accuracy by class, %", ("Class", "Accuracy", "Videos"), body, (1, 2)))
    if confusion := result.content.get("confusion"):
        out += f"<h3>{html(result.title)}: confusions</h3>" + _confusion(confusion["classes"], confusion["counts"])
    return Html(out)


def _class_bars(rows: list[dict]) -> Html:
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


def _confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    counts = np.array(counts)
    present = counts.sum(0) + counts.sum(1) > 0
    classes, counts = [name for name, kept in zip(classes, present, strict=True) if kept], counts[present][:, present]
    label = f"Confusion matrix of {len(classes)} classes: {np.trace(counts)} of {counts.sum()} videos on the diagonal"
    caption = "Rows: true class; columns: predicted; shade: share of the row"
    out = figure(caption, scroll(label, plots.matrix(classes, counts, label)))
    wrong = sorted((-counts[t, p], t, p) for t, p in np.argwhere(counts) if t != p)
    head = ("True class", "Taken for", "Videos", "% of the class")
    body = [(classes[t], classes[p], -n, f"{-100 * n / counts[t].sum():.0f}") for n, t, p in wrong[:12]]
    if body:
        out += table("The most frequent confusions", head, body, (2, 3))
    if len(classes) <= _MANY_CLASSES:
        full = [(name, *(count or "" for count in row)) for name, row in zip(classes, counts.tolist(), strict=True)]
        numbers = table("Videos by true class (rows) and predicted class", ("True class", *classes), full, range(1, 99))
        out += details("The whole matrix", numbers)
    return Html(out)
