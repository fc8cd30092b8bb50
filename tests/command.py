"""`vssl` in this process, as a user types it."""

from click.testing import CliRunner

from cli.main import main


def vssl(*arguments: object, code: int = 0) -> str:
    """All that `vssl` prints; code: the exit status to expect."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done.output
