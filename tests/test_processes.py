"""Processes that the project starts: what they import, how many there are, what they need of the system and the terminal."""

import os
import subprocess
import sys

import click
import pytest

from cli.main import main
from labelgen import processes
from labelgen.processes import cores, environment, safe_path
from labelgen.progress import counted
from labelgen.run.process import in_new_process
from labelgen.run.workers import pool
from labelgen.shards import ShardReader
from labelgen.shards.hdf5 import Viewer
from tests.command import ENVIRONMENT, ROOT, vssl
from tests.labelgen.synthetic import write_video
from tests.labelgen.test_shards import write

NAMES = [
    "json",
    "numbers",
    "signal",
    "threading",
    "pickle",
    "runpy",
    "argparse",
    "random",
    "numpy",
    "labelgen",
    "sitecustomize",
]
SMALL = ("--height", "48", "--width", "64", "--crop", "32")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The current folder holds files of strangers that are called as modules are; whether one was run."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'sprung')!r}, 'w').write('{name}')\nraise SystemExit(9)"
        )
    monkeypatch.chdir(folder)
    yield folder
    sprung = tmp_path / "sprung"
    assert not sprung.exists(), f"{sprung.read_text()}.py of the current folder was run"


def test_a_call_in_its_own_process(trap):
    assert in_new_process(divmod, 7, 2) == (3, 1)


def test_the_process_that_looks_at_hdf5(trap, tmp_path):
    write(tmp_path / "0.h5")
    with Viewer() as viewer:
        assert viewer.fault(str(tmp_path / "0.h5"), ShardReader(tmp_path / "0.h5").header) is None


