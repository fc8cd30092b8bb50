"""`vssl map`: all videos of a table on one page, the similar ones close to each other."""

from __future__ import annotations

from pathlib import Path

import click

from cli.embed import TABLE


@click.command("map")
@TABLE
@click.option("--out", type=click.Path(path_type=Path), default=Path("map.html"), help="Page to write.")
@click.option(
    "--level", default="video", type=click.Choice(["video", "row"]), help="What a point is; row: each moment."
)
@click.option("--method", default="tsne", type=click.Choice(["tsne", "umap"]), help="umap needs umap-learn.")
@click.option(
    "--color",
    type=click.Path(path_type=Path),
    help="CSV with a column id, such as cluster writes.  [default: the labels]",
)
@click.option("--column", default="group", help="Column of that file that colours the points.")
def map_(features, out, level, method, color, column):
    """Draw the videos of a table as points, with a picture of each on hover, as one HTML page."""
    from labelgen.files import write_text
    from trainer.embeddings.cluster import points
    from trainer.embeddings.map import layout, map_page
    from trainer.embeddings.table import Table

    table = Table(features)
    found = points(table, level)
    pictures = table.take(found.rows, ("thumbnail",))
    rows = [field | picture for field, picture in zip(found.fields, pictures, strict=True)]
    known = _column(color, column) if color else {field["id"]: field["label"] for field in rows}
    kinds = [known.get(row["id"], "") for row in rows]
    noun = "videos" if level == "video" else "moments"
    write_text(
        out, map_page(f"{len(rows):,} {noun}", layout(found.vectors, method), rows, kinds, column if color else "label")
    )
    click.echo(out)


def _column(path: Path, column: str) -> dict[str, str]:
    """id -> value of a column of a CSV file. Raises TrainerError where it has no such column."""
    import csv
    import io

    from labelgen.reading import read_text
    from trainer.errors import TrainerError

    reader = csv.DictReader(io.StringIO(read_text(path, encoding="utf-8-sig"), newline=""))
    try:
        if absent := {"id", column} - set(reader.fieldnames or ()):
            raise TrainerError(
                f"{path}: no column {', '.join(sorted(absent))}, only {', '.join(reader.fieldnames or ())}"
            )
        return {row["id"]: row[column] or "" for row in reader}
    except csv.Error as error:
        raise TrainerError(f"{path}: no CSV file ({error})") from error
