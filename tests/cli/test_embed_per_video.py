"""`vssl embed --npy per-video` and `--crops 10`, and `vssl search` by several examples."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.cli.tables import LENGTHS, columns
from tests.command import vssl
from trainer.embeddings.sheets import link
from trainer.embeddings.table import Table, write_npy_per_video, write_part
from trainer.errors import TrainerError


def test_a_file_of_each_video(here):
    """Clips one after the other, with their times; the same command writes again what is lost."""
    told = vssl("embed", "--videos", "videos", "--npy", "per-video")
    assert "features-per-video: 5 videos" in told
    vectors, own = columns("features.parquet")
    for name, length in {**LENGTHS, "copy.mp4": 64}.items():
        rows = [row for row, id in enumerate(own["id"]) if id == name]
        path = Path("features-per-video", name).with_suffix(".npy")
        stored = np.load(path)
        assert stored.dtype == np.float32 and stored.shape == (max(1, length // 16), vectors.shape[1])
        np.testing.assert_array_equal(stored, vectors[rows])
        with open(path.with_suffix(".csv"), newline="") as file:
            times = [(float(row["start"]), float(row["end"])) for row in csv.DictReader(file)]
        assert times == [(own["start"][row], own["end"][row]) for row in rows]
    assert np.array(times) == pytest.approx(np.arange(4)[:, None] * 16 / 25 + np.array([0, 16 / 25]))  # stride 16
    path.unlink()
    assert "up to date" in vssl("embed", "--videos", "videos", "--npy", "per-video")
    assert np.array_equal(np.load(path), stored)
    assert "views adjacent, not sliding" in vssl("embed", "--videos", "videos", code=1)
    refused = vssl("embed", "--videos", "videos", "--npy", "per-video", "--level", "video", code=2)
    assert "leave --level video out" in refused


def test_ten_crops(here):
    """Four corners and the centre, and these mirrored: the fifth is what one crop gives."""
    video = ("--videos", "videos/near/b.mp4", "--npy", "per-video")
    vssl("embed", *video, "--out", "one.parquet")
    vssl("embed", *video, "--crops", 10, "--out", "ten.parquet", "--batch-size", 7, "--workers", 0)
    one, ten = np.load("one-per-video/b.npy"), np.load("ten-per-video/b.npy")
    assert ten.shape == (2, 10, one.shape[1])
    np.testing.assert_allclose(ten[:, 4], one, rtol=1e-4, atol=1e-6)
    assert len(np.unique(ten.round(6), axis=1)[0]) == 10  # all differ
    assert "crops 10, not 1" in vssl("embed", *video, "--out", "ten.parquet", code=1)
    vssl("search", "videos/near/b.mp4", "--in", "ten.parquet")


def test_names_of_the_files_of_videos(tmp_path):
    """Two videos of one stem keep their suffixes, paths lead below the folder, an id that leads elsewhere is refused."""

    def stored(*ids):
        n = len(ids)
        texts = {name: [""] * n for name in ("path", "label", "split", "stage")}
        rest = {"start": [None] * n, "end": [None] * n, "thumbnail": [b""] * n}
        write_part(tmp_path / "t.parquet", {}, np.eye(n, 3, dtype=np.float32), {"id": list(ids), **texts, **rest})
        return Table(tmp_path / "t.parquet")

    folder, count = write_npy_per_video(
        stored("x/a.mp4", "x/a.avi", "b.mp4", "b.mp4", "film.mp4@1-2.25", "/whole/c.mov")
    )
    assert count == 5 and np.load(folder / "b.npy").shape == (2, 3)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.npy")}
    assert found == {"x/a.mp4.npy", "x/a.avi.npy", "b.npy", "film.mp4@1-2.25.npy", "whole/c.npy"}
    assert (folder / "b.csv").read_text() == "start,end\n,\n,\n"
    with pytest.raises(TrainerError, match="the id '../../a' leads elsewhere"):
        write_npy_per_video(stored("../../a"))


def test_several_examples_are_one_query(here):
    vssl("embed", "--videos", "videos", "--level", "video")
    vectors, own = columns("features.parquet")
    of = dict(zip(own["id"], vectors, strict=True))
    told = vssl("search", "videos/near/a.mp4", "videos/far/d.mp4", "--page", "pages/found.html").splitlines()
    assert told[0].startswith("nearest to videos/near/a.mp4, videos/far/d.mp4 among 5 rows")
    mean = of["near/a.mp4"] + of["far/d.mp4"]
    others = ("near/b.mp4", "far/c.mp4", "copy.mp4")  # no example finds itself
    expected = {name: float(of[name] @ mean / np.linalg.norm(mean) / np.linalg.norm(of[name])) for name in others}
    found = {
        name: value for line in told[1:-1] for name in others for value in [float(line.split()[0])] if name in line
    }
    assert found == pytest.approx(expected, abs=2e-4) and len(told) == 5
    page = Path("pages/found.html").read_text()
    assert page.count("<figure>") == 5 and 'href="../videos/copy.mp4#t=' in page
    assert "need one video, but 2 are given" in vssl("search", "a.mp4", "b.mp4", "--from", 1, code=2)


def test_links_are_relative_below_a_common_folder():
    assert link("/data/my videos/a#1.mp4", Path("/data/pages")) == "../my%20videos/a%231.mp4"
    assert link("/data/x:y.mp4", Path("/data")) == "x%3Ay.mp4"
    assert link("/data/a.mp4", Path("/home/me")) == "file:///data/a.mp4"
