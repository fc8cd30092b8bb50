"""Runs side by side: their settings, and every number that was measured for several of them under the same conditions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from labelgen.files import write_text
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.evaluate.metrics import by_class, holm, paired_tests
from trainer.evaluate.results import (
    MEASURED,
    Result,
    aligned,
    csv_text,
    flat,
    headline,
    overall,
    read_all_scores,
    read_results,
    shown,
)
from trainer.pages.budgets import unequal
from trainer.pages.classes import ABOUT, compared_html
from trainer.pages.described import described, differing
from trainer.pages.differences import Line, difference_text, differences_table, p_text, value_cell
from trainer.pages.measured import named
from trainer.pages.page import details, facts, fill, heading, items, join, page, paragraph, table
from trainer.pages.sources import made_by

# keys of a protocol that describe the network; all others are conditions, which must be equal for numbers in the same row
_OF_THE_NETWORK = {"pretraining", "initial", "backbone", "width", "parameters", "checkpoint", "checkpoints", "versions"}
_SAME = "the same in all runs"
_UNEQUAL = "unequal budgets, so that a difference may not be due to the methods"
_COLUMNS = {
    "": "value",
    "_low": "low",
    "_high": "high",
    "_p": "p",
    "_p_holm": "adjusted",
}  # suffixes of their names -> keys
_LINE = 5  # classes per line
_MANY = 8  # if more rows than this do not differ, they are folded
_MARKS = {"▲": "above the first value", "▼": "below the first value"}
_ALPHA = 0.05
RULE = (
    "A difference compares a run's answers with those of the first run in the row on the same videos. It has its own 95 % "
    "interval and the p of a sign-flip test, corrected by Holm's method for all rows of its family: the headline rows of the "
    "results are one family, all rows another. ▲ ▼: the whole interval lies above or below 0, and the corrected p is at most "
    ".05; if the answers are not stored, the whole interval of the value lies above or below that of the first run, without "
    "correction. Intervals and p cover the choice of test videos, not the training seed."
)


def compare(runs: Sequence[str | os.PathLike]) -> dict:
    """The settings of several runs, and the numbers that at least two of them share.

    "names": of the runs; "runs": a description of each, by name; "tables": one per protocol, data set, split and conditions
    (the configuration of the shards, views, items, ...), with "title", "conditions" and "rows": each with the network, stage,
    pooling, level, metric, ... that were measured ("what"), the rows of the runs by name ("of"), their paired differences from
    the first run in the row ("differences", see metrics.paired_tests; if the answers are stored), each with "adjusted", its p
    corrected for all differences of all tables, and a mark for those that lie above ("▲") or below ("▼") it ("marks", see
    `mark`), marked rows first; "headline": the main row of the result, corrected only for the headlines, or None; "classes":
    its differences by class, by name of the run, see metrics.by_class. "unequal": budgets that differ. "notes": what no table
    contains, and why.

    Raises TrainerError for fewer than two runs or for a run given twice, and what checkpoint.load raises.
    """
    saved = [checkpoint.load(run, best=True) for run in runs]
    folders = [run.run.resolve() for run in saved]
    if len(set(folders)) < len(folders) or len(folders) < 2:
        raise TrainerError(f"runs to compare are {', '.join(map(str, runs))}: name two or more, each once")
    by_name = dict(zip(_short(folders), saved, strict=True))
    results, notes = {}, []
    for name, run in by_name.items():
        results[name], damaged = read_results(run.run)
        notes += damaged
    for name, run in by_name.items():
        for result in results[name]:
            if (measured := result.protocol["pretraining"]["steps"]) != (now := run.meta["step"]):
                notes.append(f"{result.title}, {name}: measured at step {measured}, the run is now at {now}")
    tables = []
    for title in dict.fromkeys(result.title for of_run in results.values() for result in of_run):
        by = {name: result for name in by_name for result in results[name] if result.title == title}
        tables += _tables(title, by, notes)
    _correct([row for one in tables for row in one["rows"]])
    _correct([one["headline"] for one in tables if one["headline"]])
    for one in tables:
        one["rows"].sort(key=lambda row: not any(row["marks"].values()))
    return {
        "names": [*by_name],
        "runs": {name: described(run) for name, run in by_name.items()},
        "unequal": unequal(by_name),
        "tables": tables,
        "notes": notes,
    }


def _short(folders: list[Path]) -> list[str]:
    """The shortest ends of different paths that differ."""
    length = next(n for n in itertools.count(1) if len({folder.parts[-n:] for folder in folders}) == len(folders))
    return ["/".join(folder.parts[-length:]) for folder in folders]


def _tables(title: str, by: dict[str, Result], notes: list[str]) -> list[dict]:
    """A table for each group of results with the same title that were measured under the same conditions."""
    groups: dict[tuple, dict[str, Result]] = {}
    for name, result in by.items():
        groups.setdefault(tuple(conditions(result).items()), {})[name] = result
    if len(by) == 1:
        notes.append(f"{title}: measured only for {next(iter(by))}")
    elif len(groups) > 1:
        notes.append(f"{title}: measured under different conditions, {_unlike(by)}")
    tables = [_table(title, dict(same), group, notes) for same, group in groups.items() if len(group) > 1]
    return [one for one in tables if one["rows"]]


def _correct(rows: list[dict]) -> None:
    """Correct the p of the differences in a family of rows, and mark them."""
    family = [difference for row in rows for difference in row["differences"].values()]
    for difference, p in zip(family, holm([of["p"] for of in family]), strict=True):
        difference["adjusted"] = p
    for row in rows:
        first = next(iter(row["of"].values()))
        row["marks"] = {name: mark(first, of, row["differences"].get(name)) for name, of in row["of"].items()}


def conditions(result: Result) -> dict[str, str]:
    """The part of a result's protocol that does not describe the network."""
    kept = {key: value for key, value in result.protocol.items() if key not in _OF_THE_NETWORK}
    return {key: str(value) for key, value in sorted(flat(kept))}


