"""Clips, pace rows and order rows."""

from fractions import Fraction

import numpy as np
import pytest

from labelgen.labels.order import order_permutations, order_rows
from labelgen.labels.pace import pace_frames, pace_rows
from labelgen.labels.sampling import clip_starts, generator

PACES = tuple(Fraction(p) for p in (1, 2, 3, 4))


def chi_square(labels, classes):
    counts = np.bincount(labels, minlength=classes)
    expected = len(labels) / classes
    return ((counts - expected) ** 2 / expected).sum()


def rng(name="a/b.avi", seed=0, purpose="test"):
    return generator(seed, purpose, name)


def test_generator_depends_on_its_arguments_alone():
    draws = {key: rng(*key).integers(1 << 60) for key in [("a", 0, "p"), ("b", 0, "p"), ("a", 1, "p"), ("a", 0, "q")]}
    assert len(set(draws.values())) == 4
    assert draws["a", 0, "p"] == rng("a", 0, "p").integers(1 << 60)


def test_pace_frames_by_hand():
    assert pace_frames(5, Fraction(3), 16).tolist() == list(range(5, 51, 3))
    assert pace_frames(0, Fraction(1, 3), 16).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    assert pace_frames(20, Fraction(-1), 16).tolist() == list(range(20, 4, -1))
    assert pace_frames(0, Fraction(3, 2), 16)[:5].tolist() == [0, 1, 3, 4, 6]


@pytest.mark.parametrize(
    "paces", [PACES, tuple(map(Fraction, ("1/3", "1/2", "1", "2", "3"))), (Fraction(1), Fraction(-1), Fraction(-4))]
)
def test_pace_rows_are_balanced_and_stay_inside(paces):
    start, label, wrapped = pace_rows(61, paces, 20000, 16, rng(), False)
    assert chi_square(label, len(paces)) < 30  # a fair draw exceeds this less than once in 10,000 runs
    frames = np.stack([pace_frames(s, paces[p], 16) for s, p in zip(start, label, strict=True)])
    assert frames.min() == 0 and frames.max() == 60 and not wrapped.any()


def test_pace_start_is_uniform_among_those_that_fit():
    start, label, _ = pace_rows(61, PACES, 20000, 16, rng())
    assert start[label == 3].tolist() == [0] * (label == 3).sum()
    assert chi_square(start[label == 2], 16) < 50 and start[label == 2].max() == 15


def test_short_videos_have_no_pace_rows_unless_wrapped():
    assert pace_rows(60, PACES, 4, 16, rng()) is None
    start, label, wrapped = pace_rows(60, PACES, 2000, 16, rng(), allow_wrap=True)
    assert (wrapped == (label == 3)).all() and wrapped.any() and start.min() >= 0 and start.max() < 60


def test_wrap_any_starts_anywhere_and_marks_what_runs_on():
    paces = (*PACES, Fraction(-2), Fraction(1, 2))
    start, label, wrapped = pace_rows(70, paces, 20000, 16, rng(), wrap_any=True)
    frames = np.stack([pace_frames(s, paces[p], 16) for s, p in zip(start, label, strict=True)])
    assert (wrapped == ((frames < 0) | (frames >= 70)).any(1)).all()
    assert chi_square(label, 6) < 30 and chi_square(start, 70) < 130 and (start.min(), start.max()) == (0, 69)
    for pace, share in enumerate([15 / 70, 30 / 70, 45 / 70, 60 / 70, 30 / 70, 7 / 70]):  # span / frames
        assert wrapped[label == pace].mean() == pytest.approx(share, abs=0.04)
    short = pace_rows(9, PACES, 200, 16, rng(), wrap_any=True)
    assert short[2].all() and (short[0].min(), short[0].max()) == (0, 8)


def told_by_the_cut(rule, lengths, clip, rows=4000):
    """Share of the rows whose pace is named right from "cut or none" alone."""
    drawn = [pace_rows(n, PACES, rows, clip, rng(str(n)), **{rule: True}) for n in lengths]
    label, wrapped = (np.concatenate([rows_[i] for rows_ in drawn]) for i in (1, 2))
    counts = np.array([np.bincount(label[wrapped == cut], minlength=4) for cut in (0, 1)])
    return counts.max(1).sum() / counts.sum()


def test_where_any_row_may_wrap_a_cut_tells_less_of_the_pace():
    """Clips of 64 frames of videos of 100: pace 1 spans 63 and never has a cut, the others always; of any row that of pace 1
    has one in .63, the others always. Guessed best: (1 + 1) / 4, and (.37 + 1) / 4."""
    assert told_by_the_cut("allow_wrap", [100], 64) == pytest.approx(0.5, abs=0.02)
    assert told_by_the_cut("wrap_any", [100], 64) == pytest.approx(1.37 / 4, abs=0.02)
    lengths = np.random.default_rng(0).lognormal(np.log(170), 0.45, 200).astype(int).clip(29)  # about those of UCF101
    assert told_by_the_cut("wrap_any", lengths, 64, 100) < told_by_the_cut("allow_wrap", lengths, 64, 100) - 0.03


def test_order_rows_never_overlap_and_are_balanced():
    start, permutation = order_rows(80, 3, 20000, 16, rng())
    assert (np.diff(start) == 24).all() and start.min() == 0 and (start + 16).max() == 80
    assert chi_square(permutation, 6) < 30 and chi_square(start[:, 0], 17) < 55
    assert order_rows(63, 3, 4, 16, rng()) is None and order_rows(64, 3, 4, 16, rng())[0].tolist() == [[0, 24, 48]] * 4


def test_permutations_are_lexicographic():
    assert order_permutations(3).tolist() == [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    assert len(order_permutations(5)) == 120


def test_clip_starts():
    assert clip_starts(50, None, 16, rng()).tolist() == [0, 16, 32]
    assert clip_starts(15, None, 16, rng()).tolist() == [] and clip_starts(15, 3, 16, rng()).tolist() == []
    assert clip_starts(16, 5, 16, rng()).tolist() == [0]
    drawn = clip_starts(100, 10, 16, rng())
    assert len(set(drawn)) == 10 and (np.diff(drawn) > 0).all() and drawn.min() >= 0 and drawn.max() <= 84
