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
from trainer.evaluate.results import shown
from trainer.evaluate.splits import groups_of
from trainer.settings import Settings, resolve
from trainer.study.bootstrap import RESAMPLES, difference, interval
from trainer.study.budgets import unequal
from trainer.study.file import ALL, FLOW, RANDOM, SUPERVISED, WITHOUT_LABELS, Row, Study
from trainer.study.jobs import Store, code, determining
from trainer.study.planning import Column, Planned, held_out_loss
from trainer.study.sources import Source

_FEW = 10  # units to draw from; the bootstrap's intervals over fewer are known to be too narrow


def collect(
    study: Study,
    sources: dict[str, Source],
    planned: Planned,
    store: Store,
    failed: dict[str, str],
    unusable: dict[str, str],
) -> dict:
    """All that study.json holds, which is the same however often the study was stopped: "data", "rows", "columns",
    "numbers", "orderings" (published ones, and the difference here), "assumed", "absent" (numbers that do not exist),
    "failures". A number is the mean over seeds and videos in per cent, with "low" and "high", "above" its difference from the
    random network of the same seeds, or of the pretext task from "guessing", likewise, and the value of each seed."""
    columns = list(dict.fromkeys(column for _, column, _ in planned.numbers))
    rows = {name: _row(row, planned, store) for name, row in study.rows.items()}
    tests = [_test(study, sources, planned, store, column) for column in columns]
    return {
        "about": study.about,
        "file": study.content,
        "seeds": list(study.seeds),
        "data": {name: _data(source) for name, source in sources.items()},
        "rows": rows,
        "columns": [_column(column) for column in columns],
        "numbers": _numbers(study, tests),
        "orderings": _orderings(study, columns, tests),
        "unequal": unequal(rows),
        "assumed": _assumed(study, sources),
        "absent": not_to_be_had(_absent(planned, store)),
        "failures": _failures(planned, failed, unusable),
        "made with": {
            **checkpoint.versions(),
            "code": {"training": code("train")[-1], "measuring": code("measure")[-1]},
        },
    }


def _data(source: Source) -> dict:
    first = source.opened(source.splits[0])
    tested = {name: int((source.opened(name).part == TEST).sum()) for name in source.splits}
    classes = {target: len(source.opened(source.splits[0], target).classes) for target in source.overlays}
    return {
        "dataset": first.dataset,
        "videos": len(first.videos),
        "tested videos": tested,
        "classes": classes,
        "crop": first.config["crop"],
        "config_hash": first.config_hash,
        "pretraining": source.data.pretraining,
        "resample": source.data.resample,
        "groups": len(set(groups_of(first).tolist())),
    }


def _row(row: Row, planned: Planned, store: Store) -> dict:
    told: dict[str, Any] = {"kind": row.kind}
    if row.kind == "method":
        varied = ("seed", "split", "epochs", *row.tried[0])
        settings = {key: value for key, value in determining(row.candidates[0]).items() if key not in varied}
        told |= {"clips asked for": row.clips, "settings": settings, "label": row.label, "trained": {}}
        for (name, of, split, seed), id in planned.runs.items():
            if name == row.name and store.has(id):
                job = planned.jobs[id]
                own = resolve(Settings(**job.how["settings"]))
                seen = {"run": id, "data": of, "videos": job.videos[0], "of videos": job.videos[1]}
                seen |= {"clips": round(job.cost[1]), "epochs": own.epochs, "lr": own.lr}
                loss = _finite(held_out_loss(store, id, own))
                told["trained"][f"{of}, split {split}, seed {seed}"] = {**seen, "held-out loss": loss}
        for (name, of), ids in planned.tried.items():
            if name == row.name:
                losses = [held_out_loss(store, id, resolve(own)) for id, own in zip(ids, row.candidates, strict=True)]
                told.setdefault("tried", {})[of] = [
                    {**values, "held-out loss": _finite(loss), "chosen": i == planned.chosen.get((name, of))}
                    for i, (values, loss) in enumerate(zip(row.tried, losses, strict=True))
                ]
    elif row.candidates:
        told |= {"backbone": row.network[0], "width": row.network[1]}
        told |= {"weights": row.weights, "start": row.start} if row.start else {}
    return told


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
class _Test:
    """What became of the test videos of a column: scores and what guessing gives, by row, seed and video, 0 to 1; the group
    of each video."""

    scores: dict[str, dict[int, dict[str, float]]]
    guessing: dict[str, dict[int, dict[str, float]]]
    groups: dict[str, str]

    def array(self, row: str, seeds: list[int], guessing: bool = False) -> np.ndarray:
        """float64 [seeds, videos], the videos in the order of `videos`."""
        by_seed = (self.guessing if guessing else self.scores)[row]
        return np.array([[by_seed[seed][video] for video in self.videos(row)] for seed in seeds])

    def videos(self, row: str) -> list[str]:
        own = [*self.scores[row].values()]
        videos = sorted(own[0])
        if any(sorted(other) != videos for other in own):
            raise AssertionError(f"{row}: the seeds were tested on different videos")
        return videos

    def groups_of(self, row: str) -> np.ndarray:
        return np.array([self.groups[video] for video in self.videos(row)])

    def above(self, row: str, other: str) -> dict[str, float] | None:
        """The difference of two rows in pairs of seed and video; None where they have no seed in common."""
        both = sorted(self.scores.get(row, {}).keys() & self.scores.get(other, {}).keys())
        if not both or self.videos(row) != self.videos(other):
            return None
        return difference(self.array(row, both), self.array(other, both), self.groups_of(row))


