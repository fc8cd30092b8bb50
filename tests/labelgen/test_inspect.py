"""`shards info` and `verify`: sound shards are described, every kind of damage is found and named."""

import shutil
from contextlib import nullcontext

import h5py
import numpy as np
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.errors import ShardError
from labelgen.manifest import load
from labelgen.shards import ShardReader, config_hash, open_shards
from labelgen.shards.describe import describe
from labelgen.shards.hdf5 import Viewer
from labelgen.shards.verify import verify
from tests.labelgen.forging import forge, reseal
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


@pytest.fixture(scope="module", autouse=True)
def viewer():
    """One process for all tests that looks at HDF5 files."""
    with Viewer() as viewer, pytest.MonkeyPatch.context() as patched:
        patched.setattr("labelgen.shards.verify.Viewer", lambda: nullcontext(viewer))
        yield viewer


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


LABELS_CHANGED = "00001.h5: the labels were changed after writing (SHA-256)"


def test_sound_shards_have_no_problem(sound):
    assert verify(sound) == (3, []) == verify(sound.parent)


@pytest.mark.parametrize(
    ("key", "at", "value", "named"),
    [
        ("frames/offset", 5, 1, "frames/offset does not grow from 0"),
        ("frames/offset", 0, 1, "frames/offset does not grow from 0"),
        ("videos/split", (0, 0), 4, "videos/split is out of range"),
        ("videos/n_frames", 0, 0, "videos/n_frames does not add up to 76 frames"),
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
        ("clips/start", 3, 2**31 - 1, "clips/start is out of range"),
        ("order/start", (0, 0, 2), 2**31 - 1, "order/start is out of range"),
        ("pace/start", (0, 0), 2**31 - 1, "pace/start is out of range"),
        ("videos/fps", 0, np.nan, "videos/fps is out of range"),
        ("videos/height", 0, -1, "videos/height is out of range"),
        ("videos/id", 0, b"../up.mp4", "videos/id has '../up.mp4', expected a path below the folder of the videos"),
        (
            "videos/path",
            0,
            b"/etc/up.mp4",
            "videos/path has '/etc/up.mp4', expected a path below the folder of the videos",
        ),
        ("videos/label", 0, b"\x1b[2J", "videos/label has the control character '\\x1b'"),
        ("videos/label", 0, b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_every_changed_value_is_found_and_named(folder, key, at, value, named):
    """What could lead a reader astray keeps the shard from being opened, what is only wrong is found by verify."""
    change(folder, key, value, at)
    found = problems(folder)
    if named is None:
        assert found == [LABELS_CHANGED]
    elif key.startswith("statistics"):
        assert found == [LABELS_CHANGED, f"00001.h5: {named}"]
    else:
        (line,) = found
        assert line.startswith("00001.h5: not a readable shard (") and named in line


def test_a_label_within_its_range_is_told_by_the_hash(folder):
    reader = ShardReader(folder / "00001.h5")
    change(folder, "statistics/motion", (reader.arrays["statistics/motion"][0, 0, 0, 0] + 1) % 16, (0, 0, 0, 0))
    assert problems(folder) == [LABELS_CHANGED]


def test_changed_bytes_of_a_frame(folder):
    start, stop = ShardReader(folder / "00001.h5").arrays["frames/offset"][3:5]
    change(folder, "frames/jpeg", 0, slice(start, stop))
    assert problems(folder) == [
        "00001.h5: the frames were changed after writing (SHA-256)",
        "00001.h5: frame 3 does not decode to (40, 48); run labelgen again",
    ]


def test_one_bit_of_a_frame(folder):
    middle = int(ShardReader(folder / "00001.h5").arrays["frames/offset"][3:5].mean())
    with h5py.File(folder / "00001.h5", "r+") as file:
        file["frames/jpeg"][middle] ^= 1
    assert "00001.h5: the frames were changed after writing (SHA-256)" in problems(folder)


@pytest.mark.parametrize("name", ["frames", "labels", "rest"])
def test_wrong_hash(folder, name):
    forge(folder / "00001.h5", lambda shared, own: own["sha256"].update({name: "0" * 64}))
    what = (
        "its HDF5 structure was changed after writing" if name == "rest" else f"the {name} were changed after writing"
    )
    assert problems(folder) == [f"00001.h5: {what} (SHA-256)"]


def test_wrong_configuration(folder):
    forge(folder / "00001.h5", lambda shared, own: shared["config"].update(seed=5))
    true = ShardReader(folder / "00000.h5").config_hash
    (found,) = problems(folder)
    assert (
        found.startswith("00001.h5: not a readable shard (its configuration has the hash ")
        and f", not {true})" in found
    )


def test_wrong_crop_grid(folder):
    forge(folder / "00001.h5", lambda shared, own: shared["crop_grid"].reverse())
    assert problems(folder) == [
        "00001.h5: its HDF5 structure has other attributes of /",
        "00001.h5: crop_grid differs from that of its configuration",
        "00001.h5 has other splits or crops than 00000.h5; label one of the two into another folder",
    ]


@pytest.mark.parametrize("key", ["clips/start", "pace/wrapped", "failures/reason", "frames/jpeg"])
def test_missing_data_set(folder, key):
    forge(folder / "00001.h5", lambda shared, own: own["datasets"].pop(key))
    assert problems(folder) == [f"00001.h5: not a readable shard (without {key}); delete it and run labelgen again"]


@pytest.mark.parametrize("key", ["crop_grid", "config", "versions"])
def test_missing_attribute(folder, key):
    forge(folder / "00001.h5", lambda shared, own: shared.pop(key))
    assert problems(folder) == [f"00001.h5: not a readable shard (it has no {key}); delete it and run labelgen again"]


@pytest.mark.parametrize(("key", "shape"), [("pace/start", [2, 3]), ("statistics/appearance", [4, 2, 2, 13])])
def test_wrong_shape_or_type(folder, key, shape):
    true = ShardReader(folder / "00001.h5").arrays[key]
    forge(folder / "00001.h5", lambda shared, own: own["datasets"][key].__setitem__(slice(0, 2), ["<f4", shape]))
    (found,) = problems(folder)
    assert f"({key} is <f4 {tuple(shape)}, expected {true.dtype.str} {true.shape})" in found


def test_what_other_programs_see_is_what_the_header_says(folder):
    def exchange(shared, own):
        sets = own["datasets"]
        sets["videos/width"], sets["videos/height"] = sets["videos/height"], sets["videos/width"]

    forge(folder / "00001.h5", exchange)
    reseal(folder / "00001.h5")
    assert problems(folder) == ["00001.h5: its HDF5 structure has other data sets: videos/height, videos/width"]


def test_truncated_empty_and_foreign_files_do_not_end_the_search(folder):
    whole = (folder / "00000.h5").read_bytes()
    (folder / "00000.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "00001.h5").write_bytes(b"")
    change_last = ShardReader(folder / "00002.h5").arrays["statistics/motion"]
    with h5py.File(folder / "00002.h5", "r+") as file:
        file["statistics/motion"][...] = 15 - change_last
    found = problems(folder)
    assert (
        f"00000.h5: not a readable shard (it has {len(whole) // 2:,} bytes, but {len(whole):,} were written)"
        in found[0]
    )
    assert found[1].startswith("00001.h5: not a readable shard (not a shard of schema 4: an older version")
    assert found[2:] == [
        "00002.h5: the labels were changed after writing (SHA-256)",
        "00002.h5: statistics/motion is out of range",
    ]


def test_missing_and_foreign_shards(folder):
    (folder / "00001.h5").unlink()
    assert verify(folder)[1] == [
        f"{folder}: 2 of 3 shards are done; run the same `vssl labelgen` command again to finish"
    ]
    shutil.copy(folder / "00000.h5", folder / "00001.h5")

    def other_seed(shared, own):
        shared["config"]["seed"] = 1
        shared["config_hash"] = config_hash(shared["config"])

    forge(folder / "00001.h5", other_seed)
    structure, found = problems(folder)
    assert structure == "00001.h5: its HDF5 structure has other attributes of /"
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
