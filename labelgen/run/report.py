"""The content of report.json: what the shards hold, and what this run did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from labelgen import shards
from labelgen.manifest import Dataset, Video


def report(
    dataset: Dataset, videos: Sequence[Video], summaries: Iterable[dict[str, Any]], identity: dict[str, Any]
) -> dict[str, Any]:
    """What the shards hold. summaries: of all shards in order, see `finished.shard_summary`."""
    totals: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    count = 0
    for summary in summaries:
        count += 1
        totals.update(summary["totals"])
        failures += summary["failures"]
    return {
        "dataset": dataset.name,
        "config": identity,
        "config_hash": shards.config_hash(identity),
        "shards": count,
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


def this_run(
    workers: int, elapsed: float, seconds: Counter[str], counts: Counter[str], instructions: Iterable[str]
) -> dict[str, Any]:
    """What was done since the command was started, how fast, and for which processors the kernels were compiled."""
    return {
        "workers": workers,
        "instructions": sorted(instructions),
        "seconds": round(elapsed, 3),
        "seconds_per_stage": {stage: round(value, 3) for stage, value in seconds.items()},
        **{name: counts[name] for name in ("frames", "flow pairs", "clips")},
        "frames_per_second": round(counts["frames"] / elapsed, 1),
        "flow_pairs_per_second": round(counts["flow pairs"] / elapsed, 1),
    }
