"""The experiments of the papers: nothing of the sources is left out, what is named exists, and numbers agree."""

import re
import shlex

import click
import pytest
import yaml

from cli.main import main
from docs.papers import FOLDER, pages
from trainer import papers
from trainer.backbones import BACKBONES
from trainer.extends import chain
from trainer.methods import METHODS
from trainer.pages.published import PUBLISHED
from trainer.recipes import RECIPES, _path, read

CONTENT = yaml.safe_load(papers.PAPERS.read_text())
ENTRIES = {(source, item): entry for source, items in CONTENT["items"].items() for item, entry in items.items()}
NOTES = {"lacks", "differs", "assumes", "remarks"}
NAMES = {path.stem for path in RECIPES.glob("*.yaml")}
# The numbers of the tables and figures in each source; tce's has no figure 4.
INVENTORY = {
    "thesis": {
        "tab.": [f"{chapter}.{n}" for chapter, last in ((2, 8), (3, 9), (4, 10)) for n in range(1, last + 1)],
        "fig.": [f"{chapter}.{n}" for chapter, last in ((2, 10), (3, 9), (4, 8)) for n in range(1, last + 1)],
    },
    "vcop": {"tab.": ["1", "2", "3", "4"], "fig.": ["1", "2", "3", "4", "5", "6"]},
    "skip-clip": {"tab.": ["1", "2", "3"], "fig.": []},
    "tce": {"tab.": ["1"], "fig.": ["1", "2", "3", "5"]},
    "ascnet": {"tab.": ["1", "2"], "fig.": []},
    **dict.fromkeys(("pyslowfast", "cvrl", "coclr"), {"tab.": ["1"], "fig.": []}),
    **dict.fromkeys(("rspnet", "lejepa"), {"tab.": [], "fig.": []}),  # of which no text is at hand
}


def pretrained(run):
    """Method and backbone of what runs a row."""
    return tuple(run.split("-")[:2]) if run else (None, None)


@pytest.mark.parametrize("source", INVENTORY)
def test_no_table_and_no_figure_is_left_out_or_twice(source):
    found = [each for item in CONTENT["items"][source] for each in papers.numbered(item)]
    assert sorted(found) == sorted((kind, n) for kind, numbers in INVENTORY[source].items() for n in numbers)
    assert CONTENT["items"].keys() == CONTENT["sources"].keys() == INVENTORY.keys()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=[" ".join(key) for key in ENTRIES])
def test_an_entry(entry):
    known = {"title", "protocol", "dataset", "columns", "rows", "commands", "each", "only", "cannot"} | NOTES
    known |= {"level", "runs", "stages"}
    assert {"title"} <= entry.keys() <= known
    assert ("cannot" in entry) != ("commands" in entry)
    for note in NOTES & entry.keys():
        assert all(isinstance(text, str) and text for text in entry[note]), note
    for why in (*entry.get("lacks", ()), *([entry["cannot"]] if "cannot" in entry else [])):
        assert len(why.split()) > 3, why  # a reason, not a name
    columns = entry.get("columns", [])
    for row in entry.get("rows", []):
        assert len(row) in (len(columns) + 1, len(columns) + 2), row
    for _, run, numbers in papers.rows(entry):
        if run is None:
            continue
        method, backbone = pretrained(run)
        assert method in (*METHODS, "none", "supervised") and backbone in BACKBONES
        assert method in ("none", "supervised") or run in NAMES, run
        assert all(0 <= x <= 100 for x in numbers if isinstance(x, float)), numbers


def accepted(command):
    """Whether the command line knows the command, all its options and the recipe."""
    program, *words = shlex.split(command)
    assert program == "vssl"
    found = main
    while isinstance(found, click.Group):
        found = found.get_command(click.Context(found), words.pop(0))
    if found is None:
        return False
    options = {name for parameter in found.params for name in parameter.opts}
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option.startswith("--") and option not in options:
            return False
        if option == "--recipe" and value not in NAMES:
            return False
    return True


def test_every_command_exists():
    found = {command for entry in ENTRIES.values() for command in papers.commands(papers.script(entry, CONTENT))}
    assert len(found) > 400
    for command in [*found, *map(papers.labelgen, CONTENT["labellings"])]:
        assert accepted(command) and not re.search(r"\$|[A-Z]{3}", command.replace("ASLAN", "")), command
    assert not accepted("vssl eval nonsense") and not accepted("vssl train --nonsense 1")
    assert not accepted("vssl train --recipe nonsense")


def test_every_entry_of_statistics_says_that_its_flow_differs():
    flow = "the flow is TV-L1; the thesis cites Brox et al., ECCV 2004"
    found, count = pages(), 0
    for (source, item), entry in ENTRIES.items():
        text = " ".join(papers.commands(papers.script(entry, CONTENT)))
        lines = found[f"{source}.md"]
        here = lines.index(f"## {source} {item}: {entry['title']}")
        (differs,) = [line for line in lines[here : here + 6] if line.startswith("- **Differs**: ")] or [""]
        assert (flow in differs) == ("--recipe statistics" in text), item
        count += flow in differs
    assert count > 20
    for name in NAMES:
        about = " ".join(content["about"] for _, content in chain(RECIPES / f"{name}.yaml", _path))
        assert name.startswith("statistics") == ("Brox" in about)


def test_the_sources_of_a_finetuning_without_public_code():
    for name in NAMES:
        if name.startswith("finetune-thesis"):
            assert "authors' code\"}" not in (RECIPES / f"{name}.yaml").read_text()


