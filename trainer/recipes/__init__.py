"""Recipes: the settings of papers as YAML files, each value with its source. This module also parses options given as text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from labelgen.errors import ReadError
from labelgen.reading import Only, parse_yaml, validate
from trainer.errors import SettingError, TrainerError
from trainer.extends import chain, merged
from trainer.methods import method_class
from trainer.settings import DECLARATIONS, Settings, resolve

RECIPES = Path(__file__).parent
_ENTRY = Only({"value": str | int | float | bool | list | None, "source": str})
_FORM = Only(
    {
        "about": str,
        "settings?": Only({f"{name}?": _ENTRY for name in DECLARATIONS} | {"options?": {"*": _ENTRY}}),
        "shards?": {"*": _ENTRY},
    }
)


def recipe(name: str) -> tuple[Settings, dict[str, Any]]:
    """Settings of a recipe, and the shard configuration that it is meant for.

    Each value of a recipe has its source, a paper or `assumed`: `lr: {value: 0.001, source: thesis 4.3}`; a recipe inherits
    missing values from the one that it `extends`.

    Parameters
    ----------
    name : str
        Of a file in trainer/recipes, without .yaml, or the path of one.

    Returns
    -------
    Settings, dict
        The settings of the training, and the settings of `labelgen` for its shards.

    Raises
    ------
    TrainerError
        For unknown keys, wrong types and values without a source.

    Examples
    --------
    >>> from trainer.recipes import recipe
    >>> settings, shards = recipe("pace-r3d10-ucf101")
    >>> settings.method, shards["paces"]
    ('pace', ['1', '2', '3', '4'])
    """
    content = read(name)
    settings = {key: _value(entry["value"]) for key, entry in content["settings"].items() if key != "options"}
    if "options" in content["settings"]:
        method = str(settings.get("method", DECLARATIONS["method"].default))
        settings["options"] = {
            method: {key: _value(entry["value"]) for key, entry in content["settings"]["options"].items()}
        }
    try:
        resolve(Settings(**settings))
    except TrainerError as error:
        raise TrainerError(f"{_path(name)}: {error}") from error
    return Settings(**settings), {key: _value(entry["value"]) for key, entry in content["shards"].items()}


def read(name: str) -> dict[str, Any]:
    """The contents of a recipe and of those that it extends: about, settings and shards, each value as {value, source}."""
    content: dict[str, Any] = {"shards": {}}
    for path, own in chain(_path(name), _path):
        _check(path, own)
        content = merged(content, own)
    if "settings" not in content:
        raise TrainerError(f"{path}: no settings, expected some here or in a recipe that it extends")
    return content


def _path(name: str, folder: Path = Path()) -> Path:
    """The file of a recipe: one in this package, by name, or any .yaml file, by its path from a folder."""
    path = folder / name if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not os.path.exists(path):  # Path.exists raises for invalid paths
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise SettingError(f"no recipe {name!r:.200}, expected one of: {known}; or the path of a .yaml file")
    return path


def _check(path: Path, content: object) -> None:
    """Raises TrainerError unless a file has the keys of a recipe and gives each value with its source."""
    try:
        validate(content, _FORM, "it")
    except ValueError as error:
        raise TrainerError(f"{path}: {error}; each value must have a source, {{value: ..., source: ...}}") from error


def differing(expected: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The keys in which a configuration of shards differs from the one that a recipe is for. More rows, or more random clips of
    a video, than the recipe needs are not a difference, since a run uses only as many as it needs."""

    def agrees(name: str, value: Any) -> bool:
        has = config.get(name)
        return has >= value if name in ("rows", "clips") and None not in (has, value) else has == value

    return [name for name, value in expected.items() if not agrees(name, value)]


def parse_options(texts: tuple[str, ...], method: str) -> dict[str, dict[str, Any]]:
    """Strings "name=value" or "method.name=value" -> {method: {name: value}}; values are read as YAML, lists also without
    brackets.

    Raises SettingError for an unknown method, a string of another form, and an option that none or several of the methods have.
    """
    declared = {name: method_class(name).options for name in method.split("+")} if texts else {}
    options: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        owner, dot, bare = name.rpartition(".")
        if not equals or not name:
            raise SettingError(f"{text!r}: expected name=value")
        owners = [owner] if dot else [m for m in declared if bare in declared[m]]
        if len(owners) != 1:
            known = ", ".join(f"{m}.{o}" for m in declared for o in declared[m]) or "none"
            raise SettingError(
                f"{text!r}: {'several methods have' if owners else 'no'} option {bare!r}; known: {known}"
            )
        option = declared.get(owners[0], {}).get(bare)
        if option and option.type is list and not value.startswith("["):
            value = f"[{value}]"
        options.setdefault(owners[0], {})[bare] = _value(value)
    return options


def _value(value: Any) -> Any:
    """A value; strings are parsed as YAML, except that 1e-3, a string in YAML, is a number."""
    if not isinstance(value, str):
        return value
    try:
        parsed = parse_yaml(value, "a value")
        return float(parsed) if isinstance(parsed, str) else parsed
    except (ValueError, ReadError):
        return value
