"""Every command of docs/papers/ runs as it is printed: official data sets of small videos, two steps of small networks."""

import glob
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cli.main import main
from cli.reproduce import call
from docs.papers import pages
from labelgen.reading import load_json
from tests.trainer.official import DATASETS
from tests.trainer.studies import execute_here
from trainer import checkpoint, papers
from trainer.papers.reproduce import entries
from trainer.study import runner

CONTENT = yaml.safe_load(papers.PAPERS.read_text())
LABELLINGS = [papers.labelgen(each) for each in CONTENT["labellings"]]
ENTRIES = [entry for items in CONTENT["items"].values() for entry in items.values()]
PRINTED = [command for entry in ENTRIES for command in papers.commands(papers.script(entry, CONTENT))]
COMMANDS = list(dict.fromkeys(PRINTED))
# What a test adds to a command; the last one of an option counts.
ADDED = {
    "labelgen": "--height 40 --width 48 --crop 32 --workers 1",
    "train": "--epochs 2 --repeats 1 --batch-size 64 --width 0.06 --workers 0 --device cpu",
    "finetune": "--epochs 2 --repeats 1 --batch-size 64 --workers 0 --device cpu",
    "eval": "--workers 0 --device cpu",
}


def values_of(command, option):
    words = shlex.split(command)
    return [value for name, value in zip(words, words[1:], strict=False) if name == option]


def kind(command):
    """The command and the names of its options."""
    words = shlex.split(command)
    names = [word for word in words if word.startswith("--")]
    return " ".join([*words[1 : 3 if words[1] in ("eval", "show") else 2], *dict.fromkeys(names)])


MAKES = {run: command for command in COMMANDS for run in values_of(command, "--run")}
SHARDS = {
    f"{(values_of(command, '--out') or ['out'])[0]}/{values_of(command, '--dataset')[0]}": command
    for command in LABELLINGS
}


def needed(command):
    """The commands that make the shards and the runs that a command names."""
    words = [word for word in shlex.split(command)[1:] if word not in values_of(command, "--recipe")]
    runs = [run for word in words for run in MAKES if run in (word, *word.split("/")) and MAKES[run] != command]
    return [SHARDS[word] for word in words if word in SHARDS] + [MAKES[run] for run in runs]


def with_needed(command):
    return {command}.union(*map(with_needed, needed(command)))


def one_of_each_kind():
    """By kind, the command for which the fewest others have to run that do not run already."""
    kinds, chosen, running = {}, {}, set()
    for command in COMMANDS:
        kinds.setdefault(kind(command), []).append(command)
    for name in sorted(kinds, reverse=True):  # trainings before evaluations
        chosen[name] = min(kinds[name], key=lambda command: len(with_needed(command) - running))
        running |= with_needed(chosen[name])
    return chosen


KINDS = one_of_each_kind()


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> tuple[Path, set[str]]:
    """A folder whose data/ holds the data sets, and the commands that have run in it."""
    folder = tmp_path_factory.mktemp("papers")
    for name, write in DATASETS.items():
        write(folder / "data" / name)
    return folder, set()


@pytest.fixture
def run(place, monkeypatch):
    """Runs a command in that folder, once, and first what makes the shards and the runs that it names."""
    folder, done = place
    monkeypatch.chdir(folder)
    monkeypatch.delenv("VSSL_DATA", raising=False)

    def run_once(command):
        if command in done:
            return
        for each in needed(command):
            run_once(each)
        words = shlex.split(command)[1:]
        patterns = [word for word in words if "*" in word]
        if patterns:
            found = [command.replace(pattern, file) for pattern in patterns for file in glob.glob(pattern)]
            assert found, f"{command}: no such file"
            return [run_once(each) for each in found]
        added = shlex.split(ADDED.get(words[0], ""))
        added += ["--keep-every", "1"] if "--keep-every" in words else []
        added += ["--width", "0.06"] if "--scratch" in words else []
        result = CliRunner().invoke(main, [*words, *added])
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
        for made in values_of(command, "--run"):
            assert checkpoint.load(made).meta["step"] == 2
            assert "the recipe expects shards with" not in other_than_size(result.output)
        done.add(command)

    return run_once


def other_than_size(output):
    """What is said, but for the frame size, which is smaller here."""
    sizes = [f"warning: the recipe expects shards with {name} " for name in ("height", "width", "crop")]
    return "\n".join(line for line in output.splitlines() if not line.startswith(tuple(sizes)))


@pytest.mark.parametrize("name", KINDS)
def test_a_command_of_each_kind(name, run):
    run(KINDS[name])


SMALL = "--clips 16 --width 0.06 --batch-size 64 --frames 40,48,32 --device cpu"


