"""The numbers of a study with their intervals: study.json, and tables for a README or a paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelgen.files import write_json, write_text
from labelgen.texts import markdown as plain
from trainer import checkpoint
from trainer.data import TEST
from trainer.evaluate.metrics import SEED_RESAMPLES, seed_accuracy, seed_difference
from trainer.evaluate.results import shown
from trainer.settings import resolve
from trainer.study.budgets import unequal
from trainer.study.jobs import VERSIONS, Store, Training, determining
from trainer.study.planning import Column, Key, Plan, held_out_loss
from trainer.study.sources import Source
from trainer.study.spec import ALL, FLOW, RANDOM, SUPERVISED, WITHOUT_LABELS, Row, Study

_FEW = 10  # units to draw from; the bootstrap's intervals over fewer are known to be too narrow


def collect(
    study: Study,
    sources: dict[str, Source],
    planned: Plan,
    store: Store,
    failed: dict[str, str],
    unusable: dict[str, str],
) -> dict:
    """All that study.json holds, which is the same however often the study was interrupted: "data", "rows", "columns",
    "numbers", "orderings" (published ones, and the difference here), "assumed", "absent" (numbers that do not exist),
    "failures". A number is the mean over seeds and videos in per cent, with "low" and "high", "above" its difference from the
    random network of the same seeds, or of the pretext task from "chance", likewise, and the value of each seed."""
    columns = list(dict.fromkeys(column for _, column, _ in planned.numbers))
    rows = {name: _row(row, planned, store) for name, row in study.rows.items()}
    scores = [_scores(study, sources, planned, store, column) for column in columns]
    return {
        "about": study.about,
        "file": study.content,
        "seeds": list(study.seeds),
        "data": {name: _data(source) for name, source in sources.items()},
        "rows": rows,
        "columns": [_column(column) for column in columns],
        "numbers": _numbers(study, scores),
        "orderings": _orderings(study, columns, scores),
        "unequal": unequal(rows),
        "assumed": _assumed(study, sources),
        "absent": unavailable(_absent(planned, store)),
        "failures": _failures(planned, failed, unusable),
        "made with": {**checkpoint.versions(), "jobs": VERSIONS},
    }


def _data(source: Source) -> dict:
    first = source.opened(source.splits[0])
    return {
        "dataset": first.dataset,
        "videos": len(first.videos),
        "tested videos": {name: int((source.opened(name).part == TEST).sum()) for name in source.splits},
        "classes": {target: len(source.opened(source.splits[0], target).classes) for target in source.overlays},
        "crop": first.config["crop"],
        "config_hash": first.config_hash,
        "pretraining": source.data.pretraining,
        "resample": source.data.resample,
        "groups": len(set(first.groups.tolist())),
    }


def _row(row: Row, planned: Plan, store: Store) -> dict:
    if row.kind != "method":
        network = zip(("backbone", "width"), row.network, strict=True) if row.candidates else ()
        return {"kind": row.kind, **dict(network)}
    varied = ("seed", "split", "epochs", *row.tried[0])
    settings = {key: value for key, value in determining(row.candidates[0]).items() if key not in varied}
    trained, tried = {}, {}
    for (name, data, split, seed), id in planned.runs.items():
        job = planned.jobs[id]
        if name == row.name and store.has(id) and isinstance(job, Training):
            resolved = resolve(job.settings)
            trained[f"{data}, split {split}, seed {seed}"] = {
                **{"run": id, "data": data, "videos": job.videos[0], "of videos": job.videos[1]},
                **{"clips": round(job.clips), "epochs": resolved.epochs, "lr": resolved.lr},
                "held-out loss": _finite(held_out_loss(store, id, job.settings)),
            }
    for (name, data), ids in planned.tried.items():
        if name == row.name:
            losses = [held_out_loss(store, *each) for each in zip(ids, row.candidates, strict=True)]
            chosen = planned.chosen.get((name, data))
            tried[data] = [
                {**values, "held-out loss": _finite(loss), "chosen": i == chosen}
                for i, (values, loss) in enumerate(zip(row.tried, losses, strict=True))
            ]
    about = {"kind": row.kind, "clips asked for": row.clips, "settings": settings, "label": row.label}
    return about | {"trained": trained} | ({"tried": tried} if tried else {})


def _finite(loss: float) -> float | None:
    return loss if np.isfinite(loss) else None


def _column(column: Column) -> dict:
    return {
        "pretrained_on": column.pretrained_on,
        "tested_on": column.tested_on,
        "target": "" if column.measure.protocol in WITHOUT_LABELS else column.target,
        "measure": column.measure.title,
        "headline": column.measure.headline,
        "labels": column.measure.labels,
    }


@dataclass(frozen=True)
class _Scores:
    """The scores of a row in a column.

    videos: ids of the tested ones; units: what the bootstrap draws, of each; right: 0 to 1, and chance: what chance would score,
    None if that is not known; float64 [seeds, videos]
    """

    seeds: list[int]
    videos: list[str]
    units: np.ndarray
    right: np.ndarray
    chance: np.ndarray | None

    def above(self, other: _Scores) -> dict[str, float] | None:
        """The difference from another row in pairs of seed and video; None if they have no seed or not all videos in common."""
        both = [seed for seed in self.seeds if seed in other.seeds]
        if not both or self.videos != other.videos:
            return None
        one, two = (row.right[[row.seeds.index(seed) for seed in both]] for row in (self, other))
        return seed_difference(one, two, self.units)


def _scores(
    study: Study, sources: dict[str, Source], planned: Plan, store: Store, column: Column
) -> dict[str, _Scores]:
    """The scores of those rows that have some in a column."""
    found, units = {}, _units(sources[column.tested_on])
    for row in study.rows:
        ids = {seed: planned.numbers.get((row, column, seed)) for seed in sorted(study.seeds)}
        made = {seed: store.result(id) for seed, id in ids.items() if id and store.has(id)}
        seeds = [seed for seed, result in made.items() if "reason" not in result]
        if not seeds:
            continue
        videos = sorted(made[seeds[0]]["scores"])
        if any(sorted(made[seed]["scores"]) != videos for seed in seeds):
            raise AssertionError(f"{row}: the seeds were tested on different videos")
        by_key = {
            key: np.array([[made[seed][key][video] for video in videos] for seed in seeds])
            for key in ("scores", "chance")
            if key in made[seeds[0]]
        }
        of_videos = np.array([units[video] for video in videos])
        found[row] = _Scores(seeds, videos, of_videos, by_key["scores"], by_key.get("chance"))
    return found


def _units(source: Source) -> dict[str, str]:
    """What the bootstrap draws, by id of the video."""
    opened = source.opened(source.splits[0])
    ids = opened.text("videos/id")
    return dict(zip(ids, opened.groups.tolist() if source.data.resample == "group" else ids, strict=True))


def _numbers(study: Study, scores: list[dict[str, _Scores]]) -> list[dict]:
    found, randoms = [], {row.network: name for name, row in study.rows.items() if row.kind == RANDOM}
    for number, of_rows in enumerate(scores):
        for name, of in of_rows.items():
            entry: dict[str, Any] = {"row": name, "column": number, **seed_accuracy(of.right, of.units)}
            entry |= {"videos": len(of.videos), "seeds": of.seeds, "by seed": (100 * of.right.mean(1)).tolist()}
            if of.chance is not None:
                difference = seed_difference(of.right, of.chance, of.units)
                entry |= {"chance": 100 * float(of.chance.mean()), "above": difference}
            else:
                row = study.rows[name]
                base = randoms[row.network] if row.candidates else next(iter(randoms.values()))
                compared = name != base and base in of_rows
                entry["above"] = of.above(of_rows[base]) if compared else None
            found.append(entry)
    return found


def _orderings(study: Study, columns: list[Column], scores: list[dict[str, _Scores]]) -> list[dict]:
    """Published orderings beside the difference here, in the columns of the charts."""
    found = []
    for ordering in study.orderings:
        here = []
        for number, (column, of_rows) in enumerate(zip(columns, scores, strict=True)):
            better, worse = map(of_rows.get, (ordering.better, ordering.worse))
            if column.measure.headline and better and worse and (above := better.above(worse)):
                here.append({"column": number, **above, "verdict": verdict(above)})
        found.append({**asdict(ordering), "values": list(ordering.values), "here": here})
    return found


def verdict(above: dict) -> str:
    """Whether a published ordering holds here, which the whole interval of the difference has to say."""
    return "agrees" if above["low"] > 0 else "disagrees" if above["high"] < 0 else "undecided"


def _assumed(study: Study, sources: dict[str, Source]) -> list[str]:
    found = [
        f"Intervals hold 95 % of {SEED_RESAMPLES:,} resamples: seeds are drawn with replacement and, for all of them alike, test "
        "videos or whole groups of them; differences from random weights are of pairs of the same seed and video.",
        "Every row is given the same number of clips in pretraining, as near as whole passes allow, unless the file says "
        "otherwise.",
        f"{RANDOM}: the network that the row with the same seed starts from.",
    ]
    if len(study.seeds) == 1:
        found.append("One seed: the intervals do not tell how another seed would have come out.")
    if any(row.kind == SUPERVISED for row in study.rows.values()):
        found.append(
            f"{SUPERVISED}: random weights, trained with labels for the clips of pretraining and of finetuning together."
        )
    if FLOW in study.rows:
        found.append(
            f"{FLOW}: no network: directions of the optical flow in a video, its halves, quarters and eighths on a 4 x 4 "
            "grid of its frames, before the same classifiers."
        )
    for name, source in ((name, sources[name]) for name in study.data if name in sources):
        if source.data.pretraining == ALL:
            found.append(
                f"{name}: pretraining is given all videos, those that are tested, too, without labels; how many a row saw "
                "is shown in its line."
            )
        drawn = "groups of videos" if source.data.resample == "group" else "single videos"
        few = len(set(_units(source).values()))
        narrow = f", of which there are {few}: an interval over so few is too narrow" if few < _FEW else ""
        found.append(f"{name}: the bootstrap draws {drawn}{narrow}.")
    for row in study.rows.values():
        if len(row.candidates) > 1:
            found.append(
                f"{row.name}: {', '.join(row.tried[0])} chosen from {len(row.candidates)} by the loss on held-out training "
                "videos, of the first seed; its budget counts the chosen one alone."
            )
    return found


def _failures(planned: Plan, failed: dict[str, str], unusable: dict[str, str]) -> list[dict]:
    found = [{"row": "", "what": f"data {name}", "reason": reason} for name, reason in unusable.items()]
    for job in planned.jobs.values():
        lost = any(need in failed for need in job.needs)
        if reason := failed.get(job.id, "its pretraining failed" * lost):
            found.append({"row": job.row, "what": job.title, "reason": reason})
    return found


def _absent(planned: Plan, store: Store) -> dict[Key, str]:
    """Why there is no number."""
    reasons = dict(planned.unknown)
    for key, id in planned.numbers.items():
        if store.has(id) and "reason" in (made := store.result(id)):
            reasons[key] = made["reason"]
    return reasons


def unavailable(reasons: dict[Key, str]) -> list[dict]:
    """Numbers that do not exist, such as of five labels of a class of four, with the rows that lack them."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for (row, column, _), reason in reasons.items():
        rows.setdefault((f"{column.measure.title} on {column.tested}", reason), {})[row] = None
    return [{"row": ", ".join(names), "what": what, "reason": reason} for (what, reason), names in rows.items()]


