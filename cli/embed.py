"""`vssl embed` and `vssl search`: what a network makes of videos, as a table, and what is nearest in it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
from click.core import ParameterSource

from cli.options import WRITTEN
from cli.video_files import VideoFiles, video_files
from labelgen.progress import working

TABLES = click.option(
    "--in",
    "features",
    type=click.Path(path_type=Path),
    multiple=True,
    default=[Path("features.parquet")],
    help="Table that embed wrote; several, made alike, are taken together.",
)
_CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Run, checkpoint folder or exported .safetensors file.  [default: the newest run]",
)
_COMPUTE = (
    click.option("--batch-size", default=32, type=click.IntRange(1), help="Clips at a time; no effect on the result."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        help="Processes that decode videos, threads that decode shards.  [default: half of the process's cores, 1 to 8]",
    ),
    click.option("--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda if there is one."),
)


_FPS = click.option(
    "--fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Frames per second of folders of images.  [default: those of the network's training, if it had a constant rate]",
)


def _once(ctx, param, value: tuple[Path, ...]) -> Path | None:
    if len(value) > 1:
        told = f"given {len(value)} times, expected once; search several by their tables, --in ONE --in OTHER"
        raise click.BadParameter(told, ctx, param)
    return value[0] if value else None


def _computing(command):
    for option in reversed(_COMPUTE):
        command = option(command)
    return command


def _compute(batch_size, workers, device):
    from trainer.evaluate.features import Compute
    from trainer.settings import WORKERS

    return Compute(batch_size, WORKERS if workers is None else workers, device)


def _load(checkpoint):
    from trainer.checkpoint import load, newest_run
    from trainer.errors import TrainerError

    if checkpoint is not None and checkpoint.suffix in (".onnx", ".pt", ".pth"):
        raise TrainerError(f"{checkpoint}: expected a run or a .safetensors file, as `vssl export` writes it")
    return load(newest_run() if checkpoint is None else checkpoint, best=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command()
@_CHECKPOINT
@click.option(
    "--videos", type=click.Path(path_type=Path), multiple=True, help="Folder of video files, or one file; repeatable."
)
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    multiple=True,
    callback=_once,
    help="Folder that labelgen wrote, instead.",
)
@click.option("--out", type=WRITTEN, default=Path("features.parquet"), help="Table to write.")
@click.option(
    "--dataset", default="folder", help="What --videos is: a built-in data set or a YAML manifest, for labels."
)
@_FPS
@click.option("--level", default="clip", type=click.Choice(["clip", "video"]), help="What one row is.")
@click.option("--stage", help="Such as conv4.  [default: the last]")
@click.option(
    "--pooling", default="mean", type=click.Choice(["mean", "max"]), help="Over a clip; max: in 2 x 3 x 3 cells."
)
@click.option(
    "--views",
    type=click.Choice(["sliding", "spread"]),
    help="Clips that overlap by half, or 10 per video.  [default: sliding for clips, spread for videos]",
)
@click.option("--npy", is_flag=True, help="Write the vectors as .npy and all else as .csv beside the table, too.")
@click.option(
    "--plan",
    is_flag=True,
    help="Say how long it would take, how much memory and disk, as measured on a few of the videos, and leave nothing behind.",
)
@_computing
def embed(
    checkpoint, videos, shards, out, dataset, fps, level, stage, pooling, views, npy, plan, batch_size, workers, device
):
    """Write features of videos, of files or shards, as a Parquet table: one row per clip or video.

    A video that cannot be read is listed, and the exit status is 3. The same command goes on after a stop.
    """
    from trainer.embeddings.extract import Choice, Extractor, ShardVideos
    from trainer.embeddings.extract import embed as write
    from trainer.embeddings.table import write_npy

    if (not videos) == (shards is None):
        raise click.UsageError("give one of --videos and --shards")
    if twice := [path for path, count in Counter(map(os.path.abspath, videos)).items() if count > 1]:
        raise click.UsageError(f"--videos {twice[0]} is given twice")
    saved, compute = _load(checkpoint), _compute(batch_size, workers, device)
    source = ShardVideos(shards) if shards else video_files(videos, dataset, saved.meta["config"], compute.workers, fps)
    extract = Extractor(saved, Choice(level, stage, pooling, views), source.config, compute)
    if plan:
        _plan(extract, source)
        return
    table = _written(write, extract, source, out)
    failures = table.about["failures"]
    lost = sum(not failure["kept"] for failure in failures)
    click.echo(
        f"{out}: {table.rows:,} rows of {source.count - lost:,} of {source.count:,} videos, {table.width} values each, "
        f"{table.about['settings']['stage']} of {table.about['backbone']} ({table.about['checkpoint']})"
    )
    if npy:
        click.echo("\n".join(map(str, write_npy(table))))
    for failure in failures:
        click.echo(f"  {failure['id']}: {failure['reason']}")
    if failures:
        sys.exit(3)


def _plan(extract, source) -> None:
    from labelgen.progress import duration
    from trainer.embeddings.estimate import estimate

    with working("measuring"):
        found = estimate(extract, source)
    reading, computing = duration(found.opening), duration(found.computing)
    click.echo(f"measured on {found.measured} of {found.videos:,} videos, or their begin:")
    click.echo(
        f"  time:   about {duration(found.opening + found.computing)}: {reading} to read, {computing} of the network"
    )
    on_device = f", {found.on_device / 1e9:,.2f} GB on the GPU" if found.on_device else ""
    click.echo(f"  memory: about {found.memory / 1e9:,.2f} GB, and .25 GB for each worker that decodes{on_device}")
    click.echo(f"  disk:   about {found.disk / 1e9:,.3f} GB for {found.rows:,} rows, twice as much while it is written")


def _written(write, extract, source, out):
    from cli.labelgen import Progress

    with Progress("embedded") as progress:
        return write(extract, source, out, progress, progress.say)


@click.command()
@click.argument("video", type=click.Path(path_type=Path))
@TABLES
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    multiple=True,
    callback=_once,
    help="Search shards instead; their table is kept in the run.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="[default: the table's; with --shards, the newest run]"
)
@click.option("--from", "begin", default=0.0, type=click.FloatRange(0), help="Second at which the query begins.")
@click.option(
    "--to", "end", type=click.FloatRange(0, min_open=True), help="Second at which it ends.  [default: its end]"
)
@_FPS
@click.option("--count", default=10, type=click.IntRange(1), help="Moments to find.")
@click.option("--per-video", type=click.IntRange(1), help="Moments of one video, at most.  [default: no limit]")
@click.option("--page", type=WRITTEN, help="Draw them: .html, or a contact sheet .png.")
@_computing
def search(video, features, shards, checkpoint, begin, end, fps, count, per_video, page, batch_size, workers, device):
    """Find the moments that are nearest to VIDEO, or to a part of it.

    Moments that overlap the query itself, or a better one of the same video, are left out.
    """
    from labelgen.texts import path_text
    from trainer.embeddings.search import search as nearest
    from trainer.embeddings.sheets import above, moment
    from trainer.embeddings.table import Tables

    if end is not None and end <= begin:
        raise click.UsageError(f"--to {end:g} is not after --from {begin:g}")
    if page is not None and page.suffix not in (".html", ".png"):
        raise click.UsageError(f"--page {page}: expected a name that ends in .html or .png")
    if (
        shards is not None
        and click.get_current_context().get_parameter_source("features") == ParameterSource.COMMANDLINE
    ):
        raise click.UsageError("give one of --in and --shards")
    compute = _compute(batch_size, workers, device)
    with working("searching"):
        if shards is not None:
            table, extract = _table_of_shards(shards, _load(checkpoint), compute)
        else:
            table = Tables(features)
            extract = _extractor_of(table, checkpoint, compute)
        query, last, picture = _query(extract, video, (begin, end), fps)
        hits = nearest(table, query, count, per_video, (str(video.resolve()), begin, last))
    name = path_text(video) + (f", {begin:g} to {last:.1f} s" if begin or end else "")
    click.echo(f"nearest to {name}, of {table.rows:,} rows of {table.name}; cosine, random pairs that are less alike:")
    for hit in hits:
        label = f"  ({hit['label']})" if hit["label"] else ""
        click.echo(f"{hit['similarity']:7.4f}  {above(hit):>7}  {moment(hit):>18}  {hit['path']}{label}")
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        _draw_hits(page, name.removeprefix(f"{path_text(video.parent)}/"), picture, hits)
        click.echo(page)


def _table_of_shards(shards, saved, compute):
    from labelgen.files import json_sha256
    from trainer.embeddings.extract import Choice, Extractor, ShardVideos
    from trainer.embeddings.extract import embed as write

    source = ShardVideos(shards)
    content = json_sha256([source.stamp(part) for part in source.parts])[:8]
    extract = Extractor(saved, Choice(), source.config, compute)
    folder = saved.run / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{source.config['dataset']}-{extract.settings['weights']}-{content}.parquet"
    return _written(write, extract, source, out), extract


def _extractor_of(table, checkpoint, compute):
    """What the rows of the table were made with. Raises TrainerError if the network is another one."""
    from trainer.checkpoint import check_frames
    from trainer.embeddings.extract import Choice, Extractor
    from trainer.errors import TrainerError

    settings = table.about.get("settings")
    if settings is None:
        raise TrainerError(f"{table.path}: does not say what made it; make it anew with `vssl embed`")
    try:
        check_frames(settings["frames"])
    except ValueError as error:
        raise TrainerError(f"{table.path}: damaged ({error}); make it anew with `vssl embed`") from error
    choice = Choice(*(settings[name] for name in ("level", "stage", "pooling", "views")))
    saved = _load(checkpoint or Path(table.about.get("checkpoint", "")))
    extract = Extractor(saved, choice, settings["frames"], compute)
    if extract.settings["weights"] != settings["weights"]:
        raise TrainerError(
            f"{saved.file}: weights {extract.settings['weights']}, but {table.path} was made with {settings['weights']}; "
            "name the network that made it, or make it anew with `vssl embed`"
        )
    return extract


def _query(extract, video: Path, span, fps):
    """Vector of a video, or part of it, the second at which that ends, and a picture of it."""
    import math

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
            _say(f"{video}: {failure['reason']}")
        vectors, columns = extract(piece)
        end = float(piece.bounds[0][-1])
    vector = video_means(vectors, np.zeros(len(vectors), np.int64))[0]
    return vector, math.inf if math.isnan(end) else end, columns["thumbnail"][len(vectors) // 2]


def _draw_hits(path: Path, name: str, thumbnail: bytes, hits: list[dict]) -> None:
    from labelgen.files import write_png, write_text
    from trainer.embeddings.sheets import above, contact_sheet, figures, moment
    from trainer.pages.page import page

    values = [", ".join(filter(None, (f"{hit['similarity']:.4f}", above(hit)))) for hit in hits]
    if path.suffix == ".png":
        pictures = [(thumbnail, ["query", name])]
        pictures += [(hit["thumbnail"], [hit["id"], own, moment(hit)]) for hit, own in zip(hits, values, strict=True)]
        write_png(path, contact_sheet(f"nearest to {name}", pictures))
        return
    lines = ["; ".join(filter(None, (own, moment(hit)))) for hit, own in zip(hits, values, strict=True)]
    own = {"id": name, "path": "", "start": None, "end": None, "thumbnail": thumbnail}
    sections = [("query", "Query", figures([own], [""])), ("found", "Nearest moments", figures(hits, lines))]
    lead = (
        "The first number is the cosine of the features, which of many networks is nearly 1 for any two videos; the second one "
        "the share of random pairs of moments, of different videos, that are less alike."
    )
    if any(Path(hit["path"]).is_absolute() for hit in hits):
        lead += " A picture opens the video at its moment."
    write_text(path, page(f"Nearest to {name}", lead, "", sections, ""))
