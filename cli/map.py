"""`vssl map`: all videos of a table on one page, with similar ones close to each other."""

from __future__ import annotations

from pathlib import Path

import click

from cli.commands import Command
from cli.options import TABLES, WRITTEN
from labelgen.progress import busy, counted


@click.command("map", cls=Command)
@TABLES
@click.option("--out", type=WRITTEN, default=Path("map.html"), help="Page to write.")
@click.option(
    "--level", default="video", type=click.Choice(["video", "row"]), help="Unit of a point; row: each moment."
)
@click.option("--method", default="tsne", type=click.Choice(["tsne", "umap"]), help="umap needs umap-learn.")
@click.option(
    "--color",
    type=click.Path(path_type=Path),
    help="CSV with a column id, such as that of cluster.  [default: the table]",
)
@click.option(
    "--column",
    help="Column by which points are coloured: label, split or path, or one of the CSV.  [default: label, or cluster without "
    "labels; group of a CSV]",
)
def map_(features, out, level, method, color, column):
    """Draw the videos of a table as points on an HTML page: similar ones close together, with search, zoom, pictures and
    neighbours."""
    from trainer.embeddings.map import write_map
    from trainer.embeddings.table import Tables

    table = Tables(features)
    with busy(f"{method} of {counted(table.rows, 'row')}"):
        write_map(table, out, level, method, column, color)
    click.echo(out)
