"""The table of features, a Parquet file: one row per clip or video, and in its metadata how it was made.

id, path, label   text; label "" if there is none
split             text: train, validation or test, the part of the first split; "" for none
start, end        seconds, float64; null if the file does not give its frame rate
stage             text
vector            float32 [d]
thumbnail         JPEG bytes of the middle frame
"""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labelgen.files import replacing
from labelgen.reading import fit, open_regular, parse_json
from labelgen.shards.jpeg import header
from labelgen.texts import csv_cells
from trainer.errors import TrainerError

SCHEMA = 2
_GROUP = 4096  # rows that are read and written at a time
_KEY = b"vssl"
_WIDTH, _PIXELS, _PACKED = (
    1 << 20,
    1 << 16,
    1000,
)  # values of a vector, pixels of a thumbnail, bytes in one byte; at most
_ABOUT = {
    "key?": str,
    "checkpoint?": str,
    "backbone?": str,
    "videos?": int,
    "files?": {"*": str},
    "settings?": {**dict.fromkeys(("weights", "level", "stage", "pooling", "views"), str), "frames": dict},
    "failures?": [{"id": str, "path": str, "reason": str, "kept": bool}],
}
TEXTS = ("id", "path", "label", "split", "stage")


def schema(width: int, about: dict) -> pa.Schema:
    """The columns of a table of vectors [width]; about: how it is made."""
    texts = {name: pa.string() for name in TEXTS}
    return pa.schema(
        [
            *((name, texts[name]) for name in ("id", "path", "label", "split")),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("stage", texts["stage"]),
            ("vector", pa.list_(pa.float32(), width)),
            ("thumbnail", pa.binary()),
        ],
        metadata={_KEY: json.dumps({"schema": SCHEMA, **about})},
    )


class Table:
    """A table on the disk, read block by block.

    about: how it was made; rows, width: number and length of its vectors; groups: rows that lie together on the disk; parts: the
    tables that it is made of, itself alone; name: for messages

    Raises TrainerError if `vssl embed` did not write the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.name, self.parts = Path(path), str(path), [self]
        try:
            with open_regular(self.path) as raw, pq.ParquetFile(raw) as file:
                found, metadata = file.schema_arrow, file.schema_arrow.metadata or {}
                self.rows: int = file.metadata.num_rows
                self.groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self.about: dict = parse_json(metadata.get(_KEY, b"{}").decode(), _KEY.decode())
            fit(self.about, {"schema?": int, **_ABOUT}, "it")
            if self.about.get("schema") == SCHEMA and "vector" in found.names:
                self.width: int = getattr(found.field("vector").type, "list_size", 0)
                if not 0 < self.width <= _WIDTH or not found.equals(schema(self.width, {})):
                    raise ValueError("columns that `vssl embed` does not write")
                if sum(self.groups) != self.rows or 4 * self.width * self.rows > _PACKED * os.path.getsize(path):
                    raise ValueError(f"{self.rows:,} rows in {os.path.getsize(path):,} bytes")
        except FileNotFoundError as error:
            raise TrainerError(f"{path}: no such file; make it with `vssl embed`") from error
        except (OSError, pa.ArrowException, ValueError) as error:
            raise TrainerError(f"{path}: not a readable table of features ({error})") from error
        if self.about.get("schema") != SCHEMA or "vector" not in found.names:
            raise TrainerError(
                f"{path}: schema {self.about.get('schema', 'none')}, expected {SCHEMA}; make it anew with `vssl embed`"
            )

    def blocks(self, *columns: str) -> Iterator[tuple]:
        """The columns of some thousand rows at a time: lists, of "vector" float32 [n, width]."""
        with self._opened() as file:
            for batch in file.iter_batches(_GROUP, columns=list(columns)):
                yield self._values(batch, columns)

    def take(self, rows: Iterable[int], columns: Sequence[str]) -> list[dict]:
        """Rows of these numbers, in the order given, as dicts."""
        wanted = list(rows)
        chosen = np.unique(np.array(wanted, np.int64))
        found: dict[int, dict] = {}
        with self._opened() as file:
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                if len(inside := chosen[(chosen >= begin) & (chosen < end)]):
                    part = file.read_row_group(group, columns=list(columns)).take(inside - begin)
                    values = zip(*self._values(part, columns), strict=True)
                    dicts = [dict(zip(columns, of_row, strict=True)) for of_row in values]
                    found |= dict(zip(inside.tolist(), dicts, strict=True))
                begin = end
        return [found[row] for row in wanted]

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            with open_regular(self.path) as raw, pq.ParquetFile(raw) as file:  # its path need not be UTF-8
                yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error

    def _values(self, batch: pa.RecordBatch | pa.Table, columns: Sequence[str]) -> tuple[list | np.ndarray, ...]:
        """Values of columns: lists, of "vector" float32 [n, width]. Raises TrainerError for what `embed` never writes: missing
        values, vectors that are not finite, and moments that have no end, or end before they start."""
        values = {name: self._column(batch[name], name) for name in columns}
        if {"start", "end"} <= values.keys():
            for start, end in zip(values["start"], values["end"], strict=True):
                if (start is None) != (end is None) or (start is not None and not -math.inf < start <= end < math.inf):
                    raise self._damaged(f"a moment from {start} to {end}")
        return tuple(values.values())

    def _column(self, column: pa.Array | pa.ChunkedArray, name: str) -> list | np.ndarray:
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        flat = column.flatten() if name == "vector" else column
        if name not in ("start", "end") and (column.null_count or flat.null_count):
            raise self._damaged(f"no value in {name}")
        if name != "vector":
            return column.to_pylist()
        vectors = flat.to_numpy(zero_copy_only=False).reshape(-1, self.width)
        if not np.isfinite(vectors).all():
            raise self._damaged("a value that is not finite in vector")
        return vectors

    def _damaged(self, what: str) -> TrainerError:
        return TrainerError(f"{self.path}: damaged ({what}); make it anew with `vssl embed`")


class Tables(Table):
    """Tables of several files that were made alike as one: their rows one after the other.

    Raises TrainerError if one is no table, if one is given twice, and if they were made with different networks or settings.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        if len(set(map(os.path.abspath, paths))) < len(paths):
            raise TrainerError(f"{', '.join(map(str, paths))}: expected each table once")
        self.parts = [Table(path) for path in paths]
        first = self.parts[0]
        for other in self.parts[1:]:
            of_first, of_other = first.about.get("settings", {}), other.about.get("settings", {})
            for name in {**of_first, **of_other, "width": 0}:
                one, two = (first.width, other.width) if name == "width" else (of_first.get(name), of_other.get(name))
                if one != two:
                    raise TrainerError(
                        f"{other.path}: {name} {two}, of {first.path} {one}; give tables that were made alike"
                    )
        self.path, self.about, self.width = first.path, first.about, first.width
        self.name = ", ".join(part.name for part in self.parts)
        self.rows = sum(part.rows for part in self.parts)
        self.groups = [rows for part in self.parts for rows in part.groups]

    def blocks(self, *columns: str) -> Iterator[tuple]:
        return chain.from_iterable(part.blocks(*columns) for part in self.parts)

    def take(self, rows: Iterable[int], columns: Sequence[str]) -> list[dict]:
        wanted = np.array(list(rows), np.int64)
        begins = np.cumsum([0, *(part.rows for part in self.parts)])
        found: dict[int, dict] = {}
        for part, begin, end in zip(self.parts, begins, begins[1:], strict=False):
            inside = wanted[(wanted >= begin) & (wanted < end)]
            found |= dict(zip(inside.tolist(), part.take(inside - begin, columns), strict=True))
        return [found[row] for row in wanted.tolist()]


