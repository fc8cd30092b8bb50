"""Measures a run (or features) on shards: a result, or the score of every video. `vssl eval` and studies use it.

Evaluator(shards, run).measure("linear")  # all networks, stages, poolings and levels; written into the run's folder
Evaluator(opened).scores("linear", Selection("conv5", "mean", parts=2, features=found, test=test, train=train))
Evaluator(opened).scores("knn", Selection(LAST, "max", features=found, test=test, train=train), k=5)  # or "retrieval"
Evaluator(opened).scores("smoothness", Selection("conv5", "max", features=found, test=test))
Evaluator(shards, run).scores("recognition")  # a finetuned run
Evaluator(shards, run, split).scores("pretext", draws=2)  # the first method of the run, with chance
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from labelgen.errors import VsslError
from labelgen.progress import busy
from trainer import data, distributed, inputs
from trainer.checkpoint import Checkpoint, load, newest_run, trained_splits, versions, with_labels
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS, features, protocol_class, results, splits
from trainer.evaluate.features import COMPUTE, Compute, Features
from trainer.evaluate.metrics import ANSWERS, NORMAL

LAST = "last"  # the last stage of the network


@dataclass(frozen=True)
class Selection:
    """What `Evaluator.scores` measures, instead of all networks, stages, poolings and levels.

    Parameters
    ----------
    stage, pooling : str
        Which features; stage LAST is the last one of the network.
    parts : int
        Number of equal parts of a video's time, whose mean features are concatenated.
    features : Features
        Of every video of the shards, in the order of Shards.videos, with any number of clips; None: those of the run's
        pretrained network, extracted once and stored in the run.
    test, train : int64 [n]
        Rows of Shards.videos to test and to learn from (or to search); None: the protocol chooses them.
    """

    stage: str = LAST
    pooling: str = "max"
    parts: int = 1
    features: Features | None = None
    test: np.ndarray | None = None
    train: np.ndarray | None = None


class Scores(NamedTuple):
    """The score of each tested video.

    Attributes
    ----------
    right : dict
        By id, 0 to 1: a hit, or the share of its clips, draws or triples that are right.
    chance : dict
        The score that chance would give each video, None if it is unknown.
    predicted : dict
        The predicted class by id, for the videos that have one.
    validated : float
        Accuracy in per cent in the cross-validation of the training part by which the protocol chose, None if it did not.
    neighbours : list
        For retrieval, a few queries with the videos found for them.
    """

    right: dict[str, float]
    chance: dict[str, float] | None
    predicted: dict[str, str]
    validated: float | None
    neighbours: list[dict]


class Evaluator:
    """One or several runs and the shards of one or several data sets, each opened once for all protocols.

    Parameters
    ----------
    shards : path or Shards
        Folder of the data set to measure on, or the opened data set.
    checkpoint : path, or several
        A run, a checkpoint folder or a .safetensors file, loaded when first needed; None for the newest run.
    split : str or int
        Name or number; None for the split that the run was trained on, else the first, see `source`.
    compute : Compute
        Batch size, threads and device.

    Raises
    ------
    TrainerError
        If a checkpoint cannot be read.
    ShardError
        If the shards cannot be read.

    Examples
    --------
    >>> from trainer.evaluate.evaluator import Compute, Evaluator
    >>> evaluator = Evaluator("out/demo", "runs/pace-r3d10-1", compute=Compute(device="cpu"))
    >>> result = evaluator.measure("retrieval")
    >>> row = result["rows"][0]  # one number, in per cent, with its 95 % interval
    >>> row["metric"], row["network"], row["stage"], 0 <= row["low"] <= row["value"] <= row["high"] <= 100
    ('top-1', 'pretrained', 'conv1', True)
    """

    def __init__(
        self,
        shards: str | os.PathLike | data.Shards = "out",
        checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        split: str | int | None = None,
        compute: Compute = COMPUTE,
    ):
        self.given = shards if isinstance(shards, data.Shards) else None
        self.folder = Path(shards.folder if isinstance(shards, data.Shards) else shards)
        self.checkpoint, self.split, self.compute = checkpoint, split, compute
        self.selection: Selection | None = None
        self._readers = {} if self.given is None else {self.folder: self.given.readers}
        self._networks: dict[Path, dict[str, nn.Module]] = {}

    @functools.cached_property
    def runs(self) -> list[Checkpoint]:
        given = newest_run() if self.checkpoint is None else self.checkpoint
        return [load(path, best=True) for path in ([given] if isinstance(given, (str, os.PathLike)) else given)]

    @property
    def saved(self) -> Checkpoint:
        return self.runs[0]

    @property
    def device(self) -> torch.device:
        return distributed.pick_device(self.compute.device)

    @property
    def dataset(self) -> str:
        """Name of the data set to measure on."""
        return self._opened(self.folder)[0].config["dataset"]

    def _opened(self, folder: Path) -> data.Readers:
        if folder not in self._readers:
            self._readers[folder] = data.Readers(folder)
        return self._readers[folder]

    def open(self, folder: str | os.PathLike, split: str | int | None = None) -> data.Shards:
        """A data set with one of its splits, None for the first."""
        return data.Shards(folder, split, self._opened(Path(folder)))

    def source(self, saved: Checkpoint | None = None) -> data.Shards:
        """The data set with the given split. The default is the run's split if the run was trained on this data set, because
        the test videos of another split were among its training videos."""
        if self.given is not None:
            return self.given
        split = self.split
        if split is None:
            split = trained_splits((saved or self.saved).meta).get(self.dataset)
        return self.open(self.folder, split)

    def folds(self) -> splits.Folds:
        """The videos to test, and those to learn from or to search."""
        if self.selection and self.selection.test is not None and self.selection.train is not None:
            return splits.Folds(self.source(), [(self.selection.test, self.selection.train)], "as selected", [])
        if self.given is not None:
            return splits.of_split(self.given)
        first = self.open(self.folder)
        learnt_labels = self.split is None and with_labels(self.saved.meta["settings"])
        if folds := splits.in_turn(first, self.split, learnt_labels):
            return folds
        return splits.of_split(first if self.split == "all" else self.source())

    @property
    def network_names(self) -> tuple[str, ...]:
        """The networks to compare."""
        return ("pretrained",) if self.selection else tuple(self.networks())

    def networks(self, saved: Checkpoint | None = None) -> dict[str, nn.Module]:
        """The pretrained and the random network of a run (see features.networks)."""
        saved = saved or self.saved
        if saved.file not in self._networks:
            self._networks[saved.file] = features.networks(saved)
        return self._networks[saved.file]

    def features(
        self,
        network: str,
        source: data.Shards,
        videos: np.ndarray,
        views: str | int,
        saved: Checkpoint | None = None,
        **how: Any,
    ) -> Features:
        """Features of videos (int64 rows of the data set); how: `time` and `made` of features.features."""
        if self.selection and self.selection.features is not None:
            return self.selection.features.of_videos(videos, self.kinds(self.selection.features))
        saved = saved or self.saved
        backbone = self.networks(saved)[network]
        return features.features(saved, network, backbone, source, source.videos[videos], views, self.compute, **how)

    def kinds(self, found: Features) -> list[tuple[str, str]]:
        """The stages and poolings to measure: all, or the selected one. Raises TrainerError if it does not exist."""
        if self.selection is None:
            return [*found.arrays]
        stage, pooling = self.selection.stage, self.selection.pooling
        key = [*found.arrays][-1][0] if stage == LAST else stage, pooling
        if key not in found.arrays:
            stages, poolings = (", ".join(dict.fromkeys(names)) for names in zip(*found.arrays, strict=True))
            raise TrainerError(
                f"no features of stage {stage!r} with pooling {pooling!r}, expected one of the stages {stages} and of the "
                f"poolings {poolings}"
            )
        return [key]

    def features_of_parts(
        self,
        network: str,
        source: data.Shards,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        views: str | int = "spread",
        **how: Any,
    ) -> list[tuple[np.ndarray, Features]]:
        """Features of every video of the folds, with the rows of the videos. For one fold, test and train are separate, as
        they are stored; for several folds, all videos are together."""
        rows = [*parts[0]] if len(parts) == 1 else [np.unique(np.concatenate([*map(np.concatenate, parts)]))]
        return [(videos, self.features(network, source, videos, views, **how)) for videos in rows]

    def levels(self, all_levels: tuple[str, ...]) -> tuple[str, ...]:
        """The levels of items to measure, out of all levels of a protocol."""
        return ("video",) if self.selection else all_levels

    @property
    def time_parts(self) -> int:
        """Number of parts of a video's time, each of which has its own mean feature."""
        return self.selection.parts if self.selection else 1

    def describe(self, source: data.Shards, **conditions: Any) -> dict:
        """What is stored with every number: data set, split, pretraining and its budget, seed, parameters, versions."""
        saved = self.saved
        meta, settings = saved.meta, saved.meta["settings"]
        pretraining = {
            "method": settings["method"],
            "options": settings["options"],
            "dataset": meta["dataset"],
            "split": meta["split"],
            "samples": meta["samples"],
            "steps": meta["step"],
            "steps_planned": meta["steps"],
            "epochs": settings["epochs"],
            "batch_size": settings["batch_size"],
            "seed": settings["seed"],
        }
        return {
            "dataset": source.dataset,
            "split": source.split,
            **conditions,
            "crop": source.config["crop"],
            "config_hash": source.config_hash,
            "pretraining": pretraining,
            "initial": meta.get("initial"),
            "input": inputs.of_run(meta).described,
            "backbone": settings["backbone"],
            "width": settings["width"],
            "parameters": sum(weight.numel() for weight in self.networks()["pretrained"].parameters()),
            "checkpoint": str(saved.file),
            "versions": versions(),
        }

    def measure(self, name: str, **options: Any) -> dict:
        """The result of a protocol, which is also written into the run's folder; options: those of the protocol.

        result["file"] is its path (see results.write). Raises VsslError if the run or the data do not allow it.
        """
        if len(self.runs) > 1 and not protocol_class(name).several_runs:
            raise TrainerError(f"{name} measures one run at a time, not {len(self.runs)}")
        with busy(protocol_class(name).title):
            protocol = protocol_class(name)(self, **options)
            if len(self.runs) > 1:
                for saved in self.runs:
                    self._but(runs=[saved]).measure(name, **options)
            result = protocol.result()
        results.write(result, self.saved.run, protocol.file_name(name), protocol.scores)
        return result

    def scores(self, name: str, selection: Selection = Selection(), **options: Any) -> Scores:
        """Scores of the tested videos by a protocol's first metric at video level; with `times`, of clips disturbed in the last
        of these ways. Nothing is written. Every protocol that scores items can be used.

        Raises VsslError if the run, the features or the data do not allow it.
        """
        protocol = protocol_class(name)(self._but(selection=selection), **options)
        wanted = {"level": "video", "time": [NORMAL, *options.get("times", ())][-1]}
        rows = (row for row in protocol.rows() if ANSWERS in row)
        scored = (row for row in rows if all(row.get(key, value) == value for key, value in wanted.items()))
        if (row := next(scored, None)) is None or protocol.scores is None:
            raise TrainerError(f"{name} gives no scores of single videos")
        (ids, classes), answers = (of.tolist() for of in (protocol.scores.items, protocol.scores.classes)), row[ANSWERS]
        right, chance = (
            None if values is None else {ids[i]: float(values[i]) for i in np.flatnonzero(~np.isnan(values))}
            for values in (answers.right, answers.chance)
        )
        predicted = {ids[i]: classes[answers.predicted[i]] for i in np.flatnonzero(answers.predicted >= 0)}
        return Scores(right or {}, chance, predicted, protocol.validated, protocol.extra.get("neighbours", []))

    def _but(self, **changed: Any) -> Evaluator:
        """A copy of this evaluator, which shares what is open, with some attributes changed."""
        other = copy.copy(self)
        vars(other).update(changed)
        return other


