"""The table of the amount of motion in each clip of finished shards, as CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelgen.errors import ConfigError
from labelgen.files import replacing
from labelgen.labels.amount import COLUMNS
from labelgen.shards import ShardReader
from labelgen.texts import csv_cells
from labelgen.times import frame_bounds

KINDS = (".csv", ".parquet")
_TEXTS = ("id", "path", "label", "group")
_NUMBERS = ("frame", "start", "end", "difficulty", *COLUMNS)


def check_table(path: Path) -> None:
    """Raises ConfigError if a table cannot have this name."""
    if path.suffix not in KINDS:
        raise ConfigError(f"motion is {path}; expected the name of a table that ends in {' or '.join(KINDS)}")


def write_motion(path: Path, shards: Sequence[Path]) -> int:
    """Write the table of the clips of these shards, in order; returns the number of clips.

    id, path, label, group: of the video; frame: the first one of the clip; start, end: seconds after the first frame of
    its file, empty if that has no time stamps; difficulty: see `curriculum_score`; COLUMNS: see `amounts`
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        return (_write_csv if path.suffix == ".csv" else _write_parquet)(temporary, shards)


def _write_csv(path: Path, shards: Sequence[Path]) -> int:
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*_TEXTS, *_NUMBERS))
        for columns in _columns(shards):
            for row in zip(*(columns[name] for name in (*_TEXTS, *_NUMBERS)), strict=True):
                cells = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
                writer.writerow(csv_cells("" if cell == "nan" else cell for cell in cells))
                count += 1
    return count


def _write_parquet(path: Path, shards: Sequence[Path]) -> int:
    import pyarrow as pa  # not above: nothing else here needs it
    import pyarrow.parquet as pq

    types = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_NUMBERS, pa.float32())
    types |= {"frame": pa.int32(), "start": pa.float64(), "end": pa.float64()}
    schema, count = pa.schema(types.items()), 0
    with open(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        for columns in _columns(shards):
            arrays = [pa.array(columns[name], type=kind, from_pandas=True) for name, kind in types.items()]
            writer.write_table(pa.table(arrays, schema=schema))
            count += len(columns["frame"])
    return count


def _columns(shards: Sequence[Path]) -> Iterator[dict[str, list[Any]]]:
    """The columns of each shard's clips."""
    for path in shards:
        reader = ShardReader(path)
        arrays = reader.arrays
        owner, first = arrays["clips/video"], arrays["clips/start"]
        of_part = "segments" in reader.config
        bounds = []
        for begin, count, fps in zip(
            *(arrays[f"videos/{key}"] for key in ("first_frame", "n_frames", "fps")), strict=True
        ):
            time = arrays["frames/time"][begin : begin + count]
            bounds.append(np.round(frame_bounds(time, fps) + (time[0] if of_part else 0), 6))
        values = np.asarray(arrays["amount/motion"], np.float64)
        found: dict[str, list[Any]] = {name: [arrays[f"videos/{name}"][video] for video in owner] for name in _TEXTS}
        found["frame"] = first.tolist()
        found["start"] = [float(bounds[video][at]) for video, at in zip(owner, first, strict=True)]
        found["end"] = [float(bounds[video][at + reader.clip_length]) for video, at in zip(owner, first, strict=True)]
        found["difficulty"] = np.asarray(arrays["curriculum/score"], np.float64).tolist()
        yield found | {name: values[:, place].tolist() for place, name in enumerate(COLUMNS)}
