"""A study end to end: what it measures, what it shows, and what it never makes twice."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cli.main import main
from cli.study import label
from tests.labelgen.synthetic import write_video
from tests.trainer.pages import Page
from tests.trainer.planted import write_colored
from tests.trainer.studies import SMALL, execute_here, make_study, write_study
from tests.trainer.synthetic import write_shard
from trainer import checkpoint
from trainer.backbones import BACKBONES
from trainer.backbones.layers import Stages
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS
from trainer.evaluate.protocols.knn import KNearest
from trainer.histograms import histogram
from trainer.settings import Settings
from trainer.study import budgets, results, runner, tables
from trainer.study.file import read
from trainer.study.spec import HISTOGRAMS, RANDOM, WEIGHTS
from trainer.study.study import show_plan
from trainer.training import train

ROOT = Path(__file__).resolve().parents[2]


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


def two_blocks(width):
    """A backbone whose stages have names of their own."""
    return Stages(4, stem=nn.Conv3d(3, 4, 3, 2, 1), block=nn.Sequential(nn.Conv3d(4, 4, 3, 2, 1), nn.ReLU()))


def test_the_last_stage_is_that_of_each_network(colors, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "blocks", f"{__name__}:two_blocks")
    other = {"blocks": {"method": "rotation", "backbone": "blocks"}}
    knn = [{"protocol": "knn", "k": 1, "pooling": "mean"} | own for own in ({}, {"stage": ["stem", "block"]})]
    alone = read(write_study(colors, rows=other, measures=knn)).measures
    assert [(own.stage, own.headline) for own in alone] == [("block", True), ("stem", False), ("block", True)]
    path = write_study(colors, seeds=[0], rows=SMALL["rows"] | other, measures=[*knn, {"protocol": "smoothness"}])
    content = make_study(monkeypatch, path, tmp_path / "out")
    titles = ["1-NN, last stage, mean", "1-NN, stem, mean", "1-NN, block, mean", "smoothness, last stage, mean"]
    assert [(own["measure"], own["headline"]) for own in content["columns"]] == [
        (title, title != titles[1]) for title in titles
    ]
    found = {(entry["row"], entry["column"]): entry["value"] for entry in content["numbers"]}
    assert found["blocks", 0] == found["blocks", 2] and ("turns <i>", 0) in found and ("turns <i>", 2) not in found
    assert any(
        "no features of stage 'block'" in own["reason"] and "conv1" in own["reason"] for own in content["absent"]
    )


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

    monkeypatch.setattr(runner, "execute", execute_here)
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
    content = make_study(monkeypatch, path, tmp_path / "a", latex=True)
    assert not content["failures"]
    assert made == {own: own.stat().st_mtime_ns for own in (tmp_path / "a").glob("r*s/**/*.json")}
    assert r"\toprule" in (tmp_path / "a" / "table.tex").read_text()
    assert len((tmp_path / "a" / "numbers.csv").read_text().splitlines()) == 1 + len(content["numbers"])
    assert show_plan(path, tmp_path / "a", 1, "cpu")[-1].startswith("3 of 3 runs are done")


def test_every_protocol_and_reference_gives_a_number(colors, tmp_path, monkeypatch):
    protocols = [{"protocol": "linear", "labels": [1, 50]}, {"protocol": "knn", "k": 2}, {"protocol": "smoothness"}]
    protocols += [{"protocol": "finetune", "labels": [1], "clips": 4, "settings": {"batch_size": 4}}]
    path = write_study(
        colors, seeds=[0], measures=protocols, baselines=["supervised", "flow", "boundary", "colour", "still"]
    )
    pairs = []

    def still(first, second):
        pairs.append(first)
        return np.zeros((*first.shape, 2), np.float32)

    for name in ("results/0123456789abcdef.json", "data/colors-0123/00000.h5"):  # of an earlier version
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        (tmp_path / "out" / name).write_text('{"scores": {"00000_12": 0}}')
    told = []
    content = make_study(monkeypatch, path, tmp_path / "out", flow=still, say=told.append)
    assert sum("not used" in line for line in told) == 2 and any("1 run or result " in line for line in told)
    measured = [measure["measure"] for measure in content["columns"]]
    found = {(entry["row"], measured[entry["column"]]): entry for entry in content["numbers"]}
    frozen = ["linear probe, conv5, max, 1 per class", "2-NN, conv5, max"]
    rows = {"turns <i>": 4, "random weights": 4, "supervised": 1} | dict.fromkeys(HISTOGRAMS, 2)
    assert len(pairs) == 16 * 23  # the flow of each video once, for both histograms of it
    assert {row: sum(row == own for own, _ in found) for row in rows} == rows and not content["failures"]
    assert all((row, measure) in found for row in ("turns <i>", *HISTOGRAMS) for measure in frozen)
    one = found["turns <i>", frozen[1]]
    assert one["by class"].keys() == {f"color{i}" for i in range(4)} == one["predicted"].keys()
    assert found["turns <i>", frozen[0]].get("by class") is None and one["maybe best"]
    assert all(entry["videos"] == 4 and 0 <= entry["low"] <= entry["high"] <= 100 for entry in found.values())
    assert found["colour histogram", frozen[1]]["value"] == 100 > found["flow histogram", frozen[1]]["value"]
    assert found["random weights", frozen[0]]["value"] == 100  # a colour is seen by any weights
    assert ["labels of 50 per class" in absent["reason"] for absent in content["absent"]] == [True]
    assert not any("too narrow" in text for text in content["assumed"])


def test_tests_of_one_measure_alone_stand_in_one_table():
    def column(tested, measure, before=None):
        return {"tested_on": tested, "target": "", "pretrained_on": before or tested, "measure": measure}

    columns = [column("a", "linear"), column("a", "knn"), column("b", "knn"), column("a", "knn", "b"), column("c", "x")]
    content = {"columns": columns, "rows": ["one", "two"]}
    content["numbers"] = [{"row": "one", "column": number} for number in range(5)]
    content["numbers"].append({"row": "two", "column": 3})
    found = {title: (heads, [*rows]) for title, heads, rows in tables.tables(content)}
    assert found == {
        "a": (["linear", "knn"], ["one"]),
        "c": (["x"], ["one"]),
        "knn": (["b", "a, pretrained on b"], ["one", "two"]),
    }


def test_pretext_tasks_are_compared_with_chance_and_orderings_judged(tmp_path, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 16, 40, split=[[1]] * 12 + [[3]] * 4)
    rows = {"turns": {"method": "rotation"}, "asc": {"method": "ascnet"}, "two": {"method": "rotation+ascnet"}}
    protocols = [{"protocol": "pretext", "draws": 2}, {"protocol": "knn", "k": 1, "rows": ["turns", "asc"]}]
    claim = {"better": "turns", "worse": "asc", "source": "a paper", "published": [2, 1.5]}
    path = write_study(tmp_path, seeds=[0], rows=rows, measures=protocols, orderings=[claim])
    content = make_study(monkeypatch, path, tmp_path / "out")
    assert not content["failures"]
    found = {(entry["row"], entry["column"]): entry for entry in content["numbers"]}
    asked = {("turns", 0), ("two", 0), ("turns", 1), ("asc", 1)}
    assert set(found) == asked | {("random weights", 1)}  # which is always there
    pretext = found["turns", 0]
    assert pretext["chance"] == 25 and pretext["videos"] == 4
    assert pretext["above"]["value"] == pytest.approx(pretext["value"] - 25)
    assert [(own["row"], "no accuracy" in own["reason"]) for own in content["absent"]] == [("asc", True)]
    (ordering,) = content["orderings"]
    (here,) = ordering["here"]
    assert here["column"] == 1
    assert here["value"] == pytest.approx(found["turns", 1]["value"] - found["asc", 1]["value"])
    assert {pair["column"] for pair in content["differences"]} == {1} and len(content["differences"]) == 3
    assert not any(entry["maybe best"] for (_, column), entry in found.items() if column == 0)  # of different tasks
    (pair,) = (pair for pair in content["differences"] if {pair["row"], pair["than"]} == {"turns", "asc"})
    assert {key: pair[key] for key in ("value", "low", "high")} == pytest.approx(
        {k: here[k] for k in ("value", "low", "high")}
    )
    text = (tmp_path / "out" / "table.md").read_text()
    assert "(chance 25.0)" in text and "| turns > asc | a paper (2, 1.5) |" in text and here["verdict"] in text
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert "turns > asc" in page.text and "chance 25.0" in page.text
    drawn = (tmp_path / "out" / "index.html").read_text()
    assert ", chance: 25.0 %" in drawn and "held-out training videos" not in drawn  # of marks, those that are there


def test_methods_of_several_clips_are_rows_like_others(tmp_path, monkeypatch):
    """Two steps each."""
    write_colored(tmp_path / "colors" / "00000.h5", 16, 40, split=[[1]] * 12 + [[3]] * 4)
    rows = {name: {"method": name, "options": {name: {"hidden": 8}}} for name in ("simclr", "moco", "byol", "lejepa")}
    rows |= {"rspnet": {"method": "rspnet"}, "both": {"method": "lejepa+rspnet", "options": {"lejepa": {"hidden": 8}}}}
    path = write_study(tmp_path, seeds=[0], rows=rows, measures=[{"protocol": "knn", "k": 1}])
    content = make_study(monkeypatch, path, tmp_path / "out")
    assert not content["failures"] and {entry["row"] for entry in content["numbers"]} == {*rows, RANDOM}
    shown = {row: [run["clips"] for run in content["rows"][row]["trained"].values()] for row in rows}
    assert shown == {name: [24] for name in rows} | {"rspnet": [36], "lejepa": [48], "both": [84]}


def test_a_row_may_label_its_pretraining_in_another_way(tmp_path, monkeypatch):
    for name in ("a/1", "a/2", "b/1", "b/2"):
        write_video(tmp_path / "videos" / f"{name}.avi", 40)
    options = {"height": 40, "width": 48, "crop": 32, "rows": 2, "paces": [1, 2], "flow": "dis"}
    data_set = {"dataset": "folder", "root": "videos", "label": options, "test": 0.5}
    rows = {"two": {"method": "pace"}, "slow": {"method": "pace", "label": {"paces": ["1/2", 1]}}}
    measures = [{"protocol": "knn", "k": 1}, {"protocol": "pretext"}]
    path = write_study(tmp_path, seeds=[0], clips=4, data={"own": data_set}, rows=rows, measures=measures)
    content = make_study(monkeypatch, path, tmp_path / "out", label)
    assert not content["failures"] and not content["absent"]
    assert [*content["data"]] == ["own", "own, paces ['1/2', 1]"]
    first, second = ([*content["rows"][row]["trained"]] for row in rows)
    assert first == ["own, split 1, seed 0"] and second == ["own, paces ['1/2', 1], split 1, seed 0"]
    found = {(entry["row"], entry["column"]) for entry in content["numbers"]}
    assert found == {("two", 0), ("slow", 0), ("two", 1), ("slow", 1), (RANDOM, 0)}
    assert any("there are only 4, so that the intervals are too narrow" in text for text in content["assumed"])


def test_other_seeds_are_trained_with_the_chosen_settings_alone(colors, tmp_path, monkeypatch):
    rows = {"turns": {"method": "rotation", "holdout": 0.3, "lr": [1e18, 0.001]}}
    path = write_study(colors, seeds=[3, 4], clips=8, rows=rows, measures=[{"protocol": "smoothness"}])
    content = make_study(monkeypatch, path, tmp_path / "out")
    trained = content["rows"]["turns"]["trained"]
    assert [(run["lr"], *title.split(", ")[2:]) for title, run in trained.items()] == [
        (0.001, "seed 3"),
        (0.001, "seed 4"),
    ]
    assert [one["chosen"] for one in content["rows"]["turns"]["tried"]["colors"]] == [False, True]
    assert len(list((tmp_path / "out" / "runs").glob("*/done.json"))) == 2 and len(content["failures"]) == 1


def test_settings_may_be_chosen_by_classes_in_the_training_part(colors, tmp_path, monkeypatch):
    rows = {"turns": {"method": "rotation", "lr": [1e18, 0.001, 0.002]}}
    measures, choose = [{"protocol": "knn", "k": 1}], {"protocol": "knn", "k": 1, "pooling": "mean"}
    path = write_study(colors, seeds=[0], clips=8, rows=rows, measures=measures, choose=choose)
    content = make_study(monkeypatch, path, tmp_path / "out")
    tried = content["rows"]["turns"]["tried"]["colors"]
    worth = [one["validated accuracy"] for one in tried]
    assert worth[0] is None and max(worth[1:]) > 50  # a colour is seen by any weights; the first broke
    chosen = tried[1 + int(np.argmax(worth[1:]))]
    assert [one["chosen"] for one in tried] == [one is chosen for one in tried]
    assert [run["lr"] for run in content["rows"]["turns"]["trained"].values()] == [chosen["lr"]]
    assert any("lr chosen from 3 by 1-NN, chosen stage, mean in a cross-validation" in of for of in content["assumed"])
    made = {own: own.stat().st_mtime_ns for own in (tmp_path / "out").glob("r*s/**/*.json")}
    again = make_study(monkeypatch, path, tmp_path / "out")
    assert again["numbers"] == content["numbers"] and chosen in again["rows"]["turns"]["tried"]["colors"]
    assert made == {own: own.stat().st_mtime_ns for own in (tmp_path / "out").glob("r*s/**/*.json")}


def test_the_page_says_what_each_row_saw_and_how_rows_differ(tmp_path, monkeypatch):
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
    content = make_study(monkeypatch, path, tmp_path / "out")
    assert not content["failures"]
    seen = {row: next(iter(own["trained"].values())) for row, own in content["rows"].items() if "trained" in own}
    of = {row: (own["videos"], own["of videos"], own["clips"]) for row, own in seen.items()}
    assert of["more"] == (10, 16, 50) and of["turns"][:2] == (16, 16)
    assert of["pace"][0] < 10 and of["pace"][1] == 16
    (told,) = content["unequal"]
    assert told.startswith("Unequal budgets: pretraining on colors saw from ") and "to 50 (more)" in told
    text = Page((tmp_path / "out" / "index.html").read_text()).text
    assert text.index(told) < text.index("more colors 10")  # in front of the numbers
    assert "more colors 10 of 16 50 48" in text and f"pace colors {of['pace'][0]} of 16 {of['pace'][2]} 24" in text
    assert told in (tmp_path / "out" / "table.md").read_text()
    names, values = budgets.differing(content["rows"])
    assert dict(zip(names, values["turns"], strict=True))["lr"] == "0.002"
    assert dict(zip(names, values["pace"], strict=True))["lr"] == "one of 0.1, 0.003"
    assert dict(zip(names, values["more"], strict=True))["pace: contrast"] == "same-pace"
    assert {"method", "lr", "holdout", "clips asked for", "pace: contrast"} <= set(names) and "width" not in names
    assert "Settings that differ between rows" in text and "one of 0.1, 0.003" in text


def test_several_methods_have_jitters_of_their_own_not_none():
    rows = {
        name: {"kind": "method", "clips asked for": 1, "settings": {"jitter": jitter}, "label": {}}
        for name, jitter in (("joint", None), ("plain", "none"))
    }
    assert budgets.differing(rows) == (["jitter"], {"joint": ["each method's"], "plain": ["none"]})


def test_a_verdict_needs_the_whole_interval_on_one_side():
    ends = [(0.1, 3.0), (-3.0, -0.1), (-1.0, 0.0), (0.0, 1.0)]
    words = [results.verdict({"low": low, "high": high}) for low, high in ends]
    assert words == ["agrees", "disagrees", "undecided", "undecided"]


def test_a_row_may_be_weights_or_begin_with_them(colors, tmp_path, monkeypatch):
    small = Settings(method="rotation", width=0.06, epochs=1, batch_size=4, workers=0, device="cpu")
    train(small, colors / "colors", tmp_path / "first")
    rows = {"published": {"weights": "first"}, "continued": {"weights": "first", "method": "rotation"}}
    measure = [{"protocol": "retrieval", "pooling": "mean"}]
    data = {"colors": {"shards": str(colors / "colors")}}
    path = write_study(tmp_path, seeds=[0], data=data, rows=rows, measures=measure)
    study = read(path)
    assert study.rows["published"].kind == WEIGHTS and study.rows["published"].network == ("r3d10", 0.06)
    content = make_study(monkeypatch, path, tmp_path / "out")
    assert not content["failures"] and {"published", "continued"} <= {own["row"] for own in content["numbers"]}
    (run,) = (tmp_path / "out" / "runs").glob("*/run")
    assert study.rows["continued"].weights.startswith(checkpoint.load(run).meta["initial"]["weights"])
    train(replace(small, seed=1), colors / "colors", tmp_path / "second")
    before = set((tmp_path / "out" / "results").iterdir())
    path = write_study(tmp_path, seeds=[0], data=data, rows={"published": {"weights": "second"}}, measures=measure)
    make_study(monkeypatch, path, tmp_path / "out")
    assert len(set((tmp_path / "out" / "results").iterdir()) - before) == 1  # other weights, other numbers
    torch.save({"a": torch.ones(1)}, tmp_path / "theirs.pth")
    with pytest.raises(
        TrainerError, match="study.yaml: .*theirs.pth: weights in the format of PyTorch; import them first"
    ):
        read(write_study(tmp_path, rows={"published": {"weights": "theirs.pth"}}))


class Nearest(KNearest):
    """The share of the nearest training video's class."""

    title, neighbours = "Nearest", 1


def test_a_new_protocol_of_features_measures_in_studies_at_once(colors, tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "nearest", f"{__name__}:Nearest")
    measures = [{"protocol": name, "pooling": "mean", "k": 1} for name in ("nearest", "knn")]
    data = {"colors": {"shards": str(colors / "colors")}}
    path = write_study(tmp_path, seeds=[0], data=data, measures=measures)
    assert "nearest" in [measure.protocol for measure in read(path).measures]
    content = make_study(monkeypatch, path, tmp_path / "out")
    of_each = [[entry["value"] for entry in content["numbers"] if entry["column"] == number] for number in (0, 1)]
    assert of_each[0] == of_each[1] and len(of_each[0]) == 2 and not content["failures"]
