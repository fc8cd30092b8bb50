"""Linear probe: a logistic regression on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.evaluate.protocol import FoldProtocol

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from trainer.data import Shards


class Linear(FoldProtocol):
    """Train a logistic regression on frozen features."""

    title = "Linear probe"
    question = "Does a linear classifier tell the classes from frozen features?"
    items = (
        "Each video, the mean of its 10 spread clips. Without a test part one group (an actor, say) is left out at a time where "
        "there are 2 to 30 of them, else 5 stratified folds that keep groups together. `--split all` uses each official split in "
        "turn: where they test every video once the predictions are pooled, else the mean is given."
    )
    classifier = (
        "Multinomial logistic regression (scikit-learn, L2) on features standardised on the training part and divided by "
        "the root of their number; C of .1 to 1e4 by a 5-fold cross-validation of the training part that keeps source groups "
        "whole, of equals the smallest."
    )
    left_out = "Videos without a label. Test videos whose class has no training video count as wrong."
    source = "Ours."
    index = ("network", "stage", "pooling", "C")
    steps = 6  # classifiers.PROBE_STEPS

    def choose(self) -> Shards:
        self.unfinished = 0  # fits that did not converge
        return super().choose()

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always", ConvergenceWarning)
            rows = [*super().rows_of(network, backbone)]
        for warning in met:
            if warning.category is ConvergenceWarning:
                self.unfinished += 1
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        yield from rows

    def scores(self, items: list[tuple[np.ndarray, np.ndarray]], level: str) -> Iterator[dict]:
        import numpy as np

        from trainer.evaluate.classifiers import probe
        from trainer.evaluate.folds import groups_of, of_videos

        source, hits, names, chosen = self.plan.source, [], [], []
        groups, ids = groups_of(source), np.array(source.text("videos/id"))
        for test, train in self.plan.parts:
            x, videos = of_videos(items, train)
            order = np.argsort(ids[videos])  # so that the order of the shards has no effect
            x, videos = x[order], videos[order]
            wanted = of_videos(items, test)[0]
            predicted, strength = probe(x, source.targets[videos], groups[videos], wanted, self.step)
            hits.append(predicted == source.targets[test])
            names.append(predicted)
            chosen.append(strength)
        alone = [f"{strength:g}" for strength in chosen] if self.plan.splits else []
        together = f"{min(chosen):g}" if len(set(chosen)) == 1 else f"{min(chosen):g} to {max(chosen):g}"
        scores = self.plan.scores(hits, [test for test, _ in self.plan.parts], names)
        for score, c in zip(scores, [*alone, together], strict=True):
            yield {"metric": "accuracy", **score, "dimensions": x.shape[1], "C": c}

    def remarks(self) -> list[str]:
        import numpy as np

        from trainer.evaluate.classifiers import ITERATIONS
        from trainer.evaluate.folds import groups_of

        groups, notes = groups_of(self.plan.source), []
        alone = sum(len(np.unique(groups[train])) == 1 for _, train in self.plan.parts)
        if alone:
            notes.append(f"in {alone} folds all training videos are one group: C was chosen by single videos")
        if self.unfinished:
            fits = f"{self.unfinished} fits, those that choose C included"
            notes.append(f"{fits}, ended unconverged after {ITERATIONS} iterations")
        return notes

    def conditions(self) -> dict[str, Any]:
        classifier = "logistic regression, L2, standardised"
        views = f"10 clips of {self.shards.clip_length} frames, averaged"
        return {**super().conditions(), "views": views, "classifier": classifier}
