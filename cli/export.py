"""`vssl export`: a trained backbone for other programs."""

from __future__ import annotations

import click

from cli.commands import Command
from cli.options import WRITTEN
from labelgen.progress import busy


@click.command(cls=Command)
@click.argument("run")
@click.option("--out", type=WRITTEN, required=True, help="File to write; FILE.json is written beside it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "onnx", "torchvision", "vcop", "kenshohara"]),
    help="Format of vssl, ONNX, or the state dict of another program.  [default: by the suffix of FILE, .safetensors or .onnx]",
)
def export(run, out, form):
    """Write only the backbone of RUN: weights for `vssl finetune`, or a network that runs without vssl.

    The file is read back and compared with the network on random clips.
    """
    from trainer.export import export as export_backbone

    with busy("exporting"):
        about, difference = export_backbone(run, out, form)
    click.echo(
        f"{about['backbone']} (width {about['width']:g}, {about['parameters']:,} parameters) of {about['source']['run']} "
        f"as {about['format']} -> {out}, {out}.json; largest difference from the network: {difference:.3g}"
    )
