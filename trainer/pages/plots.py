"""Plots as SVG, coloured by the style sheet of their page (page.css), so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer.evaluate.results import agree
from trainer.pages.page import fill, join

_WIDTH, _SMALL = (
    360,
    300,
)  # units of a plot, of one with curves; about as many pixels on a phone, so text stays readable
_VALUES = 24  # places on a curve that show their values
_LETTER = 6.8  # width of a character in units
_NAME = 24  # characters of a name


Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Series:
    """One curve.

    x, y: float [n]; kind: line, dots (a line with marks), level (dashed) or two of them; low, high: float [n], a band around
    it; style: attributes of one curve among many, see `style_of`, of the class `group`; it shows its name, and what `about`
    says, while hovered over. The nearest values of a curve are shown while one of up to 24 places on it is hovered over
    """

    name: str
    x: Values
    y: Values
    kind: str = "line"
    low: Values | None = None
    high: Values | None = None
    style: Markup = Markup()
    group: str = ""
    about: str = ""


@dataclass(frozen=True)
class Point:
    """A value with its interval, if it has one, of the series `kind`: pretrained, random or chance."""

    kind: str
    value: float
    low: float | None = None
    high: float | None = None


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """About `about` round numbers in [low, high], in steps of 1, 2 or 5 times a power of ten."""
    rough = max(high - low, 1e-12) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def number(value: float) -> str:
    """A number for a reader: four digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _svg(height: float, label: str, content: list[Markup], width: float = _WIDTH, role: str = "img") -> Markup:
    return fill(
        '<svg viewBox="0 0 {:g} {:g}" style="max-width:{:.0f}px" role="{}" aria-label="{}">{}</svg>',
        width,
        height,
        1.4 * width,  # text larger than its surroundings would look odd
        role,
        label,
        join(content),
    )


def _text(x: float, y: float, text: str, anchor: str = "start", extra: Markup | str = "") -> Markup:
    return fill('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>', x, y, anchor, extra, text)


def color_of(number: int, count: int) -> str:
    """One of `count` colours of similar brightness, each visible on light and dark backgrounds."""
    return f"oklch(.65 .17 {360 * number / count:.0f})"


def style_of(number: int, count: int) -> Markup:
    """Attributes that distinguish one of `count` curves: its colour, and dashes that differ from those of its neighbours."""
    dashes = ("none", "7 3", "2 2")[number % 3]
    return fill(' style="stroke:{};stroke-dasharray:{}"', color_of(number, count), dashes)


