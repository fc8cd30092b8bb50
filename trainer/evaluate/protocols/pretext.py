"""Pretext task: how often is the run's task solved on videos that it was not trained on?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate.protocol import Protocol, ProtocolOption
from trainer.evaluate.protocols import (
    checkpoint,
    data,
    evaluator,
    inputs,
    methods,
    metrics,
    network,
    np,
    precision,
    progress,
    settings,
    splits,
    streams,
)

_TESTED = 2  # tag of these draws; training uses 0 and 1
_SEED = 0  # seed of the draws, not that of the run, so that all runs are tested on the same draws


class Pretext(Protocol):
    """Test the pretext task that the run was trained on, such as order or pace."""

    title = "Pretext task"
    question = "How often is the run's pretext task solved on videos that it was not trained on?"
    items = (
        "The method's samples from the split's test part, else from its validation part, else from the videos held out of "
        "training (`--holdout`); from all videos of another data set without these parts. `--draws` draws of each (default 1; "
        "`pace` and `order` use the stored row of that number) depend only on the data set, so that all runs answer the same "
        "questions. Centre crop, no mirroring, no jitter, each sample in a separate batch."
    )
    classifier = (
        "The run's heads, with the accuracy that the method logs in training, averaged over samples. `statistics`: a sample is a "
        "clip, its accuracy that of its valid labels; `skip_clip`: the share of pairs of frames ranked correctly; `tce`: how "
        "often the positive is picked among the negatives mined from the bank; `rotation accuracy` is that of the rotation "
        "head of these two. Chance is given for comparison."
    )
    left_out = (
        "Videos too short for the method; clips without a valid label; `ascnet`, `simclr`, `byol` and `lejepa`, whose "
        "losses compare vectors of several samples."
    )
    source = "Xu et al., CVPR 2019, tab. 1 (order); thesis tab. 4.1 (pace)."
    options = (ProtocolOption("draws", int, "Number of draws of every sample.", default=1, least=1),)
    index = ("method", "network")
    published = ()

    scores: metrics.ItemScores

    def choose(self, draws: int = 1) -> data.Shards:
        source, self.videos, self.mode = unseen(self.evaluator)
        self.scores, self.draws = metrics.ItemScores.of(source), draws
        self.samples: dict[str, data.CentreClips] = {}
        for name in self.evaluator.saved.meta["settings"]["method"].split("+"):
            self.samples[name], note = samples(self.evaluator, source, self.videos, name)
            self.notes += [note] if note else []
            stored, _ = methods.method_class(name).stored_draws(source.config, self.samples[name].options) or ("", 0)
            if stored == "rows" and draws > (rows := source.config["rows"]):
                self.notes.append(
                    f"{name}: only {rows} rows are stored, so that the later ones of {draws} draws repeat them"
                )
        return source

    def rows(self) -> Iterator[dict]:
        """The accuracies of each method, and chance."""
        answered, self.number = [], 0
        for name, clips in self.samples.items():
            found, owner = answers(self.evaluator, self.shards, clips, name, self.draws)
            answered.append(owner)
            self.number += len(owner)
            by_chance = {"accuracy": found.pop("chance")}
            for key, right in found.items():
                row = {"method": name, "metric": key.replace("_", " ")}
                chance = by_chance.get(key, np.full(len(owner), methods.method_class(name).chances.get(key)))
                yield {"network": "pretrained", **row, **self.scores.accuracy(right, owner, chance=chance)}
                yield {"network": "chance", **row, "value": 100 * float(chance.mean())}
        self.videos = np.unique(np.concatenate(answered))

    def conditions(self) -> dict[str, Any]:
        return {
            "mode": f"{self.mode}, seed of the draws 0",
            "views": f"{self.draws} draws of each sample, centre crop",
            "items": f"{self.number} samples of {len(self.videos)} videos",
            "intervals": self.scores.describe_units(self.videos),
        }

    def tested(self) -> np.ndarray:
        return self.videos


def unseen(evaluator: evaluator.Evaluator) -> tuple[data.Shards, np.ndarray, str]:
    """The data set, the tested videos, int64 rows, and a description of them (see splits.unseen). Raises ProtocolError if the
    run was trained on all videos, or has no pretext task."""
    saved = evaluator.saved
    if checkpoint.with_labels(saved.meta["settings"]):
        raise ProtocolError(f"{saved.file}: trained with class labels, not on a pretext task", "vssl eval recognition")
    if saved.meta["settings"]["method"] == checkpoint.IMPORTED:
        raise ProtocolError(
            f"{saved.file}: imported weights, whose pretext task is unknown; continue training with one",
            f"vssl train --from {shlex.quote(str(saved.run))}",
        )
    source = evaluator.source()
    return source, *splits.unseen(saved, source)


def samples(
    evaluator: evaluator.Evaluator, source: data.Shards, videos: np.ndarray, name: str
) -> tuple[data.CentreClips, str]:
    """The samples of a method from these videos (int64 rows), and a note on the videos left out, or "". Raises TrainerError if
    there is no sample."""
    tested = np.isin(np.arange(len(source.videos)), videos)
    method, options = methods.method_class(name), evaluator.saved.meta["settings"]["options"][name]
    found, left_out, why = method.samples(source.with_training_videos(tested), options)
    if not len(found):
        raise TrainerError(f"{source.dataset}: {name} can use none of the {len(videos)} videos: {left_out} {why}")
    clips = data.CentreClips(source, found, method, options, _SEED, "none", _TESTED)
    return clips, f"{name} leaves out: {left_out} videos {why}" if left_out else ""


def trained(evaluator: evaluator.Evaluator, source: data.Shards, name: str, pretrained: bool = True) -> tuple[Any, Any]:
    """The backbone of a run and one of its methods with its head: with the averaged weights if the run has them, or, if not
    pretrained, as they were before training. Raises TrainerError if they do not fit the shards."""
    saved = evaluator.saved
    trained_with, config = settings.Settings(**saved.meta["settings"]), saved.meta["config"]
    for learnt in trained_with.methods:
        for key in methods.method_class(learnt).answers_depend_on:
            if source.config[key] != config[key]:
                raise TrainerError(
                    f"{source.folder}: {key} is {source.config[key]}, {learnt} was trained with {config[key]}"
                )
        if methods.method_class(learnt).remembers_videos and source.dataset != saved.meta["dataset"]:
            raise TrainerError(
                f"{learnt} compares with its training videos of {saved.meta['dataset']}, not of {source.dataset}"
            )
    made = network.Network(trained_with, source, network.build_backbone(trained_with, saved.meta))
    if pretrained:
        checkpoint.check_fit(saved.file, made, saved.weights)
        made.load_state_dict(saved.weights)
    parts: Any = {"backbone": made.backbone, "methods": made.methods}
    if pretrained and made.ema is not None:
        parts = made.ema
    backbone, method = parts["backbone"], parts["methods"][methods.module_name(name)]
    return backbone.eval().to(evaluator.device), method.eval().to(evaluator.device)


def batches(
    evaluator: evaluator.Evaluator, clips: data.CentreClips, draws: int, what: str
) -> Iterator[tuple[data.Batch, int]]:
    """Yield every sample `draws` times with the row of its video, each in a separate batch, so that nothing depends on other
    samples."""
    device, number = evaluator.device, len(clips.samples)
    stream = streams.Stream(clips, data.Batches(number, 1, _SEED), inputs.of_run(evaluator.saved.meta))
    keys = [np.array([[draw, sample]]) for draw in range(draws) for sample in range(number)]
    with progress.ProgressBar(what, "sample", len(keys)) as bar:
        for raw in data.prefetch(clips, keys, evaluator.compute.workers, device):
            with precision.exact(device):
                yield stream.on_device(raw, 1.0, device), int(raw["video"][0])
            bar.step()


def answers(
    evaluator: evaluator.Evaluator, source: data.Shards, clips: data.CentreClips, name: str, draws: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The accuracies of each sample by their names, float64 [n], including "chance"; and the video of each, int64 [n].

    Samples without a valid label, whose chance is 0, are left out. Raises TrainerError for a method that has no accuracy.
    """
    backbone, method = trained(evaluator, source, name)
    none = TrainerError(f"{name} has no accuracy of single samples, because its loss compares vectors")
    if not method.scored:
        raise none
    found, owner = [], []
    for batch, video in batches(evaluator, clips, draws, f"pretext task {name}"):
        metrics = method(backbone, batch)
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
