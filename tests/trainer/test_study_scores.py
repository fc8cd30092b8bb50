"""What is compared in a study: every two rows, by class, and the stage that the training part chooses."""

import itertools

import numpy as np
import pytest

from tests.trainer.planted import write_colored
from trainer.evaluate.features import Compute, Features
from trainer.evaluate.metrics import FLIPS, holm, sign_flips
from trainer.study.measures import Scoring
from trainer.study.scores import RowScores, differences
from trainer.study.sources import few_label_split, prepare
from trainer.study.spec import CHOSEN, Data, Measure


def test_sign_flips_by_hand():
    # of 16 patterns only the two with equal signs reach 4; +-2 +-1 +-0 reaches 3 in 4 of 8; every pattern reaches 0
    assert sign_flips(np.ones((1, 4))) == 2 / 16
    assert sign_flips(np.array([[2.0, 1, 0], [1, -1, 0], [0, 0, 0]])).tolist() == [4 / 8, 1, 1]


def test_sign_flips_are_those_of_loops():
    found = np.random.default_rng(0).integers(-3, 4, (5, 9)) / 3
    slow = []
    for row in found:
        sums = [
            abs(sum(s * d for s, d in zip(signs, row, strict=True))) for signs in itertools.product((1, -1), repeat=9)
        ]
        slow.append(np.mean([total >= abs(sum(row)) - 1e-9 for total in sums]))
    assert sign_flips(found).tolist() == slow
    assert sign_flips(np.insert(found, [0, 4, 9], 0, axis=1)).tolist() == slow  # units that are equal count for nothing
    many = np.pad(found, ((0, 0), (0, 20)), constant_values=1e-9)  # so many that patterns are drawn
    assert sign_flips(many) == pytest.approx(slow, abs=4 * (0.25 / FLIPS) ** 0.5)
    assert sign_flips(np.ones((1, 40))) == 1 / (FLIPS + 1)
    assert sign_flips(np.concatenate([np.pad(found, ((0, 0), (0, 20))), many])).tolist() == [*slow, *sign_flips(many)]


def test_p_of_equal_rows_is_rarely_small():
    found = np.random.default_rng(1).normal(size=(1000, 30))
    for alpha in (0.05, 0.2):
        assert np.mean(sign_flips(found) <= alpha) == pytest.approx(alpha, abs=3 * (alpha * (1 - alpha) / 1000) ** 0.5)


def row(right, predicted=None, seeds=(0, 1), videos="abcdef", groups="xxyyzz", labels="ppqqpp"):
    of_videos = [np.array([*of]) for of in (labels, groups)]
    predicted = None if predicted is None else np.array([[*of] for of in predicted])
    return RowScores([*seeds], [*videos], *of_videos, np.array(right, float), None, predicted, [{}] * len(seeds))


def test_differences_of_all_pairs_with_whole_groups():
    one = row([[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1]])
    two = row([[0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0]])
    late = row([[0, 1, 0, 1, 0, 0]], seeds=[1])
    other = row([[1] * 6] * 2, videos="abcdeg")
    found = {(of["row"], of["than"]): of for of in differences({"one": one, "two": two, "late": late, "other": other})}
    assert [*found] == [("one", "two"), ("one", "late"), ("two", "late")]
    # by group of two videos and two seeds: x 3, y 1, z 2, so that only equal signs reach 6: 2 of 8 patterns
    first = found["one", "two"]
    assert first["p"] == 2 / 8 and first["value"] == pytest.approx(100 * 6 / 12)
    assert {key: first[key] for key in ("value", "low", "high")} == pytest.approx(one.above(two))
    assert found["two", "late"]["value"] == 0 and found["two", "late"]["p"] == 1  # the seed that both have
    assert [of["adjusted"] for of in found.values()] == holm([of["p"] for of in found.values()])
    assert differences({"one": one, "other": other}) == []


def test_classes_by_seed_and_confusions_over_seeds():
    of = row([[1, 0, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1]], ["pqqppp", "pppppp"])
    assert of.by_class() == {"p": [75, 100], "q": [50, 0]}
    assert of.confusions() == {"p": {"p": 7, "q": 1}, "q": {"q": 1, "p": 3}}
    assert row([[1] * 6] * 2).confusions() is None


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 videos of 4 classes, of which 8 are tested."""
    folder = tmp_path_factory.mktemp("scores")
    write_colored(folder / "colors" / "00000.h5", 24, 16, split=[[1]] * 16 + [[3]] * 8)
    data = Data("colors", folder / "colors", None)
    return prepare(data, folder / "colors", folder / "data", (0,), (1, 2))


@pytest.mark.parametrize("protocol, k", [("linear", 0), ("knn", 1), ("retrieval", 1)])
def test_a_stage_is_chosen_by_the_training_part_alone(source, protocol, k):
    rng = np.random.default_rng(0)
    opened = source.opened("split1")
    classes, trains = np.eye(4, dtype=np.float32)[opened.targets], np.arange(24) < 16
    noise = lambda: rng.normal(size=(24, 4)).astype(np.float32)  # noqa: E731
    arrays = {
        ("luck", "mean"): np.where(trains[:, None], noise(), classes),  # right on the test part alone
        ("good", "mean"): np.where(trains[:, None], classes, noise()),
        ("bad", "mean"): noise(),
        ("good", "max"): noise(),
    }
    scoring = Scoring(Features(arrays, np.arange(24)), source, Compute(8, 0, "cpu"))
    measure = Measure(protocol, CHOSEN, pooling="mean", k=k)
    found, stage = scoring.scores("split1", "", measure)
    alone, none = scoring.scores("split1", "", Measure(protocol, "good", pooling="mean", k=k))
    assert stage == "good" and none == "" and found is alone  # which is computed once
    assert set(found.predicted) == set(found.right) and len(found.right) == 8
    few = few_label_split("split1", 1, 0)  # one video of each class: nothing to choose by
    assert scoring.scores(few, "", measure)[1] == "bad"


@pytest.mark.parametrize("protocol, k", [("linear", 0), ("knn", 1)])
def test_all_pairs_of_opposites_choose_the_stage(source, protocol, k):
    opened = source.opened("split1")
    classes = np.eye(4, dtype=np.float32)[opened.targets]
    last_pair = classes * (opened.targets > 1)[:, None] + np.float32(0.01) * np.random.default_rng(0).random(
        (24, 4), np.float32
    )
    scoring = Scoring(
        Features({("all", "mean"): classes, ("last", "mean"): last_pair}, np.arange(24)), source, Compute(8, 0, "cpu")
    )
    pairs = (("color0", "color1"), ("color2", "color3"))
    assert scoring.scores("split1", "", Measure(protocol, CHOSEN, pooling="mean", k=k, opposites=pairs))[1] == "all"
