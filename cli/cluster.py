"""`vssl cluster`: videos that are alike, and those that are nearly the same."""

from __future__ import annotations

from pathlib import Path

import click

from cli.embed import TABLES
from cli.options import WRITTEN
from labelgen.progress import working

_SHOWN = 18  # pictures per sheet


@click.command()
@TABLES
@click.option("--out", type=WRITTEN, default=Path("clusters"), help="Folder for CSV, sheets and page.")
@click.option(
    "--level", default="video", type=click.Choice(["video", "row"]), help="What is grouped; row: each moment."
)
@click.option("--method", default="kmeans", type=click.Choice(["kmeans", "hdbscan"]), help="How clusters are found.")
@click.option("--k", type=click.IntRange(2), help="Clusters of kmeans.  [default: square root of half the number]")
@click.option("--smallest", default=5, type=click.IntRange(2), help="Fewest in a cluster of hdbscan.")
@click.option("--duplicates", is_flag=True, help="Find copies among the videos, by their pictures, instead.")
@click.option("--threshold", default=0.995, type=click.FloatRange(0, 1), help="Least similarity of copies.")
def cluster(features, out, level, method, k, smallest, duplicates, threshold):
    """Group the videos of a table: OUT/clusters.csv (or duplicates.csv), a contact sheet per group, and index.html."""
    from trainer.embeddings.cluster import clusters, points
    from trainer.embeddings.cluster import duplicates as near_duplicates
    from trainer.embeddings.table import Tables

    table = Tables(features)
    level = "video" if duplicates else level
    with working(
        f"comparing the pictures of {table.rows:,} rows" if duplicates else f"{method} of {table.rows:,} rows"
    ):
        found = points(table, level)
        if duplicates:
            group, value = near_duplicates(table, threshold)
            name, column, order = "duplicates", "similarity", -value
        else:
            group, value = clusters(found.vectors, method, k, smallest)
            name, column, order = "clusters", "distance", value
    noun = "groups of near-duplicates" if duplicates else "clusters"
    title = f"{group.max() + 1} {noun} of {len(group):,} {'videos' if level == 'video' else 'moments'}"
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / f"{name}.csv", found, group, column, value)
    with working("drawing"):
        _draw(out, name, title, table, found, group, order, column, value)
    alone = f"; {(group < 0).sum():,} in none" if (group < 0).any() else ""
    click.echo(f"{title}{alone} -> {out / name}.csv, {out / 'index.html'}")
    for number in range(group.max() + 1):
        click.echo(f"  {number}: {_told(found, group == number)}")


def _told(found, own) -> str:
    """How many, and which label is most frequent or, without labels, the first names."""
    from collections import Counter

    fields = [field for field, inside in zip(found.fields, own, strict=True) if inside]
    label, count = Counter(field["label"] for field in fields).most_common(1)[0]
    names = ", ".join(dict.fromkeys(field["id"] for field in fields[:4])) + (", ..." if len(fields) > 4 else "")
    return f"{len(fields):,}, " + (f"{count:,} of them {label}" if label else names)


def _write_csv(path: Path, found, group, column: str, value) -> None:
    import csv
    import io

    from labelgen.files import write_text
    from labelgen.texts import csv_cells

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("id", "path", "label", "start", "end")
    writer.writerow(("group", *names, column))
    for number in sorted(
        range(len(group)), key=lambda point: (group[point] < 0, group[point], found.fields[point]["id"])
    ):
        if group[number] >= 0 or column == "distance":
            own = found.fields[number]
            writer.writerow(csv_cells((group[number], *(own[name] for name in names), f"{value[number]:.6f}")))
    write_text(path, text.getvalue())


def _draw(out: Path, name: str, title: str, table, found, group, order, column: str, value) -> None:
    """A contact sheet per group, most typical first, and all groups on one page."""
    import numpy as np

    from labelgen.files import write_png, write_text
    from trainer.embeddings.sheets import contact_sheet, figures, moment
    from trainer.pages.page import join, page, paragraph

    for old in out.glob(f"{name}-[0-9]*.png"):
        old.unlink()
    kind, sections = ("Group" if column == "similarity" else "Cluster"), []
    for number in range(group.max() + 1):
        own = np.flatnonzero(group == number)
        chosen = own[np.argsort(order[own], kind="stable")][:_SHOWN]
        pictures = table.take(found.rows[chosen], ("thumbnail",))
        rows = [found.fields[point] | picture for point, picture in zip(chosen, pictures, strict=True)]
        values = [f"{column} {value[point]:.3f}" for point in chosen]
        times = [moment(row) * (len(group) == table.rows) for row in rows]  # of a whole video they tell nothing
        captions = [(row["thumbnail"], [row["id"], *own]) for row, *own in zip(rows, values, times, strict=True)]
        lines = ["; ".join(filter(None, own)) for own in zip(values, times, strict=True)]
        head = _told(found, group == number)
        write_png(out / f"{name}-{number:03d}.png", contact_sheet(f"{number}: {head}", captions))
        sections.append((f"group-{number}", f"{kind} {number}", join((paragraph(head, "muted"), figures(rows, lines)))))
    what = {"similarity": "correlation of the pictures with those of the nearest other video"}
    what["distance"] = "of the features from the mean of the cluster"
    lead = f"Of each, up to {_SHOWN} are shown, the most typical first. {column.capitalize()}: {what[column]}."
    write_text(out / "index.html", page(title, lead, "", sections, f"{table.name}: {table.rows:,} rows"))
