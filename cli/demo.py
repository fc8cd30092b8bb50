"""`vssl demo`: the three commands on the data set that vssl renders itself."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo"), help="Videos, shards and run go here.")
@click.pass_context
def demo(ctx, folder):
    """Render the demo videos, label them, pretrain a small network on them and evaluate it.

    The commands are printed as they run; each can be run by itself, with other options.
    """
    place = shlex.quote(str(folder))
    for line in (
        f"labelgen --dataset demo --root {place}/videos --out {place}/out --workers 2 --height 64 --width 86 --crop 56",
        f"train --shards {place}/out --method pace --width 0.25 --run {place}/run",
        f"eval retrieval --shards {place}/out --checkpoint {place}/run",
    ):
        click.secho(f"$ vssl {line}", bold=True)
        ctx.find_root().command.main(shlex.split(line), standalone_mode=False, prog_name="vssl")
