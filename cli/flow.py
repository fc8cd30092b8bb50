"""`vssl flow`: the optical flow of videos as files for other programs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from cli.commands import Command
from cli.options import WRITTEN, check_scheduler, making_videos, stop
from labelgen.flow import BACKENDS
from labelgen.progress import ProgressBar, counted, say

_LAYOUTS = ("mmaction2", "denseflow", "uv", "npy", "flo")


def _size(ctx, param, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    height, _, width = value.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"{value!r}; expected height x width such as 256x340")
    return int(height), int(width)


@click.command(
    cls=Command,
    groups={
        "Videos": "dataset max_pixels",
        "Flow": "flow step short size bound",
        "Hardware": "workers backend scheduler stall",
        "Output": "out layout template first frames frames_template quality",
    },
)
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=WRITTEN, required=True, help="Folder to write.")
@click.option(
    "--layout",
    default="mmaction2",
    type=click.Choice(_LAYOUTS),
    help="Files to write: pictures as MMAction2, denseflow or gpu_flow (uv) read them, numbers as .npy or .flo (docs/flow.md).",
)
@click.option(
    "--template",
    help="Names of the flow files instead, such as '{video}/{name}-{index:06d}{axis}.jpg'; the extension is their format.",
)
@click.option(
    "--frames-template", help="Names of the frame files, such as '{video}/{name}-{index:06d}.jpg'; with --frames."
)
@click.option("--first", type=click.IntRange(0), help="Number of the first flow and frame.  [default: the layout's]")
@click.option("--flow", default="tvl1", type=click.Choice(list(BACKENDS)), help="Algorithm of the optical flow.")
@click.option("--bound", default=20.0, help="8 bits represent -BOUND to BOUND pixels.")
@click.option("--step", default=1, type=click.IntRange(1), help="Distance in frames between the two frames of a flow.")
@click.option("--short", type=click.IntRange(16), help="Pixels of the shorter side.  [default: 256]")
@click.option("--size", callback=_size, metavar="HxW", help="Height and width instead, such as 256x340.")
@click.option("--frames", is_flag=True, help="Write the frames, too.")
@click.option("--quality", default=95, type=click.IntRange(1, 100), help="Quality of JPEGs.")
@click.option("--dataset", default="folder", help="Built-in data set or YAML manifest of VIDEOS, for its classes.")
@making_videos
@click.option("--max-pixels", type=click.IntRange(1), help="Largest picture of a video.  [default: 8K]")
@click.option(
    "--stall",
    default=300.0,
    type=click.FloatRange(0, min_open=True),
    help="Abandon a video after this many seconds without a frame.",
)
def flow(videos, out, dataset, workers, backend, scheduler, stall, short, size, max_pixels, **settings):
    """Write the optical flow of VIDEOS, a folder or a file, as pictures or numbers.

    The same command resumes an interrupted run, and adds new videos. Exit status: 0 done, 3 done but some videos failed
    (they are listed), 1 error, 2 wrong usage.
    """
    from labelgen.extract import Extraction, dataset_of, extract
    from labelgen.manifest import load

    check_scheduler(backend, scheduler)
    if size is not None and short is not None:
        raise click.UsageError(f"--size is {size[0]}x{size[1]} and --short {short}; give only one of them")
    height, width = size or (None, None)
    most = {} if max_pixels is None else {"max_pixels": max_pixels}
    config = Extraction(**settings, **most, height=height, width=width, short=None if size else short or 256)
    data = dataset_of(videos) if videos.is_file() else load(dataset, videos)
    say(data.summary())
    handler = signal.signal(signal.SIGINT, stop)
    with ProgressBar("extracted", "video") as progress:
        try:
            report = extract(data, data.videos, out, config, workers, stall, progress, progress.say, scheduler)
        except KeyboardInterrupt:
            progress.say("stopped; finished videos are kept, the same command continues")
            sys.exit(130)
        signal.signal(signal.SIGINT, handler)
    print_report(report, out)
    if report["failures"]:
        sys.exit(3)


def print_report(report: dict, out: Path) -> None:
    """Print the extracted flow, failures and times."""
    videos, now = report["videos"], report["this_run"]
    clipped = "" if report["clipped"] is None else f", {100 * report['clipped']:.3g} % of the values clipped"
    click.echo(
        f"{out}: flow of {videos['extracted']} of {counted(videos['asked'], 'video')}, {videos['failed']} failed, "
        f"{videos['cut_short']} cut short; {counted(report['frames'], 'frame')}, {counted(report['flows'], 'flow')}{clipped}, "
        f"{report['bytes'] / 1e6:.1f} MB"
    )
    for failure in report["failures"]:
        click.echo(f"  {failure['id']}: {failure['stage']}: {failure['reason']}")
    if now["frames"]:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in now["seconds_per_stage"].items())
        click.echo(
            f"{now['seconds']:.1f} s with {counted(now['workers'], 'worker')}: {now['flow_pairs_per_second']:.1f} flow "
            f"pairs/s; seconds per stage, all workers: {stages}"
        )
