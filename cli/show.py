"""`vssl show`: pictures of labels and of training samples; `vssl shards`: the content of shards."""

from __future__ import annotations

import random
from pathlib import Path

import click

from cli.commands import Group
from cli.options import WRITTEN
from cli.train import GROUPS, chosen, with_settings
from labelgen.progress import ProgressBar, busy, counted, say

_SHARDS = click.option(
    "--shards", type=click.Path(path_type=Path), default=Path("out"), help="Folder that labelgen wrote."
)


@click.group(cls=Group)
def show():
    """Draw labels and curriculum as PNG files, the samples of a training as a page."""


@show.command()
@_SHARDS
@click.option("--out", type=WRITTEN, default=Path("sheets"), help="Folder for the pictures.")
@click.option(
    "--video",
    "names",
    multiple=True,
    help="Id of a video, or its end, with or without the extension; repeatable.  [default: a few at random]",
)
@click.option("--count", default=4, type=click.IntRange(1), help="Number of random videos, if no name is given.")
@click.option("--seed", default=0, help="Seed of the random choice.")
def labels(shards, out, names, count, seed):
    """Draw the middle clip of each video: frames, flow, motion boundaries, labelled blocks, colours, difficulty."""
    from labelgen.errors import ShardError
    from labelgen.files import path_name
    from labelgen.shards import VideoNames, open_shards
    from labelgen.show import label_sheet

    clips = {}  # id -> shard and clips of the video
    with busy("reading the shards"):
        for shard in open_shards(shards):
            for clip, video in enumerate(shard.arrays["clips/video"]):
                clips.setdefault(shard.arrays["videos/id"][video], (shard, []))[1].append(clip)
    if not clips:
        raise ShardError(f"{shards}: no video has a labelled clip, all are too short or failed")
    ids = [*clips]
    chosen = [ids[row] for row in VideoNames(ids).rows(names, str(shards), "video with a labelled clip")]
    for name in chosen or random.Random(seed).sample(sorted(clips), min(count, len(clips))):
        shard, of_video = clips[name]
        _write(
            (out / name).with_name(path_name(Path(name).name, ".png")), label_sheet(shard, of_video[len(of_video) // 2])
        )


@show.command()
@_SHARDS
@click.option("--out", type=WRITTEN, default=Path("sheets"), help="Folder for the picture.")
def curriculum(shards, out):
    """Draw the easiest, middle and hardest clips."""
    from labelgen.errors import ShardError
    from labelgen.shards import open_shards
    from labelgen.show import curriculum_sheet

    try:
        with busy("sorting the clips"):
            sheet = curriculum_sheet(open_shards(shards))
    except ValueError as error:
        raise ShardError(f"{shards}: {error}") from error
    _write(out / "curriculum.png", sheet)


@show.command(groups=GROUPS)
@with_settings(
    "samples",
    click.option("--count", default=6, type=click.IntRange(1), help="Samples of each method."),
    click.option("--out", type=WRITTEN, default=Path("samples.html"), help="File for the page."),
)
def samples(shards, method, recipe, options, count, out, **given):
    """What a training sees first: its clips after crop, mirror, jitter, pace and order, moving, with their targets.

    Takes the options of `vssl train` that decide it.
    """
    from trainer.pages.samples import write

    settings, _ = chosen(method, recipe, options, **given)
    with busy("drawing the page"):
        write(settings, shards, out, count, say)
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


def _write(path: Path, picture) -> None:
    from labelgen.files import write_png

    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, picture)
    click.echo(path)


@click.group("shards", cls=Group)
def shards_group():
    """Inspect the shards that labelgen wrote, and check them."""


@shards_group.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("out"))
def info(folder):
    """Print sizes, counts, label histograms and failures."""
    from labelgen.shards import open_shards
    from labelgen.shards.describe import describe

    with busy("reading the shards"):
        text = describe(open_shards(folder))
    click.echo(text)


@shards_group.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("out"))
def verify(folder):
    """Read all shards completely: check that every frame can be decoded, every offset and label is in range, and every
    hash is correct."""
    from labelgen.errors import ShardError
    from labelgen.shards.verify import verify as read_again

    with ProgressBar("read", "shard") as progress:
        count, found = read_again(folder, progress)
    if found:
        raise ShardError(
            "\n".join([f"{counted(len(found), 'fault')}; delete these shards and run labelgen again", *found])
        )
    click.echo(f"{counted(count, 'shard is', 'shards are')} undamaged")
