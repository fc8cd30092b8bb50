"""The runs and the shards from which a run's page is made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from labelgen.errors import ShardError
from labelgen.reading import load_json
from labelgen.shards import ShardReader, hash_of_all, open_shards
from labelgen.shards.folder import shard_paths
from trainer.checkpoint import Checkpoint, trained_splits, versions
from trainer.evaluate.results import Result, read_results

_DATASETS = ("dataset", "gallery")  # keys of a result's protocol


def results_of(run: Path) -> tuple[list[Result], list[str]]:
    """The results of a run, and those of the classifiers of runs next to it that started from it; and a note about each damaged
    file."""
    found, damaged = read_results(run)
    for folder in _started_from(run):
        finetuned, notes = read_results(folder)
        found += [result for result in finetuned if (protocol := result.protocol_type) and protocol.of_finetuned]
        damaged += notes
    return found, damaged


def _started_from(run: Path) -> list[Path]:
    """The runs next to this one whose training started from one of its checkpoints."""
    folder, found = run.resolve(), []
    for path in sorted(folder.parent.glob("*/checkpoints/[0-9]*/checkpoint.json")):
        try:
            initial = Path(os.path.realpath(load_json(path)["initial"]["file"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # from random weights; or damaged, which the report of that run states
        if folder in initial.parents:
            found.append(path.parents[2])
    return found


def configuration_of(readers: Sequence[ShardReader]) -> str:
    """The hash of the configurations of all shards in a folder."""
    return hash_of_all([reader.config_hash for reader in readers])


def find_shards(
    saved: Checkpoint, results: Sequence[Result], folder: Path
) -> tuple[dict[str, list[ShardReader]], list[str]]:
    """The opened shards in or below `folder`, by their folder, for the data sets that a run was trained or measured on: for
    each those labelled like the run's, else the first; and notes about data sets without shards, and about damaged shards."""
    named = dict.fromkeys([*trained_splits(saved.meta)])
    named |= dict.fromkeys(result.protocol[key] for result in results for key in _DATASETS if key in result.protocol)
    found: dict[str, dict[str, tuple[str, list[ShardReader]]]] = {}
    notes = []
    for place in sorted({path.parent for path in (*folder.glob("[0-9]*.h5"), *folder.glob("*/[0-9]*.h5"))}):
        try:
            first = ShardReader(shard_paths(place)[0])
            if (dataset := first.config["dataset"]) in named:
                readers = open_shards(place)
                found.setdefault(dataset, {}).setdefault(configuration_of(readers), (str(place), readers))
        except ShardError as error:
            notes.append(f"{error}; these shards are left out")
    if absent := ", ".join(name for name in named if name not in found):
        notes.append(
            f"{folder} holds no shards of {absent}: the page shows none of their videos and labels; give their folder to see them"
        )
    return dict(of.get(saved.meta["config_hash"]) or next(iter(of.values())) for of in found.values()), notes


def joined(saved: Checkpoint, opened: Mapping[str, list[ShardReader]]) -> list[str]:
    """The folders of all data sets of a run's training, in its order; none if some are not among those that are open."""
    by = {readers[0].config["dataset"]: folder for folder, readers in opened.items()}
    named = [*trained_splits(saved.meta)]
    return [by[name] for name in named] if named and by.keys() >= {*named} else []


def unused(saved: Checkpoint, results: Sequence[Result], opened: Mapping[str, list[ShardReader]]) -> list[str]:
    """Notes on shards, by folder, of which the page can show nothing: for each data set the last folder is used."""
    shown = [result.protocol for result in results if result.content.get("neighbours")]
    datasets = {protocol[key] for protocol in shown for key in _DATASETS if key in protocol}
    last = {readers[0].config["dataset"]: folder for folder, readers in opened.items()}
    used = {last[dataset] for dataset in datasets & last.keys()}
    return [
        f"{folder} is not used: the page shows no videos of {readers[0].config['dataset']} from there, and the run was not "
        "trained on this configuration of shards"
        for folder, readers in opened.items()
        if configuration_of(readers) != saved.meta["config_hash"] and folder not in used
    ]


def made_by() -> str:
    """The versions that a page was made with, for its footer."""
    return "Made by vssl {vssl}, Python {python}, torch {torch}.".format(**versions())
