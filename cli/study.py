"""`vssl study`: comparison of methods under equal conditions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cli.commands import Command
from cli.options import WRITTEN, check_scheduler, making_runs
from labelgen.progress import ProgressBar, say


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=WRITTEN, required=True, help="Folder of the study: runs, results, page.")
@click.option(
    "--plan",
    is_flag=True,
    help="Show the runs, which of them are done, and about how long the others take; run nothing.",
)
@making_runs
@click.option("--latex", is_flag=True, help="Also write table.tex.")
def study(file, out, plan, workers, backend, scheduler, device, latex):
    """Compare the rows of a study FILE (docs/studies.md) on its data sets.

    Runs what is missing and writes OUT/study.json, table.md, index.html and lists as CSV. The same command resumes an
    interrupted study. Exit status: 0 done, 3 done but some runs failed (they are listed), 1 error, 2 wrong usage.
    """
    check_scheduler(backend, scheduler)
    from labelgen.flow import flow
    from labelgen.show import label_films
    from trainer.study.runner import Machine
    from trainer.study.study import show_plan
    from trainer.study.study import study as make

    if plan:
        click.echo("\n".join(show_plan(file, out, workers, device)))
        return
    content = make(file, out, Machine(workers, scheduler, device), label, flow, say, latex, label_films)
    click.echo((out / "table.md").read_text(encoding="utf-8"))
    for one in content["failures"]:
        click.echo(f"failed: {one['row']}: {one['what']}: {one['reason']}")
    click.echo(out / "index.html")
    if content["failures"]:
        sys.exit(3)


def label(given: dict, out: Path, workers: int) -> Path:
    """Make the shards of a data set of a study file (dataset, root, label: fields of labelgen.config.Config)."""
    from labelgen import demo
    from labelgen.config import Config
    from labelgen.errors import ConfigError
    from labelgen.manifest import default_root, load
    from labelgen.run import run

    options: dict[str, Any] = {
        name: tuple(map(str, value) if name == "paces" else value) if isinstance(value, list) else value
        for name, value in given["label"].items()
    }
    try:
        config = Config(**options)
    except TypeError as error:
        raise ConfigError(f"label: {error}") from error
    root = given["root"] and Path(given["root"])
    if given["dataset"] == "demo":
        root = root or default_root("demo")
        with ProgressBar("rendered", "video") as progress:
            try:
                demo.render(root, **given.get("render", {}), progress=progress)
            except TypeError as error:
                raise ConfigError(f"render: {error}") from error
    elif "render" in given:
        raise ConfigError(f"render: {given['dataset']} is not rendered; expected dataset: demo")
    data = load(given["dataset"], root, images=(config.image_fps or config.fps) is not None)
    with ProgressBar("labelled", "video") as progress:
        run(data, data.videos, out, config, workers, progress=progress, say=say)
    return out
