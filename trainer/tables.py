"""The tables of docs/training.md, printed from the registries and declarations."""

from __future__ import annotations

import inspect
import pkgutil

import torch

from trainer.backbones import BACKBONES, create
from trainer.methods import METHODS, method_class
from trainer.options import Option
from trainer.settings import DECLARATIONS, DEFAULT_BACKBONE


def methods() -> list[str]:
    """Markdown lines: what each method learns, from what, and who published it."""
    rows = [(f"`{name}`", of.task, of.sample, of.source) for name, of in _methods()]
    return _table(("method", "pretext task", "one sample", "source"), rows)


def defaults() -> list[str]:
    """Markdown lines: the settings that each method has unless others are given."""
    rows = []
    for name, of in _methods():
        d = of.defaults
        schedule = f"/ 10 every {d['drop_every']}" if d["schedule"] == "step" else d["schedule"]
        numbers = f"{d['lr']:g}", schedule, f"{d['momentum']:g}", f"{d['weight_decay']:g}"
        rows.append(
            (f"`{name}`", *numbers, d["batch_size"], d["epochs"], d["jitter"], d.get("backbone", DEFAULT_BACKBONE))
        )
    head = ("defaults of", "lr", "schedule", "momentum", "weight decay", "batch", "epochs", "jitter", "backbone")
    return _table(head, rows)


def options() -> list[str]:
    """Markdown lines: the options of each method."""
    rows = [
        (f"`{name}`", f"`{key}`", str(option.default).lower(), _values(option), option.help)
        for name, of in _methods()
        for key, option in of.options.items()
    ]
    return _table(("options of", "name", "default", "values", "what"), rows)


def backbones() -> list[str]:
    """Markdown lines: each backbone's size and the first line of its docstring."""
    rows = []
    for name in BACKBONES:
        with torch.device("meta"):
            network = create(name)
        parameters = sum(weight.numel() for weight in network.parameters())
        rows.append((f"`{name}`", f"{parameters:,}", network.features, _first_line(name)))
    return _table(("backbone", "parameters", "features", ""), rows)


def backbone_names() -> list[str]:
    """A Markdown line: the names of the backbones."""
    return [", ".join(f"`{name}`" for name in BACKBONES)]


def settings() -> list[str]:
    """Markdown lines: every setting of a run but the options of methods."""
    rows = [
        (
            f"`{name}`",
            declared.shown_default,
            _values(declared),
            "yes" if declared.may_change else "",
            declared.help,
        )
        for name, declared in DECLARATIONS.items()
        if name not in ("method", "backbone", "options")  # which have tables of their own
    ]
    return _table(("setting", "default", "values", "may change on resume", "what"), rows)


def _methods():
    return [(name, method_class(name)) for name in METHODS]


def _values(declared: Option) -> str:
    """The choices or the range of a declaration in words."""
    if declared.choices:
        return ", ".join(f"`{choice}`" for choice in declared.choices)
    return declared.range.words if declared.range else ""


def _first_line(backbone: str) -> str:
    return inspect.getdoc(pkgutil.resolve_name(BACKBONES[backbone])).split("\n")[0].rstrip(".")


def _table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
