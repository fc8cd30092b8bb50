import functools

import numpy as np
import pytest

from labelgen.flow import flow
from tests.command import vssl
from tests.trainer.planted import COLORS, Noise, SeesClass, kept_scores, write_colored
from tests.trainer.studies import make_study, write_study
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.evaluate.evaluator import Evaluator, Selection, measure
from trainer.evaluate.features import Compute, normalised
from trainer.evaluate.protocols.self_evaluation import HALF, NEXT, OWN, answers, apart, effective_rank, ranked, verdict
from trainer.evaluate.results import headline, read_results

CPU = Compute(8, 0, "cpu")
evaluate = functools.partial(measure, "self", compute=CPU)


def at(*degrees):
    """Vectors in these directions."""
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_places_by_hand():
    gallery = at(0, 10, 20, 90)
    answer, everything = np.array([0, 1, 2]), lambda rows: np.ones((len(rows), 4), bool)
    top, mrr, chance, chance_mrr = ranked(at(1, 1, 1), gallery, answer, everything)
    assert top.tolist() == [1, 0, 0] and mrr.tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert chance.tolist() == [1 / 4] * 3 and chance_mrr.tolist() == pytest.approx(
        [(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4] * 3
    )
    two = ranked(at(1), gallery, np.array([1]), lambda rows: np.array([[False, False, False, True]]))
    assert two[:, 0].tolist() == pytest.approx([1, 1, 1 / 2, 3 / 4])  # the answer itself is always a candidate


def test_ties_are_the_mean_over_their_orders():
    everything = lambda rows: np.ones((len(rows), 4), bool)  # noqa: E731
    tied = ranked(at(0), at(0, 0, 0, 90), np.array([1]), everything)[:, 0]
    assert tied[:2].tolist() == pytest.approx([1 / 3, (1 + 1 / 2 + 1 / 3) / 3])
    same = ranked(np.ones((2, 5), np.float32), np.ones((4, 5), np.float32), np.array([0, 3]), everything)
    assert same[:2] == pytest.approx(same[2:])  # a collapsed network is at chance


def slow(x, owner):
    """The three questions, one query and one candidate after the other."""
    unit = normalised(x.astype(np.float64))
    clips = [np.flatnonzero(owner == video) for video in range(owner[-1] + 1)]
    halves = [[normalised(x[part].sum(0)) for part in np.array_split(of, 2)] for of in clips]
    found = {HALF: [], NEXT: [], OWN: []}

    def place(query, answer, others):
        own = query @ answer
        return sum(query @ other > own for other in others) + 1

    for video in range(len(clips)):
        for i in (0, 1):
            others = [halves[v][1 - i] for v in range(len(clips)) if v != video]
            found[HALF].append(place(halves[video][i], halves[video][1 - i], others))
        for clip in clips[video]:
            following = clip + 1 if clip + 1 in clips[video] else clip - 1
            others = [unit[c] for c in range(len(x)) if owner[c] != video]
            found[NEXT].append(place(unit[clip], unit[following], others))
            if others := [unit[c] for c in clips[video] if c != following and abs(c - clip) > 1]:
                found[OWN].append(place(unit[clip], unit[following], others))
    return {what: (np.mean(np.equal(places, 1)), np.mean(1 / np.array(places))) for what, places in found.items()}


def test_fast_equals_slow_and_the_order_of_videos_does_not_matter():
    rng = np.random.default_rng(0)
    lengths = [2, 5, 3, 10, 4, 2]
    videos = [rng.normal(size=(n, 6)).astype(np.float32) + 2 * rng.normal(size=6).astype(np.float32) for n in lengths]
    x, owner = np.concatenate(videos), np.repeat(np.arange(6), lengths)
    found = {what: values.mean(1) for what, values, _ in answers(x, owner)}
    expected = slow(x, owner)
    assert found.keys() == expected.keys()
    for what, values in found.items():
        assert values[:2] == pytest.approx(expected[what])
    order = [4, 2, 0, 5, 3, 1]
    other = answers(np.concatenate([videos[i] for i in order]), np.repeat(np.arange(6), np.array(lengths)[order]))
    for what, values, _ in other:
        assert values.mean(1) == pytest.approx(found[what])


def test_a_copy_of_every_video_halves_what_was_right():
    rng = np.random.default_rng(1)
    x = np.repeat(np.eye(4, 12), 4, axis=0).astype(np.float32) + 0.01 * rng.normal(size=(16, 12)).astype(np.float32)
    owner = np.repeat(np.arange(4), 4)
    once, twice = (
        {what: values.mean(1)[0] for what, values, _ in answers(*of)}
        for of in ((x, owner), (np.concatenate([x, x]), np.concatenate([owner, owner + 4])))
    )
    assert once[HALF] == once[NEXT] == 1 and twice[HALF] == 0.5
    assert twice[NEXT] <= 0.5 and twice[OWN] == once[OWN]  # within a video nothing has changed


def test_effective_rank_by_hand():
    square = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)], np.float32)
    assert effective_rank(square + 7) == pytest.approx(2)  # two equal singular values, whatever the mean
    assert effective_rank(square * (1, 0)) == pytest.approx(1)
    values = np.array([3, 1]) / 4  # stretched three times
    assert effective_rank(square * (3, 1)) == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert effective_rank(np.ones((5, 3), np.float32)) == 0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert effective_rank((5 * x @ turn).astype(np.float32)) == pytest.approx(effective_rank(x), rel=1e-4)
    assert effective_rank(np.concatenate([x, x])) == pytest.approx(effective_rank(x), rel=1e-4)


