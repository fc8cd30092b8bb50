"""Print the tables of the pages anew: each stands between `<!-- table: NAME -->` and `<!-- end -->`; `study:NAME` is that of
benchmarks/results/NAME.json, which `vssl study` wrote as study.json, `study:NAME:MEASURE` one of one measure alone."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.study.results import markdown

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {
    "question": "Question",
    "items": "Items",
    "classifier": "Classifier",
    "left_out": "Left out",
    "source": "Source",
}


def protocols() -> list[str]:
    """What each protocol measures."""
    lines = []
    for name in PROTOCOLS:
        protocol = protocol_class(name)
        lines += ["", f"### `vssl eval {name}`: {protocol.title}", ""]
        lines += [f"- **{word}**: {getattr(protocol, key)}" for key, word in WORDS.items()]
    return lines[1:]


def commands() -> list[str]:
    """The commands of all protocols."""
    rows = [f"| `vssl eval {name}` | {protocol_class(name).question} |" for name in PROTOCOLS]
    return ["| command | question |", "|---|---|", *rows]


TABLES: dict[str, str | Callable[[], list[str]]] = {  # name -> function without arguments that gives lines of Markdown
    "shards": "labelgen.shards.schema:table",
    "manifests": "labelgen.manifest.form:table",
    "manifest-names": "labelgen.manifest.form:names",
    "methods": "trainer.tables:methods",
    "defaults": "trainer.tables:defaults",
    "options": "trainer.tables:options",
    "backbones": "trainer.tables:backbones",
    "backbone-names": "trainer.tables:backbone_names",
    "settings": "trainer.tables:settings",
    "commands": commands,
    "protocols": protocols,
}


def filled(text: str) -> str:
    """The text of a page with every table printed anew. Raises KeyError for a table that nothing prints."""

    def table(match: re.Match) -> str:
        kind, _, name = match[1].partition(":")
        if kind == "study":
            lines = _study(name)
        else:
            printer = TABLES[match[1]]
            lines = pkgutil.resolve_name(printer)() if isinstance(printer, str) else printer()
        return "\n".join([f"<!-- table: {match[1]} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: ([^\n]+?) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _study(name: str) -> list[str]:
    """The tables of a study that has run, or of one of its measures."""
    name, _, measure = name.partition(":")
    content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    if measure:
        kept = [i for i, column in enumerate(content["columns"]) if column["measure"] == measure]
        content["numbers"] = [
            e | {"column": kept.index(e["column"])} for e in content["numbers"] if e["column"] in kept
        ]
        content["columns"] = [content["columns"][i] for i in kept]
    return markdown(content).splitlines()


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
