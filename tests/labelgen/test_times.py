"""When frames begin and end."""

import numpy as np
import pytest

from labelgen.times import frame_bounds


@pytest.mark.parametrize(
    "time, fps, expected",
    [
        ([0, 0.04, 0.08], 25, [0, 0.04, 0.08, 0.12]),
        ([1.4, 1.44], 0, [0, 0.04, 0.08]),
        ([36_000.0], 25, [0, 0.04]),
        ([7.0], 0, [0, 0]),
        ([0, 0.1, 0.1, 0.2], 25, [0, 0.1, 0.1, 0.2, 0.3]),
        (
            [0, *(0.5 + np.arange(8) * 0.04), 30],
            25,
            [0, *(0.5 + np.arange(8) * 0.04), 30, 30.04],
        ),  # a jump is not usual
        ([np.nan, np.nan], 25, [np.nan] * 3),
    ],
)
def test_a_frame_lasts_until_the_next_one(time, fps, expected):
    np.testing.assert_allclose(frame_bounds(time, fps), expected, atol=1e-6)


def test_a_film_whose_rate_changes_lasts_as_long_as_it_is_shown():
    time = [*np.arange(25) * 0.04, *1 + np.arange(25) * 0.5]
    assert frame_bounds(time, 50 / 13)[-1] == 13.5
