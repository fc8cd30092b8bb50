"""The study file: what it means, and what is refused."""

from pathlib import Path

import pytest

from cli.study import label
from labelgen.errors import ConfigError
from tests.trainer.studies import write_study
from trainer.errors import TrainerError
from trainer.study.file import read
from trainer.study.spec import RANDOM, SUPERVISED

ROOT = Path(__file__).resolve().parents[2]


def row(**settings):
    return {"rows": {"a": settings}}


def of_data(**given):
    return {"data": {"a": given}}


def measure(protocol, **given):
    return {"measures": [{"protocol": protocol, **given}]}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rowz": {}}, ["'rowz'", "about", "rows"]),
        ({"rows": {}}, ["rows", "at least one"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]", "different"]),
        ({"seeds": [-1]}, ["seeds", "-1"]),
        ({"seeds": []}, ["seeds", "at least one"]),
        ({"clips": 0}, ["clips", "0", "1 or more"]),
        ({"clips": "many"}, ["clips", "'many'", "a whole number"]),
        ({"baselines": ["magic"]}, ["'magic'", "supervised, flow, boundary, colour, still"]),
        ({"settings": {"epochs": 3}}, ["'epochs'", "batch_size"]),
        (row(method="magic"), ["'magic'", "pace"]),
        (row(method="pace", epochs=3), ["rows, a", "'epochs'", "batch_size"]),
        (row(method="recognition"), ["rows, a", "recognition learns labels"]),
        (row(method="pace", lr=[0.1, 0.2]), ["rows, a", "lr", "holdout"]),
        (row(method="pace", holdout=0.1, lr=[0.1] * 40, momentum=[0.1] * 40), ["1600", "at most 1000"]),
        (of_data(), ["data, a", "shards", "dataset"]),
        (of_data(shards="x", test=0.2, folds=3), ["data, a", "folds, test", "one of them"]),
        (of_data(shards="x", test=1.5), ["data, a, test", "1.5", "between 0 and 1"]),
        (of_data(shards="x", folds=1), ["data, a, folds", "1", "2 or more"]),
        (of_data(shards="x", pretraining="some"), ["'some'", "train, all"]),
        (of_data(shards="x", targets={"t": {"csv": "x"}}), ["targets, t", "video"]),
        (measure("magic"), ["protocol", "'magic'", "linear, attentive, smoothness"]),
        (measure("knn", k=0), ["k", "0", "1 or more"]),
        (measure("knn", rows=["other"]), ["'other'", "turns <i>"]),
        (measure("knn", targets=["other"]), ["targets", "'other'"]),
        (measure("knn", pooling="min"), ["'min'", "max, mean"]),
        (measure("linear", tested_on=["other"]), ["'other'", "colors"]),
        (measure("linear", pretrained_on="other"), ["'other'", "itself, all"]),
        (measure("linear", labels=[0]), ["labels", "0", "1 or more"]),
        (measure("linear", labels=["9 clips"]), ["labels", "'9 clips'", "'1000 videos'"]),
        (measure("linear", time=["backwards"]), ["time", "'backwards'", "shuffled, reversed, still"]),
        (measure("smoothness", time=["still"]), ["smoothness", "time", "learn classes"]),
        (measure("retrieval", opposites=[["a", "b"]]), ["opposites", "'retrieval'", "linear, knn or attentive"]),
        (measure("knn", opposites=[["a", "a"]]), ["opposites", "('a', 'a')", "two different classes"]),
        (measure("linear", parts=11), ["parts", "11", "1 to 10"]),
        (measure("linear", stage=[["conv5"]]), ["stage", "['conv5']", "such as conv5"]),
        (measure("smoothness", stage=["conv5", "chosen"]), ["stage", "'chosen'", "without classes"]),
        ({"choose": {"protocol": "smoothness"}}, ["choose, protocol", "'smoothness'", "linear"]),
        ({"choose": {"protocol": "finetune"}}, ["choose, protocol", "'finetune'", "linear"]),
        ({"choose": {"protocol": "attentive"}}, ["choose, protocol", "'attentive'", "linear"]),
        (measure("finetune", clips=0), ["clips", "0", "1 or more"]),
        (measure("pretext", draws=0), ["draws", "0", "1 or more"]),
        ({"orderings": [{"better": "turns <i>", "worse": "other"}]}, ["worse", "'other'", "turns <i>"]),
        ({"orderings": [{"better": "turns <i>", "worse": "turns <i>", "published": [1]}]}, ["published", "[1]", "two"]),
    ],
)
def test_what_makes_no_sense_is_refused_with_file_value_and_expectation(tmp_path, changes, words):
    path = write_study(tmp_path, **changes)
    with pytest.raises(TrainerError) as error:
        read(path)
    assert [word for word in (str(path), *words) if word not in str(error.value)] == []


