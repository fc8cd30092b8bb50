"""Print the tables of the pages: each stands between `<!-- table: NAME -->` and `<!-- end -->`; `study:NAME` is that of
benchmarks/results/NAME.json, which `vssl study` wrote as study.json, `study:NAME:MEASURE` one of one measure alone;
`output:NAME` is benchmarks/results/NAME.txt: a command, its machine and what it printed;
`code:NAME` is docs/examples/NAME.py."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from labelgen.flow.tv_l1 import PARAMETERS, tvl1
from labelgen.manifest.form import builtin_manifests, read_manifest
from labelgen.shards.schema import fields
from trainer.backbones import BACKBONES, create
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.methods import METHODS, method_class
from trainer.methods.method import Method
from trainer.options import Option
from trainer.settings import DECLARATIONS, DEFAULT_BACKBONE, Declaration
from trainer.study.tables import markdown
from trainer.weights.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "papers")]


def shards() -> list[str]:
    """The data sets of a shard."""
    what = "JPEG frames end to end, a video's frames adjacent; contiguous and uncompressed, so it can be read by file offset"
    rows = [("`/frames/jpeg`", "uint8", "bytes", what)]
    for field in fields():
        name = "UTF-8" if field.dtype is str else np.dtype(field.dtype).name
        missing = f"; {field.missing} where the video is too short" if field.missing else ""
        rows.append((f"`/{field.name}`", name, ", ".join(map(str, field.axes)), f"{field.about}{missing}"))
    return table(("data set", "type", "axes", "what"), rows)


def manifests() -> list[str]:
    """The built-in data sets."""
    rows = []
    for name in builtin_manifests():
        spec = read_manifest(name)
        counts = (f"{count:,}" if count else "" for count in map(spec.get("expected", {}).get, ("videos", "classes")))
        splits = " ".join(spec.get("splits", {}).keys() - {"names"})
        layouts = "; ".join(layout["name"] for layout in spec.get("layouts", ()))
        rows.append((f"`{name}`", *counts, splits.replace("_", " "), spec.get("licence", ""), layouts))
    return table(("data set", "videos", "classes", "splits", "licence", "layouts of a copy"), rows)


def flow() -> list[str]:
    """The parameters of TV-L1, as its docstring describes them."""
    about = re.findall(r"^(\w+) : .+\n    (.+)\.$", inspect.getdoc(tvl1) or "", re.MULTILINE)
    rows = [(f"`{name}`", PARAMETERS[name], text) for name, text in about if name in PARAMETERS]
    return table(("parameter", "default", "meaning"), rows)


def methods() -> list[str]:
    """What each method learns, from what, and who published it."""
    rows = [(f"`{name}`", of.task, of.sample, of.source) for name, of in _methods()]
    return table(("method", "pretext task", "one sample", "source"), rows)


def defaults() -> list[str]:
    """The settings that each method has unless others are given."""
    rows = []
    for name, of in _methods():
        d = of.defaults
        schedule = f"/ 10 every {d['drop_every']}" if d["schedule"] == "step" else d["schedule"]
        numbers = f"{d['lr']:g}", schedule, f"{d['momentum']:g}", f"{d['weight_decay']:g}"
        more = d["batch_size"], d["epochs"], d["jitter"], d.get("backbone", DEFAULT_BACKBONE)
        rows.append((f"`{name}`", d.get("optimizer", "sgd"), *numbers, *more))
    head = (
        "defaults of",
        "optimizer",
        "lr",
        "schedule",
        "momentum",
        "weight decay",
        "batch",
        "epochs",
        "jitter",
        "backbone",
    )
    return table(head, rows)


def options() -> list[str]:
    """The options of each method."""
    rows = [
        (f"`{name}`", f"`{key}`", str(option.default).lower(), _values(option), option.help)
        for name, of in _methods()
        for key, option in of.options.items()
    ]
    return table(("options of", "name", "default", "values", "what"), rows)


def backbones() -> list[str]:
    """Each backbone's size and the first line of its docstring."""
    rows = []
    for name, target in BACKBONES.items():
        with torch.device("meta"):
            network = create(name)
        parameters = sum(weight.numel() for weight in network.parameters())
        about = (inspect.getdoc(pkgutil.resolve_name(target)) or "").split("\n")[0].rstrip(".")
        rows.append((f"`{name}`", f"{parameters:,}", network.features, about))
    return table(("backbone", "parameters", "features", ""), rows)