def decoded(jpeg: bytes, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """A thumbnail as RGB uint8 [H, W, 3]; flags: of OpenCV. Raises TrainerError if it is damaged."""
    length, size = header(jpeg)
    small = length and math.prod(size) <= _PIXELS
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if small else None
    if picture is None:
        raise TrainerError("a thumbnail of the table is no JPEG: the table is damaged; make it anew with `vssl embed`")
    return picture


def write_part(path: Path, about: dict, vectors: np.ndarray, columns: Mapping[str, Sequence]) -> None:
    """One table of vectors float32 [n, d] and the other columns."""
    declared = schema(vectors.shape[1], about)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    arrays = {**columns, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    table = pa.table(
        {name: pa.array(arrays[name], declared.field(name).type) for name in declared.names}, schema=declared
    )
    with replacing(path, pa.ArrowException) as temporary, open(temporary, "wb") as file:
        pq.write_table(table, file, row_group_size=_GROUP, use_dictionary=list(TEXTS))


def join(
    out: Path,
    about: dict,
    width: int,
    parts: Sequence[Path],
    old: Path | None = None,
    kept: Container[str] = (),
    order: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """The rows of all parts as one table; memory holds a block of them at a time.

    old: a table whose rows of the videos `kept`, by id, stand among them; order: of all videos, in which each has its rows
    """
    declared = schema(width, about)
    blocks = _blocks(parts)
    if old is not None:
        several = (_of_videos(_blocks([old]), kept), _of_videos(blocks, order))
        blocks = _grouped(heapq.merge(*several, key=lambda rows: order[rows.column("id")[0].as_py()]))
    with (
        replacing(out, pa.ArrowException) as temporary,
        open(temporary, "wb") as raw,
        pq.ParquetWriter(raw, declared, use_dictionary=list(TEXTS)) as writer,
    ):
        for batch in blocks:
            writer.write_batch(batch.replace_schema_metadata(declared.metadata))


def _blocks(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with open(path, "rb") as stored, pq.ParquetFile(stored) as file:
            yield from file.iter_batches(_GROUP)


def _grouped(blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, some thousand in each block: each becomes a group of its own in the file."""
    waiting: list[pa.RecordBatch] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= _GROUP:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _of_videos(blocks: Iterable[pa.RecordBatch], wanted: Container[str]) -> Iterator[pa.RecordBatch]:
    """The rows of one video at a time, or as many of them as lie in a block, of the videos that are wanted."""
    for block in blocks:
        ids = block.column("id").to_pylist()
        bounds = [0, *(row for row in range(1, len(ids)) if ids[row] != ids[row - 1]), len(ids)]
        for begin, end in itertools.pairwise(bounds):
            if begin < end and ids[begin] in wanted:
                yield block.slice(begin, end - begin)


def write_npy(table: Table) -> tuple[Path, Path]:
    """The vectors as float32 [rows, d] in NAME.npy, the other columns, but for the thumbnails, in NAME.csv beside it."""
    array, text = table.path.with_suffix(".npy"), table.path.with_suffix(".csv")
    with replacing(array) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, table.width)}
        np.lib.format.write_array_header_1_0(file, header)
        for (vectors,) in table.blocks("vector"):
            file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
    names = ("id", "path", "label", "split", "start", "end", "stage")
    with replacing(text) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for columns in table.blocks(*names):
            writer.writerows(map(csv_cells, zip(*columns, strict=True)))
    return array, text
