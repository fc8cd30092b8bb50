"""Runs side by side: what they are, and every number that was measured for several of them under the same conditions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from labelgen.files import write_text
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.evaluate.results import MEASURED, Result, csv_text, flat, read_results
from trainer.evaluate.tables import aligned, shown, with_split
from trainer.evaluate.tally import Predictions, paired
from trainer.pages.page import fill, items, join, page, paragraph, table
from trainer.pages.published import pretraining
from trainer.pages.report import made_by, parameters
from trainer.pages.results import value_cell

# of a protocol, what tells of the network; all else are conditions, which must be equal where numbers stand in one row
_OF_THE_NETWORK = (
    "pretraining",
    "initial",
    "backbone",
    "width",
    "parameters",
    "checkpoint",
    "checkpoints",
    "versions",
)
_DIFFERENCE = {"": "value", "_low": "low", "_high": "high"}  # ends of names of columns -> keys
_MARKS = {"▲": "above the first value", "▼": "below the first value"}
RULE = (
    "In brackets behind a value, with its own 95 % interval: the paired difference from the first value in the row, of the same "
    "videos answered by both. ▲ ▼: that interval lies wholly above, below 0; where the videos' answers are not kept, "
    "the value's interval wholly above, below the first one's. "
    "Intervals cover the choice of test videos, not the training seed; of many "
    "rows some differ by chance."
)


def compare(runs: Sequence[str | os.PathLike]) -> dict:
    """What several runs are, and the numbers that at least two of them share.

    "names": of the runs; "runs": what each is, by name; "tables": one per protocol, data set, split and conditions (the
    configuration of the shards, views, items, ...), with "title", "conditions" and "rows": each the network, stage, pooling,
    level, metric, ... that were measured ("what"), the rows of the runs by name ("of"), their paired differences from the first
    run in the row ("differences", see tally.paired; those that can be had) and a mark for those that lie above ("▲") or below
    ("▼") it ("marks", see `mark`). "notes": what is in no table, and why.

    Raises TrainerError for fewer than two runs, for one named twice, and what checkpoint.load raises.
    """
    saved = [checkpoint.load(run, best=True) for run in runs]
    folders = [run.run.resolve() for run in saved]
    if len(set(folders)) < len(folders) or len(folders) < 2:
        raise TrainerError(f"runs to compare are {', '.join(map(str, runs))}: name two or more, each once")
    short = [folder.name for folder in folders]
    names = short if len(set(short)) == len(short) else list(map(str, folders))
    results, tables, notes = {}, [], []
    for name, run in zip(names, saved, strict=True):
        results[name], damaged = read_results(run.run)
        notes += damaged
    for name, run in zip(names, saved, strict=True):
        for result in results[name]:
            measured = result.protocol["pretraining"]["steps"]
            if measured != run.meta["step"]:
                notes.append(
                    f"{result.title}, {name}: measured at step {measured}, the run is now at {run.meta['step']}"
                )
    for title in dict.fromkeys(result.title for of_run in results.values() for result in of_run):
        by = {name: result for name in names for result in results[name] if result.title == title}
        groups: dict[tuple, dict[str, Result]] = {}
        for name, result in by.items():
            groups.setdefault(tuple(conditions(result).items()), {})[name] = result
        if len(by) == 1:
            notes.append(f"{title}: measured for {next(iter(by))} alone")
        elif len(groups) > 1:
            notes.append(f"{title}: measured under different conditions, {_difference(by)}")
        for same, group in groups.items():
            if len(group) > 1:
                tables.append(_table(title, dict(same), group, notes))
    return {
        "names": names,
        "runs": {name: _about(run) for name, run in zip(names, saved, strict=True)},
        "tables": [one for one in tables if one["rows"]],
        "notes": notes,
    }


def conditions(result: Result) -> dict[str, str]:
    """All of a result's protocol that does not tell of the network."""
    kept = {key: value for key, value in result.protocol.items() if key not in _OF_THE_NETWORK}
    return {key: str(value) for key, value in sorted(flat(kept))}