def test_a_file_extends_another(tmp_path):
    write_study(tmp_path)
    other = tmp_path / "large.yaml"
    other.write_text("extends: study.yaml\nclips: 100\nsettings: {width: 0.5}\n")
    row = read(other).rows["turns <i>"]
    assert row.clips == 100 and row.network == ("r3d10", 0.5) and row.candidates[0].batch_size == 8
    other.write_text("extends: large.yaml\n")
    with pytest.raises(TrainerError, match="large.yaml: more than 10 files .* expected fewer; does one extend itself"):
        read(other)
    (tmp_path / "base.yaml").write_text("clips: many\n")
    other.write_text("extends: base.yaml\n")
    with pytest.raises(TrainerError, match="base.yaml: .*clips.*many"):
        read(other)


def test_references_are_added_for_every_network(tmp_path):
    rows = {"a": {"method": "pace"}, "b": {"method": "tce", "backbone": "resnet18"}}
    measures = [{"protocol": "finetune"}, {"protocol": "knn"}]
    study = read(write_study(tmp_path, rows=rows, measures=measures, baselines=["supervised", "colour", "flow"]))
    histograms = ["flow histogram", "colour histogram"]
    assert [row.kind for row in study.rows.values()] == ["method"] * 2 + [RANDOM, SUPERVISED] * 2 + histograms
    assert study.measures[0].clips == study.rows["a"].clips // 4 > 0


def test_a_row_without_settings_has_the_common_ones(tmp_path):
    assert read(write_study(tmp_path, rows={"a": None})).rows["a"].candidates[0].width == 0.05


def test_a_sweep_has_a_candidate_for_every_combination(tmp_path):
    swept = {"method": "pace", "holdout": 0.2, "lr": [0.1, 0.2], "weight_decay": [0, 1.0, 2.0]}
    row = read(write_study(tmp_path, rows={"a": swept})).rows["a"]
    choose, baselines = {"protocol": "linear", "pooling": "mean"}, ["flow"]
    measures = [{"protocol": "linear"}]
    of = read(write_study(tmp_path, rows={"a": swept}, choose=choose, baselines=baselines, measures=measures)).choose
    assert of is not None and of.stage == "chosen" and of.title == "linear probe, chosen stage, mean"
    assert len(row.candidates) == 6 and row.tried[5] == {"lr": 0.2, "weight_decay": 2.0}


def test_a_list_of_one_value_needs_no_choice(tmp_path):
    row = read(
        write_study(tmp_path, rows={"a": {"method": "simclr", "jitter": "contrast", "crop_area": [[0.5, 1]]}})
    ).rows["a"]
    assert [candidate.crop_area for candidate in row.candidates] == [[0.5, 1]]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_study_files_of_the_repository_are_whole(path):
    study = read(path)
    assert len(study.seeds) >= 3 and study.rows


@pytest.mark.parametrize(
    ("dataset", "render", "message"),
    [("folder", {"camera": ["pan"]}, "folder is not rendered"), ("demo", {"speed": 2}, "render: .*speed")],
)
def test_only_the_demo_is_rendered_and_with_known_values(tmp_path, dataset, render, message):
    given = {"dataset": dataset, "root": str(tmp_path / "videos"), "label": {}, "render": render}
    with pytest.raises(ConfigError, match=message):
        label(given, tmp_path / "out", 1)
