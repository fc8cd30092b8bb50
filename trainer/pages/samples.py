"""The first samples of a training on a page: their clips as the networks get them, and the target of each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup

from labelgen.errors import VsslError
from labelgen.files import write_text
from trainer import data
from trainer.checkpoint import Checkpoint
from trainer.inputs import OURS
from trainer.pages.films import Films, frame_seconds
from trainer.pages.page import facts, figure, fill, grid, items, join, page, paragraph
from trainer.pages.sources import made_by
from trainer.settings import Settings, resolve
from trainer.training import streams
from trainer.training.log import say

_OF_A_RUN = 2  # samples of each method on its page
_SAMPLE = """<div class="together" role="group" tabindex="0" aria-label="{}">
<p>{}</p>
{}<div class="films">{}</div></div>
"""


def write(
    settings: Settings, shards: data.Folders, path: str | os.PathLike, count: int, say: Callable[[str], None] = say
) -> None:
    """Write the page of the first `count` samples of each method in a training with these settings. Raises
    SettingError, TrainerError and ShardError as `trainer.training.train` does, WriteError."""
    settings, films = resolve(settings), Films({})
    source, _ = streams.select_videos(shards, settings, say=say)
    lead = (
        f"The first samples of a training on {source.dataset} with seed {settings.seed}, as the network gets them. The clips of "
        "a sample move while it is hovered over, tapped or focused with the tab key."
    )
    shown = samples_html(source, settings, count, films, say)
    sections = [(f"samples-{i}", name, content) for i, (name, content) in enumerate(shown.items())]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), page(f"Samples of {settings.method}", lead, "", sections, made_by(), films.style()))


def samples_of_run(
    saved: Checkpoint, shards: data.Folders, films: Films, overlay: str | os.PathLike | None = None
) -> Markup:
    """The first samples of a run's training, reproduced from its shards; overlay: see `trainer.training.train`. There are none
    if the run had other samples, for example with the classes and splits of a study, or if its method is not available."""
    try:
        settings = resolve(Settings(**saved.meta["settings"]))
        source, _ = streams.select_videos(shards, settings, overlay, _nobody)
        clips = streams.training_clips(source, settings, _nobody)
    except VsslError:
        return Markup()
    found = {name: len(each.samples) for name, each in clips.items()}
    if found != saved.meta["samples"] or source.config_hash != saved.meta["config_hash"]:
        return Markup()
    about = "The first samples of the training, as the network got them; their clips move while they are hovered over."
    return paragraph(about) + join(samples_html(source, settings, _OF_A_RUN, films, _nobody).values())


def _nobody(text: str) -> None:
    """Discards messages."""


def samples_html(
    source: data.Shards, settings: Settings, count: int, films: Films, say: Callable[[str], None]
) -> dict[str, Markup]:
    """The first samples of a training by method: their clips, which are added to the films of the page, and their targets as
    text.

    settings: resolved; say: called with messages for the user about the data
    """
    out = {}
    for name, stream in streams.training_streams(source, settings, say=say).items():
        clips, keys, step = stream.clips, np.empty((0, 2), np.int64), 0
        while len(keys) < count and step < settings.epochs * stream.batches.per_epoch:
            keys, step = np.concatenate([keys, stream.batches.joined(step)]), step + 1
        raw = clips.batch(keys[:count])
        batch = stream.on_device(raw, 0.0, torch.device("cpu"))
        look = f"colour jitter {clips.jitter}"
        if clips.jitter != "none":
            look += f" of strength {clips.color_strength:g}"
        if clips.jitter == "contrast":
            look += f", crops of {clips.crop_area[0]:g} to {clips.crop_area[1]:g} of the frame"
        about = facts(
            f"Samples of {name}",
            [
                ("Task", _worded(clips.method.task, clips.options)),
                ("A sample", _worded(clips.method.sample, clips.options)),
                ("Augmentation", look),
            ],
        )
        out[name] = about + grid((_sample(clips, batch, i, video, films) for i, video in enumerate(raw["id"])), "pairs")
    return out


def _worded(text: str, options: dict) -> str:
    """A text of a method, in which `name` is replaced with the value of that option, or with name itself if there is none."""
    return re.sub("`(.+?)`", lambda name: str(options.get(name[1], name[1])), text)


def _sample(clips: data.TrainingClips, batch: data.Batch, i: int, video: str, films: Films) -> Markup:
    """Sample i of a batch."""
    labels = {name: value[i : i + 1] for name, value in batch.labels.items()}
    own = slice(i * clips.n, (i + 1) * clips.n)
    one = replace(batch, clips=batch.clips[own], labels=labels, video=batch.video[i : i + 1])
    lines, shown = clips.method.shown(one, clips.shards, clips.options)
    shard, row = clips.shards.videos[int(batch.video[i])]
    seconds = frame_seconds(clips.shards.readers[shard], row)
    figures = join(
        figure(what, films.clip(OURS.pixels(clip.permute(1, 2, 3, 0).numpy()), seconds, f"{what} of {video}"))
        for what, clip in shown
    )
    return fill(_SAMPLE, f"Sample of {video}", video, items(lines) if lines else "", figures)