def _difference(by: dict[str, Result]) -> str:
    of = {name: conditions(result) for name, result in by.items()}
    keys = dict.fromkeys(key for told in of.values() for key in told)
    unlike = [key for key in keys if len({told.get(key) for told in of.values()}) > 1]
    return "; ".join(
        f"{key} is " + ", ".join(f"{told.get(key)} ({name})" for name, told in of.items()) for key in unlike
    )


def _table(title: str, same: dict, group: dict[str, Result], notes: list[str]) -> dict:
    found: dict[tuple, dict[str, dict]] = {}
    places: dict[tuple, dict[str, int]] = {}
    kept = _kept(title, group, notes)
    for name, result in group.items():
        for place, row in enumerate(result.content["rows"]):
            what = tuple(sorted(((key, value) for key, value in row.items() if key not in MEASURED), key=str))
            found.setdefault(what, {})[name] = row
            places.setdefault(what, {})[name] = place
    rows, equal = [], 0
    for key, of in found.items():
        leader, first = next(iter(of.items()))
        if len(of) == 1:
            continue
        if first.get("network") in ("random", "chance") and len({row["value"] for row in of.values()}) == 1:
            equal += 1
        else:
            what = {key: value for key, value in first.items() if key not in MEASURED}
            pairs = {
                name: paired(kept[leader], kept[name], places[key][leader], places[key][name])
                for name in of
                if name != leader and kept.keys() >= {leader, name}
            }
            differences = {name: difference for name, difference in pairs.items() if difference}
            marks = {name: mark(first, row, differences.get(name)) for name, row in of.items()}
            rows.append({"what": what, "of": of, "differences": differences, "marks": marks})
    alone = sum(len(of) == 1 for of in found.values())
    for count, why in (
        (equal, "of random weights or chance and the same in all runs"),
        (alone, "measured for one run alone"),
    ):
        if count:
            notes.append(f"{title}: {count} of {len(found)} rows left out, {why}")
    return {"title": title, "conditions": same, "rows": rows}


def _kept(title: str, group: dict[str, Result], notes: list[str]) -> dict[str, Predictions]:
    """What is kept of the items of each run's result."""
    kept = {}
    for name, result in group.items():
        try:
            if result.predictions is not None:
                kept[name] = result.predictions
        except TrainerError as error:
            notes.append(f"{title}, {name}: {error}")
    return kept


def mark(first: dict, row: dict, difference: dict | None = None) -> str:
    """ "▲" where the interval of the paired difference lies wholly above 0, "▼" where below, else ""; without a difference by
    whether the interval of a row lies wholly above or below the first one's."""
    if difference:
        return "▲" if difference["low"] > 0 else "▼" if difference["high"] < 0 else ""
    if not {"low", "high"} <= row.keys() & first.keys():
        return ""
    return "▲" if row["low"] > first["high"] else "▼" if row["high"] < first["low"] else ""


def _about(saved: checkpoint.Checkpoint) -> dict[str, object]:
    """What a run is, and its budget."""
    meta, settings = saved.meta, saved.meta["settings"]
    method, dataset = pretraining(settings, meta["initial"])
    finetuned = checkpoint.with_labels(settings)
    return {
        "method": f"{method}, finetuned" if finetuned else method,
        "options": ", ".join(f"{name} {value}" for name, value in flat(settings["options"])),
        "backbone": settings["backbone"],
        "width": f"{settings['width']:g}",
        "parameters": f"{parameters(saved):,}",
        "pretrained on": (dataset or "nothing") if finetuned else meta["dataset"],
        "trained on": with_split(meta["dataset"], meta["split"]),
        "samples per epoch": " + ".join(f"{n:,}" for n in meta["samples"].values()),
        "epochs": settings["epochs"],
        "batch size": settings["batch_size"],
        "steps": f"{meta['step']:,} of {meta['steps']:,}",
        "seed": settings["seed"],
        "shards": meta["config_hash"],
        "torch": meta["environment"]["torch"],
    }


