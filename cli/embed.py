"""`vssl embed`: the features of videos, as a table."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import click

from cli.commands import Command
from cli.options import IMAGE_FPS, WRITTEN, compute, computing, one_folder_of_shards
from cli.video_files import video_files
from labelgen.progress import ProgressBar, busy, counted, duration


@click.command(
    cls=Command,
    groups={
        "Data": "videos shards dataset fps",
        "Features": "checkpoint level stage pooling views crops",
        "Hardware": "batch_size workers device",
        "Output": "out npy plan",
    },
)
@click.option(
    "--weights",
    "--checkpoint",
    "checkpoint",
    type=click.Path(path_type=Path),
    help="Run, checkpoint folder or exported .safetensors file; or, without training, random, random:BACKBONE, flow-histogram, "
    "boundary-histogram, colour-histogram or still-histogram.  [default: the newest run]",
)
@click.option(
    "--videos", type=click.Path(path_type=Path), multiple=True, help="Folder of video files, or a file; repeatable."
)
@one_folder_of_shards("Folder of shards, instead of --videos.")
@click.option("--out", type=WRITTEN, default=Path("features.parquet"), help="Table to write.")
@click.option("--dataset", default="folder", help="Built-in data set or YAML manifest of --videos, for labels.")
@IMAGE_FPS
@click.option("--level", default="clip", type=click.Choice(["clip", "video"]), help="Unit of a row.")
@click.option("--stage", help="Stage of the network, such as conv4.  [default: the last]")
@click.option(
    "--pooling",
    default="mean",
    type=click.Choice(["mean", "max"]),
    help="Pooling over a clip; max: in 2 x 3 x 3 cells.",
)
@click.option(
    "--views",
    type=click.Choice(["sliding", "spread", "adjacent"]),
    help="Clips that overlap by half, 10 per video, or without overlap.  [default: sliding for clips, spread for videos, "
    "adjacent with --npy per-video]",
)
@click.option(
    "--crops",
    default="1",
    type=click.Choice(["1", "10"]),
    help="The centre crop, or four corners, centre and their mirror images: ten vectors side by side.",
)
@click.option(
    "--npy",
    is_flag=False,
    flag_value="table",
    type=click.Choice(["table", "per-video"]),
    help="Also write the vectors as .npy and the rest as .csv; per-video: a file of [clips, values] for each video, "
    "[clips, 10, values] with --crops 10.",
)
@click.option(
    "--plan",
    is_flag=True,
    help="Estimate time, memory and disk from a few of the videos, and write nothing.",
)
@computing
def embed(
    checkpoint,
    videos,
    shards,
    out,
    dataset,
    fps,
    level,
    stage,
    pooling,
    views,
    crops,
    npy,
    plan,
    batch_size,
    workers,
    device,
):
    """Write features of videos, from files or shards, as a Parquet table with one row per clip or video.

    A video that cannot be read is listed, and the exit status is 3. The same command resumes an interrupted run.
    """
    from labelgen.flow import flow
    from trainer.embeddings.chosen import extractor, load_network
    from trainer.embeddings.extract import Choice, ShardVideos
    from trainer.embeddings.extract import embed as write
    from trainer.embeddings.table import write_npy, write_npy_per_video

    if (not videos) == (shards is None):
        raise click.UsageError("give either --videos or --shards")
    if twice := [path for path, count in Counter(map(os.path.abspath, videos)).items() if count > 1]:
        raise click.UsageError(f"--videos {twice[0]} is given twice")
    if npy == "per-video" and level == "video":
        raise click.UsageError("--npy per-video writes the clips of each video; leave --level video out")
    if npy == "per-video" and views is None:
        views = "adjacent"
    saved, how = load_network(checkpoint), compute(batch_size, workers, device)
    source = ShardVideos(shards) if shards else video_files(videos, dataset, saved.meta["config"], how.workers, fps)
    extract = extractor(saved, Choice(level, stage, pooling, views, int(crops)), source.config, how, flow)
    if plan:
        _plan(extract, source)
        return
    with ProgressBar("embedded", "video") as bar:
        table = write(extract, source, out, bar, bar.say)
    failures = table.about["failures"]
    lost = sum(not failure["kept"] for failure in failures)
    click.echo(
        f"{out}: {counted(table.rows, 'row')} of {source.count - lost:,} of {counted(source.count, 'video')}, "
        f"{table.width} values each, {table.about['settings']['stage']} of {table.about['backbone']} "
        f"({table.about['checkpoint']})"
    )
    if npy == "table":
        click.echo("\n".join(map(str, write_npy(table))))
    elif npy == "per-video":
        folder, videos_written = write_npy_per_video(table)
        click.echo(f"{folder}: {counted(videos_written, 'video')}")
    for failure in failures:
        click.echo(f"  {failure['id']}: {failure['reason']}")
    if failures:
        sys.exit(3)


def _plan(extract, source) -> None:
    from trainer.embeddings.estimate import estimate

    with busy("measuring"):
        found = estimate(extract, source)
    reading, computing = duration(found.opening), duration(found.computing)
    click.echo(f"measured on (the beginning of) {found.measured} of {counted(found.videos, 'video')}:")
    click.echo(
        f"  time:   about {duration(found.opening + found.computing)}: {reading} to read, {computing} to compute"
    )
    on_device = f", {found.on_device / 1e9:,.2f} GB on the GPU" if found.on_device else ""
    click.echo(f"  memory: about {found.memory / 1e9:,.2f} GB, and .25 GB per worker that decodes{on_device}")
    click.echo(
        f"  disk:   about {found.disk / 1e9:,.3f} GB for {counted(found.rows, 'row')}, twice as much while writing"
    )
