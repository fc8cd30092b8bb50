"""The content of a folder of shards as a page of text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from labelgen.progress import counted
from labelgen.shards.collection import hash_of_all
from labelgen.shards.reader import ShardReader
from labelgen.shards.schema import PARTS


def describe(shards: Sequence[ShardReader]) -> str:
    """A page of text: videos, frames, clips, sizes, histograms of the labels, failures, configuration."""
    first, hashed = shards[0], hash_of_all([shard.config_hash for shard in shards])
    arrays: dict[str, Any] = {}
    for key, values in first.arrays.items():
        parts = [shard.arrays[key] for shard in shards]
        arrays[key] = sum(parts, ()) if isinstance(values, tuple) else np.concatenate(parts)
    frames, size = arrays["videos/n_frames"], sum(os.path.getsize(shard.path) for shard in shards)
    jpeg = sum(int(shard.arrays["frames/offset"][-1]) for shard in shards)
    lines = [
        f"{first.config['dataset']}: {counted(len(shards), 'shard')}, {size / 1e6:,.1f} MB, configuration {hashed}",
        f"videos {len(frames):,}, frames {frames.sum():,} ({jpeg / max(1, frames.sum()) / 1000:.1f} kB each), "
        f"clips {len(arrays['clips/video']):,} of {first.clip_length} frames, "
        f"crops per clip {len(first.crop_grid)} plain and mirrored",
    ]
    if len(frames):
        lines.append(f"frames per video: {frames.min()} to {frames.max()}, median {np.median(frames):g}")
    labels = Counter(arrays["videos/label"])
    if set(labels) - {""}:
        counts = ", ".join(f"{name or 'none'} {n}" for name, n in sorted(labels.items())[:12])
        lines.append(f"classes {len(labels)}: {counts}")
    if gaps := [line for shard in shards for line in _gaps(shard)]:
        lines += [f"videos with gaps in their time stamps, which labels cross: {len(gaps):,}", *gaps[:20]]
    for k, name in enumerate(first.splits[:10]):
        column = arrays["videos/split"][:, k]
        lines.append(
            f"split {name}: " + ", ".join(f"{word} {(column == code).sum()}" for code, word in enumerate(PARTS))
        )
    for kind in first.kinds:
        lines += kind.lines(arrays, first.config)
    if first.unknown:
        lines.append(f"unknown label kinds: {', '.join(first.unknown)}")
    failures = [line for shard in shards for line in _failures(shard)]
    lines += [f"failures {len(failures)}", *failures]
    lines += ["configuration: " + ", ".join(f"{key}={value}" for key, value in first.config.items())]
    return "\n".join(lines)


def _gaps(shard: ShardReader) -> Iterator[str]:
    """A line for each video with frames that are shown for more than twice the usual time, such as a screen recording."""
    arrays = shard.arrays
    for video, first, n in zip(*(arrays[f"videos/{key}"] for key in ("id", "first_frame", "n_frames")), strict=True):
        steps = np.diff(arrays["frames/time"][first : first + n])
        if len(steps) and (count := int((steps > 2 * np.median(steps)).sum())):
            yield f"  {video}: {count:,}, the longest {steps.max():.2g} s"


def _failures(shard: ShardReader) -> list[str]:
    columns = (shard.arrays[f"failures/{name}"] for name in ("id", "stage", "reason"))
    name = os.path.basename(shard.path)
    return [f"  {video}: {stage}: {reason} ({name})" for video, stage, reason in zip(*columns, strict=True)]
