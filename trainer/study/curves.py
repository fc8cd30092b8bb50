"""The curves of all pretrainings of a study: all rows and seeds in one plot, and each row separately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from trainer.pages import plots
from trainer.pages.page import details, figure, fill, grid, heading, join, paragraph, table
from trainer.pages.plots import Series, number
from trainer.pages.trained import binned, curve, read_log
from trainer.study.jobs import Store, Training
from trainer.study.planning import Plan, total_loss
from trainer.study.reports import page_of

_POINTS = 60  # per curve, since many share a plot
_MANY = 20  # if there are more runs, their table is folded
_ABOUT = (
    "The curves of all rows and seeds, by the number of clips seen. A loss is divided by the training loss at the beginning, "
    "because losses of different methods have different scales; for several methods at once, it is their weighted sum. "
    "Point at a curve for its values; choose a row to highlight its curves."
)


@dataclass(frozen=True)
class _Run:
    row: str
    data: str
    title: str
    seed: int
    clips: float
    log: Mapping[str, np.ndarray]
    held: Mapping[str, np.ndarray]
    losses: Mapping[str, np.ndarray]  # on training videos and, if any, on held-out videos


def curves_html(content: dict, planned: Plan, store: Store) -> tuple[Markup, Markup]:
    """Plots of loss and accuracy of the pretext tasks, and the style rules that highlight single rows."""
    runs = _runs(planned, store)
    if not runs:
        return Markup(), Markup()
    rows = {row: n for n, row in enumerate(dict.fromkeys(run.row for run in runs))}
    out = [paragraph(_ABOUT, "muted"), _choice(rows)]
    for data in dict.fromkeys(run.data for run in runs):
        of_data = [run for run in runs if run.data == data]
        kinds = ("training loss", "loss on held-out training videos", "accuracy on held-out training videos, %")
        found = [(kind, _series(kind, of_data, rows)) for kind in kinds]
        out += [heading(data), grid(_all(f"{data}: {kind}", series) for kind, series in found if series)]
    rule = "main:has(#row{0}:checked) .all g:not(.row{0}) {{{{ opacity: .08; pointer-events: none; }}}}\n"
    rules = join(fill(rule.format(n)) for n in rows.values())
    alone = details("Each row separately, first seed", _alone(content, runs))
    return join([*out, alone, heading("The runs"), _pretrainings(content, store)]), rules


def _pretrainings(content: dict, store: Store) -> Markup:
    """A table of all pretrainings, each with a link to its page."""
    body = []
    for row, about in content["rows"].items():
        for title, run in about.get("trained", {}).items():
            page = page_of(store, run["run"])
            link = (
                fill('<a href="{}">{}</a>', page.relative_to(store.root).as_posix(), title) if page.exists() else title
            )
            loss = "" if run["held-out loss"] is None else f"{run['held-out loss']:.4g}"
            body.append([row, link, f"{run['videos']:,}", f"{run['clips']:,}", run["epochs"], f"{run['lr']:g}", loss])
    head = ["Row", "Run", "Videos seen", "Clips seen", "Epochs", "Learning rate", "Held-out loss"]
    runs = table(
        "Pretrainings, with links to their pages: settings, clips and targets, curves", head, body, range(2, 7)
    )
    return details(f"All {len(body)} runs", runs) if len(body) > _MANY else runs


def _runs(planned: Plan, store: Store) -> list[_Run]:
    found = []
    for (row, data, split, seed), id in planned.runs.items():
        job = planned.jobs[id]
        if not store.has(id) or not isinstance(job, Training):
            continue
        folder = store.run(id) / "run"
        (log, _), (held, _) = (
            read_log(folder / "log.csv", ("step", "loss")),
            read_log(folder / "holdout.csv", ("step",)),
        )
        if log:
            losses = {name: total_loss(of, job.settings) for name, of in (("training", log), ("held-out", held)) if of}
            title = f"{row}, seed {seed}" + (f", split {split}" if len(job.source.splits) > 1 else "")
            found.append(_Run(row, data, title, seed, job.clips, log, held, losses))
    return found


def _choice(rows: dict[str, int]) -> Markup:
    """Buttons for all rows and for each row, with the colour of its curves."""
    radio = '<label><input type="radio" name="row"{}>{}{}</label>'
    line = '<svg viewBox="0 0 26 12" aria-hidden="true"><path class="curve" d="M0 6H26"{}/></svg>'
    each = (
        fill(radio, fill(' id="row{}"', n), fill(line, plots.style_of(n, len(rows))), row) for row, n in rows.items()
    )
    return fill(
        '<fieldset class="legend" aria-label="Rows">{}{}</fieldset>\n',
        fill(radio, Markup(" checked"), "", "all rows"),
        join(each),
    )


def _series(kind: str, runs: list[_Run], rows: dict[str, int]) -> list[Series]:
    found = []
    for run in runs:
        logged, what = (run.log, "training") if kind.startswith("training") else (run.held, "held-out")
        if not logged:
            continue
        if "loss" in kind:
            first = binned(run.log["step"], run.losses["training"], points=_POINTS)[1][0]
            columns = {"": run.losses[what] / (abs(first) or 1)}
        else:
            columns = {name: 100 * values for name, values in logged.items() if name.split(".")[-1] == "accuracy"}
        for name, values in columns.items():
            x, mean, *_ = binned(logged["step"], values, points=_POINTS)
            ends = [run.losses[what][0], run.losses[what][-1]] if "loss" in kind else [mean[0], mean[-1]]
            title = f"{run.title}{', ' * ('.' in name)}{name.rpartition('.')[0]}"
            about = f"{number(ends[0])} to {number(ends[1])}"
            style = plots.style_of(rows[run.row], len(rows))
            clips = x * run.clips / run.log["step"][-1]
            group = f"row{rows[run.row]}"
            found.append(Series(title, clips, mean, style=style, group=group, about=about))
    return found


def _all(title: str, series: list[Series]) -> Markup:
    label = f"{title}. {'; '.join(f'{of.name}: {of.about}' for of in series)}"
    plot = plots.lines(series, label, "clips", zero=title.endswith("%"), size=(400, 260))
    return figure(title, fill('<div class="all">{}</div>', plot))


def _alone(content: dict, runs: list[_Run]) -> Markup:
    """Every loss and accuracy of each row and data set, for the first split and seed."""
    found: dict[str, Markup] = {}
    for run in runs:
        title = f"{run.row}, {run.data}"
        if title not in found and run.seed == content["seeds"][0]:
            names = [name for name in run.log if name.split(".")[-1] in ("loss", "accuracy")]
            curves = grid((curve(name, dict(run.log), dict(run.held)) for name in names), "small")
            found[title] = fill("<div>{}{}</div>", heading(title), curves)
    held_out = [("dots", "held-out training videos")] * any(run.held for run in runs)
    legend = plots.legend([("line", "training"), *held_out, ("level", "chance")])
    return join([legend, grid(found.values(), "pairs")])
