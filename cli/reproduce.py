"""`vssl reproduce`: tables and figures of the papers, run here and compared with the published ones."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cli.commands import Command
from cli.options import WRITTEN, check_scheduler, making_runs
from labelgen.progress import say

_FOLDER = click.Path(path_type=Path)


def _numbers(ctx, param, value: str | None) -> tuple[int, ...] | None:
    try:
        found = None if value is None else tuple(int(number) for number in value.split(","))
    except ValueError:
        found = ()
    if found is not None and (min(found, default=-1) < 0 or len(set(found)) < len(found)):
        raise click.BadParameter(f"{value!r}; expected different numbers, 0 or more, such as 0,1,2")
    return found


def _frames(ctx, param, value: str | None) -> tuple[int, ...] | None:
    found = tuple(map(int, value.split(","))) if value and value.replace(",", "").isdecimal() else ()
    if value is not None and len(found) != 3:
        raise click.BadParameter(f"{value!r}; expected height,width,crop in pixels, such as 64,86,56")
    return found or None


@click.command(
    cls=Command,
    short_help="Run a table or figure of a paper, and print it beside the published one; without NAME, list them.",
    groups={
        "Data": "data shards splits frames",
        "Budget": "seeds clips width batch_size",
        "Hardware": "workers backend scheduler device",
        "Output": "out plan",
    },
)
@click.argument("name", required=False)
@click.option(
    "--out", type=WRITTEN, default=Path("reproduced"), help="Folder for runs, tables and, without --shards, shards."
)
@click.option("--data", type=_FOLDER, help="Folder with a sub-folder per data set.  [default: $VSSL_DATA, data]")
@click.option("--shards", type=WRITTEN, help="Folder of the shards; missing ones are made.  [default: OUT/out]")
@click.option(
    "--plan",
    is_flag=True,
    help="Show the commands, which of them are done, and about how long the others take; run nothing.",
)
@click.option(
    "--seeds", default="0", callback=_numbers, help="Seeds of every training, over which the table has means."
)
@click.option(
    "--split", "splits", multiple=True, help="Official split; repeatable.  [default: all that the source has]"
)
@click.option(
    "--clips", type=click.IntRange(1), help="Clips that every training shows, instead of the epochs of its recipe."
)
@click.option(
    "--width", type=click.FloatRange(0, min_open=True), help="Width of every network relative to the paper's."
)
@click.option("--batch-size", type=click.IntRange(1), help="Batch size of every training.  [default: of its recipe]")
@click.option("--frames", callback=_frames, metavar="H,W,CROP", help="Size of the frames and their crops, pixels.")
@making_runs
def reproduce(
    name, out, data, shards, plan, seeds, splits, clips, width, batch_size, frames, workers, backend, scheduler, device
):
    """Run the table or figure NAME of a paper, such as "thesis tab. 4.1", and print it beside the published one.
    Without NAME, list all of them.

    Runs the commands of docs/papers/ in OUT, each once for all tables: labelling, trainings, finetunings, evaluation.
    The same command resumes an interrupted run. --clips, --width, --batch-size and --frames make a rehearsal, which
    needs a separate folder. Exit status: 0 done, 3 done but some runs failed (they are listed), 1 error, 2 wrong usage.
    """
    check_scheduler(backend, scheduler)
    from labelgen.manifest import default_root
    from trainer.evaluate.results import aligned
    from trainer.papers.reproduce import content, find, listed, make
    from trainer.papers.reproduce import plan as planned
    from trainer.papers.steps import Folder, Place, Scale, steps
    from trainer.papers.table import collect, text_of, write
    from trainer.study.runner import Machine

    if name is None:
        click.echo("\n".join(aligned([["name", "what it shows", "data sets", "runs"], *listed()], 3)))
        return
    full, entry = find(name)
    scale = Scale(seeds, splits, clips, width, batch_size, frames)
    labellings, others = steps(entry, content(), scale, Place(out, data or default_root(""), shards), device, call)
    folder = Folder(out.absolute())
    if plan:
        for line in planned(labellings, others, folder, device):
            click.echo(line)
        return
    failed = make(labellings, others, folder, Machine(workers, scheduler, device), say, _source)
    found = collect(full, entry, content(), labellings, others, folder, scale, failed)
    stem = write(found, folder.root)
    click.echo(f"\n{text_of(found)}\n{stem}.html")
    if failed:
        sys.exit(3)


def _source(name):
    """Where a data set comes from, as its manifest says."""
    from labelgen.manifest.form import read_manifest

    return " ".join(str(read_manifest(name).get("source", "")).split())


def call(words):
    """Run a command, given by the words after `vssl`, in this process; returns the result of its function. Raises VsslError."""
    from cli.main import main

    try:
        with main.make_context("vssl", [*words]) as context:
            return click.Group.invoke(main, context)
    except SystemExit as stopped:
        if stopped.code != 3:  # labelgen: done but some videos failed, which it has listed
            raise
