"""What a folder of shards holds, and whether it is sound."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from labelgen.appearance import LABELS as APPEARANCE_LABELS
from labelgen.errors import ShardError
from labelgen.motion import LABELS as MOTION_LABELS
from labelgen.patterns import BLOCKS, crop_grid
from labelgen.sampling import CLIP_LENGTH, order_permutations, pace_offsets
from labelgen.shards import NO_ROW, NUMBERS, ShardReader, config_hash, disagreements, labels_sha256, shard_paths

_MOTION_SIZES = np.array([size for blocks in BLOCKS for size in (blocks, 8, blocks, 8)] + [CLIP_LENGTH - 1] * 2)
_APPEARANCE_SIZES = np.array([size for blocks in BLOCKS for size in (blocks, 8, blocks, 8)] + [8])


def describe(shards: Sequence[ShardReader]) -> str:
    """A page of text: videos, frames, clips, sizes, histograms of the labels, failures, configuration."""
    first = shards[0]

    def joined(key: str) -> np.ndarray:
        return np.concatenate([shard.arrays[key] for shard in shards])

    frames, size = joined("videos/n_frames"), sum(os.path.getsize(shard.path) for shard in shards)
    jpeg = sum(int(shard.arrays["frames/offset"][-1]) for shard in shards)
    score = joined("curriculum/score")
    labels = Counter(label for shard in shards for label in shard.arrays["videos/label"])
    lines = [
        f"{first.config['dataset']}: {len(shards)} shards, {size / 1e6:,.1f} MB, configuration {first.config_hash}",
        f"videos {len(frames):,}, frames {frames.sum():,} ({jpeg / max(1, frames.sum()) / 1000:.1f} kB each), "
        f"clips {len(score):,}, crops per clip {len(first.crop_grid)} plain and mirrored",
    ]
    if len(frames):
        lines.append(f"frames per video: {frames.min()} to {frames.max()}, median {np.median(frames):g}")
    if set(labels) - {""}:
        lines.append(
            f"classes {len(labels)}: " + ", ".join(f"{name or 'none'} {n}" for name, n in sorted(labels.items())[:12])
        )
    split = joined("videos/split")
    for k, name in enumerate(first.splits[:10]):
        counts = [int((split[:, k] == part).sum()) for part in range(4)]
        lines.append("split {}: none {}, train {}, validation {}, test {}".format(name, *counts))
    if not np.isnan(score).all():
        quartiles = np.nanpercentile(score, [0, 25, 50, 75, 100])
        lines.append(
            f"difficulty, quartiles {np.array2string(quartiles, precision=3)}, {np.isnan(score).sum()} clips without"
        )
    motion, valid, appearance = (joined(f"statistics/{name}") for name in ("motion", "valid", "appearance"))
    names = [f"{name} {pattern}" for pattern in ("grid", "rings", "triangles") for name in ("p_u", "o_u", "p_v", "o_v")]
    for label, name in enumerate([*names, "I_u", "I_v"]):
        lines.append(_histogram(name, motion[..., label][valid[..., label] > 0], _MOTION_SIZES[label]))
    names = [f"{name} {pattern}" for pattern in ("grid", "rings", "triangles") for name in ("p_l", "c_l", "p_s", "c_s")]
    for label, name in enumerate([*names, "C"]):
        lines.append(_histogram(name, appearance[..., label].ravel(), _APPEARANCE_SIZES[label]))
    for kind, key, classes in (
        ("pace", "pace/pace", len(first.paces)),
        ("order", "order/permutation", len(order_permutations(first.config["order_clips"]))),
    ):
        rows = joined(key)
        lines.append(
            _histogram(kind, rows[rows != NO_ROW], classes) + f"; {(rows[:, 0] == NO_ROW).sum()} videos too short"
        )
    failures = [line for shard in shards for line in _failures(shard)]
    lines += [f"failures {len(failures)}", *failures]
    lines += ["configuration: " + ", ".join(f"{key}={value}" for key, value in first.config.items())]
    return "\n".join(lines)


def _histogram(name: str, values: np.ndarray, size: int) -> str:
    shares = np.bincount(values, minlength=size) / max(1, len(values)) * 100
    return (
        f"{name:14} % of each id: " + " ".join(f"{share:.0f}" for share in shares[:30]) + (" ..." if size > 30 else "")
    )


def _failures(shard: ShardReader) -> list[str]:
    columns = (shard.arrays[f"failures/{name}"] for name in ("id", "stage", "reason"))
    name = os.path.basename(shard.path)
    return [f"  {video}: {stage}: {reason} ({name})" for video, stage, reason in zip(*columns, strict=True)]


def verify(folder: str | os.PathLike) -> tuple[int, list[str]]:
    """Read all shards of a folder again: how many there are, and everything that is wrong with them, a line each.

    Raises ShardError where there is none.
    """
    paths, found, configs = shard_paths(folder), [], {}
    for path in paths:
        try:
            shard = ShardReader(path)
        except ShardError as error:
            found.append(str(error))
            continue
        configs[shard.path] = shard.config
        found += problems(shard)
    if len(configs) == len(paths):
        found += disagreements(configs)
    return len(paths), found


def problems(shard: ShardReader) -> Iterator[str]:
    """Everything that is wrong with one shard, a line each: hashes, frames, offsets, shapes, ranges."""
    arrays, path = shard.arrays, shard.path
    if shard.jpeg_sha256() != shard.sha256["frames"]:
        yield f"{path}: the frames are not those that were written (SHA-256)"
    if labels_sha256(arrays) != shard.sha256["labels"]:
        yield f"{path}: the labels are not those that were written (SHA-256)"
    if config_hash(shard.config) != shard.config_hash:
        yield f"{path}: the configuration does not have its hash {shard.config_hash}"
        return  # it says what the rest must be like
    offset = arrays["frames/offset"]
    if offset[0] != 0 or (np.diff(offset) <= 0).any():
        yield f"{path}: frames/offset does not grow from 0"
    else:
        for frame in range(len(offset) - 1):
            if _picture_size(shard.jpeg(frame)) != shard.frame_size:
                yield f"{path}: frame {frame} does not decode to {shard.frame_size}"
    misshapen = [
        f"{path}: {key} is {arrays[key].dtype} {arrays[key].shape}, expected {NUMBERS[key].__name__} {shape}"
        for key, shape in _shapes(shard).items()
        if arrays[key].dtype != NUMBERS[key] or arrays[key].shape != shape
    ]
    yield from misshapen
    if not misshapen:
        yield from (f"{path}: {key} is out of range" for key, fault in _ranges(shard) if fault)


def _picture_size(jpeg: np.ndarray) -> tuple[int, ...]:
    try:
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    except cv2.error:  # a header that asks for an absurd size
        return ()
    return () if picture is None else picture.shape[:2]


def _shapes(shard: ShardReader) -> dict[str, tuple[int, ...]]:
    """The shape that every data set of numbers must have, from the texts, the configuration and the first frames."""
    arrays, config = shard.arrays, shard.config
    videos, clips, crops, rows = shard.n_videos, shard.n_clips, len(shard.crop_grid), config["rows"]
    shapes = {key: (videos,) for key in NUMBERS if key.startswith("videos/")}
    shapes |= {key: (clips,) for key in NUMBERS if key.startswith(("clips/", "curriculum/"))}
    shapes |= {key: (videos, rows) for key in NUMBERS if key.startswith(("pace/", "order/"))}
    return shapes | {
        "frames/offset": (int(arrays["videos/n_frames"].sum()) + 1,),
        "videos/split": (videos, len(shard.splits)),
        "statistics/motion": (clips, crops, 2, MOTION_LABELS),
        "statistics/valid": (clips, crops, 2, MOTION_LABELS),
        "statistics/appearance": (clips, crops, 2, APPEARANCE_LABELS),
        "order/start": (videos, rows, config["order_clips"]),
    }


def _ranges(shard: ShardReader) -> Iterator[tuple[str, bool]]:
    """Each data set, and whether a value of it cannot be."""
    arrays, config = shard.arrays, shard.config
    n_frames = arrays["videos/n_frames"]
    grid = crop_grid(config["height"], config["width"], config["crop"])
    yield "crop_grid", not np.array_equal(shard.crop_grid, grid)
    for group, names in (("videos", ("id", "path", "label", "group")), ("failures", ("id", "path", "stage", "reason"))):
        lengths = {len(arrays[f"{group}/{name}"]) for name in names}
        yield f"number of /{group}", len(lengths) > 1
    yield "videos/n_frames", bool((n_frames < 1).any())
    yield "videos/first_frame", bool((arrays["videos/first_frame"] != np.cumsum(n_frames) - n_frames).any())
    yield "videos/split", bool((arrays["videos/split"] > 3).any())
    video, start = arrays["clips/video"], arrays["clips/start"]
    inside = (video >= 0) & (video < len(n_frames))
    yield "clips/video", not inside.all()
    yield "clips/start", bool((start < 0).any() or (start[inside] + CLIP_LENGTH > n_frames[video[inside]]).any())
    yield "statistics/motion", bool((arrays["statistics/motion"] >= _MOTION_SIZES).any())
    yield "statistics/valid", bool((arrays["statistics/valid"] > 1).any())
    yield "statistics/appearance", bool((arrays["statistics/appearance"] >= _APPEARANCE_SIZES).any())
    score = arrays["curriculum/score"]
    yield "curriculum/score", bool(((score < 1 / 16 - 1e-6) | (score > 1)).any())
    yield from _row_ranges(shard)


def _row_ranges(shard: ShardReader) -> Iterator[tuple[str, bool]]:
    arrays, config = shard.arrays, shard.config
    lengths = arrays["videos/n_frames"][:, None].astype(np.int64)
    pace, begin, wrapped = arrays["pace/pace"], arrays["pace/start"], arrays["pace/wrapped"]
    used = pace != NO_ROW
    known = pace < len(shard.paces)
    yield "pace/pace", bool((used & ~known).any() or (used.any(1) != used.all(1)).any())
    yield "pace/wrapped", bool((wrapped > config["allow_wrap"]).any())
    offsets = np.array([(pace_offsets(p).min(), pace_offsets(p).max()) for p in shard.paces])
    low, high = np.moveaxis(offsets[np.where(known, pace, 0)], -1, 0)
    low, high = np.where(wrapped, 0, low), np.where(wrapped, 0, high)
    outside = (begin + low < 0) | (begin + high >= lengths)
    yield "pace/start", bool((outside & known).any() or (begin[~used] != -1).any())

    order, permutation = arrays["order/start"], arrays["order/permutation"]
    used = permutation != NO_ROW
    classes = len(order_permutations(config["order_clips"]))
    yield "order/permutation", bool((permutation[used] >= classes).any() or (used.any(1) != used.all(1)).any())
    outside = (order < 0) | (order + CLIP_LENGTH > lengths[..., None])
    overlapping = np.diff(order, axis=-1) < CLIP_LENGTH
    yield "order/start", bool(outside[used].any() or overlapping[used].any() or (order[~used] != -1).any())
