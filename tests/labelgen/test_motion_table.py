"""How much moves in each clip: by hand, in shards, and as a table."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from labelgen.labels.amount import COLUMNS, amounts
from labelgen.labels.clip import clip_of_frames
from labelgen.shards import open_shards
from labelgen.shards.verify import verify
from tests.command import vssl
from tests.labelgen.synthetic import write_video


def test_amounts_by_hand():
    flows, boundaries = np.zeros((2, 2, 5, 2), np.float32), np.zeros((2, 4, 2, 5), np.float32)
    assert amounts(flows, boundaries).tolist() == [0, 0, 0, 0, 0, 0, 1]
    flows[0, 0] = [3, 4]  # 5 of 20 pixels move by 5
    flows[1, 0, 0] = [0, 0.05]  # hardly
    boundaries[1, :, 1] = 0.5  # 5 of 20 have 1
    found = dict(zip(COLUMNS, amounts(flows, boundaries).tolist(), strict=True))
    assert found == pytest.approx(
        {"flow_mean": 1.2525, "flow_median": 0, "flow_95": 5, "boundary_mean": 0.25, "boundary_median": 0,
         "boundary_95": 1, "static": 0.75}
    )  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_video(root / "videos" / "fast" / "a.mp4", 40, 1, step=3)
    write_video(root / "videos" / "still" / "=b.mp4", 40, 2, step=0)
    options = ("--height", 48, "--width", 64, "--crop", 32, "--videos-per-shard", 1)
    told = vssl("labelgen", root / "videos", "--out", root / "out", *options, "--motion", root / "motion.csv")
    assert "motion.csv: motion of 4 clips" in told
    return root, options


def test_the_table_is_what_the_shards_hold(labelled):
    root, options = labelled
    with open(root / "motion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["fast/a.mp4"] * 2 + ["still/=b.mp4"] * 2
    assert [(row["label"], row["frame"], row["start"], row["end"]) for row in rows[:2]] == [
        ("fast", "0", "0", "0.64"), ("fast", "16", "0.64", "1.28"),
    ]  # fmt: skip
    fast, still = ({name: float(row[name]) for name in COLUMNS} for row in (rows[0], rows[2]))
    assert 0.8 < fast["flow_mean"] < 2.5 and fast["static"] < 0.3 and fast["flow_95"] >= fast["flow_median"]
    assert still["static"] > 0.8 and still["flow_95"] < 0.5 < fast["flow_median"]
    shards = open_shards(root / "out")
    stored = np.concatenate([shard.arrays["amount/motion"] for shard in shards])
    np.testing.assert_allclose([[float(row[name]) for name in COLUMNS] for row in rows], stored, rtol=1e-4, atol=1e-6)
    clip = clip_of_frames(shards[0].frames(shards[0].clip_frames(0)), "tvl1")
    np.testing.assert_allclose(stored[0], amounts(np.stack(clip.flows), clip.boundaries), rtol=0.1, atol=0.02)  # JPEG
    assert verify(root / "out")[1] == [] and "motion, medians of clips" in vssl("shards", "info", root / "out")


def test_parquet_and_the_same_command_again(labelled):
    root, options = labelled
    told = vssl("labelgen", root / "videos", "--out", root / "out", *options, "--motion", root / "m.parquet")
    assert "2 of 2 shards are done" in told
    table = pq.read_table(root / "m.parquet").to_pydict()
    with open(root / "motion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(table) == list(rows[0]) and table["id"] == [row["id"] for row in rows]
    np.testing.assert_allclose(table["flow_mean"], [float(row["flow_mean"]) for row in rows], rtol=1e-4)
    assert table["start"] == pytest.approx([0, 0.64] * 2)


def test_shards_without_it_are_what_they_were(labelled, tmp_path):
    root, options = labelled
    command = ("labelgen", root / "videos", "--out", tmp_path, *options)
    vssl(*command)
    (plain, _), (with_motion, _) = open_shards(tmp_path), open_shards(root / "out")
    assert [kind.name for kind in plain.kinds] == ["statistics", "curriculum", "pace", "order"]
    assert "amount" not in plain.config["labels"] and "amount/motion" not in plain.arrays
    for name, values in plain.arrays.items():
        if isinstance(values, tuple):
            assert values == with_motion.arrays[name]
        else:
            np.testing.assert_array_equal(np.asarray(values), np.asarray(with_motion.arrays[name]))
    assert "labels amount version: None there" in vssl(*command, "--motion", tmp_path / "m.csv", code=1)
    refused = vssl(*command, "--motion", tmp_path / "m.txt", code=2)
    assert "expected the name of a table that ends in .csv or .parquet" in refused
