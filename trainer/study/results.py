"""The numbers of a study with their intervals: the content of study.json."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from trainer import checkpoint
from trainer.data import TEST
from trainer.evaluate.metrics import SEED_RESAMPLES, seed_accuracy, seed_difference
from trainer.settings import resolve
from trainer.study.budgets import unequal
from trainer.study.jobs import VERSIONS, Store, Training, determining
from trainer.study.planning import Column, Key, Plan, held_out_loss
from trainer.study.scores import RowScores, differences, scores_of, units_of
from trainer.study.sources import Source
from trainer.study.spec import ALL, HISTOGRAMS, PRETEXT, RANDOM, SUPERVISED, Row, Study, unlabelled
from trainer.study.tables import stars

_IN_PARTS = " in a video, its halves, quarters and eighths"
_COUNTED = {
    "flow": f"directions of the optical flow on a 4 x 4 grid of the frames{_IN_PARTS}",
    "boundary": f"directions of the derivatives of the optical flow on a 4 x 4 grid of the frames{_IN_PARTS}",
    "colour": f"colours of the pixels{_IN_PARTS}",
    "still": "directions of the edges on a 4 x 4 grid of the frame in the middle of a video, which shows no motion",
}
_FEW = 10  # with fewer units, the intervals of the bootstrap are known to be too narrow


def collect(
    study: Study,
    sources: dict[str, Source],
    planned: Plan,
    store: Store,
    failed: dict[str, str],
    unusable: dict[str, str],
) -> dict:
    """The content of study.json, which does not depend on interruptions of the study: "data", "rows", "columns", "numbers",
    "differences" between any two rows (see `differences`), "orderings" (published ones, with the difference measured here),
    "assumed", "absent" (numbers that do not exist), "failures". A number is the mean over seeds and videos in per cent, with
    "low" and "high"; "above", its difference from the random network of the same seeds or, for a pretext task, from "chance",
    with its interval; the value of each seed; and "maybe best", whether it is the best of its column or not shown to be worse."""
    columns = list(dict.fromkeys(column for _, column, _ in planned.numbers))
    rows = {name: _row(study, row, planned, store) for name, row in study.rows.items()}
    scores = [scores_of(study, sources, planned, store, column) for column in columns]
    pairs = [
        differences(of_rows) if column.measure.protocol != PRETEXT else []  # rows have different tasks
        for column, of_rows in zip(columns, scores, strict=True)
    ]
    return {
        "about": study.about,
        "file": study.content,
        "seeds": list(study.seeds),
        "data": {name: _data(source) for name, source in sources.items()},
        "rows": rows,
        "columns": [_column(column) for column in columns],
        "numbers": _numbers(study, columns, scores, pairs),
        "differences": [
            {"column": number, **pair}
            for number, (column, of_column) in enumerate(zip(columns, pairs, strict=True))
            for pair in (of_column if column.measure.headline else ())
        ],
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


def _row(study: Study, row: Row, planned: Plan, store: Store) -> dict:
    if row.kind != "method":
        network = zip(("backbone", "width"), row.network, strict=True) if row.candidates else ()
        return {"kind": row.kind, **dict(network)} | _start(row)
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
            worth = planned.worth.get((name, data), [-np.inf] * len(ids))
            best = int(np.argmax(worth)) if (name, data) in planned.worth else None
            sign, by = (1, "validated accuracy") if study.choose else (-1, "held-out loss")
            tried[data] = [
                {**values, by: _finite(sign * of), "chosen": i == best}
                for i, (values, of) in enumerate(zip(row.tried, worth, strict=True))
            ]
    about = {"kind": row.kind, "clips asked for": row.clips, "settings": settings, "label": row.label}
    return about | {"trained": trained} | ({"tried": tried} if tried else {}) | _start(row)


def _start(row: Row) -> dict[str, str]:
    """The weights that a row starts from, if they come from a file."""
    return {"start": row.start, "weights": row.weights} if row.start else {}


def _finite(loss: float) -> float | None:
    return loss if np.isfinite(loss) else None


def _column(column: Column) -> dict:
    return {
        "pretrained_on": column.pretrained_on,
        "tested_on": column.tested_on,
        "target": "" if unlabelled(column.measure.protocol) else column.target,
        "measure": column.measure.title,
        "headline": column.measure.headline,
        "labels": column.measure.labels,
    }


def _numbers(
    study: Study, columns: list[Column], scores: list[dict[str, RowScores]], pairs: list[list[dict]]
) -> list[dict]:
    found, randoms = [], {row.network: name for name, row in study.rows.items() if row.kind == RANDOM}
    for number, (column, of_rows) in enumerate(zip(columns, scores, strict=True)):
        best = ""
        if column.measure.protocol != PRETEXT:
            best = max(of_rows, key=lambda name: of_rows[name].right.mean(), default="")
        with_best = [pair for pair in pairs[number] if best in (pair["row"], pair["than"])]
        close = {name for pair in with_best if not stars(pair) for name in (pair["row"], pair["than"])}
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
            entry["maybe best"] = name == best or name in close
            as_it_is = replace(column, measure=replace(column.measure, time=""))
            if column.measure.time and name in scores[columns.index(as_it_is)]:
                entry["drop"] = scores[columns.index(as_it_is)][name].above(of)
            if any(of.stages):
                entry["stages"] = of.stages
            if column.measure.headline and not unlabelled(column.measure.protocol):
                entry |= {"by class": of.by_class(), "predicted": of.confusions()}
            found.append(entry)
    return found


def _orderings(study: Study, columns: list[Column], scores: list[dict[str, RowScores]]) -> list[dict]:
    """Published orderings with the differences measured here, in the columns of the charts."""
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
    """Whether a published ordering holds here, decided only if the interval of the difference does not contain 0."""
    return "agrees" if above["low"] > 0 else "disagrees" if above["high"] < 0 else "undecided"


def _assumed(study: Study, sources: dict[str, Source]) -> list[str]:
    found = [
        f"Intervals hold 95 % of {SEED_RESAMPLES:,} resamples: seeds are drawn with replacement and, for all seeds at once, test "
        "videos or whole groups of them; differences from random weights are between pairs of the same seed and video.",
        "Every row gets the same number of clips in pretraining, as closely as whole passes allow, unless the file says "
        "otherwise.",
        f"{RANDOM}: the network that the row with the same seed starts from.",
    ]
    if len(study.seeds) == 1:
        found.append("One seed: the intervals do not include the variation between seeds.")
    if any(row.kind == SUPERVISED for row in study.rows.values()):
        found.append(
            f"{SUPERVISED}: random weights, trained with labels for the clips of pretraining and of finetuning together."
        )
    for name in filter(HISTOGRAMS.__contains__, study.rows):
        found.append(f"{name}: no network, but {_COUNTED[HISTOGRAMS[name]]}, with the same classifiers.")
    for name, source in ((name, sources[name]) for name in study.data if name in sources):
        if source.data.pretraining == ALL:
            found.append(
                f"{name}: pretraining uses all videos, including the tested ones, without labels; the number that a row saw "
                "is shown in its line."
            )
        drawn = "groups of videos" if source.data.resample == "group" else "single videos"
        few = len(set(units_of(source).values()))
        narrow = f"; there are only {few}, so that the intervals are too narrow" if few < _FEW else ""
        found.append(f"{name}: the bootstrap draws {drawn}{narrow}.")
    by = "the loss on held-out training videos"
    if study.choose:
        by = f"{study.choose.title} in a cross-validation of the training part of the first split"
    for row in study.rows.values():
        if len(row.candidates) > 1:
            found.append(
                f"{row.name}: {', '.join(row.tried[0])} chosen from {len(row.candidates)} by {by}, for the first seed; the "
                "budget counts only the chosen one."
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
    """The reason for each number that does not exist."""
    reasons = dict(planned.unknown)
    for key, id in planned.numbers.items():
        if store.has(id) and "reason" in (made := store.result(id)):
            reasons[key] = made["reason"]
    return reasons


def unavailable(reasons: dict[Key, str]) -> list[dict]:
    """Numbers that do not exist (such as with five labels for a class of four videos), with the rows that lack them."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for (row, column, _), reason in reasons.items():
        rows.setdefault((f"{column.measure.title} on {column.tested}", reason), {})[row] = None
    return [{"row": ", ".join(names), "what": what, "reason": reason} for (what, reason), names in rows.items()]
