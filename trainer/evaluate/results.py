"""Results as files of a run, and as tables for the screen. The files are <run>/results/<protocol>-<data set>[-<split>].json,
a .csv of the same name with the rows, and an .npz with the answer to every tested item."""

from __future__ import annotations

import csv
import functools
import io
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from labelgen.errors import ReadError
from labelgen.files import replacing, write_json, write_text
from labelgen.reading import load_json, open_regular, validate
from labelgen.texts import csv_cells
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS, known, protocol_class
from trainer.evaluate.metrics import Answers, ItemScores
from trainer.evaluate.splits import with_split

MEASURED = ("value", "low", "high", "dimensions", "C", "videos")  # keys of a row that do not say what was measured
OTHER_VIDEO = "other video"
TIME = ("time",)  # key of the rows of a result with disturbed clips
_ABOUT = ("mode", "views", "time", "classes", "items", "largest_class")  # conditions that are printed above a table
_EQUAL = 1e-6  # points; rounding errors are smaller
_BYTES = 1 << 30  # limit of an unpacked file of predictions
_KEPT = {"rows": ("i", 1), "right": ("f", 2), "named": ("i", 2)}  # kind of the dtype, and number of dimensions
_KEPT |= dict.fromkeys(("items", "labels", "groups", "classes"), ("U", 1))
_DAMAGES = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)
_NUMBER = int | float
NEIGHBOURS = [{"query": str, "label": str, "nearest": [[str]], "cosines?": [_NUMBER]}]
_SHAPE = {  # of a result file; names with ? are optional
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
        | dict.fromkeys(
            ("network?", "stage?", "pooling?", "level?", "split?", "class?", "pair?", "time?", "video?"), str
        )
    ],
    "notes": [str],
    "neighbours?": NEIGHBOURS,
    "sheets?": [{"video": str, "label": str, "file": str, "shown": [str]}],
    "confusion?": {"classes": [str], "counts": [[int]]},
}


@dataclass(frozen=True)
class Result:
    """One file of <run>/results: its name without the data set and split, its content, the run's folder, and its path."""

    name: str
    content: dict
    run: Path
    file: Path

    @functools.cached_property
    def scores(self) -> ItemScores | None:
        """The answers to every item; None if they were not stored. Raises TrainerError if they are damaged."""
        path = self.file.with_suffix(".npz")
        return read_scores(path) if path.exists() else None

    @property
    def protocol(self) -> dict:
        return self.content["protocol"]

    @property
    def kind(self) -> str:
        """The name of the protocol, the first part of the name of the result."""
        return self.name.partition("-")[0]

    @property
    def protocol_type(self) -> type[Any] | None:
        """The class of the protocol; None if its name is unknown."""
        return protocol_class(self.kind) if known(self.kind) else None

    @property
    def drawn(self) -> bool:
        """Whether the protocol drew sheets, which are shown in a separate section of the page."""
        return self.protocol_type is not None and bool(self.content.get("sheets"))

    @property
    def title(self) -> str:
        p, protocol_type = self.protocol, self.protocol_type
        title = protocol_type.title if protocol_type else self.name
        crossed = self.name != self.kind and "gallery" in p
        variant = "" if crossed or self.name == self.kind else f" ({self.name.partition('-')[2]})"
        title += f" from {p['gallery']} by {p['dataset']}" if crossed else f"{variant} on {p['dataset']}"
        return with_split(title, p["split"])


def write(result: dict, run: Path, name: str, scores: ItemScores | None = None) -> None:
    """Write a result, its rows, and the answers behind them; result["file"] is set to the path of the .json file."""
    protocol = result["protocol"]
    folder = run / "results"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [name, protocol["dataset"], protocol["split"]]
    stem = "-".join(str(part).replace("/", "_") for part in parts if part)
    if scores and scores.answers:
        write_scores(folder / f"{stem}.npz", scores)
    else:
        (folder / f"{stem}.npz").unlink(missing_ok=True)  # left by an earlier measurement
    write_text(folder / f"{stem}.csv", csv_text(result["rows"]))
    write_json(folder / f"{stem}.json", result)
    result["file"] = str(folder / f"{stem}.json")


def write_scores(path: Path, scores: ItemScores) -> None:
    """Write the answers to the tested items (see `read_scores`)."""
    right = np.array([answers.right for answers in scores.answers.values()], np.float32)
    predicted = np.array([answers.predicted for answers in scores.answers.values()])
    tested = ~np.isnan(right).all(0)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            rows=np.array([*scores.answers]),
            right=right[:, tested],
            named=predicted[:, tested],
            items=scores.items[tested],
            labels=scores.labels[tested],
            groups=scores.groups[tested],
            classes=scores.classes,
        )


