"""Tables of features: how they are made, searched and clustered."""

import contextlib
import re
import tracemalloc

import cv2
import numpy as np
import pyarrow as pa
import pytest

from trainer.embeddings import clustering, extract, groups, search
from trainer.embeddings.table import TEXTS, Table, write_part
from trainer.errors import TrainerError

DOTS = np.array([[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 1, 0, 0], [0, 0.9, 0.1, 0], [0.8, 0.2, 0, 0]], np.float32)


class Many:
    """A source of as many parts as asked for, and an extractor of large vectors."""

    settings = dict.fromkeys(("weights", "level", "stage", "pooling", "views"), "") | {"frames": {}}
    about, config, width = {}, {}, 256

    def __init__(self, parts):
        self.parts, self.count = range(parts), 100 * parts

    def stamp(self, part):
        return part

    def size(self, part):
        return 100

    def files(self):
        return {f"{part:03d}/{video:03d}": str(part) for part in self.parts for video in range(100)}

    @contextlib.contextmanager
    def open(self, part, scratch):
        yield extract.Piece(None, None, [{"id": f"{part:03d}/{video:03d}"} for video in range(100)], [])

    def __call__(self, piece):
        ids = [field["id"] for field in piece.fields for _ in range(20)]
        vectors = np.random.default_rng(0).random((len(ids), self.width), np.float32)
        texts = dict.fromkeys(TEXTS, ids)
        return vectors, texts | {
            "start": [0.0] * len(ids),
            "end": [1.0] * len(ids),
            "thumbnail": [b"x" * 500] * len(ids),
        }


def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    def peak(parts):
        tracemalloc.start()
        table = extract.embed(Many(parts), Many(parts), tmp_path / f"{parts}.parquet")
        own = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert table.rows == 2000 * parts
        return own, pa.default_memory_pool().max_memory()

    few, few_arrow = peak(6)
    many, many_arrow = peak(24)
    assert many < 1.2 * few and many_arrow < 1.2 * few_arrow


def planted(path, vectors, names, starts=None):
    """A table of these vectors; starts: of moments of one second each."""
    starts = [0.0] * len(names) if starts is None else starts
    texts = {name: list(names) for name in TEXTS}
    times = {"start": starts, "end": [start + 1 for start in starts]}
    write_part(path, {"key": "x"}, vectors, texts | times | {"thumbnail": [b""] * len(names)})
    return Table(path)


def test_overlapping_moments_and_those_of_one_video_are_limited(tmp_path):
    table = planted(tmp_path / "t.parquet", DOTS, ["a", "a", "b", "c", "a"], [0.0, 0.5, 0.0, 0.0, 5.0])
    query = np.array([2, 0, 0, 0], np.float32)
    assert [hit["row"] for hit in search.search(table, query, 2)] == [0, 4]  # row 1 overlaps row 0
    assert [hit["row"] for hit in search.search(table, query, 9, per_video=1)] == [0, 2, 3]
    own = [hit["row"] for hit in search.search(table, query, 9, query_spans=[("/x/a", 0.0, 1.2)])]
    assert own == [4, 2, 3]
    similarity = search.search(table, query, 2)[1]["similarity"]
    assert similarity == pytest.approx(0.8 / (0.8**2 + 0.2**2) ** 0.5)


@pytest.mark.parametrize("rows", [100, 9000])
def test_search_equals_plain_loops(tmp_path, rows):
    rng = np.random.default_rng(0)
    vectors = rng.random((rows, 8), np.float32)
    table = planted(tmp_path / "t.parquet", vectors, [f"{row:05d}" for row in range(rows)])
    query = rng.random(8, np.float32)
    cosine = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in vectors.astype(np.float64)]
    expected = sorted(range(rows), key=lambda row: -cosine[row])[:10]
    assert [hit["row"] for hit in search.search(table, query)] == expected


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_clusters_of_planted_points(tmp_path, method):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 5
    kind = np.repeat([0, 1, 2], [30, 20, 10])
    vectors = (centres[kind] + rng.normal(size=(60, 16)) * 0.1).astype(np.float32)
    table = planted(tmp_path / "t.parquet", vectors, [f"{row:02d}" for row in range(60)])
    found, distance = clustering.clusters(clustering.points(table, "video").vectors, method, 3)
    np.testing.assert_array_equal(found, kind)  # the largest is number 0
    assert (distance < 0.1).all()
    with pytest.raises(TrainerError, match="k = 70 exceeds the 60 items"):
        clustering.clusters(vectors, "kmeans", 70)


@pytest.mark.parametrize("method, expected", [("kmeans", 2), ("hdbscan", 3)])
def test_every_member_is_on_the_page_the_most_typical_first(tmp_path, browser, method, expected):
    rng, jpeg = np.random.default_rng(0), cv2.imencode(".jpg", np.full((96, 128, 3), 90, np.uint8))[1].tobytes()
    vectors = (
        np.eye(16, dtype=np.float32)[np.repeat([0, 1], [40, 26])] + rng.normal(size=(66, 16)).astype(np.float32) * 0.05
    )
    vectors[-4:] = np.eye(16)[4:8]  # alone
    names = [f"{row:02d}.mp4" for row in range(66)]
    columns = {name: names for name in TEXTS} | {"start": [0.0] * 66, "end": [1.0] * 66, "thumbnail": [jpeg] * 66}
    write_part(tmp_path / "t.parquet", {"key": "x"}, vectors, columns)
    found = groups.clustered(Table(tmp_path / "t.parquet"), "video", method, 2, 5)
    found.write(
        tmp_path / "out", lambda row: None if row["id"] == "00.mp4" else (np.zeros((2, 90, 120, 3), np.uint8), 0.04)
    )
    text = (tmp_path / "out" / "index.html").read_text()
    sections = re.findall(r"<section.*?</section>", text, re.S)
    assert len(sections) == expected
    for number, section in zip([0, 1, -1], sections, strict=False):
        listed = [int(name) for name in re.findall(r">(\d\d)\.mp4 ?<", section)]
        assert sorted(listed) == np.flatnonzero(found.group == number).tolist()
        assert number < 0 or (np.diff(found.values[listed]) >= 0).all()
    assert text.count("<figure>") == 36 and text.count("data:image/webp") == 35 + (
        "00.mp4" not in text.split("<details>")[0]
    )
    assert browser.faults(tmp_path / "out" / "index.html") == []


