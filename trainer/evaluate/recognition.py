"""Action recognition: the classifier of a finetuned network on the test videos. [thesis 3.4, vcop 4.3]"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from labelgen.shards import open_shards
from trainer import data
from trainer.checkpoint import Checkpoint, with_labels
from trainer.errors import TrainerError
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, features, networks
from trainer.evaluate.folds import accuracies, covers, seen, trained_on

_HEAD = "methods.recognition.head."
_MAY_DIFFER = (
    "split",
    "seed",
    "compile",
    "workers",
    "device",
    "checkpoint_every",
    "log_every",
)  # between runs averaged


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


def recognition(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
) -> dict:
    """Clip and video accuracy of a run that was trained with method `recognition`; written into the run's folder, too.

    checkpoint: run, checkpoint folder or .safetensors file, None for the newest run; several of them, each of another
    split of one data set, give one accuracy per split and, written into the first one's folder, their mean.
    split: the run's own one; of a data set that it was not trained on, any.
    10 clips per video, centre crop; a video's prediction is the mean softmax of its clips.

    Raises TrainerError for a run without a classifier, for another split than the run's, for runs that cannot be averaged,
    and what checkpoint.load raises.
    """
    paths = [checkpoint] if checkpoint is None or isinstance(checkpoint, (str, os.PathLike)) else list(checkpoint)
    runs = [protocol.open_checkpoint(path) for path in paths]
    for saved in runs:
        _check_classifier(saved)
    if len(runs) > 1:
        _check_alike(shards, runs, split)
    scored = [_score(shards, saved, split, compute) for saved in runs]
    for one in scored:
        result = _result([one])
        protocol.write(result, one.saved.run, "recognition")
    if len(runs) > 1:
        result = _result(scored)
        protocol.write(result, runs[0].run, "recognition")
    return result


def _check_classifier(saved: Checkpoint) -> None:
    if not with_labels(saved.meta["settings"]):
        raise TrainerError(
            f"{saved.file}: a network trained with {saved.meta['settings']['method']} has no classifier; finetune it first: "
            f"vssl finetune --checkpoint {shlex.quote(str(saved.run))}"
        )


def _check_alike(shards: str | os.PathLike, runs: list[Checkpoint], split) -> None:
    if split is not None:
        raise TrainerError(f"--split {split}: each of several checkpoints is tested on its own split, leave it out")
    dataset = open_shards(shards)[0].config["dataset"]
    for saved in runs:
        if saved.meta["dataset"] != dataset:
            raise TrainerError(
                f"{saved.file}: trained on {saved.meta['dataset']}, {shards} holds {dataset}; a mean is over splits of one"
            )
        if saved.meta["classes"] != runs[0].meta["classes"]:
            raise TrainerError(f"{saved.file}: other classes than {runs[0].file}, a mean over them says nothing")
        for name, value in saved.meta["settings"].items():
            first = runs[0].meta["settings"][name]
            if name not in _MAY_DIFFER and value != first:
                raise TrainerError(
                    f"{saved.file}: {name} is {value}, of {runs[0].file} it is {first}; average like runs"
                )
    splits = [saved.meta["split"] for saved in runs]
    if len(set(splits)) < len(splits):
        raise TrainerError(f"the checkpoints are of splits {', '.join(map(str, splits))}; a mean needs each one once")


def _score(shards: str | os.PathLike, saved: Checkpoint, split: str | int | None, compute: Compute) -> Scored:
    source, mode, tested, notes = _tested(shards, saved, split)
    classes = saved.meta["classes"]
    index = {name: i for i, name in enumerate(classes)}
    targets = np.array([index.get(label, -1) for label in source.text("videos/label")])
    unknown = int((tested & (targets < 0)).sum())
    if unknown:
        notes.append(f"{unknown} videos left out, whose class the network does not know")
    videos = np.flatnonzero(tested & (targets >= 0))
    if not len(videos):
        raise TrainerError(f"{source.dataset}: the network knows the class of none of its {unknown} videos to test")
    backbone = networks(saved)["pretrained"]
    found = features(saved, "pretrained", backbone, source, source.videos[videos], "spread", compute)
    stage = max(stage for stage, _ in found.arrays)
    clips = softmax(np.asarray(found.arrays[stage, "mean"]), *head(saved))
    if np.bincount(found.owner, minlength=len(videos)).min() == 0 or len(clips) != len(found.owner):
        raise AssertionError(f"{len(videos)} videos to score, {len(np.unique(found.owner))} scored")
    notes += seen(saved, shards, source, videos)
    return Scored(saved, source, classes, videos, targets[videos], clips, found.owner, mode, notes)


def _tested(shards, saved: Checkpoint, split) -> tuple[data.Shards, str, np.ndarray, list[str]]:
    """The data set, how its videos are chosen, which (bool [videos], labelled ones), and notes."""
    meta = saved.meta
    own = open_shards(shards)[0].config["dataset"] == meta["dataset"]
    source = data.Shards(shards, meta["split"] if own and split is None else split)
    if own and source.split != meta["split"]:
        raise TrainerError(
            f"--split {split}: the run was trained on split {meta['split']} of {source.dataset}, whose training videos the "
            f"other split tests; leave --split out, or finetune on it: vssl finetune --split {split}"
        )
    test, train, mode, notes = protocol.parts(source)
    if not (test & train).any():
        return source, mode.replace("against train part", "of the split"), test, notes
    unseen = test & ~trained_on(meta, shards, source)
    if not own:
        return source, "all labelled videos", test, notes
    if not unseen.any():
        return source, "TRAINING videos, no others are left", test, notes
    if meta["settings"]["holdout"]:
        notes = [*notes, "the videos held out of training also chose its checkpoint: the value is too high"]
    return source, "no test part: the labelled videos that were not trained on", unseen, notes


def head(saved: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Weight float32 [classes, features] and bias [classes] of the classifier, averaged ones where the run has them."""
    prefix = "ema." * (f"ema.{_HEAD}weight" in saved.weights)
    return tuple(saved.weights[f"{prefix}{_HEAD}{name}"].float().numpy() for name in ("weight", "bias"))


