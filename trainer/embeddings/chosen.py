"""The extractor of a table, chosen by the name of a run, a file or a baseline, or by an existing table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from labelgen.config import Config
from labelgen.files import json_sha256
from trainer.checkpoint import Checkpoint, check_frames, load, newest_run
from trainer.embeddings.baselines import HISTOGRAMS, HistogramExtractor, baseline, is_baseline
from trainer.embeddings.extract import Choice, Extractor, Progress, ShardVideos, embed
from trainer.embeddings.table import Table
from trainer.errors import TrainerError
from trainer.evaluate.features import Compute
from trainer.histograms import Flow


def load_network(checkpoint: Path | None) -> Checkpoint:
    """A run, None for the newest, an exported .safetensors file, or a baseline, by name. Raises TrainerError for other
    files."""
    if checkpoint is not None and is_baseline(checkpoint):
        return baseline(str(checkpoint), asdict(Config()))
    if checkpoint is not None and checkpoint.suffix == ".onnx":
        raise TrainerError(f"{checkpoint}: expected a run or a .safetensors file, as written by `vssl export`")
    return load(newest_run() if checkpoint is None else checkpoint, best=True)


def extractor(saved: Checkpoint, choice: Choice, frames: dict, compute: Compute, flow: Flow) -> Extractor:
    """The extractor of rows for a table: a network, or a histogram; `trainer.embeddings.extract.embed` shows its use.

    Parameters
    ----------
    saved : Checkpoint
        Of the network.
    choice : Choice
        What makes a row.
    frames : dict
        The configuration of the frames, such as `ShardVideos.config`.
    compute : Compute
        Batch size, threads and device.
    flow : callable
        Optical flow of two luma images uint8 [H, W], for histograms, such as `labelgen.flow.flow`.

    Returns
    -------
    Extractor
        Called with a piece of a source, it returns vectors float32 [rows, width] and the other columns of the table.

    Raises
    ------
    SettingError
        For a choice that the network does not have.
    """
    if (name := saved.meta.get("baseline")) in HISTOGRAMS:
        return HistogramExtractor(name, choice, frames, compute, flow)
    return Extractor(saved, choice, frames, compute)


def extractor_of(table: Table, checkpoint: Path | None, compute: Compute, flow: Flow) -> Extractor:
    """The extractor of an existing table. checkpoint: None for the one that the table names. Raises TrainerError if it
    is another network."""
    settings = table.about.get("settings")
    if settings is None:
        raise TrainerError(f"{table.path}: it does not say how it was made; make it again with `vssl embed`")
    try:
        check_frames(settings["frames"])
    except ValueError as error:
        raise TrainerError(f"{table.path}: damaged ({error}); make it again with `vssl embed`") from error
    level, stage, pooling, views = (settings[name] for name in ("level", "stage", "pooling", "views"))
    choice = Choice(level, stage, pooling, views, settings.get("crops", 1))
    saved = load_network(checkpoint or Path(table.about.get("checkpoint", "")))
    extract = extractor(saved, choice, settings["frames"], compute, flow)
    if extract.settings["weights"] != settings["weights"]:
        raise TrainerError(
            f"{saved.file}: weights {extract.settings['weights']}, but {table.path} was made with {settings['weights']}; "
            "name the network that made it, or make it again with `vssl embed`"
        )
    return extract


def table_of_shards(
    folder: Path, saved: Checkpoint, compute: Compute, flow: Flow, progress: Progress, say: Callable[[str], None]
) -> tuple[Table, Extractor]:
    """The table of the clips of shards, which is kept in the run, and its extractor."""
    source = ShardVideos(folder)
    content = json_sha256([source.stamp(part) for part in source.parts])[:8]
    extract = extractor(saved, Choice(), source.config, compute, flow)
    tables = saved.run / "embeddings"
    tables.mkdir(parents=True, exist_ok=True)
    out = tables / f"{source.config['dataset']}-{extract.settings['weights']}-{content}.parquet"
    return embed(extract, source, out, progress, say), extract
