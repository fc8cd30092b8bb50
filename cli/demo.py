"""`vssl demo`: from videos to a study, on a data set that vssl renders."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click

from cli.commands import Command, output_option
from cli.options import WRITTEN
from labelgen.progress import level, say

STUDY = """\
# The study of `vssl demo`. Add rows, seeds or measures (docs/studies.md), and run it again to compute what is missing.
about: Six classes of videos that differ only in motion, filmed by a camera that pans and shakes; pretraining never sees a label
seeds: [0]
clips: 57600
settings:
  {backbone: r3d10, width: 0.125, batch_size: 32, optimizer: adamw, lr: 0.004, weight_decay: 0.3, schedule: cosine, jitter: none}
data:
  demo: {shards: out/demo}
baselines: [flow, boundary]  # histograms, without a network; random weights are always included
rows:
  motion statistics: {method: statistics, options: {statistics: {parts: motion}}}
measures:
  - {protocol: retrieval, stage: [conv3, conv4, conv5], pooling: max}
  - {protocol: linear, stage: conv5, pooling: max}
"""


@click.command(cls=Command)
@click.option("--folder", type=WRITTEN, default=Path("demo"), help="Folder for videos, shards and study.")
def demo(folder):
    """Render the demo videos, label them, pretrain a small network on them and compare it with random weights and with
    histograms of flow and motion boundaries.

    It ends in a page, FOLDER/study/index.html: videos and their labels, curves, nearest neighbours, maps, numbers. The
    commands are printed as they run; each can be run by itself, with other options. The same command resumes an
    interrupted run.
    """
    from labelgen.files import write_text
    from labelgen.processes import environment

    place, file = shlex.quote(str(folder)), folder / "study.yaml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, STUDY)
    for line in (
        f"labelgen --dataset demo --camera pan,shake --root {place}/videos --out {place}/out --workers 2 "
        "--height 48 --width 48 --crop 40",
        f"study {place}/study.yaml --out {place}/study --workers 2",
    ):
        say(click.style(f"$ vssl {line}", bold=sys.stdout.isatty()))
        words = [*shlex.split(line), *output_option(level())]
        status = subprocess.run([sys.executable, "-m", "cli.main", *words], env=environment()).returncode
        if status:
            sys.exit(status)
