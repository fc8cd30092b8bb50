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
        "Pairs of videos, `--pairs`: ASLAN's own `View2.mat` (`action_splits_pairs`, 600 x 5 x 10), whose sample 1 is the video "
        "`0001.avi`, or a CSV file with the columns `fold,first,second,same` (a line: `1,clip_0001.avi,clip_0002.avi,1`); a "
        "video by its id or file name, with or without extension, or by its number. A video is the mean of its sliding clips. "
        "`--dataset aslan` takes the folder of the videos, whose archive holds 3,697 samples (papers count 3,631)."
    )
    classifier = (
        "A linear SVM on 12 (dis)similarities of the two videos' features at the three deepest stages, standardised on the "
        "training folds; accuracy over all pairs, with an interval over pairs; as papers report "
        "it, the mean over the folds and its standard error (deviation of the folds / root of their number); the area under one "
        "ROC curve through the decision values of all folds, by trapezoids. With folds that are alike, as ASLAN's of 300 same "
        "and 300 different pairs, that curve is the one of average true and false positive rates on ASLAN's results page; "
        "ASLAN's own code (`WYtotable.m`, by its ReadMe: accuracy, standard error and AUC, of scores, labels and split numbers) "
        "could not be read."
    )
    left_out = "Pairs of which a video is not in the shards; they are counted."
    source = "Kliper-Gross et al., PAMI 2012; thesis 3.6.4."
    options = (Option("pairs", Path, "ASLAN's View2.mat, or a CSV file: fold,first,second,same.", shared=True),)

    def choose(self, pairs: str | os.PathLike | None = None) -> Shards:
        import numpy as np

        from trainer.evaluate.pairs import read_pairs
        from trainer.evaluate.tally import Tally

        if pairs is None:
            raise ProtocolError("similarity needs the list of pairs", f"--pairs FILE ({','.join(COLUMNS)})")
        source = self.bench.source()
        self.fold, first, second, self.same, notes = read_pairs(Path(pairs), source)
        self.videos, index = np.unique(np.concatenate([first, second]), return_inverse=True)
        self.first, self.second = index[: len(first)], index[len(first) :]
        self.notes += notes
        ids = source.text("videos/id")
        pairs = [f"{ids[one]} | {ids[two]}" for one, two in zip(first, second, strict=True)]
        words = np.array(["different", "same"])
        # numbered, since a list may hold a pair twice
        self.tally = Tally(
            [f"{i}: {pair}" for i, pair in enumerate(pairs)], words[self.same.astype(int)], [""] * len(pairs), words
        )
        return source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        import numpy as np

        from trainer.evaluate.classifiers import area_under_curve, cross_validated
        from trainer.evaluate.pairs import pair_measures

        found = self.bench.features(network, self.shards, self.videos, "sliding")
        keys = [key for key in found.arrays if key[1] == "max"][-STAGES:]
        means = (found.video_means(key) for key in keys)
        measured = np.concatenate([pair_measures(x, self.first, self.second) for x in means], axis=1)
        score = cross_validated(measured, self.same, self.fold)
        row = {"stage": "+".join(stage for stage, _ in keys), "pooling": "max"}
        hit, pairs = (score > 0) == self.same, np.arange(len(self.same))
        yield {**row, "metric": "accuracy", **self.tally.accuracy(hit, pairs, (score > 0).astype(int))}
        folds = [self.fold == number for number in np.unique(self.fold)]
        of_folds = [100 * hit[fold].mean() for fold in folds]
        yield {**row, "metric": "mean over folds", "value": float(np.mean(of_folds))}
        yield {**row, "metric": "standard error", "value": float(np.std(of_folds, ddof=1) / np.sqrt(len(folds)))}
        yield {**row, "metric": "AUC", "value": 100 * area_under_curve(score, self.same)}

    def conditions(self) -> dict[str, Any]:
        import numpy as np

        same, folds = 100 * self.same.mean(), len(set(self.fold.tolist()))
        return {
            "split": None,
            "mode": f"linear SVM on 12 (dis)similarities x {STAGES} stages, {folds} folds",
            "views": f"all clips of {(length := self.shards.clip_length)} frames with {length // 2} overlapping, averaged",
            "items": f"{len(self.same)} pairs of {len(self.videos)} videos, {same:.1f} % of them the same",
            "intervals": self.tally.drawn(np.arange(len(self.same))),
        }

    @classmethod
    def command(cls, name: str, run: str, shards: str) -> str:
        return f"{super().command(name, run, shards)} --pairs FILE"
