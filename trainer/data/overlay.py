"""Other classes and splits for the videos of shards, in a small file, so that a study with other labels copies no pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelgen.errors import ReadError
from labelgen.files import json_sha256, write_json
from labelgen.reading import Only, load_json, validate
from labelgen.shards.checks import check_texts, escaped
from trainer.errors import TrainerError

_FORM = Only({"shards": str, "labels": [str], "splits": {"*": str}})
_PARTS = re.compile("[0-3]*")  # NONE, TRAIN, VALIDATION, TEST


@dataclass(frozen=True)
class Overlay:
    """Replacements of "videos/label" and "videos/split" of shards.

    labels: the class of every video, "" for none; splits: the part of every video, uint8 [videos], by name of the split
    """

    labels: Sequence[str]
    splits: Mapping[str, np.ndarray]

    def write(self, folder: Path, name: str, shards: str) -> Path:
        """Write `<name>-<hash of the content>.json` into a folder, which is created. shards: digest of the shards, see
        `Readers`."""
        splits = {split: "".join(map(str, column.tolist())) for split, column in self.splits.items()}
        content = {"shards": shards, "labels": [*map(escaped, self.labels)], "splits": splits}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path := folder / f"{name}-{json_sha256(content)}.json", content)
        return path


def read_overlay(path: str | os.PathLike[str], shards: str, videos: int) -> Overlay:
    """The overlay in a file. Raises TrainerError if it is damaged, or not for shards with this digest and number of videos."""
    try:
        content = load_json(path)
        validate(content, _FORM, "it")
        labels, splits = content["labels"], content["splits"]
        if content["shards"] != shards:
            raise ValueError(f"it is for the shards {content['shards']!r:.40}, expected {shards!r}")
        if not splits:
            raise ValueError("it has no splits, expected at least one")
        check_texts("it", [*labels, *splits])
        for name, column in {"labels": labels, **splits}.items():
            if len(column) != videos:
                raise ValueError(f"{name:.60} has {len(column)} videos, expected {videos}")
        for name, column in splits.items():
            if not _PARTS.fullmatch(column):
                raise ValueError(f"split {name:.60} is {column!r:.60}, expected digits from 0 to 3")
    except (ReadError, ValueError) as error:
        raise TrainerError(
            f"{path}: damaged, or for other shards ({error}); run the study again to rewrite it"
        ) from error
    digits = {name: np.frombuffer(column.encode(), np.uint8) for name, column in splits.items()}
    return Overlay(labels, {name: column - ord("0") for name, column in digits.items()})
