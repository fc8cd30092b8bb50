import csv
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from labelgen.shards import ShardReader
from tests.command import vssl
from tests.trainer.plain import network_input
from tests.trainer.planted import Noise, SeesClass, kept_scores, write_colored
from tests.trainer.synthetic import CONFIG, extent, video_frames, write_shard
from trainer import checkpoint, data
from trainer.errors import ProtocolError, TrainerError
from trainer.evaluate import PROTOCOLS, features
from trainer.evaluate.evaluator import Evaluator, measure
from trainer.evaluate.features import Compute
from trainer.evaluate.metrics import accuracy
from trainer.evaluate.protocols import recognition
from trainer.evaluate.protocols.recognition import Predictions, Recognition, mistakes, predictions
from trainer.network import Network
from trainer.pages.compare import compare, format_table
from trainer.settings import Settings
from trainer.training import train

ONE = Compute(8, 0, "cpu")
TINY = Settings(method="recognition", width=0.06, epochs=1, workers=0, lr=0.02, batch_size=8, holdout=0.0)
FLOW = {**CONFIG, "flow": {"backend": "tvl1"}}
LENGTHS = [40, 20, 17, 9, 33, 24] * 3
LABELS = [f"class{video % 6}" for video in range(18)]
# three splits, each of which tests six other videos
SPLIT = np.where(np.arange(18)[:, None] // 6 == np.arange(3), 3, 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "six"
    write_shard(folder / "00000.h5", LENGTHS, SPLIT, LABELS, config=FLOW, splits=("a", "b", "c"))
    return folder


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """One finetuned run per split, the first with averaged weights."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    return [train(replace(TINY, split=name, ema=0.5), shards, folder / name) for name in "abc"]


def chosen(result, **wanted) -> list[dict]:
    return [row for row in result["rows"] if all(row.get(key) == value for key, value in wanted.items())]


@pytest.mark.parametrize(("all_clips", "hidden"), [(False, False), (True, False), (False, True)])
def test_equals_slow_protocol(shards, runs, tmp_path, all_clips, hidden):
    """The protocol once more: the trained modules themselves, one clip at a time, counted by hand."""
    run = runs[0]
    if hidden:
        settings = {"backbone": "c3d_light", "options": {"recognition": {"hidden": 6}}}
        run = train(replace(TINY, split="a", ema=0.5, **settings), shards, tmp_path / "hidden")
    result = measure("recognition", shards, run, compute=ONE, all_clips=all_clips)
    if not all_clips:
        kept_scores(result)
    source, saved = data.Shards(shards, "a"), checkpoint.load(run, best=True)
    network = Network(Settings(**saved.meta["settings"]), source)
    network.load_state_dict(saved.weights)
    averaged = network.ema.eval()  # evaluation uses the averaged weights, backbone and classifier
    frames = source.readers[0].frames(range(source.readers[0].arrays["videos/n_frames"].sum()))
    counts, right = np.zeros((6, 6), int), {"clip": [], "video": []}
    views, owner = "adjacent" if all_clips else "spread", []
    top, clips = {"clip": [], "video": []}, predictions(Evaluator(shards, saved.run, compute=ONE), saved, views).clips
    for video in range(6):
        first, n = extent(source.readers[0], video)
        total = np.zeros(6)
        starts = range(0, max(n - 15, 1), 16) if all_clips else np.linspace(0, max(0, n - 16), 10).round().astype(int)
        for start in starts:
            clip = np.stack([frames[first + (start + t) % n][4:36, 8:40] for t in range(16)])
            x = network_input(clip)[None]
            with torch.no_grad():
                logits = averaged["methods"]["recognition"].logits(averaged["backbone"], x)[0].double().numpy()
            probability = np.exp(logits) / np.exp(logits).sum()
            assert clips[len(right["clip"])] == pytest.approx(probability, abs=1e-5)
            right["clip"].append(probability.argmax() == video)
            top["clip"].append(video in np.argsort(-probability)[:5])
            owner.append(video)
            total += probability / len(starts)
        counts[video, total.argmax()] += 1
        right["video"].append(total.argmax() == video)
        top["video"].append(video in np.argsort(-total)[:5])
    assert result["confusion"] == {"classes": [f"class{i}" for i in range(6)], "counts": counts.tolist()}
    assert result["file"].endswith(f"recognition{'-all_clips' if all_clips else ''}-six-a.json")
    assert ("all clips that do not overlap" in result["protocol"]["views"]) == all_clips
    for level, items in (("clip", sum(max(1, n // 16) for n in LENGTHS[:6]) if all_clips else 60), ("video", 6)):
        assert len(right[level]) == items
        for metric, hits in (("accuracy", right), ("top-5", top)):
            (row,) = chosen(result, level=level, metric=metric)
            assert row["value"] == pytest.approx(100 * sum(hits[level]) / items)
            assert row["low"] <= row["value"] <= row["high"]
    classes = {row["class"]: row["value"] for row in chosen(result, metric="class accuracy", level="video")}
    assert classes == {f"class{i}": 100.0 * right["video"][i] for i in range(6)}
    of_clips = [[hit for hit, own in zip(right["clip"], owner, strict=True) if own == video] for video in range(6)]
    classes = {row["class"]: row["value"] for row in chosen(result, metric="class accuracy", level="clip")}
    assert classes == {f"class{i}": pytest.approx(100 * sum(own) / len(own)) for i, own in enumerate(of_clips)}


def planted_run(folder, source, head, **meta) -> None:
    """A run whose classifier is planted, for the planted backbones."""
    saved = checkpoint.load(source)
    weights = {
        **saved.weights,
        "methods.recognition.head.weight": head,
        "methods.recognition.head.bias": head[:, 0] * 0,
    }
    weights = {name: value.contiguous() for name, value in weights.items() if not name.startswith("ema.")}
    folder.mkdir()
    meta = {"vssl": json.dumps({**saved.meta, **meta})}
    save_file(weights, folder / "weights.safetensors", meta)


def test_disturbed_clips_lose_what_the_same_answers_say(shards, runs):
    plain = measure("recognition", shards, runs[1], compute=ONE)
    result = measure("recognition", shards, runs[1], compute=ONE, times=("reversed", "still"))
    assert result["file"].endswith("recognition-reversed-still-six-b.json") and result["protocol"]["time"]
    saved = checkpoint.load(runs[1], best=True)
    evaluator = Evaluator(shards, runs[1], compute=ONE)
    for level in ("clip", "video"):
        normal, turned = (
            predictions(evaluator, saved, time=time).hits(level)[0] for time in (None, data.Time("reversed"))
        )
        (row,) = chosen(result, level=level, metric="accuracy", time="normal")
        assert row["value"] == chosen(plain, level=level, metric="accuracy")[0]["value"] == 100 * normal.mean()
        (row,) = chosen(result, level=level, metric="accuracy", time="reversed")
        assert row["value"] == pytest.approx(100 * turned.mean())
        (row,) = chosen(result, level=level, metric="accuracy drop", time="reversed")
        assert (
            row["value"] == pytest.approx(100 * (normal.mean() - turned.mean()))
            and row["low"] <= row["value"] <= row["high"]
        )
    assert Recognition.format_table(result).count("still") > 1


def test_planted_classes_and_noise(tmp_path, runs, monkeypatch):
    """Colors of five videos each, in shards whose labels stand in another order than in the network."""
    write_colored(tmp_path / "colors" / "00000.h5", 20, split=[1, 1, 1, 1, *[3] * 16])
    names = ["color3", "color1", "color0", "color2", "nothing", "else"]
    order = torch.tensor([3, 1, 0, 2])
    for name, backbone, head in (
        ("sees", SeesClass, torch.cat([torch.eye(4)[order] * 9, torch.zeros(2, 4)])),
        ("noise", Noise, torch.cat([torch.eye(16)[order] * 9, torch.full((2, 16), -9.0)])),
    ):
        monkeypatch.setattr(features, "networks", lambda _, backbone=backbone: {"pretrained": backbone()})
        planted_run(tmp_path / name, runs[0], head, classes=names)
        result = measure("recognition", tmp_path / "colors", tmp_path / name, compute=ONE)
        assert result["protocol"]["items"] == "16 videos" and result["protocol"]["classes"] == 4
        found = {row["level"]: row for row in chosen(result, metric="accuracy")}
        counts = np.array(result["confusion"]["counts"])
        assert counts.sum() == 16 and counts[:4].sum(1).tolist() == [4] * 4
        if name == "sees":
            low = pytest.approx(100 * 16 / (16 + 1.96**2))
            assert all((row["value"], row["low"], row["high"]) == (100, low, 100) for row in found.values())
            assert (np.diag(counts) == [4, 4, 4, 4, 0, 0]).all()
        else:
            assert all(row["value"] < 50 and row["low"] <= 25 for row in found.values())
            assert 10 < found["clip"]["value"] < 40
        assert [row["class"] for row in chosen(result, metric="class accuracy", level="video")] == names[:4]


def test_class_accuracy_of_clips_by_hand(shards, runs, monkeypatch):
    """Of class 0 two of four clips are right and, by mean softmax, both videos; of class 1 the one clip of three is wrong."""
    saved, source = checkpoint.load(runs[0]), data.Shards(shards, "a")
    clips = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    videos, targets, owner = np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([0, 0, 1, 1, 2, 2, 2])
    scored = Predictions(saved, source, ["a", "b"], videos, targets, clips, owner, "by hand", [])
    monkeypatch.setattr(recognition, "predictions", lambda *_: scored)
    result = measure("recognition", shards, runs[0], compute=ONE)
    found = {(r["level"], r["class"]): r["value"] for r in chosen(result, metric="class accuracy")}
    assert found == {("clip", "a"): 50, ("clip", "b"): pytest.approx(200 / 3), ("video", "a"): 100, ("video", "b"): 100}
    told = Recognition.format_table(result).splitlines()
    assert [line.split() for line in told if line.startswith("class ")] == [
        ["class", "videos", "taken", "for", "clip", "video"]
    ]
    assert [line.split()[-2:] for line in told if line.startswith(("a ", "b "))] == [
        ["50.0", "100.0"],
        ["66.7", "100.0"],
    ]


def test_levels_by_hand():
    """Video 0: two clips say class 1 weakly, one class 0 strongly; the mean softmax says 0. Video 1: equal, the first."""
    clips = np.array([[0.4, 0.6], [0.4, 0.6], [1.0, 0.0], [0.5, 0.5]])
    nothing = dict.fromkeys(("saved", "source", "mode", "notes"))
    scored = Predictions(
        classes=["a", "b"],
        videos=np.array([4, 9]),
        targets=np.array([0, 1]),
        clips=clips,
        owner=np.array([0, 0, 0, 1]),
        **nothing,
    )
    assert scored.level("video")[0] == pytest.approx(np.array([[0.6, 0.4], [0.5, 0.5]]))
    assert scored.hits("clip")[0].tolist() == [False, False, True, False]
    assert scored.hits("video")[0].tolist() == [True, False]
    assert scored.hits("clip", 2)[0].all() and scored.hits("clip")[1].tolist() == [4, 4, 4, 9]


def test_order_of_the_shards_has_no_effect(shards, runs, tmp_path):
    turned = tmp_path / "six"
    for shard, part in (("00000", range(17, 8, -1)), ("00001", range(8, -1, -1))):
        part = list(part)
        write_shard(
            turned / f"{shard}.h5",
            [LENGTHS[i] for i in part],
            SPLIT[part],
            [LABELS[i] for i in part],
            [f"00000_{i}" for i in part],
            splits=("a", "b", "c"),
            frames=lambda seed, n, part=part: video_frames(part[seed % 100], n),
        )
    assert data.Shards(turned).text("videos/id") == [f"00000_{i}" for i in range(17, -1, -1)]
    one, other = (measure("recognition", folder, runs[1], compute=ONE) for folder in (shards, turned))
    assert one["confusion"] == other["confusion"]
    for first, second in zip(one["rows"], other["rows"], strict=True):
        assert first["value"] == second["value"]


def test_mean_of_three_splits(shards, runs):
    result = measure("recognition", shards, runs, compute=ONE)
    assert result["protocol"]["mode"].startswith("each video once over splits a, b, c")
    assert result["protocol"]["split"] is None and result["protocol"]["items"] == "18 videos"
    alone = [measure("recognition", shards, run, compute=ONE) for run in runs]
    for level in ("clip", "video"):
        for metric in ("accuracy", "top-5"):
            rows = {row["split"]: row["value"] for row in chosen(result, level=level, metric=metric)}
            single = [chosen(one, level=level, metric=metric)[0]["value"] for one in alone]
            assert rows == dict(zip("abc", single, strict=True)) | {"all": pytest.approx(np.mean(single))}
    assert (np.array(result["confusion"]["counts"]) == sum(np.array(one["confusion"]["counts"]) for one in alone)).all()
    assert [row["videos"] for row in chosen(result, metric="class accuracy", level="video")] == [3] * 6
    written = runs[0] / "results/recognition-six.json"
    assert json.loads(written.read_text()) | {"file": str(written)} == result
    assert all((run / f"results/recognition-six-{name}.json").exists() for run, name in zip(runs, "abc", strict=True))
    two = measure("recognition", shards, runs[:2], compute=ONE)
    assert two["protocol"]["mode"].startswith("mean over splits a, b,")
    assert [row["split"] for row in chosen(two, level="clip", metric="accuracy")] == ["a", "b", "mean"]


def test_means_over_splits_are_compared(tmp_path, here):
    """Splits whose test parts leave videos out, as those of UCF101: the mean of the accuracies, with its interval."""
    split = np.where(np.arange(20)[:, None] // 4 == np.arange(3), 3, 1)
    labels = [f"class{video % 2}" for video in range(20)]
    write_shard(tmp_path / "out" / "00000.h5", [20] * 20, split, labels, config=FLOW, splits=("a", "b", "c"))
    for name, lr in (("slow", 0.001), ("fast", 0.02)):
        runs = [train(replace(TINY, lr=lr, split=part), tmp_path / "out", f"{name}-{part}") for part in "abc"]
        result = measure("recognition", tmp_path / "out", runs, compute=ONE)
        (mean,) = chosen(result, level="video", metric="accuracy", split="mean")
        alone = [measure("recognition", tmp_path / "out", run, compute=ONE)["rows"] for run in runs]
        values = [chosen({"rows": rows}, level="video", metric="accuracy")[0]["value"] for rows in alone]
        assert mean["value"] == pytest.approx(sum(values) / 3) and mean["low"] <= mean["value"] <= mean["high"]
    found = compare(["slow-a", "fast-a"])
    (of_means,) = (one for one in found["tables"] if one["headline"] and one["headline"]["what"].get("split") == "mean")
    assert of_means["headline"]["of"]["fast-a"]["value"] == pytest.approx(mean["value"])
    assert f"{mean['value']:.1f}" in format_table(found)


def test_runs_that_cannot_be_averaged(shards, runs, demo, tmp_path):
    with pytest.raises(TrainerError, match="of splits a, a, expected different ones"):
        measure("recognition", shards, [runs[0], runs[0]])
    with pytest.raises(TrainerError, match="split is b, but each of several checkpoints"):
        measure("recognition", shards, runs, split="b")
    with pytest.raises(TrainerError, match="trained on six, .* holds demo; average runs on splits of one"):
        measure("recognition", demo, runs)
    settings = checkpoint.load(runs[1]).meta["settings"]
    head = torch.zeros(6, 31)
    planted_run(tmp_path / "longer", runs[1], head, settings={**settings, "epochs": 7})
    with pytest.raises(TrainerError, match="epochs is 1, but 7 in .*; average runs with the same"):
        measure("recognition", shards, [tmp_path / "longer", runs[0]])
    origin = {
        name: checkpoint.load(runs[1]).meta[name] for name in ("split", "samples", "steps", "step", "config_hash")
    }
    began = {"file": "pace", "settings": {"method": "pace"}, "dataset": "big", **origin}
    planted_run(tmp_path / "pace", runs[1], head, initial=began)
    with pytest.raises(TrainerError, match="started from pace on big, .* from random weights; average runs"):
        measure("recognition", shards, [runs[0], tmp_path / "pace"])
    planted_run(tmp_path / "renamed", runs[1], head, classes=["other"] * 6)
    with pytest.raises(TrainerError, match="other classes than"):
        measure("recognition", shards, [runs[0], tmp_path / "renamed"])


def test_what_cannot_be_tested(shards, runs, demo, run):
    with pytest.raises(TrainerError, match="trained with pace has no classifier; finetune it first"):
        measure("recognition", demo, run)
    with pytest.raises(
        TrainerError,
        match="^split is b, but the run was trained on split a of six, whose training videos are test videos of other splits$",
    ):
        measure("recognition", shards, runs[0], split="b")
    with pytest.raises(TrainerError, match="demo: the network knows the class of none of the 5 test videos"):
        measure("recognition", demo, runs[0])
    assert measure("recognition", shards, runs[0], split=1, compute=ONE)["protocol"]["split"] == "a"


def test_unknown_classes_are_left_out_and_counted(tmp_path, runs):
    labels = ["class3", "ski", "class0", "", "class3", "ski"]
    write_shard(tmp_path / "other" / "00000.h5", [20] * 6, labels=labels, splits=())
    result = measure("recognition", tmp_path / "other", runs[0], compute=ONE)
    assert result["notes"] == [
        "1 video without label left out",
        "2 videos left out because the network does not know the label",
    ]
    assert result["protocol"]["mode"] == "all labelled videos" and result["protocol"]["items"] == "3 videos"
    counts = np.array(result["confusion"]["counts"])
    assert counts.sum(1).tolist() == [1, 0, 0, 2, 0, 0]
    assert [row["class"] for row in chosen(result, metric="class accuracy", level="video")] == ["class0", "class3"]
    assert "ski" not in Recognition.format_table(result)


def test_training_videos_are_never_scored_silently(tmp_path):
    write_shard(tmp_path / "free" / "00000.h5", [20] * 12, labels=[f"c{i % 2}" for i in range(12)], splits=())
    kept = train(TINY, tmp_path, tmp_path / "kept")
    result = measure("recognition", tmp_path, kept, compute=ONE)
    assert result["protocol"]["mode"] == "TRAINING videos, no others are left"
    assert result["notes"] == ["12 of the 12 tested videos are training videos of recognition (with their labels)"]
    held = train(replace(TINY, holdout=0.34), tmp_path, tmp_path / "held")
    result = measure("recognition", tmp_path, held, compute=ONE)
    assert result["protocol"]["mode"] == "no test part: the labelled videos that were not trained on"
    assert result["protocol"]["items"] == "4 videos"
    assert result["notes"] == ["the videos held out of training also chose its checkpoint: the value is too high"]
    assert (kept / "results/recognition-free.json").exists()


def test_what_pretraining_saw_is_told(shards, tmp_path):
    first = train(Settings(method="rotation", width=0.06, epochs=1, workers=0, split="a"), shards, tmp_path / "first")
    second = train(replace(TINY, split="b"), shards, tmp_path / "second", initial=first)
    result = measure("recognition", shards, second, compute=ONE)
    assert result["notes"] == ["6 of the 6 tested videos are training videos of rotation, split a (without labels)"]
    text = Recognition.format_table(result)
    assert "started from rotation on six" in text and result["notes"][0] in text


def test_table_and_files(shards, runs):
    result = measure("recognition", shards, runs[0], compute=ONE)
    with open(runs[0] / "results/recognition-six-a.csv", newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [row["value"] for row in result["rows"]]
    lines = Recognition.format_table(result).splitlines()
    assert lines[0] == "recognition on six, split a" and "started from random weights" in lines
    assert max(map(len, lines)) <= 180 and sum(line.startswith("class") for line in lines) == 7
    assert mistakes({"classes": ["x", "y", "z"], "counts": [[1, 2, 3], [0, 4, 0], [0] * 3]}, "x") == "z 3, y 2"


# all protocols


@pytest.mark.parametrize(
    ("name", "advice"), [("recognition", "vssl finetune"), ("similarity", "--pairs"), ("future", "skip_clip")]
)
def test_what_a_pretraining_run_lacks_for_a_protocol_is_told(demo, run, name, advice):
    with pytest.raises(ProtocolError) as left_out:
        Evaluator(demo, run, compute=ONE).measure(name)
    assert advice in left_out.value.advice


def test_eval_all_from_the_command_line(shards, runs, tmp_path, monkeypatch):
    """A finetuned run on its own split, not the first; its shards are opened once."""
    shutil.rmtree(runs[1] / "results", ignore_errors=True)
    opened, reading = [], ShardReader.__init__
    monkeypatch.setattr(ShardReader, "__init__", lambda self, path: opened.append(str(path)) or reading(self, path))
    told = vssl("eval", "all", "--shards", shards, "--checkpoint", runs[1], "--workers", 0)
    assert opened == [str(shards / "00000.h5")]
    assert "recognition on six, split b" in told and "linear probe on six, split b" in told
    left_out = [line for line in told.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in left_out] == ["similarity", "pretext", "future"]
    assert left_out[0].startswith("left out: similarity: similarity needs the list of pairs")
    measured = {path.name.partition("-six")[0] for path in (runs[1] / "results").glob("*.json")}
    assert measured == PROTOCOLS.keys() - {"similarity", "pretext", "future"}
    assert "no shards" in vssl("eval", "all", "--shards", tmp_path, "--checkpoint", runs[1], code=1)


def test_recognition_from_the_command_line(shards, runs):
    options = ("eval", "recognition", "--shards", shards, "--workers", 0)
    told = vssl(*options, *(word for run in runs for word in ("--checkpoint", run)))
    assert "each video once over splits a, b, c" in told
    assert told.splitlines()[-1] == str(runs[0] / "results/recognition-six.json")
    wrong = vssl(*options, "--checkpoint", runs[0], "--split", "c", code=1)
    assert "Error: split is c, but the run was trained on split a" in wrong and "finetune --split c" in wrong


def test_finetuning_starts_from_the_newest_pretrained_run(shards, runs, run, tmp_path, monkeypatch):
    for age, place in ((60, run), (0, runs[0])):  # the finetuned one is the newer
        shutil.copytree(place, tmp_path / "runs" / place.name)
        for folder in (tmp_path / "runs" / place.name / "checkpoints").iterdir():
            os.utime(folder, (time.time() - age,) * 2)
    monkeypatch.chdir(tmp_path)
    assert checkpoint.newest_run().name == runs[0].name
    options = ("finetune", "--shards", shards, "--epochs", 1, "--workers", 0, "--device", "cpu")
    vssl(*options, "--run", "tuned")
    assert checkpoint.load("tuned").meta["initial"]["settings"]["method"] == "pace"
    wrong = vssl(*options, "--scratch", "--set", "dropout=1", code=2)
    assert "dropout is 1.0, expected 0 or more and less than 1" in wrong


def test_intervals_are_by_video(shards, runs):
    result = measure("recognition", shards, runs[2], compute=ONE)
    source, saved = data.Shards(shards, "c"), checkpoint.load(runs[2], best=True)
    scored = predictions(Evaluator(shards, saved.run, compute=ONE), saved)
    assert scored.videos.tolist() == list(range(12, 18)) and (source.part[scored.videos] == data.TEST).all()
    (row,) = chosen(result, level="clip", metric="accuracy")
    hit = scored.clips.argmax(1) == scored.targets[scored.owner]
    assert row == {"level": "clip", "metric": "accuracy", **accuracy([hit], [np.repeat(np.arange(6), 10)])}
