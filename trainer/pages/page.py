"""The parts of a page as HTML; the style is in page.css.

All markup is made by `fill`, which escapes every value that is not markup itself.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup, escape

_WEBP_QUALITY = 85
_LONG = 28  # characters: longer text in a cell is broken into lines


def fill(template: str, *values: object, **named: object) -> Markup:
    """A template of HTML or SVG with its values filled in, as by str.format. Every value is escaped as text, in elements and in
    attributes with double quotes, unless it is markup returned by `fill` or `join`."""
    return Markup(template).format(*values, **named)


def join(parts: Iterable[object]) -> Markup:
    """Parts one after the other, escaped as by `fill`."""
    return Markup("").join(map(escape, parts))


def table(
    caption: str,
    head: Sequence[object],
    rows: Iterable[Sequence],
    numbers: Container[int] = (),
    classes: Sequence[str] = (),
    stacked: bool = False,
) -> Markup:
    """A table in a box that scrolls sideways; the first cell of a row is its header.

    numbers: columns that are aligned to the right; classes: of the rows, if given; stacked: on a narrow screen the cells of a
    row stand below each other, each after the head of its column
    """

    def attributes(i: int, content: object) -> Markup:
        if i in numbers:
            return Markup(' class="n"')
        long = not isinstance(content, Markup) and len(str(content)) > _LONG
        return Markup(' class="long"') if long else Markup()

    def header(i: int, content: object, scope: str) -> Markup:
        return fill('<th scope="{}"{}>{}</th>', scope, attributes(i, content), content)

    def named(i: int) -> Markup:
        return fill(' data-head="{}: "', head[i]) if stacked and not isinstance(head[i], Markup) else Markup()

    body = []
    for number, (first, *others) in enumerate(rows):
        cells = join(
            fill("<td{}{}>{}</td>", attributes(i, other), named(i), other) for i, other in enumerate(others, 1)
        )
        kind = fill(' class="{}"', classes[number]) if classes and classes[number] else ""
        body.append(fill("<tr{}>{}{}</tr>\n", kind, header(0, first, "row"), cells))
    top = join(header(i, content, "col") for i, content in enumerate(head))
    template = "<table{}><caption><span>{}</span></caption><thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table>"
    return scroll(caption, fill(template, Markup(' class="stacked"' * stacked), caption, top, join(body)))


def facts(caption: str, pairs: Iterable[tuple]) -> Markup:
    """A table of names and values, without a head."""
    rows = join(fill('<tr><th scope="row">{}</th><td>{}</td></tr>', name, value) for name, value in pairs)
    template = '<table class="facts"><caption><span>{}</span></caption><tbody>{}</tbody></table>\n'
    return fill(template, caption, rows)


def heading(text: object) -> Markup:
    """The heading of a part of a section."""
    return fill("<h3>{}</h3>", text)


def scroll(label: str, content: Markup) -> Markup:
    """A box that scrolls sideways, also with the keyboard."""
    return fill('<div class="scroll" role="region" aria-label="{}" tabindex="0">{}</div>\n', label, content)


def figure(caption: str, content: Markup) -> Markup:
    """A picture or plot under its caption."""
    return fill("<figure><figcaption>{}</figcaption>{}</figure>\n", caption, content)


def grid(figures: Iterable[Markup], kind: str = "") -> Markup:
    """Figures side by side, as many as fit; kind "small": for plots of curves."""
    return fill('<div class="figures {}">{}</div>\n', kind, join(figures))


def details(summary: str, content: Markup) -> Markup:
    """Content that opens on demand."""
    return fill("<details><summary>{}</summary>{}</details>\n", summary, content)


def items(entries: Iterable[object]) -> Markup:
    """A list."""
    return fill("<ul>{}</ul>\n", join(fill("<li>{}</li>", entry) for entry in entries))


def paragraph(text: object, kind: str = "") -> Markup:
    """A paragraph."""
    return fill("<p{}>{}</p>\n", fill(' class="{}"', kind) if kind else "", text)


def picture(rgb: np.ndarray, alt: str) -> Markup:
    """An RGB picture uint8 [H, W, 3] inside the page."""
    data = cv2.imencode(".webp", rgb[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])[1].tobytes()
    return image(data, "webp", alt, rgb.shape[:2])


def image(data: bytes, kind: str, alt: str, size: tuple[int, int]) -> Markup:
    """An encoded picture (jpeg, webp) of height and width inside the page."""
    height, width = size
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return fill('<img src="{}" alt="{}" width="{}" height="{}">', source, alt, width, height)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{top}<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{body}</main>
<footer>{foot}</footer>
{script}</body>
</html>
"""
_SECTION = '<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{heading}</h2>\n{content}</section>\n'


def page(
    title: str,
    lead: str,
    top: Markup | str,
    sections: Sequence[tuple[str, str, Markup]],
    foot: str,
    rules: Markup | str = "",
    script: str = "",
) -> str:
    """A whole page in ASCII: title, a sentence under it, content above the sections, the sections (id, heading, HTML) with a
    list of links to them, and a footer.

    rules: for its style sheet, in addition to those of all pages
    script: name of a file beside this one, without which the page can be read, too. The policy of the page allows this script
        alone, by its hash; all texts are in the markup, none in the script
    """
    program = Path(__file__).with_name(script).read_text(encoding="ascii") if script else ""
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    text = fill(
        _PAGE,
        title=title,
        style=join((Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8")), rules)),
        lead=lead,
        top=top,
        links=join(fill('<li><a href="#{}">{}</a></li>', name, heading) for name, heading, _ in sections),
        body=join(fill(_SECTION, name=name, heading=heading, content=content) for name, heading, content in sections),
        foot=foot,
        allowed=Markup(f"; script-src 'sha256-{digest}'") if script else "",
        script=Markup(f"<script>{program}</script>\n") if script else "",
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()
