"""`vssl train` and `vssl finetune`: from shards to a network. `vssl show samples` has their options, too."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from cli.commands import Command
from cli.options import WRITTEN
from labelgen import plugins
from labelgen.progress import busy, core_hours, counted, duration, say
from trainer.settings import DECLARATIONS, TYPES

GROUPS = {  # of `vssl train`, `finetune` and `show samples`
    "Task and network": "method recipe options weights backbone width initial freeze scratch",
    "Data": "shards shard_weights split holdout fraction subset curriculum pacing",
    "Augmentation": "jitter color_strength crop_area",
    "Budget": "epochs repeats clips",
    "Optimisation": "batch_size accumulate lr optimizer momentum weight_decay schedule drop_every clip ema sync_bn seed",
    "Hardware": "device workers precision compile",
    "Output": "run resume plan checkpoint_minutes keep_every log log_every count out",
}


def _numbers(ctx, param, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(number) for number in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; expected numbers, such as 1,0.5") from error


def _setting(name: str):
    """The option of a setting, from its declaration."""
    declaration, kind = DECLARATIONS[name], TYPES[name]
    flag, about = f"--{name.replace('_', '-')}", f"{declaration.help}."
    if kind is bool:
        return click.option(flag, name, is_flag=True, default=None, help=about)
    about += f"  [default: {declaration.shown_default}]"
    if declaration.choices and kind is list:
        several = click.Choice(declaration.choices)
        return click.option(
            flag, name, type=several, multiple=True, callback=lambda ctx, param, value: [*value] or None, help=about
        )
    if kind is list:
        return click.option(flag, name, callback=_numbers, help=about)
    return click.option(flag, name, type=click.Choice(declaration.choices) if declaration.choices else kind, help=about)


def with_settings(name: str, *more):
    """Decorator that adds the options of the command of that name: the data, the recipe, the declared settings, and more."""

    def decorate(command):
        several = name != "finetune"
        options = [
            click.option(
                "--shards",
                type=click.Path(path_type=Path),
                multiple=several,
                default=[Path("out")] if several else Path("out"),
                help="Folder of shards"
                + "; repeatable, to train on several data sets labelled with the same settings." * several,
            ),
            click.option(
                "--recipe", help="Name of a paper's settings, or a YAML file; options given here take precedence."
            ),
            click.option(
                "--set",
                "options",
                multiple=True,
                help="Option of the method, name=value; repeatable (docs/methods.md).",
            ),
            *(_setting(setting) for setting, declaration in DECLARATIONS.items() if name in declaration.commands),
            *more,
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_RUN = (
    click.option(
        "--clips",
        type=click.IntRange(1),
        help="Number of clips to show, instead of --epochs; the learning rate drops at the same shares of it.",
    ),
    click.option("--run", type=WRITTEN, help="Name (in runs/) or path of the run.  [default: runs/METHOD-BACKBONE-N]"),
    click.option(
        "--resume", type=click.Path(path_type=Path), help="Run to continue; its settings need not be repeated."
    ),
    click.option(
        "--plan",
        is_flag=True,
        help="Estimate time, memory and disk from a few steps, and write nothing.",
    ),
)


@click.command(cls=Command, groups=GROUPS)
@with_settings("train", *_RUN)
@click.option(
    "--from",
    "initial",
    type=click.Path(path_type=Path),
    help="Run from whose backbone the pretraining starts, instead of random weights.",
)
def train(**given):
    """Pretrain a 3D CNN on the training videos of the shards."""
    if given["initial"] is not None and given["resume"] is not None:
        raise click.UsageError("--from and --resume exclude each other: --resume knows what its run began with")
    if given["method"] is None and given["recipe"] is None and given["resume"] is None:
        say(f"no --method given: {DECLARATIONS['method'].default}")
    return _train(**given)


@click.command(cls=Command, groups=GROUPS)
@click.option(
    "--checkpoint",
    "initial",
    type=click.Path(path_type=Path),
    help="Run to start from.  [default: the newest pretrained run]",
)
@click.option("--freeze", is_flag=True, help="Train only the classifier: a linear probe.")
@click.option("--scratch", is_flag=True, help="Start from random weights instead.")
@with_settings("finetune", *_RUN)
def finetune(initial, freeze, scratch, options, **given):
    """Train a classifier of the videos' labels together with a pretrained backbone."""
    if sum((initial is not None, scratch, given["resume"] is not None)) > 1:
        raise click.UsageError("--checkpoint, --scratch and --resume exclude each other")
    if freeze:
        options = (*options, "freeze=true")
    newest = initial is None and not scratch and given["resume"] is None
    return _train(method="recognition", initial=initial, newest=newest, options=options, **given)


def chosen(method, recipe, options, resume=None, **given):
    """The settings of a command, and the configuration of the shards that its recipe expects."""
    from trainer import checkpoint, recipes
    from trainer.errors import SettingError
    from trainer.settings import Settings, over

    for path in filter(plugins.is_path, [*(method or "").split("+"), given.get("backbone") or ""]):
        plugins.use(path)
    base, expected = (Settings(), {}) if recipe is None else recipes.recipe(recipe)
    name = base.method if method is None else method
    if name is None:
        name = (
            checkpoint.load(resume, untrained=True).meta["settings"]["method"]
            if resume
            else DECLARATIONS["method"].default
        )
    try:
        of_methods = recipes.parse_options(options, name)
    except SettingError as error:
        raise SettingError(f"--set {error}") from error
    return over(base, Settings(method=name, options=of_methods or None, **given)), expected


def _train(method, shards, run, resume, recipe, options, clips, plan, initial=None, newest=False, **given):
    from trainer import checkpoint
    from trainer.data.readers import each_folder
    from trainer.errors import Interrupted
    from trainer.training import train as train_network

    if plan and resume is not None:
        raise click.UsageError("--plan and --resume exclude each other")
    if clips is not None and given["epochs"] is not None:
        raise click.UsageError("--epochs and --clips exclude each other")
    settings, expected = chosen(method, recipe, options, resume, **given)
    if newest:
        initial = checkpoint.newest_run(finetuned=False)
    if plan:
        return _plan(settings, shards, clips, initial)
    try:
        return train_network(settings, shards, run, resume, initial, expected, clips)
    except Interrupted as stopped:
        folders = " ".join(f"--shards {shlex.quote(str(folder))}" for folder in each_folder(shards))
        again = f"vssl train {folders} --resume {shlex.quote(str(stopped.run))}"
        click.echo(f"{stopped}; continue with: {again}", err=True)
        sys.exit(stopped.exit_code)


def _plan(settings, shards, clips, initial):
    from trainer.training.estimate import estimate

    with busy("making a few steps"):
        found = estimate(settings, shards, clips, initial)
    seconds = found.steps * found.seconds
    click.echo(
        f"{counted(found.epochs, 'epoch')}, {counted(found.steps, 'step')} of {found.seconds:.3g} s, measured on a few steps"
    )
    click.echo(f"  time:      about {duration(seconds)}")
    click.echo(
        f"  processor: about {core_hours(seconds * found.cores / 3600)} core hours, {found.cores:.1f} cores in use"
    )
    on_device = f", {found.on_device / 1e9:,.2f} GB on the GPU" if found.on_device else ""
    click.echo(f"  memory:    about {found.memory / 1e9:,.2f} GB{on_device}")
    click.echo(f"  disk:      about {found.disk / 1e9:,.2f} GB for the run")
    return found
