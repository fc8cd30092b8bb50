"""`vssl cluster`: clusters of similar videos, and duplicates."""

from __future__ import annotations

from pathlib import Path

import click

from cli.commands import Command
from cli.films import film
from cli.options import TABLES, WRITTEN
from labelgen.progress import busy, counted

_PRINTED = 100  # pairs of duplicates


@click.command(cls=Command)
@TABLES
@click.option("--out", type=WRITTEN, default=Path("clusters"), help="Folder for CSV, sheets and page.")
@click.option(
    "--level", default="video", type=click.Choice(["video", "row"]), help="Unit of clustering; row: each moment."
)
@click.option("--method", default="kmeans", type=click.Choice(["kmeans", "hdbscan"]), help="Clustering algorithm.")
@click.option(
    "--k",
    type=click.IntRange(2),
    help="Number of clusters of kmeans.  [default: square root of half the number of items]",
)
@click.option("--smallest", default=5, type=click.IntRange(2), help="Smallest cluster of hdbscan.")
@click.option("--duplicates", is_flag=True, help="Find duplicates instead: the same videos, mirrored copies, excerpts.")
@click.option(
    "--threshold", default=0.9, type=click.FloatRange(0, 1), help="Smallest similarity of the motion in duplicates."
)
def cluster(features, out, level, method, k, smallest, duplicates, threshold):
    """Cluster the videos of a table: write OUT/clusters.csv (or duplicates.csv), a contact sheet per group, and index.html."""
    from trainer.embeddings.duplicates import duplicates as find_duplicates
    from trainer.embeddings.groups import clustered
    from trainer.embeddings.table import Tables

    table = Tables(features)
    if duplicates:
        with busy(f"comparing the pictures of {counted(table.rows, 'row')}"):
            found = find_duplicates(table, threshold)
        with busy("drawing"):
            written = found.write(out, film)
        click.echo(f"{found.title} -> {', '.join(map(str, written))}")
        for pair in found.pairs[:_PRINTED]:
            click.echo(f"  {found.group[pair.first]}: {found.describe(pair)}")
        if len(found.pairs) > _PRINTED:
            click.echo(f"  and {len(found.pairs) - _PRINTED:,} more")
        return
    with busy(f"{method} of {counted(table.rows, 'row')}"):
        found = clustered(table, level, method, k, smallest)
    with busy("drawing"):
        written = found.write(out, film)
    alone = f"; {(found.group < 0).sum():,} in no group" if (found.group < 0).any() else ""
    click.echo(f"{found.title}{alone} -> {', '.join(map(str, written))}")
    for number in range(found.count):
        click.echo(f"  {number}: {found.describe(number)}")
