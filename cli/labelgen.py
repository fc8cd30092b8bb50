"""`vssl labelgen`: videos to shards."""

from __future__ import annotations

import signal
import sys
from dataclasses import fields
from pathlib import Path

import click

from cli.commands import Command
from cli.options import WRITTEN, check_scheduler, making_videos, stop
from labelgen.config import Config
from labelgen.flow import BACKENDS
from labelgen.progress import WARNING, ProgressBar, core_hours, counted, duration, say

_DEFAULT = {field.name: field.default for field in fields(Config)}

_SIZES = {"112": (128, 171, 112), "224": (256, 340, 224)}  # height, width, crop


def _paces(ctx, param, value: str) -> tuple[str, ...]:
    return tuple(pace.strip() for pace in value.split(","))


def _region(ctx, param, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(map(float, value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; expected left,top,right,bottom such as 0.25,0.5,0.75,1") from error


def _clips(ctx, param, value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r}; expected 'all' or a number")
    return int(value)


@click.command(
    cls=Command,
    groups={
        "Videos": "dataset root group split region fps max_pixels camera",
        "Frames": "size height width crop jpeg_quality",
        "Labels": "clip_length clips flow paces order_clips rows allow_wrap wrap_any seed",
        "Hardware": "workers backend scheduler stall",
        "Output": "out videos_per_shard motion add plan",
    },
)
@click.argument("videos", required=False, type=click.Path(path_type=Path))
@click.option(
    "--dataset",
    help="Built-in data set, or your YAML manifest (docs/manifests.md).  [default: folder, any folder of videos]",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of the videos, the same as VIDEOS.  [default: $VSSL_DATA/NAME, data/NAME]",
)
@click.option(
    "--out",
    type=WRITTEN,
    default=Path("out"),
    help="Shards are written to OUT/NAME/; without --dataset, NAME is that of the folder of the videos.",
)
@click.option(
    "--group",
    metavar="PATTERN",
    help="Pattern of the source (person, film, camera) in the names of videos: a regular expression with one part in "
    "brackets, such as '^([^_]+)_', searched in the file name, or in the path if it has a /.",
)
@click.option("--split", help="Label only the videos of an official split (1), a part (train), or both (1/train).")
@making_videos
@click.option(
    "--camera",
    default="still",
    metavar="NAMES",
    help="Of --dataset demo: still, or one or more of pan, shake, turn, zoom, such as pan,shake.",
)
@click.option("--videos-per-shard", type=click.IntRange(1), help="[default: about 64 shards of at most 32 videos]")
@click.option("--clip-length", default=_DEFAULT["clip_length"], help="Frames of a clip, a multiple of 8.")
@click.option(
    "--clips", default="all", callback=_clips, help="Labelled clips per video: all without overlap, or K at random."
)
@click.option(
    "--size",
    default="112",
    type=click.Choice(list(_SIZES)),
    help="Height, width, crop: 128, 171, 112 or 256, 340, 224.",
)
@click.option("--height", type=int, help="Height of the stored frames, pixels.  [default: --size]")
@click.option("--width", type=int, help="Width of the stored frames, pixels.  [default: --size]")
@click.option("--crop", type=int, help="Side of the labelled crops, pixels.  [default: --size]")
@click.option(
    "--region",
    callback=_region,
    metavar="L,T,R,B",
    help="Crop every frame to this region: left, top, right, bottom as shares of the picture, such as 0.25,0.5,0.75,1.",
)
@click.option(
    "--fps",
    type=float,
    help="Constant frame rate to resample to; for folders of images, their rate.  [default: every frame of the file]",
)
@click.option(
    "--max-pixels",
    default=_DEFAULT["max_pixels"],
    help="Largest picture of a video; files with larger pictures fail.",
)
@click.option("--jpeg-quality", default=_DEFAULT["jpeg_quality"], help="Quality of the stored frames, 1 to 100.")
@click.option(
    "--flow", default=_DEFAULT["flow"], type=click.Choice(list(BACKENDS)), help="Algorithm of the optical flow."
)
@click.option("--paces", default=",".join(Config.paces), callback=_paces, help="Paces, such as 1/2,1,2 or 1,-1.")
@click.option("--order-clips", default=_DEFAULT["order_clips"], help="Clips per order row, 2 to 5.")
@click.option("--rows", default=_DEFAULT["rows"], help="Pace and order rows per video.")
@click.option(
    "--allow-wrap", is_flag=True, help="Pace rows of short videos continue from the first frame, and are marked."
)
@click.option(
    "--wrap-any", is_flag=True, help="Pace rows start anywhere in a video, and any may continue from the first frame."
)
@click.option("--seed", default=_DEFAULT["seed"], help="Seed of every random draw.")
@click.option(
    "--motion",
    type=WRITTEN,
    help="Table to write, .csv or .parquet: the amount of motion in each clip, in pixels per frame; shards store it, too.",
)
@click.option(
    "--add",
    is_flag=True,
    help="Add shards of new videos to the existing ones, and drop deleted videos: for repeated use, such as daily.",
)
@click.option(
    "--plan",
    is_flag=True,
    help="Estimate time, disk and memory from a few of the videos, and write nothing.",
)
@click.option(
    "--stall",
    default=300.0,
    type=click.FloatRange(0, min_open=True),
    help="Abandon a video after this many seconds without a frame.",
)
def labelgen(
    videos,
    dataset,
    root,
    out,
    group,
    split,
    workers,
    backend,
    scheduler,
    videos_per_shard,
    motion,
    add,
    plan,
    stall,
    size,
    camera,
    **settings,
):
    """Label the videos of the folder VIDEOS, or of a data set, with optical flow, motion, appearance, difficulty, pace
    and order, and write HDF5 shards.

    The same command resumes an interrupted run. Exit status: 0 done, 3 done but some videos failed (they are listed), 1
    error, 2 wrong usage.
    """
    from labelgen.labels import LABELS, ON_DEMAND
    from labelgen.manifest import default_root, load, select, split_name
    from labelgen.run import run
    from labelgen.run.motion import check_table, write_motion

    check_scheduler(backend, scheduler)
    dataset, root = _source(videos, dataset, root)
    for name, preset in zip(("height", "width", "crop"), _SIZES[size], strict=True):
        settings[name] = preset if settings[name] is None else settings[name]
    config, labels = Config(**settings), dict(LABELS)
    if motion is not None:
        check_table(motion)
        labels |= ON_DEMAND
    if dataset == "demo":
        from labelgen.demo import render

        root = root or default_root("demo")
        with ProgressBar("rendered", "video") as progress:
            render(root, camera=camera.split(","), progress=progress)
    elif camera != "still":
        raise click.UsageError(f"--camera {camera}: expected with --dataset demo alone, whose videos are rendered")
    data = load(dataset, root, group, images=config.fps is not None)
    say(data.summary())
    if dataset == "folder" and not any(data.videos.groups):
        say(
            f"{WARNING}no groups: videos of one source (person, film, camera) can end up both in training and in test, "
            "which makes results look better than they are; give the pattern of the sources with --group PATTERN"
        )
    videos = select(data.videos, data.splits, split)
    split = split_name(data.splits, split)
    if plan:
        return _plan(data, videos, out, config, workers, stall, labels)
    if scheduler is not None and workers > 1:
        say(f"{WARNING}--workers is ignored: the workers of the cluster make the shards", sys.stderr)
    handler = signal.signal(signal.SIGINT, stop)
    with ProgressBar("labelled", "video") as progress:
        try:
            how = {
                "progress": progress,
                "say": progress.say,
                "split": split,
                "scheduler": scheduler,
                "add": add,
                "labels": labels,
            }
            report = run(data, videos, out, config, workers, videos_per_shard, stall, **how)
        except KeyboardInterrupt:
            progress.say("stopped; finished shards are kept, the same command continues")
            sys.exit(130)
        signal.signal(signal.SIGINT, handler)
    print_report(report, out / data.name)
    if motion is not None:
        count = write_motion(motion, sorted((out / data.name).glob("[0-9]*.h5")))
        click.echo(f"{motion}: motion of {counted(count, 'clip')}")
    if report["failures"]:
        sys.exit(3)


def _source(videos: Path | None, dataset: str | None, root: Path | None) -> tuple[str, Path | None]:
    """The data set and its folder: VIDEOS alone is any folder of videos; with --dataset it is the folder of the data set."""
    if videos is not None and root is not None:
        raise click.UsageError(
            f"VIDEOS is {videos} and --root {root}; give only one of them, as both are the folder of the videos"
        )
    root = videos or root
    if root is None and dataset is None:
        raise click.UsageError("no videos given; give their folder, or a data set with --dataset")
    return dataset or "folder", root


def _plan(data, videos, out, config, workers, stall, labels):
    from labelgen.run.estimate import SECONDS, estimate

    with ProgressBar("measured", "video") as progress:
        found = estimate(data, videos, out, config, workers, stall, labels, progress)
    click.echo(
        f"measured on the first {SECONDS:g} s of {counted(len(found.sample), 'video')}, from small to large files, on one core:"
    )
    for one in found.sample:
        click.echo(
            f"  {one.id}, {duration(one.seconds)}: {one.cost / one.used:.2f} times its duration, "
            f"{one.stored / one.used * 3.6e-3:,.0f} MB per hour"
        )
    for why in found.failed:
        click.echo(f"  not measured: {why}")
    mean, least, most = found.core_hours
    click.echo(f"{counted(found.videos, 'video')}, {found.hours:,.2f} hours of video, estimated from file sizes")
    click.echo(
        f"  processor: about {core_hours(mean)} core hours ({core_hours(least)} to {core_hours(most)} by single videos)"
    )
    click.echo(f"  time:      about {duration(3600 * found.wall_hours)} with {counted(found.workers, 'worker')}")
    short = "; NOT ENOUGH" if found.disk > found.free else ""
    click.echo(
        f"  disk:      about {found.disk / 1e9:,.2f} GB in {out}, where {found.free / 1e9:,.1f} GB are free{short}"
    )
    click.echo(f"  memory:    about {found.memory / 1e9:,.2f} GB for all workers")
    return found


def print_report(report: dict, folder: Path) -> None:
    """Print the content of the shards, failures and times."""
    videos, now = report["videos"], report["this_run"]
    click.echo(
        f"{folder}: {videos['labelled']} of {counted(videos['asked'], 'video')} labelled, {videos['failed']} failed, "
        f"{videos['cut_short']} cut short; {counted(report['frames'], 'frame')}, {counted(report['clips'], 'clip')}, "
        f"{counted(report['shards'], 'shard')}, {report['bytes'] / 1e6:.1f} MB"
    )
    if added := report.get("added"):
        forgotten, changed = added["forgotten"], added["changed"]
        names = ", ".join(forgotten[:3]) + (", ..." if len(forgotten) > 3 else "")
        click.echo(
            f"{counted(added['new'], 'video')} added ({len(changed)} of them changed), {added['kept']} kept, "
            f"{len(forgotten)} dropped" + (f": {names}" if names else "")
        )
    short = {"a clip": report["without_clip"]}
    short |= {name[14:]: count for name, count in report.items() if name.startswith("too_short_for_")}
    (what, count), *rest = short.items()
    others = "".join(f", {count} for {what}" for what, count in rest)
    counts = "".join(f"; {n} {name.replace('_', ' ')}" for name, n in report.items() if name.startswith("clips_"))
    click.echo(f"too short: {counted(count, 'video')} for {what}{others}{counts}")
    for failure in report["failures"]:
        click.echo(f"  {failure['id']}: {failure['stage']}: {failure['reason']} ({failure['shard']})")
    if now["frames"]:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in now["seconds_per_stage"].items())
        click.echo(
            f"{now['seconds']:.1f} s with {counted(now['workers'], 'worker')}: {now['frames_per_second']:.0f} frames/s decoded, "
            f"{now['flow_pairs_per_second']:.0f} flow pairs/s; seconds per stage, all workers: {stages}"
        )