def read_scores(path: Path) -> ItemScores:
    """The tested items of a result and the answers to them, from its .npz file. Raises TrainerError if the file is damaged."""
    try:
        rows, right, predicted, items, labels, groups, classes = _arrays(path)
        if right.shape != (shape := (len(rows), len(items))) or predicted.shape != shape:
            raise ValueError(f"of {len(rows)} rows and {len(items)} items {right.shape} values")
        if len(labels) != len(items) or len(groups) != len(items):
            raise ValueError(f"{len(labels)} labels and {len(groups)} groups of {len(items)} items")
        if not ((right >= 0) & (right <= 1) | np.isnan(right)).all() or (predicted >= len(classes)).any():
            raise ValueError("values that no measurement gives")
    except _DAMAGES as error:
        raise TrainerError(f"{path}: damaged ({error}); measure again") from error
    answers = {int(row): Answers(*of_row) for row, *of_row in zip(rows, right, predicted, strict=True)}
    return ItemScores(items, labels, groups, classes, answers)


def _arrays(path: Path) -> list[Any]:
    """The arrays of a file of predictions, in the order of _KEPT. Raises one of _DAMAGES for other arrays, or too large ones."""
    with open_regular(path) as opened:
        with ZipFile(opened) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > _BYTES:
            raise ValueError(f"{size:,} bytes, expected at most {_BYTES:,}")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as file:
            found = []
            for name, kind in _KEPT.items():
                with file.zip.open(f"{name}.npy") as header:  # checked before memory is allocated
                    version = np.lib.format.read_magic(header)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version](header)
                fits = (dtype.kind, len(shape)) == kind or shape == (
                    0,
                )  # an empty list of classes is stored as numbers
                if math.prod(shape) * dtype.itemsize > size or not fits:
                    raise ValueError(f"{name} is {dtype} {shape}")
                found.append(file[name])
    return found


def csv_text(rows: Sequence[dict], columns: Iterable[str] = ()) -> str:
    """Rows as the text of a CSV file with one column for each key, beginning with `columns`."""
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    table = csv.writer(text, lineterminator="\n")
    table.writerows(map(csv_cells, [names, *([row.get(name, "") for name in names] for row in rows)]))
    return text.getvalue()


def read_results(run: Path) -> tuple[list[Result], list[str]]:
    """The results of a run, from its folder results/.

    Parameters
    ----------
    run : Path
        The folder of the run.

    Returns
    -------
    list of Result, list of str
        In the order of PROTOCOLS, each with its `content`; and a note on each file that is damaged or not a result.

    Examples
    --------
    >>> from pathlib import Path
    >>> from trainer.evaluate.results import read_results
    >>> results, notes = read_results(Path("runs/pace-r3d10-1"))
    >>> [result.kind for result in results], notes
    (['retrieval', 'knn'], [])
    """
    found, notes = [], []
    for path in sorted((run / "results").glob("*.json")):
        try:
            content = load_json(path)
            _check(content)
        except (ReadError, ValueError) as error:
            notes.append(f"{path}: not a result of vssl eval, or damaged ({error}); delete it and measure again")
            continue
        of = [content["protocol"][key] for key in ("dataset", "split") if content["protocol"][key]]
        found.append(Result(path.stem.removesuffix("-" + "-".join(of).replace("/", "_")), content, run, path))
    order = [*PROTOCOLS]
    return sorted(found, key=lambda result: order.index(result.name) if result.name in order else len(order)), notes


def read_all_scores(results: Mapping[Any, Result]) -> tuple[dict[Any, ItemScores], list[str]]:
    """The answers to the items of each result that stored them, by the key of the result, and a note on each damaged file."""
    found, notes = {}, []
    for key, result in results.items():
        try:
            if result.scores is not None:
                found[key] = result.scores
        except TrainerError as error:
            notes.append(str(error))
    return found, notes


def _check(content: Any) -> None:
    """Raise ValueError, with the value and what was expected, if this is not the content of a result."""
    validate(content, _SHAPE, "it")
    if initial := content["protocol"]["initial"]:
        validate(initial, {"settings": {"method": str}, "dataset": str}, "initial")
    for row in content["rows"]:
        numbers = [abs(row.get(key, 0)) for key in ("value", "low", "high")]
        distance = row.get("distance", OTHER_VIDEO)
        _expect(max(numbers) < 1e6, "row", row, "numbers below 10^6")
        _expect(("low" in row) == ("high" in row), "row", row, "both ends of the interval or none")
        _expect(
            distance == OTHER_VIDEO or not isinstance(distance, str),
            "distance",
            distance,
            f"{OTHER_VIDEO!r} or a number",
        )
    check_neighbours(content.get("neighbours", ()))
    if confusion := content.get("confusion"):
        classes, counts = confusion["classes"], confusion["counts"]
        square = len(counts) == len(classes) and all(len(row) == len(classes) for row in counts)
        _expect(
            square and any(map(any, counts)), "confusion", counts, f"counts of {len(classes)} x {len(classes)} classes"
        )


