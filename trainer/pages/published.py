"""What papers report for the same method and backbone, next to the results of a run; the numbers are in published.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from labelgen.reading import load_yaml
from trainer import backbones
from trainer.checkpoint import with_labels
from trainer.evaluate import protocol_class
from trainer.evaluate.results import Result, network_rows
from trainer.pages.measured import value_cell
from trainer.pages.page import details, items, join, paragraph, table

PUBLISHED = Path(__file__).with_name("published.yaml")


def published_html(settings: dict, initial: dict | None, results: Sequence[Result]) -> Markup:
    """Tables of the published numbers for a run's method with its backbone, or with one that is not available here, by
    protocol, and this run's numbers on the same data sets.

    settings: the run's; initial: what it started from, see checkpoint.start_from; the method of a finetuned run is that of its
    pretraining. Empty if no paper has such a number.
    """
    method, backbone = pretraining(settings, initial)[0], settings["backbone"]
    content = load_yaml(PUBLISHED)
    out, others = Markup(), set()
    for protocol in dict.fromkeys(group["protocol"] for group in content["groups"]):
        groups = [group for group in content["groups"] if group["protocol"] == protocol]
        entries = [
            (group["how"], entry)
            for group in groups
            for entry in group["numbers"]
            if (entry["method"] == method and entry["backbone"] not in backbones.BACKBONES)
            or (entry["method"] in (method, "none") and entry["backbone"] == backbone)
        ]
        if any(entry["method"] == method for _, entry in entries):
            measured = [result for result in results if result.name == protocol]
            out += _table(protocol, backbone, entries, measured)
            others |= {entry["backbone"] for _, entry in entries} - {backbone}
    if not out:
        return Markup()
    about = f"What papers report for {' or '.join((backbone, *sorted(others)))} with {method}, "
    about += f"and for {backbone} from random weights, in grey."
    about += " Their protocols differ from ours and from one another."
    if settings["width"] != 1:
        about += f" Their networks have width 1, this one {settings['width']:g}."
    sources = items(f"{name}: {text}" for name, text in content["papers"].items())
    return join((paragraph(about), out, details("Sources", sources)))


def pretraining(settings: dict, initial: dict | None) -> tuple[str, str | None]:
    """Method and data set that a backbone was pretrained with; "none" for one that was trained only with labels."""
    if not with_labels(settings):
        return settings["method"], None
    return (initial["settings"]["method"], initial["dataset"]) if initial else ("none", None)


def _table(protocol: str, backbone: str, entries: list[tuple[str, dict]], results: list[Result]) -> Markup:
    metrics, title = protocol_class(protocol).published, protocol_class(protocol).title
    out, datasets = Markup(), sorted({dataset for _, entry in entries for dataset in entry["values"]})
    for dataset in datasets:
        measured = [
            row for result in results if result.protocol["dataset"] == dataset for row in _this_run(result, metrics)
        ]
        rows = [
            _row(how, entry, entry["values"][dataset], backbone) for how, entry in entries if dataset in entry["values"]
        ]
        head = ("Where", *metrics, "Method", "Pretrained on", "Protocol")
        kinds = [*([""] * len(measured)), *(["published"] * len(rows))]
        caption = f"{title} on {dataset}, {backbone}, %"
        shown = table(caption, head, [*measured, *rows], range(1, 1 + len(metrics)), kinds)
        out += shown if measured else details(f"{title} on {dataset}: not measured for this run", shown)
    return out


def _row(how: str, entry: dict, values: float | list, backbone: str) -> list[str]:
    values = values if isinstance(values, list) else [values]
    shown = ["" if v is None else f"{v:.1f}" if round(v, 1) == v else f"{v:g}" for v in values]
    method = "random weights" if entry["method"] == "none" else entry["method"]
    method += f", {entry['backbone']}" if entry["backbone"] != backbone else ""
    method += f", {entry['variant']}" if "variant" in entry else ""
    return [entry["source"], *shown, method, entry.get("pretraining", ""), how]


def _this_run(result: Result, metrics: Sequence[str]) -> list[list]:
    """This run's rows for the table: the last two stages, max pooling, each level."""
    p = result.protocol
    rows = [row for row in network_rows(result) if row["metric"] in metrics and row.get("pooling", "max") == "max"]
    last = list(dict.fromkeys(row["stage"] for row in rows if "stage" in row))[-2:]
    lines: dict[tuple, dict[str, Markup]] = {}
    for row in rows:
        if row.get("stage") in (*last, None):
            lines.setdefault((row.get("stage"), row.get("level")), {})[row["metric"]] = value_cell(row)
    method, dataset = pretraining(p["pretraining"], p["initial"])
    found = []
    for (stage, level), cells in lines.items():
        how = "; ".join(filter(None, (level and f"{level} level", p["views"], p["mode"])))
        by = ", ".join(filter(None, (method, stage)))
        found.append(
            [
                "this run",
                *(cells.get(metric, "") for metric in metrics),
                by,
                dataset or p["pretraining"]["dataset"],
                how,
            ]
        )
    return found
