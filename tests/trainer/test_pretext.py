"""The run's own pretext task on unseen videos, and a context beside later frames."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.trainer.pages import Page
from tests.trainer.plain import network_input
from tests.trainer.planted import kept_scores
from tests.trainer.synthetic import write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import Evaluator, measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols.pretext import Pretext, samples
from trainer.network import Network
from trainer.pages.report import report
from trainer.settings import Settings
from trainer.training import train

ONE = Compute(8, 0, "cpu")
SMALL = {"width": 0.06, "epochs": 1, "workers": 0, "batch_size": 4, "device": "cpu"}


def trained(folder, run, **settings):
    torch.set_num_threads(1)
    return train(Settings(**{**SMALL, **settings}), folder, run)


@pytest.fixture(scope="module")
def skip_clip(demo, tmp_path_factory):
    options = {"skip_clip": {"targets": 3, "spacing": 2}}
    return trained(demo, tmp_path_factory.mktemp("runs") / "skip", method="skip_clip", options=options)


def by_metric(result, network="pretrained"):
    return {(row["method"], row["metric"]): row for row in result["rows"] if row["network"] == network}


def test_order_accuracy_equals_a_slow_one(demo, tmp_path):
    """Each test video by itself, frames cut and classified by hand."""
    run = trained(demo, tmp_path / "order", method="order")
    result = measure("pretext", demo, run, compute=ONE, draws=3)
    assert len(kept_scores(result).items) == 2
    source, saved = data.Shards(demo), checkpoint.load(run)
    network = Network(Settings(**saved.meta["settings"]), source)
    network.load_state_dict(saved.weights)
    network.eval()
    right, videos = [], 0
    for row, (shard, video) in enumerate(source.videos):
        reader = source.readers[shard]
        labels = reader.arrays["order/permutation"][video]
        if source.part[row] != 3 or (labels == 255).any():
            continue
        videos += 1
        for draw in range(3):
            shown = reader.order_frames(video, draw)[reader.orders[labels[draw]]]
            clips = np.stack([reader.frames(frames)[:, 4:36, 8:40] for frames in shown])  # centre crop
            x = network_input(clips)
            with torch.no_grad():
                pooled = [*network.backbone(x).values()][-1].mean((2, 3, 4))
                right.append(int(network.methods["order"].logits(pooled[None]).argmax()) == labels[draw])
    row = by_metric(result)["order", "accuracy"]
    assert (
        videos == 2
        and row["value"] == pytest.approx(100 * np.mean(right))
        and row["low"] <= row["value"] <= row["high"]
    )
    assert by_metric(result, "chance")["order", "accuracy"]["value"] == pytest.approx(100 / 6)
    p = result["protocol"]
    assert p["mode"] == "test part, seed of the draws 0" and p["items"] == "6 samples of 2 videos"
    assert "order leaves out: 3 videos too short for the order rows" in result["notes"]
    assert measure("pretext", demo, run, compute=Compute(3, 2, "cpu"), draws=3)["rows"] == result["rows"]
    assert (
        "order: only 4 rows are stored, so that the later ones of 5 draws repeat them"
        in measure("pretext", demo, run, compute=ONE, draws=5)["notes"]
    )
    assert "order   pretrained" in Pretext.format_table(result)


@pytest.mark.parametrize(
    "settings, metrics",
    [
        ({"method": "pace"}, {("pace", "accuracy"): 25}),
        ({"method": "statistics", "ema": 0.5}, {("statistics", "accuracy"): None}),
        ({"method": "rotation"}, {("rotation", "accuracy"): 25}),
        (
            {"method": "pace+rotation"},
            {("pace", "accuracy"): 25, ("rotation", "accuracy"): 25},
        ),
        (
            {"method": "tce", "backbone": "resnet18"},
            {("tce", "accuracy"): None, ("tce", "rotation accuracy"): 25},
        ),
        ({"method": "moco"}, {("moco", "accuracy"): None}),
        ({"method": "rspnet"}, {("rspnet", "accuracy"): None, ("rspnet", "speed accuracy"): 50}),
    ],
)
def test_every_method_with_an_accuracy(demo, tmp_path, settings, metrics):
    result = measure("pretext", demo, trained(demo, tmp_path / "run", **settings), compute=ONE)
    rows, chance = by_metric(result), by_metric(result, "chance")
    assert rows.keys() == chance.keys() == metrics.keys()
    for key, guessed in metrics.items():
        assert 0 <= rows[key]["low"] <= rows[key]["value"] <= rows[key]["high"] <= 100
        assert 0 < chance[key]["value"] < 100 and (guessed is None or chance[key]["value"] == pytest.approx(guessed))
    assert not any("training videos" in note for note in result["notes"])


def test_skip_clip_ranks_frames(demo, skip_clip):
    result = measure("pretext", demo, skip_clip, compute=ONE)
    assert by_metric(result, "chance")["skip_clip", "accuracy"]["value"] == 50
    assert by_metric(result, "chance")["skip_clip", "rotation accuracy"]["value"] == 25


def test_without_a_test_part_validation_then_held_out_videos(tmp_path):
    for name, split, options, told in (
        ("validated", [1, 1, 1, 1, 2, 2], {}, "validation part"),
        ("held", [1] * 6, {"holdout": 0.4}, "videos held out of training"),
    ):
        folder = tmp_path / name
        write_shard(folder / "00000.h5", [64] * 6, split)
        result = measure(
            "pretext", folder, trained(folder, tmp_path / f"run-{name}", method="rotation", **options), compute=ONE
        )
        assert (
            result["protocol"]["mode"] == f"{told}, seed of the draws 0"
            and "of 2 videos" in result["protocol"]["items"]
        )
        assert not any("training videos" in note for note in result["notes"])
    run = trained(folder, tmp_path / "all", method="rotation")
    with pytest.raises(TrainerError, match="neither a test nor a validation part, and no video was held out"):
        measure("pretext", folder, run, compute=ONE)
    assert measure("pretext", tmp_path / "validated", run, compute=ONE)["protocol"]["dataset"] == "validated"


def test_what_has_no_pretext_accuracy_is_refused(demo, tmp_path):
    for settings, told in (
        ({"method": "ascnet"}, "ascnet has no accuracy"),
        ({"method": "simclr"}, "simclr has no accuracy"),
        ({"method": "recognition"}, "trained with class labels, not on a pretext task"),
    ):
        with pytest.raises(TrainerError, match=told):
            measure("pretext", demo, trained(demo, tmp_path / settings["method"], **settings), compute=ONE)
    other = tmp_path / "other"
    write_shard(other / "00000.h5", [64] * 4, [1, 1, 3, 3])
    tce = trained(demo, tmp_path / "tce", method="tce", backbone="resnet18")
    with pytest.raises(TrainerError, match="compares with its training videos of demo, not of other"):
        measure("pretext", other, tce, compute=ONE)


def test_later_frames_equal_a_slow_measure(demo, skip_clip):
    result = measure("future", demo, skip_clip, compute=ONE, draws=2)
    source, saved = data.Shards(demo), checkpoint.load(skip_clip)
    network = Network(Settings(**saved.meta["settings"]), source)
    network.load_state_dict(saved.weights)
    network.eval()
    clips, _ = samples(Evaluator(demo, skip_clip, compute=ONE), source, np.flatnonzero(source.part == 3), "skip_clip")
    sums, method = np.zeros(3), network.methods["skip_clip"]
    for draw in range(2):
        for sample, (shard, video) in enumerate(clips.samples):
            one = clips.batch(np.array([[draw, sample]]))
            start = one["clips"].numpy()[0, 0]
            frames = source.readers[shard].frames(
                np.arange(source.readers[shard].arrays["videos/n_frames"][video])
                + source.readers[shard].arrays["videos/first_frame"][video]
            )[:, 4:36, 8:40]
            first = next(i for i in range(len(frames)) if (frames[i : i + 16] == start[:16]).all())
            assert all((start[16 + k] == frames[first + 15 + 2 * (k + 1)]).all() for k in range(3))
            x = network_input(start)[None]
            with torch.no_grad():
                h = [*network.backbone(x[:, :, :16]).values()][-1].mean(2)
                for k in range(3):
                    z = method.encode(x[:, :, 16 + k : 17 + k], h.shape[2:])
                    sums[k] += float(cosine_similarity(h, z, dim=1).mean()) / 2 / len(clips.samples)
    rows = {(row["network"], row["distance"]): row["value"] for row in result["rows"]}
    assert [rows["pretrained", d] for d in (2, 4, 6)] == pytest.approx(100 * sums, abs=1e-3)
    assert [d for network, d in rows if network == "random"] == [2, 4, 6] and rows["random", 2] != rows["pretrained", 2]
    assert len(result["sheets"]) == 2 and all(
        (skip_clip / "results" / one["file"]).exists() for one in result["sheets"]
    )
    path, _ = report(skip_clip)
    text = Page(path.read_text()).text
    assert "Later frames" in text and "100 x cosine" in text and "6 frames later" in path.read_text()
    assert json.loads((skip_clip / "results/future-demo-split1.json").read_text())["protocol"]["split"] == "split1"


def test_later_frames_are_of_skip_clip_alone(demo, unbroken):
    with pytest.raises(TrainerError, match="not a run of skip_clip"):
        measure("future", demo, unbroken, compute=ONE)
