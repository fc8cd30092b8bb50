import csv
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.trainer.plain import network_input
from tests.trainer.synthetic import extent, write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate import evaluator, features
from trainer.evaluate.evaluator import Evaluator, measure
from trainer.evaluate.features import Compute, Vectors
from trainer.evaluate.metrics import accuracy
from trainer.evaluate.neighbours import nearest
from trainer.evaluate.protocols.retrieval import KS, Retrieval, chance, hits
from trainer.evaluate.results import headline, read_results
from trainer.evaluate.results import shown as shown_row
from trainer.network import build_backbone
from trainer.pages.report import report
from trainer.settings import Settings
from trainer.training import train

CPU = torch.device("cpu")


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def slow_nearest(queries, gallery, k):
    found = []
    for vector, video in zip(*queries, strict=True):
        similarity = [
            (-float(vector @ item), place)
            for place, (item, owner) in enumerate(zip(*gallery, strict=True))
            if owner != video
        ]
        found.append([place for _, place in sorted(similarity)[:k]])
    return np.array(found)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_nearest_equals_brute_force_with_ties(chunk):
    rng = np.random.default_rng(0)
    # of length 2 with few values: cosines are exact in float32, and many are equal, some of them negative or zero
    vectors = np.array(
        [[2, 0, 0, 0], [0, 2, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [-1, 1, 1, 1], [0, 0, 0, -2]], np.float32
    )
    vectors, video = vectors[rng.integers(6, size=60)], np.repeat(np.arange(20), 3)
    one, other = rng.permutation(60)[:25], rng.permutation(60)[:40]
    queries = Vectors(vectors[one], video[one])
    scaled = vectors[other] * rng.choice([0.5, 1, 4], 40).astype(np.float32)[:, None]  # exact, too
    found = nearest(queries, Vectors(scaled, video[other]), 12, CPU, chunk)
    assert (found == slow_nearest((vectors[one] / 2, video[one]), (vectors[other] / 2, video[other]), 12)).all()


def split_half(vectors, targets):
    """Queries are the first half of the videos [videos, views, d], the gallery the second."""
    n, views = len(targets) // 2, vectors.shape[1]
    video = np.repeat(np.arange(n), views)
    queries, gallery = (half.reshape(n * views, -1) for half in (vectors[:n], vectors[n:]))
    found = nearest(Vectors(queries, video), Vectors(gallery, video + n), 50, CPU)
    return 100 * hits(targets[n:][video[found]], targets[:n][video]).mean(0)


def test_planted_classes_are_found_and_noise_is_chance():
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(400) % 5)
    planted = unit(np.eye(5)[targets][:, None] + 0.01 * rng.normal(size=(400, 3, 5)))
    assert (split_half(planted, targets) == 100).all()
    top = split_half(unit(rng.normal(size=(400, 3, 64))), targets)
    assert top[0] == pytest.approx(20, abs=4) and top[4] == pytest.approx(67, abs=6)
    assert chance(targets[:200], targets[200:], 3, KS)[1] == pytest.approx(20, abs=2)