@pytest.fixture
def reproduce(place, monkeypatch):
    """Runs `vssl reproduce` in that folder, all steps in this process, and tells which commands were made: (exit status, output,
    their first words). stop: the first word of the command at which it is interrupted."""
    monkeypatch.chdir(place[0])
    monkeypatch.delenv("VSSL_DATA", raising=False)
    monkeypatch.setattr(runner, "execute", execute_here)

    def reproduced(name, *options, stop=None):
        made = []

        def counting(words):
            if words[0] == stop:
                raise KeyboardInterrupt
            made.append(words[0])
            return call(words)

        monkeypatch.setattr("cli.reproduce.call", counting)
        result = CliRunner().invoke(main, ["reproduce", name, *SMALL.split(), *options])
        return result.exit_code, result.output, made

    return reproduced


def test_a_table_is_reproduced_through_interruptions(reproduce, tmp_path):
    where = "thesis tab. 2.8", "--out", str(tmp_path)
    code, output, made = reproduce(*where, stop="train")
    assert code == 130 and "vssl reproduce: interrupted" in output and made == ["labelgen"] * 2
    code, output, made = reproduce(*where, "--plan")
    assert code == 0 and made == ["train"] and output.count("\n  done\n") == 2 and not [*tmp_path.glob("runs/*")]
    assert (
        "1 step of" in output and "core hours" in output and "at most about" in output and "not counted" not in output
    )
    code, output, made = reproduce(*where, stop="eval")
    assert code == 130 and made == ["train"]
    code, output, made = reproduce(*where)
    assert code == 0 and made == ["eval"] and "every training sees about 16 clips" in output
    (row,) = [line for line in output.splitlines() if line.startswith("| ours |")]
    assert row.startswith("| ours | statistics-c3d_light-ucf101 | 90.2 | ") and row.count("|") == 6
    page = (tmp_path / "tables" / "thesis-tab.-2.8.html").read_text()
    assert "90.2" in page and "vssl eval scenes" in page and str(tmp_path / "runs") in page
    table = (tmp_path / "tables" / "thesis-tab.-2.8.json").read_text()
    assert reproduce(*where)[2] == [] and (tmp_path / "tables" / "thesis-tab.-2.8.json").read_text() == table
    code, output, made = reproduce(*where, "--plan")
    assert made == [] and output.count("\n  done\n") == 4

    (marker,) = tmp_path.glob("results/train-*.json")  # as if it had been killed after the last checkpoint
    marker.unlink()
    (weights,) = tmp_path.glob("runs/*/checkpoints/*/weights.safetensors")
    before = weights.stat().st_mtime_ns
    code, output, made = reproduce(*where)
    assert code == 0 and made == ["train"] and weights.stat().st_mtime_ns == before, output
    code, output, made = reproduce(*where, "--width", "0.1")
    assert code == 3 and "cannot resume" in output and "width is 0.1, but the run has 0.06" in output
    assert "the training that it needs failed" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in entries().items() if "commands" in entry])
def test_every_entry_is_reproduced(name, reproduce, place):
    """In one folder, in which each run is made once."""
    code, output, _ = reproduce(name)
    assert code == 0, output
    out = place[0] / "reproduced"
    for log in out.glob("runs/*/log.csv"):
        assert checkpoint.load(log.parent).meta["step"]
    (table,) = (path for path in out.glob("tables/*.json") if load_json(path)["entry"] == name)
    content = load_json(table)
    assert all(cell["here"] >= 0 for row in content["rows"] for cell in row["cells"].values() if "here" in cell)
    assert content["measured"] or content["others"] or "eval" not in " ".join(entries()[name]["commands"])


def test_the_pages_can_be_copied_into_bash():
    """The code of the pages, in a shell whose vssl prints what it is given."""
    text = "\n".join(line for lines in pages().values() for line in lines)
    code = "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S))
    echo = 'vssl() { printf "vssl"; printf " %q" "$@"; echo; }'
    shell = subprocess.run(["bash", "-euc", f"{echo}\n{code}"], capture_output=True, text=True, check=True)
    told = [shlex.split(line) for line in shell.stdout.splitlines()]
    assert told == [shlex.split(command) for command in [*PRINTED, *LABELLINGS]]


def test_one_name_one_run():
    """A run that several tables have is made by one command, and each that is named is made, before it is used."""
    made = {}
    for command in PRINTED:
        for name in values_of(command, "--run"):
            assert made.setdefault(name, command) == command
        for name in values_of(command, "--checkpoint"):
            assert made.keys() & {name, *name.split("/")}, command
    assert len(made) > 200


def test_one_labelling_serves_the_recipes_of_ucf101():
    serving = [each for each in CONTENT["labellings"] if each["dataset"] == "ucf101"]
    (first,) = [each for each in serving if "out" not in each]
    runs = {run for entry in ENTRIES for _, run, _ in papers.rows(entry) if run and run.split("-")[2:3] == ["ucf101"]}
    served = [run for run in runs if papers.labelling(papers.shards_of(run), "ucf101", CONTENT) == "out/ucf101"]
    assert len(served) == 27 and first["clips"] is None and first["rows"] == 400


def test_a_recipe_without_a_labelling_is_told():
    with pytest.raises(ValueError, match="no labelling of hmdb51 in papers.yaml has {'crop': 8}"):
        papers.labelling({"crop": 8}, "hmdb51", CONTENT)