def test_a_video_is_the_mean_of_its_rows(tmp_path):
    table = planted(tmp_path / "t.parquet", DOTS, ["a", "a", "b", "c", "c"], [0.0, 1.0, 0.0, 0.0, 3.0])
    own = clustering.points(table, "video")
    expected = np.array([[1.9, 0.1, 0, 0], [0, 1, 0, 0], [0.8, 1.1, 0.1, 0]])
    np.testing.assert_allclose(own.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert [(field["id"], field["start"], field["end"]) for field in own.fields] == [
        ("a", 0, 2),
        ("b", 0, 1),
        ("c", 0, 4),
    ]
    assert own.rows.tolist() == [1, 2, 4] and len(clustering.points(table, "row").rows) == 5


@pytest.mark.parametrize("per_video", [None, 1, 2])
def test_search_goes_on_until_it_has_what_was_asked_for(tmp_path, per_video):
    rng = np.random.default_rng(0)
    vectors = np.vstack([[1, 0, 0, 0] + 1e-3 * rng.random((6000, 4)), rng.random((40, 4))]).astype(np.float32)
    names = ["near"] * 6000 + [f"{number:02d}" for number in range(40)]
    starts = [0.1 * (number // 3) for number in range(6000)] + [0.0] * 40  # nearly all of them overlap
    table = planted(tmp_path / "t.parquet", vectors, names, starts)
    query = np.array([1, 0, 0, 0], np.float32)
    for own in (None, ("/near", 0.0, 1e9)):
        expected, taken = [], {}
        unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        for row in np.argsort(-unit[:, 0], kind="stable").tolist():
            others = taken.setdefault(names[row], [])
            near = any(abs(starts[row] - starts[other]) < 1 for other in others)
            if not near and len(others) != per_video and not (own and names[row] == "near"):
                others.append(row)
                expected.append(row)
        found = search.search(table, query, 30, per_video, [own] if own else [])
        assert [hit["row"] for hit in found] == expected[:30]


def test_similarities_stand_beside_those_of_random_pairs(tmp_path):
    rng = np.random.default_rng(0)
    vectors = (100 + rng.normal(size=(3000, 8))).astype(np.float32)  # all cosines are nearly 1
    names, starts = [f"{row // 3}" for row in range(3000)], [2.0 * (row % 3) for row in range(3000)]
    table = planted(tmp_path / "t.parquet", vectors, names, starts)
    hits = search.search(table, vectors[7], 3000)
    assert hits[0]["similarity"] - hits[-1]["similarity"] < 0.001
    above = np.array([hit["above"] for hit in hits])
    assert above[0] > 0.999 and (np.diff(above) <= 0).all() and above[-1] < 0.2
    for share in (0.1, 0.5, 0.9):  # as all pairs have it
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = (unit[::3][:800] @ unit[1::3][:800].T).ravel()
        value = np.quantile(pairs, share)
        row = int(np.argmin([abs(hit["similarity"] - value) for hit in hits]))
        assert abs(above[row] - share) < 0.05
    alone = planted(tmp_path / "one.parquet", DOTS, ["a"] * 5, [2.0 * row for row in range(5)])
    assert [hit["above"] for hit in search.search(alone, DOTS[0])] == [None] * 5


def test_vectors_of_any_finite_length_are_compared(tmp_path):
    for scale in (3e38, 1e-30, 1e-44):
        vectors, names = (DOTS * scale).astype(np.float32), ["a", "a", "b", "c", "d"]
        table = planted(tmp_path / "t.parquet", vectors, names, [0.0, 5.0, 0.0, 0.0, 0.0])
        hits = search.search(table, DOTS[0])
        assert {hit["row"] for hit in hits} == {*range(5)} and hits[0]["row"] == 0
        assert all(np.isfinite(hit["similarity"]) for hit in hits)
        own = clustering.points(table, "video").vectors
        np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("start, end", [(1.0, None), (None, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_moments_that_cannot_be_are_damage(tmp_path, start, end):
    texts = {name: ["a", "b"] for name in TEXTS} | {"thumbnail": [b"", b""]}
    write_part(tmp_path / "t.parquet", {"key": "x"}, DOTS[:2], texts | {"start": [0.0, start], "end": [1.0, end]})
    table = Table(tmp_path / "t.parquet")
    for ask in (
        lambda: search.search(table, DOTS[0]),
        lambda: clustering.points(table, "video"),
        lambda: table.take([1], ("start", "end")),
    ):
        with pytest.raises(TrainerError, match="damaged .a moment from .* make it again"):
            ask()
