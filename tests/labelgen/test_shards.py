"""The shard: round trip, damage, byte identity."""

import io
import pickle
from fractions import Fraction

import cv2
import h5py
import numpy as np
import pytest

from labelgen import shards
from labelgen.errors import ShardError
from labelgen.shards.reader import forget

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


def test_a_changed_frame_changes_the_digest(tmp_path):
    path = tmp_path / "00000.h5"
    write(path)
    reader = shards.ShardReader(path)
    assert reader.now_sha256() == reader.sha256
    with h5py.File(path, "r+") as file:
        file["frames/jpeg"][100] ^= 1
    forget()
    assert [what for what, digest in reader.now_sha256().items() if digest != reader.sha256[what]] == ["frames"]


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
