"""Every table and figure of the papers in papers.yaml, with its numbers and the commands that reproduce it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from trainer.recipes import differing, recipe

PAPERS = Path(__file__).with_name("papers.yaml")

_PRETRAINING, _FINETUNING = ("TRAIN", "SHARDS"), ("FINETUNE", "OUT")  # placeholders that depend on the run
_EACH = {"data": ["ucf101"], "split": [1]}  # values of a command's variables, unless an entry gives others


@dataclass(frozen=True)
class Loop:
    """Commands for each value of a shell variable."""

    variable: str
    values: list[str]
    body: list[str | Loop]


def rows(entry: dict[str, Any]) -> Iterator[tuple[str, str | None, list[Any]]]:
    """For each row its label, what runs it (None: nothing here) and its numbers, one per column."""
    columns = len(entry.get("columns", ()))
    for label, *cells in entry.get("rows", ()):
        yield label, cells[0] if len(cells) > columns else None, cells[len(cells) - columns :]


def numbered(item: str) -> Iterator[tuple[str, str]]:
    """("tab.", "2.4") for each table and figure in an item's name; "fig. 2.1 to 2.3" are three."""
    kind = ""
    for word in re.findall(r"tab\.|fig\.|[\d.]+ to [\d.]+|\d[\d.]*", item):
        if word in ("tab.", "fig."):
            kind = word
        elif " to " in word:
            (*chapter, first), (*_, last) = (end.split(".") for end in word.split(" to "))
            yield from ((kind, ".".join([*chapter, str(n)])) for n in range(int(first), int(last) + 1))
        elif kind:
            yield kind, word


def script(entry: dict[str, Any], content: dict[str, Any]) -> list[str | Loop]:
    """The commands of an entry: those with $run for the runs of its rows, those with $backbone for its rows of random weights."""
    found = list(dict.fromkeys(run for _, run, _ in rows(entry) if run))
    runs = [run for run in found if run.startswith(tuple(entry.get("only", [""]))) and not run.startswith("none-")]
    each = {"backbone": [run.partition("-")[2] for run in found if run.startswith("none-")]}
    each |= _EACH | entry.get("each", {})
    values = {run: _values(run, content) for run in runs}
    alike = all(values[run] == values[runs[0]] for run in runs)

    def capitals(template: str) -> tuple[str, ...]:
        """What may differ between runs whose template is in the same loop as its neighbours."""
        if "$run" not in template:
            return ()
        names = _PRETRAINING if any(name in template for name in _PRETRAINING) else _FINETUNING
        return _PRETRAINING + _FINETUNING if alike else names

    nodes: list[str | Loop] = []
    for names, templates in groupby(entry.get("commands", ()), capitals):
        body = list(templates)
        if not names:
            nodes += _nested(body, each)
            continue
        fillings = [({name: values[run][name] for name in names}, run) for run in runs]
        for filling, group in groupby(fillings, itemgetter(0)):
            nodes += _nested(
                [_filled(template, filling) for template in body], {"run": [run for _, run in group]} | each
            )
    return nodes


@cache
def shards_of(name: str) -> dict[str, Any]:
    """The configuration of the shards that a recipe is for."""
    return recipe(name)[1]


def labelling(shards: dict[str, Any], dataset: str, content: dict[str, Any]) -> str:
    """The folder of the first labelling of a data set that agrees with the shards of a recipe."""
    for each in content["labellings"]:
        if each["dataset"] == dataset and not differing(shards, each):
            return f"{each.get('out', 'out')}/{dataset}"
    raise ValueError(f"no labelling of {dataset} in {PAPERS.name} has {shards}")


def labelling_of(folder: str, content: dict[str, Any]) -> dict[str, Any]:
    """The labelling that makes the shards of a folder, "out/1to3/ucf101"."""
    return next(each for each in content["labellings"] if f"{each.get('out', 'out')}/{each['dataset']}" == folder)


def labelgen(each: dict[str, Any]) -> str:
    """The command of a labelling."""
    out, split = (f" --{name} {each[name]}" if name in each else "" for name in ("out", "split"))
    options = {name: value for name, value in each.items() if name not in ("dataset", "out", "split")}
    return f"vssl labelgen --dataset {each['dataset']}{split}{out} {labelgen_options(options)}"


