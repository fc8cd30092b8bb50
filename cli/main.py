"""`vssl`: from a folder of unlabelled videos to a pretrained, evaluated 3D CNN."""

from __future__ import annotations

import os
import sys
import traceback

import click

from cli.cluster import cluster
from cli.commands import Group
from cli.demo import demo
from cli.embed import embed
from cli.evaluate import evaluate
from cli.export import export
from cli.flow import flow
from cli.labelgen import labelgen
from cli.map import map_
from cli.report import compare, report
from cli.reproduce import reproduce
from cli.search import search
from cli.show import shards_group, show
from cli.streams import keep_streams, names_in_utf8
from cli.study import study
from cli.train import finetune, train
from cli.weights import import_
from labelgen import plugins
from labelgen.errors import ConfigError, VsslError
from labelgen.processes import safe_path
from labelgen.progress import detail

# By default PyTorch's threads spin while they wait for work, which slows a step two to three times if another process runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _Group(Group):
    def main(self, *args, **kwargs):
        names_in_utf8()
        keep_streams()
        with safe_path():
            return super().main(*args, **kwargs)

    def _traced(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (VsslError, OSError):
            detail(traceback.format_exc())
            raise

    def invoke(self, ctx: click.Context):
        try:
            return self._traced(ctx)
        except ConfigError as error:
            raise click.UsageError(str(error)) from error
        except VsslError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            kept = "; finished features are kept" if ctx.invoked_subcommand == "eval" else ""
            click.echo(f"\nvssl {ctx.invoked_subcommand}: interrupted{kept}", err=True)
            sys.exit(130)
        except MemoryError:
            click.echo("Error: not enough memory", err=True)
            sys.exit(1)
        except (OSError, RuntimeError) as error:  # a folder that is not writable, a file that was removed
            if isinstance(error, RuntimeError) and "can't start new thread" not in str(error):
                raise
            many = isinstance(error, (BlockingIOError, RuntimeError))
            advice = "; the limit of processes and threads is reached (ulimit -u): use fewer workers" if many else ""
            click.echo(f"Error: {error}{advice}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="vssl")
@click.option(
    "--use",
    metavar="MODULE:NAME",
    multiple=True,
    help=f"Your method, backbone, protocol or label kind, which may be imported; also in ${plugins.VARIABLE}.",
)
def main(use):
    """From a folder of unlabelled videos to a pretrained, evaluated 3D CNN.

    \b
      vssl labelgen --dataset kinetics400 --workers 64
      vssl train --shards out/
      vssl eval retrieval
    """
    for path in use:
        plugins.use(path)
    if plugins.named():
        from labelgen.labels import register_own

        register_own()


for command in (
    labelgen,
    flow,
    train,
    finetune,
    evaluate,
    export,
    import_,
    report,
    compare,
    show,
    shards_group,
    demo,
    embed,
    search,
    cluster,
    map_,
    study,
    reproduce,
):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="vssl")
