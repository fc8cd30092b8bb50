"""The pages of a study's runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labelgen.errors import VsslError
from trainer.pages.report import Part, report
from trainer.study.jobs import Store, Training
from trainer.study.planning import Plan

_UP = "../../../index.html"  # from a run to the page of the study


def write_reports(content: dict, planned: Plan, store: Store, say: Callable[[str], None]) -> None:
    """Write the missing pages of the runs that the page of the study names."""
    for row, about in content["rows"].items():
        for title, trained in about.get("trained", {}).items():
            job = planned.jobs[trained["run"]]
            if page_of(store, job.id).exists() or not isinstance(job, Training):
                continue
            try:
                report(
                    page_of(store, job.id).parent,
                    [job.source.folder],
                    study=Part(f"{row}, {title}", job.source.overlay, _UP),
                )
            except VsslError as error:
                say(f"no page of {row}, {title}: {error}")


def page_of(store: Store, id: str) -> Path:
    """The page of a run, whether or not it exists."""
    return store.run(id) / "run" / "report.html"
