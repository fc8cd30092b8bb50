"""`vssl reproduce`: an entry of the papers by name, its requirements, and its steps, each run once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from labelgen.files import locked
from labelgen.processes import cores
from labelgen.progress import core_hours, duration
from labelgen.reading import load_json, load_yaml
from trainer.errors import TrainerError
from trainer.papers import PAPERS, commands, cost, labelling_of, numbered, script, value_of, values_of
from trainer.papers.steps import Folder, Step, network
from trainer.study.devices import kind_of_device
from trainer.study.estimate import seconds_per_clip
from trainer.study.runner import Machine
from trainer.study.spec import VIEWS
from trainer.study.study import Say, make_missing


@cache
def content() -> dict[str, Any]:
    """The contents of papers.yaml."""
    return load_yaml(PAPERS)


def entries() -> dict[str, dict[str, Any]]:
    """The entries by name, "thesis tab. 4.1"."""
    of_sources = content()["items"].items()
    return {f"{source} {item}": entry for source, items in of_sources for item, entry in items.items()}


def find(name: str) -> tuple[str, dict[str, Any]]:
    """An entry by its name, or by one of its tables and figures, "thesis table 3.2", and its full name. Raises TrainerError if
    there is none, or if nothing runs it."""
    names = {}
    for full in entries():
        source, _, item = full.partition(" ")
        for one in (item, *(f"{kind} {number}" for kind, number in numbered(item))):
            names[_plain(f"{source} {one}")] = full
    if (full := names.get(_plain(name), "")) == "":
        near = dict.fromkeys(names[each] for each in difflib.get_close_matches(_plain(name), names, n=5, cutoff=0.5))
        what = f"the nearest are: {'; '.join(near)}" if near else "`vssl reproduce` lists them"
        raise TrainerError(f"{name!r:.80}: no table or figure of that name; {what}")
    entry = entries()[full]
    if "cannot" in entry:
        raise TrainerError(f"{full}: nothing runs it: {entry['cannot']}")
    return full, entry


def _plain(name: str) -> str:
    """A name in normalised spelling."""
    words = re.sub(r"[^a-z0-9.-]+", " ", name.lower()).split()
    return " ".join({"table": "tab", "figure": "fig"}.get(word, word).strip(".") for word in words)


def listed() -> list[list[str]]:
    """For each entry its name, what it shows, the data sets that it needs and the number of its runs."""
    found, everything = [], content()
    for name, entry in entries().items():
        lines = [*commands(script(entry, everything))]
        data = dict.fromkeys(re.findall(r"out/(?:\S+/)?(\w+)", " ".join(lines)))
        runs = sum(" --run " in line for line in lines)
        found.append([name, entry["title"], ", ".join(data), str(runs) if lines else "nothing runs it"])
    return found


def labelled(step: Step) -> bool:
    """Whether the shards of a labelling exist."""
    return (_shards(step) / "report.json").exists()


def _shards(labelling: Step) -> Path:
    return Path(value_of(labelling.words, "--out") or "") / str(value_of(labelling.words, "--dataset"))


def check_data(labellings: Sequence[Step], source_of: Callable[[str], str]) -> None:
    """Raises TrainerError if shards and also the data set that they are made from are missing. source_of: the source of a data
    set by name."""
    lines = []
    for step in labellings:
        name, root = (value_of(step.words, option) or "" for option in ("--dataset", "--root"))
        if not labelled(step) and not Path(root).is_dir():
            where = f"neither its shards in {_shards(step)} nor its videos in {root}"
            lines.append(f"{name}: {where}; it is {source_of(name)}")
    if lines:
        where = "Put each data set there, its files as published (docs/manifests.md)"
        raise TrainerError("\n".join([*lines, f"{where}, or give other places with --data or $VSSL_DATA, or --shards"]))


def make(
    labellings: Sequence[Step],
    steps: Sequence[Step],
    folder: Folder,
    machine: Machine,
    say: Say,
    source_of: Callable[[str], str],
) -> dict[str, str]:
    """Run the missing steps of an entry; returns why some failed, by id. Steps that need failed steps are skipped. An
    interrupted reproduction resumes with the same call. source_of: see check_data. Raises TrainerError while another process
    works on the same folder."""
    check_data(labellings, source_of)
    folder.root.mkdir(parents=True, exist_ok=True)
    other = TrainerError(f"{folder.root}: another process works on this reproduction; wait for it, or stop it")
    failed = dict[str, str]()
    with locked(folder.root, other, say):
        for step in labellings:
            if not labelled(step):
                say(f"$ {step.command}")
                step.call([*step.words, *_on(machine)])
        missing = [step for step in steps if not folder.done(step)]
        while missing:
            waits = {step.id for step in missing}
            make_missing([step for step in missing if not waits & {*step.needs}], folder, machine, None, failed, say)
            for step in missing:
                if failed.keys() & {*step.needs}:
                    failed.setdefault(step.id, "the training that it needs failed")
            missing = [step for step in missing if step.id not in failed and not folder.done(step)]
    return failed


def _on(machine: Machine) -> list[str]:
    """Options of labelgen that say where a labelling runs."""
    if machine.scheduler is None:
        return ["--workers", str(cores())]
    return ["--backend", "dask", "--scheduler", machine.scheduler]


def plan(labellings: Sequence[Step], steps: Sequence[Step], folder: Folder, device: str) -> Iterator[str]:
    """The commands of an entry, which of them are done, and the cost of the others, as lines."""
    total, unknown = _Total(device), dict[str, None]()
    for step in labellings:
        yield f"$ {step.command}"
        if labelled(step):
            yield "  done"
        elif Path(value_of(step.words, "--root") or "").is_dir():
            total.labelled(step.call([*step.words, *_on(Machine()), "--plan"]))
        else:
            missing = f"there are no videos in {value_of(step.words, '--root')}"
            if known := cost(labelling_of(step.row, content()), content()):
                _, hours, size = known
                total.core_hours, total.disk = total.core_hours + hours, total.disk + 1e9 * size
                yield f"  {hours:.1f} core hours, {size:.0f} GB according to docs/papers/shards.md: {missing}"
            else:
                unknown[f"labelling {step.row}"] = None
                yield f"  unknown: {missing}"
    of_entry = {_shards(step): step.row for step in labellings}
    there = {_shards(step): step for step in labellings if labelled(step)}
    like: dict[tuple[str, ...], tuple[str, Any]] = {}
    for step in steps:
        yield f"$ {step.command}"
        lacking = [name for path, name in of_entry.items() if path in step.shards and path not in there]
        if folder.done(step):
            yield "  done"
        elif lacking:
            unknown[f"what depends on {' and '.join(lacking)}, which must be labelled first"] = None
            yield "  not known before labelling"
        elif step.trains:
            words = _as_new(step, steps)
            if words in like:
                yield f"  like {like[words][0]}"
            else:
                like[words] = step.row, step.call([*words, *step.computing, "--plan"])
            total.trained(like[words][1])
        elif step.words[0] == "eval":
            seconds = _measuring(step, steps, there[step.shards[0]], device)
            total.measured(seconds)
            yield f"  at most about {duration(seconds)}"
    yield ""
    if total.counted or not unknown:
        yield from total.lines()
    if unknown:
        yield f"not counted: {'; '.join(unknown)}"


def _as_new(step: Step, steps: Sequence[Step]) -> tuple[str, ...]:
    """The words of an equally expensive training without a previous one; trainings of equal cost have the same words."""
    words, (backbone, width) = list(step.words), network(step, steps)
    for option in ("--run", "--seed", "--split", "--checkpoint"):
        for place in [place for place, word in enumerate(words) if word == option][::-1]:
            del words[place : place + 2]
    begin = ["--scratch", "--backbone", backbone, "--width", f"{width:g}"] if "--checkpoint" in step.words else []
    return (*words, *begin)


def _measuring(step: Step, steps: Sequence[Step], labelling: Step, device: str) -> float:
    """Seconds to compute features of all videos, 10 clips of each, with a network and with a random one."""
    backbone, width = network(step, steps)
    frames, crop = (value_of(labelling.words, option) or "16" for option in ("--clip-length", "--crop"))
    videos = load_json(_shards(labelling) / "report.json")["videos"]["labelled"]
    networks = len(values_of(step.words, "--checkpoint")) if step.words[1] == "recognition" else 2
    each = seconds_per_clip(f"features {backbone} {width:g} {frames}x{crop}", device.split(",")[0])
    return videos * VIEWS * networks * each


class _Total:
    """The total cost of the missing steps."""

    def __init__(self, device: str) -> None:
        self.device = kind_of_device(device)
        self.core_hours = self.seconds = 0.0
        self.memory = self.on_device = 0
        self.disk = 0.0

    @property
    def counted(self) -> bool:
        """Whether it holds any step."""
        return self.core_hours > 0

    def labelled(self, found: Any) -> None:
        """found: a labelgen.run.estimate.Estimate"""
        self.core_hours += found.core_hours[0]
        self.disk, self.memory = self.disk + found.disk, max(self.memory, found.memory)

    def trained(self, found: Any) -> None:
        """found: a trainer.training.estimate.Estimate"""
        seconds = found.steps * found.seconds
        self.seconds += seconds
        self.core_hours += seconds * found.cores / 3600
        self.disk, self.memory = self.disk + found.disk, max(self.memory, found.memory)
        self.on_device = max(self.on_device, found.on_device)

    def measured(self, seconds: float) -> None:
        self.seconds += seconds
        self.core_hours += seconds * (cores() if self.device == "cpu" else 1) / 3600

    def lines(self) -> Iterator[str]:
        yield "in all:"
        if self.seconds:
            yield f"  time:      about {duration(self.seconds)} after labelling, one run at a time"
        yield f"  processor: about {core_hours(self.core_hours)} core hours"
        if self.device == "cuda":
            yield f"  GPU:       about {core_hours(self.seconds / 3600)} GPU hours, {self.on_device / 1e9:,.2f} GB at most"
        if self.memory:
            yield f"  memory:    about {self.memory / 1e9:,.2f} GB at most for one of them"
        yield f"  disk:      about {self.disk / 1e9:,.2f} GB for shards and runs"