def _unlike(by: dict[str, Result]) -> str:
    """The conditions in which results differ, as text."""
    of = {name: conditions(result) for name, result in by.items()}
    keys = dict.fromkeys(key for each in of.values() for key in each)
    return "; ".join(
        f"{key} is " + ", ".join(f"{each.get(key)} ({name})" for name, each in of.items())
        for key in keys
        if len({each.get(key) for each in of.values()}) > 1
    )


def _what(row: dict) -> dict:
    """What a row measured: all its entries except the value."""
    return {key: value for key, value in row.items() if key not in MEASURED}


def _table(title: str, same: dict, group: dict[str, Result], notes: list[str]) -> dict:
    found: dict[tuple, dict[str, tuple[int, dict]]] = {}  # place and row of each run, by what was measured
    scores, damaged = read_all_scores(group)
    notes += damaged
    for name, result in group.items():
        for place, row in enumerate(result.content["rows"]):
            found.setdefault(tuple(sorted(_what(row).items(), key=str)), {})[name] = place, row
    standing = _what(headline(next(iter(group.values()))) or {})
    table: dict[str, Any] = {"title": title, "conditions": same, "rows": [], "headline": None, "classes": {}}
    # by first run and run: table row, rows of both
    pairs: dict[tuple[str, str], list[tuple[int, tuple[int, int]]]] = {}
    equal = alone = 0
    for places in found.values():
        of = {name: row for name, (_, row) in places.items()}
        leader, first = next(iter(of.items()))
        if len(of) == 1:
            alone += 1
        elif first.get("network") in ("random", "chance") and len({row["value"] for row in of.values()}) == 1:
            equal += 1
        else:
            for name in of:
                if name != leader and scores.keys() >= {leader, name}:
                    rows = places[leader][0], places[name][0]
                    pairs.setdefault((leader, name), []).append((len(table["rows"]), rows))
                    if _what(first) == standing and (classes := by_class(scores[leader], scores[name], *rows)):
                        table["classes"][name] = classes
            table["rows"].append({"what": _what(first), "of": of, "differences": {}})
    for (leader, name), wanted in pairs.items():
        tested = paired_tests(scores[leader], scores[name], [rows for _, rows in wanted])
        for (number, _), difference in zip(wanted, tested, strict=True):
            if difference:
                table["rows"][number]["differences"][name] = difference
    for row in table["rows"]:
        if row["what"] == standing:
            copied = {name: dict(difference) for name, difference in row["differences"].items()}
            table["headline"] = row | {"differences": copied}
    for count, why in (
        (equal, "of random weights or chance, equal in all runs"),
        (alone, "measured for only one run"),
    ):
        if count:
            notes.append(f"{title}: {count} of {len(found)} rows left out, {why}")
    return table


