"""A run and the shards that it is measured on, opened once for all protocols, and what is told with every number."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from labelgen.errors import VsslError
from labelgen.progress import working
from trainer import data, distributed
from trainer.checkpoint import Checkpoint, load, newest_run, trained_splits, versions
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS, features, protocol_class
from trainer.evaluate.features import COMPUTE, Compute, Features
from trainer.evaluate.results import write


class Bench:
    """One or several runs, and the shards of one data set or more.

    shards: folder of the data set that is measured on; checkpoint: run, checkpoint folder or .safetensors file, None for the
    newest run, or several of them; split: name or number, None for the default, see `source`
    runs: the checkpoints; saved: the first of them

    Raises TrainerError where a checkpoint cannot be read, ShardError where the shards cannot.
    """

    def __init__(
        self,
        shards: str | os.PathLike = "out",
        checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        split: str | int | None = None,
        compute: Compute = COMPUTE,
    ):
        one = checkpoint is None or isinstance(checkpoint, (str, os.PathLike))
        paths = [checkpoint] if one else list(checkpoint)
        self.runs = [load(newest_run() if path is None else path, best=True) for path in paths]
        self.folder, self.split, self.compute = Path(shards), split, compute
        self._readers: dict[Path, data.Readers] = {}
        self._networks: dict[Path, dict[str, nn.Module]] = {}

    @property
    def saved(self) -> Checkpoint:
        return self.runs[0]

    @property
    def device(self) -> torch.device:
        return distributed.pick_device(self.compute.device)

    @property
    def dataset(self) -> str:
        """The data set that is measured on."""
        return self._opened(self.folder)[0].config["dataset"]

    def _opened(self, folder: Path) -> data.Readers:
        if folder not in self._readers:
            self._readers[folder] = data.Readers(folder)
        return self._readers[folder]

    def open(self, folder: str | os.PathLike, split: str | int | None = None) -> data.Shards:
        """A data set, seen through a split, None for the first."""
        return data.Shards(folder, split, self._opened(Path(folder)))

    def source(self, saved: Checkpoint | None = None) -> data.Shards:
        """The data set, seen through the split asked for; by default, on the data set that the run was trained on, through the
        run's own: the test videos of another one were among its training videos."""
        meta, split = (saved or self.saved).meta, self.split
        if split is None:
            split = trained_splits(meta).get(self.dataset)
        return self.open(self.folder, split)

    def networks(self, saved: Checkpoint | None = None) -> dict[str, nn.Module]:
        """The pretrained and the random network of a run, see features.networks."""
        saved = saved or self.saved
        if saved.file not in self._networks:
            self._networks[saved.file] = features.networks(saved)
        return self._networks[saved.file]

    def features(
        self, network: str, source: data.Shards, videos: np.ndarray, views: str, saved: Checkpoint | None = None
    ) -> Features:
        """Features of videos (int64 rows of the data set), see features.features."""
        saved = saved or self.saved
        backbone = self.networks(saved)[network]
        return features.features(saved, network, backbone, source, source.videos[videos], views, self.compute)

    def describe(self, source: data.Shards, **told: Any) -> dict:
        """What is told with every number: data set, split, pretraining and its budget, seed, parameters, versions."""
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
            **told,
            "crop": source.config["crop"],
            "config_hash": source.config_hash,
            "pretraining": pretraining,
            "initial": meta.get("initial"),
            "backbone": settings["backbone"],
            "width": settings["width"],
            "parameters": sum(weight.numel() for weight in self.networks()["pretrained"].parameters()),
            "checkpoint": str(saved.file),
            "versions": versions(),
        }

    def alone(self, saved: Checkpoint) -> Bench:
        """The bench of one of several runs, with the same shards."""
        other = copy.copy(self)
        other.runs = [saved]
        return other

    def measure(self, name: str, **options: Any) -> dict:
        """The result of a protocol, which is written into the run's folder, too; options: the protocol's own.

        result["file"] is where it is written, see results.write. Raises VsslError where the run or the data do not allow it.
        """
        if len(self.runs) > 1 and not protocol_class(name).several_runs:
            raise TrainerError(f"{name} measures one run at a time, not {len(self.runs)}")
        with working(protocol_class(name).title):
            protocol = protocol_class(name)(self, **options)
            if len(self.runs) > 1:
                for saved in self.runs:
                    self.alone(saved).measure(name, **options)
            result = protocol.measure()
        write(result, self.saved.run, protocol.file_name(name), protocol.tally)
        return result


def measure(
    name: str,
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
    **options: Any,
) -> dict:
    """The result of one protocol on a run, see Bench and Bench.measure."""
    return Bench(shards, checkpoint, split, compute).measure(name, **options)


def measure_all(bench: Bench, options: dict[str, dict]) -> Iterator[tuple[str, str | None, VsslError | None]]:
    """Run every protocol; of each its name and its table with its file, or None and why it was left out.

    options: the protocols' own, by name. Raises VsslError where the shards cannot be read at all.
    """
    bench.open(bench.folder, None if bench.split == "all" else bench.split)
    for name in PROTOCOLS:
        try:
            result = bench.measure(name, **options.get(name, {}))
        except VsslError as error:
            yield name, None, error
        else:
            yield name, f"{protocol_class(name).format_table(result)}\n\n{result['file']}", None


def parts(source: data.Shards) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Masks bool [videos] of the labelled videos that are tested and of those learnt from (or searched), how they were
    chosen, and notes for the reader.

    The split's test part, else its validation part, and its training part. Where there are no two such parts both masks
    are all labelled videos: a protocol then leaves one video, or one group of videos, out at a time. Raises TrainerError
    when there are no labels.
    """
    labelled = source.targets >= 0
    if not labelled.any():
        raise TrainerError(f"{source.dataset}: its videos have no class labels, which this protocol needs")
    train = labelled & (source.part == data.TRAIN)
    for name, value in (("test", data.TEST), ("validation", data.VALIDATION)):
        test = labelled & (source.part == value)
        if test.any() and train.any():
            unused = np.count_nonzero(~labelled & np.isin(source.part, (data.TRAIN, value)))
            return test, train, f"{name} part against train part", unlabelled(unused)
    if labelled.sum() < 2:
        raise TrainerError(f"{source.dataset}: only one labelled video, there is nothing to compare it with")
    return labelled, labelled, "each video against all others", unlabelled(np.count_nonzero(~labelled))


def unlabelled(videos: int) -> list[str]:
    """Note on videos that have no label."""
    return [f"{videos} videos without label left out"] if videos else []


def incomplete(source: data.Shards, has: dict[str, int]) -> list[str]:
    """Note where a data set is not as its manifest says that it was published."""
    expected = source.config.get("expected") or {}
    published = {key: expected[key] for key in has if key in expected}
    if all(has[key] == count for key, count in published.items()):
        return []
    return [f"not the whole data set: {has}, published {published}; not comparable with published numbers"]
