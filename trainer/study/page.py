"""The page of a study: pictures, curves, tables, forest plots, ranks and assumptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from markupsafe import Markup

from labelgen.files import write_text
from trainer.evaluate.results import shown
from trainer.pages import plots
from trainer.pages.differences import value_cell
from trainer.pages.films import Films
from trainer.pages.page import details, figure, fill, grid, heading, items, join, page, paragraph, scroll, table
from trainer.pages.plots import Point
from trainer.pages.sources import made_by
from trainer.study.budgets import differing, runs_by_data
from trainer.study.curves import curves_html
from trainer.study.jobs import Store
from trainer.study.pictures import Draw, pictures, readers_of
from trainer.study.planning import Plan
from trainer.study.sources import Source
from trainer.study.spec import WEIGHTS
from trainer.study.tables import (
    PAIRS,
    chance_of,
    in_brackets,
    mark,
    orderings,
    place,
    rule,
    spread,
    stages_of,
    stars,
    tables,
)

_PROTOCOLS = {
    "retrieval": "Retrieval top-1: the share of test videos whose nearest training video is of the same class.",
    "linear": "Linear probe: the share of test videos that a linear classifier, trained on the features, gets right.",
    "knn": "k-NN: the share of test videos that a vote of the nearest training videos gets right.",
    "attentive": "Attentive probe: the share that a classifier which attends to places and times of the last stage gets right.",
    "finetune": "Finetune: the share of test videos that the whole network gets right after training with labels.",
    "self": "Self: the share of halves of test videos whose nearest half is the other one of the same video.",
    "smoothness": "Smoothness: the share of triples of clips, in order, whose first is more like the second than the third.",
    "pretext": "Pretext: the accuracy in the row's own task on test videos.",
}
_OF_STAGES = {"retrieval", "linear", "knn"}
_FROZEN = " conv1 to conv5 are the stages of the network whose features are used; max and mean are taken over a clip."
_FEW = 3  # if there are more columns, their chart has a line of its own
_COLUMN, _LINE = 120, 24  # pixels of the chart of ranks


def write_page(
    content: dict, planned: Plan, store: Store, sources: Mapping[str, Source], draw: Draw | None = None
) -> None:
    """Write index.html, one self-contained file, into the study's folder. draw: makes films of labels; None for no films."""

    def reasons(key: str) -> Markup:
        lines = [f"{one['row']}: {one['what']}: {one['reason']}" for one in content[key]]
        return items(lines) if lines else Markup()

    warnings = [items(content["unequal"])] if content["unequal"] else []
    curves, rules = curves_html(content, planned, store)
    films = Films(readers_of(sources))
    videos, *found = pictures(content, planned, store, sources, films, draw)
    numbers = [paragraph(_measured(planned), "muted"), paragraph(rule(content), "muted"), *warnings, *_tables(content)]
    sections = [
        videos,
        ("curves", "How pretraining went", curves),
        *found,
        ("numbers", "Numbers", join(numbers)),
        ("seen", "What the rows saw", _seen(content)),
        ("forest", "Forest plots", _forest(content)),
        ("pairs", "Which rows differ", _pairs(content)),
        ("parts", "By seed and by class", _parts(content)),
        ("orderings", "Published orderings", _orderings(content)),
        ("ranks", "How the ranking moves", _ranks(content)),
        ("tried", "What was tried", _tried(content)),
        ("assumed", "What was assumed", join([items(content["assumed"]), _data(content)])),
        ("absent", "Numbers that do not exist", reasons("absent")),
        ("failures", "What did not work", reasons("failures")),
    ]
    lead = content["about"] or f"{len(content['rows'])} rows, seeds {', '.join(map(str, content['seeds']))}"
    shown = [section for section in sections if section[2]]
    style = rules + films.style()
    folder = store.root.resolve()
    title = f"Study {folder.parent.name if folder.name == 'study' else folder.name}"
    write_text(folder / "index.html", page(title, lead, "", shown, made_by(), style))