def mark(first: dict, row: dict, difference: dict | None = None) -> str:
    """ "▲" if the whole interval of the paired difference lies above 0, "▼" if below, and its corrected p is at most .05;
    without a difference, whether the whole interval of a row lies above or below that of the first one."""
    if difference:
        low, high = difference["low"], difference["high"]
        if difference.get("adjusted", 0) > _ALPHA:
            return ""
    elif {"low", "high"} <= row.keys() & first.keys():
        low, high = row["low"] - first["high"], row["high"] - first["low"]
    else:
        return ""
    return "▲" if low > 0 else "▼" if high < 0 else ""


def _of_runs(row: dict, names: list[str]) -> list[str]:
    """The cell of each run in a row."""
    cells = []
    for name in names:
        pair = row["differences"].get(name)
        difference = f" ({difference_text(pair)}, {p_text(pair)})" if pair else ""
        cells.append(f"{shown(row['of'][name])} {row['marks'][name] or ' '}{difference}" if name in row["of"] else "-")
    return cells


def format_table(result: dict, everything: bool = True) -> str:
    """The result of `compare` for the screen; without `everything` only the headline rows."""
    names, tables = result["names"], result["tables"]
    differ, same = differing(result["runs"])
    lines = [*(f"{_UNEQUAL}; {each}" for each in result["unequal"]), *[""] * bool(result["unequal"])]
    lines += [*aligned([["", *names], *differ]), "", _SAME + ": " + "; ".join(f"{key} {value}" for key, value in same)]
    headed = [one for one in tables if one["headline"]]
    if headed:
        body = [[_headed(one), *_of_runs(one["headline"], names)] for one in headed]
        lines += ["", *aligned([["headline row of each result, %", *names], *body])]
    for one in tables if everything else headed:
        if everything:
            keys = list(dict.fromkeys(key for row in one["rows"] for key in row["what"]))
            body = [[*(row["what"].get(key, "") for key in keys), *_of_runs(row, names)] for row in one["rows"]]
            lines += ["", one["title"], _conditions(one), *aligned([[*keys, *names], *body]), _marked(one)]
        lines += _most(one)
    more = 0 if everything else sum(len(one["rows"]) for one in tables) - len(headed)
    notes = [f"note: {note}" for note in result["notes"]]
    return "\n".join([*lines, "", RULE, *notes, *([f"{more:,} more rows"] if more else [])])


def _headed(one: dict) -> str:
    return f"{one['title']}: {named(one['headline']['what'])}"


def _conditions(one: dict) -> str:
    return "; ".join(f"{key}: {value}" for key, value in one["conditions"].items())


def _most(one: dict) -> list[str]:
    """Lines about the classes that gain and lose most."""
    lines = []
    for name, classes in one["classes"].items():
        for word, sign, most in (("gain", 1, classes[:_LINE]), ("lose", -1, classes[: -_LINE - 1 : -1])):
            if each := [f"{own['class']} {difference_text(own)}" for own in most if own["value"] * sign > 0]:
                lines.append(f"classes that {word} most, {name}, {named(one['headline']['what'])}: {', '.join(each)}")
    return lines


def _marked(one: dict) -> str:
    marked = sum(any(row["marks"].values()) for row in one["rows"])
    return f"{marked} of {len(one['rows'])} rows differ from the first run, corrected for the number of rows"


def write(result: dict, path: Path) -> None:
    """Write the result of `compare` as a page (.html) or as a table with one line per run and number (.csv). Raises
    TrainerError for any other suffix."""
    if path.suffix not in (".html", ".csv"):
        raise TrainerError(f"{path}: the suffix is {path.suffix or 'missing'}, expected .html or .csv")
    write_text(path, _page(result) if path.suffix == ".html" else _csv(result))


