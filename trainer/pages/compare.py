"""Runs side by side: what they are, and every number that was measured for several of them under the same conditions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from labelgen.files import write_text
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.evaluate.metrics import ItemScores, by_class, holm, paired_test
from trainer.evaluate.results import (
    MEASURED,
    Result,
    aligned,
    csv_text,
    flat,
    headline,
    overall,
    read_results,
    shown,
)
from trainer.evaluate.splits import with_split
from trainer.pages.budgets import clips_seen, unequal
from trainer.pages.classes import ABOUT, compared_html
from trainer.pages.page import details, fill, heading, items, join, page, paragraph, table
from trainer.pages.published import pretraining
from trainer.pages.report import made_by, parameters
from trainer.pages.results import difference_cells, difference_text, named, value_cell

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
_UNEQUAL_TOLD = "unequal budgets, so that a difference need not be one of the methods"
_DIFFERENCE = {
    "": "value",
    "_low": "low",
    "_high": "high",
    "_p": "p",
    "_p_holm": "adjusted",
}  # ends of names of columns -> keys
_LINE = 5  # classes on a line
_MANY = 8  # more rows than this that do not differ are folded
_MARKS = {"▲": "above the first value", "▼": "below the first value"}
_ALPHA = 0.05
RULE = (
    "Differences are from the first value in the row, of the same videos answered by both, with 95 % intervals of their own, and "
    "p of a paired test, corrected by Holm's method for all rows of its family: the rows that stand for the results are one "
    "family, all rows another. ▲ ▼: the interval lies wholly above, below 0, and the corrected p is at most .05; if the videos' "
    "answers are not kept, the value's interval lies wholly above, below the first one's, which is not corrected. Intervals and "
    "p cover the choice of test videos, not the training seed."
)


def compare(runs: Sequence[str | os.PathLike]) -> dict:
    """What several runs are, and the numbers that at least two of them share.

    "names": of the runs; "runs": what each is, by name; "tables": one per protocol, data set, split and conditions (the
    configuration of the shards, views, items, ...), with "title", "conditions" and "rows": each the network, stage, pooling,
    level, metric, ... that were measured ("what"), the rows of the runs by name ("of"), their paired differences from the first
    run in the row ("differences", see metrics.paired_test; those that can be had), each with "adjusted", its p corrected for all
    differences of all tables, and a mark for those that lie above ("▲") or below ("▼") it ("marks", see `mark`), marked rows
    first; "headline": the row that stands for the result, corrected for the headlines alone, or None; "classes": its
    differences by class, by name of the run, see metrics.by_class. "unequal": budgets that differ. "notes": what is in no table,
    and why.

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
    tables = [one for one in tables if one["rows"]]
    _correct([row for one in tables for row in one["rows"]])
    _correct([one["headline"] for one in tables if one["headline"]])
    for one in tables:
        one["rows"].sort(key=lambda row: not any(row["marks"].values()))
    return {
        "names": names,
        "runs": {name: _about(run) for name, run in zip(names, saved, strict=True)},
        "unequal": unequal(dict(zip(names, saved, strict=True))),
        "tables": tables,
        "notes": notes,
    }


def _correct(rows: list[dict]) -> None:
    """Correct the p of the differences of a family of rows, and mark them."""
    family = [difference for row in rows for difference in row["differences"].values()]
    for difference, p in zip(family, holm([own["p"] for own in family]), strict=True):
        difference["adjusted"] = p
    for row in rows:
        first = next(iter(row["of"].values()))
        row["marks"] = {name: mark(first, of, row["differences"].get(name)) for name, of in row["of"].items()}


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
    stands = {key: value for key, value in (headline(next(iter(group.values()))) or {}).items() if key not in MEASURED}
    headed, classes = None, {}
    for key, of in found.items():
        leader, first = next(iter(of.items()))
        if len(of) == 1:
            continue
        if first.get("network") in ("random", "chance") and len({row["value"] for row in of.values()}) == 1:
            equal += 1
        else:
            what = {key: value for key, value in first.items() if key not in MEASURED}
            pairs = {
                name: paired_test(kept[leader], kept[name], places[key][leader], places[key][name])
                for name in of
                if name != leader and kept.keys() >= {leader, name}
            }
            differences = {name: difference for name, difference in pairs.items() if difference}
            rows.append({"what": what, "of": of, "differences": differences})
            if what == stands:
                headed = rows[-1] | {"differences": {name: dict(own) for name, own in differences.items()}}
                classes = {
                    name: by_class(kept[leader], kept[name], places[key][leader], places[key][name]) for name in pairs
                }
    alone = sum(len(of) == 1 for of in found.values())
    for count, why in (
        (equal, "of random weights or chance and the same in all runs"),
        (alone, "measured for one run alone"),
    ):
        if count:
            notes.append(f"{title}: {count} of {len(found)} rows left out, {why}")
    classes = {name: told for name, told in classes.items() if told}
    return {"title": title, "conditions": same, "rows": rows, "headline": headed, "classes": classes}