def tables(content: dict) -> list[tuple[str, list[str], dict[str, list[dict | None]]]]:
    """One table per test and pretraining, or one for all of these that have nothing but the same single measure: title, heads of
    the columns, and the cells of each row, entries of "numbers" or None."""
    by = {(entry["row"], entry["column"]): entry for entry in content["numbers"]}
    places: dict[str, dict[int, str]] = {}
    for number, column in enumerate(content["columns"]):
        places.setdefault(place(column), {})[number] = column["measure"]
    single: dict[str, dict[int, str]] = {}
    for title, heads in places.items():
        if len(heads) == 1:
            ((number, measure),) = heads.items()
            single.setdefault(measure, {})[number] = title
    joined = {measure: titles for measure, titles in single.items() if len(titles) > 1}
    alike = {number for titles in joined.values() for number in titles}
    found = []
    apart = {title: heads for title, heads in places.items() if not alike & heads.keys()}
    for title, heads in (apart | joined).items():
        rows = {row: [by.get((row, number)) for number in heads] for row in content["rows"]}
        found.append((title, [*heads.values()], {row: cells for row, cells in rows.items() if any(cells)}))
    return found


def place(column: dict) -> str:
    """On what a column was tested, and pretrained if that is another data set."""
    tested, target, before = (column[key] for key in ("tested_on", "target", "pretrained_on"))
    return f"{tested} {target}".rstrip() + (f", pretrained on {before}" if before != tested else "")


