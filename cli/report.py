"""`vssl report` and `vssl compare`: runs as pages and tables."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import WRITTEN
from labelgen.progress import working


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--shards",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Shards that it was trained or evaluated on, for pictures; repeatable.  [default: those in out]",
)
@click.option("--count", default=2, type=click.IntRange(0), help="Sheets of labels.")
@click.option("--seed", default=0, help="Seed of their random choice.")
def report(run, shards, count, seed):
    """Write a run's page, RUN/report.html: training, results, pictures.  [default: the newest run]"""
    from trainer.checkpoint import load, newest_run
    from trainer.pages.report import report as write
    from trainer.pages.report import shards_of

    run, told = newest_run() if run is None else run, []
    with working("drawing the page"):
        if not shards:
            shards, told = shards_of(run, Path("out"))
        path, notes = write(run, shards, *_sheets(load(run).meta["config_hash"], shards, count, seed))
    notes = [*told, *notes]
    click.echo("\n".join([f"{path} ({path.stat().st_size / 1e6:.1f} MB)", *(f"note: {note}" for note in notes)]))


def _sheets(config_hash, shards, count, seed):
    """Sheets of labels of random clips, and clips of the curriculum, from the shards of this configuration."""
    import random

    import numpy as np

    from labelgen.shards import hash_of_all, open_shards
    from labelgen.show import curriculum, label_sheet
    from trainer.pages.report import Sheet

    opened = map(open_shards, shards)
    readers = next((own for own in opened if hash_of_all([one.config_hash for one in own]) == config_hash), [])
    clips = [(reader, clip) for reader in readers for clip in range(reader.n_clips)]
    labels = []
    for reader, clip in random.Random(seed).sample(clips, min(count, len(clips))):
        video, start = reader.arrays["clips/video"][clip], reader.arrays["clips/start"][clip]
        name = f"{reader.arrays['videos/id'][video]}, frames {start} to {start + reader.clip_length - 1}"
        shown = "frames, flow, motion boundaries, blocks of most motion, most diverse and most stable blocks"
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


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=WRITTEN, help="Write the tables to this .html or .csv file, too.")
@click.option("--all", "everything", is_flag=True, help="Print all rows, not only the one that stands for each result.")
def compare(runs, out, everything):
    """Set runs side by side: what they are, and the numbers measured under the same conditions.

    Prints the row that stands for each result. A mark tells where a run differs from the first one, corrected for the number of
    rows that are looked at.
    """
    from trainer.pages import compare as comparison

    with working("comparing"):
        result = comparison.compare(runs)
    click.echo(comparison.format_table(result, everything))
    if not everything:
        click.echo("all rows: --all, or --out FILE.html")
    if out:
        comparison.write(result, out)
        click.echo(out)