def _kept(title: str, group: dict[str, Result], notes: list[str]) -> dict[str, ItemScores]:
    """What is kept of the items of each run's result."""
    kept = {}
    for name, result in group.items():
        try:
            if result.scores is not None:
                kept[name] = result.scores
        except TrainerError as error:
            notes.append(f"{title}, {name}: {error}")
    return kept


def mark(first: dict, row: dict, difference: dict | None = None) -> str:
    """ "▲" where the interval of the paired difference lies wholly above 0, "▼" where below, and its corrected p is at most .05,
    else ""; without a difference by whether the interval of a row lies wholly above or below the first one's."""
    if difference and difference.get("adjusted", 0) > _ALPHA:
        return ""
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
        "clips seen": f"{clips_seen(meta):,}",
        "seed": settings["seed"],
        "shards": meta["config_hash"],
        "torch": meta["environment"]["torch"],
    }


def _cells(table: dict, names: list[str]) -> tuple[list[str], list[list]]:
    """Head and rows of a table."""
    keys = list(dict.fromkeys(key for row in table["rows"] for key in row["what"]))
    body = [[*(row["what"].get(key, "") for key in keys), *_of_runs(row, names)] for row in table["rows"]]
    return [*keys, *names], body


def _of_runs(row: dict, names: list[str]) -> list[str]:
    """The cell of each run in a row."""
    marks, pairs = row["marks"], row["differences"]
    return [
        f"{shown(row['of'][name])} {marks[name] or ' '}{_difference_of(pairs.get(name))}" if name in row["of"] else "-"
        for name in names
    ]


def format_table(result: dict, everything: bool = True) -> str:
    """The result of `compare` for the screen; without `everything` the rows that stand for the results alone."""
    names, about = result["names"], result["runs"]
    lines = aligned([["", *names], *([key, *(about[name][key] for name in names)] for key in about[names[0]])])
    lines += ["", *(f"{_UNEQUAL_TOLD}; {told}" for told in result["unequal"])] if result["unequal"] else []
    headed = [one for one in result["tables"] if one["headline"]]
    if headed:
        body = [
            [f"{one['title']}: {named(one['headline']['what'])}", *_of_runs(one["headline"], names)] for one in headed
        ]
        lines += ["", *aligned([["the row that stands for each result, %", *names], *body])]
    if not everything:
        more = sum(len(one["rows"]) for one in result["tables"]) - len(headed)
        told = [line for one in headed for line in _most(one)]
        notes = [f"note: {note}" for note in result["notes"]]
        return "\n".join([*lines, *told, "", RULE, *notes, *([f"{more:,} more rows"] if more else [])])
    for one in result["tables"]:
        head, rows = _cells(one, names)
        lines += ["", one["title"], "; ".join(f"{key}: {value}" for key, value in one["conditions"].items())]
        lines += [*aligned([head, *rows]), _marked(one), *_most(one)]
    return "\n".join([*lines, "", RULE, *(f"note: {note}" for note in result["notes"])])


def _difference_of(pair: dict | None) -> str:
    return f" ({difference_text(pair)}, {p_text(pair)})" if pair else ""


def p_text(pair: dict) -> str:
    """The corrected p of a difference."""
    p = pair["adjusted"]
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def _most(one: dict) -> list[str]:
    """Lines on the classes that gain and lose most."""
    lines = []
    for name, classes in one["classes"].items():
        for word, told in (("gain", classes[:_LINE]), ("lose", classes[: -_LINE - 1 : -1])):
            told = [own for own in told if own["value"] * (1 if word == "gain" else -1) > 0]
            if told:
                each = ", ".join(f"{own['class']} {difference_text(own)}" for own in told)
                lines.append(f"classes that {word} most, {name}, {named(one['headline']['what'])}: {each}")
    return lines


def _marked(table: dict) -> str:
    marked = sum(any(row["marks"].values()) for row in table["rows"])
    return f"{marked} of {len(table['rows'])} rows differ from the first run, corrected for the number of all rows"


def write(result: dict, path: Path) -> None:
    """Write the result of `compare` as a page (.html) or as a table, one line per run and number (.csv). Raises TrainerError
    for another ending."""
    if path.suffix not in (".html", ".csv"):
        raise TrainerError(f"{path}: ends in {path.suffix or 'nothing'}, expected .html or .csv")
    write_text(path, _page(result) if path.suffix == ".html" else _csv(result))