def test_clips_share_no_frame():
    starts = np.array([0, 5, 11, 16, 21, 27, 32, 37, 43, 48, 0, 0, 0])
    frames, owner = starts[:, None] + np.arange(16), np.array([0] * 10 + [1] * 3)
    assert np.flatnonzero(apart(frames, owner)).tolist() == [0, 3, 6, 9, 10]


def test_planted_features(tmp_path, run, monkeypatch):
    """Four videos of four colours: who sees the colour finds each half, noise does not, and the colours do as well."""
    write_colored(tmp_path / "colors" / "00000.h5", 4, length=64, splits=())
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass(), "random": Noise()})
    result = evaluate(tmp_path, run, flow=flow)
    found = {(row["network"], row.get("stage"), row["metric"]): row for row in result["rows"]}
    assert found["pretrained", "conv5", "half top-1"]["value"] == 100
    assert found["chance", None, "half top-1"]["value"] == 25
    assert found["chance", None, "next top-1"]["value"] == pytest.approx(100 / 13)  # of the next and 12 clips of others
    assert found["pretrained", "conv5", "own top-1"]["value"] == pytest.approx(
        found["chance", None, "own top-1"]["value"]
    )
    assert found["colour histogram", "colour", "half top-1"]["value"] == 100
    assert found["random", "conv5", "half top-1"]["value"] < 80
    assert found["pretrained", "conv5", "effective rank"]["value"] == pytest.approx(3)  # four corners of a tetrahedron
    assert {network for network, *_ in found} == {
        "pretrained",
        "random",
        "colour histogram",
        "flow histogram",
        "boundary histogram",
        "still histogram",
        "chance",
    }
    assert result["protocol"]["items"] == "4 videos, 16 clips"
    assert result["notes"][-1].startswith("your network tells your videos apart")
    assert "4 videos are too few to distinguish networks" in result["notes"]
    kept_scores(result)
    stored = next(one for one in read_results(run)[0] if one.name == "self")
    assert headline(stored)["metric"] == "half top-1" and headline(stored)["stage"] == "conv5"
    scores = Evaluator(tmp_path, run, compute=CPU).scores("self", Selection("conv5", "mean"))
    assert set(scores.right.values()) == {1.0} and set(scores.chance.values()) == {0.25}


def test_groups_are_drawn_and_fewer_videos_are_spread(tmp_path, run, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 24, length=34, splits=(), groups=[f"g{i % 12}" for i in range(24)])
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": SeesClass(), "random": SeesClass()})
    result = evaluate(tmp_path, run)
    assert result["protocol"]["intervals"] == "bootstrap of 12 groups"
    top = next(row for row in result["rows"] if row["metric"] == "half top-1")
    assert top["value"] == pytest.approx(100 / 6)  # six videos of each colour, all alike
    assert any(note.startswith("own: no video has three clips") for note in result["notes"])
    assert "did not help beyond random weights" in result["notes"][-1] and len(COLORS) == 4
    fewer = evaluate(tmp_path, run, most=5, others=(run,))
    assert fewer["protocol"]["items"] == "5 videos, 10 clips" and str(run) in {row["network"] for row in fewer["rows"]}


