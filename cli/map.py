"""`vssl map`: all videos of a table on one page, the similar ones close to each other."""

from __future__ import annotations

from pathlib import Path

import click

from cli.embed import TABLES
from cli.options import WRITTEN
from labelgen.progress import working


@click.command("map")
@TABLES
@click.option("--out", type=WRITTEN, default=Path("map.html"), help="Page to write.")
@click.option(
    "--level", default="video", type=click.Choice(["video", "row"]), help="What a point is; row: each moment."
)
@click.option("--method", default="tsne", type=click.Choice(["tsne", "umap"]), help="umap needs umap-learn.")
@click.option(
    "--color",
    type=click.Path(path_type=Path),
    help="CSV with a column id, such as cluster writes.  [default: the table itself]",
)
@click.option(
    "--column",
    help="What colours the points: label, split or path, or a column of the CSV.  [default: label, or group]",
)
def map_(features, out, level, method, color, column):
    """Draw the videos of a table as points, with a picture of each on hover, as one HTML page."""
    from labelgen.files import write_text
    from trainer.embeddings.cluster import points
    from trainer.embeddings.map import layout, map_page
    from trainer.embeddings.table import Tables

    table, column = Tables(features), column or ("group" if color else "label")
    with working(f"{method} of {table.rows:,} rows"):
        found = points(table, level)
        kinds = _values(color, column, found.fields) if color else _own_values(table.name, column, found.fields)
        places = layout(found.vectors, method)
    pictures = table.take(found.rows, ("thumbnail",))
    rows = [field | picture for field, picture in zip(found.fields, pictures, strict=True)]
    noun = "videos" if level == "video" else "moments"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, map_page(f"{len(rows):,} {noun}", places, rows, kinds, column))
    click.echo(out)


def _own_values(path: str, column: str, fields: list[dict]) -> list[str]:
    from trainer.errors import SettingError

    if column not in fields[0]:
        raise SettingError(f"{path}: no column {column}, only {', '.join(fields[0])}; name a CSV file with --color")
    return [str(field[column]) for field in fields]


def _values(path: Path, column: str, fields: list[dict]) -> list[str]:
    """Value of each point in a column of a CSV file, "" where it has none: by id, and by start, too, where a video has several
    rows. Raises TrainerError for another file."""
    import csv
    import io

    from labelgen.reading import read_text
    from labelgen.texts import from_csv
    from trainer.errors import TrainerError

    reader = csv.DictReader(io.StringIO(read_text(path, encoding="utf-8-sig"), newline=""))
    try:
        names, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise TrainerError(f"{path}: no CSV file ({error})") from error
    if absent := {"id", column} - set(names):
        raise TrainerError(f"{path}: no column {', '.join(sorted(absent))}, only {', '.join(names)}")
    by_id = {from_csv(row["id"]): row[column] or "" for row in rows}
    if len(by_id) == len(rows):
        return [by_id.get(field["id"], "") for field in fields]
    by_moment = {(from_csv(row["id"]), row.get("start")): row[column] or "" for row in rows}
    if len(by_moment) < len(rows) or len({field["id"] for field in fields}) == len(fields):
        raise TrainerError(
            f"{path}: {len(rows):,} rows of {len(by_id):,} ids, expected one per video, or with --level row one per start"
        )
    return [by_moment.get((field["id"], "" if field["start"] is None else str(field["start"])), "") for field in fields]
