"""`vssl demo`: the three commands on the data set that vssl renders itself."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo"), help="Videos, shards and run go here.")
def demo(folder):
    """Render the demo videos, label them, pretrain a small network on them and evaluate it.

    The commands are printed as they run; each can be run by itself, with other options. The same command again goes on
    where it stopped.
    """
    place = shlex.quote(str(folder))
    if (folder / "run").exists():
        how = f"--resume {place}/run"
    else:
        how = (
            "--method pace --jitter none --width 0.25 --epochs 20 --batch-size 32 "
            f"--optimizer adamw --lr 0.002 --schedule cosine --run {place}/run"
        )
    for line in (
        f"labelgen --dataset demo --root {place}/videos --out {place}/out --workers 2 --height 72 --width 72 --crop 56",
        f"train --shards {place}/out {how}",
        f"eval retrieval --shards {place}/out --checkpoint {place}/run",
        f"report {place}/run --shards {place}/out",
    ):
        click.secho(f"$ vssl {line}", bold=True)
        status = subprocess.run([sys.executable, "-m", "cli.main", *shlex.split(line)]).returncode
        if status:
            sys.exit(status)
