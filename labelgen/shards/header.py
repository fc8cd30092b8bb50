"""The first bytes of a shard, which HDF5 leaves to the user: what the shard holds and where each of its arrays is.

    vssl shard 4 00004096 SHA-256
    {"config": ..., ...}                    shared by all shards of a data set
    {"datasets": ..., "sha256": ..., ...}   specific to this shard

padded with NULs to 4096 (or 512, 8192, ...) bytes; the SHA-256 covers all bytes after the first line. A shard is read
by this header alone: no byte of the file reaches the HDF5 library; its structure is for other programs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from labelgen.errors import ShardError
from labelgen.reading import Only, validate
from labelgen.shards.checks import check_settings, check_texts
from labelgen.shards.schema import SCHEMA_VERSION, config_hash

_FIRST_LINE = re.compile(rb"vssl shard ([0-9]{1,4}) ([0-9]{8}) ([0-9a-f]{64})\n")
_SMALLEST, _LARGEST = 512, 1 << 20  # bytes of a header; HDF5 requires 512 times a power of two
_NAME = re.compile(r"\w{1,64}/\w{1,64}", re.ASCII)
_TYPE = re.compile(r"\|S[1-9][0-9]{0,4}|\|[biu]1|<[iu][248]|<f[248]")  # names of NumPy types
_SHA256 = re.compile("[0-9a-f]{64}")
_SHARED = {  # the form of the two lines of a header, see `validate`
    **{"config": dict, "config_hash": str, "kinds": {"*": int}, "versions": {"*": str}, "splits": [str]},
    "crop_grid": [[int]],
}
_OWN = {"datasets": {"*": list}, "size": int, "sha256": Only(dict.fromkeys(("frames", "labels", "rest"), str))}
_CALL_BYTES = 1 << 30  # a call reads at most 2 GiB, macOS refuses more
COPY_BYTES = 1 << 24  # piece in which files are copied and checked, bytes


class Stored(NamedTuple):
    """An array in the file. dtype: as NumPy writes it, "<i4"; offset: of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def itemsize(self) -> int:
        return int(self.dtype[2:])

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Shared:
    """What all shards of a data set share, see ShardReader. kinds: name and version of each label kind."""

    config: dict[str, Any]
    config_hash: str
    kinds: dict[str, int]
    crop_grid: np.ndarray
    splits: tuple[str, ...]
    versions: dict[str, str]
    paces: tuple[Fraction, ...]


@dataclass(frozen=True)
class Header:
    """length: bytes of the header; shared: see `Shared`; stored: the arrays by full name; sha256: of "frames", "labels"
    and "rest", see `digests`; size: bytes of the file."""

    length: int
    shared: Shared
    stored: dict[str, Stored]
    sha256: dict[str, str]
    size: int


