"""The shards of a folder that has grown: `collection.json` beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from labelgen.errors import ReadError, ShardError
from labelgen.files import json_sha256, write_json
from labelgen.reading import Only, load_json, validate

_NAME = re.compile(r"[0-9]{5,9}\.h5")


def read_collection(folder: str | os.PathLike[str]) -> dict[str, list[str]] | None:
    """The names of the shards of a folder that has grown, each with the ids of the videos still to be labelled into it;
    None if the folder is that of a single run. Raises ShardError if the file is damaged."""
    path = Path(folder) / "collection.json"
    if not path.exists():
        return None
    try:
        content = load_json(path)
        validate(content, Only({"shards": {"*": [str]}}), "it")
        if odd := [name for name in content["shards"] if not _NAME.fullmatch(name)]:
            raise ValueError(f"it has the shard {odd[0]!r:.60}, expected a name such as 00012.h5")
    except (ReadError, ValueError) as error:
        raise ShardError(f"{path}: {str(error).removeprefix(f'{path}: ')}; run `vssl labelgen --add` again") from error
    shards: dict[str, list[str]] = content["shards"]
    return shards


def write_collection(folder: Path, shards: Mapping[str, Sequence[str]]) -> None:
    write_json(folder / "collection.json", {"shards": {name: list(ids) for name, ids in sorted(shards.items())}})


def hash_of_all(hashes: Sequence[str]) -> str:
    """The hash of the configuration of shards that belong together; if they differ, as in a collection that has grown,
    a hash of all of them."""
    return hashes[0] if len(set(hashes)) == 1 else json_sha256({"grown": list(hashes)})