def test_what_a_cut_tells_of_the_pace():
    """The figure of tab. 4.7: of four paces with these shares of wrapped clips, "cut or none" tells the most likely one."""
    short = 0.018, 0.318, 0.581, 0.798
    assert (max(short) + 1 - min(short)) / 4 == pytest.approx(0.445)
    differs = " ".join(ENTRIES["thesis", "tab. 4.7"]["differs"])
    assert "1.8, 31.8, 58.1 and 79.8 %" in differs and "44.5 %" in differs


def test_shards_of_a_recipe_become_options_of_labelgen():
    shards = {"crop": 112, "clips": None, "paces": ["1/2", "-1"], "allow_wrap": True, "order_clips": 3}
    assert papers.labelgen_options(shards) == "--crop 112 --clips all --paces 1/2,-1 --allow-wrap --order-clips 3"
    assert papers.labelgen_options({"allow_wrap": False}) == ""
    for path in RECIPES.glob("*.yaml"):
        assert accepted(f"vssl labelgen {papers.labelgen_options(papers.shards_of(path.stem))}")


def test_every_recipe_runs_a_row_or_stands_in_a_command():
    used = {run for entry in ENTRIES.values() for _, run, _ in papers.rows(entry)}
    scripts = [papers.commands(papers.script(entry, CONTENT)) for entry in ENTRIES.values()]
    used |= {word for script in scripts for command in script for word in command.split()}
    assert NAMES - used == set()


def entries_of(source):
    """The entries that a source of published.yaml, such as "vcop tables 2 and 3", names; those of a paper without a number."""
    paper, _, numbers = source.partition(" ")
    wanted = {("tab.", n) for n in re.findall(r"\d[\d.]*", numbers)}
    return [
        entry
        for (own, item), entry in ENTRIES.items()
        if own == paper and (not wanted or wanted & set(papers.numbered(item)))
    ]


def numbers_of(entry, label, numbers, dataset):
    """The numbers of a row that are of a data set: those of its column, or all, where table or label name it."""
    columns = [column.split()[0] for column in entry["columns"]]  # such as "kinetics400 linear"
    if dataset in columns:
        return [numbers[columns.index(dataset)]]
    of_it = entry.get("dataset") == dataset or dataset in label.lower()
    return [x for x in numbers if x is not None] if of_it else []


def test_numbers_agree_with_those_of_the_report():
    content, checked = yaml.safe_load(PUBLISHED.read_text()), 0
    for published in (number for group in content["groups"] for number in group["numbers"]):
        for dataset, values in published["values"].items():
            values = [x for x in values if x is not None] if isinstance(values, list) else [values]
            rows = [
                numbers_of(entry, label, numbers, dataset)
                for entry in entries_of(published["source"])
                for label, run, numbers in papers.rows(entry)
                if pretrained(run) == (published["method"], published["backbone"])
                or (published["backbone"] not in BACKBONES and label.lower().startswith(published["method"]))
            ]
            assert any(row == values or (len(values) == 1 and values[0] in row) for row in rows), (published, rows)
            checked += len(values)
    assert checked > 250


def test_the_pages_are_the_printed_ones():
    texts = {name: "\n".join(lines) + "\n" for name, lines in pages().items()}
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == texts, "run `make docs`"


def test_the_pages_name_every_number_and_what_recipes_assume():
    found = pages()
    for (source, item), entry in ENTRIES.items():
        text = "\n".join(lines := found[f"{source}.md"])
        assert f"## {source} {item}: {entry['title']}" in lines
        for label, _, numbers in papers.rows(entry):
            for value in numbers:
                assert value is None or str(value) in text, (item, label, value)
    for name in NAMES:
        (line,) = (line for line in found["recipes.md"] if line.startswith(f"| `{name}` |"))
        assert ("momentum 0.9" in line) == (read(name)["settings"]["momentum"]["source"] == "assumed")


@pytest.mark.parametrize(
    "experiment",
    [
        "thesis tab. 2.2: --recipe statistics-c3d_light-ucf101-motion-pattern1, statistics-c3d_light-ucf101-motion-pattern3",
        "thesis tab. 2.3: statistics-c3d_light-ucf101-motion-global, statistics-c3d_light-ucf101-motion-patterns",
        "thesis fig. 3.1: --pacing fixed, --pacing varied",
        "thesis tab. 3.2, fig. 3.5: --fraction 0.0625",
        "thesis tab. 3.3: statistics-r2plus1d10-kinetics400-easy, statistics-r2plus1d10-kinetics400-hard",
        "thesis tab. 3.3: statistics-r2plus1d10-kinetics400-half",
        "thesis tab. 4.1: vssl eval pretext",
        "thesis tab. 4.2: interpolated frames",
        "thesis tab. 4.4: pace-r2plus1d10-ucf101-random-backwards",
        "thesis tab. 4.6: pace-r2plus1d10-ucf101-same-pace-alone, pace-r2plus1d10-ucf101-same-context-alone",
        "thesis tab. 4.7: pace-s3dg-ucf101, --recipe finetune-thesis-s3dg, statistics-c3d_light-kinetics400",
        "thesis fig. 4.8: --shards out/ucf101 --pace 4",
        "vcop tab. 1: vssl eval pretext",
        "skip-clip tab. 1: --recipe finetune-skip_clip",
        "skip-clip figures: vssl eval future",
        "tce tab. 1: --recipe finetune-tce",
        "ascnet tab. 1: --recipe finetune-ascnet, --recipe finetune-ascnet-s3dg",
    ],
)
def test_an_experiment_runs_by(experiment):
    item, _, needed = experiment.partition(": ")
    source, _, item = item.partition(" ")
    entry = ENTRIES[source, item]
    text = "\n".join([yaml.safe_dump(entry, width=10_000), *papers.commands(papers.script(entry, CONTENT))])
    for part in needed.split(", "):
        assert part in text, part
