"""The table of features, a Parquet file: one row per clip or video, and in its metadata how it was made.

id, path, label   text; label "" if there is none
split             text: train, validation or test, the part of the first split; "" for none
start, end        seconds, float64; null if the frame rate is unknown
stage             text
vector            float32 [d]
thumbnail         JPEG bytes of the middle frame
signature         see trainer.embeddings.pictures: of the whole video in its first row, none in the others
"""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labelgen.files import path_name, replacing
from labelgen.reading import open_regular, parse_json, validate
from labelgen.shards.jpeg import header
from labelgen.texts import csv_cells
from trainer.errors import TrainerError

SCHEMA = 3
_GROUP, _BYTES = 4096, 1 << 26  # rows read or written at a time; bytes, of long videos
_KEY = b"vssl"
_WIDTH, _PIXELS, _PACKED = (
    1 << 20,
    1 << 16,
    1000,
)  # upper limits: values of a vector, pixels of a thumbnail, unpacked bytes per byte
_ABOUT = {
    "key?": str,
    "checkpoint?": str,
    "backbone?": str,
    "videos?": int,
    "files?": {"*": str},
    "settings?": {
        **dict.fromkeys(("weights", "level", "stage", "pooling", "views"), str),
        "frames": dict,
        "crops?": int,
    },
    "failures?": [{"id": str, "path": str, "reason": str, "kept": bool}],
}
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,4}$")
TEXTS = ("id", "path", "label", "split", "stage")


def schema(width: int, about: dict) -> pa.Schema:
    """The columns of a table of vectors [width]. about: how it is made."""
    texts = {name: pa.string() for name in TEXTS}
    return pa.schema(
        [
            *((name, texts[name]) for name in ("id", "path", "label", "split")),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("stage", texts["stage"]),
            ("vector", pa.list_(pa.float32(), width)),
            ("thumbnail", pa.binary()),
            ("signature", pa.binary()),
        ],
        metadata={_KEY: json.dumps({"schema": SCHEMA, **about})},
    )


class Table:
    """A table on disk, read block by block.

    Parameters
    ----------
    path : str or path
        The `.parquet` file.

    Attributes
    ----------
    about : dict
        How it was made.
    rows, width : int
        Number and length of the vectors.
    groups : list of int
        Rows stored together.
    parts : list of Table
        The tables that it consists of, here itself.
    name : str
        For messages.

    Raises
    ------
    TrainerError
        If `vssl embed` did not write the file.

    Examples
    --------
    >>> from trainer.embeddings.table import Table
    >>> table = Table("features.parquet")
    >>> vectors = [block for block, in table.blocks("vector")]  # float32 [n, width] each
    >>> sum(map(len, vectors)) == table.rows
    True
    >>> table.take([0], ["id", "start"])
    [{'id': '00000_0', 'start': 0.0}]
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.name, self.parts = Path(path), str(path), [self]
        try:
            with open_regular(self.path) as raw, pq.ParquetFile(raw) as file:
                found, metadata = file.schema_arrow, file.schema_arrow.metadata or {}
                self.rows: int = file.metadata.num_rows
                self.groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self.about: dict = parse_json(metadata.get(_KEY, b"{}").decode(), _KEY.decode())
            validate(self.about, {"schema?": int, **_ABOUT}, "it")
            if self.about.get("schema") == SCHEMA and "vector" in found.names:
                self.width: int = getattr(found.field("vector").type, "list_size", 0)
                if not 0 < self.width <= _WIDTH or not found.equals(schema(self.width, {})):
                    raise ValueError("other columns than those of `vssl embed`")
                if sum(self.groups) != self.rows or 4 * self.width * self.rows > _PACKED * os.path.getsize(path):
                    raise ValueError(f"{self.rows:,} rows in {os.path.getsize(path):,} bytes")
        except FileNotFoundError as error:
            raise TrainerError(f"{path}: no such file; make it with `vssl embed`") from error
        except (OSError, pa.ArrowException, ValueError) as error:
            raise TrainerError(f"{path}: not a readable table of features ({error})") from error
        if self.about.get("schema") != SCHEMA or "vector" not in found.names:
            raise TrainerError(
                f"{path}: schema {self.about.get('schema', 'none')}, expected {SCHEMA}; make it again with `vssl embed`"
            )

    def blocks(self, *columns: str) -> Iterator[tuple]:
        """The columns of some thousand rows at a time: lists, for "vector" float32 [n, width]."""
        with self._opened() as file:
            for group in range(file.num_row_groups):  # of which each fits into memory
                for batch in file.iter_batches(_GROUP, row_groups=[group], columns=list(columns)):
                    yield self._values(batch, columns)

    def take(self, rows: Iterable[int], columns: Sequence[str]) -> list[dict]:
        """Rows with these numbers, in the given order, as dicts."""
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
            with open_regular(self.path) as raw, pq.ParquetFile(raw) as file:  # the path need not be UTF-8
                yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error

    def _values(self, batch: pa.RecordBatch | pa.Table, columns: Sequence[str]) -> tuple[list | np.ndarray, ...]:
        """Values of columns: lists, for "vector" float32 [n, width]. Raises TrainerError for what `embed` never writes:
        missing values, non-finite vectors, and moments without an end or with an end before the start."""
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
            raise self._damaged("a non-finite value in vector")
        return vectors

    def _damaged(self, what: str) -> TrainerError:
        return TrainerError(f"{self.path}: damaged ({what}); make it again with `vssl embed`")


class Tables(Table):
    """Tables of several files made with the same settings as one: their rows one after the other.

    Raises TrainerError if a file is not a table, if one is given twice, and if they were made with different networks
    or settings.
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
                        f"{other.path}: {name} {two}, of {first.path} {one}; give tables made with the same settings"
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
        raise TrainerError(
            "a thumbnail of the table is not a JPEG: the table is damaged; make it again with `vssl embed`"
        )
    return picture


