"""Print papers/: a page for each paper with every table and figure, its numbers and the commands that run it, which
trainer/papers/papers.yaml has; the labellings; the recipes; and an index."""

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

FOLDER = Path(__file__).with_name("papers")

_INTRO = """\
# The papers' experiments

Each page below has every table and figure of one paper, with the numbers as printed and the commands that run it here; of
some papers it has the models of their public code. `make docs` prints the pages from `trainer/papers/papers.yaml` and the
recipes."""

_RUN = """\
## By one command

`vssl reproduce` lists the entries. `vssl reproduce "thesis tab. 4.1"` runs the commands of one entry and writes its table,
with the published numbers and the differences from them, as Markdown, JSON and a page to `reproduced/tables/`.

- **Data sets**: they are read from `data/`, `$VSSL_DATA` or `--data`. A data set without shards in `reproduced/out/`, or in
  `--shards`, is labelled first.
- **Runs**: each run is made once, for all tables that have it, in `reproduced/runs/`. `--out` names another folder; with
  `--out .` the runs that you made by hand are used.
- **Resuming and several machines**: as in [a study](../studies.md), with the same options `--workers`, `--device` and
  `--backend dask`. The next command tries again what failed (exit status 3).
- **Cost**: `--plan` shows the commands, those that are done, and the core or GPU hours, memory and disk of the others, from
  measurements of a few videos and steps on your machine.
- **Seeds**: `--seeds 0,1,2` gives means and standard deviations. `--split 1` finetunes on one split only.
- **Rehearsal**: `--clips 20000 --width 0.25 --batch-size 16 --frames 64,86,56`, for example, is smaller than the paper, and
  the table says so. It needs an `--out` of its own, since a run is resumed with its own settings alone.

## By hand

The commands on the pages can be copied into bash, in a folder whose `data/` holds the data sets by their names. Label the
[shards](shards.md) first. A run has the name of its [recipe](recipes.md); a finetuned run also has the names of its data set
and split.

## How to read a page

Numbers are per cent unless the page says otherwise; `-` means that the paper prints no number. A row without a run belongs to
a method that vssl does not have. *Differs* says what is done otherwise than in the paper, *left out* what nothing here runs,
and why, *assumed* what the paper does not state."""

_RECIPES = """\
# Recipes

The recipes of `vssl train --recipe NAME` and `vssl finetune --recipe NAME`, the shards that they are for, and the values that
no source states. `trainer/recipes/NAME.yaml` has the source of every other value."""


def pages() -> dict[str, list[str]]:
    """The lines of each page in docs/papers, by its name."""
    content = load_yaml(PAPERS)
    found = {"index.md": [*_INTRO.splitlines(), "", *_papers(content), "", *_RUN.splitlines()]}
    for source, items in content["items"].items():
        lines = [f"# {source}: {content['sources'][source]}", "", "[All papers](index.md)"]
        for item, entry in items.items():
            lines += ["", f"## {source} {item}: {entry['title']}", "", *_item(entry, content)]
        found[f"{source}.md"] = lines
    found["shards.md"] = ["# Shards of the papers' experiments", "", *_shards(content)]
    found["recipes.md"] = [*_RECIPES.splitlines(), "", *_recipes()]
    return found


def _papers(content: dict[str, Any]) -> Iterator[str]:
    body = []
    for source, items in content["items"].items():
        run = sum("commands" in entry for entry in items.values())
        body.append([f"[{source}]({source}.md)", content["sources"][source], str(len(items)), str(run)])
    yield from markdown(["page", "paper", "entries", "run here"], body)


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
        yield f"- **Not run here**: {entry['cannot']}."
    if "protocol" in entry:
        yield f"- **Protocol**: {entry['protocol']}."
    for title, texts in notes(entry, content).items():
        yield f"- **{title}**: {'; '.join(texts)}."
    found = [[label, f"`{run_by(run)}`" if run else "", *map(_cell, cells)] for label, run, cells in rows(entry)]
    if any(run for _, run, *_ in found):
        yield ""
        yield from markdown(["", "run by", *entry.get("columns", ())], found)
    elif found:  # the classes of a data set: a line of its own for each would bury the rest
        numbers = (f"{label} {' / '.join(cells)}" for label, _, *cells in found)
        yield f"- **Numbers**, {' / '.join(entry['columns'])}: {'; '.join(numbers)}."
    if "commands" in entry:
        yield from ["", "```bash", *printed(script(entry, content)), "```"]


def _shards(content: dict[str, Any]) -> Iterator[str]:
    yield from content["labelling"].split("\n")
    yield from ["", "```bash", *(labelgen(each) for each in content["labellings"]), "```", ""]
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
    FOLDER.mkdir(exist_ok=True)
    texts = pages()
    for name, lines in texts.items():
        (FOLDER / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in FOLDER.glob("*.md"):
        if path.name not in texts:
            path.unlink()
