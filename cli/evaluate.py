"""`vssl eval`: what a pretrained network is worth."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("eval")
def evaluate():
    """Measure a pretrained network."""


@evaluate.command()
@click.option("--shards", type=click.Path(path_type=Path), default=Path("out"), help="Folder that labelgen wrote.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Run, checkpoint folder or file.  [default: the newest run]"
)
@click.option("--split", help="Official split.  [default: the first]")
@click.option("--batch-size", default=32, type=click.IntRange(1), help="Clips at a time; no effect on the result.")
@click.option(
    "--workers", type=click.IntRange(0), help="Processes that decode frames.  [default: half of the cores, 1 to 8]"
)
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda where there is one]")
def retrieval(**options):
    """Find videos of the same class by nearest neighbours of frozen features."""
    from trainer.evaluate import retrieval as protocol

    result = protocol.retrieval(**{name: value for name, value in options.items() if value is not None})
    click.echo(protocol.format_table(result))