def measure(
    name: str,
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
    **options: Any,
) -> dict:
    """The result of one protocol on a run, in one call.

    Parameters
    ----------
    name : str
        A protocol, see docs/evaluation.md.
    shards, checkpoint, split, compute
        See `Evaluator`.
    **options
        Of the protocol.

    Returns
    -------
    dict
        "protocol": how it was measured; "rows": the numbers; "file": where they are stored, in the run's folder.

    Raises
    ------
    VsslError
        If the run or the data do not allow it.

    Examples
    --------
    >>> from trainer.evaluate.evaluator import Compute, measure
    >>> result = measure("knn", "out/demo", "runs/pace-r3d10-1", compute=Compute(device="cpu"))
    >>> result["protocol"]["dataset"], result["rows"][0]["metric"]
    ('demo', '1-NN')
    """
    return Evaluator(shards, checkpoint, split, compute).measure(name, **options)


def measure_all(evaluator: Evaluator, options: dict[str, dict]) -> Iterator[tuple[str, str | None, VsslError | None]]:
    """Run every protocol. Yields its name, its table and file (or None), and the reason if it was left out (or None).

    options: the options of each protocol, by name. Raises VsslError if the run or the shards cannot be read.
    """
    assert evaluator.runs
    evaluator.open(evaluator.folder, None if evaluator.split == "all" else evaluator.split)
    for name in PROTOCOLS:
        try:
            result = evaluator.measure(name, **options.get(name, {}))
        except VsslError as error:
            yield name, None, error
        else:
            yield name, f"{protocol_class(name).format_table(result)}\n\n{result['file']}", None
