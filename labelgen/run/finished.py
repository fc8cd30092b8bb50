"""Summaries of finished shards, kept beside them, so that a repeated command need not read a folder of many shards again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from labelgen import shards
from labelgen.errors import ReadError
from labelgen.files import writing
from labelgen.reading import parse_json, read_bytes, validate
from labelgen.shards.checks import check_texts

_COUNTS = ("labelled", "frames", "bytes", "clips", "without_clip")
_FAILURE = {**dict.fromkeys(("id", "path", "stage", "reason", "shard"), str), "kept": bool}
_SUMMARY = {
    "config_hash": str,
    "totals": {**dict.fromkeys(_COUNTS, int), "*": int},
    "failures": [_FAILURE],
    "sizes?": {"*": int},
}


class Finished:
    """Summaries of the finished shards of a folder: from the line in its `shards.jsonl` with the size and time of the
    shard's file, else from the shard, and a line is added."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "shards.jsonl"
        lines = read_bytes(self._file).splitlines(keepends=True) if self._file.exists() else []
        self._torn = bool(lines) and not lines[-1].endswith(b"\n")  # cut off by a full disk or a kill
        self._lines = {line[2 : line.find(b'"', 2)]: line for line in lines}  # the last line of a name counts

    def summary(self, path: Path, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
        """`shard_summary` of an existing shard and, under "sizes", the bytes of its videos' files by id, as last given.
        Raises ShardError if the shard is incomplete."""
        status = os.stat(path)
        key = [path.name, status.st_size, status.st_mtime_ns]
        name = path.name.encode()
        summary = self._noted(self._lines.get(name, b""), key)
        if summary is None or sizes is not None and summary.get("sizes") != sizes:
            summary = (summary or shard_summary(path)) | ({} if sizes is None else {"sizes": dict(sizes)})
            self._lines[name] = json.dumps([*key, summary]).encode() + b"\n"
            with writing(self._file), open(self._file, "ab") as file:
                file.write(b"\n" * self._torn + self._lines[name])
            self._torn = False
        return summary

    def _noted(self, line: bytes, key: list[Any]) -> dict[str, Any] | None:
        """The summary in a line, None if it belongs to another file or was not written by `summary`."""
        try:
            *known, summary = parse_json(line.decode(), str(self._file))
            validate(known, [str | int], "its file")
            validate(summary, _SUMMARY, "its summary")
            for texts in ([summary["config_hash"]], *(failure.values() for failure in summary["failures"])):
                check_texts("it", [text for text in texts if isinstance(text, str)])
        except (ValueError, TypeError, ReadError):
            return None
        found: dict[str, Any] = summary
        return found if known == key else None


def shard_summary(path: Path) -> dict[str, Any]:
    """ "config_hash", "totals" (counts by name) and "failures" of one shard, as in report.json."""
    reader = shards.ShardReader(path)
    arrays = reader.arrays
    kept = set(arrays["videos/id"])
    totals = {
        "labelled": len(kept),
        "frames": len(arrays["frames/offset"]) - 1,
        "bytes": path.stat().st_size,
        "clips": reader.n_clips,
        "without_clip": len(kept) - len(np.unique(arrays["clips/video"])),
    }
    for kind in reader.kinds:
        totals |= kind.counts(arrays)
        if kind.of_video is not None:
            totals[f"too_short_for_{kind.name}"] = int(kind.too_short(arrays).sum())
    columns = (arrays[f"failures/{name}"] for name in ("id", "path", "stage", "reason"))
    failures = [
        {"id": video, "path": name, "stage": stage, "reason": reason, "kept": video in kept, "shard": path.name}
        for video, name, stage, reason in zip(*columns, strict=True)
    ]
    return {"config_hash": reader.config_hash, "totals": totals, "failures": failures}
