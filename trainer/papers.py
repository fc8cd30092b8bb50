"""The experiments of the papers: every table and figure, its numbers, the commands that run it here; papers.yaml has them.

`python -m trainer.papers` prints docs/papers.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from labelgen.reading import load_yaml
from trainer.recipes import RECIPES, recipe

PAPERS = Path(__file__).with_name("papers.yaml")

_NOTES = {"lacks": "Left out", "differs": "Differs", "assumes": "Assumed", "remarks": "Remarks"}
_INTRO = """\
# The papers' experiments

Every table and figure of the five sources, with the numbers as printed and the commands that run it here. The page is printed
from `trainer/papers.yaml` and the recipes, by `python -m trainer.papers > docs/papers.md`.

RECIPE is each recipe named in the table, DATASET the data set in its name, BACKBONE that of a row of random weights; RUN is the
run that a recipe gives, FINETUNED a finetuned one. Shards are labelled once per configuration, by the command beside each of
[the recipes](#recipes), where the values stand that no source states; each recipe's file says more. Numbers are per cent where
nothing else is said; `-` is not printed there. A row that nothing runs is of a method that is not here. *Differs* is what is
done otherwise than in the source, *left out* what nothing here runs, with the reason, *assumed* what the source leaves open."""


def table() -> list[str]:
    """Lines of docs/papers.md."""
    content = load_yaml(PAPERS)
    lines = _INTRO.splitlines()
    for source, items in content["items"].items():
        lines += ["", f"## {source}: {content['sources'][source]}"]
        for item, entry in items.items():
            lines += ["", f"### {source} {item}: {entry['title']}", "", *_item(entry)]
    return [*lines, "", "## Recipes", "", *_recipes()]


def rows(entry: dict) -> Iterator[tuple[str, str | None, list]]:
    """Of each row its label, what runs it (None: nothing here) and its numbers, one per column."""
    columns = len(entry.get("columns", ()))
    for label, *cells in entry.get("rows", ()):
        yield label, cells[0] if len(cells) > columns else None, cells[len(cells) - columns :]


def _item(entry: dict) -> Iterator[str]:
    if "cannot" in entry:
        yield f"Not run here: {entry['cannot']}."
    if "protocol" in entry:
        yield f"Protocol: {entry['protocol']}."
    for name, title in _NOTES.items():
        if name in entry:
            yield f"{title}: {'; '.join(entry[name])}."
    found = [[label, _run(run), *map(_cell, cells)] for label, run, cells in rows(entry)]
    if any(run for _, run, *_ in found):
        yield ""
        yield from _markdown(["", "run by", *entry.get("columns", ())], found)
    elif found:  # the classes of a data set: a line of its own for each would bury the rest
        numbers = (f"{label} {' / '.join(cells)}" for label, _, *cells in found)
        yield f"Numbers, {' / '.join(entry['columns'])}: {'; '.join(numbers)}."
    if "commands" in entry:
        yield from ["", *(f"    {command}" for command in entry["commands"])]


def _recipes() -> Iterator[str]:
    found = []
    for path in sorted(RECIPES.glob("*.yaml")):
        content, (_, shards) = load_yaml(path), recipe(path.stem)
        options = content["settings"].pop("options", {})
        settings = content["settings"] | options
        assumed = [f"{name} {_value(v['value'])}" for name, v in settings.items() if v["source"] == "assumed"]
        assumed += [
            labelgen_options({name: v["value"]}) for name, v in content["shards"].items() if v["source"] == "assumed"
        ]
        found.append([f"`{path.stem}`", f"`{labelgen_options(shards)}`", ", ".join(assumed) or "nothing"])
    yield from _markdown(["recipe", "`vssl labelgen --dataset DATASET` with", "assumed"], found)


def labelgen_options(shards: dict) -> str:
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


def _cell(value) -> str:
    return "-" if value is None else str(value)


def _value(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _markdown(head: list[str], body) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *body):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
