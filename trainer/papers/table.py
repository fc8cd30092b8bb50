"""The table of an entry: the numbers in the source, those measured here, and the differences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markupsafe import Markup

from labelgen.files import write_json, write_text
from labelgen.reading import load_json
from labelgen.texts import markdown as plain
from trainer import checkpoint
from trainer.evaluate import protocol_class
from trainer.evaluate.results import overall, shown
from trainer.pages.page import details, fill, items, join, page, paragraph, scroll, table
from trainer.pages.report import made_by
from trainer.papers import markdown, notes, rows, run_by, value_of, values_of
from trainer.papers.steps import Folder, Scale, Step
from trainer.recipes import differing, recipe

_BY = {
    "ucf101": "recognition",
    "hmdb51": "recognition",
    "yupenn": "scenes",
    "aslan": "similarity",
}  # data set -> protocol
_POOLING = {"retrieval": "max", "scenes": "mean", "similarity": "max"}
_HOW = {
    "recognition": "accuracy of the finetuned networks, {} level",
    "retrieval": "clip level, max pooling, conv5 unless the row gives a stage (pool4 is conv4)",
    "scenes": "mean pooling, conv5 unless the row gives a stage (pool3 is conv3)",
    "similarity": "accuracy over all pairs",
    "pretext": "accuracy of the pretext task",
}


@dataclass(frozen=True)
class _Wanted:
    """A number: of the network with this pretraining ("none-c3d": random weights), by a protocol on a data set."""

    run: str
    protocol: str
    dataset: str
    metric: str = "accuracy"
    stage: str = ""
    label: str = ""


@dataclass(frozen=True)
class _Result:
    """What a step measured; runs: the pretrainings of its networks, by the names of the printed commands."""

    step: Step
    runs: list[str]
    dataset: str
    path: Path
    content: dict[str, Any]

    @property
    def protocol(self) -> str:
        return self.step.words[1]


def collect(
    name: str,
    entry: dict[str, Any],
    content: dict[str, Any],
    labellings: Sequence[Step],
    steps: Sequence[Step],
    folder: Folder,
    scale: Scale,
    failed: dict[str, str],
) -> dict[str, Any]:
    """What is written for an entry: "rows" with the label, what runs it, and "cells" by column; a cell has the "published"
    number and, for the columns in "measured", "here": mean over the seeds, "low" and "high" of its 95 % interval if there is
    one seed, "deviation" if there are several, "by seed"; and the "difference". "others": tables of results without a column."""
    results = [*_results(steps, folder)]
    columns, used = entry.get("columns", []), set[str]()
    body: list[dict[str, Any]] = []
    for label, run, numbers in rows(entry):
        cells = {}
        for column, published in zip(columns, numbers, strict=True):
            cell: dict[str, Any] = {"published": published}
            if wanted := _wanted(entry, label, run, column):
                found = _measured(entry, wanted, results)
                used |= {wanted.protocol} if found else set()
                if column.startswith("gain"):
                    base = _measured(entry, replace(wanted, run=f"none-{wanted.run.split('-')[1]}"), results)
                    found = {s: {"value": found[s]["value"] - base[s]["value"]} for s in found if s in base}
                cell |= _here(found, published)
            cells[column] = cell
        body.append({"label": label, "run": run, "cells": cells})
    measured = [column for column in columns if any("here" in row["cells"][column] for row in body)]
    return {
        "entry": name,
        "title": entry["title"],
        "source": content["sources"][name.split(" ")[0]],
        "protocol": entry.get("protocol", ""),
        "parts": scale.parts,
        "smaller": scale.smaller,
        "shards": [*_other_shards(steps, folder, scale)],
        "how": [
            f"{protocol}: {_HOW[protocol].format(_level(entry, protocol))}" for protocol in _HOW if protocol in used
        ],
        "columns": columns,
        "measured": measured,
        "rows": body,
        "others": [_other(result) for result in results if not (measured and result.protocol in used)],
        "notes": notes(entry, content),
        "written": [str(path) for path in _written(steps, folder)],
        "commands": [step.command for step in (*labellings, *steps)],
        "failures": [{"row": s.row, "what": s.title, "reason": failed[s.id]} for s in steps if s.id in failed],
        "made with": checkpoint.versions(),
    }


def _results(steps: Sequence[Step], folder: Folder) -> Iterator[_Result]:
    trainings = {value_of(step.printed, "--run"): step.printed for step in steps if step.trains}
    for step in steps:
        if step.words[0] != "eval":
            continue
        runs = values_of(step.printed, "--checkpoint")
        if step.words[1] == "recognition":  # of the initial weights of the finetuned networks
            runs = [_began_with(trainings[run]) for run in runs]
        for path in folder.made(step.id) or ():
            yield _Result(step, runs, step.shards[0].name, path, load_json(path))


def _other_shards(steps: Sequence[Step], folder: Folder, scale: Scale) -> Iterator[str]:
    """How the shards of the trainings differ from those that their recipes are for, apart from the requested size."""
    asked = ("height", "width", "crop") if scale.frames else ()
    found = dict[str, None]()
    for step in (step for step in steps if step.trains):
        newest = (saved for run in folder.made(step.id) or () for saved in sorted(run.glob("checkpoints/[0-9]*"))[-1:])
        for saved in newest:
            config = load_json(saved / "checkpoint.json")["config"]
            expected = recipe(value_of(step.words, "--recipe") or "")[1]
            for name in differing(expected, config):
                if name not in asked:
                    found[f"shards with {name} {config.get(name)}, the recipe is for {expected[name]}"] = None
    return iter(found)


def _written(steps: Sequence[Step], folder: Folder) -> dict[Path, None]:
    """Pictures and pages."""
    drawn = (step for step in steps if step.words[0] in ("show", "report"))
    return dict.fromkeys(path for step in drawn for path in folder.made(step.id) or ())


def _began_with(printed: Sequence[str]) -> str:
    """The pretraining from which a finetuning started."""
    return value_of(printed, "--checkpoint") or f"none-{value_of(printed, '--backbone')}"


def _wanted(entry: dict[str, Any], label: str, run: str | None, column: str) -> _Wanted | None:
    """What a column of a row contains; None if nothing here measures it."""
    run = entry.get("runs", {}).get(column, run)  # a column may belong to a single run
    if run is None:
        return None
    dataset = entry.get("dataset") or label.rpartition(" ")[2].lower()
    pooled = re.search(r"\bpool(\d)", entry.get("stages", {}).get(label, label))
    stage = f"conv{pooled[1]}" if pooled else ""
    if column in _BY:
        return _Wanted(run, _BY[column], column, stage=stage)
    if column.startswith("top-"):
        return _Wanted(run, "retrieval", dataset, column, stage)
    if column.startswith("gain of "):
        return _Wanted(run, "recognition", column.removeprefix("gain of "))
    if column.endswith(" accuracy"):
        return _Wanted(run, "pretext", "ucf101")
    if column in entry.get("runs", {}):
        return _Wanted(run, "recognition", dataset, "class accuracy", label=label)
    if re.fullmatch(r"\d+/\d+|full", column):
        share = "" if column == "full" else f"-{float(Fraction(column)):g}"
        return _Wanted(run + share, "recognition", dataset)
    return None


def _level(entry: dict[str, Any], protocol: str) -> str:
    return entry.get("level", "clip" if protocol == "retrieval" else "video")


def _measured(entry: dict[str, Any], wanted: _Wanted, results: Sequence[_Result]) -> dict[int, dict]:
    """The wanted row of a result, by seed."""
    method, _, backbone = wanted.run.partition("-")
    random = method == "none" and wanted.protocol != "recognition"  # it is measured with every run
    fits: dict[str, str | None] = {"network": "random" if random else "pretrained", "metric": wanted.metric}
    fits |= {"level": _level(entry, wanted.protocol), "pooling": _POOLING.get(wanted.protocol)}
    fits |= {"stage": wanted.stage} if wanted.stage else {}
    found = dict[int, dict]()
    for result in results:
        of_run = wanted.run in result.runs or random and result.content["protocol"]["backbone"] == backbone
        if of_run and (result.protocol, result.dataset) == (wanted.protocol, wanted.dataset):
            for row in overall(result.content["rows"]):
                of_label = _letters(row.get("class", "")) == _letters(wanted.label) and "video" not in row
                if of_label and all(row.get(key, value) == value for key, value in fits.items()):
                    found[result.step.seed] = row  # the last one, which is of the last stage
    return found


def _letters(name: str) -> str:
    """The name of a class in normalised spelling: brush_hair, BrushHair."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _here(found: dict[int, dict], published: object) -> dict[str, Any]:
    """The content of a cell from the rows by seed; empty if there are none."""
    if not found:
        return {}
    values = {str(seed): row["value"] for seed, row in sorted(found.items())}
    cell: dict[str, Any] = {"here": mean(values.values()), "by seed": values}
    if len(values) > 1:
        cell["deviation"] = stdev(values.values())
    else:
        (row,) = found.values()
        cell |= {key: row[key] for key in ("low", "high") if key in row}
    if isinstance(published, int | float):
        cell["difference"] = cell["here"] - published
    return cell


