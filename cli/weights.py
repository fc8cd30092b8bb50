"""`vssl import`: a run from the weights of other programs."""

from __future__ import annotations

from pathlib import Path

import click

from cli.commands import Command
from cli.options import WRITTEN
from labelgen.progress import counted, say


@click.command("import", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=WRITTEN, required=True, help="Name (in runs/) or path of the run to write.")
@click.option("--from", "name", help="Program that made the weights, if it cannot be recognized (docs/weights.md).")
@click.option("--frames", type=click.IntRange(1, 256), help="Frames of a clip.  [default: as published]")
@click.option("--stride", type=click.IntRange(1, 256), help="Distance between the frames of a clip.  [default: 1]")
def import_(file, out, name, frames, stride):
    """Make a run from published weights in FILE, of PyTorch or safetensors.

    The run holds the backbone, and the pixels that it expects, for embed, eval, finetune, train --from, export and studies.
    """
    from trainer.weights.importing import import_weights

    saved = import_weights(file, out, name, frames, stride, say)
    meta = saved.meta
    own, config, expected = meta["imported"], meta["config"], meta["input"]
    click.echo(
        f"{file}: {meta['settings']['backbone']} of {own['about']}, {counted(len(saved.weights), 'tensor')} -> {saved.run}\n"
        f"  expects {own['expects']}; clips of {counted(expected['frames'], 'frame')}, {expected['stride']} apart"
        + (f" at {config['fps']:g} per second" if config["fps"] else "")
        + f", {config['crop']} x {config['crop']} of {config['height']} x {config['width']} pixels; "
        f"epsilon of batch normalisation {meta['norm_epsilon']:g}"
    )
    if dropped := own["dropped"]:
        click.echo(f"  left out, not part of the backbone: {', '.join(dropped)}")
    if own["note"]:
        click.echo(f"  {own['note']}")
