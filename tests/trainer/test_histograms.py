"""What is known without a network: what moves where, what moves apart from its surroundings, and colours."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from labelgen.labels.boundaries import motion_boundaries
from tests.command import vssl
from tests.labelgen.synthetic import write_video
from trainer import data, histograms
from trainer.histograms import histogram, of_times


def shifted(seed):
    """A flow that differs from pair to pair, and is the same for the same seed."""
    rng = np.random.default_rng(seed)
    fields = iter([rng.normal(size=(32, 32, 2)).astype(np.float32) for _ in range(8)])
    return lambda first, second: next(fields)


def test_boundaries_are_those_of_labelgen_by_direction_and_cell():
    flow = shifted(0)(0, 0)
    found = of_times(np.zeros((2, 32, 32, 3), np.uint8), ["boundary"], lambda *_: flow)["boundary"][0].reshape(2, 16, 8)
    derivatives = motion_boundaries(flow).reshape(2, 2, 32, 32)
    expected = np.zeros((2, 16, 8))
    for component, (x, y) in enumerate(derivatives):  # one pixel after the other
        for row, column in np.ndindex(32, 32):
            angle = np.arctan2(-y[row, column], x[row, column]) % (2 * np.pi)
            cell = row // 8 * 4 + column // 8
            expected[component, cell, int(angle / (np.pi / 4)) % 8] += np.hypot(x[row, column], y[row, column])
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_moving_camera_has_flow_and_no_boundaries():
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    values = {
        kind: histogram(frames, kind, lambda *_: np.full((32, 32, 2), 3, np.float32)) for kind in histograms.KINDS
    }
    assert {kind: len(value) for kind, value in values.items()} == {
        "flow": 1920,
        "boundary": 3840,
        "colour": 960,
        "still": 128,
    }
    assert not values["boundary"].any() and np.linalg.norm(values["flow"]) == pytest.approx(15**0.5)


def test_parts_of_time_are_the_whole_its_halves_quarters_and_eighths():
    times = np.eye(8)[:, :8] * np.arange(1, 9)
    parts = histograms.pyramid(times).reshape(15, 8) ** 2
    assert parts[0] == pytest.approx(np.arange(1, 9) / 36)
    assert parts[1, :4] == pytest.approx(np.arange(1, 5) / 10) and not parts[1, 4:].any()
    assert parts[3, :2] == pytest.approx([1 / 3, 2 / 3]) and parts[7:] == pytest.approx(np.eye(8))
    assert not histograms.pyramid(np.zeros((0, 5))).any()


def test_colours_are_counted():
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    frames[0, 0] = 255, 64, 0
    found = of_times(frames, ["colour"], None)["colour"][0]
    assert found[0] == 12 and found[3 * 16 + 1 * 4] == 4 and found.sum() == 16


def test_edges_of_the_frame_in_the_middle_by_hand():
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[2, 12:20, 16:] = 255  # a bar in the middle frame: an edge on its left, one above, one below
    found = histogram(frames, "still", None).reshape(4, 4, 8) ** 2
    assert found.sum() == pytest.approx(1) and not found[0].any() and not found[3].any()
    assert found[1, 3, 6] == pytest.approx(found[2, 3, 2]) and found[1, 3, 6] > 0.05  # brighter downwards, upwards
    assert (found[1:3, 2:, [0, 1, 2, 6, 7]].sum() + found[1:3, 1].sum()) == pytest.approx(1)
    assert not histogram(np.delete(frames, 2, 0), "still", None).any()


@pytest.mark.parametrize(
    "name", ["flow-histogram", "boundary-histogram", "colour-histogram", "still-histogram", "random:resnet18"]
)
def test_tables_without_any_training_are_searched(name, demo, here):
    common = ("--weights", name, "--shards", demo, "--workers", 0)
    vssl("embed", *common, "--out", "clips.parquet")
    clips = pq.read_table("clips.parquet")
    assert len(clips) > 13 and np.isfinite(np.array(clips["vector"].to_pylist())).all()
    vssl("embed", *common, "--level", "video", "--out", "videos.parquet")
    videos = pq.read_table("videos.parquet")
    assert len(videos) == 13
    if name == "colour-histogram":  # of the whole first video, by hand
        reader = data.Shards(demo).readers[0]
        for table, length in ((videos, 64), (clips, 16)):
            expected = histogram(reader.frames(np.arange(length)), "colour", None)
            assert np.allclose(table["vector"][0].as_py(), expected, atol=1e-6)


def test_unknown_names_say_what_there_is(demo, here):
    assert "unknown backbone 'r9d'" in vssl("embed", "--weights", "random:r9d", "--shards", demo, code=2)


def test_a_part_of_a_video_is_found_by_what_moves(here):
    for name, step in (("right", 2), ("left", -2), ("still", 0)):
        write_video(here / "videos" / f"{name}.mp4", 40, step=step)
    write_video(here / "query.mp4", 40, seed=5, step=-2)  # another texture
    told = vssl("embed", "--weights", "flow-histogram", "--videos", "videos", "--workers", 1)
    assert "1920 values each, flow of flow-histogram" in told
    assert "left.mp4" in vssl("search", "query.mp4", "--count", 1, "--workers", 1)
