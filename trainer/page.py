"""Static HTML pages: one file, no script, nothing loaded from elsewhere; style in page.css."""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

_WEBP_QUALITY = 85
_LONG = 28  # letters, from which on the text of a cell is broken into lines


class Html(str):
    """Text that is HTML already."""


def html(text: object) -> Html:
    """Any text, safe inside HTML and in attributes with double quotes."""
    return text if isinstance(text, Html) else Html(escape(str(text)))


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence],
    numbers: Container[int] = (),
    classes: Sequence[str] = (),
) -> Html:
    """A table in a box of its own that scrolls sideways; the first cell of a row is its header.

    numbers: columns that are set to the right; classes: of the rows, where given
    """

    def cell(name: str, i: int, content: object, scope: str = "") -> str:
        kind = "n" if i in numbers else "long" if len(str(content)) > _LONG and not isinstance(content, Html) else ""
        return f"<{name}{scope}{f' class={kind}' * bool(kind)}>{html(content)}</{name}>"

    top = "".join(cell("th", i, content, ' scope="col"') for i, content in enumerate(head))
    body = ""
    for number, row in enumerate(rows):
        first, *others = row
        cells = cell("th", 0, first, ' scope="row"') + "".join(
            cell("td", i, other) for i, other in enumerate(others, 1)
        )
        body += f"<tr{f' class={classes[number]}' if classes and classes[number] else ''}>{cells}</tr>\n"
    named = f"<caption><span>{html(caption)}</span></caption>"
    return scroll(caption, f"<table>{named}<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>")


def facts(caption: str, pairs: Iterable[tuple]) -> Html:
    """A table of names and values, without a head."""
    rows = "".join(f'<tr><th scope="row">{html(name)}</th><td>{html(value)}</td></tr>' for name, value in pairs)
    return Html(f'<table class="facts"><caption><span>{html(caption)}</span></caption><tbody>{rows}</tbody></table>\n')


def scroll(label: str, content: str) -> Html:
    """A box that scrolls sideways, with the keyboard, too."""
    return Html(f'<div class="scroll" role="region" aria-label="{html(label)}" tabindex="0">{content}</div>\n')


def figure(caption: str, content: str) -> Html:
    """A picture or plot under its caption."""
    return Html(f"<figure><figcaption>{html(caption)}</figcaption>{content}</figure>\n")


def grid(figures: Iterable[str], kind: str = "") -> Html:
    """Figures side by side, as many as there is room for; kind "small": of plots of curves."""
    return Html(f'<div class="figures {kind}">{"".join(figures)}</div>\n')


def details(summary: str, content: str) -> Html:
    """Content that opens on demand."""
    return Html(f"<details><summary>{html(summary)}</summary>{content}</details>\n")


def items(entries: Iterable) -> Html:
    """A list."""
    return Html("<ul>" + "".join(f"<li>{html(entry)}</li>" for entry in entries) + "</ul>\n")


def paragraph(text: object, kind: str = "") -> Html:
    """A paragraph."""
    return Html(f"<p{f' class={kind}' * bool(kind)}>{html(text)}</p>\n")


def picture(rgb: np.ndarray, alt: str) -> Html:
    """An RGB picture uint8 [H, W, 3] inside the page."""
    data = cv2.imencode(".webp", rgb[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])[1].tobytes()
    return image(data, "webp", alt, rgb.shape[:2])


def image(data: bytes, kind: str, alt: str, size: tuple[int, int]) -> Html:
    """An encoded picture (jpeg, webp) of height and width inside the page."""
    height, width = size
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Html(f'<img src="{source}" alt="{html(alt)}" width="{width}" height="{height}">')


def page(title: str, lead: str, top: str, sections: Sequence[tuple[str, str, str]], foot: str) -> str:
    """A whole page in ASCII: title, a sentence under it, what stands above the sections, the sections (id, heading, HTML)
    with a list of links to them, and a footer."""
    style = Path(__file__).with_name("page.css").read_text()
    links = "".join(f'<li><a href="#{name}">{html(heading)}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{html(heading)}</h2>\n{content}</section>\n'
        for name, heading, content in sections
    )
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{html(title)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{html(title)}</h1>
<p class="lead">{html(lead)}</p>
{top}<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{body}</main>
<footer>{html(foot)}</footer>
</body>
</html>
"""
    return text.encode("ascii", "xmlcharrefreplace").decode()
