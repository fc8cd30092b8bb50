import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.trainer.synthetic import write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate import features
from trainer.evaluate.retrieval import KS, accuracy, chance, format_table, nearest, retrieval, video_features
from trainer.loop import train
from trainer.methods import build_backbone
from trainer.settings import Settings

CPU = torch.device("cpu")


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def slow_nearest(vectors, owner, queries, gallery, k):
    found = []
    for q in queries:
        similarity = [
            (-float(vectors[q] @ vectors[g]), place, g) for place, g in enumerate(gallery) if owner[g] != owner[q]
        ]
        found.append([g for _, _, g in sorted(similarity)[:k]])
    return np.array(found)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_nearest_equals_brute_force_with_ties(chunk):
    rng = np.random.default_rng(0)
    # small integers: similarities are exact in float32, and many are equal, some of them negative or zero
    vectors = rng.integers(-2, 3, (60, 3)).astype(np.float32)
    owner = np.repeat(np.arange(20), 3)
    queries, gallery = rng.permutation(60)[:25], rng.permutation(60)[:40]
    found = nearest(vectors, owner, queries, gallery, 12, CPU, chunk)
    assert (found == slow_nearest(vectors, owner, queries, gallery, 12)).all()


def masks(n, queries):
    query = np.zeros(n, bool)
    query[:queries] = True
    return query, ~query


def test_planted_classes_are_found_and_noise_is_chance():
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(400) % 5)
    query, gallery = masks(400, 200)
    planted = unit(np.eye(5)[targets][:, None] + 0.01 * rng.normal(size=(400, 3, 5)))
    assert accuracy(planted, targets, query, gallery, CPU) == ({str(k): 100.0 for k in KS}, 50)
    top, _ = accuracy(unit(rng.normal(size=(400, 3, 64))), targets, query, gallery, CPU)
    assert top["1"] == pytest.approx(20, abs=4) and top["5"] == pytest.approx(67, abs=6)
    assert chance(targets, query, gallery, 3)["1"] == pytest.approx(20, abs=2)


def test_a_query_never_finds_its_own_video():
    targets = np.arange(4) // 2
    vectors = unit(np.random.default_rng(0).normal(size=(4, 1, 8))).repeat(3, axis=1)  # own views would be the best
    everything = np.ones(4, bool)
    alone = np.arange(4)
    assert accuracy(vectors, alone, everything, everything, CPU) == ({str(k): 0.0 for k in KS}, 9)
    assert accuracy(vectors, targets, everything, everything, CPU)[0]["50"] == 100


def test_chance_by_hand():
    targets = np.array([0, 1, 0, 0, 1, 2])
    query, gallery = masks(6, 2)  # gallery classes 0, 0, 1, 2
    top = chance(targets, query, gallery, 1)
    assert top["1"] == pytest.approx(100 * (2 / 4 + 1 / 4) / 2) and top["5"] == 100
    only_two = chance(np.array([3, 0, 0, 1]), *masks(4, 1), 1)
    assert set(only_two.values()) == {0.0}
    everything = np.ones(4, bool)
    assert chance(np.array([0, 0, 1, 1]), everything, everything, 1)["1"] == pytest.approx(100 / 3)
    assert chance(np.array([0, 0, 1, 1]), everything, everything, 10)["1"] == pytest.approx(100 * 10 / 30)


def test_video_features():
    clips = np.array([[[1, 0], [0, 1]], [[1, 0], [-1, 0]]], np.float32)
    assert video_features(clips) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 0]]))


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    return train(Settings(width=0.06, epochs=1, workers=0, lr=0.1), demo, tmp_path_factory.mktemp("runs") / "pace")


@pytest.fixture(scope="module")
def result(demo, run):
    torch.set_num_threads(1)
    return retrieval(demo, run, batch_size=16, workers=0, device="cpu")


