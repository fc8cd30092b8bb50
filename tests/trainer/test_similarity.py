import math

import numpy as np
import pytest
from scipy.io import savemat

from tests.trainer.planted import Noise, SeesClass, kept_scores, write_colored
from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols.similarity import (
    Similarity,
    area_under_curve,
    cross_validated,
    measures,
    pair_measures,
    read_pairs,
)


def test_the_twelve_measures_by_hand():
    """a = (1, 4, 0), b = (4, 1, 0)."""
    by_hand = [
        8,
        math.sqrt(8),
        math.sqrt(2 + 2),
        math.sqrt(4 / 5 + 4 / 5),
        8 / 17,
        math.sqrt(9 / 5 + 9 / 5),
        6,
        math.sqrt(1 + 1),
        (1 * math.log(1 / 4) + 4 * math.log(4) + 4 * math.log(4) + 1 * math.log(1 / 4)) / 2,
        math.sqrt(18),
        2 / math.sqrt(5) + 2 / math.sqrt(5),
        2 / 25,
    ]
    assert measures(np.array([[1.0, 4, 0]]), np.array([[4.0, 1, 0]]))[0] == pytest.approx(by_hand)


def slow_measures(a, b):
    e = 1e-12
    each = list(zip(a.tolist(), b.tolist(), strict=True))
    dot = sum(x * y for x, y in each)
    return [
        dot,
        math.sqrt(dot),
        math.sqrt(sum(math.sqrt(x) * math.sqrt(y) for x, y in each)),
        math.sqrt(sum(x * y / (x + y) for x, y in each if x + y > 0)),
        dot / math.sqrt(sum(x * x for x, _ in each) * sum(y * y for _, y in each)),
        math.sqrt(sum((x - y) ** 2 / (x + y) for x, y in each if x + y > 0)),
        sum(abs(x - y) for x, y in each),
        math.sqrt(sum((math.sqrt(x) - math.sqrt(y)) ** 2 for x, y in each)),
        sum(x * math.log((x + e) / (y + e)) + y * math.log((y + e) / (x + e)) for x, y in each) / 2,
        math.sqrt(sum((x - y) ** 2 for x, y in each)),
        sum(math.sqrt(max(x, y)) / math.sqrt(x + y) for x, y in each if x + y > 0),
        sum(min(x, y) for x, y in each) / (sum(a.tolist()) * sum(b.tolist())),
    ]


def test_measures_equal_a_slow_loop_and_are_symmetric():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(9, 20)), 0).astype(np.float32)  # with zeros
    first, second = rng.integers(9, size=700), rng.integers(9, size=700)
    found = pair_measures(x, first, second)
    for i in range(0, 700, 50):
        assert found[i] == pytest.approx(slow_measures(x[first[i]], x[second[i]]), rel=1e-6, abs=1e-9)
    assert found == pytest.approx(pair_measures(x, second, first))
    same = pair_measures(x, first, first)
    assert same[:, [5, 6, 7, 8, 9]] == pytest.approx(0) and same[:, 4] == pytest.approx(1)
    with pytest.raises(TrainerError, match="features have negative values"):
        measures(-x, x)


def test_cross_validation_trains_on_the_other_folds_only():
    """A value that tells the truth in all folds but one, where it lies: scored wrong there, right elsewhere."""
    rng = np.random.default_rng(0)
    same, fold = rng.random(400) < 0.5, np.repeat(np.arange(1, 5), 100)
    x = np.where(same, 1.0, -1.0)[:, None] + 0.1 * rng.normal(size=(400, 1))
    x[fold == 3] *= -1
    right = (cross_validated(x, same, fold) > 0) == same
    assert not right[fold == 3].any() and right[fold != 3].all()
    assert area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])) == 0.875


