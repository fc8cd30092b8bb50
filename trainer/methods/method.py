"""What every method is: the samples it draws, the clips and labels it reads, its heads and its loss."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor, nn

from labelgen.shards import ShardReader
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.errors import SettingError
from trainer.options import Option

Shown = tuple[list[str], list[tuple[str, Tensor]]]  # what `Method.shown` returns


class Method(nn.Module):
    """A pretext task. The module holds the heads; the backbone is shared with other methods and passed in.

    task, sample, source: what is learnt, what one sample is, and where it is published, one line each
    defaults: settings as published: epochs, batch_size, lr, momentum, weight_decay, schedule, drop_every, jitter
    options:  settings of this method alone by name (`vssl train --set name=value`)
    of_labelled_clips: the samples are those of Shards.labelled_clips, so that a curriculum may order them by difficulty;
              `read` gets the clip
    supervised: learns class labels; the checkpoint with the best held-out accuracy is kept
    scored: an answer is right or wrong, so that forward gives "accuracy" and "chance"; chances: those of other accuracies by name
    labels_of_crops: its labels are those that the shards hold for each crop of their grid, in the colours that are stored
    answers_depend_on: settings of the shards that decide what an answer means
    remembers_videos: it keeps vectors of its training videos, so that it answers only questions about their data set
    former_buffers: names of buffers that older versions saved and nothing reads any more
    notes:    what its options came to, lines that are printed when training starts

    A child is made of (backbone, options, shards), options by `option_values`.
    """

    task: str
    sample: str
    source: str
    defaults: dict
    options: dict[str, Option] = {}
    of_labelled_clips = False
    supervised = False
    scored = True
    chances: dict[str, float] = {}
    labels_of_crops = False
    answers_depend_on: tuple[str, ...] = ()
    remembers_videos = False
    former_buffers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def option_values(cls, given: dict | None = None) -> dict:
        """Every option's value: what is given, else its default. Raises SettingError for unknown names, wrong types and
        values that make no sense."""
        given = given or {}
        for name in given.keys() - cls.options.keys():
            method = cls.__module__.rpartition(".")[2]
            known = f"it has {', '.join(cls.options)}" if cls.options else "it has none"
            raise SettingError(f"{name} is no option of method {method}: {known}")
        values = {
            key: option.checked(key, given[key]) if key in given else option.default
            for key, option in cls.options.items()
        }
        cls.check(values)
        return values

    @staticmethod
    def check(options: dict) -> None:
        """Raises SettingError for options that make no sense together, or in a way that their declarations cannot say."""

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        """Clips per sample and frames per clip."""
        return 1, config["clip_length"]

    @classmethod
    def stored_draws(cls, config: dict, options: dict) -> tuple[str, int] | None:
        """Which setting of the shards says how many draws of a sample are stored, "rows" or "clips", and how many of them are
        shown at a time. None if every showing is drawn anew."""
        return ("clips", 1) if cls.of_labelled_clips and config["clips"] is not None else None

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The samples of an epoch, int64 [n, 2] (shard, item of it), how many videos were left out, and why."""
        raise NotImplementedError

    @staticmethod
    def read(reader: ShardReader, item: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of one sample, int64 [clips, frames] in the shard, and its labels by name (numbers or arrays)."""
        raise NotImplementedError

    @classmethod
    def at_chance(cls, means: dict[str, float], samples: int) -> str:
        """What says that steps with so many samples were no better than chance, else "". means: of each metric over them.

        An accuracy within two standard errors of chance is no better.
        """
        accuracy, chance = means.get("accuracy", 1.0), means.get("chance", 0.0)
        if accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / samples):
            return ""
        return f"accuracy {accuracy:.3f}, chance {chance:.3f}"

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        """For people to look at: what is to be learnt from a batch of one sample, in words, a line each; and the clips that the
        networks get of it, float32 [3, T, size, size], each with what it is."""
        lines = [f"{name} {value[0].tolist()}" for name, value in batch.labels.items()]
        if len(batch.clips) == 1:
            return lines, [("clip", batch.clips[0])]
        views = [(f"view {i}", clip) for i, clip in enumerate(batch.clips, 1)]
        return [f"{len(views)} views of one video", *lines], views

    def networks(self) -> list[nn.Module]:
        """Networks beside the backbone, which torch.compile may take."""
        return []

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name: "loss", "accuracy" and "chance" if there are any, and others.

        It passes the batch's clips through the networks and hands tensors to the loss, a function or method that knows no Batch.
        Means over samples are taken by trainer.distributed.mean, other samples of the batch by trainer.distributed.gather.
        """
        raise NotImplementedError

    def after_step(self, backbone: Stages, progress: float) -> None:
        """What follows a step of the optimiser, such as an average of weights; progress: share of the training done."""
