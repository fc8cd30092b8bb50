"""`shards info` and `verify`: sound shards are described, every kind of damage is found and named."""

import shutil

import h5py
import numpy as np
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.errors import ShardError
from labelgen.manifest import load
from labelgen.shards import ShardReader, config_hash, open_shards
from labelgen.shards.describe import describe
from labelgen.shards.verify import verify
from tests.labelgen.synthetic import write_video


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Three shards of two videos; the second of the last shard is none."""
    root, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("sound")
    for index, n_frames in enumerate((70, 20, 64, 12, 80)):
        write_video(root / "train" / f"{index}.mp4", n_frames, index)
    (root / "train" / "9.mp4").write_text("no video")
    (root / "folder.yaml").write_text("name: folder\nsplits: {folder: 1}")
    data = load(str(root / "folder.yaml"), root)
    run.run(data, data.videos, out, Config(height=40, width=48, crop=32, rows=4), 1, 2)
    return out / "folder"


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "folder")


def problems(folder):
    """The problems without the folder's name; there are always three shards."""
    count, found = verify(folder)
    assert count == 3
    return [line.replace(f"{folder}/", "") for line in found]


def change(folder, key, value, at=...):
    """Overwrite a part of a data set of the second shard in place."""
    with h5py.File(folder / "00001.h5", "r+") as file:
        file[key][at] = value


LABELS_CHANGED = "00001.h5: the labels are not those that were written (SHA-256)"


def test_sound_shards_have_no_problem(sound):
    assert verify(sound) == (3, []) == verify(sound.parent)


@pytest.mark.parametrize(
    ("key", "at", "value", "named"),
    [
        ("frames/offset", 5, 1, "frames/offset does not grow from 0"),
        ("frames/offset", 0, 1, "frames/offset does not grow from 0"),
        ("videos/split", (0, 0), 4, "videos/split is out of range"),
        ("videos/n_frames", 0, 0, "frames/offset is int64 (77,), expected int64 (13,)"),
        ("videos/first_frame", 1, 3, "videos/first_frame is out of range"),
        ("clips/video", 0, 2, "clips/video is out of range"),
        ("clips/video", 0, -1, "clips/video is out of range"),
        ("clips/start", 0, -1, "clips/start is out of range"),
        ("clips/start", 3, 49, "clips/start is out of range"),
        ("statistics/motion", (0, 0, 0, 0), 16, "statistics/motion is out of range"),
        ("statistics/motion", (0, 0, 1, 4), 4, "statistics/motion is out of range"),
        ("statistics/motion", (0, 0, 1, 5), 8, "statistics/motion is out of range"),
        ("statistics/motion", (0, 0, 1, 13), 15, "statistics/motion is out of range"),
        ("statistics/valid", (0, 0, 0, 0), 2, "statistics/valid is out of range"),
        ("statistics/appearance", (0, 0, 0, 8), 8, "statistics/appearance is out of range"),
        ("statistics/appearance", (0, 0, 0, 12), 8, "statistics/appearance is out of range"),
        ("curriculum/score", 0, 1.5, "curriculum/score is out of range"),
        ("curriculum/score", 0, 0.01, "curriculum/score is out of range"),
        ("pace/pace", (0, 0), 4, "pace/pace is out of range"),
        ("pace/pace", (0, 0), 255, "pace/pace is out of range"),
        ("pace/start", (0, 0), -1, "pace/start is out of range"),
        ("pace/start", (0, 0), 50, "pace/start is out of range"),
        ("pace/start", (1, 0), 0, "pace/start is out of range"),
        ("pace/wrapped", (0, 0), 1, "pace/wrapped is out of range"),
        ("order/permutation", (0, 0), 6, "order/permutation is out of range"),
        ("order/start", (0, 0, 2), 49, "order/start is out of range"),
        ("order/start", (0, 0, 1), 10, "order/start is out of range"),
        ("order/start", (1, 0, 0), 0, "order/start is out of range"),
        ("videos/label", 0, b"left", None),
    ],
)
def test_every_changed_value_is_found_and_named(folder, key, at, value, named):
    change(folder, key, value, at)
    found = problems(folder)
    assert LABELS_CHANGED in found
    assert len(found) == 1 if named is None else f"00001.h5: {named}" in found


def test_a_label_within_its_range_is_told_by_the_hash(folder):
    reader = ShardReader(folder / "00001.h5")
    change(folder, "statistics/motion", (reader.arrays["statistics/motion"][0, 0, 0, 0] + 1) % 16, (0, 0, 0, 0))
    assert problems(folder) == [LABELS_CHANGED]


def test_changed_bytes_of_a_frame(folder):
    start, stop = ShardReader(folder / "00001.h5").arrays["frames/offset"][3:5]
    change(folder, "frames/jpeg", 0, slice(start, stop))
    assert problems(folder) == [
        "00001.h5: the frames are not those that were written (SHA-256)",
        "00001.h5: frame 3 does not decode to (40, 48)",
    ]