def cell(entry: dict | None) -> str:
    """A number with its interval, and `mark`."""
    return "" if entry is None else shown(entry) + in_brackets(entry) + mark(entry)


def chance_of(entry: dict) -> float | None:
    """What chance gives, of a pretext task; files of earlier versions call it guessing."""
    return entry.get("chance", entry.get("guessing"))


def in_brackets(entry: dict) -> str:
    """What chance gives, of a pretext task, in words."""
    return "" if (chance := chance_of(entry)) is None else f" (chance {chance:.1f})"


def mark(entry: dict) -> str:
    """Whether the interval of the difference from the random network, or from chance, lies wholly on one side of 0."""
    above = entry["above"]
    return "" if above is None else " ▲" if above["low"] > 0 else " ▼" if above["high"] < 0 else ""


RULE = (
    "Per cent, with the 95 % interval over seeds and test videos. ▲ ▼: the whole 95 % interval of the paired difference from "
    "random weights of the same seed (of a pretext task: from chance) lies above, below 0."
)


def markdown(content: dict) -> str:
    """The tables for a README."""
    lines = [RULE, "", *(line for text in content.get("unequal", ()) for line in (plain(text), ""))]
    for title, measures, rows in tables(content):
        lines += [f"**{plain(title)}**", "", _line(map(plain, ["", *measures])), "|---" * (len(measures) + 1) + "|"]
        lines += [*(_line([plain(row), *map(cell, cells)]) for row, cells in rows.items()), ""]
    if content["orderings"]:
        head, body = orderings(content)
        lines += ["**Published orderings**", "", _line(map(plain, head)), "|---" * len(head) + "|"]
        lines += [*(_line([*map(plain, cells[:2]), *cells[2:]]) for cells in body), ""]
    return "\n".join(lines)