def _measured(planned: Plan) -> str:
    """What the numbers of a study are, in a sentence for each protocol."""
    used = dict.fromkeys(column.measure.protocol for _, column, _ in planned.numbers)
    return " ".join(_PROTOCOLS[name] for name in used if name in _PROTOCOLS) + (
        _FROZEN if used.keys() & _OF_STAGES else ""
    )


def _tables(content: dict) -> Iterator[Markup]:
    for title, measures, rows in tables(content):
        body = [[row, *map(_cell, cells)] for row, cells in rows.items()]
        yield table(title, ["Row", *measures], body, range(1, len(measures) + 1))


def _seen(content: dict) -> Markup:
    """The videos and clips that the pretrainings of each row saw, and the settings in which rows differ."""
    body = []
    for name, row in content["rows"].items():
        for of, runs in runs_by_data(row).items():
            videos = [f"{_range(run['videos'] for run in runs)} of {_range(run['of videos'] for run in runs)}"]
            body.append([name, of, *videos, _range(run["clips"] for run in runs), f"{row['clips asked for']:,}"])
    if not body:
        return Markup()
    head = ["Row", "Pretrained on", "Videos seen", "Clips seen", "Clips asked for"]
    about = "For several splits and seeds, the smallest and largest number. A video without a sample of the method is not seen."
    out = [paragraph(about, "muted"), table("Pretraining of each row", head, body, (2, 3, 4))]
    names, values = differing(content["rows"])
    if names:
        rows = [[name, *cells] for name, cells in values.items()]
        out.append(table("Settings that differ between rows", ["Row", *names], rows))
    return join(out)


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _cell(entry: dict | None) -> Markup:
    if entry is None:
        return Markup()
    seeds = ", ".join(f"{value:.1f}" for value in entry["by seed"])
    text = f"by seed: {seeds}; {entry['videos']} videos"
    if stages := ", ".join(stages_of(entry)).strip(", "):
        text += f"; stages chosen: {stages}"
    if above := entry["above"]:
        than = "random weights" if chance_of(entry) is None else "chance"
        text += f"; above {than}: {shown(above, '+')}"
    return fill('<span title="{}">{}{}{}</span>', text, value_cell(entry), in_brackets(entry), mark(entry))


def _orderings(content: dict) -> Markup:
    if not content["orderings"]:
        return Markup()
    head, body = orderings(content)
    lead = (
        "Difference measured here between the row published as better and the other one, in points, with its 95 % interval. The "
        "verdict is undecided if the interval contains 0."
    )
    return join([paragraph(lead, "muted"), table("Published orderings", head, body, range(2, len(head)))])


def _headlines(content: dict) -> list[tuple[int, str]]:
    """Numbers and titles of the columns that the charts show."""
    return [(i, f"{place(c)}: {c['measure']}") for i, c in enumerate(content["columns"]) if c["headline"]]


def _forest(content: dict) -> Markup:
    kinds = {
        row: "pretrained" if about["kind"] in ("method", WEIGHTS) else "random"
        for row, about in content["rows"].items()
    }
    found, shown = [], set()
    for number, title in _headlines(content):
        entries = [entry for entry in content["numbers"] if entry["column"] == number]
        rows = [(e["row"], [Point(kinds[e["row"]], e["value"], e["low"], e["high"])]) for e in entries]
        for entry, (_, points) in zip(entries, rows, strict=True):
            points += [Point("chance", chance)] if (chance := chance_of(entry)) is not None else []
            shown |= {point.kind for point in points}
        text = "; ".join(f"{e['row']} {e['value']:.1f}" for e in entries)
        if rows:
            found.append(figure(f"{title}, %", plots.intervals(rows, f"{title}. {text}")))
    legend = {"pretrained": "pretrained without labels, 95 % interval", "random": "references", "chance": "chance"}
    return (
        join([plots.legend([mark for mark in legend.items() if mark[0] in shown]), grid(found)]) if found else Markup()
    )


