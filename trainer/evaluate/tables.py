"""Results as tables for the screen, protocols as blocks for the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.evaluate.protocol import Protocol

_TOLD = ("mode", "views", "classes", "items", "largest_class")


def shown(row: dict) -> str:
    """The value of a row, with its interval where it has one: 69.1 [64.0, 73.8]."""
    interval = f" [{row['low']:.1f}, {row['high']:.1f}]" if "low" in row else ""
    return f"{row['value']:.1f}{interval}"


def with_split(name: str, split: str | None) -> str:
    """A data set with the split, where it has one: "ucf101, split 1"."""
    return f"{name}, split {split}" if split else name


def overall(rows: list[dict]) -> list[dict]:
    """The rows without those of single splits."""
    return [row for row in rows if row.get("split") in (None, "all", "mean")]


def header(result: dict, title: str) -> list[str]:
    """How a result was measured, in words."""
    p = result["protocol"]
    source = p["pretraining"]
    return [
        f"{title} on {with_split(p['dataset'], p['split'])}",
        "; ".join(f"{key.replace('_', ' ')}: {p[key]}" for key in _TOLD if key in p),
        f"{p['backbone']} (width {p['width']:g}, {p['parameters']:,} parameters), {source['method']} on "
        f"{source['dataset']}, {source['steps']} of {source['steps_planned']} steps, seed {source['seed']}",
    ]


def table(rows: list[dict], index: tuple[str, ...], columns: tuple[str, ...]) -> list[str]:
    """One line per combination of the index keys, one column per combination of the column keys, values as `shown`."""
    names = list(dict.fromkeys(tuple(row.get(key, "") for key in columns) for row in rows))
    lines: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        place = tuple(str(row.get(key, "")) for key in index)
        lines.setdefault(place, {})[tuple(row.get(key, "") for key in columns)] = shown(row)
    body = [[*place, *(cells.get(name, "") for name in names)] for place, cells in lines.items()]
    heads = [[*index, *(str(name[level]) for name in names)] for level in range(len(columns))]
    for head in heads[:-1]:  # a name that spans several columns stands over the first of them
        head[: len(index)] = [""] * len(index)
        head[len(index) :] = [
            "" if i and names[i][:1] == names[i - 1][:1] else cell for i, cell in enumerate(head[len(index) :])
        ]
    return aligned([*heads, *body], len(index))


def aligned(rows: list[list], left: int | None = None) -> list[str]:
    """Lines whose cells stand in columns; left: so many columns begin at their left, the others end at their right; None: all."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    left = len(widths) if left is None else left
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    ]


def block(name: str, protocol: type[Protocol]) -> list[str]:
    """Lines of Markdown that say what a protocol measures, for docs/evaluation.md."""
    told = {
        "Question": protocol.question,
        "Items": protocol.items,
        "Classifier": protocol.classifier,
        "Left out": protocol.left_out,
        "Source": protocol.source,
    }
    return [f"### `vssl eval {name}`: {protocol.title}", "", *(f"- **{word}**: {text}" for word, text in told.items())]


def blocks() -> list[str]:
    """The blocks of all protocols, see `block`."""
    from trainer.evaluate import PROTOCOLS, protocol_class

    lines = [line for name in PROTOCOLS for line in ("", *block(name, protocol_class(name)))]
    return lines[1:]


def commands() -> list[str]:
    """A table in Markdown of the commands of all protocols."""
    from trainer.evaluate import PROTOCOLS, protocol_class

    rows = [f"| `vssl eval {name}` | {protocol_class(name).question} |" for name in PROTOCOLS]
    return ["| command | question |", "|---|---|", *rows]