def _test(study: Study, sources: dict[str, Source], planned: Planned, store: Store, column: Column) -> _Test:
    found = _Test({}, {}, _groups(sources[column.tested_on]))
    for row in study.rows:
        for seed in study.seeds:
            id = planned.numbers.get((row, column, seed))
            if id and store.has(id) and "reason" not in (own := store.result(id)):
                found.scores.setdefault(row, {})[seed] = own["scores"]
                if "chance" in own:
                    found.guessing.setdefault(row, {})[seed] = own["chance"]
    return found


def _numbers(study: Study, tests: list[_Test]) -> list[dict]:
    found, randoms = [], {row.network: name for name, row in study.rows.items() if row.kind == RANDOM}
    for number, test in enumerate(tests):
        for row in test.scores:
            seeds, groups = sorted(test.scores[row]), test.groups_of(row)
            values = test.array(row, seeds)
            entry = {
                "row": row,
                "column": number,
                **interval(values, groups),
                "videos": values.shape[1],
                "seeds": seeds,
            }
            entry["by seed"] = [100 * float(value) for value in values.mean(1)]
            if row in test.guessing:
                guessed = test.array(row, seeds, guessing=True)
                entry |= {"guessing": 100 * float(guessed.mean()), "above": difference(values, guessed, groups)}
            else:
                of = study.rows[row]
                base = randoms[of.network] if of.candidates else next(iter(randoms.values()))
                entry["above"] = None if row == base else test.above(row, base)
            found.append(entry)
    return found


def _orderings(study: Study, columns: list[Column], tests: list[_Test]) -> list[dict]:
    """Published orderings beside the difference here, in the columns of the charts."""
    found = []
    for own in study.orderings:
        here = [
            {"column": number, **above, "verdict": _verdict(above)}
            for number, (column, test) in enumerate(zip(columns, tests, strict=True))
            if column.measure.headline and (above := test.above(own.better, own.worse))
        ]
        found.append({**asdict(own), "values": list(own.values), "here": here})
    return found


def _verdict(above: dict) -> str:
    return "agrees" if above["low"] > 0 else "disagrees" if above["high"] < 0 else "undecided"


def _groups(source: Source) -> dict[str, str]:
    opened = source.opened(source.splits[0])
    ids = opened.text("videos/id")
    return dict(zip(ids, groups_of(opened).tolist() if source.data.resample == "group" else ids, strict=True))


def _assumed(study: Study, sources: dict[str, Source]) -> list[str]:
    told = [
        "Intervals hold 95 % of "
        f"{RESAMPLES:,} resamples: seeds are drawn with replacement and, for all of them alike, test videos or whole groups of "
        "them; differences from random weights are of pairs of the same seed and video.",
        "Every row is given the same number of clips in pretraining, as near as whole passes allow, unless the file says "
        "otherwise.",
        f"{RANDOM}: the network that the row with the same seed starts from.",
    ]
    if len(study.seeds) == 1:
        told.append("One seed: the intervals do not tell how another seed would have come out.")
    if any(row.kind == SUPERVISED for row in study.rows.values()):
        told.append(
            f"{SUPERVISED}: random weights, trained with labels for the clips of pretraining and of finetuning together."
        )
    if FLOW in study.rows:
        told.append(
            f"{FLOW}: no network: directions of the optical flow in a video, its halves, quarters and eighths on a 4 x 4 "
            "grid of its frames, before the same classifiers."
        )
    for name, source in ((name, sources[name]) for name in study.data if name in sources):
        if source.data.pretraining == ALL:
            told.append(
                f"{name}: pretraining is given all videos, those that are tested, too, without labels; how many a row saw "
                "stands in its line."
            )
        drawn = "groups of videos" if source.data.resample == "group" else "single videos"
        few = len(set(_groups(source).values()))
        told.append(
            f"{name}: the bootstrap draws {drawn}"
            + (f", of which there are {few}: an interval over so few is too narrow." if few < _FEW else ".")
        )
    for row in study.rows.values():
        if len(row.candidates) > 1:
            keys = ", ".join(row.tried[0])
            told.append(
                f"{row.name}: {keys} chosen from {len(row.candidates)} by the loss on held-out training videos, of the first "
                "seed; its budget counts the chosen one alone."
            )
    return told


