"""The tables of a study for a README, a paper or other programs, from the content of study.json."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from labelgen.files import write_json, write_text
from labelgen.texts import markdown as plain
from trainer.evaluate.results import agree, csv_text, shown


def tables(content: dict) -> list[tuple[str, list[str], dict[str, list[dict | None]]]]:
    """One table for each test and pretraining, but a joint one for all that have only the same single measure: title, headings
    of the columns, and the cells of each row, entries of "numbers" or None."""
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
    """The tested data set and target of a column, and the data set of pretraining if it is another one."""
    tested, target, before = (column[key] for key in ("tested_on", "target", "pretrained_on"))
    return f"{tested} {target}".rstrip() + (f", pretrained on {before}" if before != tested else "")


def cell(entry: dict | None) -> str:
    """A number with its interval, and `mark`."""
    return "" if entry is None else shown(entry) + in_brackets(entry) + mark(entry)


def chance_of(entry: dict) -> float | None:
    """The accuracy of chance in a pretext task, else None; files of earlier versions call it "guessing"."""
    return entry.get("chance", entry.get("guessing"))


def in_brackets(entry: dict) -> str:
    """The accuracy of chance for a pretext task, or the loss with disturbed clips, as text in brackets."""
    if drop := entry.get("drop"):
        return f" (lost {shown(drop)})"
    return "" if (chance := chance_of(entry)) is None else f" (chance {chance:.1f})"


def mark(entry: dict) -> str:
    """The mark " ▲" or " ▼" if the interval of the difference from the random network (or from chance) does not contain 0."""
    above = entry["above"]
    return "" if above is None else " ▲" if above["low"] > 0 else " ▼" if above["high"] < 0 else ""


_ALPHAS = (0.01, 0.05)  # levels of two stars and of one star


def stars(pair: dict) -> str:
    """The stars of a difference by its corrected p; none if its interval contains 0."""
    apart = pair["low"] > 0 or pair["high"] < 0
    return "*" * sum(pair["adjusted"] <= alpha for alpha in _ALPHAS) if apart else ""


def spread(entry: dict) -> float | None:
    """The standard deviation of a number over seeds; None for one seed."""
    return float(np.std(entry["by seed"], ddof=1)) if len(entry["by seed"]) > 1 else None


PAIRS = (
    "Difference in points, row minus column, in pairs of the same seed and video. Stars: the 95 % interval over seeds and "
    "videos does not contain 0, and p is at most .05 (*) or .01 (**) in a sign-flip test over videos (or groups of "
    "them) for the given trained networks, corrected by Holm's method for all pairs of the table."
)
RULE = (
    "Per cent, with the 95 % interval over seeds and test videos. ▲ ▼: the 95 % interval of the paired difference from random "
    "weights of the same seed (for pretext tasks: from chance) lies above, below 0."
)
_AGREE = " [all videos agree]: every video gives the same difference, so that no interval can be given."


def rule(content: dict) -> str:
    """How to read the numbers."""
    return RULE + _AGREE * any(agree(entry.get("drop") or {}) for entry in content["numbers"])


def markdown(content: dict) -> str:
    """The tables for a README."""
    lines = [rule(content), "", *(line for text in content.get("unequal", ()) for line in (plain(text), ""))]
    for title, measures, rows in tables(content):
        lines += [f"**{plain(title)}**", "", _line(map(plain, ["", *measures])), "|---" * (len(measures) + 1) + "|"]
        lines += [*(_line([plain(row), *map(cell, cells)]) for row, cells in rows.items()), ""]
    if content["orderings"]:
        head, body = orderings(content)
        lines += ["**Published orderings**", "", _line(map(plain, head)), "|---" * len(head) + "|"]
        lines += [*(_line([*map(plain, cells[:2]), *cells[2:]]) for cells in body), ""]
    return "\n".join(lines)


def orderings(content: dict) -> tuple[list[str], list[list[str]]]:
    """The heading and the lines of the table of published orderings."""
    numbers = list(dict.fromkeys(here["column"] for ordering in content["orderings"] for here in ordering["here"]))
    columns = [content["columns"][number] for number in numbers]
    body = []
    for ordering in content["orderings"]:
        here = {one["column"]: one for one in ordering["here"]}
        values = " ({:g}, {:g})".format(*ordering["values"]) if ordering["values"] else ""
        cells = [f"{one['verdict']}: {shown(one, '+')}" if one else "" for one in map(here.get, numbers)]
        body.append([f"{ordering['better']} > {ordering['worse']}", ordering["source"] + values, *cells])
    return ["Ordering", "Published", *(f"{place(column)}: {column['measure']}" for column in columns)], body


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {"[": "{[}", "*": "{*}"}  # which would be arguments of the command before them
_TEX |= {"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}


def latex(content: dict, name: str) -> str:
    """The tables for a paper, with booktabs and amssymb; name: of the study, used in the labels."""

    def safe(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))

    lines = ["% \\usepackage{booktabs,amssymb}"]
    for title, measures, rows in tables(content):
        columns = [[entry for entry in of if entry] for of in zip(*rows.values(), strict=True)]
        best = [max(entry["value"] for entry in of) for of in columns]
        body = [
            " & ".join([safe(row), *(_tex_cell(*of) for of in zip(entries, best, strict=True))]) + r" \\"
            for row, entries in rows.items()
        ]
        seeds = sorted({len(entry["seeds"]) for entries in rows.values() for entry in entries if entry})
        number = " to ".join(dict.fromkeys((str(seeds[0]), str(seeds[-1]))))
        about = [f"{title}, per cent: mean and standard deviation over {number} {'seed' if seeds == [1] else 'seeds'}"]
        about += ["the best in bold, values not shown to be lower underlined"]
        about += [
            "▲ ▼: the 95 % interval of the difference from random weights of the same seed (for pretext tasks: from "
            "chance) lies above, below 0"
        ]
        label = re.sub(r"[^a-z0-9]+", "-", f"{name} {title}".lower()).strip("-")
        lines += [r"\begin{table}", rf"\caption{{{safe('; '.join(about))}.}}", rf"\label{{tab:{label}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(measures)}}}", r"\toprule"]
        lines += [" & ".join(["", *map(safe, measures)]) + r" \\", r"\midrule", *body]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _tex_cell(entry: dict | None, best: float) -> str:
    if entry is None:
        return ""
    value, over_seeds = f"{entry['value']:.1f}", spread(entry)
    if entry["maybe best"]:
        value = rf"\{'textbf' if entry['value'] == best else 'underline'}{{{value}}}"
    if over_seeds is not None:
        value += rf" {{\scriptsize $\pm$ {over_seeds:.1f}}}"
    return value + "".join(_TEX.get(letter, letter) for letter in mark(entry))


def lists(content: dict) -> dict[str, str]:
    """The numbers, the differences and the accuracies by class as CSV text, by the name of the file."""

    def where(number: int) -> dict:
        column = content["columns"][number]
        return {key: column[key] for key in ("pretrained_on", "tested_on", "target", "measure")}

    numbers, classes = [], []
    for entry in content["numbers"]:
        above, about = entry["above"] or {}, {"row": entry["row"], **where(entry["column"])}
        line = about | {key: entry[key] for key in ("value", "low", "high")} | {"std": spread(entry)}
        line |= {"chance": chance_of(entry)} | {f"above {key}": above.get(key) for key in ("value", "low", "high")}
        line |= {f"lost {key}": value for key, value in (entry.get("drop") or {}).items()}
        line |= {"videos": entry["videos"]}
        for seed, value, stages in zip(entry["seeds"], entry["by seed"], stages_of(entry), strict=True):
            line |= {f"seed {seed}": value} | ({f"stage {seed}": stages} if stages else {})
        numbers.append(line)
        for name, by_seed in entry.get("by class", {}).items():
            of_seeds = {f"seed {seed}": value for seed, value in zip(entry["seeds"], by_seed, strict=True)}
            classes.append(about | {"class": name, "value": float(np.mean(by_seed)), **of_seeds})
    pairs = [{**where(pair["column"]), **pair, "stars": stars(pair)} for pair in content["differences"]]
    found = {"numbers": numbers, "differences": pairs, "classes": classes}
    return {f"{name}.csv": csv_text(rows) for name, rows in found.items() if rows}


def stages_of(entry: dict) -> list[str]:
    """The chosen stages for each seed of a number, as text; "" if none was chosen."""
    return [", ".join(dict.fromkeys(of.values())) for of in entry.get("stages", [{}] * len(entry["by seed"]))]


def write_tables(content: dict, folder: Path, tex: bool) -> None:
    """Write study.json, table.md, numbers.csv, differences.csv, classes.csv and, with `tex`, table.tex."""
    write_json(folder / "study.json", content)
    write_text(folder / "table.md", markdown(content))
    for name, text in lists(content).items():
        write_text(folder / name, text)
    if tex:
        write_text(folder / "table.tex", latex(content, folder.resolve().name))