def test_equals_slow_protocol(demo, run, result):
    """The protocol once more: one clip at a time, features in lists, sorting by hand."""
    source = data.Shards(demo)
    frames = [reader.frames(range(len(reader.arrays["frames/offset"]) - 1)) for reader in source.readers]
    labels = source.text("videos/label")
    backbone = features.backbones(checkpoint.load(run))["pretrained"].eval()
    vectors = []
    for shard, video in source.videos:
        arrays = source.readers[shard].arrays
        first, n = arrays["videos/first_frame"][video], arrays["videos/n_frames"][video]
        clip_vectors = []
        for start in np.linspace(0, max(0, n - 16), 10).round().astype(int):
            clip = np.stack([frames[shard][first + (start + t) % n][4:36, 8:40] for t in range(16)])
            with torch.no_grad():
                x = torch.tensor((clip / 255 - 0.45) / 0.225).float().permute(3, 0, 1, 2)[None]
                stage = backbone(x)["conv4"]
            clip_vectors.append(F.normalize(F.adaptive_max_pool3d(stage, (2, 3, 3)).flatten(), dim=0).numpy())
        vectors.append(clip_vectors)
    for level in ("clip", "video"):
        hits = dict.fromkeys(KS, 0)
        queries = [v for v in range(13) if source.part[v] == 3]
        for v in queries:
            mean = [unit(np.mean(vectors[v], 0))]
            for vector in vectors[v] if level == "clip" else mean:
                scored = []
                for g in range(13):
                    if source.part[g] == 1:
                        items = vectors[g] if level == "clip" else [unit(np.mean(vectors[g], 0))]
                        scored += [(float(vector @ item), labels[g]) for item in items]
                order = [label for _, label in sorted(scored, key=lambda pair: -pair[0])]
                for k in KS:
                    hits[k] += labels[v] in order[:k]
        count = len(queries) * (10 if level == "clip" else 1)
        expected = {str(k): 100 * hit / count for k, hit in hits.items()}
        (row,) = [
            row
            for row in result["rows"]
            if (row["network"], row.get("stage"), row.get("pooling"), row["level"])
            == ("pretrained", "conv4", "max", level)
        ]
        assert row["top"] == pytest.approx(expected) and row["dimensions"] == 15 * 18


def test_protocol_is_told(run, result):
    protocol = result["protocol"]
    assert (protocol["queries"], protocol["gallery"], protocol["classes"]) == (5, 8, 2)
    assert protocol["mode"] == "test part searches train part" and protocol["split"] == "split1"
    assert protocol["pretraining"]["method"] == "pace" and protocol["pretraining"]["steps"] == 1
    assert protocol["majority"] == 40  # 5 of 8 gallery videos swim, 2 of 5 queries do
    assert len(result["rows"]) == 2 * 5 * 2 * 2 + 2
    assert result["notes"] == ["video level: only 8 gallery items; larger k search them all"]
    assert json.loads((run / "retrieval-demo.json").read_text()) == result
    assert not list(run.glob(".features-*"))
    table = format_table(result).splitlines()
    assert max(map(len, table)) <= 120 and sum(line.startswith("random") for line in table) == 10


def test_random_row_is_the_network_that_training_began_with(demo, run):
    networks = features.backbones(checkpoint.load(run))
    fresh = build_backbone(Settings(backbone="r3d10", width=0.06, seed=0))
    same = zip(networks["random"].parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    pairs = zip(networks["pretrained"].parameters(), networks["random"].parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs if one.ndim > 1)


def test_features_do_not_depend_on_batch_size_or_workers(demo, run, tmp_path):
    source = data.Shards(demo)
    backbone = features.backbones(checkpoint.load(run))["pretrained"]
    all_features = []
    for batch_size, workers in ((1, 0), (7, 2), (64, 0)):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        all_features.append(features.extract(backbone, source, source.videos[:4], folder, batch_size, workers, CPU))
    for other in all_features[1:]:
        for key, values in all_features[0].items():
            assert values.shape == other[key].shape and np.abs(values - other[key]).max() < 1e-5
    backwards = features.extract(backbone, source, source.videos[3::-1], tmp_path, 7, 0, CPU)
    assert all(np.abs(values - backwards[key][::-1]).max() < 1e-5 for key, values in all_features[0].items())


def test_without_two_parts_each_video_searches_all_others(tmp_path, run):
    write_shard(tmp_path / "free" / "00000.h5", [20, 20, 20, 20], splits=(), labels=["a", "b", "a", ""])
    result = retrieval(tmp_path, run, workers=0)
    assert result["protocol"]["mode"] == "each video searches all others" and result["protocol"]["split"] is None
    assert result["protocol"]["queries"] == result["protocol"]["gallery"] == 3
    assert "1 videos without label left out" in result["notes"]
    assert (run / "retrieval-free.json").exists()


def test_validation_part_stands_in_for_the_test_part(tmp_path, run):
    write_shard(tmp_path / "val" / "00000.h5", [20, 20, 20], split=[1, 2, 1])
    protocol = retrieval(tmp_path, run, workers=0)["protocol"]
    assert protocol["mode"] == "validation part searches train part"
    assert (protocol["queries"], protocol["gallery"]) == (1, 2)


def test_no_labels(tmp_path, run):
    write_shard(tmp_path / "bare" / "00000.h5", [20, 20], labels=["", ""])
    with pytest.raises(TrainerError, match="bare: its videos have no class labels, which retrieval needs"):
        retrieval(tmp_path, run)
    write_shard(tmp_path / "one" / "00000.h5", [20, 20], splits=(), labels=["", "a"])
    with pytest.raises(TrainerError, match="one: only one labelled video"):
        retrieval(tmp_path / "one", run)