def _failures(planned: Planned, failed: dict[str, str], unusable: dict[str, str]) -> list[dict]:
    found = [{"row": "", "what": f"data {name}", "reason": reason} for name, reason in unusable.items()]
    for job in planned.jobs.values():
        lost = any(need in failed for need in job.needs)
        if reason := failed.get(job.id, "its pretraining failed" * lost):
            found.append({"row": job.row, "what": job.told, "reason": reason})
    return found


def _absent(planned: Planned, store: Store) -> dict[tuple[str, Column, int], str]:
    """Why there is no number, by row, column and seed."""
    reasons = dict(planned.unknown)
    for key, id in planned.numbers.items():
        if store.has(id) and "reason" in (own := store.result(id)):
            reasons[key] = own["reason"]
    return reasons


def not_to_be_had(reasons: dict[tuple[str, Column, int], str]) -> list[dict]:
    """Numbers that do not exist, such as of five labels of a class of four, with the rows that lack them."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for (row, column, _), reason in reasons.items():
        what = f"{column.measure.title} on {column.tested_on} {column.target}".rstrip()
        rows.setdefault((what, reason), {})[row] = None
    return [{"row": ", ".join(own), "what": what, "reason": reason} for (what, reason), own in rows.items()]


def tables(content: dict) -> list[tuple[str, list[str], dict[str, list[dict | None]]]]:
    """One table per test and pretraining, or one for all of these that have nothing but the same single measure: title, heads of
    the columns, and the cells of each row, entries of "numbers" or None."""
    by = {(entry["row"], entry["column"]): entry for entry in content["numbers"]}
    places: dict[str, dict[int, str]] = {}
    for number, column in enumerate(content["columns"]):
        places.setdefault(place(column), {})[number] = column["measure"]
    single: dict[str, dict[int, str]] = {}
    for title, own in places.items():
        if len(own) == 1:
            ((number, measure),) = own.items()
            single.setdefault(measure, {})[number] = title
    joined = {measure: own for measure, own in single.items() if len(own) > 1}
    alike = {number for own in joined.values() for number in own}
    found = []
    for title, heads in ({title: own for title, own in places.items() if not alike & own.keys()} | joined).items():
        rows = {row: [by.get((row, number)) for number in heads] for row in content["rows"]}
        found.append((title, [*heads.values()], {row: cells for row, cells in rows.items() if any(cells)}))
    return found


def place(column: dict) -> str:
    """Where a column was tested, and pretrained where that is another data set."""
    tested, target, before = (column[key] for key in ("tested_on", "target", "pretrained_on"))
    return f"{tested} {target}".rstrip() + (f", pretrained on {before}" if before != tested else "")


def cell(entry: dict | None) -> str:
    """A number with its interval, marked where it is above (▲) or below (▼) the random network, or guessing, by more than its
    interval."""
    return "" if entry is None else shown(entry) + guessed(entry) + mark(entry)


def guessed(entry: dict) -> str:
    """What guessing gives, of a pretext task."""
    return f" (guessing {entry['guessing']:.1f})" if "guessing" in entry else ""


def mark(entry: dict) -> str:
    """Whether the interval of the difference from the random network, or from guessing, lies wholly on one side of 0."""
    above = entry["above"]
    return "" if above is None else " ▲" if above["low"] > 0 else " ▼" if above["high"] < 0 else ""


RULE = (
    "Per cent, with the 95 % interval over seeds and test videos; ▲ ▼: above, below random weights of the same seed (of a "
    "pretext task: guessing), the whole 95 % interval of the paired difference."
)


def markdown(content: dict) -> str:
    """The tables for a README."""
    lines = [RULE, "", *(line for told in content.get("unequal", ()) for line in (plain(told), ""))]
    for title, measures, rows in tables(content):
        lines += [f"**{plain(title)}**", "", _line(map(plain, ["", *measures])), "|---" * (len(measures) + 1) + "|"]
        lines += [*(_line([plain(row), *map(cell, cells)]) for row, cells in rows.items()), ""]
    if content["orderings"]:
        head, body = orderings(content)
        lines += ["**Published orderings**", "", _line(map(plain, head)), "|---" * len(head) + "|"]
        lines += [*(_line([*map(plain, own[:2]), *own[2:]]) for own in body), ""]
    return "\n".join(lines)


def orderings(content: dict) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of published orderings."""
    numbers = list(dict.fromkeys(here["column"] for own in content["orderings"] for here in own["here"]))
    columns = [content["columns"][number] for number in numbers]
    body = []
    for own in content["orderings"]:
        here = {one["column"]: one for one in own["here"]}
        values = f" ({own['values'][0]:g}, {own['values'][1]:g})" if own["values"] else ""
        cells = [
            f"{one['verdict']}: {one['value']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]" if one else ""
            for one in map(here.get, numbers)
        ]
        body.append([f"{own['better']} > {own['worse']}", own["source"] + values, *cells])
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
    """study.json, table.md and, where asked, table.tex."""
    write_json(folder / "study.json", content)
    write_text(folder / "table.md", markdown(content))
    if tex:
        write_text(folder / "table.tex", latex(content))