def softmax(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Class probabilities float64 [n, classes] of features float32 [n, d]."""
    logits = x.astype(np.float64) @ weight.T + bias
    return torch.softmax(torch.from_numpy(logits), 1).numpy()


def _result(scored: list[Scored]) -> dict:
    first, names = scored[0], [one.source.split for one in scored]
    splits = names if len(scored) > 1 else ()
    tested = np.zeros(len(first.source.videos), np.int64)
    for one in scored:
        tested[one.videos] += 1
    pooled = len(scored) == 1 or covers(first.source, tested)
    rows = []
    for level in ("clip", "video"):
        for metric, k in {"accuracy": 1, "top-5": 5}.items():
            if len(first.classes) > k:
                hits, owners = zip(*(one.hits(level, k) for one in scored), strict=True)
                row = {"level": level, "metric": metric}
                rows += [{**row, **score} for score in accuracies(hits, owners, splits, pooled)]
    hits, owners = (np.concatenate(own) for own in zip(*(one.hits("video") for one in scored), strict=True))
    targets = np.concatenate([one.targets for one in scored])
    for number in np.unique(targets):
        own = targets == number
        row = {"level": "video", "metric": "class accuracy", "class": first.classes[number], "videos": int(own.sum())}
        rows.append({**row, **protocol.accuracy(hits[own], owners[own])})
    counts = np.zeros((len(first.classes),) * 2, np.int64)
    predicted = np.concatenate([one.level("video")[0].argmax(1) for one in scored])
    np.add.at(counts, (targets, predicted), 1)

    how = "each video once" if pooled else "mean"
    told = protocol.describe(
        first.saved,
        first.source,
        networks(first.saved)["pretrained"],
        split=None if splits else first.source.split,
        mode=f"{how} over splits {', '.join(map(str, splits))}, {first.mode}" if splits else first.mode,
        views="10 clips of 16 frames, mean softmax",
        items=f"{len(targets)} videos",
        classes=len(np.unique(targets)),
        largest_class=round(100 * float(np.bincount(targets).max() / len(targets)), 1),
        checkpoints=[str(one.saved.file) for one in scored],
    )
    notes = [f"split {one.source.split}: " * bool(splits) + note for one in scored for note in one.notes]
    confusion = {"classes": first.classes, "counts": counts.tolist()}
    return {"protocol": told, "rows": rows, "notes": notes, "confusion": confusion}


def format_table(result: dict) -> str:
    """The result of `recognition` for the screen: accuracies, classes from best to worst, and the confusions."""
    lines = protocol.header(result, "recognition")
    initial = result["protocol"]["initial"]
    started = f"{initial['settings']['method']} on {initial['dataset']}, {initial['file']}" if initial else None
    lines.insert(-1, f"started from {started or 'random weights'}")
    whole = [row for row in result["rows"] if row["metric"] != "class accuracy"]
    lines += protocol.table(whole, ("split",) if "split" in whole[0] else (), ("level", "metric"))
    classes = [
        {"class": row["class"], "videos": row["videos"], "taken for": _mistakes(result["confusion"], row["class"])}
        | {"metric": row["metric"], "value": row["value"]}  # of few videos each: without the interval
        for row in result["rows"]
        if row["metric"] == "class accuracy"
    ]
    classes.sort(key=lambda row: -row["value"])
    lines += ["", *protocol.table(classes, ("class", "videos", "taken for"), ("metric",))]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _mistakes(confusion: dict, name: str) -> str:
    """The three classes that videos of a class are most often taken for, with their number."""
    own = confusion["classes"].index(name)
    counts = confusion["counts"][own]
    others = sorted((i for i, count in enumerate(counts) if count and i != own), key=lambda i: -counts[i])
    return ", ".join(f"{confusion['classes'][i]} {counts[i]}" for i in others[:3])
