"""The batches of each method, from its samples to the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from labelgen.progress import WARNING, counted
from trainer import data, distributed
from trainer.augment import augment
from trainer.errors import TrainerError
from trainer.inputs import OURS, Input
from trainer.methods import method_class
from trainer.settings import DECLARATIONS, Settings
from trainer.training.log import say
from trainer.training.schedule import pacing

_TRAINING, _HELD_OUT = 0, 1  # tags of the draws
_FEW_STEPS = 500  # with fewer steps a network hardly learns anything from random weights


@dataclass(frozen=True)
class Stream:
    """The batches of one method: its clips, which of them this process shows in each step, and the input that the
    network expects."""

    clips: data.TrainingClips
    batches: data.Batches
    input: Input = OURS

    def load(self, steps: range, workers: int, device: torch.device) -> Generator[dict[str, Any]]:
        """The raw batches of this process for all micro-batches of the steps, see data.prefetch."""
        return data.prefetch(self.clips, self.batches.sampler(steps), workers, device)

    def on_device(
        self, raw: dict[str, Any], progress: float, device: torch.device, step: int = 0, micro: int = 0
    ) -> data.Batch:
        """The input of the method's forward from a raw batch, a micro-batch of a step: augmented clips and labels, on
        the device."""
        moved = data.to_device({name: raw[name] for name in ("clips", "labels", "video")}, device)
        counts, share = self.batches.counts(step)[micro], self.batches.shares(step)[micro]

        def clips_of(rows: Tensor, read: data.ReadClip) -> Tensor:
            others = self.clips.of_videos(raw, rows.cpu().numpy(), read)
            pixels = others["clips"] if device.type == "cpu" else others["clips"].pin_memory()
            return self._augmented(data.to_device(pixels, device), others["view"])

        clips, key = self._augmented(moved["clips"], raw["view"]), (self.clips.seed, step)
        return data.Batch(clips, moved["labels"], moved["video"], progress, key, counts, share, clips_of)

    def _augmented(self, pixels: Tensor, view: dict[str, Tensor]) -> Tensor:
        """Frames uint8 [B, n, T, H, W, 3] -> float32 [B n, 3, T, size, size]; the views [B, n, ...] stay on the CPU."""
        views = {name: value.flatten(0, 1) for name, value in view.items()}
        return augment(pixels.flatten(0, 1), views, self.input, self.clips.size)


def select_videos(
    folders: data.Folders,
    settings: Settings,
    overlay: str | os.PathLike | None = None,
    say: Callable[[str], None] = say,
) -> tuple[data.Shards, data.Shards | None]:
    """The shards with the videos of the training, and with the held-out videos, if any; `say` gets their numbers."""
    source, held_out = data.Shards(folders, settings.split, overlay=overlay), None
    if settings.holdout:
        held = source.hold_out(settings.holdout, settings.seed)
        say(
            f"{counted(held.sum(), 'training video is', 'training videos are')} held out, {source.train_mask.sum()} are used for "
            "training"
        )
        held_out = source.with_training_videos(held)
    if settings.fraction < 1:
        before = source.train_mask.sum()
        source.subsample(settings.fraction, settings.seed)
        say(f"{source.train_mask.sum()} of {counted(before, 'training video')} are used")
    return source, held_out


def training_clips(
    source: data.Shards, settings: Settings, say: Callable[[str], None] = say
) -> dict[str, data.TrainingClips]:
    """The samples of each method among the videos that pretraining may use; `say` gets a line about those left out.
    Raises TrainerError if a method has no samples."""
    return {name: _clips(source, settings, name, _TRAINING, say) for name in settings.methods}


def _clips(
    source: data.Shards, settings: Settings, name: str, tag: int, say: Callable[[str], None]
) -> data.TrainingClips:
    method, options, trains = method_class(name), settings.options[name], tag == _TRAINING
    samples, left_out, reason = method.samples(source, options)
    if not len(samples):
        purpose = "use" if trains else "hold out"
        raise TrainerError(f"{source.folder}: {name} has nothing to {purpose}: {counted(left_out, 'video')} {reason}")
    if left_out and trains:
        say(f"{name} leaves out: {counted(left_out, 'video')} {reason}")
    if settings.subset != "all" and trains:
        if not method.of_labelled_clips:
            raise TrainerError(f"a subset needs labelled clips, which {name} does not draw; leave it out")
        whole, samples = len(samples), source.half(samples, settings.subset, settings.seed)
        say(f"{name} uses the {settings.subset} half, {len(samples)} of {counted(whole, 'sample')}")
    jitter, weights = settings.jitter or method.defaults["jitter"], settings.shard_weights if trains else []
    look = settings.crop_area, settings.color_strength
    return data.TrainingClips(source, samples, method, options, settings.seed, jitter, tag, weights, *look)


def epoch_of(clips: dict[str, data.TrainingClips], settings: Settings) -> tuple[int, float]:
    """Steps of an epoch, and number of clips of its samples."""
    shown = {name: settings.repeats * len(each.samples) for name, each in clips.items()}
    steps = {name: math.ceil(n / settings.batch_size) for name, n in shown.items()}
    most = max(steps.values())
    return most, sum(most / steps[name] * shown[name] * each.n for name, each in clips.items())


def for_budget(settings: Settings, clips: dict[str, data.TrainingClips], budget: int) -> Settings:
    """The settings with the number of epochs whose clips are nearest to the budget, and with drops of the learning rate
    at the same shares of the training. Raises SettingError for too many epochs."""
    epochs = max(1, round(budget / epoch_of(clips, settings)[1]))
    DECLARATIONS["epochs"].checked("epochs", epochs)
    say(f"{counted(budget, 'clip is', 'clips are')} {counted(epochs, 'epoch')}")
    return replace(settings, epochs=epochs, drop_every=max(1, round(settings.drop_every * epochs / settings.epochs)))


def warn_of_few_steps(clips: dict[str, data.TrainingClips], settings: Settings) -> None:
    """Warn if the settings have too few steps to learn from random weights."""
    steps, shown = epoch_of(clips, settings)
    if settings.epochs * steps < _FEW_STEPS:
        say(
            f"{WARNING}{counted(settings.epochs * steps, 'step')} in all: with fewer than {_FEW_STEPS} a network hardly learns "
            f"anything; a larger budget is set with --clips, here {math.ceil(2 * _FEW_STEPS * shown / steps):,} for "
            f"{2 * _FEW_STEPS:,} steps"
        )


def training_streams(
    source: data.Shards,
    settings: Settings,
    clips: dict[str, data.TrainingClips] | None = None,
    say: Callable[[str], None] = say,
) -> dict[str, Stream]:
    """A stream for each method over the videos that pretraining may use. clips: result of `training_clips`, if known; `say`
    gets what a user should know. Raises TrainerError if a method has no samples."""
    clips = clips or training_clips(source, settings, say)
    steps = settings.epochs * epoch_of(clips, settings)[0]
    streams = {}
    for name, each in clips.items():
        stages = []
        if settings.curriculum:
            if not each.method.of_labelled_clips:
                raise TrainerError(f"a curriculum needs labelled clips, which {name} does not draw; leave it out")
            order = source.by_difficulty(each.samples)
            stages = [(stop, order[: math.ceil(share * len(order))]) for stop, share in pacing(settings, steps)]
        batches = data.Batches(
            len(each.samples),
            settings.batch_size,
            settings.seed,
            stages,
            settings.repeats,
            micro=settings.accumulate,
            world=distributed.world(),
            rank=distributed.rank(),
        )
        _check_two(name, each, batches)
        streams[name] = Stream(each, batches)
        if stored := each.method.stored_draws(source.config, each.options):
            (setting, at_once), passes = stored, batches.passes(steps) * int(each.times.max())
            times = math.ceil(passes * at_once / source.config[setting])
            if times > 1:
                say(
                    f"{WARNING}{name}: each stored draw is shown {times} times; label with --{setting} {passes * at_once} to "
                    "avoid it"
                )
    return streams


def _check_two(name: str, clips: data.TrainingClips, batches: data.Batches) -> None:
    """Raises TrainerError if a method needs two samples at a time, and gets only one."""
    why, each_process = clips.method.needs_two(clips.options)
    needed = 2 * batches.micro * (batches.world if each_process else 1)
    if why and batches.least < needed:
        parts = f" in {needed // 2} parts" if needed > 2 else ""
        raise TrainerError(
            f"{name} needs 2 samples at a time, {why}, but a step has {counted(batches.least, 'sample')}{parts}, with "
            f"{counted(len(clips.samples), 'video')} to train on; {batches.advice(needed)}"
        )


def held_out_streams(held_out: data.Shards, settings: Settings) -> dict[str, Stream]:
    """A stream for each method over the held-out videos, whose first epoch is evaluated. Raises TrainerError if a
    method has no samples among them."""
    streams, world = {}, distributed.world()
    for name in settings.methods:
        clips = _clips(held_out, settings, name, _HELD_OUT, say)
        if len(clips.samples) < world:
            raise TrainerError(
                f"{counted(len(clips.samples), 'sample is', 'samples are')} held out for {name}, but {world} processes "
                "evaluate them; hold out more, or none"
            )
        batches = data.Batches(len(clips.samples), settings.batch_size, 0, world=world, rank=distributed.rank())
        streams[name] = Stream(clips, batches)
    return streams


def expecting(streams: dict[str, Stream], input: Input) -> dict[str, Stream]:
    """The streams for a network that expects another input."""
    return {name: replace(stream, input=input) for name, stream in streams.items()}
