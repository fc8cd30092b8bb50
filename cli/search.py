"""`vssl search`: the moments of a table, or of shards, nearest to a video."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import click
from click.core import ParameterSource

from cli.commands import Command
from cli.films import film
from cli.options import IMAGE_FPS, TABLES, WRITTEN, compute, computing, one_folder_of_shards
from cli.video_files import VideoFiles
from labelgen.progress import ProgressBar, busy, counted


@click.command(
    cls=Command,
    groups={
        "Query": "begin end fps checkpoint",
        "Data": "features shards",
        "Hardware": "batch_size workers device",
        "Output": "count per_video page",
    },
)
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True, type=click.Path(path_type=Path))
@TABLES
@one_folder_of_shards("Search shards instead; their table is kept in the run.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="[default: the table's; with --shards, the newest run]"
)
@click.option("--from", "begin", default=0.0, type=click.FloatRange(0), help="Second at which the query begins.")
@click.option(
    "--to", "end", type=click.FloatRange(0, min_open=True), help="Second at which the query ends.  [default: the end]"
)
@IMAGE_FPS
@click.option("--count", default=10, type=click.IntRange(1), help="Number of moments to find.")
@click.option("--per-video", type=click.IntRange(1), help="Largest number of moments per video.  [default: no limit]")
@click.option("--page", type=WRITTEN, help="Draw the moments: .html, or a contact sheet .png.")
@computing
def search(videos, features, shards, checkpoint, begin, end, fps, count, per_video, page, batch_size, workers, device):
    """Find the moments nearest to VIDEO, or to a part of it; to several videos, by the mean of their vectors.

    Moments that overlap the query, or a better moment of the same video, are left out.
    """
    from labelgen.flow import flow
    from labelgen.texts import path_text
    from trainer.embeddings.chosen import extractor_of, load_network, table_of_shards
    from trainer.embeddings.search import search as nearest
    from trainer.embeddings.sheets import above, moment, write_hits
    from trainer.embeddings.table import Tables

    if end is not None and end <= begin:
        raise click.UsageError(f"--to {end:g} is not after --from {begin:g}")
    if len(videos) > 1 and (begin or end is not None):
        raise click.UsageError(
            f"--from and --to need one video, but {len(videos)} are given; cut them, or search by one"
        )
    if page is not None and page.suffix not in (".html", ".png"):
        raise click.UsageError(f"--page {page}: expected a name that ends in .html or .png")
    if (
        shards is not None
        and click.get_current_context().get_parameter_source("features") == ParameterSource.COMMANDLINE
    ):
        raise click.UsageError("give either --in or --shards")
    how = compute(batch_size, workers, device)
    with busy("searching"):
        if shards is not None:
            with ProgressBar("embedded", "video") as bar:
                table, extract = table_of_shards(shards, load_network(checkpoint), how, flow, bar, bar.say)
        else:
            table = Tables(features)
            extract = extractor_of(table, checkpoint, how, flow)
        vectors, ends, pictures = zip(*(_query(extract, video, (begin, end), fps) for video in videos), strict=True)
        spans = [(str(video.resolve()), begin, last) for video, last in zip(videos, ends, strict=True)]
        hits = nearest(table, sum(vectors) / len(vectors), count, per_video, spans)
    part = f", {begin:g} to {ends[0]:.1f} s" if begin or end else ""
    name = ", ".join(map(path_text, videos)) + part
    click.echo(
        f"nearest to {name} among {counted(table.rows, 'row')} of {table.name}; cosine, share of random pairs that are less "
        "alike:"
    )
    for hit in hits:
        label = f"  ({hit['label']})" if hit["label"] else ""
        click.echo(f"{hit['similarity']:7.4f}  {above(hit):>7}  {moment(hit):>18}  {hit['path']}{label}")
    if page is not None:
        examples = zip(videos, ends, pictures, strict=True)
        with busy("drawing"):
            write_hits(page, [_row(video, part, begin, last, shown) for video, last, shown in examples], hits, film)
        click.echo(page)


def _row(video: Path, part: str, begin: float, end: float, thumbnail: bytes) -> dict:
    """An example of the query as a row of a table."""
    from labelgen.texts import path_text

    about = {"id": path_text(video.name) + part, "path": path_text(video.absolute()), "thumbnail": thumbnail}
    return about | ({"start": None, "end": None} if math.isinf(end) else {"start": begin, "end": end})


def _query(extract, video: Path, span, fps):
    """Vector of a video, or of a part of it, the second at which it ends, and a picture of it."""
    import numpy as np

    from labelgen.errors import DecodeError
    from labelgen.manifest import Video
    from labelgen.manifest.segments import Part
    from labelgen.texts import path_text
    from trainer.embeddings.extract import video_means

    part = None if span == (0, None) else Part(*span)
    one = Video(path_text(video.name), video.absolute(), "", "", (), part)
    source = VideoFiles(video.parent, [one], extract.settings["frames"], 1, fps)
    with tempfile.TemporaryDirectory() as scratch, source.open([one], Path(scratch)) as piece:
        for failure in piece.failures:
            if not failure["kept"]:
                raise DecodeError(str(video), failure["reason"])
            click.echo(f"{video}: {failure['reason']}", err=True)
        vectors, columns = extract(piece)
        end = float(piece.bounds[0][-1])
    vector = video_means(vectors, np.zeros(len(vectors), np.int64))[0]
    return vector, math.inf if math.isnan(end) else end, columns["thumbnail"][len(vectors) // 2]