def _page(result: dict) -> str:
    names = result["names"]
    differ, same = differing(result["runs"])
    content = (
        join([paragraph(f"{_UNEQUAL.capitalize()}:"), items(result["unequal"])]) if result["unequal"] else Markup()
    )
    content += table("Budgets and settings that differ", ["", *names], differ, stacked=True) if differ else Markup()
    content += details(_SAME.capitalize(), facts("Settings", same))
    sections = [("runs", "Budgets and settings", content)]
    headed = [one for one in result["tables"] if one["headline"]]
    if headed:
        lines = [(_headed(one), one["headline"]) for one in headed]
        content = _rows("Headline row of each result, %", "Result", lines, names)
        about = paragraph(ABOUT, "muted") if any(one["classes"] for one in headed) else Markup()
        sections.append(("first", "At a glance", content + about))
    for i, one in enumerate(result["tables"]):
        sections.append((f"table-{i}", one["title"], _section(one, names)))
    if result["notes"]:
        sections.append(("notes", "Notes", items(result["notes"])))
    return page(f"{len(names)} runs compared", RULE, "", sections, made_by())


def _section(one: dict, names: list[str]) -> Markup:
    """A table of `compare`: changed rows, the others, rows of single splits, and the classes that gain and lose most."""
    whole = [row for row in one["rows"] if overall([row["what"]])]
    single = [row for row in one["rows"] if not overall([row["what"]])]
    changed = [row for row in whole if any(row["marks"].values())]
    same = whole[len(changed) :]
    out = [paragraph(_marked(one)), details("Conditions", paragraph(_conditions(one), "muted"))]
    if changed:
        out.append(_by_what("Rows that differ from the first run, %", changed, names))
    if same:
        others = _by_what("The other rows, %", same, names)
        out.append(details(f"The other {len(same)} rows", others) if len(same) > _MANY else others)
    if single:
        out.append(details(f"{len(single)} rows of single splits", _by_what("Rows of single splits, %", single, names)))
    leader = next(iter(one["headline"]["of"])) if one["classes"] else ""
    for name, classes in one["classes"].items():
        out += [heading(f"Classes: {name} minus {leader}"), paragraph(named(one["headline"]["what"]), "muted")]
        out.append(compared_html(classes, leader, name))
    return join(out)


def _by_what(caption: str, rows: list[dict], names: list[str]) -> Markup:
    """A table of rows, each named after what it measured; what all rows share is in the caption."""
    keys = list(dict.fromkeys(key for row in rows for key in row["what"]))
    values = {key: {row["what"].get(key, "") for row in rows} for key in keys}
    differ = [key for key in keys if len(values[key]) > 1] or keys
    shared = [str(*values[key]) for key in keys if key not in differ]
    lines = [(", ".join(str(row["what"].get(key, "")) for key in differ), row) for row in rows]
    return _rows(": ".join(filter(None, (caption, ", ".join(shared)))), ", ".join(differ), lines, names)


def _rows(caption: str, what: str, rows: Sequence[tuple[str, dict]], names: list[str]) -> Markup:
    """A table of rows of `compare`, each with its name, the differences of each run, and the values; what: head of the names."""
    names = [name for name in names if any(name in row["of"] for _, row in rows)]
    lines = [
        Line(
            title,
            [_value(row["of"][name], row["marks"][name]) if name in row["of"] else "-" for name in names],
            {f"{name}, difference": row["differences"].get(name) for name in names},
        )
        for title, row in rows
    ]
    return differences_table(caption, what, names, lines)


def _value(row: dict, sign: str) -> Markup:
    marked = fill(' <abbr title="{}">{}</abbr>', _MARKS[sign], sign) if sign else ""
    return join((value_cell(row), marked))


def _csv(result: dict) -> str:
    lines = [
        {"protocol": one["title"], **row["what"], "run": name, **{k: of.get(k) for k in ("value", "low", "high")}}
        | {"mark": row["marks"][name]}
        | {f"difference{end}": row["differences"].get(name, {}).get(k) for end, k in _COLUMNS.items()}
        for one in result["tables"]
        for row in one["rows"]
        for name, of in row["of"].items()
    ]
    return csv_text(lines, ["protocol"])
