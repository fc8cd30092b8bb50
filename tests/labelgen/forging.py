"""Shards as a bad disk or a stranger might make them."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from labelgen.errors import VsslError
from labelgen.labels.patterns import crop_grid
from labelgen.shards import ShardReader, config_hash
from labelgen.shards.header import _first_line
from tests.trainer.synthetic import CONFIG, write_shard

HUGE = [2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30, 10**4000, -(2**31), -1, 0, 1, 255, 256, 65536]
TEXTS = [
    "",
    "../../up",
    "/etc/passwd",
    "\0",
    "\x1b[2J",
    "\ud800",
    "a\nb",
    "1e9999999999",
    "9" * 5000,
    "|O8",
    "|S0",
    ">i4",
    "x" * 70000,
]
ODD = [None, True, False, [], {}, [[]], {"": None}, 0.5, -0.0, 1e308, float("nan"), float("inf"), *HUGE, *TEXTS]


def sound(folder: Path) -> None:
    """A data set of two small shards."""
    config = CONFIG | {"videos": "4 0123456789abcdef", "videos_per_shard": 3, "split": "all", "fps": None}
    config |= {
        "jpeg_quality": 95,
        "flow": {"backend": "dis"},
        "expected": {"videos": 4},
        "labels": {"pace": {"version": 1}},
    }
    options = {"config": config, "grid": crop_grid(40, 48, 32)}
    write_shard(folder / "00000.h5", [64, 20, 9], split=[1, 1, 3], names=["a", "b/c", "b/d"], **options)
    write_shard(folder / "00001.h5", [16], split=[1], **options)


# --- writing


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Both lines of a shard's header, and all that follows it."""
    content = path.read_bytes()
    length = int(content.split(b" ", 4)[3])
    shared, own = content[:length].split(b"\n")[1:3]
    return json.loads(shared), json.loads(own), content[length:]


