"""The kinds of command of `vssl`: options in groups, whole summaries, and how much is printed."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from labelgen import progress

OTHERS = "Other options"


def _tell(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    """Set how much is printed until the whole command ends; an error of the command is printed before that."""
    if not given:
        return
    if ctx.meta.setdefault(__name__, param.name) != param.name:
        raise click.UsageError("-v and -q exclude each other", ctx)
    root = ctx.find_root()
    root.call_on_close(partial(progress.set_level, progress.level()))
    progress.set_level(1 if param.name == "verbose" else -1)


class _Formatted(click.Command):
    """Its options are listed in groups. groups: names of parameters by title, such as {"Hardware": "workers device"}"""

    def __init__(self, *args: Any, groups: dict[str, str] | None = None, **named: Any):
        super().__init__(*args, **named)
        self.groups = {name: title for title, names in (groups or {}).items() for name in names.split()}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others = OTHERS if self.groups else "Options"
        titles = dict.fromkeys([*self.groups.values(), others])
        found: dict[str, list] = {title: [] for title in titles}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                found[self.groups.get(param.name or "", others)].append(record)
        for title, records in found.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Command(_Formatted):
    """A command that reports its progress: it has -v and -q."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        for letter, name, about in (
            ("-v", "--verbose", "Also print details: each finished part, settings, the origin of an error."),
            ("-q", "--quiet", "Print only results, warnings and errors, no progress."),
        ):
            option = click.Option([letter, name], is_flag=True, expose_value=False, callback=_tell, help=about)
            self.params.append(option)


class Group(_Formatted, click.Group):
    """Commands with their whole summaries."""

    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, command.get_short_help_str(10_000)) for name, command in commands.items() if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def output_option(level: int) -> list[str]:
    """The option with which another command prints as much."""
    return {-1: ["-q"], 0: [], 1: ["-v"]}[level]