def test_a_query_never_finds_its_own_video():
    vectors = unit(np.random.default_rng(0).normal(size=(4, 8))).repeat(3, axis=0)  # own views would be the best
    video = np.repeat(np.arange(4), 3)
    found = nearest(Vectors(vectors, video), Vectors(vectors, video), 50, CPU)
    assert found.shape == (12, 9) and (video[found] != video[:, None]).all()
    assert not hits(video[found], video).any() and hits(video[found] // 2, video // 2)[:, -1].all()


def test_chance_by_hand():
    top = chance(np.array([0, 1]), np.array([0, 0, 1, 2]), 1, KS)
    assert top[1] == pytest.approx(100 * (2 / 4 + 1 / 4) / 2) and top[5] == 100
    assert set(chance(np.array([3]), np.array([0, 0, 1]), 1, KS).values()) == {0.0}
    pairs = np.array([0, 0, 1, 1])
    assert chance(pairs, pairs, 1, KS, np.arange(4))[1] == pytest.approx(100 / 3)
    assert chance(pairs, pairs, 10, KS, np.arange(4))[1] == pytest.approx(100 * 10 / 30)


@pytest.fixture(scope="module")
def result(demo, run):
    torch.set_num_threads(1)
    return measure("retrieval", demo, run, compute=Compute(16, 0, "cpu"))


def test_equals_slow_protocol(demo, run, result):
    """The protocol once more: one clip at a time, features in lists, sorting by hand."""
    source = data.Shards(demo)
    frames = [reader.frames(range(len(reader.arrays["frames/offset"]) - 1)) for reader in source.readers]
    labels = source.text("videos/label")
    backbone = features.networks(checkpoint.load(run))["pretrained"].eval()
    vectors = []
    for shard, video in source.videos:
        first, n = extent(source.readers[shard], video)
        clip_vectors = []
        for start in np.linspace(0, max(0, n - 16), 10).round().astype(int):
            clip = np.stack([frames[shard][first + (start + t) % n][4:36, 8:40] for t in range(16)])
            with torch.no_grad():
                stage = backbone(network_input(clip)[None])["conv4"]
            clip_vectors.append(F.adaptive_max_pool3d(stage, (2, 3, 3)).flatten().numpy())
        vectors.append(clip_vectors)
    for level in ("clip", "video"):
        found = dict.fromkeys(KS, 0)
        queries = [v for v in range(13) if source.part[v] == 3]
        for v in queries:
            mean = [unit(np.mean(vectors[v], 0))]
            for vector in [unit(vector) for vector in vectors[v]] if level == "clip" else mean:
                scored = []
                for g in range(13):
                    if source.part[g] == 1:
                        items = (
                            [unit(item) for item in vectors[g]] if level == "clip" else [unit(np.mean(vectors[g], 0))]
                        )
                        scored += [(float(vector @ item), labels[g]) for item in items]
                order = [label for _, label in sorted(scored, key=lambda pair: -pair[0])]
                for k in KS:
                    found[k] += labels[v] in order[:k]
        count = len(queries) * (10 if level == "clip" else 1)
        expected = {f"top-{k}": 100 * hit / count for k, hit in found.items()}
        rows = [
            row
            for row in result["rows"]
            if (row["network"], row.get("stage"), row.get("pooling"), row["level"])
            == ("pretrained", "conv4", "max", level)
        ]
        assert {row["metric"]: row["value"] for row in rows} == pytest.approx(expected)
        assert all(row["dimensions"] == 15 * 18 and row["low"] <= row["value"] <= row["high"] for row in rows)


def test_protocol_is_told(run, result):
    protocol = result["protocol"]
    assert protocol["items"] == "5 query and 8 gallery videos" and protocol["classes"] == 2
    assert protocol["mode"] == "test part against train part" and protocol["split"] == "split1"
    assert protocol["pretraining"]["method"] == "pace" and protocol["pretraining"]["steps"] == 1
    assert protocol["largest_class"] == 40  # 5 of 8 gallery videos swim, 2 of 5 queries do
    assert len(result["rows"]) == (2 * 5 * 2 * 2 + 2) * len(KS)
    assert result["notes"] == ["video level: only 8 gallery items; larger k use all of them"]
    assert [len(shown["nearest"]) for shown in result["neighbours"]] == [5] * 5
    for shown in result["neighbours"]:
        cosines = shown["cosines"]
        assert (
            len(cosines) == 5 and cosines == sorted(cosines, reverse=True) and -1 <= min(cosines) <= max(cosines) <= 1
        )
    written = run / "results/retrieval-demo-split1.json"
    assert json.loads(written.read_text()) | {"file": str(written)} == result
    with open(run / "results/retrieval-demo-split1.csv", newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [row["value"] for row in result["rows"]]
    table = Retrieval.format_table(result).splitlines()
    assert max(map(len, table)) <= 140 and sum(line.startswith("random") for line in table) == 10


def test_random_row_is_the_network_that_training_began_with(demo, run):
    networks = features.networks(checkpoint.load(run))
    fresh = build_backbone(Settings(backbone="r3d10", width=0.06, seed=0))
    same = zip(networks["random"].parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    pairs = zip(networks["pretrained"].parameters(), networks["random"].parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs if one.ndim > 1)


def test_features_do_not_depend_on_batch_size_workers_or_order(demo, run):
    source, saved = data.Shards(demo), checkpoint.load(run)
    backbone = features.networks(saved)["pretrained"]

    def extract(videos, *compute):
        shutil.rmtree(run / "features", ignore_errors=True)
        return features.features(
            saved, "pretrained", backbone, source, videos, "spread", Compute(*compute, "cpu")
        ).arrays

    first = {key: np.array(values) for key, values in extract(source.videos[:4], 1, 0).items()}
    for other in (extract(source.videos[:4], 7, 2), extract(source.videos[:4], 64, 0)):
        for key, values in first.items():
            assert values.shape == other[key].shape and np.abs(values - other[key]).max() < 1e-5
    backwards = extract(source.videos[3::-1], 7, 0)
    for key, values in first.items():
        turned = backwards[key].reshape(4, 10, -1)[::-1].reshape(40, -1)
        assert np.abs(values - turned).max() < 1e-5


def test_features_are_extracted_once_and_kept_whole(demo, run, monkeypatch):
    source, saved = data.Shards(demo), checkpoint.load(run)
    networks = features.networks(saved)
    shutil.rmtree(run / "features", ignore_errors=True)

    def extract(name, videos=source.videos[:2]):
        return features.features(saved, name, networks[name], source, videos, "spread", Compute(8, 0, "cpu"))

    monkeypatch.setattr(features, "stage_outputs", stop_after_one := StopAfterOne(features.stage_outputs))
    with pytest.raises(KeyboardInterrupt):
        extract("pretrained")
    assert list((run / "features").iterdir()) == []
    monkeypatch.undo()
    first = extract("pretrained")
    assert stop_after_one.calls == 1 and first.owner.tolist() == [0] * 10 + [1] * 10
    monkeypatch.setattr(features, "stage_outputs", None)
    again = extract("pretrained")
    assert all((first.arrays[key] == again.arrays[key]).all() for key in first.arrays)
    for name, videos in (("random", source.videos[:2]), ("pretrained", source.videos[1:3])):
        with pytest.raises(TypeError):  # other weights, other videos: not the kept ones
            extract(name, videos)


class StopAfterOne:
    def __init__(self, original):
        self.original, self.calls = original, 0

    def __call__(self, *args):
        self.calls += 1
        yield next(iter(self.original(*args)))
        raise KeyboardInterrupt


def test_without_two_parts_each_video_searches_all_others(tmp_path, run):
    write_shard(tmp_path / "free" / "00000.h5", [20, 20, 20, 20], splits=(), labels=["a", "b", "a", ""])
    result = measure("retrieval", tmp_path, run)
    assert result["protocol"]["mode"] == "each video against all others" and result["protocol"]["split"] is None
    assert result["protocol"]["items"] == "3 query and 3 gallery videos"
    assert "1 video without label left out" in result["notes"]
    assert (run / "results/retrieval-free.json").exists()


def test_searching_training_videos_is_told(demo, tmp_path):
    free = tmp_path / "demo"
    write_shard(free / "00000.h5", [64] * 6, splits=())
    found = measure("retrieval", free, train(Settings(width=0.06, epochs=1, workers=0), free, tmp_path / "run"))
    assert "6 of the 6 tested videos are training videos of pace (without labels)" in found["notes"]
    scored = measure("scenes", free, tmp_path / "run", compute=Compute(8, 0, "cpu"))
    assert "6 of the 6 tested videos are training videos of pace (without labels)" in scored["notes"]


def test_validation_part_stands_in_for_the_test_part(tmp_path, run):
    write_shard(tmp_path / "val" / "00000.h5", [20, 20, 20], split=[1, 2, 1])
    protocol = measure("retrieval", tmp_path, run)["protocol"]
    assert protocol["mode"] == "validation part against train part"
    assert protocol["items"] == "1 query and 2 gallery videos"


def test_one_data_set_searches_another(tmp_path, run):
    write_shard(tmp_path / "a" / "00000.h5", [20, 20, 20], split=[1, 3, 3], labels=["x", "y", "z"])
    write_shard(tmp_path / "b" / "00000.h5", [20] * 4, split=[1, 1, 1, 3], labels=["y", "y", "q", "z"])
    result = measure("retrieval", checkpoint=run, query=tmp_path / "a", gallery=tmp_path / "b")
    assert result["protocol"]["items"] == "1 query and 3 gallery videos" and result["protocol"]["gallery"] == "b"
    assert result["protocol"]["mode"] == "a (test part) against b (train part)"
    assert result["notes"][0] == "1 queries left out because b lacks their class"
    top = {(row["level"], row["metric"]): row["value"] for row in result["rows"] if row["network"] == "chance"}
    assert top["video", "top-1"] == pytest.approx(200 / 3) and top["video", "top-5"] == 100
    assert (run / "results/retrieval-b-by-a-split1.json").exists()
    assert "Retrieval from b by a, split split1" in [own.title for own in read_results(run)[0]]
    with pytest.raises(TrainerError, match="query and gallery must be given together"):
        measure("retrieval", checkpoint=run, query=tmp_path / "a")


def test_without_a_class_in_common_neighbours_are_listed_unscored(tmp_path, run):
    write_shard(tmp_path / "a" / "00000.h5", [20, 20, 20], split=[1, 3, 3], labels=["x", "y", "z"])
    write_shard(tmp_path / "b" / "00000.h5", [20] * 4, split=[1, 1, 1, 3], labels=["p", "p", "q", "r"])
    result = measure("retrieval", checkpoint=run, query=tmp_path / "a", gallery=tmp_path / "b")
    assert result["rows"] == [] and result["notes"] == [
        "a and b have no class in common: neighbours are listed, unscored"
    ]
    assert result["protocol"]["items"] == "2 query and 3 gallery videos" and "classes" not in result["protocol"]
    assert [(query["query"], query["label"]) for query in result["neighbours"]] == [("00000_1", "y"), ("00000_2", "z")]
    evaluator_ = Evaluator(tmp_path / "a", run)
    vectors = []
    for name, videos in (("a", [1, 2]), ("b", [0, 1, 2])):
        source = evaluator_.open(tmp_path / name)
        vectors.append(
            evaluator_.features("pretrained", source, np.array(videos), "spread").video_means(("conv5", "max"))
        )
    for query, own in zip(result["neighbours"], vectors[0] @ vectors[1].T, strict=True):
        order = np.argsort(-own)
        assert query["nearest"] == [[f"00000_{i}", "ppq"[i]] for i in order]
        assert query["cosines"] == pytest.approx(own[order], abs=1e-5)
    told = Retrieval.format_table(result)
    assert "\n00000_1 (y)\n" in told and "nothing is scored" in told and "note: a and b" in told
    (own,) = (own for own in read_results(run)[0] if own.title == "Retrieval from b by a, split split1")
    assert headline(own) is None
    page = report(run, [tmp_path / "a", tmp_path / "b"])[0].read_text()
    assert "Found 1: 00000_" in page and "✗" not in page and "✓" not in page


def test_the_default_split_is_the_runs_own_on_its_data_set(tmp_path, monkeypatch):
    for name in ("demo", "other"):
        split = [[1, 3], [1, 3], [3, 1]]
        write_shard(tmp_path / name / "00000.h5", [20] * 3, split=split, splits=("a", "b"))
    saved = SimpleNamespace(meta={"dataset": "demo", "split": "b", "settings": {"method": "pace"}})
    monkeypatch.setattr(evaluator, "load", lambda *_, **__: saved)
    for name, split, opened in (("demo", None, "b"), ("demo", 1, "a"), ("other", None, "a")):
        assert Evaluator(tmp_path / name, "run", split).source().split == opened


def test_intervals_are_shown_by_their_ends(result):
    assert shown_row({"value": 69.12, "low": 64, "high": 73.81}) == "69.1 [64.0, 73.8]"
    assert shown_row(accuracy([np.ones(10, bool)], [np.arange(10)])) == "100.0 [72.2, 100.0]"
    assert shown_row({"value": 69.12}) == "69.1"
    first = result["rows"][0]
    (line,) = (
        line for line in Retrieval.format_table(result).splitlines() if line.startswith("pretrained  conv1  max")
    )
    assert line.split()[3:6] == shown_row(first).split() and line.count("[") == 2  # of k = 1, of clips and videos


def test_video_means_by_hand():
    arrays = {("conv5", "max"): np.array([[1, 0], [0, 3], [3, 4], [-1, 0], [1, 0]], np.float32)}
    means = features.Features(arrays, np.array([0, 0, 1, 2, 2])).video_means(("conv5", "max"))
    assert means == pytest.approx(np.array([[0.1**0.5, 0.9**0.5], [0.6, 0.8], [0, 0]]))


def test_parts_of_the_time_stand_side_by_side():
    clips, half, key = np.zeros((20, 2), np.float32), 0.5**0.5, ("conv5", "mean")  # of two videos
    clips[:5], clips[5:10], clips[10:] = (3, 0), (0, 2), (4, 4)
    found = features.Features({key: clips}, np.repeat([0, 1], 10))
    assert found.video_means(key, 2) == pytest.approx(np.array([[1, 0, 0, 1], [half] * 4]))
    split = [clips[start:stop].mean(0) for start, stop in ((0, 4), (4, 7), (7, 10))]  # as np.array_split
    assert found.video_means(key, 3)[0] == pytest.approx(np.concatenate([unit(part) for part in split]))
    assert found.of_videos(np.array([1]), [key]).video_means(key, 2) == pytest.approx(np.array([[half] * 4]))


def test_no_labels(tmp_path, run):
    write_shard(tmp_path / "bare" / "00000.h5", [20, 20], labels=["", ""])
    with pytest.raises(TrainerError, match="bare: its videos have no class labels, which this protocol needs"):
        measure("retrieval", tmp_path, run)
    write_shard(tmp_path / "one" / "00000.h5", [20, 20], splits=(), labels=["", "a"])
    with pytest.raises(TrainerError, match="one: only 1 labelled video"):
        measure("retrieval", tmp_path / "one", run)


_LARGE = """
import resource
import numpy as np, torch
from trainer.evaluate.features import Vectors
from trainer.evaluate.neighbours import nearest
torch.set_num_threads(1)
vectors, video, device = np.load({file!r}, mmap_mode="r"), np.arange(6000), torch.device("cpu")
nearest(Vectors(vectors[:4], video[:4]), Vectors(vectors[:9], video[:9]), 5, device)  # what torch loads at its first use
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (256 << 20),) * 2)
np.save({out!r}, nearest(Vectors(vectors[:3000], video[:3000]), Vectors(vectors[3000:], video[3000:]), 50, device))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_features_are_searched_in_bounded_memory_exactly(tmp_path):
    """256 MB beside the memory map, where the features take 221 MB and all similarities 72 MB for every copy."""
    rng, file, out = np.random.default_rng(0), tmp_path / "features.npy", tmp_path / "found.npy"
    vectors = np.lib.format.open_memmap(file, "w+", np.float32, (6000, 9216))
    for part in np.array_split(vectors, 20):
        part[:] = rng.standard_normal(part.shape, np.float32)
    vectors.flush()
    program = _LARGE.format(file=str(file), out=str(out))
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    queries, gallery = vectors[:3000:300].astype(float), vectors[3000:]
    similarity = np.concatenate(
        [
            queries @ (part / np.linalg.norm(part.astype(float), axis=1)[:, None]).T
            for part in np.array_split(gallery, 10)
        ],
        1,
    )
    assert (np.load(out)[::300] == np.argsort(-similarity, 1, kind="stable")[:, :50]).all()
