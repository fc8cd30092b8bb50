"""Action similarity: do two videos show the same action?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.evaluate.protocol import Option, Protocol, ProtocolError

if TYPE_CHECKING:
    from torch import nn

    from trainer.data import Shards

STAGES = 3  # the deepest ones: conv3, conv4, conv5
COLUMNS = ("fold", "first", "second", "same")


class Similarity(Protocol):
    """Tell from frozen features whether two videos show the same action."""

    title = "Similarity"
    question = "Do two videos show the same action?"
    items = (
        "Pairs of videos of a CSV file, `--pairs`, with the columns `fold,first,second,same` (a line: "
        "`1,clip_0001.avi,clip_0002.avi,1`); a video by its id or file name, with or without extension. A video is the mean of "
        "its sliding clips. `--dataset aslan` takes the folder of the videos; its published folds of pairs have to be brought "
        "into this form (we have not seen the original files, whose layout is not described in the papers)."
    )
    classifier = (
        "A linear SVM on 12 (dis)similarities of the two videos' features at the three deepest stages, standardised on the "
        "training folds; accuracy and area under the ROC curve over all folds. The interval is over pairs."
    )
    left_out = "Pairs of which a video is not in the shards; they are counted."
    source = "Kliper-Gross et al., PAMI 2012; thesis 3.6.4."
    options = (Option("pairs", Path, "CSV file: fold,first,second,same.", shared=True),)

    def choose(self, pairs: str | os.PathLike | None = None) -> Shards:
        import numpy as np

        from trainer.evaluate.pairs import read_pairs

        if pairs is None:
            raise ProtocolError("similarity needs the list of pairs", f"--pairs FILE ({','.join(COLUMNS)})")
        source = self.bench.source()
        self.fold, first, second, self.same, notes = read_pairs(Path(pairs), source)
        self.videos, index = np.unique(np.concatenate([first, second]), return_inverse=True)
        self.first, self.second = index[: len(first)], index[len(first) :]
        self.notes += notes
        return source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        import numpy as np

        from trainer.evaluate.classifiers import area_under_curve, cross_validated
        from trainer.evaluate.numbers import accuracy
        from trainer.evaluate.pairs import pair_measures

        found = self.bench.features(network, self.shards, self.videos, "sliding")
        keys = [key for key in found.arrays if key[1] == "max"][-STAGES:]
        means = (found.video_means(key) for key in keys)
        measured = np.concatenate([pair_measures(x, self.first, self.second) for x in means], axis=1)
        score = cross_validated(measured, self.same, self.fold)
        row = {"stage": "+".join(stage for stage, _ in keys), "pooling": "max"}
        yield {**row, "metric": "accuracy", **accuracy((score > 0) == self.same, np.arange(len(self.same)))}
        yield {**row, "metric": "AUC", "value": 100 * area_under_curve(score, self.same)}

    def conditions(self) -> dict[str, Any]:
        same, folds = 100 * self.same.mean(), len(set(self.fold.tolist()))
        return {
            "split": None,
            "mode": f"linear SVM on 12 (dis)similarities x {STAGES} stages, {folds} folds",
            "views": "all clips of 16 frames with 8 overlapping, averaged",
            "items": f"{len(self.same)} pairs of {len(self.videos)} videos, {same:.1f} % of them the same",
        }

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        return f"{super().command(name, run, shards)} --pairs FILE"
