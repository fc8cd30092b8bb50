"""What a method defines: the samples it draws, the clips and labels it reads, its heads and its loss."""

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
    """A pretext task. The module holds the heads; the backbone is shared with other methods and passed in. A subclass is
    constructed with (backbone, options, shards), the options from `option_values`.

    Attributes
    ----------
    task, sample, source : str
        What is learnt, what one sample is, and the publication, one line each.
    defaults : dict
        Settings as published: epochs, batch_size, lr, momentum, weight_decay, schedule, drop_every, jitter.
    options : dict of Option
        Settings of this method only, by name (`vssl train --set name=value`).
    of_labelled_clips : bool
        The samples are those of Shards.labelled_clips, so that a curriculum can order them by difficulty; `read` gets the clip.
    supervised : bool
        It learns class labels; the checkpoint with the best held-out accuracy is kept.
    scored : bool
        An answer is right or wrong, so that forward returns "accuracy" and "chance".
    chances : dict
        The chance of other accuracies, by name.
    labels_of_crops : bool
        It learns the labels that the shards hold for each crop of their grid, in the stored colours.
    answers_depend_on : tuple of str
        Settings of the shards that determine the meaning of an answer.
    remembers_videos : bool
        It keeps vectors of its training videos, so that it answers only questions about their data set.
    former_buffers : tuple of str
        Names of buffers that older versions saved and that are no longer read.
    notes : tuple of str
        Values derived from its options, as lines that are printed when training starts.

    Examples
    --------
    >>> from trainer.methods import method_class
    >>> order = method_class("order")
    >>> order.task
    'in which order are the clips shown'
    >>> order.shape({"clip_length": 16, "order_clips": 3}, order.option_values())  # clips of a sample, frames of a clip
    (3, 16)
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
        """The value of every option: the given one, else its default. Raises SettingError for unknown names, wrong types and
        invalid values."""
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
        """Raises SettingError for options that contradict each other, or that are invalid in a way that their declarations
        cannot express."""

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        """Why every step, and every accumulated part of it, must have two samples or more, "" if one is enough; and whether
        each process must have two, else all processes together."""
        return "", False

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        """Clips per sample and frames per clip."""
        return 1, config["clip_length"]

    @classmethod
    def stored_draws(cls, config: dict, options: dict) -> tuple[str, int] | None:
        """Which setting of the shards gives the number of stored draws per sample, "rows" or "clips", and how many of them are
        shown at a time. None if a new draw is made each time."""
        return ("clips", 1) if cls.of_labelled_clips and config["clips"] is not None else None

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The samples of an epoch, int64 [n, 2] (shard, item in it), how many videos were left out, and why."""
        raise NotImplementedError

    @staticmethod
    def read(reader: ShardReader, item: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of one sample, int64 [clips, frames] in the shard, and its labels by name (numbers or arrays)."""
        raise NotImplementedError

    @classmethod
    def at_chance(cls, means: dict[str, float], samples: int) -> str:
        """The reason why steps with `samples` samples in all were no better than chance, else "". means: of each metric over
        the steps.

        An accuracy within two standard errors of chance is no better.
        """
        accuracy, chance = means.get("accuracy", 1.0), means.get("chance", 0.0)
        if accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / samples):
            return ""
        return f"accuracy {accuracy:.3f}, chance {chance:.3f}"

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        """For display: what is to be learnt from a batch of one sample, as lines of text; and the clips of it that the networks
        get, float32 [3, T, size, size], each with a description."""
        lines = [f"{name} {value[0].tolist()}" for name, value in batch.labels.items()]
        if len(batch.clips) == 1:
            return lines, [("clip", batch.clips[0])]
        views = [(f"view {i}", clip) for i, clip in enumerate(batch.clips, 1)]
        return [f"{len(views)} views of one video", *lines], views

    def networks(self) -> list[nn.Module]:
        """Networks other than the backbone that torch.compile may compile."""
        return []

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name: "loss", "accuracy" and "chance" if the method is scored, and others.

        It passes the batch's clips through the networks and passes tensors to the loss, a function or method that does not
        depend on Batch. Means over samples use trainer.distributed.mean; trainer.distributed.gather collects the samples of
        other processes.
        """
        raise NotImplementedError

    def after_step(self, backbone: Stages, progress: float) -> None:
        """Called after each step of the optimiser, for example to update averaged weights; progress: completed share of the
        training."""
