"""A fixed sample of what tests/soak_shards.py does in numbers, and each guard by itself."""

import shutil
from contextlib import nullcontext

import cv2
import numpy as np
import pytest

from labelgen.errors import ShardError
from labelgen.shards import ShardReader, config_hash, open_shards
from labelgen.shards.checks import escaped
from labelgen.shards.hdf5 import Viewer
from labelgen.shards.jpeg import header
from labelgen.shards.verify import verify
from tests.command import vssl
from tests.labelgen import forging
from tests.soak_shards import SECRET, read_all
from trainer.data import Shards


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A sound data set, a text and a pipe; one process for all tests looks at HDF5 files."""
    home = tmp_path_factory.mktemp("hostile")
    forging.sound(home / "sound")
    (home / "secret").write_text(f"{SECRET}\n" * 100)
    forging.os.mkfifo(home / "pipe")
    with Viewer() as viewer, pytest.MonkeyPatch.context() as patched:
        patched.setattr("labelgen.shards.verify.Viewer", lambda: nullcontext(viewer))
        yield home


@pytest.fixture
def path(home, tmp_path):
    """The first of two sound shards."""
    return shutil.copytree(home / "sound", tmp_path / "demo") / "00000.h5"


def test_a_sound_data_set_is_sound(path):
    said, readable, whole = read_all(path.parent, path.parent.parent)
    assert readable and whole and "2 shards are undamaged" in said and '"order"' in said


@pytest.mark.parametrize("name", [*forging.crafted(None, None)])
def test_crafted_files_are_refused_and_nothing_of_them_is_followed(home, path, name):
    forging.crafted(home / "secret", home / "pipe")[name](path)
    said, readable, whole = read_all(path.parent, None, ["pace"])
    assert not whole and SECRET not in said and "\x1b" not in said
    if not readable:
        assert f"Error: {path}: not a readable shard" in said
    else:  # what the header names is there; verify tells that other programs see something else
        assert f"{path}: its HDF5 structure has" in said


def test_the_crafted_files_have_sound_headers(home, path):
    """Or they would be refused for another reason than their content."""
    forging.crafted(home / "secret", home / "pipe")["external storage"](path)
    reader = ShardReader(path)
    assert reader.now_sha256() == reader.sha256 and reader.arrays["videos/label"] == ("swim", "walk", "swim")
    assert verify(path.parent)[1] == [f"{path}: its HDF5 structure has a data set that is not contiguous in the file"]


@pytest.mark.parametrize("where", ["header", "hdf5", "labels", "frames"])
def test_a_flipped_bit_is_found(path, where):
    forging.flip(path, where, np.random.default_rng(0))
    assert not read_all(path.parent, None, ["statistics"])[2]


@pytest.mark.parametrize("seed", range(3))
def test_a_structured_mutant_ends_in_an_error_that_says_so(path, seed):
    forging.mutate(path, np.random.default_rng(seed))
    read_all(path.parent, path.parent.parent, ["statistics", "pace", "order"])


def test_not_a_byte_beside_header_and_arrays_is_needed(path):
    stored, content = ShardReader(path).header.stored.values(), bytearray(path.read_bytes())
    kept = bytes(content)
    content[ShardReader(path).header.length :] = bytes(len(content) - ShardReader(path).header.length)
    for array in stored:
        content[array.offset : array.offset + array.nbytes] = kept[array.offset : array.offset + array.nbytes]
    path.write_bytes(content)
    reader = ShardReader(path)
    assert len(reader.frames(reader.clip_frames(0))) == 16
    assert verify(path.parent)[1] == [f"{path}: its HDF5 structure was changed after writing (SHA-256)"]


def test_pictures_are_looked_at_before_they_are_decoded(path, monkeypatch):
    reader = ShardReader(path)
    jpeg = reader.jpeg(0).tobytes()
    length, size = header(jpeg)
    assert size == (40, 48)
    assert jpeg[:length].endswith(b"\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00")  # of a scan of three components
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (40, 48, 3)
    for picture in forging.pictures(np.random.default_rng(0)):
        assert header(picture)[1] != (40, 48)
    forging.overwrite(path, "frames/jpeg", next(forging.pictures(np.random.default_rng(0)))[: len(jpeg)])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ShardError, match="frame 0 does not decode to"):
        ShardReader(path).frames([0])


def test_labels_that_are_read_as_needed_are_checked_then(path):
    reader = ShardReader(path)
    forging.overwrite(path, "statistics/motion", b"\x10")
    assert reader.arrays["statistics/motion"][1].shape == (3, 2, 14)
    for index in (0, (0, 0, 0), slice(2), ..., (..., 0)):
        with pytest.raises(ShardError, match="statistics/motion is out of range"):
            reader.arrays["statistics/motion"][index]


def test_a_file_that_was_exchanged_is_told(path):
    reader = ShardReader(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match="the file was replaced after it was opened"):
        reader.jpeg(0)


@pytest.mark.parametrize("name", ["../../../up", "/tmp/up", "a/../../up", ""])
def test_an_id_does_not_lead_out_of_the_folder_for_pictures(path, name):
    forging.overwrite(
        path, "videos/id", name.encode().ljust(4, b"\0")[: ShardReader(path).header.stored["videos/id"].itemsize]
    )
    stored = ShardReader(path.parent / "00001.h5").arrays["videos/id"]
    assert len(stored) == 1
    told = vssl("show", "labels", "--shards", path.parent, "--out", path.parent / "out" / "x", code=1)
    assert "expected a path below the folder of the videos" in told
    assert not (path.parent / "out").exists()


def test_shards_of_other_splits_are_not_mixed(path):
    forging.forge(path, lambda shared, own: shared.update(splits=["other"]))
    with pytest.raises(ShardError, match="00001.h5 has other splits or crops than .*00000.h5"):
        open_shards(path.parent)


def test_data_sets_of_other_crops_are_not_joined(home, path):
    def other_crops(shared, own):
        shared["crop_grid"].reverse()
        shared["config"]["dataset"] = "other"
        shared["config_hash"] = config_hash(shared["config"])

    for name in ("00000.h5", "00001.h5"):
        forging.forge(path.parent / name, other_crops)
    with pytest.raises(ShardError, match="00000.h5 and .*/sound/00000.h5 have different crops"):
        Shards([home / "sound", path.parent])


def test_control_characters_are_written_as_escapes():
    assert escaped("a\x1b[2J\nb\x7f\x9b é") == "a\\x1b[2J\\nb\\x7f\\x9b é"
