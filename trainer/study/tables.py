"""The tables of a study for a README or a paper, from what study.json holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from labelgen.files import write_json, write_text
from labelgen.texts import markdown as plain
from trainer.evaluate.results import shown


def tables(content: dict) -> list[tuple[str, list[str], dict[str, list[dict | None]]]]:
    """One table per test and pretraining, or one for all of these that have nothing but the same single measure: title, heads of
    the columns, and the cells of each row, entries of "numbers" or None."""
    by = {(entry["row"], entry["column"]): entry for entry in content["numbers"]}
    places: dict[str, dict[int, str]] = {}
    for number, column in enumerate(content["columns"]):
        places.setdefault(place(column), {})[number] = column["measure"]
    single: dict[str, dict[int, str]] = {}
    for title, heads in places.items():
        if len(heads) == 1:
            ((number, measure),) = heads.items()
            single.setdefault(measure, {})[number] = title
    joined = {measure: titles for measure, titles in single.items() if len(titles) > 1}
    alike = {number for titles in joined.values() for number in titles}
    found = []
    apart = {title: heads for title, heads in places.items() if not alike & heads.keys()}
    for title, heads in (apart | joined).items():
        rows = {row: [by.get((row, number)) for number in heads] for row in content["rows"]}
        found.append((title, [*heads.values()], {row: cells for row, cells in rows.items() if any(cells)}))
    return found


def place(column: dict) -> str:
    """On what a column was tested, and pretrained if that is another data set."""
    tested, target, before = (column[key] for key in ("tested_on", "target", "pretrained_on"))
    return f"{tested} {target}".rstrip() + (f", pretrained on {before}" if before != tested else "")


def cell(entry: dict | None) -> str:
    """A number with its interval, and `mark`."""
    return "" if entry is None else shown(entry) + in_brackets(entry) + mark(entry)


def chance_of(entry: dict) -> float | None:
    """What chance gives, of a pretext task; files of earlier versions call it guessing."""
    return entry.get("chance", entry.get("guessing"))


def in_brackets(entry: dict) -> str:
    """What chance gives, of a pretext task, in words."""
    return "" if (chance := chance_of(entry)) is None else f" (chance {chance:.1f})"


def mark(entry: dict) -> str:
    """Whether the interval of the difference from the random network, or from chance, lies wholly on one side of 0."""
    above = entry["above"]
    return "" if above is None else " ▲" if above["low"] > 0 else " ▼" if above["high"] < 0 else ""


RULE = (
    "Per cent, with the 95 % interval over seeds and test videos. ▲ ▼: the whole 95 % interval of the paired difference from "
    "random weights of the same seed (of a pretext task: from chance) lies above, below 0."
)


def markdown(content: dict) -> str:
    """The tables for a README."""
    lines = [RULE, "", *(line for text in content.get("unequal", ()) for line in (plain(text), ""))]
    for title, measures, rows in tables(content):
        lines += [f"**{plain(title)}**", "", _line(map(plain, ["", *measures])), "|---" * (len(measures) + 1) + "|"]
        lines += [*(_line([plain(row), *map(cell, cells)]) for row, cells in rows.items()), ""]
    if content["orderings"]:
        head, body = orderings(content)
        lines += ["**Published orderings**", "", _line(map(plain, head)), "|---" * len(head) + "|"]
        lines += [*(_line([*map(plain, cells[:2]), *cells[2:]]) for cells in body), ""]
    return "\n".join(lines)


def orderings(content: dict) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of published orderings."""
    numbers = list(dict.fromkeys(here["column"] for ordering in content["orderings"] for here in ordering["here"]))
    columns = [content["columns"][number] for number in numbers]
    body = []
    for ordering in content["orderings"]:
        here = {one["column"]: one for one in ordering["here"]}
        values = " ({:g}, {:g})".format(*ordering["values"]) if ordering["values"] else ""
        cells = [
            f"{one['verdict']}: {one['value']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]" if one else ""
            for one in map(here.get, numbers)
        ]
        body.append([f"{ordering['better']} > {ordering['worse']}", ordering["source"] + values, *cells])
    return ["Ordering", "Published", *(f"{place(column)}: {column['measure']}" for column in columns)], body


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX |= {"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}


def latex(content: dict) -> str:
    """The tables for a paper, with booktabs and amssymb."""

    def safe(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    lines = [f"% {RULE}"]
    for title, measures, rows in tables(content):
        lines += [r"\begin{table}", rf"\caption{{{safe(title)}}}", rf"\begin{{tabular}}{{l{'r' * len(measures)}}}"]
        lines += [r"\toprule", " & ".join(["", *map(safe, measures)]) + r" \\", r"\midrule"]
        lines += [" & ".join(map(safe, [row, *map(cell, cells)])) + r" \\" for row, cells in rows.items()]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def write_tables(content: dict, folder: Path, tex: bool) -> None:
    """study.json, table.md and, if asked, table.tex."""
    write_json(folder / "study.json", content)
    write_text(folder / "table.md", markdown(content))
    if tex:
        write_text(folder / "table.tex", latex(content))
