"""Recipes: the settings of papers as YAML files, each value with its source. Options as texts are read here, too."""

from __future__ import annotations

from pathlib import Path

from labelgen.errors import ReadError
from labelgen.reading import load_yaml, parse_yaml
from trainer.errors import SettingError, TrainerError
from trainer.methods import method_class
from trainer.settings import DECLARATIONS, Settings, resolve

RECIPES = Path(__file__).parent


def recipe(name: str) -> tuple[Settings, dict]:
    """Settings of a recipe, and the shard configuration that it is meant for.

    name: of a file in trainer/recipes, without .yaml, or the path of one. Each value stands with its source, a paper or
    `assumed`: `lr: {value: 0.001, source: thesis 4.3}`. Raises TrainerError for unknown keys, wrong types and values
    without a source.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise SettingError(f"no recipe {name!r}; there are: {known}; or name a .yaml file")
    try:
        content = load_yaml(path)
    except ReadError as error:
        raise TrainerError(str(error)) from error
    if not isinstance(content, dict) or not {"about", "settings"} <= content.keys() <= {"about", "settings", "shards"}:
        raise TrainerError(f"{path}: expected the keys about, settings and, if any, shards")
    values = _sourced(path, "settings", content["settings"])
    for key in values.keys() - DECLARATIONS.keys():
        raise TrainerError(f"{path}: settings: unknown key {key!r}, expected one of: {', '.join(DECLARATIONS)}")
    if "options" in values:
        method = values.get("method", DECLARATIONS["method"].default)
        values["options"] = {str(method): _sourced(path, "options", values["options"])}
    try:
        resolve(Settings(**values))
    except TrainerError as error:
        raise TrainerError(f"{path}: {error}") from error
    return Settings(**values), _sourced(path, "shards", content.get("shards", {}))


def differing(expected: dict, config: dict) -> list[str]:
    """The names in which shards of a configuration are not those that a recipe is for; more rows, or more random clips of
    a video, than it needs do not differ: a run takes what it needs of them."""

    def agrees(name: str, value) -> bool:
        has = config.get(name)
        return has >= value if name in ("rows", "clips") and None not in (has, value) else has == value

    return [name for name, value in expected.items() if not agrees(name, value)]


def _sourced(path: Path, where: str, entries) -> dict:
    if not isinstance(entries, dict):
        raise TrainerError(f"{path}: {where} is {entries!r:.60}, expected a mapping")
    values = {}
    for key, entry in entries.items():
        if key == "options":
            values[key] = entry
        elif not isinstance(entry, dict) or entry.keys() != {"value", "source"} or not isinstance(entry["source"], str):
            raise TrainerError(f"{path}: {where}: {key} is {entry!r:.200}, expected {{value: ..., source: ...}}")
        else:
            values[key] = _value(entry["value"]) if isinstance(entry["value"], str) else entry["value"]
    return values


def parse_options(texts: tuple[str, ...], method: str) -> dict:
    """Texts "name=value" or "method.name=value" -> {method: {name: value}}; values are read as YAML, lists without their
    brackets, too.

    Raises TrainerError for an unknown method, a text of another form and a name that no method, or more than one, has.
    """
    declared = {name: method_class(name).options for name in method.split("+")} if texts else {}
    options = {}
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


def _value(text: str):
    """A YAML value; 1e-3, which YAML takes for a text, is a number."""
    try:
        value = parse_yaml(text, "a value")
        return float(value) if isinstance(value, str) else value
    except (ValueError, ReadError):
        return text
