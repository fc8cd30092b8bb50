"""YAML files that extend one another, such as recipes and studies: `extends: other.yaml` includes the content of that file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelgen.errors import ReadError
from labelgen.reading import load_yaml
from trainer.errors import TrainerError

_LEVELS = 10


def beside(name: str, folder: Path) -> Path:
    """The file of that name, or path, in a folder."""
    return folder / name


def chain(path: Path, find: Callable[[str, Path], Path] = beside) -> list[tuple[Path, Any]]:
    """The contents of a file and of the files that it extends, the file itself last, each with its path and without `extends`.

    find: (name in `extends`, folder of the extending file) -> path of the extended file. Raises TrainerError if a file
    cannot be read, an `extends` is not a string, or a chain has more than 10 files.
    """
    found: list[tuple[Path, Any]] = []
    while True:
        try:
            content = load_yaml(path)
        except ReadError as error:
            raise TrainerError(str(error)) from error
        name = content.pop("extends", None) if isinstance(content, dict) else None
        found.insert(0, (path, content))
        if name is None:
            return found
        if not isinstance(name, str):
            raise TrainerError(f"{path}: extends is {name!r:.60}, expected the name of a file")
        if len(found) > _LEVELS:
            raise TrainerError(
                f"{path}: more than {_LEVELS} files extend one another, expected fewer; does one extend itself?"
            )
        try:
            path = find(name, path.parent)
        except TrainerError as error:
            raise TrainerError(f"{path}: extends {name!r:.60}: {error}") from error


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings joined; values of `changes` replace those of `base`."""
    both = {k: merged(base[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | changes | both
