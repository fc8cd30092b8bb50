"""`vssl reproduce`: every entry of the papers as steps, and the table of their results."""

import re
from itertools import count, product
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from labelgen.files import write_json
from tests.trainer.test_papers import accepted
from trainer import papers
from trainer.errors import TrainerError
from trainer.papers import reproduce
from trainer.papers.steps import Folder, Place, Scale, network, steps
from trainer.papers.table import collect, text_of, write

CONTENT, ENTRIES = reproduce.content(), reproduce.entries()
RUNNING = {name: entry for name, entry in ENTRIES.items() if "commands" in entry}
SMALL = Scale((0, 3), (), 40, 0.06, 8, (40, 48, 32))
# columns that are no measurements, or none that is made here
WORDS = {"parameters", "classes", "backbone", "pretraining", "network", "jitter", "input", "random", "epochs", "frames"}
WORDS |= {"clips of a video", "kinetics400"}
METRICS = {
    "recognition": {"level": ("clip", "video"), "metric": ("accuracy", "top-5")},
    "retrieval": {"level": ("clip", "video"), "metric": [f"top-{k}" for k in (1, 5, 10, 20, 50)]},
    "scenes": {"metric": ("accuracy",)},
    "similarity": {"metric": ("accuracy", "AUC")},
    "pretext": {"metric": ("accuracy",)},
}
FROZEN = {"network": ("random", "pretrained"), "stage": [f"conv{n}" for n in range(1, 6)], "pooling": ("mean", "max")}


def call(words):
    raise AssertionError(f"nothing is made here: {words}")


def steps_of(name, out, scale=SMALL, call=call, **places):
    return steps(ENTRIES[name], CONTENT, scale, Place(Path(out), **places), "cpu", call)


@pytest.mark.parametrize("name", RUNNING)
def test_the_steps_of_an_entry(name, tmp_path):
    labellings, others = steps_of(name, tmp_path)
    assert not {step.shards[0] for step in others} - {reproduce._shards(step) for step in labellings}
    made, runs = set(), []
    for step in others:
        assert made >= {*step.needs}, "what a step needs comes before it"
        made.add(step.id)
        assert step.words[0] != "report" or any(need.startswith("eval-") for need in step.needs)  # which it shows
        runs += papers.values_of(step.words, "--run")
    assert len(made) == len(others) and len({*runs}) == len(runs)
    printed = [*papers.commands(papers.script(ENTRIES[name], CONTENT))]
    assert len([line for line in printed if " --run " in line]) * 2 == len(runs)
    for step in (*labellings, *others):
        assert accepted(step.command.replace("*", "1")), step.command
        assert str(tmp_path) in step.command


def test_every_labelling_is_of_an_entry(tmp_path):
    made = {step.printed for name in RUNNING for step in steps_of(name, tmp_path, Scale())[0]}
    assert made == {tuple(papers.labelgen(each).split()[1:]) for each in CONTENT["labellings"]}


def test_the_network_of_a_step(tmp_path):
    for name, backbone in (("thesis tab. 4.7", "s3dg"), ("skip-clip tab. 2", "resnet3d18"), ("tce fig. 3", "resnet18")):
        *_, last = others = steps_of(name, tmp_path)[1]
        assert network(last, others) == (backbone, 0.06)


def test_what_runs_serve_several_entries(tmp_path):
    """The same command is the same step, whatever entry asks for it, and another scale is another one."""
    ids = [{step.id for step in steps_of(name, tmp_path)[1]} for name in ("thesis tab. 4.2", "thesis tab. 4.3")]
    assert len(ids[0] & ids[1]) == 10  # p = [1, 4]: a pretraining, three finetunings and their mean, with two seeds
    other = {step.id for step in steps_of("thesis tab. 4.2", tmp_path, Scale(clips=41))[1]}
    assert not {id for id in ids[0] & other if id.startswith("train")}


def test_fewer_splits(tmp_path):
    _, others = steps_of("thesis tab. 4.2", tmp_path, Scale(splits=("1", "3")))
    assert {papers.value_of(step.words, "--split") for step in others} == {None, "1", "3"}
    for step in others:
        runs = [name[-1] for name in papers.values_of(step.printed, "--checkpoint")]
        assert step.words[0] != "eval" or runs == ["1", "3"]
    with pytest.raises(TrainerError, match="--split is 3; expected 1"):
        steps_of("thesis tab. 2.2", tmp_path, Scale(splits=("3",)))


def filled(entry, run, column):
    """Whether the commands of an entry measure a cell."""
    commands = " ".join(entry["commands"])
    if column in WORDS or "top-" in column and "eval retrieval" not in commands:
        return False
    if run is None or run.startswith("none-"):
        return column in entry.get("runs", ()) or run is not None and ("$backbone" in commands or "top-" in column)
    return run.startswith(tuple(entry.get("only", [""])))


def cells(entry):
    return ((run, column) for _, run, _ in papers.rows(entry) for column in entry["columns"])


MEASURED = [n for n, entry in RUNNING.items() if "columns" in entry and any(filled(entry, *c) for c in cells(entry))]


