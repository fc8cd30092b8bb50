"""The run's own pretext task: how often is it solved on videos that it was not trained on?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.evaluate.protocol import Option, Protocol

if TYPE_CHECKING:
    import numpy as np

    from trainer.data import Shards

_ROTATIONS = 4


class Pretext(Protocol):
    """Test the pretext task that the run was trained on: order, pace, rotation, ..."""

    title = "Pretext task"
    question = "How often is the run's own pretext task solved on videos that it was not trained on?"
    items = (
        "The method's samples of the split's test part, else of its validation part, else of the videos held out of training "
        "(`--holdout`); of another data set without parts all. `--draws` of each (default 1; `pace` and `order` take the stored "
        "row of that number): a function of the data set alone, so that all runs answer the same questions. Centre crop, not "
        "mirrored, no jitter, each sample by itself."
    )
    classifier = (
        "The run's own heads: the accuracy that the method logs in training, mean over samples. `statistics`: a sample is a "
        "clip, its accuracy that of its valid labels; `skip_clip`: pairs of frames ranked right; `tce`: the positive picked "
        "among the negatives mined from the bank; `rotation accuracy` is that of their rotation head. Beside it chance: guessing."
    )
    left_out = "Videos too short for the method; clips without a valid label; `ascnet`, which has no accuracy."
    source = "Xu et al., CVPR 2019, tab. 1 (order); thesis tab. 4.1 (pace)."
    options = (Option("draws", int, "Draws of every sample.", default=1, least=1),)
    index = ("method", "network")
    published = ()

    def choose(self, draws: int = 1) -> Shards:
        from trainer.evaluate.task import samples, unseen

        source, self.videos, self.mode = unseen(self.bench)
        self.draws, self.found = draws, {}
        for name in self.bench.saved.meta["settings"]["method"].split("+"):
            self.found[name], note = samples(self.bench, source, self.videos, name)
            self.notes += [note] if note else []
            stored = {"pace": source.config["rows"], "order": source.config["rows"]}.get(name, draws)
            if draws > stored:
                self.notes.append(f"{name}: {stored} rows are stored, of {draws} draws the later ones repeat them")
        return source

    def rows(self) -> list[dict]:
        """Accuracies of each method, and chance."""
        import numpy as np

        from trainer.evaluate.tally import Tally
        from trainer.evaluate.task import answers

        self.tally = Tally.of(self.shards)
        rows, tested, self.number = [], [], 0
        for name, clips in self.found.items():
            found, owner = answers(self.bench, self.shards, clips, name, self.draws)
            guessed = {"accuracy": 100 * float(found.pop("chance").mean())}
            for key, right in found.items():
                row = {"method": name, "metric": key.replace("_", " ")}
                rows.append({"network": "pretrained", **row, **self.tally.accuracy(right, owner)})
                rows.append({"network": "chance", **row, "value": guessed.get(key, 100 / _ROTATIONS)})
            tested.append(owner)
            self.number += len(owner)
        self.videos = np.unique(np.concatenate(tested))
        return rows

    def conditions(self) -> dict[str, Any]:
        return {
            "mode": f"{self.mode}, seed of the draws 0",
            "views": f"{self.draws} draws of each sample, centre crop",
            "items": f"{self.number} samples of {len(self.videos)} videos",
            "intervals": self.tally.drawn(self.videos),
        }

    def tested(self) -> np.ndarray:
        return self.videos
