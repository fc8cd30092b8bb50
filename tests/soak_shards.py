"""Damaged and hostile shards in numbers, set on everything that reads shards: `make soak`.

    python tests/soak_shards.py --count 2000 --seed 0

flips `count` single bits, makes half as many structured mutants and every crafted file of tests/labelgen/forging.py, each in
a copy of a small data set, and prints what became of them. The exit status is 1 if anything crashed, hung, leaked, ended in a
traceback, or if `verify` did not find a flipped bit.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from click.testing import CliRunner

from cli.main import main as vssl
from labelgen.errors import VsslError
from labelgen.shards import verify
from labelgen.shards.hdf5 import Viewer
from tests.labelgen import forging
from trainer.data import Shards, TrainingClips
from trainer.methods import METHODS, method_class

SECONDS = 60  # for one item
MEMORY = 2 << 30  # bytes that a process may reach; it begins with about 0.5 GB
SECRET = "the content of some other file"
BAD = ("crash", "hang", "traceback", "leak", "memory", "silent")
KINDS = ["crafted", "flip", "mutant"]
Item = tuple[str, str | int]  # what is done, which one


def read_all(folder: Path, out: Path | None, methods: Iterable[str] = METHODS) -> tuple[str, bool, bool]:
    """Set all that reads shards on a folder: `shards info`, `shards verify`, `show labels` if there is a folder for its
    pictures, and samples of the methods. Returns what was said, whether it can be read, and whether verify finds it sound.
    Raises what is no error of this project's, which would reach a user as a traceback."""
    commands: list[tuple[str | Path, ...]] = [("shards", "info", folder), ("shards", "verify", folder)]
    if out is not None:
        commands.append(("show", "labels", "--shards", folder, "--out", out / "sheets", "--count", "1"))
    said: list[str] = []
    codes = []
    for command in commands:
        done = CliRunner().invoke(vssl, [str(word) for word in command])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        said.append(done.output)
        codes.append(done.exit_code)
    for name in methods:
        try:
            said.append(_samples(folder, name))
        except VsslError as error:
            said.append(str(error))
    return "\n".join(said), codes[0] == 0, codes[1] == 0


def _samples(folder: Path, name: str) -> str:
    """Decode a few samples of a method, as `train` does."""
    shards, method = Shards(folder), method_class(name)
    options = method.option_values()
    samples, _, _ = method.samples(shards, options)
    if not len(samples):
        return ""
    clips = TrainingClips(shards, samples, method, options, 0, "none")
    keys = np.array([(epoch, sample) for epoch in range(2) for sample in range(min(len(samples), 4))])
    batch = clips.batch(keys)
    if isinstance(batch, VsslError):
        raise batch
    return json.dumps([shards.classes, batch["id"], {key: value.tolist() for key, value in batch["labels"].items()}])


def work(items: list[Item], seed: int, home: Path, to_parent: Connection) -> None:
    """Make each item and read it; sends what became of it, and a remark."""
    secret, pipe = home / "secret", home / "pipe"
    makers = forging.crafted(secret, pipe)
    with Viewer() as viewer:
        verify.Viewer = lambda: nullcontext(viewer)  # one process for all
        read_all(home / "sound", home)  # imports and caches: they do not count as a hang
        to_parent.send(("ready", ""))
        for kind, which in items:
            folder = home / "work"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(home / "sound", folder / "demo")
            path, before = folder / "demo" / "00000.h5", _files(home)
            sound = path.read_bytes()
            if kind == "crafted":
                makers[which](path)
            else:
                rng = np.random.default_rng((seed, hash_of(kind), which))
                if kind == "mutant":
                    forging.mutate(path, rng)
                else:
                    forging.flip(path, kind.split()[1], rng)
            changed = kind == "crafted" or path.read_bytes() != sound
            try:
                few = kind.startswith("flip")
                said, readable, whole = read_all(
                    folder / "demo", None if few else folder, ("statistics", "pace") if few else METHODS
                )
            except Exception:
                to_parent.send(("traceback", traceback.format_exc()))
                continue
            outcome = "refused" if not readable else "sound to verify" if whole else "found by verify"
            if SECRET in said or _files(home) - before - {
                name for name in _files(home) if name.startswith("work/sheets/")
            }:
                outcome = "leak"
            elif kind.startswith("flip") and outcome == "sound to verify":
                outcome = "silent"
            elif resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
                outcome = "memory"
            to_parent.send((outcome if changed else "unchanged", said))


def hash_of(kind: str) -> int:
    """A number of a word, the same in every process."""
    return int.from_bytes(kind.encode()[-4:], "big")


def _files(home: Path) -> set[str]:
    return {os.path.relpath(path, home) for path in home.rglob("*") if path.is_file() and "demo" not in path.parts}


def main() -> None:
    """Hand the items to a process, start another after one that it does not survive, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="flipped bits; half as many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    forging.sound(home / "sound")
    (home / "secret").write_text(f"{SECRET}\n" * 100)
    os.mkfifo(home / "pipe")
    items: list[Item] = [("crafted", name) for name in forging.crafted(home / "secret", home / "pipe")]
    for part in ("header", "hdf5", "labels", "frames"):
        items += [(f"flip {part}", number) for number in range(-(-options.count // 4))]
    items += [("mutant", number) for number in range(options.count // 2)]
    items = [item for item in items if item[0].split()[0] in options.kinds]
    counts: Counter[tuple[str, str]] = Counter()
    at, context, peak = 0, multiprocessing.get_context("spawn"), 0
    try:
        while at < len(items):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(items[at:], options.seed, home, theirs))
            process.start()
            theirs.close()
            ours.recv()
            while at < len(items):
                try:
                    outcome, remark = ours.recv() if ours.poll(SECONDS) else ("hang", "")
                except EOFError:
                    process.join()
                    outcome, remark = "crash", f"exit status {process.exitcode}"
                counts[items[at][0], outcome] += 1
                if outcome in BAD:
                    print(f"{outcome}: {items[at]}\n{remark}", flush=True)
                at += 1
                if outcome in ("hang", "crash"):
                    break
            process.kill() if at < len(items) else None
            process.join()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    finally:
        shutil.rmtree(home)
    for kind in dict.fromkeys(kind for kind, _ in items):
        of_kind = {outcome: n for (which, outcome), n in sorted(counts.items()) if which == kind}
        print(
            f"{kind:12} {sum(of_kind.values()):6,}: " + ", ".join(f"{outcome} {n:,}" for outcome, n in of_kind.items())
        )
    bad = {outcome: sum(n for (_, which), n in counts.items() if which == outcome) for outcome in BAD}
    print(
        f"seed {options.seed}: "
        + ", ".join(f"{n} {outcome}" for outcome, n in bad.items())
        + f"; peak {peak / 1e6:.0f} MB"
    )
    sys.exit(any(bad.values()))


if __name__ == "__main__":
    main()
