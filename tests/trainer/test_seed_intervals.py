"""Intervals over training seeds and test videos, worked by hand."""

import numpy as np
import pytest

from trainer.evaluate.metrics import seed_accuracy, seed_bootstrap, seed_difference


def test_one_seed_and_equal_scores_leave_no_spread_but_wilsons():
    found = seed_accuracy(np.ones((1, 5)), np.arange(5))
    # Wilson's lower end of 5 of 5: n / (n + z^2)
    assert found == {"value": 100, "low": pytest.approx(100 * 5 / (5 + 1.96**2)), "high": 100}


@pytest.mark.parametrize(
    "scores, groups",
    [
        ([[1, 0]], ["a", "b"]),  # a resample draws both (1/2), twice the right one (1/4) or twice the wrong one (1/4)
        ([[1] * 6, [0] * 6], range(6)),  # every video alike: all spread is of the seeds
        ([[1] * 30 + [0] * 30], ["a"] * 30 + ["b"] * 30),  # two groups are drawn as two videos, however many they have
    ],
)
def test_two_units_have_three_outcomes(scores, groups):
    assert seed_accuracy(np.array(scores, float), np.array(groups)) == {"value": 50, "low": 0, "high": 100}


def test_videos_are_the_same_for_all_seeds_of_a_resample():
    # ten equal seeds say no more than one of them: groups drawn for each seed anew would narrow the interval
    one = np.random.default_rng(0).integers(0, 2, (1, 40)).astype(float)
    narrow, wide = (seed_accuracy(np.repeat(one, n, 0), np.arange(40)) for n in (10, 1))
    assert narrow["high"] - narrow["low"] == pytest.approx(wide["high"] - wide["low"], abs=3)
    deviation = (one.mean() * (1 - one.mean()) / 40) ** 0.5
    assert wide["high"] - wide["low"] == pytest.approx(200 * 1.96 * deviation, abs=4)


def test_groups_weigh_by_their_videos():
    # a: 3 videos right; b: 1 wrong; the resamples are 3/4, 3/3 and 0/1
    means = seed_bootstrap(np.array([[1.0, 1.0, 1.0, 0.0]]), np.array(["a", "a", "a", "b"]))
    assert set(means.tolist()) == {75.0, 100.0, 0.0}


def test_a_paired_difference_knows_that_videos_are_easy_or_hard():
    hard = np.array([[1.0] * 10 + [0.0] * 10] * 2)
    better = hard.copy()
    better[:, 10:12] = 1
    found = seed_difference(better, hard, np.arange(20))
    assert found["value"] == pytest.approx(10) and found["low"] >= 0 and found["high"] <= 25
    unpaired = seed_accuracy(better, np.arange(20))
    assert found["high"] - found["low"] < unpaired["high"] - unpaired["low"]
    assert seed_difference(hard, hard, np.arange(20)) == {"value": 0, "low": 0, "high": 0}


def test_draws_are_the_same_in_every_version():
    rng = np.random.default_rng(3)
    scores, others, groups = rng.random((3, 40)), rng.random((3, 40)), rng.integers(0, 7, 40)
    found = seed_accuracy(scores, groups), seed_difference(scores, others, groups)
    ends = [one[end] for one in found for end in ("low", "high")]
    assert ends == pytest.approx(
        [44.17185658146243, 56.711537975616885, -9.753330430606935, 7.305608969845953], rel=1e-12
    )
