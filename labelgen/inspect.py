"""What a folder of shards holds, and whether it is sound."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from labelgen.motion import LABELS as MOTION_LABELS
from labelgen.patterns import BLOCKS, crop_grid
from labelgen.sampling import CLIP_LENGTH, order_permutations, pace_offsets
from labelgen.shards import NO_ROW, ShardReader, config_hash

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
    if set(labels) != {""}:
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
    return [f"  {video}: {stage}: {reason}" for video, stage, reason in zip(*columns, strict=True)]


def problems(shard: ShardReader) -> Iterator[str]:
    """Everything that is wrong with a shard, one line each: hashes, frames, offsets, ranges."""
    arrays, path = shard.arrays, shard.path
    if shard.jpeg_sha256() != shard.sha256:
        yield f"{path}: the frames are not those that were written (SHA-256)"
    if config_hash(shard.config) != shard.config_hash:
        yield f"{path}: the configuration does not have its hash {shard.config_hash}"
    offset = arrays["frames/offset"]
    if offset[0] != 0 or (np.diff(offset) <= 0).any():
        yield f"{path}: frame offsets do not grow from 0"
        return
    for frame in range(len(offset) - 1):
        picture = cv2.imdecode(shard.jpeg(frame), cv2.IMREAD_COLOR)
        if picture is None or picture.shape[:2] != shard.frame_size:
            yield f"{path}: frame {frame} does not decode to {shard.frame_size}"
    n_frames, first = arrays["videos/n_frames"], arrays["videos/first_frame"]
    if (first != np.cumsum(n_frames) - n_frames).any() or n_frames.sum() != len(offset) - 1:
        yield f"{path}: videos and frames do not match"
    lengths = {key: len(arrays[key]) for key in arrays}
    for group, count in (("videos", len(n_frames)), ("pace", len(n_frames)), ("order", len(n_frames))):
        if any(n != count for key, n in lengths.items() if key.startswith(group + "/")):
            yield f"{path}: /{group} does not have {count} rows in every data set"
    clips = len(arrays["clips/video"])
    if any(n != clips for key, n in lengths.items() if key.startswith(("clips/", "statistics/", "curriculum/"))):
        yield f"{path}: labels do not have {clips} rows in every data set"
    yield from (f"{path}: {what} out of range" for what, fault in _ranges(shard) if fault)


def _ranges(shard: ShardReader) -> Iterator[tuple[str, bool]]:
    arrays, config = shard.arrays, shard.config
    n_frames = arrays["videos/n_frames"]
    grid = crop_grid(config["height"], config["width"], config["crop"])
    yield "crop grid", not np.array_equal(shard.crop_grid, grid)
    yield "split", bool((arrays["videos/split"] > 3).any())
    video, start = arrays["clips/video"], arrays["clips/start"]
    inside = (video >= 0) & (video < len(n_frames)) & (start >= 0)
    yield "clip", not inside.all() or bool((start + CLIP_LENGTH > n_frames[video]).any())
    shape = (len(video), len(grid), 2, MOTION_LABELS)
    motion, valid = arrays["statistics/motion"], arrays["statistics/valid"]
    yield "motion label", motion.shape != shape or bool((motion >= _MOTION_SIZES).any())
    yield "validity", valid.shape != shape or bool((valid > 1).any())
    yield "appearance label", bool((arrays["statistics/appearance"] >= _APPEARANCE_SIZES).any())
    score = arrays["curriculum/score"]
    yield "difficulty", bool(((score < 1 / 16 - 1e-6) | (score > 1)).any())
    pace, begin, wrapped = arrays["pace/pace"], arrays["pace/start"], arrays["pace/wrapped"]
    spans = [(int(pace_offsets(p).min()), int(pace_offsets(p).max())) for p in shard.paces]
    rows = [(v, r) for v, r in np.argwhere(pace != NO_ROW) if pace[v, r] >= len(spans)]
    yield "pace", bool(rows) or config["rows"] != pace.shape[1]
    yield (
        "pace row",
        not rows
        and any(
            not wrapped[v, r]
            and not 0 <= begin[v, r] + spans[pace[v, r]][0] <= begin[v, r] + spans[pace[v, r]][1] < n_frames[v]
            for v, r in np.argwhere(pace != NO_ROW)
        ),
    )
    order, permutation = arrays["order/start"], arrays["order/permutation"]
    used = permutation != NO_ROW
    yield "permutation", bool((permutation[used] >= len(order_permutations(config["order_clips"]))).any())
    ends = np.broadcast_to(n_frames[:, None, None], order.shape)[used]
    apart = np.diff(order[used], axis=-1)
    yield (
        "order row",
        bool((order[used] < 0).any() or (order[used] + CLIP_LENGTH > ends).any() or (apart < CLIP_LENGTH).any()),
    )
