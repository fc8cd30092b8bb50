"""Moments of video files as moving pictures."""

import numpy as np
import pytest

from cli.films import film
from tests.labelgen.synthetic import write_video


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A video of 64 frames, 25 per second."""
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    write_video(path, 64, seed=0, step=1)
    return path


def row(path, start, end):
    return {"id": "a", "path": str(path), "start": start, "end": end}


@pytest.mark.parametrize("start, end, seconds, count", [(0.0, 2.56, 1.0, 9), (0.4, 0.8, 0.4, 10), (2.4, 2.56, 0.16, 4)])
def test_a_film_is_of_the_middle_of_its_moment(path, start, end, seconds, count):
    from labelgen.decode import frames

    found, durations = film(row(path, start, end))
    assert len(found) == len(durations) == pytest.approx(count, abs=1) and durations.sum() == pytest.approx(
        seconds, abs=0.05
    )
    own = [*frames(path)]
    first = np.argmin([np.abs(one.astype(float) - found[0]).mean() for one in own])
    assert first / 25 == pytest.approx((start + end - seconds) / 2, abs=0.05) and found[0].shape == own[0].shape


def test_films_are_240_pixels_wide_or_high(tmp_path, monkeypatch):
    monkeypatch.setattr("cli.films._SIDE", 24)
    write_video(tmp_path / "a.mp4", 20, seed=0, step=1)
    assert max(film(row(tmp_path / "a.mp4", 0.0, 0.5))[0].shape[1:3]) == 24


def test_what_cannot_be_read_has_no_film(path, tmp_path):
    (tmp_path / "b.mp4").write_text("no video")
    for one in (
        row(path, None, None),
        row("a.mp4", 0, 1),
        row(tmp_path / "none.mp4", 0, 1),
        row(tmp_path / "b.mp4", 0, 1),
    ):
        assert film(one) is None
    assert film(row(path, 90.0, 91.0)) is None
