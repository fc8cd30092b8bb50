"""A study end to end, its file, its intervals and what it never makes twice."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from cli.main import main
from cli.study import label
from labelgen.errors import ClusterError, VsslError
from tests.labelgen.synthetic import write_video
from tests.trainer.pages import Page
from tests.trainer.planted import write_colored
from tests.trainer.synthetic import write_shard
from trainer import checkpoint
from trainer.backbones import BACKBONES
from trainer.backbones.layers import Stages
from trainer.errors import TrainerError
from trainer.histograms import histogram
from trainer.settings import Settings
from trainer.study import bootstrap, budgets, devices, file, jobs, planning, progress, results, sources
from trainer.study.study import Machine, show_plan
from trainer.study.study import study as make_study
from trainer.training import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "about": "Tiny <b> & quick",
    "seeds": [0, 1],
    "clips": 24,
    "settings": {"width": 0.05, "batch_size": 8, "jitter": "none"},
    "data": {"colors": {"shards": "colors"}},
    "rows": {"turns <i>": {"method": "rotation"}},
    "measures": [{"protocol": "retrieval", "pooling": "mean"}],
    "baselines": [],
}


def write_study(folder, **changes) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """A folder with one shard of 16 videos in 4 classes, 4 of them tested."""
    folder = tmp_path_factory.mktemp("study")
    write_colored(folder / "colors" / "00000.h5", 16, 24, split=[[1]] * 12 + [[3]] * 4)
    return folder


def command(path, out):
    """The command line as a process of its own."""
    line = [sys.executable, "-m", "cli.main", "study", str(path), "--out", str(out), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    return subprocess.Popen(line, env=environment, cwd=ROOT, **options)


def execute_here(job, root, threads, functions):
    """jobs.execute in this process, which is quicker."""
    try:
        jobs.work(job, root, functions)
    except VsslError as error:
        return job, str(error)
    return job, ""


# ---- intervals, by hand


def test_one_seed_and_equal_scores_leave_no_spread_but_wilsons():
    found = bootstrap.interval(np.ones((1, 5)), np.arange(5))
    assert found["value"] == 100
    # Wilson's lower end of 5 of 5: n / (n + z^2)
    assert found["low"] == pytest.approx(100 * 5 / (5 + 1.96**2)) and found["high"] == 100


def test_the_mean_of_two_videos_has_three_outcomes():
    # right, wrong: a resample draws both (1/2), twice the right one (1/4) or twice the wrong one (1/4)
    found = bootstrap.interval(np.array([[1.0, 0.0]]), np.array(["a", "b"]))
    assert found == {"value": 50, "low": 0, "high": 100}


def test_seeds_are_drawn_too():
    # every video alike, so that all spread is of the seeds: 0, 50 or 100
    found = bootstrap.interval(np.array([[1.0] * 6, [0.0] * 6]), np.arange(6))
    assert found == {"value": 50, "low": 0, "high": 100}


def test_videos_are_the_same_for_all_seeds_of_a_resample():
    # ten equal seeds say no more than one of them: groups drawn for each seed anew would narrow the interval
    one = np.random.default_rng(0).integers(0, 2, (1, 40)).astype(float)
    narrow, wide = (bootstrap.interval(np.repeat(one, n, 0), np.arange(40)) for n in (10, 1))
    assert narrow["high"] - narrow["low"] == pytest.approx(wide["high"] - wide["low"], abs=3)
    assert wide["high"] - wide["low"] == pytest.approx(
        200 * 1.96 * (one.mean() * (1 - one.mean()) / 40) ** 0.5 / 1, abs=4
    )


def test_whole_groups_are_drawn():
    # two groups, all right and all wrong: as two videos, however many there are
    scores = np.array([[1.0] * 30 + [0.0] * 30])
    assert bootstrap.interval(scores, np.repeat(["a", "b"], 30))["low"] == 0
    assert bootstrap.interval(scores, np.arange(60))["low"] > 35


def test_groups_weigh_by_their_videos():
    # a: 3 videos right; b: 1 wrong; the resamples are 3/4, 3/3 and 0/1
    means = bootstrap._means(np.array([[1.0, 1.0, 1.0, 0.0]]), np.array(["a", "a", "a", "b"]))
    assert set(means.tolist()) == {75.0, 100.0, 0.0}


def test_a_paired_difference_knows_that_videos_are_easy_or_hard():
    hard = np.array([[1.0] * 10 + [0.0] * 10] * 2)
    better = hard.copy()
    better[:, 10:12] = 1
    found = bootstrap.difference(better, hard, np.arange(20))
    assert found["value"] == pytest.approx(10) and found["low"] >= 0 and found["high"] <= 25
    unpaired = bootstrap.interval(better, np.arange(20))
    assert found["high"] - found["low"] < unpaired["high"] - unpaired["low"]
    assert bootstrap.difference(hard, hard, np.arange(20)) == {"value": 0, "low": 0, "high": 0}


# ---- the file


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rowz": {}}, "unknown 'rowz'"),
        ({"rows": {}}, "it names no rows"),
        ({"rows": {"a": {"method": "magic"}}}, "unknown method 'magic'"),
        ({"rows": {"a": {"method": "pace", "epochs": 3}}}, "unknown 'epochs'"),
        ({"rows": {"a": {"method": "recognition"}}}, "recognition learns labels"),
        ({"rows": {"a": {"method": "pace", "lr": [0.1, 0.2]}}}, "several values of lr need a holdout"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]"),
        ({"clips": 0}, "clips is 0"),
        ({"data": {"a": {}}}, "expected either shards"),
        ({"data": {"a": {"shards": "x", "test": 0.2, "folds": 3}}}, "exclude each other"),
        ({"data": {"a": {"shards": "x", "test": 1.5}}}, "expected a share between 0 and 1"),
        ({"measures": [{"protocol": "magic"}]}, "protocol is 'magic'"),
        ({"measures": [{"protocol": "knn", "k": 0}]}, "k is 0, expected a whole number"),
        ({"measures": [{"protocol": "linear", "tested_on": ["other"]}]}, "there is no data set 'other'"),
        ({"measures": [{"protocol": "linear", "labels": [0]}]}, "labels is 0"),
        ({"measures": [{"protocol": "finetune", "clips": 0}]}, "clips is 0"),
        ({"measures": [{"protocol": "linear", "parts": 11}]}, "parts is 11, expected 10 at most"),
        ({"measures": [{"protocol": "linear", "stage": [["conv5"]]}]}, "expected the name of a stage, such as conv5"),
        ({"measures": [{"protocol": "pretext", "draws": 0}]}, "draws is 0"),
        ({"measures": [{"protocol": "knn", "rows": ["other"]}]}, "there is no row other"),
        ({"orderings": [{"better": "turns <i>", "worse": "other"}]}, "worse is 'other', expected one of the rows"),
        ({"orderings": [{"better": "turns <i>", "worse": "turns <i>", "published": [1]}]}, "published is [1]"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_file_named(tmp_path, changes, words):
    path = write_study(tmp_path, **changes)
    with pytest.raises(TrainerError) as error:
        file.read(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_a_file_extends_another(tmp_path):
    write_study(tmp_path)
    other = tmp_path / "large.yaml"
    other.write_text("extends: study.yaml\nclips: 100\nsettings: {width: 0.5}\n")
    study = file.read(other)
    row = study.rows["turns <i>"]
    assert row.clips == 100 and row.network == ("r3d10", 0.5) and row.candidates[0].batch_size == 8
    other.write_text("extends: large.yaml\n")
    with pytest.raises(TrainerError, match="large.yaml: more than 10 files .* expected fewer; does one extend itself"):
        file.read(other)
    (tmp_path / "base.yaml").write_text("clips: many\n")
    other.write_text("extends: base.yaml\n")
    with pytest.raises(TrainerError, match="base.yaml: .*clips.*many"):
        file.read(other)


def test_references_are_added_for_every_network(tmp_path):
    rows = {"a": {"method": "pace"}, "b": {"method": "tce", "backbone": "resnet18"}}
    measure = [{"protocol": "finetune"}, {"protocol": "knn"}]
    study = file.read(write_study(tmp_path, rows=rows, measures=measure, baselines=["supervised", "flow"]))
    kinds = [row.kind for row in study.rows.values()]
    assert kinds == ["method"] * 2 + [file.RANDOM, file.SUPERVISED] * 2 + [file.FLOW]
    assert study.measures[0].clips == study.rows["a"].clips // 4 > 0


def test_a_sweep_has_a_candidate_for_every_combination(tmp_path):
    row = {"method": "pace", "holdout": 0.2, "lr": [0.1, 0.2], "weight_decay": [0, 1.0, 2.0]}
    study = file.read(write_study(tmp_path, rows={"a": row}))
    assert len(study.rows["a"].candidates) == 6
    assert study.rows["a"].tried[5] == {"lr": 0.2, "weight_decay": 2.0}


def two_blocks(width):
    """A backbone whose stages have names of their own."""
    return Stages(4, stem=nn.Conv3d(3, 4, 3, 2, 1), block=nn.Sequential(nn.Conv3d(4, 4, 3, 2, 1), nn.ReLU()))


def test_the_last_stage_is_that_of_each_network(colors, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "blocks", f"{__name__}:two_blocks")
    monkeypatch.setattr(jobs, "execute", execute_here)
    other = {"blocks": {"method": "rotation", "backbone": "blocks"}}
    knn = [{"protocol": "knn", "k": 1, "pooling": "mean"} | own for own in ({}, {"stage": ["stem", "block"]})]
    alone = file.read(write_study(colors, rows=other, measures=knn)).measures
    assert [(own.stage, own.headline) for own in alone] == [("block", True), ("stem", False), ("block", True)]
    path = write_study(colors, seeds=[0], rows=SMALL["rows"] | other, measures=[*knn, {"protocol": "smoothness"}])
    content = make_study(path, tmp_path / "out", Machine(device="cpu"), None, None, say=print)
    titles = ["1-NN, last stage, mean", "1-NN, stem, mean", "1-NN, block, mean", "smoothness, last stage, mean"]
    assert [(own["measure"], own["headline"]) for own in content["columns"]] == [
        (title, title != titles[1]) for title in titles
    ]
    found = {(entry["row"], entry["column"]): entry["value"] for entry in content["numbers"]}
    assert found["blocks", 0] == found["blocks", 2] and ("turns <i>", 0) in found and ("turns <i>", 2) not in found
    assert any("no stage 'block'" in own["reason"] and "conv1" in own["reason"] for own in content["absent"])


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_study_files_of_the_repository_are_whole(path):
    study = file.read(path)
    assert len(study.seeds) >= 3 and study.rows


# ---- data sets


def test_what_needs_no_labels_is_measured_once(colors):
    measures = [{"protocol": "smoothness"}, {"protocol": "knn"}, {"protocol": "knn", "k": 3, "targets": ["b"]}]
    targets = {name: {"csv": "labels.csv", "video": "name", "column": name} for name in "ab"}
    path = write_study(
        colors, measures=measures, data={"colors": {"shards": "colors", "test": 0.5, "targets": targets}}
    )
    found = planning.columns(file.read(path), {"colors": SimpleNamespace(overlays=dict.fromkeys("ab"))})
    assert [c.measure.protocol for c in found] == ["smoothness", "knn", "knn", "knn"]
    assert [c.target for c in found] == ["a", "a", "b", "b"]
    assert [results._column(c)["target"] for c in found] == ["", "a", "b", "b"]


# ---- what is measured


def test_flow_histogram_finds_direction_place_and_time():
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    fields = iter([(2.0, 0.0)] * 4 + [(0.0, 0.5)] * 4)

    def flow(first, second):
        field = np.zeros((32, 32, 2), np.float32)
        field[:8, 24:] = next(fields)  # the cell of the upper right corner
        field[24:, :8] = (-1, 0)  # and that of the lower left one, all the time
        return field

    squares = histogram(frames, "flow", flow).reshape(15, 4, 4, 8) ** 2  # whole, halves, quarters, eighths
    assert squares.sum((1, 2, 3)) == pytest.approx([1] * 15)
    corner, other = squares[:, 0, 3], squares[:, 3, 0]
    for part in (1, 3, 4, 7):  # of the first half: 2 pixels to the right, against 1 to the left
        assert corner[part] == pytest.approx([2 / 3, 0, 0, 0, 0, 0, 0, 0]) and other[part, 4] == pytest.approx(1 / 3)
    for part in (2, 5, 14):  # v is down: three quarters of a turn
        assert corner[part] == pytest.approx([0, 0, 0, 0, 0, 0, 1 / 3, 0]) and other[part, 4] == pytest.approx(2 / 3)
    assert corner[0][[0, 6]] == pytest.approx([2 / 4.5, 0.5 / 4.5]) and other[0, 4] == pytest.approx(2 / 4.5)


def test_code_is_known_by_what_it_does(tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    first.write_text('"""Words."""\ndef f():\n    """More."""\n    return 1\n')
    second.write_text('"""Other words."""\n\ndef f():\n    """Others."""\n    return 1  # one\n')
    third.write_text('"""Words."""\ndef f():\n    """More."""\n    return 2\n')
    assert jobs._bare(first) == jobs._bare(second) != jobs._bare(third)


def test_all_code_that_training_and_measuring_run_is_known():
    script = (
        "import sys, pkgutil, trainer.training\n"
        "from trainer.study import measures; from trainer.methods import METHODS; from trainer.backbones import BACKBONES\n"
        "for name in (*METHODS.values(), *BACKBONES.values()): pkgutil.resolve_name(name)\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('trainer.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    used = {Path(name) for name in done.stdout.split()}
    known = set()
    for name in jobs._MEASURING:
        path = jobs._PACKAGE / name
        known |= set(path.rglob("*.py")) | {path}
    assert {path.name for path in used - known} <= {"errors.py", "extends.py", "file.py", "__init__.py"}


def test_identities_follow_what_determines_a_run(colors, tmp_path):
    def ids(**changes):
        study = file.read(write_study(colors, **changes))
        found = {name: sources.prepare(own, own.shards, tmp_path, study.seeds, ()) for name, own in study.data.items()}
        planned = planning.plan(study, found, jobs.Store(tmp_path), "cpu", {})
        return {id for id, job in planned.jobs.items() if job.kind == "train"}, set(planned.numbers.values())

    runs, numbers = ids()
    assert len(runs) == 2 and len(numbers) == 4  # two seeds, of the method and of random weights
    assert ids(about="other words") == (runs, numbers)
    assert ids(settings=SMALL["settings"] | {"workers": 3, "log_every": 5}) == (runs, numbers)
    assert ids(seeds=[1, 0, 2])[0] > runs
    assert not ids(settings=SMALL["settings"] | {"lr": 0.5})[0] & runs
    other = ids(measures=[{"protocol": "retrieval", "pooling": "max"}])
    assert other[0] == runs and not other[1] & numbers


# ---- end to end


def test_a_killed_study_goes_on_to_the_same_numbers_and_makes_nothing_twice(colors, tmp_path, monkeypatch):
    rows = {"turns <i>": {"method": "rotation"}, "breaks": {"method": "rotation", "lr": 1e18}}
    path = write_study(colors, rows=rows, seeds=[0], clips=96)
    killed = command(path, tmp_path / "a")
    end = time.monotonic() + 300
    while not [*(tmp_path / "a" / "runs").glob("*/run/checkpoints/0*")]:
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    monkeypatch.setattr(jobs, "execute", execute_here)
    line = ["study", str(path), "--device", "cpu", "--out"]
    again = CliRunner().invoke(main, [*line, str(tmp_path / "a")])
    assert again.exit_code == 3 and "breaks" in again.output and "not finite" in again.output, again.output
    CliRunner().invoke(main, [*line, str(tmp_path / "b")])
    text = (tmp_path / "a" / "study.json").read_bytes()
    assert text == (tmp_path / "b" / "study.json").read_bytes().replace(b"/b/", b"/a/")
    content = json.loads(text)
    assert {entry["row"] for entry in content["numbers"]} == {"turns <i>", "random weights"}
    assert [own["row"] for own in content["failures"]] == ["breaks", "breaks"]
    page = Page((tmp_path / "a" / "index.html").read_text())
    assert "turns <i>" in page.text and not page.all("i", "script") and "Tiny <b> & quick" in page.text
    assert r"| turns \<i> |" in (tmp_path / "a" / "table.md").read_text()

    made = {own: own.stat().st_mtime_ns for own in (tmp_path / "a").glob("r*s/**/*.json")}
    path = write_study(colors, seeds=[0], clips=96)
    content = make_study(path, tmp_path / "a", Machine(device="cpu"), None, None, say=print, latex=True)
    assert not content["failures"]
    assert made == {own: own.stat().st_mtime_ns for own in (tmp_path / "a").glob("r*s/**/*.json")}
    assert r"\toprule" in (tmp_path / "a" / "table.tex").read_text()
    assert show_plan(path, tmp_path / "a", 1, "cpu")[-1].startswith("3 of 3 runs are there")


def test_every_protocol_and_reference_gives_a_number(colors, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "execute", execute_here)
    protocols = [{"protocol": "linear", "labels": [1, 50]}, {"protocol": "knn", "k": 2}, {"protocol": "smoothness"}]
    protocols += [{"protocol": "finetune", "labels": [1], "clips": 4, "settings": {"batch_size": 4}}]
    path = write_study(colors, seeds=[0], measures=protocols, baselines=["supervised", "flow"])

    def still(first, second):
        return np.zeros((*first.shape, 2), np.float32)

    content = make_study(path, tmp_path / "out", Machine(device="cpu"), None, still, say=print)
    measured = [measure["measure"] for measure in content["columns"]]
    found = {(entry["row"], measured[entry["column"]]): entry for entry in content["numbers"]}
    frozen = ["linear probe, conv5, max, 1 per class", "2-NN, conv5, max"]
    rows = {"turns <i>": 4, "random weights": 4, "supervised": 1, "flow histogram": 2}
    assert {row: sum(row == own for own, _ in found) for row in rows} == rows and not content["failures"]
    assert all((row, measure) in found for row in ("turns <i>", "flow histogram") for measure in frozen)
    assert all(entry["videos"] == 4 and 0 <= entry["low"] <= entry["high"] <= 100 for entry in found.values())
    assert found["random weights", frozen[0]]["value"] == 100  # a colour is seen by any weights
    assert ["fewer than 50" in absent["reason"] for absent in content["absent"]] == [True]
    assert not any("too narrow" in text for text in content["assumed"])


def test_tests_of_one_measure_alone_stand_in_one_table():
    def column(tested, measure, before=None):
        return {"tested_on": tested, "target": "", "pretrained_on": before or tested, "measure": measure}

    columns = [column("a", "linear"), column("a", "knn"), column("b", "knn"), column("a", "knn", "b"), column("c", "x")]
    content = {"columns": columns, "rows": ["one", "two"]}
    content["numbers"] = [{"row": "one", "column": number} for number in range(5)]
    content["numbers"].append({"row": "two", "column": 3})
    found = {title: (heads, [*rows]) for title, heads, rows in results.tables(content)}
    assert found == {
        "a": (["linear", "knn"], ["one"]),
        "c": (["x"], ["one"]),
        "knn": (["b", "a, pretrained on b"], ["one", "two"]),
    }


def test_pretext_tasks_are_compared_with_guessing_and_orderings_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "execute", execute_here)
    write_colored(tmp_path / "colors" / "00000.h5", 16, 40, split=[[1]] * 12 + [[3]] * 4)
    rows = {"turns": {"method": "rotation"}, "asc": {"method": "ascnet"}, "two": {"method": "rotation+ascnet"}}
    protocols = [{"protocol": "pretext", "draws": 2}, {"protocol": "knn", "k": 1, "rows": ["turns", "asc"]}]
    claim = {"better": "turns", "worse": "asc", "source": "a paper", "published": [2, 1.5]}
    path = write_study(tmp_path, seeds=[0], rows=rows, measures=protocols, orderings=[claim])
    content = make_study(path, tmp_path / "out", Machine(device="cpu"), None, None, say=print)
    assert not content["failures"]
    found = {(entry["row"], entry["column"]): entry for entry in content["numbers"]}
    asked = {("turns", 0), ("two", 0), ("turns", 1), ("asc", 1)}
    assert set(found) == asked | {("random weights", 1)}  # which is always there
    pretext = found["turns", 0]
    assert pretext["guessing"] == 25 and pretext["videos"] == 4
    assert pretext["above"]["value"] == pytest.approx(pretext["value"] - 25)
    assert [(own["row"], "no accuracy" in own["reason"]) for own in content["absent"]] == [("asc", True)]
    (ordering,) = content["orderings"]
    (here,) = ordering["here"]
    assert here["column"] == 1
    assert here["value"] == pytest.approx(found["turns", 1]["value"] - found["asc", 1]["value"])
    text = (tmp_path / "out" / "table.md").read_text()
    assert "(guessing 25.0)" in text and "| turns > asc | a paper (2, 1.5) |" in text and here["verdict"] in text
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert "turns > asc" in page.text and "guessing 25.0" in page.text
    drawn = (tmp_path / "out" / "index.html").read_text()
    assert ", chance: 25.0 %" in drawn and "held-out training videos" not in drawn  # of marks, those that are there


def test_a_row_may_label_its_pretraining_in_another_way(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "execute", execute_here)
    for name in ("a/1", "a/2", "b/1", "b/2"):
        write_video(tmp_path / "videos" / f"{name}.avi", 40)
    options = {"height": 40, "width": 48, "crop": 32, "rows": 2, "paces": [1, 2], "flow": "dis"}
    data_set = {"dataset": "folder", "root": "videos", "label": options, "test": 0.5}
    rows = {"two": {"method": "pace"}, "slow": {"method": "pace", "label": {"paces": ["1/2", 1]}}}
    measures = [{"protocol": "knn", "k": 1}, {"protocol": "pretext"}]
    path = write_study(tmp_path, seeds=[0], clips=4, data={"own": data_set}, rows=rows, measures=measures)
    content = make_study(path, tmp_path / "out", Machine(device="cpu"), label, None, say=print)
    assert not content["failures"] and not content["absent"]
    assert [*content["data"]] == ["own", "own, paces ['1/2', 1]"]
    first, second = ([*content["rows"][row]["trained"]] for row in rows)
    assert first == ["own, split 1, seed 0"] and second == ["own, paces ['1/2', 1], split 1, seed 0"]
    found = {(entry["row"], entry["column"]) for entry in content["numbers"]}
    assert found == {("two", 0), ("slow", 0), ("two", 1), ("slow", 1), (file.RANDOM, 0)}
    assert any("of which there are 4: an interval over so few is too narrow" in text for text in content["assumed"])


class Started:
    """In place of processes.finished: what each process was given, of which so many run at once."""

    def __init__(self, at_once):
        self.seen, self.barrier = [], threading.Barrier(at_once)

    def __call__(self, child, job, *_, variables, **streams):
        pickle.dumps(job)  # as a process gets it
        self.seen.append((job.id, job.how["device"], variables.get("CUDA_VISIBLE_DEVICES")))
        self.barrier.wait(60)
        return 0, b""


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)


def some_jobs(count, device):
    return [
        jobs.Job("train", f"{i}", (), {"device": device}, (), "row", f"number {i}", ("c", 1.0)) for i in range(count)
    ]


@pytest.mark.parametrize(
    "device, visible, given",
    [
        ("auto", None, ["0", "1", "2", "3"]),
        ("cuda", None, ["0", "1", "2", "3"]),
        ("cuda", "7,5,GPU-ab,MIG-GPU-c/1/0", ["7", "5", "GPU-ab", "MIG-GPU-c/1/0"]),
        ("cuda:3,cuda:1", None, ["3", "1", "3", "1"]),
        ("cuda:1, cuda:0", "7,5,6,8", ["5", "7", "5", "7"]),
        ("cuda:2", None, ["2"] * 4),
        ("cpu", None, [None] * 4),
    ],
)
def test_every_run_has_a_gpu_of_its_own(four_gpus, tmp_path, monkeypatch, device, visible, given):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    started = Started(4)
    monkeypatch.setattr(jobs, "finished", started)
    made = list(jobs.make(some_jobs(8, device), tmp_path, 4, None, device, {}))  # twice four at a time
    assert [reason for _, reason in made] == [""] * 8
    assert {name for _, name, _ in started.seen} == {device if device == "cpu" else "cuda"}
    for four in (started.seen[:4], started.seen[4:]):
        assert sorted(map(str, (own for *_, own in four))) == sorted(map(str, given))
    assert not [*(tmp_path / "logs").glob("*.running")]


def test_runs_on_a_cluster_have_gpus_of_their_own(four_gpus, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    started = Started(3)
    monkeypatch.setattr(jobs, "finished", started)
    with distributed.LocalCluster(
        1, threads_per_worker=3, dashboard_address=None, processes=False, resources={"GPU": 3}
    ) as cluster:
        made = list(jobs.make(some_jobs(3, "cuda"), tmp_path, 1, cluster.scheduler_address, "cuda", {}))
    assert len(made) == 3 and {own for *_, own in started.seen} == {"0", "1", "2"}


def test_without_locks_gpus_are_taken_in_turn(four_gpus, monkeypatch):
    monkeypatch.setattr(devices.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "no locks")))
    with devices.given("cuda") as one, devices.given("cuda") as two:
        assert one != two and {one.name, two.name} == {"cuda"}


def test_what_runs_is_told_with_step_loss_and_time_left(colors, tmp_path):
    study = file.read(write_study(colors, seeds=[0], clips=96))
    store = jobs.Store(tmp_path)
    found = {"colors": sources.prepare(study.data["colors"], colors / "colors", tmp_path, (0,), ())}
    first, *others = planning.plan(study, found, store, "cpu", {}).jobs.values()
    jobs.work(first, tmp_path, {})
    (tmp_path / "logs").mkdir()
    assert progress.running([first, *others], store) == []
    for job, begin in ((first, 0), (others[0], 6)):
        store.marker(job).write_text(f"GPU 2 of there\n{begin}")
        store.log(job).write_text("before\nfeatures: 3 of 9 clips, about 5 s left\n")
    log = store.run(first.id) / "run" / "log.csv"
    lines = log.read_text().splitlines()
    columns = lines[0].split(",")
    total = len(lines) - 1
    cells = [line.split(",") for line in lines[:4]]
    for own in cells[1:]:
        own[columns.index("total_ms")] = "2000.0"
    log.write_text("\n".join(map(",".join, cells)) + "\n9,half")  # the last line is being written
    loss = float(cells[3][columns.index("loss")])
    training, other = progress.running([first, *others], store)
    assert training == (
        f"turns <i>: {first.told} (GPU 2 of there): step 3 of {total}, loss {loss:.4g}, about {2 * (total - 3)} s left"
    )
    assert other.endswith("(GPU 2 of there): features: 3 of 9 clips, about 5 s left")
    log.unlink()
    store.log(first).write_text("")
    assert progress.running([first], store)[0].endswith("(GPU 2 of there): starts")


def test_a_plan_before_labelling_says_so(tmp_path):
    given = {"dataset": "folder", "root": "videos", "label": {"paces": [1, 2]}, "test": 0.5}
    lines = show_plan(write_study(tmp_path, data={"own": given}), tmp_path / "out", 1, "cpu")
    assert lines[-1] == "no run is there; the others take: not known before labelling"
    assert "  runs on own: not known before labelling" in lines and " 0 s" not in " ".join(lines)


def test_a_plan_is_timed_on_the_device_asked_for(colors, tmp_path, monkeypatch):
    asked = []
    pick = planning.distributed.pick_device
    monkeypatch.setattr(planning.distributed, "pick_device", lambda name: asked.append(name) or pick("cpu"))
    planning._rate.cache_clear()
    path = write_study(colors, seeds=[0])
    lines = show_plan(path, tmp_path / "out", 1, "cuda:1,cuda:2")
    assert set(asked) == {"cuda:1"} and "about" in lines[-1]
    monkeypatch.undo()
    planning._rate.cache_clear()
    with pytest.raises(TrainerError, match="device 'nonsense' cannot be used"):
        show_plan(path, tmp_path / "out", 1, "nonsense")


def test_the_page_says_what_each_row_saw_and_how_rows_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "execute", execute_here)
    lengths = [64] * 4 + [20] * 6 + [64] * 6  # six are too short for pace 4
    write_shard(tmp_path / "colors" / "00000.h5", lengths, [1] * 12 + [3] * 4, list("abcd") * 4)
    rows = {
        "turns": {"method": "rotation", "lr": 0.002},
        "pace": {"method": "pace", "holdout": 0.2, "lr": [0.1, 0.003]},
        "more": {"method": "pace", "clips": 48, "options": {"pace": {"contrast": "same-pace"}}},
    }
    settings = SMALL["settings"] | {"width": 0.05}
    path = write_study(
        tmp_path, seeds=[0], rows=rows, settings=settings, data={"colors": {"shards": "colors", "pretraining": "all"}}
    )
    content = make_study(path, tmp_path / "out", Machine(device="cpu"), None, None, say=print)
    assert not content["failures"]
    seen = {row: next(iter(own["trained"].values())) for row, own in content["rows"].items() if "trained" in own}
    of = {row: (own["videos"], own["of videos"], own["clips"]) for row, own in seen.items()}
    assert of["more"] == (10, 16, 50) and of["turns"][:2] == (16, 16)
    assert of["pace"][0] < 10 and of["pace"][1] == 16
    (told,) = content["unequal"]
    assert told.startswith("Unequal budgets: pretraining on colors saw from ") and "to 50 (more)" in told
    text = Page((tmp_path / "out" / "index.html").read_text()).text
    assert text.index(told) < text.index("colors") or text.index(told) < text.index("random weights")
    assert "more colors 10 of 16 50 48" in text and f"pace colors {of['pace'][0]} of 16 {of['pace'][2]} 24" in text
    assert told in (tmp_path / "out" / "table.md").read_text()
    names, values = budgets.differing(content["rows"])
    assert dict(zip(names, values["turns"], strict=True))["lr"] == "0.002"
    assert dict(zip(names, values["pace"], strict=True))["lr"] == "one of 0.1, 0.003"
    assert dict(zip(names, values["more"], strict=True))["pace: contrast"] == "same-pace"
    assert {"method", "lr", "holdout", "clips asked for", "pace: contrast"} <= set(names) and "width" not in names
    assert "Settings that differ between rows" in text and "one of 0.1, 0.003" in text


def test_a_verdict_needs_the_whole_interval_on_one_side():
    ends = [(0.1, 3.0), (-3.0, -0.1), (-1.0, 0.0), (0.0, 1.0)]
    words = [results._verdict({"low": low, "high": high}) for low, high in ends]
    assert words == ["agrees", "disagrees", "undecided", "undecided"]


def test_a_cluster_makes_runs_one_per_gpu(colors, tmp_path):
    distributed = pytest.importorskip("distributed")
    study = file.read(write_study(colors, seeds=[0]))
    found = {"colors": sources.prepare(study.data["colors"], colors / "colors", tmp_path, (0,), ())}
    planned = planning.plan(study, found, jobs.Store(tmp_path), "cpu", {})
    job = next(job for job in planned.jobs.values() if job.kind == "train")
    nowhere = replace(job.how["source"], folder=tmp_path / "none")
    lost = replace(job, id="lost", how=job.how | {"source": nowhere})
    with distributed.LocalCluster(
        1, threads_per_worker=1, dashboard_address=None, processes=False, resources={"GPU": 1}
    ) as cluster:
        made = dict(jobs.make([job, lost], tmp_path, 1, cluster.scheduler_address, "auto", {}))
    assert made[job] == "" and jobs.Store(tmp_path).done(job)
    assert "no such folder of shards" in made[lost]
    with pytest.raises(ClusterError, match="no Dask scheduler answers there"):
        next(jobs.make([job], tmp_path, 1, "nowhere", "cpu", {}))


def test_a_row_may_be_weights_or_begin_with_them(colors, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "execute", execute_here)
    small = Settings(method="rotation", width=0.06, epochs=1, batch_size=4, workers=0, device="cpu")
    train(small, colors / "colors", tmp_path / "first")
    rows = {"published": {"weights": "first"}, "continued": {"weights": "first", "method": "rotation"}}
    measure = [{"protocol": "retrieval", "pooling": "mean"}]
    data = {"colors": {"shards": str(colors / "colors")}}
    path = write_study(tmp_path, seeds=[0], data=data, rows=rows, measures=measure)
    study = file.read(path)
    assert study.rows["published"].kind == file.WEIGHTS and study.rows["published"].network == ("r3d10", 0.06)
    content = make_study(path, tmp_path / "out", Machine(device="cpu"), label, None, say=print)
    assert not content["failures"] and {"published", "continued"} <= {own["row"] for own in content["numbers"]}
    (run,) = (tmp_path / "out" / "runs").glob("*/run")
    assert checkpoint.load(run).meta["initial"]["weights"] == study.rows["continued"].weights
    train(replace(small, seed=1), colors / "colors", tmp_path / "second")
    before = set((tmp_path / "out" / "results").iterdir())
    path = write_study(tmp_path, seeds=[0], data=data, rows={"published": {"weights": "second"}}, measures=measure)
    make_study(path, tmp_path / "out", Machine(device="cpu"), label, None, say=print)
    assert len(set((tmp_path / "out" / "results").iterdir()) - before) == 1  # other weights, other numbers
