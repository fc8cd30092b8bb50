"""The batches of each method, from its samples to the device."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainer import data, distributed
from trainer.augment import augment
from trainer.errors import TrainerError
from trainer.inputs import OURS, Input
from trainer.methods import method_class
from trainer.options import check_value
from trainer.settings import DECLARATIONS, Settings
from trainer.training.log import say
from trainer.training.schedule import pacing

_TRAINING, _HELD_OUT = 0, 1  # tags of the draws


@dataclass(frozen=True)
class Stream:
    """The batches of one method: its clips, which of them each step shows to this process, and what the network expects."""

    clips: data.TrainingClips
    batches: data.Batches
    input: Input = OURS

    def load(self, steps: range, workers: int, device: torch.device) -> Generator[dict[str, Any]]:
        """The raw batches of this process for each micro-batch of the steps, see data.prefetch."""
        return data.prefetch(self.clips, self.batches.sampler(steps), workers, device)

    def on_device(self, raw: dict, progress: float, device: torch.device, counts: Sequence[int] = ()) -> data.Batch:
        """What the method's forward gets of a raw batch: augmented clips and labels, on the device."""
        moved = data.to_device({name: raw[name] for name in ("clips", "labels", "video")}, device)
        clips = _augmented(moved["clips"], raw["view"], self.input)

        def clips_of(rows: Tensor, read: data.ReadClip) -> Tensor:
            others = self.clips.of_videos(raw, rows.cpu().numpy(), read)
            pixels = others["clips"] if device.type == "cpu" else others["clips"].pin_memory()
            return _augmented(data.to_device(pixels, device), others["view"], self.input)[:, 0]

        return data.Batch(clips, moved["labels"], moved["video"], progress, counts, clips_of)


def _augmented(pixels: Tensor, view: dict[str, Tensor], input: Input) -> Tensor:
    """Frames uint8 [B, n, T, S, S, 3] -> float32 [B, n, 3, T, S, S]; the views stay on the CPU."""
    view = {key: value.flatten(0, 1) for key, value in view.items()}
    return augment(pixels.flatten(0, 1), view, input).unflatten(0, pixels.shape[:2])


_FEW_STEPS = 500  # in fewer a network hardly learns anything from random weights on


def training_clips(source: data.Shards, settings: Settings) -> dict[str, data.TrainingClips]:
    """The samples of each method, of the videos that pretraining may use. Raises TrainerError where one has none."""
    return {name: _clips(source, settings, name, _TRAINING) for name in settings.methods}


def epoch_of(clips: dict[str, data.TrainingClips], settings: Settings) -> tuple[int, float]:
    """Steps of an epoch, and how many clips its samples hold."""
    shown = {name: settings.repeats * len(each.samples) for name, each in clips.items()}
    steps = {name: math.ceil(n / settings.batch_size) for name, n in shown.items()}
    most = max(steps.values())
    return most, sum(most / steps[name] * shown[name] * each.n for name, each in clips.items())


def for_budget(settings: Settings, clips: dict[str, data.TrainingClips], budget: int) -> Settings:
    """The settings with the epochs whose clips come nearest to a budget, and with the drops of the learning rate at the same
    shares of the training as before. Raises TrainerError for too many epochs."""
    epochs = max(1, round(budget / epoch_of(clips, settings)[1]))
    check_value("epochs", epochs, DECLARATIONS["epochs"].range, ())
    say(f"{budget:,} clips are {epochs} epochs")
    return replace(settings, epochs=epochs, drop_every=max(1, round(settings.drop_every * epochs / settings.epochs)))


def warn_of_few_steps(clips: dict[str, data.TrainingClips], settings: Settings) -> None:
    """Say so where the settings have too few steps to learn from random weights on."""
    steps, shown = epoch_of(clips, settings)
    if settings.epochs * steps < _FEW_STEPS:
        say(
            f"{settings.epochs * steps} steps in all: in fewer than {_FEW_STEPS} a network hardly learns anything; a larger "
            f"budget is set with --clips, here {math.ceil(2 * _FEW_STEPS * shown / steps):,} for {2 * _FEW_STEPS:,} steps"
        )


def training_streams(
    source: data.Shards, settings: Settings, clips: dict[str, data.TrainingClips] | None = None
) -> dict[str, Stream]:
    """A stream of each method, of the videos that pretraining may use; clips: see `training_clips`, where they are known.
    Raises TrainerError where a method has no samples."""
    clips = clips or training_clips(source, settings)
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
        streams[name] = Stream(each, batches)
        stored = each.method.stored_draws(source.config, each.options)
        if stored:
            (setting, at_once), passes = stored, batches.passes(steps) * int(each.times.max())
            times = math.ceil(passes * at_once / source.config[setting])
            if times > 1:
                say(
                    f"{name}: each stored draw is shown {times} times; label with --{setting} {passes * at_once} to avoid it"
                )
    return streams


def held_out_streams(held_out: data.Shards, settings: Settings) -> dict[str, Stream]:
    """A stream of each method over the held-out videos, whose first epoch is scored. Raises TrainerError where a method has
    no samples among them."""
    streams = {}
    for name in settings.methods:
        clips = _clips(held_out, settings, name, _HELD_OUT)
        world, rank = distributed.world(), distributed.rank()
        if len(clips.samples) < world:
            raise TrainerError(
                f"{len(clips.samples)} samples of {name} are held out, and {world} processes score them; hold out more, or none"
            )
        batches = data.Batches(len(clips.samples), settings.batch_size, 0, world=world, rank=rank)
        streams[name] = Stream(clips, batches)
    return streams


def expecting(streams: dict[str, Stream], input: Input) -> dict[str, Stream]:
    """The streams for a network that expects other pixels."""
    return {name: replace(stream, input=input) for name, stream in streams.items()}


def _clips(source: data.Shards, settings: Settings, name: str, tag: int) -> data.TrainingClips:
    method, options = method_class(name), settings.options[name]
    samples, left_out, reason = method.samples(source, options)
    if not len(samples):
        purpose = "hold out" if tag == _HELD_OUT else "use"
        raise TrainerError(f"{source.folder}: nothing that {name} can {purpose}: {left_out} videos {reason}")
    if left_out and tag == _TRAINING:
        say(f"{name} leaves out: {left_out} videos {reason}")
    if tag == _TRAINING and settings.subset != "all":
        if not method.of_labelled_clips:
            raise TrainerError(f"a subset needs labelled clips, which {name} does not draw; leave it out")
        whole, samples = len(samples), source.half(samples, settings.subset, settings.seed)
        say(f"{name} uses the {settings.subset} half, {len(samples)} of {whole} samples")
    jitter = settings.jitter or method.defaults["jitter"]
    if tag != _TRAINING or not settings.shard_weights:
        return data.TrainingClips(source, samples, method, options, settings.seed, jitter, tag)
    samples, times, copy = source.weighted(samples, settings.shard_weights)
    clips = data.TrainingClips(source, samples, method, options, settings.seed, jitter, tag)
    clips.times, clips.copy = times, copy
    return clips
