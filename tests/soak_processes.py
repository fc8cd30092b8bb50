"""Processes killed at random moments, again and again: `python tests/soak_processes.py --count 20 --seed 0`.

In turn the command of a run of labelgen, one of its workers and the command of a training get SIGKILL. The same command
again (`--resume` for a training) has to end in what an unbroken run ends in, byte for byte; no process and no temporary file
may be left over. Prints what was counted; the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.labelgen.synthetic import write_video  # noqa: E402
from tests.trainer.runs import assert_same_run  # noqa: E402

VICTIMS = ("labelgen", "a worker", "training")
PATIENCE = 120  # seconds, for processes to end
LABEL = "--dataset folder --root videos --workers 2 --videos-per-shard 1 --height 48 --width 64 --crop 32".split()  # noqa: SIM905
TRAIN = "--shards out --device cpu --width 0.06 --batch-size 3 --workers 2 --epochs 15 --recipe often.yaml".split()  # noqa: SIM905

OFTEN = "about: a checkpoint whenever one may begin\nsettings: {checkpoint_minutes: {value: 0.0, source: none}}\n"


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A `vssl` command with a session of its own, so that all of its processes can be found."""
    command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "said", "w") as said:
        return subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, stdout=said, stderr=subprocess.STDOUT
        )


def session(leader: int) -> list[int]:
    """The living processes of a session, but for its leader."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            # the fields after the name, which may hold brackets itself
            state, _, _, of = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == leader and state != "Z" and int(name) != leader:
                found.append(int(name))
    return found


def child(leader: int, words: bytes) -> int | None:
    """A random process of a session that was started with these words."""
    found = []
    for pid in session(leader):
        with contextlib.suppress(OSError):
            if words in Path("/proc", str(pid), "cmdline").read_bytes():
                found.append(pid)
    return random.choice(found) if found else None


def kill_at(process: subprocess.Popen, moment: float, words: bytes | None) -> str:
    """Kill the command, or one of its processes that was started with these words, that many seconds from now or as soon as
    there is one. Returns what went wrong, or "early" if the command had ended before."""
    begin = time.monotonic()
    victim = process.pid
    while process.poll() is None and time.monotonic() - begin < moment:
        time.sleep(0.01)
    if words is not None:
        while process.poll() is None and (victim := child(process.pid, words)) is None:
            time.sleep(0.01)
    if process.poll() is not None:
        return "early"
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + PATIENCE
    while left := session(process.pid):
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return f"{len(left)} processes were left over"
        time.sleep(0.1)
    return ""


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out/videos").glob("*.h5"))}


def label_again(folder: Path, good: Path) -> str:
    status = start(folder, "labelgen", *LABEL).wait()
    if status:
        return f"labelgen again: exit status {status}: {(folder / 'said').read_text()[-500:]}"
    return "" if shards(folder) == shards(good) else "other bytes"


def resume(folder: Path, good: Path) -> str:
    run = folder / "runs/one"
    begun = run.is_dir() and any((run / "checkpoints").glob("[0-9]*"))
    if not begun:  # killed before the first checkpoint: that is no run
        shutil.rmtree(run, ignore_errors=True)
    status = start(folder, "train", *TRAIN, *(["--resume", "one"] if begun else ["--run", "one"])).wait()
    if status:
        return f"training again: exit status {status}: {(folder / 'said').read_text()[-500:]}"
    try:
        assert_same_run(run, good / "runs/one")
    except AssertionError as error:
        return f"another run: {error}"
    return ""


def one_kill(victim: str, good: Path, folder: Path, moment: float) -> str:
    """One kill of a victim and what follows; what went wrong, "" or "early"."""
    (folder / "videos").symlink_to(good / "videos")
    (folder / "often.yaml").write_text(OFTEN)
    again: Callable[[Path, Path], str]
    if victim in ("labelgen", "a worker"):
        process, again = start(folder, "labelgen", *LABEL), label_again
        words = b"LokyProcess" if victim == "a worker" else None
    else:
        (folder / "out").symlink_to(good / "out")
        process, again, words = start(folder, "train", *TRAIN, "--run", "one"), resume, None
    wrong = kill_at(process, moment, words) or again(folder, good)
    said = (folder / "said").read_text()
    if not wrong and "Traceback" in said:
        wrong = f"a traceback: {said[-500:]}"
    left = [str(path) for path in (*folder.rglob(".*.tmp"), *folder.rglob(".*.tmp/")) if path.exists()]
    return wrong or (f"left over: {left}" if left else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        good = Path(scratch, "good")
        good.mkdir()
        for index in range(6):
            write_video(good / "videos" / f"{'ab'[index % 2]}" / f"{index}.mp4", 64 + 8 * index, index)
        (good / "often.yaml").write_text(OFTEN)
        seconds = {}
        for what, arguments in (("labelgen", LABEL), ("training", [*TRAIN, "--run", "one"])):
            begin = time.monotonic()
            if start(good, "labelgen" if what == "labelgen" else "train", *arguments).wait():
                raise SystemExit((good / "said").read_text())
            seconds[what] = time.monotonic() - begin
        for number in range(options.count):
            victim, folder = VICTIMS[number % len(VICTIMS)], Path(scratch, str(number))
            folder.mkdir()
            longest = seconds["labelgen" if victim in ("labelgen", "a worker") else "training"]
            moment = random.uniform(0, longest)
            wrong = one_kill(victim, good, folder, moment)
            counts["ended before" if wrong == "early" else "wrong" if wrong else f"kills of {victim}"] += 1
            if wrong not in ("", "early"):
                print(f"kill {number} of {victim} after {moment:.2f} s: {wrong}", flush=True)
            shutil.rmtree(folder)
    print(f"seed {options.seed}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
