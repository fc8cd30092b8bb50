"""The shard: round trip, damage, byte identity."""

import errno
import io
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import cv2
import h5py
import numpy as np
import pytest

from labelgen import shards
from labelgen.errors import ShardError, WriteError
from labelgen.shards import ShardReader, reader
from labelgen.shards.reader import forget
from labelgen.shards.verify import verify
from tests.command import file_size_limit

CONFIG = {
    **{"dataset": "example", "height": 32, "width": 40, "crop": 16, "paces": ["1/2", "2"], "clip_length": 16},
    **{"clips": None, "rows": 2, "order_clips": 2, "allow_wrap": True, "flow": {"backend": "tvl1"}},
}


def example(n_frames=(40, 20), seed=0):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (sum(n_frames), 4, 5, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    encoded = [shards.encode_frame(picture, 90) for picture in pictures]
    decoded = [cv2.imdecode(np.frombuffer(e, np.uint8), cv2.IMREAD_COLOR_RGB) for e in encoded]
    arrays = {
        "frames/offset": np.concatenate([[0], np.cumsum([len(e) for e in encoded])]),
        "frames/time": np.concatenate([np.arange(n) / 25 for n in n_frames]),
        "frames/damage": np.zeros(sum(n_frames)),
        "videos/id": ["a.avi", "Käse/b.avi"],
        "videos/path": ["x/a.avi", "x/Käse/b.avi"],
        "videos/label": ["", "run"],
        "videos/group": ["g1", ""],
        "videos/split": [[1, 3], [0, 2]],
        "videos/first_frame": [0, n_frames[0]],
        "videos/n_frames": n_frames,
        "videos/fps": [25, 30000 / 1001],
        "videos/width": [320, 240],
        "videos/height": [240, 320],
        "clips/video": [0, 0, 1],
        "clips/start": [0, 16, 0],
        "statistics/motion": rng.integers(0, 8, (3, 2, 2, 14)),
        "statistics/appearance": rng.integers(0, 8, (3, 2, 2, 13)),
        "statistics/valid": rng.integers(0, 2, (3, 2, 2, 14)),
        "curriculum/score": [0.5, np.nan, 0.25],
        "pace/start": [[0, 3], [4, 15]],
        "pace/pace": [[0, 1], [0, 1]],
        "pace/wrapped": [[0, 0], [0, 1]],
        "order/start": [[[0, 24], [0, 24]], [[-1, -1], [-1, -1]]],
        "order/permutation": [[0, 1], [shards.NO_ROW, shards.NO_ROW]],
    } | {f"failures/{name}": [name] for name in ("id", "path", "stage", "reason")}
    return arrays, io.BytesIO(b"".join(encoded)), np.stack(decoded)


def write(path, config=CONFIG, **kwargs):
    arrays, jpeg, pictures = example(**kwargs)
    shards.write(path, arrays, jpeg, config, np.array([[0, 0], [8, 8]]), ["1", "2"])
    return arrays, pictures


def test_round_trip(tmp_path):
    arrays, pictures = write(tmp_path / "00000.h5")
    reader = shards.ShardReader(tmp_path / "00000.h5")
    for key, value in arrays.items():
        assert np.array_equal(np.asarray(reader.arrays[key]), np.asarray(value)) or key == "curriculum/score", key
    assert np.array_equal(reader.arrays["curriculum/score"], [0.5, np.nan, 0.25], equal_nan=True)
    assert reader.config == CONFIG and reader.splits == ("1", "2") and reader.paces == (Fraction(1, 2), Fraction(2))
    assert reader.crop_grid.tolist() == [[0, 0], [8, 8]] and (reader.n_videos, reader.n_clips) == (2, 3)
    assert (reader.frames([59, 0, 59]) == pictures[[59, 0, 59]]).all()
    height, width = pictures.shape[1] - 3, pictures.shape[2] - 5
    crops = reader.frames([59, 0, 59], np.empty((3, height, width, 3), np.uint8), (1, 4))
    assert (crops == pictures[[59, 0, 59], 1 : 1 + height, 4 : 4 + width]).all()
    assert reader.clip_frames(1).tolist() == list(range(16, 32)) and reader.clip_frames(2)[0] == 40
    assert reader.pace_frames(0, 1).tolist() == list(range(3, 35, 2))
    assert reader.pace_frames(1, 1).tolist() == [40 + (15 + 2 * i) % 20 for i in range(16)]
    assert reader.order_frames(0, 0)[1].tolist() == list(range(24, 40))
    copy = pickle.loads(pickle.dumps(reader))
    assert (copy.frames([7]) == pictures[7]).all()
    assert [p.name for p in tmp_path.iterdir()] == ["00000.h5"]


def test_a_shard_without_a_kind_says_so(tmp_path):
    arrays, jpeg, _ = example()
    few = {name: values for name, values in arrays.items() if not name.startswith(("pace/", "statistics/"))}
    shards.write(tmp_path / "00000.h5", few, jpeg, CONFIG, np.array([[0, 0], [8, 8]]), ["1", "2"])
    reader = shards.ShardReader(tmp_path / "00000.h5")
    assert [kind.name for kind in reader.kinds] == ["curriculum", "order"] and reader.arrays.keys() == few.keys()
    assert reader.order_frames(0, 0).shape == (2, 16)
    with pytest.raises(ShardError, match="00000.h5: holds no pace/start; label the videos again"):
        reader.pace_frames(0, 0)
    del few["order/start"]
    with pytest.raises(KeyError, match="order/start"):  # a kind is there as a whole
        shards.write(tmp_path / "00001.h5", few, jpeg, CONFIG, np.array([[0, 0], [8, 8]]), ["1", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["00000.h5"]


def test_same_content_gives_the_same_bytes(tmp_path):
    write(tmp_path / "a.h5")
    write(tmp_path / "b.h5")
    write(tmp_path / "c.h5", seed=1)
    a, b, c = (tmp_path.joinpath(f"{name}.h5").read_bytes() for name in "abc")
    assert a == b != c


def test_other_tools_see_plain_hdf5(tmp_path):
    arrays, _ = write(tmp_path / "00000.h5")
    with h5py.File(tmp_path / "00000.h5") as file:
        jpeg = file["frames/jpeg"]
        assert jpeg.chunks is None and jpeg.compression is None and jpeg.dtype == np.uint8
        begin, end = file["frames/offset"][3:5]
        assert cv2.imdecode(jpeg[begin:end], cv2.IMREAD_COLOR).shape == (32, 40, 3)
        assert file["videos/id"].asstr()[1] == "Käse/b.avi" and file.attrs["config_hash"] == shards.config_hash(CONFIG)


def test_a_failed_write_leaves_nothing(tmp_path):
    arrays, jpeg, _ = example()
    (tmp_path / "00000.h5").write_text("what was there before")
    broken = dict(arrays, **{"videos/fps": ["fast", "slow"]})
    with pytest.raises(ValueError):
        shards.write(tmp_path / "00000.h5", broken, jpeg, CONFIG, np.zeros((1, 2)), [])
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there before"]


@pytest.mark.parametrize("damage", ["truncate", "not hdf5", "schema", "missing"])
def test_damage_is_named(tmp_path, damage):
    path = tmp_path / "00000.h5"
    write(path)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "not hdf5":
        path.write_text("hello")
    elif damage == "schema":
        with h5py.File(path, "r+") as file:
            file.attrs["schema_version"] = 99
    else:
        path.unlink()
    with pytest.raises(ShardError, match="00000.h5"):
        shards.ShardReader(path)


def test_open_shards(tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        shards.open_shards(tmp_path / "none")
    (tmp_path / "one").mkdir()
    with pytest.raises(ShardError, match="holds no shards"):
        shards.open_shards(tmp_path)
    for index in range(3):
        write(tmp_path / "one" / f"{index:05d}.h5", seed=index)
    assert [reader.path[-4] for reader in shards.open_shards(tmp_path)] == ["0", "1", "2"]
    write(tmp_path / "one" / "00003.h5", config=CONFIG | {"crop": 24})
    with pytest.raises(ShardError, match="00003.h5 was made with configuration"):
        shards.open_shards(tmp_path / "one")
    (tmp_path / "two").mkdir()
    write(tmp_path / "two" / "00000.h5")
    with pytest.raises(ShardError, match="several data sets; name one of them: .*one, .*two"):
        shards.open_shards(tmp_path)


def test_config_hash_does_not_depend_on_the_order_of_keys():
    assert (
        shards.config_hash({"a": 1, "b": 2})
        == shards.config_hash({"b": 2, "a": 1})
        != shards.config_hash({"a": 1, "b": 3})
    )


def test_a_disk_that_fills_at_any_byte_of_a_shard_is_an_error_and_leaves_nothing(tmp_path):
    """HDF5's library, which dies where it cannot write, never sees it."""
    write(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    for limit in (*range(0, len(whole), len(whole) // 97), len(whole) - 1):
        with file_size_limit(limit), pytest.raises(WriteError, match="cannot be written .File too large"):
            write(tmp_path / "full.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]
    write(tmp_path / "full.h5")
    assert (tmp_path / "full.h5").read_bytes() == whole


def test_a_file_system_without_memory_maps_is_told_once_and_read(tmp_path, monkeypatch, capsys):
    arrays, pictures = write(tmp_path / "00000.h5")
    mapped = ShardReader(tmp_path / "00000.h5")
    expected = {name: np.asarray(mapped.arrays[name]) for name in mapped.arrays if name == "statistics/valid"}
    found = verify(tmp_path)  # what it says of the example's invented labels
    forget()

    def refuse(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(reader.mmap, "mmap", refuse)
    monkeypatch.setattr(reader, "_warned", False)
    for _ in range(2):
        (shard,) = shards.open_shards(tmp_path)
        assert (shard.frames(range(60)) == pictures).all()
        for name, values in expected.items():
            assert (shard.arrays[name][1, 1] == values[1, 1]).all() and (shard.arrays[name][-1] == values[-1]).all()
            assert (shard.arrays[name][[2, 0]] == values[[2, 0]]).all() and (
                np.asarray(shard.arrays[name]) == values
            ).all()
            with pytest.raises(IndexError):
                shard.arrays[name][3]
    assert verify(tmp_path) == found
    write(tmp_path / "00001.h5")  # and reads it again
    told = capsys.readouterr().err
    assert told == f"warning: {tmp_path}: this file system has no memory maps: shards are read more slowly\n"
    forget()


def test_threads_share_a_reader(tmp_path):
    """One thread meets a picture that is refused, the others sound ones, of two kinds of header."""
    arrays, _, pictures = example()
    encoded = [shards.encode_frame(picture, 90 if at % 2 else 60) for at, picture in enumerate(pictures)]
    encoded[0] = cv2.imencode(".jpg", pictures[0], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    arrays["frames/offset"] = np.cumsum([0, *map(len, encoded)])
    shards.write(
        tmp_path / "0.h5", arrays, io.BytesIO(b"".join(encoded)), CONFIG, np.array([[0, 0], [8, 8]]), ["1", "2"]
    )
    shard = ShardReader(tmp_path / "0.h5")
    good = {at: cv2.imdecode(np.frombuffer(encoded[at], np.uint8), cv2.IMREAD_COLOR_RGB) for at in range(1, 8)}
    wrong = []

    def look(first):
        sys.settrace(switching)  # ends with the thread
        for step in range(200):
            at = (first + step) % 8
            try:
                seen = shard.frames([at])[0]
            except ShardError:
                seen = None
            if seen is not None if at == 0 else seen is None or (seen != good[at]).any():
                wrong.append(at)

    def switching(frame, event, _):
        """Another thread's turn at every line of the reader."""
        if frame.f_code.co_filename != reader.__file__:
            return None
        time.sleep(0)
        return switching

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(8)))
    assert not wrong
