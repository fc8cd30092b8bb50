"""Print papers.md anew: every table and figure of the papers, its numbers and the commands that run it, which papers.yaml has."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from labelgen.reading import load_yaml
from trainer.recipes import RECIPES, differing, read, recipe

PAPERS, PAGE = (Path(__file__).with_name(f"papers.{ending}") for ending in ("yaml", "md"))

_NOTES = {"lacks": "Left out", "differs": "Differs", "assumes": "Assumed", "remarks": "Remarks"}
_INTRO = """\
# The papers' experiments

Every table and figure of the sources, of some the table of the models of their public code, with the numbers as printed and
the commands that run it here. The page is printed from `docs/papers.yaml` and the recipes, by `make docs`.

The commands can be copied as they stand, into bash, in a folder whose `data/` holds the data sets by their names (or
`$VSSL_DATA`). [Shards](#shards) are labelled first; a run has the name of its recipe, a finetuned one those of data set and
split, too, and what has run for one table serves the next. Numbers are per cent where nothing else is said; `-` is not
printed there. A row that nothing runs is of a method that is not here. *Differs* is what is done otherwise than in the
source, *left out* what nothing here runs, with the reason, *assumed* what the source leaves open; [the recipes](#recipes)
have the values that no source states."""
_PRETRAINING, _FINETUNING = ("TRAIN", "SHARDS"), ("FINETUNE", "OUT")  # what the capitals in commands depend on
_EACH = {"data": ["ucf101"], "split": [1]}  # what a variable of a command stands for where an entry says nothing else


@dataclass(frozen=True)
class Loop:
    """Commands for each value of a variable of the shell."""

    variable: str
    values: list[str]
    body: list[str | Loop]


def page() -> list[str]:
    """The lines of docs/papers.md."""
    content = load_yaml(PAPERS)
    lines = _INTRO.splitlines()
    for source, items in content["items"].items():
        lines += ["", f"## {source}: {content['sources'][source]}"]
        for item, entry in items.items():
            lines += ["", f"### {source} {item}: {entry['title']}", "", *_item(entry, content)]
    return [*lines, "", "## Shards", "", *_shards(content), "", "## Recipes", "", *_recipes()]


def rows(entry: dict[str, Any]) -> Iterator[tuple[str, str | None, list[Any]]]:
    """Of each row its label, what runs it (None: nothing here) and its numbers, one per column."""
    columns = len(entry.get("columns", ()))
    for label, *cells in entry.get("rows", ()):
        yield label, cells[0] if len(cells) > columns else None, cells[len(cells) - columns :]


def script(entry: dict[str, Any], content: dict[str, Any]) -> list[str | Loop]:
    """The commands of an entry: those with $run for what runs its rows, with $backbone for its rows of random weights."""
    found = list(dict.fromkeys(run for _, run, _ in rows(entry) if run))
    runs = [run for run in found if run.startswith(tuple(entry.get("only", [""]))) and not run.startswith("none-")]
    each = {"backbone": [run.partition("-")[2] for run in found if run.startswith("none-")]}
    each |= _EACH | entry.get("each", {})
    values = {run: _values(run, content) for run in runs}
    alike = all(values[run] == values[runs[0]] for run in runs)

    def capitals(template: str) -> tuple[str, ...]:
        """What may differ between runs of which a template stands in one loop with its neighbours."""
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
    """The folder of the first labelling of a data set that serves a recipe, which is for such shards."""
    for each in content["labellings"]:
        if each["dataset"] == dataset and not differing(shards, each):
            return f"{each.get('out', 'out')}/{dataset}"
    raise ValueError(f"no labelling of {dataset} in {PAPERS.name} has {shards}")


def labelgen(each: dict[str, Any]) -> str:
    """The command of a labelling."""
    out, split = (f" --{name} {each[name]}" if name in each else "" for name in ("out", "split"))
    options = {name: value for name, value in each.items() if name not in ("dataset", "out", "split")}
    return f"vssl labelgen --dataset {each['dataset']}{split}{out} {labelgen_options(options)}"


def printed(nodes: list[str | Loop], indent: str = "") -> Iterator[str]:
    """Lines of bash."""
    for node in nodes:
        if isinstance(node, str):
            yield indent + node
        else:
            yield f"{indent}for {node.variable} in {' '.join(node.values)}; do"
            yield from printed(node.body, f"{indent}  ")
            yield f"{indent}done"


def commands(nodes: list[str | Loop]) -> Iterator[str]:
    """Every command that bash runs of these lines, in turn."""
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
    """What the capitals in the commands of a run stand for."""
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
    """The commands in loops over the variables that they name, the first one outside; none of a variable without values."""
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


def _item(entry: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    if "cannot" in entry:
        yield f"Not run here: {entry['cannot']}."
    if "protocol" in entry:
        yield f"Protocol: {entry['protocol']}."
    trained = {word.split("-")[0] for command in commands(script(entry, content)) for word in command.split()}
    of_methods = [text for method, text in content["differs_of"].items() if method in trained]
    notes = entry | {"differs": [*entry.get("differs", ()), *of_methods]}
    for name, title in _NOTES.items():
        if notes.get(name):
            yield f"{title}: {'; '.join(notes[name])}."
    found = [[label, _run(run), *map(_cell, cells)] for label, run, cells in rows(entry)]
    if any(run for _, run, *_ in found):
        yield ""
        yield from _markdown(["", "run by", *entry.get("columns", ())], found)
    elif found:  # the classes of a data set: a line of its own for each would bury the rest
        numbers = (f"{label} {' / '.join(cells)}" for label, _, *cells in found)
        yield f"Numbers, {' / '.join(entry['columns'])}: {'; '.join(numbers)}."
    if "commands" in entry:
        yield from ["", *(f"    {line}" for line in printed(script(entry, content)))]


def _shards(content: dict[str, Any]) -> Iterator[str]:
    yield from content["labelling"].split("\n")
    yield from ["", *(f"    {labelgen(each)}" for each in content["labellings"]), ""]
    serves: dict[str, list[str]] = {}
    for name in _names():
        if not name.startswith("finetune-"):
            folder = labelling(shards_of(name), name.split("-")[2], content)
            serves.setdefault(folder, []).append(name)
    body = []
    for each in content["labellings"]:
        folder = f"{each.get('out', 'out')}/{each['dataset']}"
        body.append([f"`{folder}`", *_cost(each, content), str(len(serves.get(folder, ()))) or ""])
    yield from _markdown(["shards", "frames, millions", "core hours", "GB", "recipes of pretraining"], body)


def _cost(each: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Frames in millions, core hours and gigabytes of a labelling, from what was measured for frames of that size."""
    frames = content["frames"].get(each["dataset"])
    if frames is None:
        return ["", "", ""]
    clips = "all" if each["clips"] is None else "some"
    hours, size = content["measured"][each["dataset"]]["{height} x {width}".format(**each)][clips]
    return [f"{frames:g}", f"{frames * hours:.1f}", f"{frames * size:.0f}"]


def _names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _recipes() -> Iterator[str]:
    found = []
    for name in _names():
        content = read(name)
        settings = content["settings"] | content["settings"].pop("options", {})
        assumed = [f"{key} {_value(entry['value'])}" for key, entry in settings.items() if entry["source"] == "assumed"]
        shards = {key: entry["value"] for key, entry in content["shards"].items() if entry["source"] == "assumed"}
        assumed += [labelgen_options({key: value}) for key, value in shards.items()]
        found.append([f"`{name}`", f"`{labelgen_options(shards_of(name))}`", ", ".join(assumed) or "nothing"])
    yield from _markdown(["recipe", "is for shards of `vssl labelgen` with", "assumed"], found)


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


def _run(run: str | None) -> str:
    if run is None:
        return ""
    method, _, backbone = run.partition("-")
    return f"`--scratch --backbone {backbone}`" if method == "none" else f"`{run}`"


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _markdown(head: list[str], body: list[list[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *body):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
