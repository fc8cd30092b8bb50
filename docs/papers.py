"""Print papers.md: every table and figure of the papers, its numbers and the commands that run it, which
trainer/papers/papers.yaml has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labelgen.reading import load_yaml
from trainer.papers import (
    PAPERS,
    Loop,
    cost,
    labelgen,
    labelgen_options,
    labelling,
    markdown,
    notes,
    rows,
    run_by,
    script,
    shards_of,
)
from trainer.recipes import RECIPES, read

PAGE = Path(__file__).with_name("papers.md")

_INTRO = """\
# The papers' experiments

Every table and figure of the sources, of some the table of the models of their public code, with the numbers as printed and
the commands that run it here. The page is printed from `trainer/papers/papers.yaml` and the recipes, by `make docs`.

The commands can be copied as they stand, into bash, in a folder whose `data/` holds the data sets by their names (or
`$VSSL_DATA`). [Shards](#shards) are labelled first; a run has the name of its recipe, a finetuned one those of data set and
split, too, and what has run for one table serves the next. Numbers are per cent where nothing else is said; `-` is not
printed there. A row that nothing runs is of a method that is not here. *Differs* is what is done otherwise than in the
source, *left out* what nothing here runs, with the reason, *assumed* what the source leaves open; [the recipes](#recipes)
have the values that no source states.

`vssl reproduce` lists the entries; `vssl reproduce "thesis tab. 4.1"` runs the commands of one and prints its table beside the
published one, with the difference, and writes it as Markdown, JSON and a page to `reproduced/tables/`. It labels the data sets
of `data/`, `$VSSL_DATA` or `--data` whose shards are not there (`--shards`, else `reproduced/out/`), and makes each run once,
whatever tables it is for, in `reproduced/runs/`; `--out` names another folder, `--out .` the one in which the commands below
were run by hand. It is resumed like [a study](studies.md), and spread over GPUs or a cluster by the same options: `--workers`,
`--device`, `--backend dask`. `--plan` shows the commands, which are done, and the core or GPU hours, memory and disk of the
others, measured on a few videos and steps here; without the videos it says what is not known. `--seeds 0,1,2` gives means and
standard deviations, `--split 1` fewer finetunings. A rehearsal is smaller than the source, which the table says:
`--clips 20000 --width 0.25 --batch-size 16 --frames 64,86,56`, for example; it needs an `--out` of its own, as a run is
resumed with its own settings alone. What fails is listed, and tried again by the next command (exit status 3)."""


def page() -> list[str]:
    """The lines of docs/papers.md."""
    content = load_yaml(PAPERS)
    lines = _INTRO.splitlines()
    for source, items in content["items"].items():
        lines += ["", f"## {source}: {content['sources'][source]}"]
        for item, entry in items.items():
            lines += ["", f"### {source} {item}: {entry['title']}", "", *_item(entry, content)]
    return [*lines, "", "## Shards", "", *_shards(content), "", "## Recipes", "", *_recipes()]


def printed(nodes: list[str | Loop], indent: str = "") -> Iterator[str]:
    """Lines of bash."""
    for node in nodes:
        if isinstance(node, str):
            yield indent + node
        else:
            yield f"{indent}for {node.variable} in {' '.join(node.values)}; do"
            yield from printed(node.body, f"{indent}  ")
            yield f"{indent}done"


def _item(entry: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    if "cannot" in entry:
        yield f"Not run here: {entry['cannot']}."
    if "protocol" in entry:
        yield f"Protocol: {entry['protocol']}."
    for title, texts in notes(entry, content).items():
        yield f"{title}: {'; '.join(texts)}."
    found = [[label, f"`{run_by(run)}`" if run else "", *map(_cell, cells)] for label, run, cells in rows(entry)]
    if any(run for _, run, *_ in found):
        yield ""
        yield from markdown(["", "run by", *entry.get("columns", ())], found)
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
        known = cost(each, content)
        costs = [f"{known[0]:g}", f"{known[1]:.1f}", f"{known[2]:.0f}"] if known else [""] * 3
        body.append([f"`{folder}`", *costs, str(len(serves.get(folder, ())))])
    yield from markdown(["shards", "frames, millions", "core hours", "GB", "recipes of pretraining"], body)


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
    yield from markdown(["recipe", "is for shards of `vssl labelgen` with", "assumed"], found)


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
