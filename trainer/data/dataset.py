"""Shards as a PyTorch dataset, for other training loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from labelgen.shards import TEST, VALIDATION
from trainer.data.index import Shards
from trainer.data.readers import Folders
from trainer.data.views import adjacent_frames, sliding_frames, spread_frames
from trainer.errors import SettingError, TrainerError
from trainer.inputs import OURS, Input

RANDOM, LABELLED = "random", "labelled"
_VIEWS: dict[str, Callable[[int, int], np.ndarray]] = {
    "spread": spread_frames,
    "sliding": sliding_frames,
    "adjacent": adjacent_frames,
}


class ClipDataset(Dataset):
    """Clips of the videos of shards, for a DataLoader with any number of workers or anything that takes one, such as Lightning.

    An item is a dict: "clip", float32 [3, T, S, S], normalised as the network expects it, or uint8 [T, S, S, 3]; "label", int,
    index into `classes` (-1: none); "video", int, row of `shards.videos`; "start", int, first frame of the clip in the video;
    and each of `labels` by its name. Random draws come from torch, so that its seed repeats them.

    Parameters
    ----------
    folder : path, or several
        Of shards.
    split : str or int
        Official split, None for the first.
    part : str
        "train", "validation" or "test" of the split, None for all videos.
    clips : str
        "random", one per video, drawn each time; "spread", 10 per video; "sliding", all that overlap by half; "adjacent", all
        without overlap; "labelled", those that labelgen labelled. A video shorter than a clip is looped.
    labels : sequence of str
        Names of data sets of the labelled clips, such as "statistics/motion" (docs/shards.md); items have the labels of the
        shown crop and mirroring.
    crop : str
        "random", one of the crops of the shards, or "centre".
    mirror : bool
        Mirror a clip with probability 1/2.
    uint8 : bool
        Clips as stored, for custom augmentation.
    input : Input
        What the network expects, such as `backbone.input`.

    Raises
    ------
    SettingError
        For invalid values.
    TrainerError
        If there is no clip.
    ShardError
        If shards cannot be read.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> from trainer.data import ClipDataset
    >>> dataset = ClipDataset("out/demo", part="train")
    >>> batch = next(iter(DataLoader(dataset, batch_size=4)))
    >>> batch["clip"].shape, batch["label"].shape
    (torch.Size([4, 3, 16, 32, 32]), torch.Size([4]))
    """

    def __init__(
        self,
        folder: Folders,
        split: str | int | None = None,
        part: str | None = None,
        clips: str = RANDOM,
        labels: Sequence[str] = (),
        crop: str = "random",
        mirror: bool = True,
        uint8: bool = False,
        input: Input = OURS,
    ) -> None:
        self._made_with = (folder, split, part, clips, tuple(labels), crop, mirror, uint8, input)
        for name, value, known in (
            ("part", part, (None, "train", "validation", "test")),
            ("clips", clips, (RANDOM, LABELLED, *_VIEWS)),
            ("crop", crop, ("random", "centre")),
        ):
            if value not in known:
                raise SettingError(f"{name} is {value!r}, expected one of: {', '.join(map(str, known))}")
        self.shards = shards = Shards(folder, split)
        self.crop, self.mirror, self.uint8, self.random, self.input = crop, mirror, uint8, clips == RANDOM, input
        self.size: int = shards.config["crop"]
        used = np.ones(len(shards.videos), bool)
        if part is not None:
            used = (
                shards.train_mask if part == "train" else shards.part == {"validation": VALIDATION, "test": TEST}[part]
            )
        self._labels = self._axes(labels, clips)
        rows, lengths = np.flatnonzero(used), shards.readers.numbers("videos/n_frames")
        self._clip = np.empty(0, np.int64)  # labelled clip of each item in its shard
        if clips == LABELLED:
            chosen = used[shards.clip_video]
            self._video, self._clip = shards.clip_video[chosen], shards.clips[chosen, 1]
            self._start = shards.readers.numbers("clips/start")[chosen].astype(np.int64)
        else:
            frames = _VIEWS.get(clips, lambda n, length: np.zeros((1, 1), np.int64))
            starts = [frames(int(lengths[row]), shards.clip_length)[:, 0] for row in rows]
            self._video = np.repeat(rows, [*map(len, starts)])
            self._start = np.concatenate([np.empty(0, np.int64), *starts])
        if not len(self._video):
            raise TrainerError(f"{shards.dataset}: no {clips} clip of {part or 'any'} videos, expected at least one")

    def _axes(self, labels: Sequence[str], clips: str) -> dict[str, tuple]:
        """The axes of each data set of labels. Raises SettingError if one is not per clip."""
        kinds = self.shards.readers[0].kinds
        known = {field.name: field.axes for kind in kinds for field in kind.fields if field.axes[0] == "clips"}
        if unknown := [name for name in labels if name not in known]:
            raise SettingError(f"labels are {unknown[0]!r}, expected some of: {', '.join(known)}")
        if labels and clips != LABELLED:
            raise SettingError(f"labels are given, but clips are {clips!r}, expected {LABELLED!r}")
        return {name: known[name] for name in labels}

    @property
    def classes(self) -> list[str]:
        """The class labels of all videos, sorted."""
        return self.shards.classes

    def __len__(self) -> int:
        return len(self._video)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, start = int(self._video[index]), int(self._start[index])  # IndexError ends a loop over the items
        shard, video = self.shards.videos[row]
        reader, length = self.shards.readers[shard], self.shards.clip_length
        first, n = (int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
        if self.random:
            start = _draw(max(1, n - length + 1))
        grid = self.shards.crop_grid
        if self.crop == "random":
            crop = _draw(len(grid))
        else:
            crop = int(np.abs(grid - (np.array(self.shards.frame_size) - self.size) // 2).sum(1).argmin())
        mirror = _draw(2) if self.mirror else 0
        shown = np.empty((length, self.size, self.size, 3), np.uint8)
        reader.frames(first + (start + np.arange(length)) % n, shown, grid[crop].astype(int))
        clip = torch.from_numpy(shown).flip(2) if mirror else torch.from_numpy(shown)
        if not self.uint8:
            clip = self.input.normalised(clip.float().div_(255)).permute(3, 0, 1, 2)
        item = {"clip": clip, "label": int(self.shards.targets[row]), "video": row, "start": start}
        for name, axes in self._labels.items():
            view = (crop, mirror)[: 1 + (axes[2:3] == (2,))] if axes[1:2] == ("crops",) else ()
            item[name] = torch.as_tensor(np.array(reader.arrays[name][(self._clip[index], *view)]))
        return item

    def __reduce__(self) -> tuple[type[ClipDataset], tuple]:
        return ClipDataset, self._made_with  # a worker that is not forked opens the shards again


def _draw(most: int) -> int:
    return int(torch.randint(most, ()))