def lines(
    series: Sequence[Series],
    label: str,
    x_name: str = "step",
    zero: bool = False,
    size: tuple[int, int] = (_SMALL, 190),
) -> Markup:
    """Curves over a common x axis; zero: the y axis begins at 0. label: what a screen reader says. size: width, height."""
    top, bottom, (width, height) = 8, 34, size
    xs = np.concatenate([np.asarray(s.x, float) for s in series])
    ys = np.concatenate(
        [np.asarray(values, float) for s in series for values in (s.y, s.low, s.high) if values is not None]
    )
    x_low, x_high = _range(xs)
    right = max(8.0, _LETTER / 2 * len(number(ticks(x_low, x_high)[-1])))
    y_low, y_high = _range(np.append(ys, 0) if zero else ys)
    y_high += 0.05 * (y_high - y_low)
    left = max(42.0, 12 + _LETTER * max(len(number(tick)) for tick in ticks(y_low, y_high)))

    def at(x: Any, y: Any) -> tuple[Any, Any]:
        across = (np.asarray(x, float) - x_low) / (x_high - x_low)
        up = (np.asarray(y, float) - y_low) / (y_high - y_low)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    out = []
    for tick in ticks(y_low, y_high):
        y = at(x_low, tick)[1]
        out.append(fill('<path class="grid" d="M{:g} {:.1f}H{:g}"/>', left, y, width - right))
        out.append(_text(left - 6, y + 4, number(tick), "end"))
    for tick in ticks(x_low, x_high):
        out.append(_text(at(tick, y_low)[0], height - bottom + 16, number(tick), "middle"))
    out.append(_text(width - right, height - 4, x_name, "end"))
    for s in series:
        if s.low is not None:
            there, back = np.stack(at(s.x, s.low), 1), np.stack(at(s.x, s.high), 1)[::-1]
            out.append(fill('<path class="band" d="{}Z"/>', _path(np.concatenate([there, back]))))
    for s in series:
        places = np.stack(at(s.x, s.y), 1)
        drawn = [fill('<path class="curve {}" d="{}"{}/>', s.kind, _path(places), s.style)]
        marked = "level" not in s.kind and ("dots" in s.kind or len(places) == 1)
        shown = range(len(places)) if marked else np.unique(np.linspace(0, len(places) - 1, _VALUES).astype(int))
        for i in shown:
            title = f"{s.name}, {x_name} {number(s.x[i])}: {number(s.y[i])}"
            kind, radius, style = (f"mark {s.kind}", 3.5, s.style) if marked else ("value", 6, "")
            template = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"{}><title>{}</title></circle>'
            drawn.append(fill(template, kind, *places[i], radius, style, title))
        name = f"{s.name}: {s.about}" if s.about else s.name
        out += [fill('<g class="{}"><title>{}</title>{}</g>', s.group, name, join(drawn))] if s.group else drawn
    return _svg(height, label, out, width)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _path(places: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def intervals(rows: Sequence[tuple[str, Sequence[Point]]], label: str) -> Markup:
    """One line per row with its points and their intervals on an axis in per cent from 0."""
    left, right, top, step = _room(name for name, _ in rows), 12, 6, 24
    height = top + step * len(rows) + 22
    values = [v for _, points in rows for p in points for v in (p.value, p.high) if v is not None]
    largest = min(100, 1.05 * max([*values, 1]))
    lowest = min([0, *(p.low if p.low is not None else p.value for _, points in rows for p in points)])

    def at(value: float) -> float:
        return left + (value - lowest) / (largest - lowest) * (_WIDTH - left - right)

    bottom = top + step * len(rows)
    out = []
    for tick in ticks(lowest, largest, 5):
        out.append(fill('<path class="grid" d="M{:.1f} {}V{}"/>', at(tick), top, bottom))
        out.append(_text(at(tick), bottom + 16, number(tick), "middle"))
    for i, (name, points) in enumerate(rows):
        centre = top + step * (i + 0.5)
        out.append(_text(left - 8, centre + 4, _short(name), "end"))
        apart = {"pretrained": -4, "random": 5} if {"pretrained", "random"} <= {p.kind for p in points} else {}
        for p in points:
            y = centre + apart.get(p.kind, 0)
            label = f"{name}, {p.kind}: {p.value:.1f} %"
            if p.low is not None and p.high is not None:
                label += f", 95 % interval {p.low:.1f} to {p.high:.1f}"
                template = '<path class="interval {}" d="M{:.1f} {:.1f}H{:.1f}"/>'
                out.append(fill(template, p.kind, at(p.low), y, at(p.high)))
            out.append(_mark(p.kind, at(p.value), y, step, label))
    return _svg(height, label, out)


def _mark(kind: str, x: float, y: float, step: float, label: str) -> Markup:
    title = fill("<title>{}</title>", label)
    if kind == "chance":
        template = '<path class="curve level" d="M{0:.1f} {1:.1f}V{2:.1f}">{3}</path>'
        return fill(template, x, y - step / 2, y + step / 2, title)
    return fill('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4">{}</circle>', kind, x, y, title)


def rounded_up(value: float) -> float:
    """The next larger number with one digit, or the same number; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / power - 1e-9) * power


_FOREST = '<svg class="forest" width="160" height="20" aria-hidden="true">{}</svg>'


def difference(pair: Mapping[str, float], limit: float) -> Markup:
    """A difference with its interval, if it has one, on an axis from -limit to limit; hollow without an interval. Its numbers
    are printed next to it."""

    def at(value: float) -> float:
        return 50 + 46 * max(-1, min(1, value / limit))

    kind = "plain"
    drawn = [Markup('<line class="zero" x1="50%" x2="50%" y1="0" y2="20"/>')]
    if "low" in pair and not agree(pair):
        kind = "gain" if pair["low"] > 0 else "loss" if pair["high"] < 0 else "same"
        line = '<line class="interval {}" x1="{:.1f}%" x2="{:.1f}%" y1="10" y2="10"/>'
        drawn.append(fill(line, kind, at(pair["low"]), at(pair["high"])))
    drawn.append(fill('<circle class="mark {}" cx="{:.1f}%" cy="10" r="4"/>', kind, at(pair["value"])))
    return fill(_FOREST, join(drawn))


def difference_axis(limit: float) -> Markup:
    """The axis of `difference`, for the head of its column."""
    at = ((4, "start", -limit), (50, "middle", 0), (96, "end", limit))
    text = '<text x="{}%" y="14" text-anchor="{}">{}</text>'
    return fill(_FOREST, join(fill(text, x, anchor, f"{value:+g}" if value else "0") for x, anchor, value in at))


def _short(text: str) -> str:
    return text if len(text) <= _NAME else text[: _NAME - 1] + "…"


def _room(names: Iterable[str]) -> float:
    """Width in units of the longest of some names, as `_short` returns it, with margins."""
    return 12 + _LETTER * max((len(_short(name)) for name in names), default=0)


def legend(kinds: Sequence[tuple[str, str]]) -> Markup:
    """A legend of the marks of a plot: (kind of mark, words)."""
    marks = {
        "line": '<path class="curve" d="M0 6H26"/>',
        "dots": '<path class="curve dots" d="M0 6H26"/><circle class="mark dots" cx="13" cy="6" r="3.5"/>',
        "level": '<path class="curve level" d="M0 6H26"/>',
        "pretrained": '<path class="interval" d="M0 6H26"/><circle class="mark" cx="13" cy="6" r="4"/>',
        "random": '<path class="interval random" d="M0 6H26"/><circle class="mark random" cx="13" cy="6" r="4"/>',
        "chance": '<path class="curve level" d="M13 0V12"/>',
    }
    template = '<li><svg viewBox="0 0 26 12" aria-hidden="true">{}</svg>{}</li>'
    return fill('<ul class="legend">{}</ul>\n', join(fill(template, Markup(marks[kind]), text) for kind, text in kinds))


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> Markup:
    """One bar per row (name, per cent, text after it), from top to bottom."""
    left, right, step = _room(name for name, _, _ in rows), 74, 20
    out = []
    for i, (name, value, text) in enumerate(rows):
        y, length = step * i + 3, value / 100 * (_WIDTH - left - right)
        out.append(_text(left - 8, y + 11, _short(name), "end"))
        out.append(fill('<path class="base" d="M{:.1f} {}v16"/>', left, y - 1))
        if value > 0:
            template = '<rect class="bar" x="{:.1f}" y="{}" width="{:.1f}" height="14" rx="2"/>'
            out.append(fill(template, left, y, length))
        out.append(_text(left + length + 6, y + 11, text))
    return _svg(step * len(rows) + 4, label, out)


def matrix(
    classes: Sequence[str],
    counts: np.ndarray,
    label: str,
    links: Mapping[tuple[int, int], tuple[str, str]] | None = None,
) -> Markup:
    """A confusion matrix, int [classes, classes], rows true and columns predicted, coloured by each row's share; with names for
    up to 40 classes, with counts in the cells for up to 15. links: for cells by (row, column), the id of their target, and
    words."""
    n, named = len(classes), len(classes) <= 40
    margin = _room(classes) if named else 24.0
    cell = max(13.0 if named else 2.0, min(34.0, (_WIDTH - margin - 4) / n))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    template = '<rect class="frame" x="{0:.1f}" y="{0:.1f}" width="{1:.1f}" height="{1:.1f}"/>'
    out = [fill(template, margin, n * cell)]
    for level in range(1, 11):  # one path per shade: the file stays small for 400 classes
        cells = np.argwhere(np.ceil(10 * shares) == level)
        spots = "".join(
            f"M{margin + c * cell:.1f} {margin + r * cell:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z" for r, c in cells
        )
        if spots:
            out.append(fill('<path class="cell" fill-opacity="{:g}" d="{}"/>', level / 10, spots))
    if n <= 15:
        for (r, c), count in np.ndenumerate(counts):
            if count:
                place = margin + (c + 0.5) * cell, margin + (r + 0.5) * cell + 4
                out.append(_text(*place, str(count), "middle", Markup(' class="count"')))
    if named:
        for i, name in enumerate(classes):
            middle = margin + (i + 0.5) * cell
            turned = fill(' transform="rotate(-90 {:.1f} {:.1f})"', middle + 4, margin - 6)
            out.append(_text(margin - 6, middle + 4, _short(name), "end"))
            out.append(_text(middle + 4, margin - 6, _short(name), "start", turned))
    for (r, c), (target, title) in (links or {}).items():
        box = '<rect class="hit" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
        drawn = fill(box, margin + c * cell, margin + r * cell, cell, cell)
        out.append(fill('<a href="#{}" aria-label="{}"><title>{}</title>{}</a>', target, title, title, drawn))
    size = margin + n * cell + 4
    return _svg(size, label, out, size, "group" if links else "img")