def orderings(content: dict) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of published orderings."""
    numbers = list(dict.fromkeys(here["column"] for ordering in content["orderings"] for here in ordering["here"]))
    columns = [content["columns"][number] for number in numbers]
    body = []
    for ordering in content["orderings"]:
        here = {one["column"]: one for one in ordering["here"]}
        values = " ({:g}, {:g})".format(*ordering["values"]) if ordering["values"] else ""
        cells = [
            f"{one['verdict']}: {one['value']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]" if one else ""
            for one in map(here.get, numbers)
        ]
        body.append([f"{ordering['better']} > {ordering['worse']}", ordering["source"] + values, *cells])
    return ["Ordering", "Published", *(f"{place(column)}: {column['measure']}" for column in columns)], body


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX |= {"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}


def latex(content: dict) -> str:
    """The tables for a paper, with booktabs and amssymb."""

    def safe(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    lines = [f"% {RULE}"]
    for title, measures, rows in tables(content):
        lines += [r"\begin{table}", rf"\caption{{{safe(title)}}}", rf"\begin{{tabular}}{{l{'r' * len(measures)}}}"]
        lines += [r"\toprule", " & ".join(["", *map(safe, measures)]) + r" \\", r"\midrule"]
        lines += [" & ".join(map(safe, [row, *map(cell, cells)])) + r" \\" for row, cells in rows.items()]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def write_tables(content: dict, folder: Path, tex: bool) -> None:
    """study.json, table.md and, if asked, table.tex."""
    write_json(folder / "study.json", content)
    write_text(folder / "table.md", markdown(content))
    if tex:
        write_text(folder / "table.tex", latex(content))