def test_one_bit_of_a_frame(folder):
    middle = int(ShardReader(folder / "00001.h5").arrays["frames/offset"][3:5].mean())
    with h5py.File(folder / "00001.h5", "r+") as file:
        file["frames/jpeg"][middle] ^= 1
    assert "00001.h5: the frames are not those that were written (SHA-256)" in problems(folder)


@pytest.mark.parametrize("name", ["frames", "labels"])
def test_wrong_hash(folder, name):
    with h5py.File(folder / "00001.h5", "r+") as file:
        holder, attribute = (file["frames"], "sha256") if name == "frames" else (file, "labels_sha256")
        holder.attrs[attribute] = "0" * 64
    assert problems(folder) == [f"00001.h5: the {name} are not those that were written (SHA-256)"]


def test_wrong_configuration(folder):
    with h5py.File(folder / "00001.h5", "r+") as file:
        true = str(file.attrs["config_hash"])
        file.attrs["config"] = file.attrs["config"].replace('"rows": 4', '"rows": 5')
        file.attrs["crop_grid"] = np.zeros((1, 2), np.int16)
    first, second = problems(folder)
    assert first == f"00001.h5: the configuration does not have its hash {true}"
    assert second.startswith("00001.h5 was made with configuration") and f"00000.h5 with {true}" in second


def test_wrong_crop_grid(folder):
    with h5py.File(folder / "00001.h5", "r+") as file:
        file.attrs["crop_grid"] = file.attrs["crop_grid"][::-1]
    assert problems(folder) == ["00001.h5: crop_grid is out of range"]


@pytest.mark.parametrize("key", ["clips/start", "pace/wrapped", "failures/reason"])
def test_missing_data_set(folder, key):
    with h5py.File(folder / "00001.h5", "r+") as file:
        del file[key]
    assert problems(folder) == [f"00001.h5: not a whole shard, without {key}; delete it and run labelgen again"]


def test_missing_attribute(folder):
    with h5py.File(folder / "00001.h5", "r+") as file:
        del file.attrs["crop_grid"]
    assert problems(folder) == ["00001.h5: not a whole shard, without crop_grid; delete it and run labelgen again"]


@pytest.mark.parametrize(("key", "shape"), [("pace/start", (2, 3)), ("statistics/appearance", (4, 2, 2, 13))])
def test_wrong_shape_or_type(folder, key, shape):
    with h5py.File(folder / "00001.h5", "r+") as file:
        true = file[key].shape
        del file[key]
        file.create_dataset(key, data=np.zeros(shape, np.float32))
    expected = np.int32 if key == "pace/start" else np.uint8
    found = problems(folder)
    assert f"00001.h5: {key} is float32 {shape}, expected {expected.__name__} {true}" in found


def test_truncated_empty_and_foreign_files_do_not_end_the_search(folder):
    whole = (folder / "00000.h5").read_bytes()
    (folder / "00000.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "00001.h5").write_bytes(b"")
    change_last = ShardReader(folder / "00002.h5").arrays["statistics/motion"]
    with h5py.File(folder / "00002.h5", "r+") as file:
        file["statistics/motion"][...] = 15 - change_last
    found = problems(folder)
    assert found[0].startswith("00000.h5: not a readable shard (") and "truncated file" in found[0]
    assert found[1].startswith("00001.h5: not a readable shard (")
    assert found[2:] == [
        "00002.h5: the labels are not those that were written (SHA-256)",
        "00002.h5: statistics/motion is out of range",
    ]


def test_missing_and_foreign_shards(folder):
    (folder / "00001.h5").unlink()
    assert verify(folder)[1] == [
        f"{folder}: 2 of 3 shards are there; run the same `vssl labelgen` command again to finish"
    ]
    shutil.copy(folder / "00000.h5", folder / "00001.h5")
    with h5py.File(folder / "00001.h5", "r+") as file:
        file.attrs["config"] = file.attrs["config"].replace('"seed": 0', '"seed": 1')
        file.attrs["config_hash"] = config_hash(ShardReader(folder / "00000.h5").config | {"seed": 1})
    (found,) = problems(folder)
    assert found.startswith("00001.h5 was made with configuration")
    (folder / "empty").mkdir()
    with pytest.raises(ShardError, match="holds no shards"):
        verify(folder / "empty")


def test_description(sound):
    text = describe(open_shards(sound))
    assert (
        "folder: 3 shards" in text
        and "videos 5, frames 246" in text
        and "failures 1\n  train/9.mp4: decode: " in text
        and "(00002.h5)\n" in text
    )
    assert "pace           % of each id:" in text and "; 2 videos too short" in text
    assert "p_u grid" in text and "C              % of each id:" in text and "jpeg_quality=90" in text
    shares = [line.split(":")[1].split() for line in text.splitlines() if line.startswith("o_v rings")]
    assert len(shares[0]) == 8 and sum(map(float, shares[0])) == pytest.approx(100, abs=4)