def _pairs(content: dict) -> Markup:
    """A matrix of the differences between all rows for each column of the charts."""
    found = []
    for number, title in _headlines(content):
        pairs = {(pair["row"], pair["than"]): pair for pair in content["differences"] if pair["column"] == number}
        rows = [row for row in content["rows"] if any(row in pair for pair in pairs)]
        if not pairs:
            continue
        body = [[f"{i} {row}", *(_pair(pairs, row, than) for than in rows)] for i, row in enumerate(rows, 1)]
        matrix = table(
            f"{title}: row less column, points", ["", *range(1, len(rows) + 1)], body, range(1, len(rows) + 1)
        )
        differ = sum(bool(stars(pair)) for pair in pairs.values())
        found.append((f"{title}: {differ} of {len(pairs)} pairs differ", fill('<div class="pairs">{}</div>', matrix)))
    if not found:
        return Markup()
    kinds = (f"{kind} s{n}" for kind in ("gain", "loss") for n in (1, 2))
    legend = (fill('<span class="{}">{}{}</span>', kind, "+-"["loss" in kind], "*" * int(kind[-1])) for kind in kinds)
    about = paragraph(join([f"{PAIRS} Colours, above and below: ", join(legend)]), "muted pairs")
    (title, first), *others = found
    return join([about, heading(title), first, *(details(*other) for other in others)])


def _pair(pairs: dict[tuple[str, str], dict], row: str, than: str) -> Markup:
    sign, pair = (1, pairs[row, than]) if (row, than) in pairs else (-1, pairs.get((than, row)))
    if pair is None:
        return Markup()
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    value, sure = sign * pair["value"], stars(pair)
    kind = f"{'gain' if value > 0 else 'loss'} s{len(sure)}" if sure else ""
    size = shown({"value": value, "low": low, "high": high}, "+")
    text = f"{row} less {than}: {size}, p {pair['p']:.2g}, corrected {pair['adjusted']:.2g}"
    return fill('<span class="{}" title="{}">{:+.1f}{}</span>', kind, text, value, sure)


def _parts(content: dict) -> Markup:
    """The columns of the charts by seed and by class, and confusion matrices for the first column of each target, collapsed."""
    found, targets = [], set()
    for number, title in _headlines(content):
        entries = [entry for entry in content["numbers"] if entry["column"] == number]
        out = [_by_seed(entries)]
        classes = dict.fromkeys(name for entry in entries for name in entry.get("by class", ()))
        if classes:
            values = [
                [f"{np.mean(of[name]):.1f}" if name in of else "" for name in classes]
                for of in (entry["by class"] for entry in entries)
            ]
            body = [[entry["row"], *cells] for entry, cells in zip(entries, values, strict=True)]
            out.append(table("By class, mean over seeds", ["Row", *classes], body, range(1, len(classes) + 1)))
        where = place(content["columns"][number])
        taken = [entry for entry in entries if entry.get("predicted")] if where not in targets else []
        targets |= {where} if taken else set()
        out += [details("Confusion matrices", grid(map(_confusion, taken)))] if taken else []
        found.append(details(title, join(out)))
    return join(found)


def _by_seed(entries: list[dict]) -> Markup:
    seeds = sorted({seed for entry in entries for seed in entry["seeds"]})
    body = []
    for entry in entries:
        over_seeds = spread(entry)
        of = dict(zip(entry["seeds"], zip(entry["by seed"], stages_of(entry), strict=True), strict=True))
        cells = [" ".join(filter(None, (f"{of[seed][0]:.1f}", of[seed][1]))) if seed in of else "" for seed in seeds]
        body.append([entry["row"], f"{entry['value']:.1f}", "" if over_seeds is None else f"{over_seeds:.1f}", *cells])
    head = ["Row", "Mean", "Standard deviation", *(f"Seed {seed}" for seed in seeds)]
    return table("By seed, with the stage if it was chosen", head, body, range(1, len(head)))


def _confusion(entry: dict) -> Markup:
    """The confusion matrix of the videos of all seeds."""
    taken = entry["predicted"]
    classes = sorted({*taken, *(name for of in taken.values() for name in of)})
    counts = np.array([[taken.get(true, {}).get(name, 0) for name in classes] for true in classes])
    label = f"{entry['row']}: {np.trace(counts)} of {counts.sum()} answers of all seeds on the diagonal"
    return figure(f"{label}; rows: true class, columns: predicted", scroll(label, plots.matrix(classes, counts, label)))