def check_neighbours(queries: Iterable[dict]) -> None:
    """Raise ValueError for queries of the form NEIGHBOURS whose lists do not match in length."""
    for query in queries:
        nearest, cosines = query["nearest"], query.get("cosines", query["nearest"])
        _expect(all(len(pair) == 2 for pair in nearest), "neighbours", nearest, "video and class of each")
        _expect(len(cosines) == len(nearest), "cosines", cosines, f"{len(nearest)}, one for each neighbour")


def _expect(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!s:.60}, expected {expected}")


def network_rows(result: Result) -> list[dict]:
    """The rows of the run's network, without those for single classes, pairs and videos."""
    rows = [row for row in overall(result.content["rows"]) if row.get("network", "pretrained") == "pretrained"]
    return [row for row in rows if not row.keys() & {"class", "pair", "video"}]


def headline(result: Result) -> dict | None:
    """The row that represents a result, by a rule that does not depend on the values: the first metric, video level, the last
    stage and max pooling, as far as there is a choice. None if no row has an interval."""
    rows = [row for row in network_rows(result) if "low" in row]
    for key, wanted in (("metric", None), ("level", "video"), ("stage", None), ("pooling", "max")):
        values = [row[key] for row in rows if key in row]
        if values:
            value = wanted if wanted in values else values[0] if key == "metric" else values[-1]
            rows = [row for row in rows if row.get(key) == value]
    return rows[0] if rows else None


def place_of(result: Result, row: dict) -> int:
    """The number of a row in its result, the key of its answers."""
    return next(place for place, other in enumerate(result.content["rows"]) if other is row)


def baselines(result: Result, row: dict) -> dict[str, float]:
    """The values that the random network and chance give for the same measurement, by network."""
    return {network: other["value"] for network, other in baseline_rows(result, row).items()}


def baseline_rows(result: Result, row: dict) -> dict[str, dict]:
    """The rows of the random network and of chance for the same measurement, by network."""
    keys = row.keys() - {"network", *MEASURED}
    return {
        other["network"]: other
        for other in overall(result.content["rows"])
        if other.get("network") in ("random", "chance") and all(other.get(key, row[key]) == row[key] for key in keys)
    }


def flat(values: dict, before: str = "") -> list[tuple[str, object]]:
    """Dotted names and values of a nested dict, without values that are None."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if value is not None:
            rows += flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return rows


def agree(row: Mapping[str, float]) -> bool:
    """Whether all resamples of a value are equal, because every video gives the same one: no interval can be given."""
    return "low" in row and row["high"] - row["low"] < _EQUAL


def shown(row: Mapping[str, float], sign: str = "") -> str:
    """The value of a row, with its interval if it has one: 69.1 [64.0, 73.8]; sign: "+" for differences, +4.0 [-1.5, +9.5]."""
    value = f"{row['value']:{sign}.1f}"
    if "low" not in row:
        return value
    return f"{value} [{'all videos agree' if agree(row) else ', '.join(f'{row[end]:{sign}.1f}' for end in ('low', 'high'))}]"


def overall(rows: list[dict]) -> list[dict]:
    """The rows without those for single splits."""
    return [row for row in rows if row.get("split") in (None, "all", "mean")]


def header(result: dict, title: str) -> list[str]:
    """Lines that say how a result was measured."""
    p = result["protocol"]
    source = p["pretraining"]
    by = f"{source['method']} on {source['dataset']}, {source['steps']} of {source['steps_planned']} steps, seed {source['seed']}"
    if source["method"] == "imported":
        by = f"imported from {source['dataset']}, expects {p.get('input', 'unknown pixels')}"
    return [
        f"{title} on {with_split(p['dataset'], p['split'])}",
        "; ".join(f"{key.replace('_', ' ')}: {p[key]}" for key in _ABOUT if key in p),
        f"{p['backbone']} (width {p['width']:g}, {p['parameters']:,} parameters), {by}",
    ]


def table(rows: list[dict], index: tuple[str, ...], columns: tuple[str, ...]) -> list[str]:
    """One line per combination of the index keys, one column per combination of the column keys, values as in `shown`."""
    names = list(dict.fromkeys(tuple(row.get(key, "") for key in columns) for row in rows))
    lines: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        place = tuple(str(row.get(key, "")) for key in index)
        lines.setdefault(place, {})[tuple(row.get(key, "") for key in columns)] = shown(row)
    body = [[*place, *(cells.get(name, "") for name in names)] for place, cells in lines.items()]
    heads = [[*index, *(str(name[level]) for name in names)] for level in range(len(columns))]
    for level, head in enumerate(heads[:-1], 1):  # a name that spans several columns is printed over the first
        head[: len(index)] = [""] * len(index)
        head[len(index) :] = [
            "" if i and names[i][:level] == names[i - 1][:level] else cell for i, cell in enumerate(head[len(index) :])
        ]
    return aligned([*heads, *body], len(index))


def aligned(rows: list[list], left: int | None = None) -> list[str]:
    """Lines with aligned columns; left: number of left-aligned columns (None for all), the others are right-aligned."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    left = len(widths) if left is None else left
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    ]