def sealed(lines: list[bytes], length: int = 512) -> bytes:
    """A header of these lines after the first, with its digest; at least as long."""
    text = b"".join(line + b"\n" for line in lines)
    while (room := length - len(_first_line(length, b""))) < len(text):
        length *= 2
    return _first_line(length, text.ljust(room, b"\0")) + text.ljust(room, b"\0")


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Let `change` edit both lines of a shard's header (shared, own), and seal it again. The rest stays where it was, unless
    the header outgrows its place."""
    shared, own, rest = parts(path)
    change(shared, own)
    before = path.stat().st_size - len(rest)
    path.write_bytes(sealed([json.dumps(line).encode() for line in (shared, own)], before) + rest)


def reseal(path: Path) -> None:
    """Give a shard the size and the digests of what it now holds, as whoever writes one can."""
    forge(path, lambda shared, own: own.update(size=path.stat().st_size))
    forge(path, lambda shared, own: shared.update(config_hash=config_hash(shared["config"])))
    found = ShardReader(path).now_sha256()
    forge(path, lambda shared, own: own["sha256"].update(found))


def overwrite(path: Path, name: str, values: bytes, at: int = 0) -> None:
    """Other bytes in an array of a shard, in place."""
    with open(path, "r+b") as file:
        file.seek(parts(path)[1]["datasets"][name][2] + at)
        file.write(values)


def flip(path: Path, where: str, rng: np.random.Generator) -> None:
    """Flip a bit of the "header", of the "labels", of the "frames", or of the "hdf5" structure around them."""
    content = bytearray(path.read_bytes())
    area = np.full(len(content), 3)
    area[: len(content) - len(parts(path)[2])] = 0
    for name, (dtype, shape, offset) in parts(path)[1]["datasets"].items():
        area[offset : offset + int(np.prod(shape)) * int(dtype[2:])] = 2 if name == "frames/jpeg" else 1
    at = rng.choice(np.flatnonzero(area == ("header", "labels", "frames", "hdf5").index(where)))
    content[at] ^= 1 << rng.integers(8)
    path.write_bytes(content)


# --- structured mutants


def mutate(path: Path, rng: np.random.Generator) -> None:
    """Change a shard as someone would who knows its form: values of the header, values of arrays, pictures. Mostly with new
    digests, so that nothing but the values tells."""
    [_edit_header, _edit_header, _edit_array, _edit_array, _edit_picture, _edit_lines][rng.integers(6)](path, rng)
    if rng.random() < 0.7:
        # or too broken to be given digests
        with contextlib.suppress(VsslError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            reseal(path)


def _choice(rng: np.random.Generator, options: list[Any]) -> Any:
    return options[rng.integers(len(options))]


def _edit_header(path: Path, rng: np.random.Generator) -> None:
    def change(shared: dict[str, Any], own: dict[str, Any]) -> None:
        for _ in range(rng.integers(1, 3)):
            at: Any = _choice(rng, [shared, shared, own])
            while True:
                key = _choice(rng, [*at] if isinstance(at, dict) else [*range(len(at))])
                if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.15:
                    break
                at = at[key]
            kind = rng.integers(8)
            if kind == 0:
                del at[key]
            elif kind == 1 and isinstance(at[key], int):
                at[key] += int(rng.integers(-3, 4))
            elif kind == 2 and isinstance(at[key], int):
                at[key] *= int(rng.integers(-2, 1000))
            elif kind == 3 and isinstance(at, dict):
                at[key] = at[_choice(rng, [*at])]
            elif kind == 4 and isinstance(at, dict):
                at[_choice(rng, TEXTS)] = at[key]
            elif kind == 5 and isinstance(at[key], list):
                at[key] = at[key] * int(rng.integers(0, 3))
            else:
                at[key] = _choice(rng, ODD)
            if not shared or not own or not at:
                return

    forge(path, change)


def _edit_lines(path: Path, rng: np.random.Generator) -> None:
    shared, own, rest = parts(path)
    lines = [json.dumps(shared).encode(), json.dumps(own).encode()]
    junk = [
        b"[" * 100_000,
        b"{" * 300,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b"NaN",
        b"{}",
        rng.bytes(200),
    ]
    lines[rng.integers(2)] = _choice(rng, junk)
    path.write_bytes(sealed(lines, path.stat().st_size - len(rest)) + rest)


def _edit_array(path: Path, rng: np.random.Generator) -> None:
    stored = {
        name: where for name, where in parts(path)[1]["datasets"].items() if 0 not in where[1] and name != "frames/jpeg"
    }
    for _ in range(rng.integers(1, 3)):
        name = _choice(rng, [*stored])
        dtype, shape, _ = stored[name]
        size = int(dtype[2:])
        if dtype.startswith("|S"):
            odd = [text.encode("utf-8", "surrogatepass") for text in TEXTS] + [rng.bytes(size)]
            value = _choice(rng, odd)[:size].ljust(size, b"\0")
        else:
            value = (
                np.array(_choice(rng, [-(2**31), -1, 0, 1, 2, 17, 254, 255, 2**31 - 1, 2**62])).astype(dtype).tobytes()
            )
            if dtype.startswith("<f"):
                value = np.array(_choice(rng, [np.nan, np.inf, -np.inf, 1e-30, 1e30, -1, 0.5])).astype(dtype).tobytes()
            elif rng.random() < 0.3:
                value = rng.bytes(size)
        count = int(np.prod(shape))
        everywhere = rng.random() < 0.2
        overwrite(
            path, name, value * (count if everywhere else 1), 0 if everywhere else int(rng.integers(count)) * size
        )


def _edit_picture(path: Path, rng: np.random.Generator) -> None:
    start, stop = map(int, ShardReader(path).arrays["frames/offset"][3:5])
    picture = _choice(rng, list(pictures(rng)))[: stop - start]
    overwrite(path, "frames/jpeg", picture, start)


def pictures(rng: np.random.Generator) -> Iterator[bytes]:
    """What may stand in place of a frame: other sizes, formats and kinds of JPEG, and junk."""
    noise = rng.integers(0, 256, (40, 48, 3), np.uint8)
    jpeg = bytearray(cv2.imencode(".jpg", cv2.blur(noise, (9, 9)), [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes())
    size = jpeg.index(b"\xff\xc0") + 5
    for height, width in ((20_000, 20_000), (65_535, 65_535), (0, 48), (40, 49), (48, 40)):
        jpeg[size : size + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        yield bytes(jpeg)
    yield cv2.imencode(".jpg", noise[:20], [cv2.IMWRITE_JPEG_QUALITY, 5])[1].tobytes()
    yield cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 5])[1].tobytes()
    yield cv2.imencode(".jpg", noise[..., 0], [cv2.IMWRITE_JPEG_QUALITY, 5])[1].tobytes()
    yield b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    yield b"GIF89a" + b"\xff" * 60
    yield b"\xff\xd8" + b"\xff\xe0\0\2" * 100
    yield b"\xff\xd8\xff\xe0\0\0" * 30
    yield rng.bytes(300)
    yield b"\xff\xd8\xff\xda"


# --- crafted files


def crafted(secret: Path, pipe: Path) -> dict[str, Callable[[Path], None]]:
    """By name, what is done to a shard so that a trusting reader opens `secret`, waits for the pipe, runs out of memory or
    crashes."""
    edits: dict[str, Callable[[h5py.File], object]] = {
        "external storage": lambda file: _external(file, secret),
        "external storage in a pipe": lambda file: _external(file, pipe),
        "an external link": lambda file: _replaced(file, "videos/label", h5py.ExternalLink(secret, "/a")),
        "an external link to a pipe": lambda file: _replaced(file, "videos/label", h5py.ExternalLink(pipe, "/a")),
        "a linked group": lambda file: _replaced(file, "videos", h5py.ExternalLink(pipe, "/videos")),
        "a soft link": lambda file: _replaced(file, "videos/label", h5py.SoftLink("/videos/id")),
        "a soft link to itself": lambda file: _replaced(file, "videos/label", h5py.SoftLink("/videos/label")),
        "a virtual data set": lambda file: _virtual(file, str(secret)),
        "a virtual data set of itself": lambda file: _virtual(file, "."),
        "a virtual data set of a pipe": lambda file: _virtual(file, str(pipe)),
        "a filter": _filtered,
        "a group within itself": lambda file: file["videos"].__setitem__("more", file["/"]),
        "another data set": lambda file: file.create_dataset("videos/\x1b[2J", data=[1]),
        "another attribute": lambda file: file.attrs.update({"more": str(secret)}),
    }
    files: dict[str, Callable[[Path], object]] = {
        "a link to a text": lambda path: path.symlink_to(secret),
        "a link to a pipe": lambda path: path.symlink_to(pipe),
        "a pipe": os.mkfifo,
        "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a folder": Path.mkdir,
        "an empty file": Path.touch,
        "64 GiB of nothing": lambda path: _sparse(path, b""),
        "64 GiB after a header": lambda path: _sparse(path, sealed([b"{}", b"{}"])),
    }
    found: dict[str, Callable[[Path], None]] = {}
    for name, edit in edits.items():
        found[name] = functools.partial(_edited, edit=edit)
        found[f"{name}, no header"] = functools.partial(_edited, edit=edit, bare=True)
    for name, replace in files.items():
        found[name] = functools.partial(_other_file, replace=replace)
    for name, change in BOMBS.items():
        found[name] = functools.partial(forge, change=change)
    return found


def _edited(path: Path, edit: Callable[[h5py.File], object], bare: bool = False) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)
    reseal(path)
    if bare:
        path.write_bytes(parts(path)[2])


def _other_file(path: Path, replace: Callable[[Path], object]) -> None:
    path.unlink()
    replace(path)


def _virtual(file: h5py.File, source: str) -> None:
    layout = h5py.VirtualLayout((3,), "S8")
    layout[:] = h5py.VirtualSource(source, "videos/label", (3,), "S8")
    file.create_virtual_dataset("videos/new", layout)
    _take_the_place(file)


def _replaced(file: h5py.File, name: str, link: Any) -> None:
    file["new"] = link
    del file[name]
    file.move("new", name)


def _external(file: h5py.File, target: Path) -> None:
    file.create_dataset("videos/new", (3,), "S8", external=[(str(target), 0, 24)])
    _take_the_place(file)


def _filtered(file: h5py.File) -> None:
    file.create_dataset("videos/new", data=file["videos/label"][...], compression="gzip", chunks=(2,))
    _take_the_place(file)


def _take_the_place(file: h5py.File) -> None:
    del file["videos/label"]  # only now, or its bytes would be written over
    file.move("videos/new", "videos/label")


def _sparse(path: Path, head: bytes) -> None:
    path.write_bytes(head)
    os.truncate(path, 1 << 36)


def _declare(name: str, where: list[Any]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda shared, own: own["datasets"].update({name: where})


def _set(**settings: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda shared, own: shared["config"].update(settings)


BOMBS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "64 GiB of labels": _declare("statistics/motion", ["|u1", [1 << 32, 3, 2, 14], 4096]),
    "5 GB of texts": _declare("videos/label", ["|S99999", [50_000], 4096]),
    "2^288 texts": _declare("videos/label", ["|S1", [(1 << 48) - 1] * 6, 4096]),
    "a pace of 10^9999999999": _set(paces=["1", "1e9999999999"]),
    "a pace of 5,000 digits": _set(paces=["1", "9" * 5000]),
    "frames of 10^9 pixels": _set(height=10**9, width=10**9),
    "clips of 10^9 frames": _set(clip_length=10**9),
    "10^9 rows": _set(rows=10**9),
    "a region of texts": _set(region=["0", "0", "1", "1"]),
    "a region of two numbers": _set(region=[0, 1]),
    "orders of 12 clips": _set(order_clips=12),
    "30,000 crops": lambda shared, own: shared.update(crop_grid=[[0, 0]] * 30_000),
    "30,000 splits": lambda shared, own: shared.update(splits=[str(i) for i in range(30_000)]),
}