def read_exactly(handle: int, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; raises ValueError if it ends before."""
    found = os.pread(handle, min(size, _CALL_BYTES), offset)
    while len(found) < size:
        more = os.pread(handle, min(size - len(found), _CALL_BYTES), offset + len(found))
        if not more:
            raise ValueError(f"ends at byte {offset + len(found):,}")
        found += more
    return found


def read_header(handle: int) -> Header:
    """The header of an open file. Raises ValueError if the file is not a complete shard of this schema. Afterwards all
    places are within the file, types and sizes are known and bounded, and texts have no control characters."""
    size = os.fstat(handle).st_size
    head = os.pread(handle, 8192, 0)
    first = _FIRST_LINE.match(head)
    if not first:
        other = "HDF5, but not" if head.startswith(b"\x89HDF") else "not"
        raise ValueError(
            f"{other} a shard of schema {SCHEMA_VERSION}: an older version of vssl or another program wrote it; "
            "label the videos again with this version, or write its arrays with labelgen.shards.write"
        )
    version, length = int(first[1]), int(first[2])
    if version != SCHEMA_VERSION:
        raise ValueError(f"shard schema {version}, expected {SCHEMA_VERSION}; label the videos again with this version")
    if not _SMALLEST <= length <= _LARGEST:
        raise ValueError(f"its header has {length:,} bytes, expected {_SMALLEST} to {_LARGEST:,}")
    head = head[:length] if length <= len(head) else read_exactly(handle, 0, length)
    if hashlib.sha256(head[first.end() :]).hexdigest() != first[3].decode():
        raise ValueError("its header was changed after writing (SHA-256)")
    lines = head[first.end() :].rstrip(b"\0").split(b"\n")
    if len(lines) != 3 or lines[2]:
        raise ValueError(f"its header has {len(lines)} lines after the first, expected two")
    shared, own = _shared(lines[0]), _parsed(lines[1])
    validate(own, _OWN, "it")
    if own["size"] != size:
        raise ValueError(f"it has {size:,} bytes, but {own['size']:,} were written")
    stored = {name: _stored(name, where, length, size) for name, where in own["datasets"].items()}
    if not all(map(_SHA256.fullmatch, own["sha256"].values())):
        raise ValueError(f"sha256 is {own['sha256']!r:.100}, expected hexadecimal digits")
    return Header(length, shared, stored, own["sha256"], size)


def header_bytes(
    at_least: int, shared: Mapping[str, Any], stored: Mapping[str, Stored], sha256: Mapping[str, str], size: int
) -> bytes:
    """A header of at least `least` bytes, see `Header`. Raises ShardError if it would be too long."""
    own = {"datasets": stored, "sha256": sha256, "size": size}
    text = "".join(json.dumps(part, sort_keys=True) + "\n" for part in (shared, own)).encode()
    length = max(_SMALLEST, at_least)
    while (room := length - len(_first_line(length, b""))) < len(text):
        length *= 2
    if length > _LARGEST:
        raise ShardError(
            f"the header of a shard has {len(text):,} bytes, expected {_LARGEST:,} at most: use fewer crops"
        )
    rest = text.ljust(room, b"\0")
    return _first_line(length, rest) + rest


def _first_line(length: int, rest: bytes) -> bytes:
    return f"vssl shard {SCHEMA_VERSION} {length:08} {hashlib.sha256(rest).hexdigest()}\n".encode()


def digests(handle: int, length: int, jpeg: Stored, size: int) -> dict[str, str]:
    """SHA-256 of all JPEG bytes ("frames") and of everything that is neither JPEG nor header ("rest") in a file of
    `size` bytes with a header of `length` bytes."""
    found = {"frames": hashlib.sha256(), "rest": hashlib.sha256()}
    end = jpeg.offset + jpeg.nbytes
    for what, start, stop in (("rest", length, jpeg.offset), ("frames", jpeg.offset, end), ("rest", end, size)):
        for at in range(start, stop, COPY_BYTES):
            found[what].update(read_exactly(handle, at, min(COPY_BYTES, stop - at)))
    return {what: digest.hexdigest() for what, digest in found.items()}


@functools.lru_cache(maxsize=16)  # equal bytes in all shards of a data set
def _shared(text: bytes) -> Shared:
    content = _parsed(text)
    _check_plain(content)
    validate(content, _SHARED, "it")
    config, splits, hashed = content["config"], content["splits"], content["config_hash"]
    paces = check_settings(config)
    if not all(splits) or len(set(splits)) < len(splits):
        raise ValueError(f"splits are {splits!r:.100}, expected different names")
    if (found := config_hash(config)) != hashed:  # the hash decides whether shards belong together
        raise ValueError(f"its configuration has the hash {found}, not {hashed}")
    grid = _grid(content["crop_grid"], config)
    return Shared(config, hashed, content["kinds"], grid, tuple(splits), content["versions"], paces)


def _grid(corners: list[list[int]], config: Mapping[str, Any]) -> np.ndarray:
    limits = config["height"] - config["crop"], config["width"] - config["crop"]
    if not 0 < len(corners) <= (limits[0] + 1) * (limits[1] + 1):
        raise ValueError(f"it has {len(corners):,} crops")
    for corner in corners:
        if len(corner) != 2 or not all(0 <= at <= limit for at, limit in zip(corner, limits, strict=True)):
            raise ValueError(f"a crop has its corner at {corner!r:.100}, expected y and x up to {limits}")
    grid = np.array(corners, np.int16)
    grid.flags.writeable = False  # shared by many readers
    return grid


def _stored(name: str, where: Any, length: int, size: int) -> Stored:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a data set is called {name!r:.100}, expected GROUP/NAME")
    if not isinstance(where, list) or [type(part) for part in where] != [str, list, int]:
        raise ValueError(f"{name} is at {where!r:.100}, expected type, shape and offset")
    dtype, shape, offset = where
    if not _TYPE.fullmatch(dtype):
        raise ValueError(f"{name} is of type {dtype!r:.100}, expected a number or text")
    if not 1 <= len(shape) <= 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError(f"{name} has shape {shape!r:.100}, expected 1 to 8 lengths")
    stored = Stored(dtype, tuple(shape), offset)
    if not length <= offset <= size - stored.nbytes:
        raise ValueError(f"{name} is at {offset:,} with {stored.nbytes:,} bytes, outside of a file of {size:,} bytes")
    return stored


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line.decode())
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("its header does not consist of JSON objects")
    return content


def _check_plain(content: Any) -> None:
    """Raises ValueError for control characters, huge numbers and deep nesting."""
    level = [content]
    for _ in range(10):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                check_texts("its header", [value])
            elif (
                isinstance(value, float)
                and not math.isfinite(value)
                or isinstance(value, int)
                and abs(value) >= 1 << 63
            ):
                raise ValueError("its header has a number that is too large")
        level = below
    if level:
        raise ValueError("its header is nested too deeply")