def write_pairs(path, videos: int, folds: int, seed=0):
    rng = np.random.default_rng(seed)
    lines = ["fold,first,second,same"]
    for i in range(60 * folds):
        a = int(rng.integers(videos))
        others = [b for b in range(videos) if b != a and (b % 4 == a % 4) == (i % 2 == 0)]
        lines.append(f"{i % folds + 1},00000_{a},00000_{rng.choice(others)},{int(i % 2 == 0)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_planted_classes_and_noise(tmp_path, run, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 32, splits=())
    pairs = write_pairs(tmp_path / "pairs.csv", 32, 5)
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass(), "random": Noise()})
    result = measure("similarity", tmp_path, run, compute=Compute(8, 0, "cpu"), pairs=pairs)
    top = {(row["network"], row["metric"]): row["value"] for row in result["rows"]}
    assert top["pretrained", "accuracy"] == 100 and top["pretrained", "AUC"] == 100
    assert top["random", "accuracy"] == pytest.approx(50, abs=10) and top["random", "AUC"] == pytest.approx(50, abs=12)
    assert result["protocol"]["items"] == "300 pairs of 32 videos, 50.0 % of them the same" and result["notes"] == []
    assert result["rows"][0]["stage"] == "conv3+conv4+conv5"
    assert "similarity on colors" in Similarity.format_table(result)
    kept = kept_scores(result)
    assert (
        len(kept.items) == 300 and kept.items[0].startswith("0: 00000_") and set(kept.labels) == {"same", "different"}
    )


def test_what_papers_report_by_hand(tmp_path, run, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 8, splits=())
    pairs = write_pairs(tmp_path / "pairs.csv", 8, 5)
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass()})
    score = np.random.default_rng(0).normal(size=300)
    monkeypatch.setattr("trainer.evaluate.protocols.similarity.cross_validated", lambda x, same, fold: score)
    rows = measure("similarity", tmp_path, run, compute=Compute(8, 0, "cpu"), pairs=pairs)["rows"]
    found = {row["metric"]: row["value"] for row in rows}
    fold, same = np.arange(300) % 5, np.arange(300) % 2 == 0  # as write_pairs
    of_folds = [100 * ((score > 0) == same)[fold == k].mean() for k in range(5)]
    mean = sum(of_folds) / 5
    deviation = (sum((value - mean) ** 2 for value in of_folds) / 4) ** 0.5
    assert found["mean over folds"] == pytest.approx(mean) and found["standard error"] == pytest.approx(
        deviation / 5**0.5
    )
    # the area under the average of the folds' curves, points of one threshold together, as ASLAN draws them
    rates = []
    for threshold in [np.inf, *sorted(score, reverse=True)]:
        above = score >= threshold
        of_fold = [(above[(fold == k) & ~same].mean(), above[(fold == k) & same].mean()) for k in range(5)]
        rates.append(np.mean(of_fold, axis=0))
    false, true = np.array(rates).T
    assert found["AUC"] == pytest.approx(100 * (np.diff(false) * (true[1:] + true[:-1]) / 2).sum())


def test_pairs_are_read_by_any_spelling_and_mistakes_are_told(tmp_path, demo, run):
    source = data.Shards(demo)

    def read(text):
        (tmp_path / "pairs.csv").write_text(text)
        return read_pairs(tmp_path / "pairs.csv", source)

    head = "fold,first,second,same\n"
    good = "1,00000_0,00000_1,1\n2,00000_0,00001_2,0\n1,00000_0,00001_2,0\n2,00001_0,00001_2,1\n3,00001_0,nobody,1\n"
    fold, first, second, same, notes = read(head + good)
    assert fold.tolist() == [1, 2, 1, 2] and first.tolist() == [0, 0, 0, 6] and second.tolist() == [1, 8, 8, 8]
    assert same.tolist() == [True, False, False, True] and notes[0].startswith("1 pair left out")
    for text, message in (
        ("a,b\n1,2\n", "columns .'a', 'b'., expected fold, first, second, same"),
        (head + "1,00000_0,00000_1,yes\n", "line 2: .* expected a number as fold and 0 or 1 as same"),
        (head + "1,x,y,1\n", "none of its 1 pair has both videos in the shards, expected ids such as '00000_0'"),
        (head + "1,00000_0,00000_1,1\n2,00000_0,00000_1,1\n", "without fold 1 all pairs are"),
    ):
        with pytest.raises(TrainerError, match=message):
            read(text)
    with pytest.raises(TrainerError, match="cannot be read"):
        read_pairs(tmp_path / "none.csv", source)
    with pytest.raises(TrainerError, match="similarity needs the list of pairs$"):
        measure("similarity", demo, run)


