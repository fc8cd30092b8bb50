"""Results as files of a run: <run>/results/<protocol>-<data set>[-<split>].json, with their rows as .csv beside them, and what
became of every tested item as .npz, see trainer.evaluate.tally."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labelgen.errors import ReadError
from labelgen.files import write_json, write_text
from labelgen.reading import fit, load_json
from labelgen.texts import csv_cells
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.evaluate.tables import overall, with_split

if TYPE_CHECKING:
    from trainer.evaluate.protocol import Protocol
    from trainer.evaluate.tally import Predictions, Tally

MEASURED = ("value", "low", "high", "dimensions", "C", "videos")  # what of a row does not say what was measured
OTHER_VIDEO = "other video"
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
    "neighbours?": [{"query": str, "label": str, "nearest": [[str]], "cosines?": [_NUMBER]}],
    "sheets?": [{"video": str, "label": str, "file": str, "shown": [str]}],
    "confusion?": {"classes": [str], "counts": [[int]]},
}


@dataclass(frozen=True)
class Result:
    """One file of <run>/results: the name of the protocol, what the file holds, the run's folder, and the file."""

    name: str
    content: dict
    run: Path
    file: Path

    @functools.cached_property
    def predictions(self) -> Predictions | None:
        """What is kept of every item; None where nothing is. Raises TrainerError where it is damaged."""
        from trainer.evaluate.tally import Predictions

        path = self.file.with_suffix(".npz")
        return Predictions(path) if path.exists() else None

    @property
    def protocol(self) -> dict:
        return self.content["protocol"]

    @property
    def kind(self) -> str:
        """The name of the protocol, with which the name of the result begins."""
        return self.name.partition("-")[0]

    @property
    def measured_by(self) -> type[Protocol] | None:
        """The protocol, None where there is none of that name."""
        return protocol_class(self.kind) if self.kind in PROTOCOLS else None

    @property
    def drawn(self) -> bool:
        """Whether the protocol drew sheets, which have a section of their own on the page."""
        return self.measured_by is not None and bool(self.content.get("sheets"))

    @property
    def title(self) -> str:
        p, measured_by = self.protocol, self.measured_by
        title = measured_by.title if measured_by else self.name
        crossed = self.name != self.kind and "gallery" in p
        variant = "" if crossed or self.name == self.kind else f" ({self.name.partition('-')[2]})"
        title += f" from {p['gallery']} by {p['dataset']}" if crossed else f"{variant} on {p['dataset']}"
        return with_split(title, p["split"])


def write(result: dict, run: Path, name: str, tally: Tally | None = None) -> None:
    """Write a result, its rows, and the predictions behind them (tally); result["file"] is then the path of the first."""
    protocol = result["protocol"]
    folder = run / "results"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [name, protocol["dataset"], protocol["split"]]
    stem = "-".join(str(part).replace("/", "_") for part in parts if part)
    kept = {i: row.pop("kept") for i, row in enumerate(result["rows"]) if "kept" in row}
    if kept:
        tally.write(folder / f"{stem}.npz", [*kept], [*kept.values()])
    else:
        (folder / f"{stem}.npz").unlink(missing_ok=True)  # of an earlier measurement
    write_text(folder / f"{stem}.csv", csv_text(result["rows"]))
    write_json(folder / f"{stem}.json", result)
    result["file"] = str(folder / f"{stem}.json")


def csv_text(rows: Sequence[dict], columns: Iterable[str] = ()) -> str:
    """Rows as the text of a CSV file; a column per key, the named ones first."""
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    table = csv.writer(text, lineterminator="\n")
    table.writerows(map(csv_cells, [names, *([row.get(name, "") for name in names] for row in rows)]))
    return text.getvalue()


def read_results(run: Path) -> tuple[list[Result], list[str]]:
    """The results of a run, in the order of PROTOCOLS, and a note about each file that no `vssl eval` wrote."""
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


def _check(content: object) -> None:
    """Raise ValueError for what is not the content of a result."""
    fit(content, _SHAPE, "it")
    if initial := content["protocol"]["initial"]:
        fit(initial, {"settings": {"method": str}, "dataset": str}, "initial")
    for row in content["rows"]:
        numbers = [row.get(key, 0) for key in ("value", "low", "high")]
        other = isinstance(row.get("distance"), str) and row["distance"] != OTHER_VIDEO
        if other or ("low" in row) != ("high" in row) or not all(abs(number) < 1e6 for number in numbers):
            raise ValueError(f"row {str(row):.60}")
    for query in content.get("neighbours", ()):
        if any(len(pair) != 2 for pair in query["nearest"]):
            raise ValueError("neighbours without their class")
        if len(query.get("cosines", query["nearest"])) != len(query["nearest"]):
            raise ValueError("not a cosine for each neighbour")
    if confusion := content.get("confusion"):
        classes, counts = confusion["classes"], np.array(confusion["counts"])  # ValueError where rows differ in length
        if counts.shape != (len(classes),) * 2 or not counts.any():
            raise ValueError(f"{len(classes)} classes, confusions {counts.shape}")


def of_the_network(result: Result) -> list[dict]:
    """The rows of the run's own network, without those of single classes and videos."""
    rows = [row for row in overall(result.content["rows"]) if row.get("network", "pretrained") == "pretrained"]
    return [row for row in rows if not row.keys() & {"class", "video"}]


def headline(result: Result) -> dict | None:
    """The one row that stands for a result, by a rule that does not look at the values: the first metric, video level, the
    last stage, max pooling, as far as there are several. None where no row has an interval."""
    rows = [row for row in of_the_network(result) if "low" in row]
    for key, wanted in (("metric", None), ("level", "video"), ("stage", None), ("pooling", "max")):
        values = [row[key] for row in rows if key in row]
        if values:
            value = wanted if wanted in values else values[0] if key == "metric" else values[-1]
            rows = [row for row in rows if row.get(key) == value]
    return rows[0] if rows else None


def place_of(result: Result, row: dict) -> int:
    """The number of a row of a result, by which its predictions are kept."""
    return next(place for place, other in enumerate(result.content["rows"]) if other is row)


def beside(result: Result, row: dict) -> dict[str, float]:
    """Values of the random network and of chance for what a row measured, by network."""
    return {network: other["value"] for network, other in rows_beside(result, row).items()}


def rows_beside(result: Result, row: dict) -> dict[str, dict]:
    """Rows of the random network and of chance for what a row measured, by network."""
    keys = row.keys() - {"network", *MEASURED}
    return {
        other["network"]: other
        for other in overall(result.content["rows"])
        if other.get("network") in ("random", "chance") and all(other.get(key, row[key]) == row[key] for key in keys)
    }


def flat(values: dict, before: str = "") -> list[tuple[str, object]]:
    """Names and values of a nested dict, without those that are None."""
    rows = []
    for name, value in values.items():
        if value is not None:
            rows += flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return rows
