"""Paired differences of two networks on the same videos, as text and as the table that all pages use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from trainer.evaluate.results import shown
from trainer.pages import plots
from trainer.pages.page import fill, table

# see metrics.paired_tests: "value"; "low", "high" if there is an interval; "adjusted", its p
Difference = Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """A row of a table of differences: its name, the cells of its values, and its differences by the head of their column, None
    if missing."""

    name: str
    values: Sequence[object]
    differences: Mapping[str, Difference | None] = field(default_factory=dict)


def differences_table(caption: str, what: str, values: Sequence[str], lines: Sequence[Line]) -> Markup:
    """A table of values and of differences, each difference as a plot, a number and, if corrected, its p; all plots share an
    axis.

    what: head of the names; values: heads of the values. Columns of differences are left out if no line has them.
    """
    kinds = dict.fromkeys(kind for line in lines for kind in line.differences)
    pairs = {kind: [pair for line in lines if (pair := line.differences.get(kind))] for kind in kinds}
    pairs = {kind: found for kind, found in pairs.items() if found}
    ends = [
        abs(pair[key]) for found in pairs.values() for pair in found for key in ("value", "low", "high") if key in pair
    ]
    limit = plots.rounded_up(max(ends, default=0))
    corrected = any("adjusted" in pair for found in pairs.values() for pair in found)
    head: list[object] = [what]
    for kind in pairs:
        head += [plots.difference_axis(limit), kind, *(["corrected"] if corrected else [])]
    body = []
    for line in lines:
        cells: list[object] = []
        for kind in pairs:
            pair = line.differences.get(kind)
            cells += [plots.difference(pair, limit), difference_cell(pair)] if pair else ["", ""]
            cells += [p_text(pair) if pair else ""] if corrected else []
        body.append([line.name, *cells, *line.values])
    first = len(head)
    numbers = [i for i in range(1, first) if (i - 1) % (3 if corrected else 2)]
    return table(caption, [*head, *values], body, [*numbers, *range(first, first + len(values))], stacked=True)


def value_cell(row: dict) -> Markup:
    """A value with its interval."""
    return _with_interval(shown(row))


def difference_cell(pair: Difference) -> Markup:
    """A difference with its interval, if it has one."""
    return _with_interval(difference_text(pair))


def _with_interval(text: str) -> Markup:
    value, _, interval = text.partition(" ")
    return fill("{} <small>{}</small>", value, interval) if interval else fill("{}", value)


def difference_text(pair: Difference) -> str:
    """A difference with its interval, if it has one: +4.0 [-1.5, +9.5]."""
    return shown(pair, "+")


def p_text(pair: Difference) -> str:
    """The corrected p of a difference."""
    p = pair["adjusted"]
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")