def write_part(path: Path, about: dict, vectors: np.ndarray, columns: Mapping[str, Sequence]) -> None:
    """Write a table of vectors float32 [n, d] and the other columns; without signatures, duplicates are not found."""
    declared = schema(vectors.shape[1], about)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    arrays = {
        "signature": [b""] * len(vectors),
        **columns,
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
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
    """Write the rows of all parts as one table; memory holds one block at a time.

    old: a table from which the rows of the videos `kept` (ids) are included; order: of all videos, by id
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
    """The same rows, some thousand per block; each block becomes a row group of the file."""
    waiting: list[pa.RecordBatch] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= _GROUP or sum(block.nbytes for block in waiting) >= _BYTES:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _of_videos(blocks: Iterable[pa.RecordBatch], wanted: Container[str]) -> Iterator[pa.RecordBatch]:
    """The rows of the wanted videos, one video at a time, or as many of its rows as a block holds."""
    for block in blocks:
        ids = block.column("id").to_pylist()
        bounds = [0, *(row for row in range(1, len(ids)) if ids[row] != ids[row - 1]), len(ids)]
        for begin, end in itertools.pairwise(bounds):
            if begin < end and ids[begin] in wanted:
                yield block.slice(begin, end - begin)


def write_npy(table: Table) -> tuple[Path, Path]:
    """Write the vectors as float32 [rows, d] to NAME.npy, and the other columns except thumbnails to NAME.csv beside it."""
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


def write_npy_per_video(table: Table) -> tuple[Path, int]:
    """Write two files per video into the folder NAME-per-video beside the table: STEM.npy, the vectors of its rows in
    order, float32 [T, C], or [T, 10, C] with ten crops, and STEM.csv, start and end of each in seconds. Returns the
    folder and the number of videos.

    STEM is the id without the suffix of the file, or with it if two names would be equal. Raises TrainerError for an id
    that leads elsewhere.
    """
    folder = table.path.with_name(f"{table.path.stem}-per-video")
    ids = list(dict.fromkeys(id for (block,) in table.blocks("id") for id in block))
    stems = {id: _SUFFIX.sub("", id) for id in ids}
    times = Counter(stems.values())
    crops = table.about.get("settings", {}).get("crops", 1)
    shape = (-1, table.width) if crops == 1 else (-1, crops, table.width // crops)
    for id, vectors, spans in _of_each_video(table):
        parts = [part for part in PurePosixPath(stems[id] if times[stems[id]] == 1 else id).parts if part != "/"]
        if not parts or ".." in parts or "\0" in id:
            raise TrainerError(
                f"{table.path}: the id {id!r:.80} leads elsewhere; expected a path below the folder of the videos"
            )
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".npy", vectors.reshape(shape)), (".csv", spans)):
            with replacing(path.with_name(path_name(path.name, suffix))) as temporary, open(temporary, "wb") as file:
                if suffix == ".npy":
                    np.save(file, content)
                else:
                    lines = ["start,end", *(",".join("" if t is None else str(t) for t in span) for span in content)]
                    file.write(("\n".join(lines) + "\n").encode())
    return folder, len(ids)


def _of_each_video(table: Table) -> Iterator[tuple[str, np.ndarray, list[tuple]]]:
    """The id of each video, its vectors float32 [T, width] and their start and end times; memory holds one video."""
    parts: list[np.ndarray] = []
    spans: list[tuple] = []
    last = None
    for vectors, ids, starts, ends in table.blocks("vector", "id", "start", "end"):
        begins = [0, *(row for row in range(1, len(ids)) if ids[row] != ids[row - 1])]
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            if last is not None and ids[begin] != last:
                yield last, np.concatenate(parts), spans
                parts, spans = [], []
            last = ids[begin]
            parts.append(np.array(vectors[begin:end]))
            spans += zip(starts[begin:end], ends[begin:end], strict=True)
    if last is not None:
        yield last, np.concatenate(parts), spans
