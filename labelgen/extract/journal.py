"""The state of the videos whose flow is in a folder: a file of lines beside theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelgen.errors import ReadError, ShardError
from labelgen.extract.video import state
from labelgen.files import writing
from labelgen.reading import Only, parse_json, read_bytes, validate
from labelgen.run.plan import differences
from labelgen.shards.checks import check_texts

_PLANNED = {"id": str, "name": str}
_COUNTS = dict.fromkeys(("frames", "flows", "height", "width", "outside", "bytes"), int)
_DONE = Only({**_PLANNED, "size": int, **_COUNTS, "fps": float, "cut_short": str, "places": [[str | int], ...]})
_FAILED = Only({**_PLANNED, "size": int, "stage": str, "reason": str})
NAME = ".flow.jsonl"


class Journal:
    """Lines of JSON: first the configuration; then for each video its id and {video} of its files, and later its outcome.

    fresh: whether there was no journal, so that nothing in the folder belongs to this command
    names: {video} of the planned videos by their ids: files in their places belong to this command
    entries: outcome of the videos that are done or have failed, by their ids
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self._folder, self._file = folder, folder / NAME
        self.fresh = False
        self.names: dict[str, str] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self._lines: list[bytes] = []
        content = read_bytes(self._file) if self._file.exists() else b""
        self._torn = bool(content) and not content.endswith(b"\n")  # cut off by a full disk or a kill
        first, *lines = content.split(b"\n") if b"\n" in content else [b""]
        if first:
            self._check(first, configuration)
        else:
            self._lines = [json.dumps({"configuration": configuration}).encode()]
            self.fresh, self._torn = True, False
            self._file.unlink(missing_ok=True)  # cut off within the first line
        for line in lines:
            self._read(line)

    def _check(self, first: bytes, configuration: Mapping[str, Any]) -> None:
        try:
            there = parse_json(first.decode(), str(self._file))
            validate(there, {"configuration": {}}, "it")
        except (ValueError, ReadError) as error:
            raise ShardError(
                f"{self._file}: damaged ({error}); choose another output folder, or delete this one"
            ) from error
        if differing := differences(there["configuration"], configuration):
            raise ShardError(
                f"{self._folder} holds flow of another configuration ({'; '.join(differing.values())}); choose another output "
                "folder, or delete this one"
            )

    def _read(self, line: bytes) -> None:
        """Apply a line; one that was cut off, or not written by this class, is ignored."""
        try:
            entry = parse_json(line.decode(), str(self._file))
            validate(entry, _PLANNED if len(entry) == 2 else _DONE if "places" in entry else _FAILED, "it")
            places = entry.get("places", ())
            if not all([type(value) for value in place] == [str, int, int] for place in places):
                return
            check_texts("it", [entry.get(name, "") for name in ("stage", "reason", "cut_short")])
            check_texts("it", [entry["name"], *(place[0] for place in places)], paths=True)
        except (ValueError, TypeError, ReadError):
            return
        self.names[entry["id"]] = entry["name"]
        self.entries.pop(entry["id"], None)
        if len(entry) > 2:
            self.entries[entry["id"]] = entry

    def plan(self, id: str, name: str) -> None:
        """Note that the files of a video will have this name."""
        self.names[id] = name
        self._lines.append(json.dumps({"id": id, "name": name}).encode())

    def add(self, id: str, size: int, notes: Mapping[str, Any]) -> None:
        """Note the outcome of a video whose file has `size` bytes."""
        self.entries[id] = {"id": id, "name": self.names[id], "size": size, **notes}
        self._lines.append(json.dumps(self.entries[id]).encode())

    def write(self) -> None:
        """Write the notes, once all files are on the disk, so that after a power cut each line is true."""
        if self._lines:
            os.sync()
            with writing(self._file), open(self._file, "ab") as file:
                file.write(b"\n" * self._torn + b"".join(line + b"\n" for line in self._lines))
                file.flush()
                os.fsync(file.fileno())
            self._lines, self._torn = [], False

    def settled(self, id: str, size: int) -> bool:
        """Whether a video of this size is done, with all of its files, or has failed."""
        entry = self.entries.get(id)
        if entry is None or entry["size"] != size:
            return False
        return all(self._intact(*place) for place in entry.get("places", ()))

    def _intact(self, place: str, files: int, changed: int) -> bool:
        try:
            if os.stat(self._folder / place).st_mtime_ns == changed:
                return True
            there, several = state(self._folder / place)[0], (self._folder / place).is_dir()
            return there >= files if several else there == files  # a user may have added files
        except OSError:
            return False
