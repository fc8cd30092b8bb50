"""Hostile inputs by the thousand, used in processes that may die of them: `python -m tests.soak_doors --count 1000 --seed 0`.

Counts, by kind, what was refused and what was used, and every crash, hang, traceback and process that took too much memory, with
the number of each, which `--kind KIND --mutant NUMBER` repeats. Seeds have no mutant in common. The exit
status is 1 if any of these was there.
"""

import argparse
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch

from labelgen.errors import VsslError
from tests.mutants import Mutants

SECONDS, MEGABYTES = 60, 1500  # of one mutant at most, beyond what a process holds at its start
WEIGHTS = {"checkpoint": 4, "manifest": 4, "recipe": 2, "option": 2, "video": 4}  # the others 1


def use(mutants: Mutants, kind: str, seeds: range, log: Path, answers: int) -> None:
    """Use mutants one after the other, in a process of its own; a byte for each: 0 used, 1 refused, 2 traceback, 3 memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            mutants(kind, seed)
            answer = 0
        except (VsslError, OSError):
            answer = 1
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            answer = 2
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 1024 * MEGABYTES:
            answer = 3
        os.write(answers, bytes([answer]))
        if answer > 1:
            break


def outcomes(mutants: Mutants, kind: str, seeds: range, log: Path) -> Iterator[str]:
    """What becomes of each mutant: "used", "refused" or, in capitals, what must not happen."""
    at = 0
    while at < len(seeds):
        read, write = os.pipe()
        process = os.fork()
        if not process:
            try:
                use(mutants, kind, seeds[at:], log, write)
            finally:
                os._exit(0)
        os.close(write)
        status = None
        while status is None and at < len(seeds):
            ready, _, _ = select.select([read], [], [], SECONDS)
            answer = os.read(read, 1) if ready else None
            if answer:
                yield ("used", "refused", "TRACEBACK", "MEMORY")[answer[0]]
                at += 1
                status = 0 if answer[0] > 1 else None
            else:
                if not ready:
                    os.kill(process, signal.SIGKILL)
                yield "CRASH" if ready else "HANG"
                at, status = at + 1, 1
        os.close(read)
        os.waitpid(process, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=Mutants.KINDS, help="this kind alone")
    parser.add_argument("--mutant", type=int, help="of each kind this one alone, by its number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # a fork would wait for ever for threads that it did not inherit
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        mutants, log = Mutants(Path(folder, "made")), Path(folder, "log")
        kinds = [options.kind] if options.kind else [*Mutants.KINDS]
        total = sum(WEIGHTS.get(kind, 1) for kind in kinds)
        for kind in kinds:
            found, begin = Counter(), time.monotonic()
            if options.mutant is None:
                first, count = 10**6 * options.seed, max(1, round(options.count * WEIGHTS.get(kind, 1) / total))
            else:
                first, count = options.mutant, 1
            numbers = range(first, first + count)
            for number, outcome in zip(numbers, outcomes(mutants, kind, numbers, log), strict=True):
                found[outcome] += 1
                if outcome not in ("used", "refused"):
                    wrong += 1
                    said = log.read_text(errors="replace").strip().splitlines()[-4:]
                    print(f"{kind}, mutant {number}: {outcome}: {' | '.join(said)}"[:600], flush=True)
            told = ", ".join(f"{times} {outcome}" for outcome, times in sorted(found.items()))
            print(f"{kind}: {count} mutants: {told}; {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{wrong} crashes, hangs, tracebacks or excesses of memory")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