def weights() -> list[str]:
    """The programs whose weights are read, and what pixels their networks expect."""
    rows = []
    for of in FAMILIES:
        names = dict.fromkeys(name for name, _ in of.networks if name not in of.refused)
        clip = f"{of.input.frames} frames" + (f", {of.fps:g} a second" if of.fps else "")
        size = f"{of.size[2]} of {of.size[0]} x {of.size[1]}"
        networks = ", ".join(f"`{name}`" for name in names)
        rows.append((f"`{of.name}`", of.about, networks, of.input.described, clip, size, f"{of.epsilon:g}"))
    return table(("`--from`", "weights", "backbone here", "input", "clip", "crop", "epsilon"), rows)


def settings() -> list[str]:
    """Every setting of a run but the options of methods."""
    rows = [
        (f"`{name}`", of.shown_default, _values(of), "yes" if of.may_change else "", of.help)
        for name, of in DECLARATIONS.items()
        if name not in ("method", "backbone", "options")  # which have tables of their own
    ]
    return table(("setting", "default", "values", "may change on resume", "what"), rows)


def commands() -> list[str]:
    """The commands that evaluate."""
    return table(
        ("command", "question"), [(f"`vssl eval {name}`", protocol_class(name).question) for name in PROTOCOLS]
    )


def protocols() -> list[str]:
    """What each protocol measures, in a block of its own."""
    lines = []
    for name in PROTOCOLS:
        of = protocol_class(name)
        about = {"Question": of.question, "Items": of.items, "Classifier": of.classifier}
        about |= {"Left out": of.left_out, "Source": of.source}
        lines += ["", f"### `vssl eval {name}`: {of.title}", ""]
        lines += [f"- **{word}**: {text}" for word, text in about.items()]
    return lines[1:]


def study(name: str) -> list[str]:
    """The tables of a study that has run; name: of its file, or NAME:MEASURE for one of its measures."""
    name, _, measure = name.partition(":")
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if measure:
        kept = [i for i, column in enumerate(content["columns"]) if column["measure"] == measure]
        content["numbers"] = [
            e | {"column": kept.index(e["column"])} for e in content["numbers"] if e["column"] in kept
        ]
        content["columns"] = [content["columns"][i] for i in kept]
    return markdown(content).splitlines()


def output(name: str) -> list[str]:
    """A command, its machine and what it printed, as a block of code."""
    return ["```text", *(RESULTS / f"{name}.txt").read_text(encoding="utf-8").splitlines(), "```"]


def code(name: str) -> list[str]:
    """A file of docs/examples, as a block of code."""
    return ["```python", *(ROOT / "docs" / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines(), "```"]


TABLES: dict[str, Callable[[], list[str]]] = {
    "shards": shards,
    "manifests": manifests,
    "flow": flow,
    "methods": methods,
    "defaults": defaults,
    "options": options,
    "backbones": backbones,
    "weights": weights,
    "settings": settings,
    "commands": commands,
    "protocols": protocols,
}


def filled(text: str) -> str:
    """The text of a page with every table printed again. Raises KeyError for a table that nothing prints."""

    def printed(match: re.Match[str]) -> str:
        kind, _, name = match[1].partition(":")
        lines = {"study": study, "output": output, "code": code}[kind](name) if name else TABLES[kind]()
        return "\n".join([f"<!-- table: {match[1]} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: ([^\n]+?) -->\n.*?<!-- end -->", printed, text, flags=re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def _methods() -> Iterator[tuple[str, type[Method]]]:
    return ((name, method_class(name)) for name in METHODS)


def _values(declared: Option | Declaration) -> str:
    """The choices or the range of a declaration in words."""
    if declared.choices:
        return ", ".join(f"`{choice}`" for choice in declared.choices)
    return declared.range.words if declared.range else ""


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