def commands(nodes: list[str | Loop]) -> Iterator[str]:
    """Every command that bash runs for these lines, in order."""
    for node in nodes:
        if isinstance(node, str):
            yield node
        else:
            for value in node.values:
                yield from commands(_substituted(node.body, f"${node.variable}", value))


def _substituted(nodes: list[str | Loop], name: str, value: str) -> list[str | Loop]:
    return [
        node.replace(name, value)
        if isinstance(node, str)
        else Loop(node.variable, node.values, _substituted(node.body, name, value))
        for node in nodes
    ]


def _values(run: str, content: dict[str, Any]) -> dict[str, str]:
    """The values of the placeholders in the commands of a run."""
    finetuning = content["finetuning"][max((name for name in content["finetuning"] if run.startswith(name)), key=len)]
    out = labelling(shards_of(finetuning), "ucf101", content).removesuffix("/ucf101")
    if run.startswith("supervised-"):
        train, shards = (
            f"vssl finetune --recipe {finetuning} --scratch --backbone {run.partition('-')[2]}",
            f"{out}/kinetics400",
        )
    else:
        train, shards = "vssl train --recipe $run", labelling(shards_of(run), run.split("-")[2], content)
    return {"TRAIN": train, "SHARDS": shards, "FINETUNE": finetuning, "OUT": out}


def _filled(command: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        command = command.replace(name, value)
    return command


def _nested(commands: list[str], each: dict[str, list[Any]]) -> list[str | Loop]:
    """The commands in loops over the variables that they contain, the first one outermost; none if a variable has no values."""
    if not each:
        return list(commands)
    (variable, values), *rest = each.items()
    nodes: list[str | Loop] = []
    for has, group in groupby(commands, lambda command: f"${variable}" in command):
        body = _nested(list(group), dict(rest))
        if not has:
            nodes += body
        elif len(values) == 1 and "*" not in str(values[0]):
            nodes += _substituted(body, f"${variable}", str(values[0]))
        elif values:
            nodes.append(Loop(variable, [str(value) for value in values], body))
    return nodes


def cost(each: dict[str, Any], content: dict[str, Any]) -> tuple[float, float, float] | None:
    """Millions of frames, core hours and gigabytes of a labelling, from measurements with frames of that size; None without
    such measurements."""
    frames = content["frames"].get(each["dataset"])
    if frames is None:
        return None
    clips = "all" if each["clips"] is None else "some"
    hours, size = content["measured"][each["dataset"]]["{height} x {width}".format(**each)][clips]
    return frames, frames * hours, frames * size


def labelgen_options(shards: dict[str, Any]) -> str:
    """The shard configuration of a recipe as options of `vssl labelgen`."""
    options = []
    for name, value in shards.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):  # a flag
            options += [option] * value
        else:
            text = "all" if value is None else ",".join(value) if isinstance(value, list) else str(value)
            options.append(f"{option} {shlex.quote(text)}")
    return " ".join(options)


def values_of(words: Sequence[str], option: str) -> list[str]:
    """The values that an option has in a command."""
    return [value for name, value in pairwise(words) if name == option]


def value_of(words: Sequence[str], option: str) -> str | None:
    """The last value that an option has in a command; None without it."""
    return next(reversed(values_of(words, option)), None)


_NOTES = {"lacks": "Left out", "differs": "Differs", "assumes": "Assumed", "remarks": "Remarks"}


def notes(entry: dict[str, Any], content: dict[str, Any]) -> dict[str, list[str]]:
    """The notes on an entry, under their headings."""
    trained = {word.split("-")[0] for command in commands(script(entry, content)) for word in command.split()}
    of_methods = [text for method, text in content["differs_of"].items() if method in trained]
    found = entry | {"differs": [*entry.get("differs", ()), *of_methods]}
    return {title: found[name] for name, title in _NOTES.items() if found.get(name)}


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table."""
    for cells in (head, ["---"] * len(head), *body):
        yield f"| {' | '.join(cells)} |"


def run_by(run: str | None) -> str:
    """What runs a row."""
    method, _, backbone = (run or "").partition("-")
    return f"--scratch --backbone {backbone}" if method == "none" else run or ""