@pytest.mark.parametrize("name", MEASURED)
def test_each_number_of_a_table_is_measured(name, tmp_path):
    """Results that hold every row that a protocol writes, each with a value of its own: the table has those that are meant."""
    entry, folder, number, values = ENTRIES[name], Folder(tmp_path), count(1), {}
    classes = [label for label, *_ in papers.rows(entry)] if "runs" in entry else []
    (tmp_path / "results").mkdir()
    labellings, others = steps_of(name, tmp_path)
    for step in (step for step in others if step.words[0] == "eval"):
        keys = METRICS[step.words[1]] | (FROZEN if step.words[1] in ("retrieval", "scenes") else {})
        rows = [dict(zip(keys, key, strict=True)) for key in product(*keys.values())]
        rows += [{"level": "clip", "metric": "class accuracy", "class": label.upper()} for label in classes]
        for row in rows:
            values[row.setdefault("value", next(number) % 997 / 10)] = row
        result = {"rows": rows, "protocol": {"backbone": network(step, others)[0]}}
        write_json(tmp_path / "results" / f"{step.id}.result", result)
        marker = {"command": step.command, "seconds": 0.0, "device": "cpu"}
        made = [str(tmp_path / "results" / f"{step.id}.result")]
        write_json(tmp_path / "results" / f"{step.id}.json", marker | {"made": made})
    found = collect(name, entry, CONTENT, labellings, others, folder, SMALL, {})
    for (label, run, numbers), row in zip(papers.rows(entry), found["rows"], strict=True):
        for (column, cell), published in zip(row["cells"].items(), numbers, strict=True):
            assert cell["published"] == published
            assert ("here" in cell) == filled(entry, run, column), (label, column)
            if "here" in cell and published is not None:
                assert cell["difference"] == pytest.approx(cell["here"] - published)
                assert cell["by seed"].keys() == {"0", "3"} and "deviation" in cell
    assert found["measured"] and not found["others"]
    head, *_ = [line for line in text_of(found).splitlines() if line.startswith("|")]
    assert head.count("| here | difference |") == len(found["measured"])
    assert "every training sees about 40 clips" in text_of(found)
    stem = write(found, tmp_path)
    assert "<table>" in Path(f"{stem}.html").read_text() and Path(f"{stem}.json").exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("thesis tab. 4.1", "thesis tab. 4.1"),
        ("Thesis Table 4.1", "thesis tab. 4.1"),
        ("thesis figure 3.5", "thesis tab. 3.2, fig. 3.5"),
        ("thesis tab 3.2", "thesis tab. 3.2, fig. 3.5"),
        ("vcop tab. 1", "vcop tab. 1"),
        ("skip-clip figures", "skip-clip figures"),
        ("ascnet alg 1", "ascnet alg. 1"),
    ],
)
def test_an_entry_by_its_name(name, found):
    assert reproduce.find(name) == (found, ENTRIES[found])


def vssl(*arguments):
    result = CliRunner().invoke(main, ["reproduce", *map(str, arguments)])
    return result.exit_code, result.output


def test_what_is_said_of_entries_that_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VSSL_DATA", raising=False)
    code, output = vssl("thesis tab. 4.19")
    assert code == 1 and "no table or figure of that name; the nearest are: thesis tab. 4.9" in output
    code, output = vssl("nonsense")
    assert code == 1 and "`vssl reproduce` lists them" in output
    code, output = vssl("vcop fig. 2")
    assert code == 1 and "vcop fig. 1 to 3: nothing runs it: drawings, nothing is measured" in output
    code, output = vssl("thesis tab. 2.8", "--data", tmp_path / "videos")
    for name, page in (("ucf101", "crcv.ucf.edu"), ("yupenn", "vision.eecs.yorku.ca")):
        assert f"{name}: neither its shards in {tmp_path}/reproduced/out/{name} nor its videos in" in output
        assert f"{tmp_path}/videos/{name}" in output and page in output
    assert code == 1 and not (tmp_path / "reproduced").exists()
    assert vssl("vcop tab. 1", "--frames", "40,48")[0] == vssl("vcop tab. 1", "--seeds", "0,0")[0] == 2
    code, output = vssl()
    assert code == 0 and output.count("nothing runs it") == len(ENTRIES) - len(RUNNING)
    assert ["thesis", "tab.", "4.1", "Accuracy"] in [line.split()[:4] for line in output.splitlines()]
    code, output = vssl("thesis tab. 4.1", "--plan")
    assert code == 0 and "4.3 core hours, 17 GB according to docs/papers/shards.md: there are no videos in" in output
    known = re.findall(r"^  ([\d.]+) core hours, (\d+) GB according to", output, re.MULTILINE)
    total = re.search(r"processor: about ([\d.]+) core hours\n.*disk: +about ([\d.]+) GB", output, re.DOTALL)
    assert len(known) > 1 and total and "memory" not in output  # which is not known
    for number, parts in zip(total.groups(), zip(*known, strict=True), strict=True):
        assert float(number) == pytest.approx(sum(map(float, parts)), rel=0.05)
    assert "not counted: what depends on out/ucf101" in output and not (tmp_path / "reproduced").exists()
