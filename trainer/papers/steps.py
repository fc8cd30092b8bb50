"""The commands of an entry as resumable steps, each run once, in order."""

from __future__ import annotations

import glob
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from labelgen.errors import ReadError
from labelgen.files import json_sha256, write_json
from labelgen.reading import load_json, validate
from trainer.errors import TrainerError
from trainer.papers import commands, labelgen, labelling_of, script, value_of, values_of
from trainer.recipes import recipe
from trainer.study.devices import kind_of_device
from trainer.study.jobs import Store, Work

Call = Callable[[Sequence[str]], Any]  # runs the `vssl` command with these words; returns what its function returns
_MARKER = {"command": str, "seconds": float, "device": str, "made": [str]}
_SHARDS = ("--shards", "--query", "--gallery")  # options whose values are folders written by labelgen


@dataclass(frozen=True)
class Scale:
    """How a reproduction is smaller or larger than the source.

    seeds: of every training; splits: official ones, empty for all those of the source; clips: seen by every training, instead
    of its recipe's epochs; width: of every network; batch_size: of every training; frames: height, width, crop, pixels
    """

    seeds: tuple[int, ...] = (0,)
    splits: tuple[str, ...] = ()
    clips: int | None = None
    width: float | None = None
    batch_size: int | None = None
    frames: tuple[int, int, int] | None = None

    @property
    def parts(self) -> list[str]:
        """The seeds and splits as text, unless they are seed 0 and all splits."""
        found = [f"seeds {', '.join(map(str, self.seeds))}"] if self.seeds != (0,) else []
        return found + ([f"only official splits {', '.join(self.splits)}"] if self.splits else [])

    @property
    def smaller(self) -> list[str]:
        """How it is a rehearsal, as text."""
        found = [f"every training sees about {self.clips:,} clips"] if self.clips else []
        found += [f"every network has the width {self.width:g}"] if self.width else []
        found += [f"every training has batches of {self.batch_size}"] if self.batch_size else []
        if self.frames:
            found.append("frames of {} x {} pixels, crops of {}".format(*self.frames))
        return found


@dataclass(frozen=True)
class Place:
    """out: folder of the reproduction, with runs/ and tables/; data: folder of the data sets; shards: folder of the labellings,
    None for out/out"""

    out: Path
    data: Path = Path("data")
    shards: Path | None = None

    def data_set(self, name: str) -> Path:
        return (self.data / name).absolute()

    def labelled(self, folder: str) -> Path:
        """The shards of a labelling, by their folder in the printed commands."""
        return (self.shards or self.out / "out").absolute() / Path(folder).relative_to("out")


class Folder(Store):
    """The folder of a reproduction: runs/NAME, results/ID.json of each finished step, logs/ID.txt."""

    def made(self, id: str) -> list[Path] | None:
        """What a step wrote; None if it is not finished, or if the file is gone."""
        try:
            content = load_json(self.root / "results" / f"{id}.json")
            validate(content, _MARKER, "it")
        except (ReadError, ValueError):  # damaged: the step runs again
            return None
        found = [*map(Path, content["made"])]
        return found if all(path.exists() for path in found) else None

    def done(self, job: Work) -> bool:
        return self.made(job.id) is not None