def view2(pairs: int = 6, samples: int = 12) -> np.ndarray:
    """[pairs, 5, 10] as in ASLAN's View2.mat: ids, same, actions; half of each fold's pairs are the same action."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, samples + 1, (pairs, 2, 10))
    same = np.broadcast_to((np.arange(pairs) < pairs // 2)[:, None, None], (pairs, 1, 10))
    return np.concatenate([ids, same, rng.integers(1, 433, (pairs, 2, 10))], axis=1)


def test_pairs_of_aslan(tmp_path):
    write_colored(tmp_path / "aslan" / "00000.h5", 12, splits=(), names=[f"{k:04d}.avi" for k in range(1, 13)])
    source = data.Shards(tmp_path / "aslan")
    content = view2()
    content[0, 0, 0] = 3697  # not there
    savemat(tmp_path / "View2.mat", {"action_splits_pairs": content.astype(float)})
    fold, first, second, same, notes = read_pairs(tmp_path / "View2.mat", source)
    assert notes[0] == "1 pair left out because videos are not in the shards"
    expected = np.moveaxis(content, 2, 0).reshape(-1, 5)[1:]  # fold after fold
    assert fold.tolist() == np.repeat(np.arange(1, 11), 6)[1:].tolist()
    assert (first + 1).tolist() == expected[:, 0].tolist() and (second + 1).tolist() == expected[:, 1].tolist()
    assert same.tolist() == (expected[:, 2] == 1).tolist()
    (tmp_path / "pairs.csv").write_text(
        "fold,first,second,same\n1,1,0002,1\n1,3,4.avi,0\n2,1,5,1\n2,1,0006.avi,0\n1,1,7,0\n"
    )
    _, first, second, _, notes = read_pairs(tmp_path / "pairs.csv", source)
    assert (first.tolist(), second.tolist()) == ([0, 0, 0, 0], [1, 4, 5, 6]) and notes[0].startswith("1 pair left out")


def test_pairs_of_a_name_that_two_videos_have_are_told(tmp_path):
    write_colored(tmp_path / "two" / "00000.h5", 3, splits=(), names=["a/1.avi", "b/1.avi", "b/2.avi"])
    (tmp_path / "pairs.csv").write_text("fold,first,second,same\n1,1.avi,2,1\n")
    with pytest.raises(TrainerError, match="'1.avi' matches 2 videos: 'a/1.avi', 'b/1.avi'"):
        read_pairs(tmp_path / "pairs.csv", data.Shards(tmp_path / "two"))


def test_a_wrong_file_of_pairs_is_told(tmp_path, demo):
    source = data.Shards(demo)
    good = tmp_path / "good.mat"
    savemat(good, {"action_splits_pairs": view2().astype(float)}, do_compression=True)
    blob = good.read_bytes()

    def told(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainerError, match=message):
            read_pairs(tmp_path / name, source)

    told("pairs.csv", blob, "not a CSV file .* expected the columns fold,first,second,same, or a .mat file")
    told("View2.mat", b"<html>not found</html>", "not a MATLAB file, expected ASLAN's View2.mat")
    for size in (100, 130, 200, len(blob) - 5):
        told("View2.mat", blob[:size], "damaged|nothing as action_splits_pairs")
    told(
        "View2.mat",
        b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\x00\x02IM" + blob,
        "in a format version that SciPy cannot read",
    )
    savemat(tmp_path / "train_pairs.mat", {"train_pairs": view2()[:, :, 0]})
    told(
        "train_pairs.mat",
        (tmp_path / "train_pairs.mat").read_bytes(),
        "nothing as action_splits_pairs, expected 600 x 5 x 10",
    )
    for wrong in (view2()[:, :, 0], view2()[:, :4], view2() + 0.5, np.array([["a"]])):
        savemat(tmp_path / "x.mat", {"action_splits_pairs": wrong})
        told("x.mat", (tmp_path / "x.mat").read_bytes(), "action_splits_pairs")
    with pytest.raises(TrainerError, match="cannot be read"):
        read_pairs(tmp_path / "none.mat", source)
    with pytest.raises(TrainerError, match="none of its 60 pairs has both videos in the shards"):
        read_pairs(good, source)
