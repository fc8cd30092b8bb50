"""`vssl report` and `vssl compare`: runs as pages and tables."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import click

from cli.commands import Command
from cli.options import WRITTEN
from labelgen.progress import busy


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--shards",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Shards of its training or evaluation, for pictures; repeatable.  [default: those in out]",
)
@click.option("--count", default=2, type=click.IntRange(0), help="Number of label sheets.")
@click.option("--seed", default=0, help="Seed of the random choice.")
def report(run, shards, count, seed):
    """Write the page of a run, RUN/report.html: training, results, pictures.  [default: the newest run]"""
    from trainer.pages.report import report as write

    with busy("drawing the page"):
        path, notes = write(run, shards or None, partial(_draw, count, seed))
    click.echo("\n".join([f"{path} ({path.stat().st_size / 1e6:.1f} MB)", *(f"note: {note}" for note in notes)]))


def _draw(count, seed, readers):
    """Sheets of labels of random clips, and clips of the curriculum."""
    import numpy as np

    from labelgen.show import curriculum, label_sheet
    from trainer.pages.report import Sheet

    clips = [(reader, clip) for reader in readers for clip in range(reader.n_clips)]
    labels = []
    for reader, clip in random.Random(seed).sample(clips, min(count, len(clips))):
        video, start = reader.arrays["clips/video"][clip], reader.arrays["clips/start"][clip]
        name = f"{reader.arrays['videos/id'][video]}, frames {start} to {start + reader.clip_length - 1}"
        shown = "frames, flow, motion boundaries, blocks of largest motion, most diverse and most stable blocks"
        labels.append(Sheet(name, f"Labels of {name}: {shown}", label_sheet(reader, clip)))
    try:
        examples = curriculum(readers) if clips else []
    except ValueError:  # no clip moves
        examples = []
    return labels, [
        Sheet(
            f"{example.place}: {example.score:.3f}, {example.video}",
            f"Middle frame and motion boundaries of {example.video}",
            np.vstack([example.frame, example.boundaries]),
        )
        for example in examples
    ]


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=WRITTEN, help="Also write the tables to this .html or .csv file.")
@click.option("--all", "everything", is_flag=True, help="Print all rows, not only the main row of each result.")
def compare(runs, out, everything):
    """Compare runs: their settings, and numbers measured under the same conditions.

    Prints the main row of each result. A mark shows that a run differs significantly from the first one, corrected for
    the number of rows compared.
    """
    from trainer.pages import compare as comparison

    with busy("comparing"):
        result = comparison.compare(runs)
    click.echo(comparison.format_table(result, everything))
    if not everything:
        click.echo("all rows: --all, or --out FILE.html")
    if out:
        comparison.write(result, out)
        click.echo(out)
