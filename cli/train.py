"""`vssl train` and `vssl finetune`: shards to a network."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_OPTIONS = (
    click.option("--shards", type=click.Path(path_type=Path), default=Path("out"), help="Folder that labelgen wrote."),
    click.option("--recipe", help="Settings of a paper by name, or a YAML file; options given here win."),
    click.option(
        "--set", "options", multiple=True, help="Option of the method, name=value; repeatable (docs/training.md)."
    ),
    click.option(
        "--backbone",
        help="c3d, r3d10, r2plus1d18, s3dg, resnet18, ...  [default: the checkpoint's, the method's or r3d10]",
    ),
    click.option("--width", type=float, help="Multiplies the backbone's channels.  [default: 1, or the checkpoint's]"),
    click.option("--split", help="Official split whose training videos are used.  [default: the first]"),
    click.option("--holdout", type=float, help="Share of them, by group, kept out and scored after each epoch."),
    click.option("--epochs", type=int, help="Passes over all samples.  [default: the method's]"),
    click.option("--batch-size", type=int, help="Samples per step.  [default: the method's]"),
    click.option("--accumulate", type=int, help="Parts in which a step is computed.  [default: 1]"),
    click.option("--lr", type=float, help="Learning rate at the start.  [default: the method's]"),
    click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="[default: sgd]"),
    click.option("--schedule", type=click.Choice(["step", "cosine", "constant"]), help="[default: the method's]"),
    click.option("--ema", type=float, help="Decay of averaged weights, which evaluation then uses."),
    click.option(
        "--jitter", type=click.Choice(["none", "clip", "frame"]), help="Colour jitter.  [default: the method's]"
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "bf16", "tf32", "float32"]),
        help="[default: bf16 on CUDA, else float32]",
    ),
    click.option("--compile", is_flag=True, default=None, help="torch.compile the backbone."),
    click.option("--sync-bn", is_flag=True, default=None, help="Batch normalisation over all processes, on CUDA."),
    click.option("--seed", type=int, help="Seed of the initial weights and of every draw.  [default: 0]"),
    click.option("--workers", type=int, help="Processes that decode frames.  [default: half of the cores, 1 to 8]"),
    click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda where there is one]"),
    click.option("--run", help="Name (in runs/) or path of the run.  [default: runs/METHOD-BACKBONE-N]"),
    click.option("--resume", type=click.Path(path_type=Path), help="Run to go on with; leave out what it knows."),
)


def _numbers(ctx, param, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(number) for number in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; expected numbers, such as 1,0.5") from error


def _with_options(command):
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.option(
    "--method",
    help="statistics, pace, order, skip_clip, tce, ascnet, rotation; or several: pace+statistics.  [default: pace]",
)
@click.option("--curriculum", type=float, help="Share of the steps that see the easier half of the clips only.")
@click.option("--weights", callback=_numbers, help="Of the losses of several methods: 1,0.5.")
@_with_options
def train(method, weights, **options):
    """Pretrain a 3D CNN on the training videos of the shards."""
    if method is None and options["recipe"] is None and options["resume"] is None:
        click.echo("no --method given: pace")
    _train(method, weights=weights, **options)


@click.command()
@click.option(
    "--checkpoint",
    "initial",
    type=click.Path(path_type=Path),
    help="Run to start from.  [default: the newest pretrained]",
)
@click.option("--freeze", is_flag=True, help="Train the classifier alone: a linear probe.")
@click.option("--scratch", is_flag=True, help="Start from random weights instead.")
@_with_options
def finetune(initial, freeze, scratch, options, **others):
    """Train a classifier of the videos' labels on a pretrained backbone, and the backbone with it."""
    from trainer.checkpoint import newest_run

    if sum((initial is not None, scratch, others["resume"] is not None)) > 1:
        raise click.UsageError("--checkpoint, --scratch and --resume exclude each other")
    if initial is None and not scratch and others["resume"] is None:
        initial = newest_run(finetuned=False)
    _train("recognition", initial=initial, options=(*options, *(["freeze=true"] if freeze else [])), **others)


def _train(method, shards, run, resume, recipe, options, initial=None, **given):
    from trainer import checkpoint, settings
    from trainer.errors import Interrupted
    from trainer.loop import train as train_network

    base, expected = settings.recipe(recipe) if recipe else (settings.Settings(), {})
    name = method or base.method or (checkpoint.load(resume).meta["settings"]["method"] if resume else "pace")
    chosen = settings.Settings(method=method, options=settings.parse_options(options, name) or None, **given)
    try:
        train_network(settings.over(base, chosen), shards, run, resume, initial, expected)
    except Interrupted as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_code)
