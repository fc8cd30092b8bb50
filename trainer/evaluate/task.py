"""A run's own pretext task on videos that it was not trained on, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from trainer import data
from trainer.checkpoint import Checkpoint, check_fit, trained_splits, with_labels
from trainer.data.clips import Draw, TrainingClips
from trainer.errors import TrainerError
from trainer.evaluate.bench import Bench
from trainer.evaluate.folds import trained_on
from trainer.evaluate.progress import Progress
from trainer.evaluate.protocol import ProtocolError
from trainer.methods import method_class
from trainer.network import Network
from trainer.settings import Settings
from trainer.training.precision import exact
from trainer.training.streams import Stream

_TESTED = 2  # tag of the draws; those of training are 0 and 1
_SEED = 0  # of the draws, whatever the run's: two runs are tested on the same ones
# what of the shards decides what a method's answers mean
_MEANT = {"pace": "paces", "order": "order_clips"}


class CentreClips(TrainingClips):
    """Samples drawn as in training, but each clip the centre crop, neither mirrored nor jittered."""

    def _draw(self, kind: int, key: np.ndarray, n: int) -> Draw:
        draw, grid = super()._draw(kind, key, n), self.shards.crop_grid
        corner = (np.array(self.shards.frame_size) - self.size) // 2
        crop = int(np.abs(grid - corner).sum(1).argmin())
        view = {"crop": crop, "corner": grid[crop].astype(np.int64), "mirror": 0}
        return replace(draw, views=[dict(view) for _ in range(n)])


def unseen(bench: Bench) -> tuple[data.Shards, np.ndarray, str]:
    """The data set, which of its videos are tested, int64 rows, and which they are in words: the test part of the split, else
    its validation part, else those held out of training, else, of another data set, all. Raises TrainerError where the run saw
    all of them, or has no pretext task."""
    saved = bench.saved
    if with_labels(saved.meta["settings"]):
        raise ProtocolError(
            f"{saved.file}: was trained with class labels, not on a pretext task", "vssl eval recognition"
        )
    source = bench.source()
    for name, value in (("test", data.TEST), ("validation", data.VALIDATION)):
        if (source.part == value).any():
            return source, np.flatnonzero(source.part == value), f"{name} part"
    if source.dataset not in trained_splits(saved.meta):
        return source, np.arange(len(source.videos)), "all videos"
    held = source.trains & ~trained_on(saved.meta, source)
    if not held.any():
        raise ProtocolError(
            f"{source.dataset}: neither a test nor a validation part, and no video was held out of training",
            "train with --holdout 0.1",
        )
    return source, np.flatnonzero(held), "videos held out of training"


def network(saved: Checkpoint, source: data.Shards, pretrained: bool = True) -> tuple[nn.Module, nn.ModuleDict]:
    """The backbone of a run and its methods with their heads, averaged ones where the run has them; or as they were before
    training. Raises TrainerError where they do not fit the shards."""
    settings, config = Settings(**saved.meta["settings"]), saved.meta["config"]
    for name in settings.methods:
        key = _MEANT.get(name)
        if key and source.config[key] != config[key]:
            raise TrainerError(f"{source.folder}: {key} is {source.config[key]}, {name} was trained with {config[key]}")
    made = Network(settings, source)
    if source.dataset != saved.meta["dataset"]:
        for name, method in made.methods.items():
            if hasattr(method, "bank"):
                raise TrainerError(
                    f"{name} compares with its training videos of {saved.meta['dataset']}, not of {source.dataset}"
                )
    if not pretrained:
        return made.backbone.eval(), made.methods.eval()
    check_fit(saved.file, made, saved.weights)
    made.load_state_dict(saved.weights)
    one = made if made.ema is None else made.ema
    backbone, methods = (made.backbone, made.methods) if one is made else (one["backbone"], one["methods"])
    return backbone.eval(), methods.eval()


def samples(bench: Bench, source: data.Shards, videos: np.ndarray, name: str) -> tuple[CentreClips, str]:
    """The samples of a method among these videos (int64 rows), and a note on those left out, or "". Raises TrainerError where
    there is none."""
    tested = np.zeros(len(source.videos), bool)
    tested[videos] = True
    method, options = method_class(name), bench.saved.meta["settings"]["options"][name]
    found, left_out, why = method.samples(source.with_training_videos(tested), options)
    if not len(found):
        raise TrainerError(f"{source.dataset}: {name} can use none of the {len(videos)} videos: {left_out} {why}")
    clips = CentreClips(source, found, method, options, _SEED, "none", _TESTED)
    return clips, f"{name} leaves out: {left_out} videos {why}" if left_out else ""


def batches(bench: Bench, clips: CentreClips, draws: int, what: str) -> Iterator[tuple[data.Batch, int]]:
    """Every sample, `draws` times, as a batch of its own, so that nothing depends on other samples; and the row of its video."""
    device, number = bench.device, len(clips.samples)
    stream = Stream(clips, data.Batches(number, 1, _SEED))
    keys = [np.array([[draw, sample]]) for draw in range(draws) for sample in range(number)]
    with Progress(what, len(keys), "sample") as step:
        for raw in data.prefetch(clips, keys, bench.compute.workers, device):
            with exact(device):
                yield stream.on_device(raw, 1.0, device), int(raw["video"][0])
            step()


def answers(bench: Bench, source: data.Shards, clips: CentreClips, name: str, draws: int) -> tuple[dict, np.ndarray]:
    """Accuracies of each sample by their names, float64 [n], with "chance"; and the video of each, int64 [n].

    A sample without a valid label, of chance 0, is left out. Raises TrainerError for a method that has no accuracy.
    """
    backbone, methods = (part.to(bench.device) for part in network(bench.saved, source))
    found, owner = [], []
    none = TrainerError(f"{name} has no accuracy: its loss compares vectors, and none of them is right or wrong")
    for batch, video in batches(bench, clips, draws, f"pretext task {name}"):
        metrics = methods[name](backbone, batch)
        if "accuracy" not in metrics:
            raise none
        if float(metrics["chance"]) > 0:
            found.append(
                {key: float(value) for key, value in metrics.items() if key == "chance" or key.endswith("accuracy")}
            )
            owner.append(video)
    if not found:
        raise TrainerError(f"{source.dataset}: no sample of {name} has a valid label")
    return {key: np.array([one[key] for one in found]) for key in found[0]}, np.array(owner)