def _page(result: dict) -> str:
    names, about = result["names"], result["runs"]
    rows = [[key, *(about[name][key] for name in names)] for key in about[names[0]]]
    sections = [("runs", "The runs", table("What was trained", ["", *names], rows))]
    headed = [(one["title"], one["headline"]) for one in result["tables"] if one["headline"]]
    if headed:
        lines = [(f"{title}: {named(row['what'])}", row) for title, row in headed]
        content = _rows("The row that stands for each result, %", "Result", lines, names)
        if any(one["classes"] for one in result["tables"]):
            content += paragraph(ABOUT, "muted")
        sections.insert(0, ("first", "At a glance", content))
    if result["unequal"]:
        content = join([paragraph(f"{_UNEQUAL_TOLD.capitalize()}:"), items(result["unequal"])])
        sections.insert(0, ("unequal", "Unequal budgets", content))
    for i, one in enumerate(result["tables"]):
        sections.append((f"table-{i}", one["title"], _section(one, names)))
    if result["notes"]:
        sections.append(("notes", "Notes", items(result["notes"])))
    return page(f"{len(names)} runs compared", RULE, "", sections, made_by())


def _section(one: dict, names: list[str]) -> Markup:
    """A table of compare: changed rows, the others, rows of single splits, and the classes that gain and lose most."""
    whole, single = [], []
    for row in one["rows"]:
        (whole if overall([row["what"]]) else single).append(row)
    changed = [row for row in whole if any(row["marks"].values())]
    same = whole[len(changed) :]
    told = "; ".join(f"{key}: {value}" for key, value in one["conditions"].items())
    out = [paragraph(_marked(one)), details("Conditions", paragraph(told, "muted"))]
    if changed:
        out.append(_by_what("Rows that differ from the first run, %", changed, names))
    if same:
        others = _by_what("The other rows, %", same, names)
        out.append(details(f"The other {len(same)} rows", others) if len(same) > _MANY else others)
    if single:
        out.append(details(f"{len(single)} rows of single splits", _by_what("Rows of single splits, %", single, names)))
    leader = next(iter(one["headline"]["of"])) if one["classes"] else ""
    for name, classes in one["classes"].items():
        out += [heading(f"Classes: {name} less {leader}"), paragraph(named(one["headline"]["what"]), "muted")]
        out.append(compared_html(classes, leader, name))
    return join(out)


def _by_what(caption: str, rows: list[dict], names: list[str]) -> Markup:
    """A table of rows, each called by what it measured; what all of them share stands in the caption."""
    keys = list(dict.fromkeys(key for row in rows for key in row["what"]))
    values = {key: {row["what"].get(key, "") for row in rows} for key in keys}
    differ = [key for key in keys if len(values[key]) > 1] or keys
    shared = [str(*values[key]) for key in keys if key not in differ]
    lines = [(", ".join(str(row["what"].get(key, "")) for key in differ), row) for row in rows]
    return _rows(": ".join(filter(None, (caption, ", ".join(shared)))), ", ".join(differ), lines, names)


def _rows(caption: str, what: str, lines: Sequence[tuple[str, dict]], names: list[str]) -> Markup:
    """A table of rows of `compare`, each with its name: the differences of each run, as plot and number, on one axis, and the
    values; what: head of the names."""
    names = [name for name in names if any(name in row["of"] for _, row in lines)]
    others = [name for name in names if any(name in row["differences"] for _, row in lines)]
    cells, axis = difference_cells([row["differences"].get(name) for _, row in lines for name in others])
    body = []
    for i, (name, row) in enumerate(lines):
        pairs = zip(cells[i * len(others) : (i + 1) * len(others)], map(row["differences"].get, others), strict=True)
        drawn = [cell for pair, own in pairs for cell in (*pair, p_text(own) if own else "")]
        values = [_value(row["of"][run], row["marks"][run]) if run in row["of"] else "-" for run in names]
        body.append([name, *drawn, *values])
    head = [what, *(text for name in others for text in (axis, f"{name}, difference", "corrected")), *names]
    first = 1 + 3 * len(others)
    numbers = [column for column in range(1, first) if column % 3 != 1]
    return table(caption, head, body, [*numbers, *range(first, len(head))])


def _value(row: dict, sign: str) -> Markup:
    marked = fill(' <abbr title="{}">{}</abbr>', _MARKS[sign], sign) if sign else ""
    return join((value_cell(row), marked))


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
