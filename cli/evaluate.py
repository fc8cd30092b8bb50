"""`vssl eval`: what a pretrained network is worth."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

_SHARDS = click.option(
    "--shards", type=click.Path(path_type=Path), default=Path("out"), help="Folder that labelgen wrote."
)
_CHECKPOINT = click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Run, checkpoint folder or file.  [default: the newest run]"
)
_SPLIT = click.option("--split", help="Official split.  [default: the one that the run was trained on, else the first]")
_FOLDS = click.option(
    "--split", help="Official split, or all: each of them in turn.  [default: as the run, else the first]"
)
_PAIRS = click.option("--pairs", type=click.Path(path_type=Path), help="CSV file: fold,first,second,same.")
_COMMON = (
    click.option("--batch-size", default=32, type=click.IntRange(1), help="Clips at a time; no effect on the result."),
    click.option(
        "--workers", type=click.IntRange(0), help="Processes that decode frames.  [default: half of the cores, 1 to 8]"
    ),
    click.option("--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda where there is one."),
)


def _with_options(command, checkpoint=_CHECKPOINT, split=_SPLIT):
    for option in (*reversed(_COMMON), split, checkpoint, _SHARDS):
        command = option(command)
    return command


def _compute(batch_size, workers, device):
    from trainer.evaluate.features import Compute
    from trainer.settings import WORKERS

    return Compute(batch_size, WORKERS if workers is None else workers, device)


def _run(protocol, batch_size, workers, device, **options):
    """The protocol of this module on these options; its table on the screen, and where it is written."""
    compute = _compute(batch_size, workers, device)
    result = getattr(protocol, protocol.__name__.rpartition(".")[2])(compute=compute, **options)
    click.echo(f"{protocol.format_table(result)}\n\n{result['file']}")


@click.group("eval")
def evaluate():
    """Measure a pretrained network."""


@evaluate.command()
@_with_options
@click.option(
    "--query", type=click.Path(path_type=Path), help="Shards of another data set, whose videos are searched for"
)
@click.option("--gallery", type=click.Path(path_type=Path), help="Shards of the data set that --query searches.")
def retrieval(**options):
    """Find videos of the same class by nearest neighbours of frozen features."""
    from trainer.evaluate import retrieval as protocol

    _run(protocol, **options)


@evaluate.command()
@partial(_with_options, split=_FOLDS)
def linear(**options):
    """Train a logistic regression on frozen features."""
    from trainer.evaluate import linear as protocol

    _run(protocol, **options)


@evaluate.command()
@partial(_with_options, split=_FOLDS)
def knn(**options):
    """Let the nearest neighbours in frozen features vote."""
    from trainer.evaluate import knn as protocol

    _run(protocol, **options)


@evaluate.command()
@partial(
    _with_options,
    checkpoint=click.option(
        "--checkpoint",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Finetuned run; repeated, one per split: their mean.  [default: the newest run]",
    ),
    split=click.option("--split", help="Official split.  [default: the one that the run was trained on]"),
)
def recognition(checkpoint, **options):
    """Test a network that `vssl finetune` trained."""
    from trainer.evaluate import recognition as protocol

    _run(protocol, checkpoint=checkpoint or None, **options)


@evaluate.command()
@_with_options
def scenes(**options):
    """Train a linear SVM on all videos but one, and test it on that one."""
    from trainer.evaluate import scenes as protocol

    _run(protocol, **options)


@evaluate.command()
@_with_options
@_PAIRS
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


@evaluate.command()
@_with_options
@click.option("--stage", help="Such as conv4.  [default: the last]")
@click.option(
    "--video", "videos", multiple=True, help="Id of a video, or the end of it; repeatable.  [default: a random few]"
)
@click.option("--count", default=4, type=click.IntRange(1), help="Random videos, where none is named.")
@click.option("--seed", default=0, help="Seed of the random choice.")
def attention(**options):
    """Draw where the network is active, beside the motion boundaries of the clip, as PNG files."""
    from trainer.evaluate import attention as protocol

    _run(protocol, boundaries=_boundaries, **options)


def _boundaries(frames, config):
    """Magnitudes of the motion boundaries M_u and M_v of a clip, float32 [2, H, W]."""
    from itertools import pairwise

    import cv2
    import numpy as np

    from labelgen.flow import flow
    from labelgen.labels.boundaries import motion_boundaries

    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    fields = (flow(first, second, config["flow"]["backend"]) for first, second in pairwise(luma))
    summed = sum(motion_boundaries(field) for field in fields)
    return np.hypot(summed[0::2], summed[1::2])


@evaluate.command("all")
@partial(_with_options, split=click.option("--split", help="Official split.  [default: the run's own, else the first]"))
@_PAIRS
def all_(batch_size, workers, device, pairs, **options):
    """Run every protocol that the network and the data allow, and say what was left out and why."""
    from trainer.evaluate.all_protocols import all_protocols

    left_out = []
    compute = _compute(batch_size, workers, device)
    own = {"similarity": {"pairs": pairs}, "attention": {"boundaries": _boundaries}}
    for name, table, reason in all_protocols(compute=compute, options=own, **options):
        if table is None:
            left_out.append(f"left out: {name}: {reason}")
        else:
            click.echo(f"{table}\n")
    click.echo("\n".join(left_out or ["nothing left out"]))