def _ranks(content: dict) -> Markup:
    """A chart of the rank of every method in every column, with one line per row."""
    names = [name for name, row in content["rows"].items() if row["kind"] == "method"]
    values = {(entry["row"], entry["column"]): entry["value"] for entry in content["numbers"]}
    shown = [column for column in _headlines(content) if all((name, column[0]) in values for name in names)]
    if len(names) < 2 or len(shown) < 2:
        return Markup()
    ranks: dict[str, list[int]] = {name: [] for name in names}
    for number, _ in shown:
        for rank, (_, name) in enumerate(sorted((-values[name, number], i) for i, name in enumerate(names)), 1):
            ranks[names[name]].append(rank)
    columns = items(f"{i}: {title}" for i, (_, title) in enumerate(shown, 1))
    rows = [[name, *of_columns] for name, of_columns in ranks.items()]
    numbers = table("Ranks", ["Row", *range(1, len(shown) + 1)], rows, range(1, len(shown) + 1))
    lead = (
        "Rank of each method by its value only, the best at the top, ties in the order of the file. Ranks of methods whose "
        "intervals overlap may change by chance."
    )
    beside = grid if len(shown) <= _FEW else join
    return paragraph(lead, "muted") + beside(
        [scroll("Ranks", _rank_chart(ranks)), fill("<div>{}{}</div>", columns, numbers)]
    )


def _rank_chart(ranks: dict[str, list[int]]) -> Markup:
    left, columns = 20 + 7 * max(map(len, ranks)), len(next(iter(ranks.values())))
    width, height = 2 * left + _COLUMN * (columns - 1), 24 + _LINE * len(ranks)
    across = [left + _COLUMN * i for i in range(columns)]
    text = '<text x="{}" y="{}" text-anchor="{}">{}</text>'
    out = [fill(text, x, 14, "middle", i) for i, x in enumerate(across, 1)]
    for number, (name, of_columns) in enumerate(ranks.items()):
        color = plots.color_of(number, len(ranks))
        spots = [(x, 8 + _LINE * rank) for x, rank in zip(across, of_columns, strict=True)]
        path = "L".join(f"{x} {y}" for x, y in spots)
        out.append(fill('<path d="M{}" fill="none" stroke="{}" stroke-width="3"/>', path, color))
        out += [fill('<circle cx="{}" cy="{}" r="4" fill="{}"/>', x, y, color) for x, y in spots]
        for (x, y), shift, anchor in ((spots[0], -10, "end"), (spots[-1], 10, "start")):
            out.append(fill(text, x + shift, y + 4, anchor, name))
    label = "; ".join(f"{name}: {', '.join(map(str, of_columns))}" for name, of_columns in ranks.items())
    svg = '<svg viewBox="0 0 {0} {1}" style="min-width:{0}px;max-width:{0}px" role="img" aria-label="Ranks. {2}">{3}</svg>'
    return fill(svg, width, height, label, join(out))


def _tried(content: dict) -> Markup:
    return join(
        table(f"{name} on {data}", [*tried[0]], [[*map(_shown, values.values())] for values in tried])
        for name, row in content["rows"].items()
        for data, tried in row.get("tried", {}).items()
    )


def _shown(value: object) -> str:
    if value is None:
        return "failed"
    if isinstance(value, bool):
        return "chosen" if value else ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _data(content: dict) -> Markup:
    rows = []
    for name, data in content["data"].items():
        tested = ", ".join(f"{split}: {count}" for split, count in data["tested videos"].items())
        classes = ", ".join(map(str, data["classes"].values()))
        rows.append([name, data["dataset"], data["videos"], tested, classes, data["groups"], data["crop"]])
    head = ["Name", "Data set", "Videos", "Tested by split", "Classes", "Groups", "Crop"]
    return table("Data sets", head, rows, (2, 5, 6))