def _other(result: _Result) -> dict[str, Any]:
    protocol = protocol_class(result.protocol)
    return {
        "command": result.step.command,
        "file": result.content.get("file", ""),
        "table": protocol.format_table(result.content),
    }


def write(content: dict[str, Any], folder: Path) -> Path:
    """Write tables/NAME.json, .md and .html from the result of `collect` into the folder; returns the last one without its
    suffix."""
    stem = folder / "tables" / re.sub(r"[^\w.]+", "-", content["entry"])
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".md", text_of(content)), (".html", _html(content))):
        write_text(Path(f"{stem}{ending}"), text)
    write_json(Path(f"{stem}.json"), content)
    return stem


def text_of(content: dict[str, Any]) -> str:
    """The page of an entry in Markdown."""
    lines = [f"**{content['entry']}: {plain(content['title'])}**", "", *map(plain, _about(content)), ""]
    if content["rows"]:
        head, body = _table(content)
        texts = ([*map(plain, cells[:2]), *cells[2:]] for cells in body)
        lines += [*markdown([*map(plain, head)], texts), ""]
    for other in content["others"]:
        printed = f"$ {other['command']}", *other["table"].splitlines(), "", other["file"]
        lines += [*(f"    {line}".rstrip() for line in printed), ""]
    lines += [f"    {path}" for path in content["written"]]
    lines += [f"failed: {plain(line)}" for line in _failures(content)]
    return "\n".join(lines).rstrip() + "\n"