def _cells(table: dict, names: list[str], cell) -> tuple[list[str], list[list]]:
    """Head and rows of a table; cell: (row of a result, paired difference or None, mark) -> text."""
    keys = list(dict.fromkeys(key for row in table["rows"] for key in row["what"]))
    body = [
        [*(row["what"].get(key, "") for key in keys)]
        + [
            cell(row["of"][name], row["differences"].get(name), row["marks"][name]) if name in row["of"] else "-"
            for name in names
        ]
        for row in table["rows"]
    ]
    return [*keys, *names], body


def format_table(result: dict) -> str:
    """The result of `compare` for the screen."""
    names, about = result["names"], result["runs"]
    lines = aligned([["", *names], *([key, *(about[name][key] for name in names)] for key in about[names[0]])])
    for one in result["tables"]:
        head, rows = _cells(one, names, lambda row, pair, sign: f"{shown(row)} {sign or ' '}{_difference_of(pair)}")
        lines += ["", one["title"], "; ".join(f"{key}: {value}" for key, value in one["conditions"].items())]
        lines += [*aligned([head, *rows]), _marked(one)]
    return "\n".join([*lines, "", RULE, *(f"note: {note}" for note in result["notes"])])


def _difference_of(pair: dict | None) -> str:
    return f" ({pair['value']:+.1f} [{pair['low']:+.1f}, {pair['high']:+.1f}])" if pair else ""


def _marked(table: dict) -> str:
    marked = sum(any(row["marks"].values()) for row in table["rows"])
    return f"{marked} of {len(table['rows'])} rows differ from the first run by more than the intervals"


def write(result: dict, path: Path) -> None:
    """Write the result of `compare` as a page (.html) or as a table, one line per run and number (.csv). Raises TrainerError
    for another ending."""
    if path.suffix not in (".html", ".csv"):
        raise TrainerError(f"{path}: ends in {path.suffix or 'nothing'}, expected .html or .csv")
    write_text(path, _page(result) if path.suffix == ".html" else _csv(result))


def _page(result: dict) -> str:
    names, about = result["names"], result["runs"]

    def cell(row: dict, pair: dict | None, sign: str) -> Markup:
        marked = fill(' <abbr title="{}">{}</abbr>', _MARKS[sign], sign) if sign else ""
        difference = fill(" <small>{}</small>", _difference_of(pair)) if pair else ""
        return join((value_cell(row), marked, difference))

    rows = [[key, *(about[name][key] for name in names)] for key in about[names[0]]]
    sections = [("runs", "The runs", table("What was trained", ["", *names], rows))]
    for i, one in enumerate(result["tables"]):
        told = "; ".join(f"{key}: {value}" for key, value in one["conditions"].items())
        told = f"{_marked(one)}. {told}"
        head, body = _cells(one, names, cell)
        numbers = range(len(head) - len(names), len(head))
        content = paragraph(told, "muted") + table(
            f"{one['title']}, with the 95 % interval by video", head, body, numbers
        )
        sections.append((f"table-{i}", one["title"], content))
    if result["notes"]:
        sections.append(("notes", "Notes", items(result["notes"])))
    return page(f"{len(names)} runs compared", RULE, "", sections, made_by())


def _csv(result: dict) -> str:
    lines = [
        {"protocol": one["title"], **row["what"], "run": name, **{k: of.get(k) for k in ("value", "low", "high")}}
        | {"mark": row["marks"][name]}
        | {f"difference{end}": row["differences"].get(name, {}).get(k) for end, k in _DIFFERENCE.items()}
        for one in result["tables"]
        for row in one["rows"]
        for name, of in row["of"].items()
    ]
    return csv_text(lines, ["protocol"])
