"""`vssl eval`: evaluation of pretrained networks."""

from __future__ import annotations

import pkgutil
from functools import partial
from pathlib import Path

import click

from cli.commands import Command, Group
from cli.options import COMPUTE, compute
from labelgen import plugins
from trainer.evaluate import PROTOCOLS, protocol_class

_FOLDER = click.Path(path_type=Path)
_CHECKPOINT = "Run, checkpoint folder or file.  [default: the newest run]"
_CHECKPOINTS = "Finetuned run; repeat for the mean of several splits.  [default: the newest run]"
_COMPUTED = {"boundaries": "labelgen.labels.clip:clip_boundaries", "flow": "labelgen.flow:flow"}
_READ = {"opposites": "labelgen.manifest.form:opposites"}  # what makes the value of an option of its text
_ALL_SPLIT = "Official split.  [default: that of the run, else the first]"


def _common(split, several=False):
    """The options that all protocols share."""
    return [
        click.Option(["--shards"], type=_FOLDER, default=Path("out"), help="Folder of shards."),
        click.Option(["--checkpoint"], type=_FOLDER, multiple=several, help=_CHECKPOINTS if several else _CHECKPOINT),
        click.Option(["--split"], help=split),
        *(click.Option([name], **declaration) for name, declaration in COMPUTE.items()),
    ]


def _command(name, common, own, callback, about):
    """The command of a protocol, or of all, with the common options and its own."""
    compute = common[-len(COMPUTE) :]
    groups = {"Data and network": common[: -len(COMPUTE)], "Measurement": own, "Hardware": compute}
    named = {title: " ".join(option.name for option in options) for title, options in groups.items()}
    return Command(name, params=[*common, *own], groups=named, callback=callback, help=about)


def _option(declared):
    """The click option of a protocol's option."""
    kind = {Path: _FOLDER}.get(declared.kind, declared.kind)
    if declared.least is not None:
        kind = click.IntRange(declared.least)
    if declared.choices:
        kind = click.Choice(declared.choices)
    if kind is bool:
        return click.Option([f"--{declared.name.replace('_', '-')}"], is_flag=True, help=declared.help)
    names = [f"--{declared.name.replace('_', '-')}", declared.argument or declared.name]
    return click.Option(names, type=kind, default=declared.default, multiple=declared.several, help=declared.help)


class _Protocols(Group):
    """A command per protocol, made from its declaration on demand."""

    def list_commands(self, ctx):
        return sorted([*PROTOCOLS, "all"])

    def get_command(self, ctx, name):
        if name == "all":
            shared = [option for each in PROTOCOLS for option in protocol_class(each).options if option.shared]
            return _command(name, _common(_ALL_SPLIT), [*map(_option, shared)], _run_all, _run_all.__doc__)
        if plugins.is_path(name):
            plugins.use(name)
        elif name not in PROTOCOLS:
            return None
        protocol = protocol_class(name)
        common = _common(protocol.split_help, protocol.several_runs)
        return _command(name, common, [*map(_option, protocol.options)], partial(_run, name), protocol.__doc__)


@click.group("eval", cls=_Protocols)
def evaluate():
    """Evaluate a pretrained network."""


def _evaluator(options):
    """The evaluator of the common options, which are removed from `options`."""
    from trainer.evaluate.evaluator import Evaluator

    shards, checkpoint, split, *of_compute = (options.pop(option.name) for option in _common(""))
    return Evaluator(shards, checkpoint or None, split, compute(*of_compute))


def _run(name, **options):
    """Run a protocol with these options; print its table and the path of its result, and return the result."""
    from trainer.errors import ProtocolError, TrainerError

    evaluator = _evaluator(options)
    options |= {name: pkgutil.resolve_name(of)(options[name]) for name, of in _READ.items() if options.get(name)}
    try:
        result = evaluator.measure(name, **options, **_computed(name))
    except ProtocolError as error:
        raise TrainerError(_advised(error)) from error
    click.echo(f"{protocol_class(name).format_table(result)}\n\n{result['file']}")
    return result


def _run_all(**options):
    """Run every protocol that the network and the data allow, and report which ones were left out and why."""
    from trainer.evaluate.evaluator import measure_all

    left_out, evaluator, of_protocols = [], _evaluator(options), {}
    for name in PROTOCOLS:
        shared = {option.name for option in protocol_class(name).options if option.shared}
        of_protocols[name] = {option: options[option] for option in shared} | _computed(name)
    for name, table, error in measure_all(evaluator, of_protocols):
        if table is None:
            left_out.append(f"left out: {name}: {_advised(error)}")
        else:
            click.echo(f"{table}\n")
    click.echo("\n".join(left_out or ["nothing left out"]))


def _advised(error):
    advice = getattr(error, "advice", None)
    return f"{error}: {advice}" if advice else str(error)


def _computed(name):
    """Inputs of a protocol that the trainer cannot compute, as it has no optical flow."""
    return {what: pkgutil.resolve_name(_COMPUTED[what]) for what in protocol_class(name).needs}
