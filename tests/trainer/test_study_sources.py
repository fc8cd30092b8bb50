"""The data sets of a study: which videos are tested, what is learnt from, and the overlays that say so."""

import json

import numpy as np
import pytest

from cli.study import label
from labelgen.errors import ConfigError
from tests.labelgen.synthetic import write_video
from tests.trainer.planted import write_colored
from trainer import data
from trainer.data.overlay import Overlay
from trainer.errors import TrainerError
from trainer.study.sources import prepare
from trainer.study.spec import Data


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """A folder of two shards with 16 videos in 4 classes, 4 of them tested."""
    folder = tmp_path_factory.mktemp("sources") / "colors"
    for name, videos in (("00000.h5", 10), ("00001.h5", 6)):
        write_colored(folder / name, videos, 24, split=[[3]] * 2 + [[1]] * (videos - 2))
    return folder


def source(folder, tmp_path, few=(), **given):
    own = {
        "split": None,
        "test": None,
        "folds": None,
        "pretraining": "train",
        "targets": {},
        "resample": "video",
    } | given
    return prepare(Data("colors", folder, None, **own), folder, tmp_path / "data", (0, 1), few)


def test_official_splits_and_classes_are_those_of_the_shards(colors, tmp_path):
    found, shards = source(colors, tmp_path), data.Shards(colors)
    opened = found.opened("split1")
    assert found.splits == ("split1",) and opened.split == "split1"
    assert (opened.part == shards.part).all() and (opened.train_mask == shards.train_mask).all()
    assert opened.text("videos/label") == shards.text("videos/label")


def test_a_study_copies_no_pixels(colors, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("name,odd\n00000_0,no\n")
    targets = {name: {"csv": str(table), "video": "name", "column": "odd"} for name in ("a", "b/../c")}
    found = source(colors, tmp_path, few=(1, 2), folds=4, targets=targets, pretraining="all")
    written = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert sorted(written) == sorted(set(found.overlays.values())) and sum(p.stat().st_size for p in written) < 20_000
    assert found.opened("1").readers[0].path == str(colors / "00000.h5")


def test_folds_test_every_video_once_and_are_drawn_alike(colors, tmp_path):
    found = source(colors, tmp_path, folds=4)
    tested = np.sum([found.opened(split).part == data.TEST for split in found.splits], axis=0)
    assert (tested == 1).all() and found.splits == ("1", "2", "3", "4")
    assert found.identity == source(colors, tmp_path / "again", folds=4).identity
    assert len({*found.identity.values()}) == 4


def test_a_share_is_tested_if_there_is_no_split(colors, tmp_path):
    found = source(colors, tmp_path, test=0.25)
    assert found.splits == ("1",) and np.bincount(found.opened("1").part).tolist() == [0, 12, 0, 4]


def test_few_labels_are_drawn_from_the_training_part_by_seed(colors, tmp_path):
    found = source(colors, tmp_path, few=(2, 9))
    names = found.opened("split1").split_names
    assert names == ("split1", "split1, 2 per class, seed 0", "split1, 2 per class, seed 1")  # no class has nine
    first, second = map(found.opened, names[1:])
    assert first.train_mask.sum() == 8 and np.bincount(first.targets[first.train_mask]).tolist() == [2] * 4
    assert (first.train_mask != second.train_mask).any() and not (first.train_mask & (first.part == data.TEST)).any()
    assert ((first.part == data.TEST) == (data.Shards(colors).part == data.TEST)).all()


def test_targets_are_read_from_a_table(colors, tmp_path):
    ids = data.Shards(colors).text("videos/id")
    table = tmp_path / "labels.csv"
    table.write_text("name,odd\n" + "".join(f"{name},{'odd' if i % 2 else 'even'}\n" for i, name in enumerate(ids)))
    found = source(colors, tmp_path, targets={"parity": {"csv": str(table), "video": "name", "column": "odd"}})
    opened = found.opened("split1", "parity")
    assert opened.classes == ["even", "odd"] and opened.targets.tolist() == [0, 1] * 8
    plain = source(colors, tmp_path)
    assert found.identity == plain.identity  # pretraining does not depend on classes
    assert found.labels["parity"] != plain.labels[""]


def test_all_videos_may_be_pretrained_on(colors, tmp_path):
    found = source(colors, tmp_path, pretraining="all")
    assert found.opened(found.pretraining("split1")).train_mask.all()


@pytest.mark.parametrize(
    "damage",
    [
        {"shards": "0123456789abcdef"},
        {"labels": ["a"] * 15},
        {"labels": ["a"] * 15 + [1]},
        {"labels": ["a"] * 15 + ["b\0c"]},
        {"splits": {}},
        {"splits": {"1": "1" * 15}},
        {"splits": {"1": "1" * 15 + "4"}},
        {"splits": {"1": "1" * 15 + "\N{SUPERSCRIPT ONE}"}},
        {"splits": {"1\n": "1" * 16}},
        {"splits": [1]},
        {"more": 1},
        "[" * 1000,
    ],
)
def test_a_damaged_overlay_is_refused_with_its_name_and_written_anew(colors, tmp_path, damage):
    path = source(colors, tmp_path).overlay
    whole = path.read_text()
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(whole) | damage))
    with pytest.raises(TrainerError, match="run the study again") as error:
        data.Shards(colors, overlay=path)
    assert str(path) in str(error.value)
    assert source(colors, tmp_path).overlay.read_text() == whole


def test_an_overlay_of_other_shards_is_refused(colors, tmp_path):
    write_colored(tmp_path / "other" / "00000.h5", 16, 24)
    path = source(colors, tmp_path).overlay
    with pytest.raises(TrainerError, match="for other shards"):
        data.Shards(tmp_path / "other", overlay=path)


def test_an_overlay_spans_shards_and_keeps_what_it_does_not_name(colors, tmp_path):
    plain = data.Shards(colors)
    labels = [f"class {i % 3}" if i else "" for i in range(16)]
    path = Overlay(labels, {"mine": np.arange(16, dtype=np.uint8) % 4}).write(tmp_path, "x", plain.readers.digest)
    opened = data.Shards(colors, "mine", overlay=path)
    assert opened.text("videos/label") == labels and opened.targets.tolist() == [-1] + [i % 3 for i in range(1, 16)]
    assert opened.part.tolist() == [0, 1, 2, 3] * 4 and opened.split_names == ("mine",)
    assert opened.text("videos/id") == plain.text("videos/id") and opened.config_hash == plain.config_hash
    with pytest.raises(TrainerError, match="unknown split 'split1'"):
        data.Shards(colors, "split1", overlay=path)


def test_a_study_labels_its_own_videos(tmp_path):
    for name in "ab":
        write_video(tmp_path / "videos" / name / "1.avi", 20)
    options = {"height": 40, "width": 48, "crop": 32, "rows": 2, "paces": [1, 2], "flow": "dis"}
    given = {"dataset": "folder", "root": str(tmp_path / "videos"), "label": options}
    assert data.Shards(label(given, tmp_path / "shards", 1)).classes == ["a", "b"]
    with pytest.raises(ConfigError, match="label: .*magic"):
        label(given | {"label": {"magic": 1}}, tmp_path / "shards", 1)