@dataclass(frozen=True, eq=False)
class Step(Work):
    """A command. printed: its words in docs/papers/; words: those run here; seed: of its trainings; before: ids of required
    steps"""

    kind: ClassVar[str] = "step"
    printed: tuple[str, ...]
    words: tuple[str, ...]
    seed: int
    before: tuple[str, ...]
    call: Call

    @property
    def needs(self) -> list[str]:
        return [*self.before]

    @property
    def trains(self) -> bool:
        return self.words[0] in ("train", "finetune")

    @property
    def command(self) -> str:
        """For the shell, with paths from the current folder."""
        return shlex.join(["vssl", *(word.removeprefix(f"{Path.cwd()}/") for word in self.words)])

    @property
    def shards(self) -> list[Path]:
        """The folders of shards that it reads."""
        return [Path(folder) for option in _SHARDS for folder in values_of(self.words, option)]

    @property
    def computing(self) -> list[str]:
        """Options that change no number."""
        cpu = kind_of_device(self.device) == "cpu"  # the computing process also decodes the frames
        return ["--device", self.device, *(["--workers", "0"] if cpu else [])]

    def work_and_store(self, store: Store, flow: Callable | None) -> None:
        begin = time.perf_counter()
        made = [*map(str, self._made())]
        about = {"seconds": round(time.perf_counter() - begin, 2), "device": kind_of_device(self.device)}
        (store.root / "results").mkdir(exist_ok=True)
        write_json(store.root / "results" / f"{self.id}.json", {"command": self.command, **about, "made": made})

    def _made(self) -> Iterator[Path | str]:
        if self.trains:
            yield self._trained()
        elif self.words[0] == "eval":
            for words in self._each_file():
                yield self.call([*words, *self.computing])["file"]
        else:
            self.call(self.words)
            yield value_of(self.words, "--out") or Path(self.words[1]) / "report.html"

    def _trained(self) -> Path:
        """Returns the run. An existing run is resumed, which checks its settings and does nothing if it is finished."""
        run, words = Path(value_of(self.words, "--run") or ""), [*self.words]
        if any((run / "checkpoints").glob("[0-9]*")):
            words[words.index("--run")] = "--resume"
            if "--checkpoint" in words:  # the run stores its initial checkpoint
                place = words.index("--checkpoint")
                del words[place : place + 2]
            words = [word for word in words if word != "--scratch"]
        else:
            shutil.rmtree(run, ignore_errors=True)  # stopped before its first checkpoint
        self.call([*words, *self.computing])
        return run

    def _each_file(self) -> Iterator[list[str]]:
        """The words with each file in place of a pattern. Raises TrainerError if there is none."""
        pattern = next((word for word in self.words if "*" in word), None)
        if pattern is None:
            yield [*self.words]
            return
        if not (files := sorted(glob.glob(pattern))):
            raise TrainerError(f"{pattern}: no such file; the training before it kept none")
        for file in files:
            yield [file if word == pattern else word for word in self.words]


def steps(
    entry: dict[str, Any], content: dict[str, Any], scale: Scale, place: Place, device: str, call: Call
) -> tuple[list[Step], list[Step]]:
    """The labellings and the other commands of an entry, see papers.yaml; call: runs a command.

    Raises TrainerError for splits that none of its trainings uses.
    """
    printed = [tuple(shlex.split(command)[1:]) for command in commands(script(entry, content))]
    of_splits = dict.fromkeys(split for words in printed for split in values_of(words, "--split"))
    if other := [split for split in scale.splits if split not in of_splits]:
        expected = (
            f"expected {' or '.join(of_splits)}" if of_splits else "no --split, since the entry has no single splits"
        )
        raise TrainerError(f"--split is {', '.join(other)}; {expected}")
    printed = [*dict.fromkeys(_of_splits(printed, scale.splits))]
    folders = dict.fromkeys(folder for words in printed for option in _SHARDS for folder in values_of(words, option))
    labellings = [_labelling(folder, content, scale, place, device, call) for folder in folders]
    made: dict[str, str] = {}  # the run of each name -> id of the step
    measured: dict[str, None] = {}  # ids of what a report shows
    found: dict[str, Step] = {}
    for seed in scale.seeds:
        suffix = f"-seed{seed}" if seed else ""
        for words in printed:
            needed = _runs(words, made, suffix)
            here = _here(words, needed | _trained_as(words, suffix), place)
            here += _scaled(words, scale, seed)
            before = tuple(dict.fromkeys(made[name.partition("/")[0]] for name in needed.values()))
            before += tuple(measured) if words[0] == "report" else ()
            id = _id(words, (*here, *before))
            measured |= {id: None} if words[0] == "eval" else {}
            if (name := value_of(words, "--run")) is not None:
                made[name + suffix] = id
            row, title = _told(words, suffix)
            found.setdefault(id, Step(id, row, title, device, words, tuple(here), seed, before, call))
    return labellings, [*found.values()]