def test_in_a_study(tmp_path, monkeypatch):
    write_colored(tmp_path / "colors" / "00000.h5", 12, 40, split=[[1]] * 8 + [[3]] * 4)
    measures = [{"protocol": "self"}, {"protocol": "knn", "k": 1}]
    path = write_study(tmp_path, seeds=[0], clips=8, measures=measures, baselines=["flow"])

    def still(first, second):
        return np.zeros((*first.shape, 2), np.float32)

    content = make_study(monkeypatch, path, tmp_path / "out", flow=still)
    columns = [column["measure"] for column in content["columns"]]
    found = {entry["row"]: entry for entry in content["numbers"] if columns[entry["column"]].startswith("self")}
    assert (
        found.keys() == {"turns <i>", "random weights"} and not content["failures"]
    )  # one vector of a video has no halves
    assert all(entry["videos"] == 4 and entry["value"] == 100 for entry in found.values())  # four colours


def test_short_videos_are_left_out_and_too_few_are_refused(tmp_path, run):
    write_colored(tmp_path / "short" / "00000.h5", 4, length=31, splits=())
    with pytest.raises(
        TrainerError, match="0 of 4 videos are as long as two clips \\(32 frames\\), expected at least two"
    ):
        evaluate(tmp_path / "short", run)


def test_the_command(demo, pace_run, tmp_path):
    arguments = ("--checkpoint", pace_run, "--shards", demo, "--workers", 0, "--device", "cpu", "--most", 4)
    told = vssl("eval", "self", *arguments)
    assert "flow histogram" in told and "note: your network tells your videos apart" in told


def difference(value, spread=1.0):
    return {"value": value, "low": value - spread, "high": value + spread}


VALUES = {"pretrained": 80.0, "random": 50.0, "chance": 1.0, "colour histogram": 70.0}


@pytest.mark.parametrize(
    ("half", "own", "told"),
    [
        (
            {"random": difference(30), "colour histogram": difference(10)},
            difference(3),
            "apart better than random weights and a colour histogram (80.0 % of the halves find the other one, 1.0 % by chance), "
            "and the moments of one video better than random weights: pretraining on them helped; use its features",
        ),
        (
            {"random": difference(30), "colour histogram": difference(0)},
            difference(0),
            "no better than a colour histogram (80.0 % of the halves find the other one, 1.0 % by chance), and the moments "
            "of one video no better than random weights: pretraining on them helped beyond random weights, and a colour "
            "histogram does as well; use that",
        ),
        (
            {
                "random": difference(9),
                "flow histogram": difference(0),
                "colour histogram": difference(0),
                "a": difference(0),
            },
            None,
            "better than random weights, no better than a flow histogram, a colour histogram and a (80.0 %",
        ),
        ({"random": difference(0)}, None, "pretraining on them did not help beyond random weights; train longer"),
        ({"random": difference(-9)}, None, "pretraining on them was worse than random weights; train longer"),
        ({"random": difference(9), "runs/a": difference(-4)}, None, "helped, and runs/a is the better one to use"),
        ({}, None, "80.0 % of the halves find the other one, 1.0 % by chance"),
    ],
)
def test_the_verdict(half, own, told):
    assert told in verdict(VALUES, half, own, "them")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"random": 99.0}, "random weights already tell them apart"),
        ({"colour histogram": 99.0}, "a colour histogram already tells them apart"),
        ({"random": 99.0, "still histogram": 96.0}, "random weights and a still histogram already tell them apart"),
    ],
)
def test_halves_that_random_weights_or_colours_find_say_nothing(values, told):
    found = verdict(VALUES | values, {"random": difference(0), "colour histogram": difference(-9)}, None, "them")
    assert told in found and "measure on videos that look more alike, or with labels" in found