def _about(content: dict[str, Any]) -> list[str]:
    """How it was measured there and here."""
    found = [f"In the source: {content['protocol']}."] if content["protocol"] else []
    if content["how"]:
        several = any("deviation" in cell for row in content["rows"] for cell in row["cells"].values())
        spread = (
            "means over the seeds ± their standard deviation" if several else "with 95 % intervals over the test videos"
        )
        found.append(f"Here: {'; '.join(content['how'])}; {spread}.")
    found += [f"Of {' and '.join(content['parts'])}."] if content["parts"] else []
    if smaller := [*content["smaller"], *content["shards"]]:
        found.append(f"Different from the source: {'; '.join(smaller)}. The differences say little about the source.")
    return found


def _table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table."""
    head = ["", "run by"]
    for column in content["columns"]:
        head += [column, "here", "difference"] if column in content["measured"] else [column]
    body = []
    for row in content["rows"]:
        cells = [row["label"], run_by(row["run"])]
        for column, cell in row["cells"].items():
            cells.append("-" if cell["published"] is None else str(cell["published"]))
            if column in content["measured"]:
                cells += [_value(cell), f"{cell['difference']:+.1f}" if "difference" in cell else ""]
        body.append(cells)
    return head, body


def _value(cell: dict[str, Any]) -> str:
    if "deviation" in cell:
        return f"{cell['here']:.1f} ± {cell['deviation']:.1f}"
    return shown(cell | {"value": cell["here"]}) if "here" in cell else ""


def _failures(content: dict[str, Any]) -> list[str]:
    return [f"{one['row']}: {one['what']}: {one['reason']}" for one in content["failures"]]


def _code(label: str, text: str) -> Markup:
    return scroll(label, fill("<pre>{}</pre>", text))


def _html(content: dict[str, Any]) -> str:
    head, body = _table(content)
    parts = [paragraph(line) for line in _about(content)]
    if content["rows"]:
        parts += [table(content["title"], head, body, range(2, len(head)))]
    others = (details(other["command"], _code(other["command"], other["table"])) for other in content["others"])
    how = (details(title, items(texts)) for title, texts in content["notes"].items())
    sections = [
        ("table", "Published and here", join(parts)),
        ("others", "Measured, without a number in the source" if content["measured"] else "Measured", join(others)),
        ("notes", "Deviations from the source", join(how)),
        ("written", "Pictures and pages", items(content["written"]) if content["written"] else Markup()),
        ("commands", "Commands", _code("Commands", "\n".join(content["commands"]))),
        ("failures", "What did not work", items(lines) if (lines := _failures(content)) else Markup()),
    ]
    title = f"{content['entry']}: {content['title']}"
    return page(title, content["source"], "", [section for section in sections if section[2]], made_by())
