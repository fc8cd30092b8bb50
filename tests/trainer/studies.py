"""Small studies, made in this process."""

from collections.abc import Callable
from pathlib import Path

import yaml

from labelgen.errors import VsslError
from trainer.study import runner
from trainer.study.jobs import Job, Store
from trainer.study.runner import Machine
from trainer.study.study import study

SMALL = {
    "about": "Tiny <b> & quick",
    "seeds": [0, 1],
    "clips": 24,
    "settings": {"width": 0.05, "batch_size": 8, "jitter": "none"},
    "data": {"colors": {"shards": "colors"}},
    "rows": {"turns <i>": {"method": "rotation"}},
    "measures": [{"protocol": "retrieval", "pooling": "mean"}],
    "baselines": [],
}


def write_study(folder, **changes) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


def execute_here(job: Job, root: Path, threads: int, flow: Callable | None) -> tuple[Job, str]:
    """runner.execute in this process, which is quicker."""
    try:
        job.work_and_store(Store(root), flow)
    except VsslError as error:
        return job, str(error)
    return job, ""


def make_study(monkeypatch, path, out, label=None, flow=None, say=print, latex=False, draw=None) -> dict:
    """What a study made."""
    monkeypatch.setattr(runner, "execute", execute_here)
    return study(path, out, Machine(device="cpu"), label, flow, say, latex, draw)
