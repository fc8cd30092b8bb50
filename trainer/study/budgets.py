"""The videos and clips that the rows of a study saw, and the settings in which they differ."""

from __future__ import annotations

_FACTOR = 1.1  # largest ratio of clips of equal budgets, which are whole passes


def unequal(rows: dict[str, dict]) -> list[str]:
    """A sentence for each data set on which the rows saw different numbers of clips in pretraining."""
    sentences, runs = [], {name: runs_by_data(row) for name, row in rows.items()}
    for data in dict.fromkeys(data for of_row in runs.values() for data in of_row):
        clips = {name: [run["clips"] for run in of_row[data]] for name, of_row in runs.items() if data in of_row}
        seen = {name: sum(each) / len(each) for name, each in clips.items()}
        few, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
        if seen[most] > _FACTOR * seen[few]:
            sentences.append(
                f"Unequal budgets: pretraining on {data} saw from {seen[few]:,.0f} clips ({few}) to {seen[most]:,.0f} "
                f"({most}), so that a difference may have another cause than the methods."
            )
    return sentences


def runs_by_data(row: dict) -> dict[str, list[dict]]:
    """The pretrainings of a row by data set, whose name includes the label options of the row."""
    found: dict[str, list[dict]] = {}
    for run in row.get("trained", {}).values():
        found.setdefault(run["data"], []).append(run)
    return found


def differing(rows: dict[str, dict]) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the settings that differ between rows with a method, and their values in each row. An option is included only
    if several rows have it."""
    found = {name: _flat_settings(row) for name, row in rows.items() if row["kind"] == "method"}
    keys = dict.fromkeys(key for settings in found.values() for key in settings)
    unlike = [key for key in keys if len({settings[key] for settings in found.values() if key in settings}) > 1]
    return unlike, {name: [settings.get(key, "") for key in unlike] for name, settings in found.items()}


def _flat_settings(row: dict) -> dict[str, str]:
    settings = {"clips asked for": row["clips asked for"], **row["settings"]}
    if "jitter" in settings and settings["jitter"] is None:  # "none" would be another one
        settings["jitter"] = "each method's"
    options = settings.pop("options", None) or {}
    tried: list[dict] = next(iter(row.get("tried", {}).values()), [])
    found = {key: _words(value) for key, value in settings.items()}
    found |= {f"{method}: {key}": _words(value) for method, values in options.items() for key, value in values.items()}
    for key in tried[0].keys() - {"held-out loss", "validated accuracy", "chosen"} if tried else ():
        found[key] = "one of " + ", ".join(dict.fromkeys(_words(values[key]) for values in tried))
    return found | {f"label: {key}": _words(value) for key, value in row["label"].items()}


def _words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