def _of_splits(printed: Sequence[tuple[str, ...]], splits: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The commands without the finetunings on splits other than these, and without what is measured only on those."""
    dropped = set()
    for words in printed:
        if splits and value_of(words, "--split") not in (None, *splits):
            dropped.add(value_of(words, "--run"))
            continue
        runs = values_of(words, "--checkpoint")
        gone = [run for run in runs if run in dropped]
        if not runs or len(gone) < len(runs):
            out = {place for place, word in enumerate(words) if word in gone}
            yield tuple(word for place, word in enumerate(words) if not {place, place + 1} & out)


def _runs(words: Sequence[str], made: dict[str, str], suffix: str) -> dict[str, str]:
    """The words that name a run, or a folder in one, each with its path below runs/ here."""
    recipes, found = values_of(words, "--recipe"), dict[str, str]()
    for word in words:
        name, slash, rest = word.removeprefix("runs/").partition("/")
        if name + suffix in made and word not in recipes:
            found[word] = f"{name}{suffix}{slash}{rest}"
    return found


def _trained_as(words: Sequence[str], suffix: str) -> dict[str, str]:
    return {name: name + suffix for name in values_of(words, "--run")}


def _here(words: Sequence[str], runs: dict[str, str], place: Place) -> list[str]:
    """The words of a printed command with the paths here."""
    found = []
    for before, word in zip(("", *words), words, strict=False):
        if before in _SHARDS:
            found.append(str(place.labelled(word)))
        elif before == "--pairs":
            _, data, *rest = Path(word).parts
            found.append(str(place.data_set(data).joinpath(*rest)))
        elif word in runs and before != "--recipe":
            found.append(str(place.out.absolute() / "runs" / runs[word]))
        else:
            found.append(word)
    if words[0] == "show":
        found += ["--out", str(place.out.absolute() / "sheets")]
    return found


def _scaled(words: Sequence[str], scale: Scale, seed: int) -> list[str]:
    """More options of a training; the last one of a name counts."""
    if words[0] not in ("train", "finetune"):
        return []
    found: dict[str, float | None] = {"--seed": seed or None, "--clips": scale.clips, "--batch-size": scale.batch_size}
    found["--width"] = None if "--checkpoint" in words else scale.width
    found["--keep-every"] = 1 if scale.clips and "--keep-every" in words else None
    return [word for name, value in found.items() if value is not None for word in (name, str(value))]


def _told(words: Sequence[str], suffix: str) -> tuple[str, str]:
    """The subject of a step, and what it does, as text."""
    names = values_of(words, "--run") or values_of(words, "--checkpoint") or [words[1 if words[0] == "report" else -1]]
    what = {"train": "pretrain", "eval": f"measure {words[1]}"}.get(words[0], words[0])
    data = [Path(folder).name for option in _SHARDS for folder in values_of(words, option)]
    return names[0] + suffix, f"{what} on {', '.join(data)}"


def _id(words: Sequence[str], what: Sequence[str]) -> str:
    """The name of a step, with the hash of everything that determines it."""
    kind = "-".join(words[: 2 if words[0] in ("eval", "show") else 1])
    return f"{kind}-{re.sub(r'[^a-zA-Z0-9.]+', '-', _told(words, '')[0])[:80]}-{json_sha256([*what])[:8]}"


def _labelling(folder: str, content: dict[str, Any], scale: Scale, place: Place, device: str, call: Call) -> Step:
    """The labelling of a folder of shards in the printed commands."""
    each = labelling_of(folder, content)
    if scale.frames:
        each = each | dict(zip(("height", "width", "crop"), scale.frames, strict=True))
    printed, out = tuple(shlex.split(labelgen(each))[1:]), place.labelled(folder)
    words = [word for word in printed if word not in ("--out", each.get("out"))]
    words += ["--root", str(place.data_set(each["dataset"])), "--out", str(out.parent)]
    return Step(_id((*printed[:1], folder), words), folder, "label", device, printed, tuple(words), 0, (), call)


def network(step: Step, all_steps: Sequence[Step]) -> tuple[str, float]:
    """Backbone and width of the network that a step trains or measures."""
    by_id = {other.id: other for other in all_steps}
    while step.before:
        step = by_id[step.before[0]]
    settings = recipe(value_of(step.words, "--recipe") or "")[0]
    given = value_of(step.words, "--backbone"), value_of(step.words, "--width")
    return str(given[0] or settings.backbone), float(given[1] or settings.width or 1)
