"""What the classifier of a finetuned run says of the videos that it is tested on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np
import torch

from trainer import data
from trainer.checkpoint import Checkpoint, with_labels
from trainer.errors import TrainerError
from trainer.evaluate.bench import Bench, parts
from trainer.evaluate.features import VIEWS, stage_outputs
from trainer.evaluate.folds import seen, trained_on
from trainer.evaluate.protocol import ProtocolError
from trainer.methods.parts import branch
from trainer.settings import DECLARATIONS

_HEAD = "methods.recognition.head."
# settings that runs whose results are averaged may differ in
_MAY_DIFFER = {"split", "seed"} | {name for name, declaration in DECLARATIONS.items() if declaration.may_change}


@dataclass(frozen=True)
class Scored:
    """One run's predictions.

    videos: int64 [n], rows of source.videos; targets: int64 [n], index into `classes`, the network's
    clips: float64 [clips, classes], softmax; owner: int64 [clips], index into videos
    """

    saved: Checkpoint
    source: data.Shards
    classes: list[str]
    videos: np.ndarray
    targets: np.ndarray
    clips: np.ndarray
    owner: np.ndarray
    mode: str
    notes: list[str]

    def level(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Softmax float64 [items, classes], of a video the mean over its clips, and each item's index into videos."""
        if name == "clip":
            return self.clips, self.owner
        sums = np.add.reduceat(self.clips, np.flatnonzero(np.diff(self.owner, prepend=-1)))
        return sums / np.bincount(self.owner)[:, None], np.arange(len(self.videos))

    def hits(self, level: str, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Whether an item's class is among the k most probable (of equals the first), bool [items], and the row of
        source.videos of each."""
        probability, video = self.level(level)
        best = np.argsort(-probability, axis=1, kind="stable")[:, :k]
        return (best == self.targets[video][:, None]).any(1), self.videos[video]


def check_runs(bench: Bench) -> None:
    """Raises TrainerError for a run without a classifier, and for runs whose results cannot be averaged."""
    for saved in bench.runs:
        if not with_labels(saved.meta["settings"]):
            raise ProtocolError(
                f"{saved.file}: a network trained with {saved.meta['settings']['method']} has no classifier; finetune it first",
                f"vssl finetune --checkpoint {shlex.quote(str(saved.run))}",
            )
    if len(bench.runs) > 1:
        _check_alike(bench)


def _check_alike(bench: Bench) -> None:
    if bench.split is not None:
        raise TrainerError(f"split {bench.split}: each of several checkpoints is tested on its own split, leave it out")
    first = bench.saved
    for saved in bench.runs:
        if saved.meta["dataset"] != bench.dataset:
            raise TrainerError(
                f"{saved.file}: trained on {saved.meta['dataset']}, {bench.folder} holds {bench.dataset}; a mean is over splits "
                "of one"
            )
        if saved.meta["classes"] != first.meta["classes"]:
            raise TrainerError(f"{saved.file}: other classes than {first.file}, a mean over them says nothing")
        if (began := _began(saved)) != (other := _began(first)):
            raise TrainerError(f"{saved.file}: started from {began}, {first.file} from {other}; average like runs")
        for name, value in saved.meta["settings"].items():
            other = first.meta["settings"][name]
            if name not in _MAY_DIFFER and value != other:
                raise TrainerError(f"{saved.file}: {name} is {value}, of {first.file} it is {other}; average like runs")
    splits = [saved.meta["split"] for saved in bench.runs]
    if len(set(splits)) < len(splits):
        raise TrainerError(f"the checkpoints are of splits {', '.join(map(str, splits))}; a mean needs each one once")


def _began(saved: Checkpoint) -> str:
    """What a run started from, in words."""
    initial = saved.meta["initial"]
    return f"{initial['settings']['method']} on {initial['dataset']}" if initial else "random weights"


def score(bench: Bench, saved: Checkpoint, views: str = "spread") -> Scored:
    """The predictions of a run of the bench; views: a name of features.VIEWS. Raises TrainerError for another split than the
    run's, and where it knows no class of the videos."""
    source, mode, tested, notes = _tested(bench, saved)
    classes = saved.meta["classes"]
    index = {name: i for i, name in enumerate(classes)}
    targets = np.array([index.get(label, -1) for label in source.text("videos/label")])
    unknown = int((tested & (targets < 0)).sum())
    if unknown:
        notes.append(f"{unknown} videos left out, whose class the network does not know")
    videos = np.flatnonzero(tested & (targets >= 0))
    if not len(videos):
        raise TrainerError(f"{source.dataset}: the network knows the class of none of its {unknown} videos to test")
    if saved.meta["settings"]["options"]["recognition"].get("hidden"):
        clips, owner = _through_hidden_layers(bench, saved, source, videos, views)
    else:
        found = bench.features("pretrained", source, videos, views, saved)
        stage = [stage for stage, _ in found.arrays][-1]
        clips, owner = softmax(np.asarray(found.arrays[stage, "mean"]), *head(saved)), found.owner
    if np.bincount(owner, minlength=len(videos)).min() == 0 or len(clips) != len(owner):
        raise AssertionError(f"{len(videos)} videos to score, {len(np.unique(owner))} scored")
    notes += seen(saved, source, videos)
    return Scored(saved, source, classes, videos, targets[videos], clips, owner, mode, notes)


def _through_hidden_layers(
    bench: Bench, saved: Checkpoint, source: data.Shards, videos: np.ndarray, views: str
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax float64 [clips, classes] of a classifier with hidden layers, which the stored features are no input of, and
    each clip's index into videos. Raises TrainerError for clips of another size than the run's, which do not fit them."""
    options, config = saved.meta["settings"]["options"]["recognition"], saved.meta["config"]
    for name in ("crop", "clip_length"):
        if source.config[name] != config[name]:
            raise TrainerError(
                f"{saved.file}: the hidden layers of its classifier fit {name} {config[name]}, {source.folder} has "
                f"{source.config[name]}"
            )
    weights = _classifier(saved)
    clips = data.VideoViews(source, source.videos[videos], VIEWS[views])
    layers = branch(weights["2.weight"].shape[1], options["hidden"], len(saved.meta["classes"]), options["dropout"])
    layers.load_state_dict(weights)
    layers.double().eval().requires_grad_(False)
    found = np.empty((len(clips), len(saved.meta["classes"])))
    for index, stages in stage_outputs(bench.networks(saved)["pretrained"], clips, bench.compute):
        logits = layers([*stages.values()][-1].double().cpu())
        if not logits.isfinite().all():
            raise TrainerError("the network gives values that are not finite: the weights are damaged")
        found[index] = torch.softmax(logits, 1).numpy()
    return found, clips.owner


def _tested(bench: Bench, saved: Checkpoint) -> tuple[data.Shards, str, np.ndarray, list[str]]:
    """The data set, how its videos are chosen, which (bool [videos], labelled ones), and notes."""
    meta, source = saved.meta, bench.source(saved)
    same = source.dataset == meta["dataset"]
    if same and source.split != meta["split"]:
        raise ProtocolError(
            f"split {bench.split}: the run was trained on split {meta['split']} of {source.dataset}, whose training videos the "
            "other split tests",
            f"leave --split out, or finetune on it, vssl finetune --split {bench.split}",
        )
    test, train, mode, notes = parts(source)
    if not (test & train).any():
        return source, mode.replace("against train part", "of the split"), test, notes
    unseen = test & ~trained_on(meta, source)
    if not same:
        return source, "all labelled videos", test, notes
    if not unseen.any():
        return source, "TRAINING videos, no others are left", test, notes
    if meta["settings"]["holdout"]:
        notes = [*notes, "the videos held out of training also chose its checkpoint: the value is too high"]
    return source, "no test part: the labelled videos that were not trained on", unseen, notes


def head(saved: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Weight float32 [classes, features] and bias [classes] of the classifier, averaged ones where the run has them."""
    weights = _classifier(saved)
    return weights["weight"].float().numpy(), weights["bias"].float().numpy()


def _classifier(saved: Checkpoint) -> dict[str, torch.Tensor]:
    """Weights of the classifier's layers by name, averaged ones where the run has them."""
    prefix = f"ema.{_HEAD}" if any(name.startswith(f"ema.{_HEAD}") for name in saved.weights) else _HEAD
    return {name.removeprefix(prefix): weight for name, weight in saved.weights.items() if name.startswith(prefix)}


def softmax(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Class probabilities float64 [n, classes] of features float32 [n, d]."""
    logits = x.astype(np.float64) @ weight.T + bias
    return torch.softmax(torch.from_numpy(logits), 1).numpy()
