"""Output that is closed, before a command or in its midst."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ENVIRONMENT, ROOT
from tests.trainer.synthetic import write_shard

PROGRAM = """
import os, sys
from cli.streams import keep_streams
keep_streams()
opened = os.open("log", os.O_CREAT | os.O_WRONLY)
for _ in range(3):
    print("printed \\udcff \xe4", flush=True)
    print("told", file=sys.stderr)
    os.write(2, b"of a library")
print(opened > 2, sys.stdout.isatty(), file=open("done", "w"))
"""


def run(program, folder, shell, **environment):
    """A Python program after the changes that a shell makes to its output."""
    variables = ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | environment
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, *program]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True)


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true", "> /dev/null"])
def test_a_program_goes_on_where_nobody_reads_it(tmp_path, shell):
    done = run(["-c", PROGRAM], tmp_path, shell, PYTHONIOENCODING="ascii")
    assert (tmp_path / "done").read_text() == "True False\n", done.stderr
    assert (tmp_path / "log").read_text() == ""  # which got no number of a closed stream
    assert b"Error" not in done.stderr and b"Traceback" not in done.stderr


def test_what_a_terminal_lacks_is_escaped(tmp_path):
    done = run(["-c", PROGRAM], tmp_path, "", PYTHONIOENCODING="ascii")
    assert done.stdout == b"printed \\udcff \\xe4\n" * 3


def test_any_name_is_read_and_written_whatever_the_locale(tmp_path):
    name = "ж🙂" * 30
    write_shard(tmp_path / "out" / "own" / "00000.h5", [20], names=[f"{name}.mp4"])
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for flags in ([], ["-E"]):
        program = [*flags, "-c", f"import sys; sys.path.append({str(ROOT)!r}); from cli.main import main; main()"]
        done = run([*program, "show", "labels", "--out", name], tmp_path, "", **ascii_alone)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / f"{name}.mp4.png").exists()
        (tmp_path / name / f"{name}.mp4.png").unlink()


def test_a_full_disk_is_still_told(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = run(["-c", PROGRAM], tmp_path, "> /dev/full")
    assert done.returncode and b"No space left on device" in done.stderr


def test_a_training_goes_on_where_nobody_reads_it(tmp_path):
    """Its output is closed, and its error output ends in a pipe that nobody reads."""
    write_shard(tmp_path / "out/demo/00000.h5", [64, 64, 64])
    options = "train --shards out --width 0.06 --epochs 3 --batch-size 3 --workers 1 --device cpu --run one"
    run(["-m", "cli.main", *options.split()], tmp_path, "2>&1 >&- | true")
    assert [path.name for path in (tmp_path / "runs/one/checkpoints").iterdir()] == ["00000003"]
