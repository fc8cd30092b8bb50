"""Every protocol that a network and a data set allow, one after the other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

from labelgen.errors import VsslError
from trainer import data
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute

# module and function of each under trainer.evaluate
PROTOCOLS = ("retrieval", "knn", "linear", "recognition", "scenes", "similarity", "smoothness", "attention")


def all_protocols(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
    options: dict[str, dict] | None = None,
) -> Iterator[tuple[str, str | None, str | None]]:
    """Run PROTOCOLS; of each its name and its table with its file, or None and why it was left out.

    split: default the run's own on the data set that it was trained on, else the first; options: further arguments of
    single protocols, by name. Raises TrainerError or ShardError when the checkpoint or the shards cannot be read at all.
    """
    run = protocol.open_checkpoint(checkpoint)
    source = data.Shards(shards, None if split == "all" else split)
    if split is None and source.dataset == run.meta["dataset"]:
        split = run.meta["split"]
    for name in PROTOCOLS:
        module = importlib.import_module(f"trainer.evaluate.{name}")
        try:
            result = getattr(module, name)(shards, run.file, split, compute, **(options or {}).get(name, {}))
        except VsslError as error:
            yield name, None, str(error)
        else:
            yield name, f"{module.format_table(result)}\n\n{result['file']}", None