def test_the_workers_of_labelgen(trap, tmp_path):
    """In a process of its own, whose first workers, and what watches over them, are started there."""
    script = tmp_path / "workers.py"
    script.write_text(
        "from labelgen.run.workers import pool\n"
        "if __name__ == '__main__':\n"
        "    with pool(1, None, print) as (each, _):\n"
        "        print(*each(str, [7]))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr


def test_the_process_of_a_study(trap, tmp_path):
    from trainer.study.jobs import Job
    from trainer.study.runner import execute

    about = {"row": "", "title": "", "cost": "", "clips": 0, "source": None, "networks": {}, "start": ""}
    job = Job(id="none", device="cpu", **about)
    assert "NotImplementedError" in execute(job, tmp_path, 1, None)[1]  # the study's code has been reached


def test_the_processes_of_a_command(trap, monkeypatch):
    """Whatever a library starts within a command, and the commands of `vssl demo`."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    seen = []

    @click.command()
    def probe():
        done = subprocess.run(
            [sys.executable, "-c", "import json; print(json.dumps(1))"], capture_output=True, text=True
        )
        seen.append(done.stdout)

    monkeypatch.setitem(main.commands, "probe", probe)
    vssl("probe")
    assert seen == ["1\n"] and "PYTHONSAFEPATH" not in os.environ
    done = subprocess.run([sys.executable, "-m", "cli.main", "demo", "--help"], env=environment(), capture_output=True)
    assert done.returncode == 0


def test_a_block_leaves_the_variable_as_it_was(monkeypatch):
    for before in ("", "1", None):
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        if before is not None:
            monkeypatch.setenv("PYTHONSAFEPATH", before)
        with safe_path():
            assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.environ.get("PYTHONSAFEPATH") == before


# --- how many


def group(system, files, cgroup, mounts):
    (system / "proc/self").mkdir(parents=True, exist_ok=True)
    (system / "proc/self/cgroup").write_text(cgroup)
    (system / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(text)
    return processes._quota(system)


CPU = "sys/fs/cgroup/cpu,cpuacct"
MOUNT2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT1 = "33 30 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    "files, cgroup, mounts, expected",
    [
        ({"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, "0::/a/b\n", MOUNT2, 1.5),
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "400000 100000"}, "0::/a/b\n", MOUNT2, 4),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, "0::/\n", MOUNT2, 0.5),  # a container's own
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, "0::/docker/1\n", MOUNT2, 2),  # called by its name outside
        (
            {f"{CPU}/a/cpu.cfs_quota_us": "300000\n", f"{CPU}/a/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/a\n0::/x\n",
            MOUNT1.format(root="/"),
            3,
        ),
        (
            {f"{CPU}/cpu.cfs_quota_us": "200000", f"{CPU}/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/docker/1\n",
            MOUNT1.format(root="/docker/1"),
            2,
        ),
        (
            {f"{CPU}/cpu.cfs_quota_us": "-1", f"{CPU}/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/\n",
            MOUNT1.format(root="/"),
            float("inf"),
        ),
        ({}, "0::/\n", "", float("inf")),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, "0::/\n", MOUNT2, float("inf")),
    ],
)  # fmt: skip
def test_the_quota_of_a_control_group_is_found(tmp_path, files, cgroup, mounts, expected):
    assert group(tmp_path, files, cgroup, mounts) == expected


@pytest.mark.parametrize("quota, expected", [(float("inf"), 8), (2.5, 3), (0.2, 1), (99, 8)])
def test_no_more_processes_than_the_quota_has_processors(monkeypatch, quota, expected):
    from trainer.settings import default_workers

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processes, "_quota", lambda _: quota)
    assert cores() == expected and default_workers() == max(1, expected // 2)
    said = []
    with pool(100, None, said.append) as (_, at_work):
        most = counted(expected, "core"), counted(expected, "worker is", "workers are")
        used = "warning: 100 workers requested, but this machine has {}: {} used".format(*most)
        assert at_work == expected and said == [used]


# --- another system

ELSEWHERE = """
import builtins, os, sys
for name in ("sched_getaffinity", "posix_fallocate", "posix_fadvise", "process_cpu_count", "fork", "forkpty"):
    if hasattr(os, name):
        delattr(os, name)
real = builtins.open
def opened(file, *arguments, **options):
    psutil = "psutil" in sys._getframe(1).f_code.co_filename  # which asks another system otherwise
    if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith("/proc") and not psutil:
        raise FileNotFoundError(2, "No such file or directory", file)
    return real(file, *arguments, **options)
import io
builtins.open = io.open = opened
"""


def test_labels_are_made_and_read_without_what_linux_alone_has(tmp_path, capfd):
    """On Linux without the names that macOS lacks, /proc and fork; not on a Mac."""
    for index in range(2):
        write_video(tmp_path / "v" / f"{index}.mp4", 20, index)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ELSEWHERE)
    vssl = [sys.executable, "-m", "cli.main"]
    variables = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    for line in (
        ["labelgen", "--dataset", "folder", "--root", "v", "--workers", "2", "--videos-per-shard", "1", *SMALL],
        ["shards", "verify", "out"],
        ["show", "labels", "--shards", "out"],
    ):
        done = subprocess.run([*vssl, *line], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert len([*tmp_path.glob("out/v/*.h5")]) == 2


def test_workers_start_where_python_starts_processes_by_a_server(tmp_path):
    """As Python 3.14 does: nothing of labelgen hangs on fork."""
    write_video(tmp_path / "v" / "0.mp4", 20)
    code = (
        "import multiprocessing; multiprocessing.set_start_method('forkserver')\n"
        "from labelgen import run; from labelgen.config import Config; from labelgen.manifest import load\n"
        "data, config = load('folder', 'v'), Config(height=48, width=64, crop=32)\n"
        "report = run.run(data, data.videos, run.Path('out'), config, 2, 1)\n"
        "assert report['videos']['labelled'] == 1"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True)


# --- the terminal


def test_a_terminal_that_lacks_letters_is_shown_codes(tmp_path):
    write_video(tmp_path / "Пляж" / "ж🙂.mp4", 20)
    label = ["labelgen", "--dataset", "folder", "--root", tmp_path / "Пляж", "--out", tmp_path / "o", *SMALL]
    show = ["show", "labels", "--shards", tmp_path / "o", "--out", tmp_path / "ж"]
    for charset, words in (("latin-1", label), ("latin-1", show), ("ascii", show)):
        variables = ENVIRONMENT | {"PYTHONIOENCODING": charset}
        line = [sys.executable, "-m", "cli.main", *map(str, words)]
        done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert charset == "ascii" or b"\\u0436" in done.stdout or b"\\u041f" in done.stdout  # ASCII is UTF-8 to click


def test_a_name_that_is_no_text_is_shown_as_codes(tmp_path):
    assert "\\udcff: no such folder of shards" in vssl("shards", "info", tmp_path / os.fsdecode(b"\xff"), code=1)


def test_a_process_prints_every_text_whatever_the_terminal():
    variables = environment() | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", "print('\\u0436')"], env=variables, capture_output=True, check=True)
    assert done.stdout == b"\\u0436\n"


def test_numba_is_told_no_number(tmp_path):
    write_video(tmp_path / "v" / "0.mp4", 20)
    for value in ("abc", "0"):
        line = ["labelgen", "--dataset", "folder", "--root", tmp_path / "v", "--out", tmp_path]
        variables = ENVIRONMENT | {"NUMBA_NUM_THREADS": value}
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *map(str, line)], env=variables, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith(f"Error: NUMBA_NUM_THREADS is {value!r}; expected a whole number of at least 1")
