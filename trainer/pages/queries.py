"""The nearest neighbours of a few queries, as part of a page."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from trainer.evaluate.results import Result
from trainer.pages.films import Films
from trainer.pages.page import fill, heading, join, paragraph

_QUERIES = 12
FRAMES = " A solid frame and ✓: same class as the query. A dashed frame and ✗: another class."


def neighbours_html(result: Result, films: Films) -> Markup:
    """Queries of a result, spread evenly over all, each with its five nearest videos; nothing if there are none."""
    shown = result.content.get("neighbours")
    if not shown:
        return Markup()
    chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, _QUERIES).astype(int))]
    scored = bool(result.content["rows"])  # otherwise the two data sets share no class
    missed = [scored and bool(q["nearest"]) and q["nearest"][0][1] != q["label"] for q in chosen]
    about = (
        f"{len(chosen)} of the queries, spread evenly over all, each with its five nearest videos. Hover over a picture, or "
        "tap it, to see it move."
    )
    if scored:
        about += FRAMES
    if any("cosines" in query for query in chosen):
        about += " The number is the cosine to the query."
    out = [heading(result.title), paragraph(about)]
    if any(missed):
        only = f"only wrong: the {sum(missed)} whose nearest video is of another class"
        out.append(fill('<p><label><input type="checkbox" class="wrong-only"> {}</label></p>\n', only))
    p = result.protocol
    datasets = p["dataset"], p.get("gallery", p["dataset"])
    queries = join(
        fill("<li{}>{}</li>\n", Markup(' class="missed"') if wrong else "", query_html(query, films, *datasets, scored))
        for query, wrong in zip(chosen, missed, strict=True)
    )
    return fill('<div class="neighbours">{}<ul class="found">{}</ul></div>\n', join(out), queries)


def query_html(query: dict, films: Films, of_queries: str, of_gallery: str, scored: bool = True) -> Markup:
    """A query and the videos found for it, side by side; scored: whether they can be of the query's class."""
    name, label = query["query"], query["label"]
    cells = [("query", films.show(of_queries, name, f"Query {name}"), fill("query: <strong>{}</strong>", label), name)]
    cosines = query.get("cosines") or [None] * len(query["nearest"])
    for place, ((name, found), cosine) in enumerate(zip(query["nearest"], cosines, strict=True), 1):
        kind, sign = ("right", "✓") if found == label else ("wrong", "✗")
        kind, sign = (kind, fill('<b aria-hidden="true">{}</b> ', sign)) if scored else ("found", Markup())
        near = "" if cosine is None else f" {cosine:.2f}"
        alt = f"Found {place}, {kind}: {name}" if scored else f"Found {place}: {name}"
        cells.append((kind, films.show(of_gallery, name, alt), fill("{}{}{}", sign, found, near), name))
    template = '<li class="{}"><figure>{}<figcaption>{}<small>{}</small></figcaption></figure></li>'
    entries = join(fill(template, *cell) for cell in cells)
    return fill('<ol aria-label="{}">{}</ol>', query["query"], entries)
