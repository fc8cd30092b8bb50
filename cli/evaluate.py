"""`vssl eval`: what a pretrained network is worth."""

from __future__ import annotations

from pathlib import Path

import click

_OPTIONS = (
    click.option("--shards", type=click.Path(path_type=Path), default=Path("out"), help="Folder that labelgen wrote."),
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="Run, checkpoint folder or file.  [default: the newest run]",
    ),
    click.option("--split", help="Official split.  [default: the first]"),
    click.option("--batch-size", default=32, type=click.IntRange(1), help="Clips at a time; no effect on the result."),
    click.option(
        "--workers", type=click.IntRange(0), help="Processes that decode frames.  [default: half of the cores, 1 to 8]"
    ),
    click.option("--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda where there is one."),
)


def _with_options(command):
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _run(protocol, batch_size, workers, device, **options):
    """The protocol of this module on these options; its table on the screen."""
    from trainer.evaluate.features import Compute
    from trainer.settings import WORKERS

    compute = Compute(batch_size, WORKERS if workers is None else workers, device)
    click.echo(
        protocol.format_table(getattr(protocol, protocol.__name__.rpartition(".")[2])(compute=compute, **options))
    )


@click.group("eval")
def evaluate():
    """Measure a pretrained network."""


@evaluate.command()
@_with_options
@click.option(
    "--query", type=click.Path(path_type=Path), help="Shards of another data set, whose videos are searched for"
)
@click.option("--gallery", type=click.Path(path_type=Path), help="in this one.")
def retrieval(**options):
    """Find videos of the same class by nearest neighbours of frozen features."""
    from trainer.evaluate import retrieval as protocol

    _run(protocol, **options)


@evaluate.command()
@_with_options
def scenes(**options):
    """Train a linear SVM on all videos but one, and test it on that one."""
    from trainer.evaluate import scenes as protocol

    _run(protocol, **options)


@evaluate.command()
@_with_options
@click.option("--pairs", type=click.Path(path_type=Path), help="CSV file: fold,first,second,same.")
def similarity(**options):
    """Tell from frozen features whether two videos show the same action."""
    from trainer.evaluate import similarity as protocol

    _run(protocol, **options)


@evaluate.command()
@_with_options
def smoothness(**options):
    """Measure how alike moments of a video are, the further they lie apart."""
    from trainer.evaluate import smoothness as protocol

    _run(protocol, **options)
