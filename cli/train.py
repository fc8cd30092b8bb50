"""`vssl train`: shards to a pretrained network."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.option("--shards", type=click.Path(path_type=Path), default=Path("out"), help="Folder that labelgen wrote.")
@click.option("--method", help="pace or statistics.  [default: pace]")
@click.option("--backbone", help="r3d10.  [default: r3d10]")
@click.option("--width", type=float, help="Multiplies the backbone's channels.  [default: 1]")
@click.option("--split", help="Official split whose training videos are used.  [default: the first]")
@click.option("--epochs", type=int, help="Passes over all samples.  [default: the method's]")
@click.option("--batch-size", type=int, help="Clips per step.  [default: the method's]")
@click.option("--lr", type=float, help="Learning rate at the start.  [default: the method's]")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="[default: sgd]")
@click.option(
    "--schedule", type=click.Choice(["step", "cosine"]), help="Of the learning rate.  [default: the method's]"
)
@click.option(
    "--jitter",
    type=click.Choice(["none", "clip", "frame"]),
    help="Colours, one draw per clip or frame.  [default: the method's]",
)
@click.option("--targets", help="statistics: raw, scaled or classes.  [default: classes]")
@click.option("--parts", help="statistics: motion, appearance or both.  [default: both]")
@click.option("--bf16", is_flag=True, default=None, help="bfloat16 autocast of the backbone, on CUDA.")
@click.option("--seed", type=int, help="Seed of the initial weights and of every draw.  [default: 0]")
@click.option("--workers", type=int, help="Processes that decode frames.  [default: half of the cores, 1 to 8]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda where there is one]")
@click.option("--run", help="Name (in runs/) or path of the run.  [default: runs/METHOD-BACKBONE-N]")
@click.option("--resume", type=click.Path(path_type=Path), help="Run to go on with; leave out what it already knows.")
def train(shards, run, resume, **settings):
    """Pretrain a 3D CNN on the training videos of the shards."""
    from trainer.errors import Interrupted
    from trainer.loop import Settings
    from trainer.loop import train as train_network

    if settings["method"] is None and resume is None:
        click.echo("no --method given: pace")
    try:
        train_network(Settings(**settings), shards=shards, run=run, resume=resume)
    except Interrupted as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_code)
