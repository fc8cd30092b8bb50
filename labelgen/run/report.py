"""What the shards hold and what this run did, as report.json has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelgen import shards
from labelgen.manifest import Dataset, Video


def report(
    dataset: Dataset, videos: Sequence[Video], paths: Sequence[Path], identity: dict[str, Any]
) -> dict[str, Any]:
    """What the shards hold, read back from them."""
    totals: Counter[str] = Counter()
    failures = []
    for path in paths:
        reader = shards.ShardReader(path)
        arrays = reader.arrays
        kept = set(arrays["videos/id"])
        totals["labelled"] += len(kept)
        totals["frames"] += len(arrays["frames/offset"]) - 1
        totals["bytes"] += path.stat().st_size
        totals["clips"] += reader.n_clips
        totals["without_clip"] += len(kept) - len(np.unique(arrays["clips/video"]))
        for kind in reader.kinds:
            for name, count in kind.counts(arrays).items():
                totals[name] += count
            if kind.of_video is not None:
                totals[f"too_short_for_{kind.name}"] += int(kind.too_short(arrays).sum())
        columns = (arrays[f"failures/{name}"] for name in ("id", "path", "stage", "reason"))
        for video, name, stage, reason in zip(*columns, strict=True):
            failure = {"id": video, "path": name, "stage": stage, "reason": reason}
            failures.append(failure | {"kept": video in kept, "shard": path.name})
    return {
        "dataset": dataset.name,
        "config": identity,
        "config_hash": shards.config_hash(identity),
        "shards": len(paths),
        "videos": {
            "asked": len(videos),
            "labelled": totals.pop("labelled"),
            "cut_short": sum(failure["kept"] for failure in failures),
            "failed": sum(not failure["kept"] for failure in failures),
            "listed_but_missing": len(dataset.missing),
            "in_no_official_list": len(dataset.unlisted),
        },
        **totals,
        "failures": failures,
    }


def this_run(workers: int, elapsed: float, seconds: Counter[str], counts: Counter[str]) -> dict[str, Any]:
    """What was done since the command was started, and how fast."""
    return {
        "workers": workers,
        "seconds": round(elapsed, 3),
        "seconds_per_stage": {stage: round(value, 3) for stage, value in seconds.items()},
        **{name: counts[name] for name in ("frames", "flow pairs", "clips")},
        "frames_per_second": round(counts["frames"] / elapsed, 1),
        "flow_pairs_per_second": round(counts["flow pairs"] / elapsed, 1),
    }
