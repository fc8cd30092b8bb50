"""Duplicates: signatures, common parts of videos, and what is written of them."""

import csv
import itertools

import cv2
import numpy as np
import pytest

from trainer.embeddings import copies, duplicates
from trainer.embeddings.copies import Match, Signatures, changes, matches, near, windows
from trainer.embeddings.pictures import PIXELS, RATE, SHAPE, packed, sampled
from trainer.embeddings.table import TEXTS, Table, write_part
from trainer.errors import TrainerError

SCENE = cv2.resize(np.random.default_rng(99).normal(120, 40, (4, 5)), SHAPE[::-1], interpolation=cv2.INTER_CUBIC)


def film(seed, seconds, rate=RATE, begin=0.0, contrast=12.0, scene=SCENE):
    """Levels [n, 12, 16] of one fixed camera, before which something drifts: a part of the take `seed`."""
    key = np.random.default_rng(seed).normal(size=(400, 3, 4))
    times = 2 * (begin + np.arange(round(seconds * rate)) / rate)  # a new key every half second
    low, share = times.astype(int), (times % 1)[:, None, None]
    drift = (1 - share) * key[low] + share * key[low + 1]
    return scene + contrast * np.stack([cv2.resize(one, SHAPE[::-1], interpolation=cv2.INTER_CUBIC) for one in drift])


def stored(*films):
    films = [np.clip(np.rint(levels), 0, 255).astype(np.uint8).reshape(-1, PIXELS) for levels in films]
    return Signatures(np.concatenate(films), np.cumsum([0, *map(len, films)]))


def kinds(*films, **options):
    """Of each match: videos, kind, and begins and length in seconds."""
    signatures = stored(*films)
    lengths = np.diff(signatures.bounds).tolist()
    found = matches(signatures, **options)
    words = [("mirrored " if m.mirrored else "") + m.kind(lengths[m.a], lengths[m.b]) for m in found]
    times = [(m.begin_a / RATE, m.begin_b / RATE, m.count / RATE) for m in found]
    return [(m.a, m.b, word, *time) for m, word, time in zip(found, words, times, strict=True)]


def test_frames_of_a_signature():
    bounds = np.array([0.0, 0.1, 0.2, 0.3, 0.4])  # shown at 0, 0.125, 0.25 and 0.375 s
    assert sampled(bounds, 0).tolist() == sampled(bounds + 7, 0).tolist() == [0, 1, 2, 3]
    assert sampled(np.array([0.0, 1.0]), 0).tolist() == [0] * 8
    assert sampled(np.array([0.0, 0.04]), 25).tolist() == [0]
    unknown = np.full(51, np.nan)
    assert sampled(unknown, 50).tolist() == [0, 6, 12, 18, 25, 31, 37, 43] and len(sampled(unknown, 0)) == 16


def test_values_of_a_signature():
    frame = np.zeros((24, 32, 3), np.uint8)
    frame[:, 16:] = 255
    frame[:2, :2] = 64
    found = packed([frame])[0].reshape(SHAPE)
    assert found[0, 0] == 128 and found[5, :8].tolist() == [0] * 8 and found[5, 8:].tolist() == [255] * 8


def test_changes_equal_plain_loops():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, PIXELS)).astype(np.float32) for n in (20, 30))
    for shift in (-6.5, -6, 0, 2.5, 24, 24.5, -14.5):
        found = changes(a, b, shift)
        met = [i for i in range(20) if 0 <= i + shift <= 29]
        assert found.begin_a == met[0] and found.begin_b == met[0] + shift and len(found.near) == len(met)
        other = {i: (b[int(np.floor(i + shift))] + b[int(np.ceil(i + shift))]) / 2 for i in met}
        steps = [[of[i + 4] - of[i] - (of[i + 4] - of[i]).mean() for i in met[:-4]] for of in (a, other)]
        products = [float(np.sum(x * y)) for x, y in zip(*steps, strict=True)]
        np.testing.assert_allclose(found.products, products, rtol=1e-4, atol=50)
        one, two = (np.concatenate(of).astype(np.float64) for of in steps)
        share = 12 if shift % 1 else 6  # the variance of rounding is 1/12 in each of two pictures, half of it in means
        squares = (one @ one - len(one) / 6) * (two @ two - len(two) / share)
        assert found.similarity(0, len(met)) == pytest.approx(one @ two / squares**0.5, abs=1e-4)
    assert changes(a, b, 26) is None and changes(a, b, -16) is None and changes(a, b, 25) is not None


def test_a_mirrored_window_has_other_signs():
    whole = stored(film(0, 6))[0]
    begins, found = windows(whole)
    turned = whole.reshape(-1, *SHAPE)[..., ::-1].reshape(-1, PIXELS)
    np.testing.assert_allclose(windows(turned)[1], found * copies._TURN, atol=1e-5)
    assert begins.tolist() == list(range(0, 33, 2)) and found.shape == (17, 60)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert not len(windows(stored(np.repeat(film(0, 1 / RATE), 20, 0))[0])[0])  # nothing moves
    assert windows(whole[:5])[0].tolist() == [0] and not len(windows(whole[:0])[0])


@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_equal_plain_loops(exact, monkeypatch):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(600, 60)).astype(np.float32)
    base[300:] = base[:300] + 0.4 * rng.normal(size=(300, 60))
    base[20:40] = base[300:320] = base[0]  # more than are kept
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    owner = np.arange(600) // 2
    monkeypatch.setattr(copies, "_BLOCK", 5000)
    if not exact:
        monkeypatch.setattr(copies, "_EXACT", 0)
    found = {}
    for query, row, cosine in near(base, owner, base[::2], owner[::2]):
        assert not (owner[::2][query] == owner[row]).any() and (cosine >= copies._NEAR).all()
        for one, other in zip(query.tolist(), row.tolist(), strict=True):
            found.setdefault(one, set()).add(other)
    near_by = (base[::2] @ base.T >= copies._NEAR) & (owner[::2, None] != owner)
    expected = {one: set(np.flatnonzero(row).tolist()) for one, row in enumerate(near_by) if row.any()}
    few = {one: rows for one, rows in expected.items() if len(rows) <= copies._NEAREST}
    assert len(few) > 100 and all(len(found[one]) >= copies._NEAREST for one in expected.keys() - few)
    missed = sum(len(rows - found.get(one, set())) for one, rows in few.items())
    assert missed == 0 if exact else missed <= 0.1 * sum(map(len, few.values()))


def test_kinds_and_times_of_common_parts():
    noise = np.random.default_rng(5)
    whole = film(1, 20)
    part = film(1, 6, begin=8.06)  # between two pictures
    films = [
        whole,
        0.8 * whole + noise.normal(0, 1, whole.shape) + 20,  # the same, flatter and brighter
        whole[..., ::-1],  # mirrored
        part,
        part[..., ::-1],
        np.concatenate([film(2, 3), film(1, 7, begin=11), film(3, 3)]),  # shared part
        film(4, 20),
        film(5, 6),
    ]
    found = kinds(*films)
    named = {(a, b): (kind, *times) for a, b, kind, *times in found}
    assert len(named) == len(found)  # one part of each pair
    expected = {
        (0, 1): "same",
        (0, 2): "mirrored same",
        (0, 3): "excerpt",
        (0, 4): "mirrored excerpt",
        (0, 5): "shared part",
    }
    expected |= {(1, 2): "mirrored same", (1, 3): "excerpt", (1, 4): "mirrored excerpt", (1, 5): "shared part"}
    expected |= {(2, 3): "mirrored excerpt", (2, 4): "excerpt", (2, 5): "mirrored shared part", (3, 4): "mirrored same"}
    assert {pair: value[0] for pair, value in named.items()} == expected  # 3 and 5 share three seconds only
    for pair, begin in (((0, 3), 8.06), ((0, 4), 8.06)):
        assert named[pair][1:] == pytest.approx((begin, 0, 6), abs=0.26)
    assert named[0, 5][1:] == pytest.approx((11, 3, 7), abs=0.6)


def test_order_and_mirroring_of_all_videos_do_not_matter():
    films = [film(1, 12), film(1, 7, begin=3), film(2, 9), film(2, 9)[..., ::-1]]

    def told(found, order):
        spans = {(order[a], begin_a, order[b], begin_b) for a, b, _, begin_a, begin_b, _ in found}
        return {tuple(sorted([(a, round(x)), (b, round(y))])) for a, x, b, y in spans}

    found = kinds(*films)
    assert len(found) == 2
    for order in itertools.islice(itertools.permutations(range(4)), 0, None, 5):
        assert told(kinds(*[films[i] for i in order]), order) == told(found, range(4))
    assert kinds(*[one[..., ::-1] for one in films]) == found == kinds(*films)


def test_what_is_not_a_common_part():
    noise = np.random.default_rng(3)
    card, black = np.repeat(film(7, 1 / RATE), 48, 0), np.zeros((60, *SHAPE))
    waving = np.tile(film(6, 1), (12, 1, 1))  # the same movement again and again
    other = cv2.resize(np.random.default_rng(98).normal(120, 40, (4, 5)), SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
    films = {
        "takes of one camera": [film(seed, 12) for seed in range(6)],
        "black": [black, black + noise.normal(0, 0.5, black.shape) ** 2, black],
        "title cards": [np.concatenate([card, film(seed, 5)]) for seed in (1, 2)],
        "still, with noise": [card + noise.normal(0, 0.5, card.shape) for _ in range(3)],
        "three seconds": [np.concatenate([film(1, 6), film(2, 3)]), np.concatenate([film(3, 6), film(2, 3)])],
        "the same movement elsewhere": [film(1, 10), film(1, 10, scene=other)],
        "one second of movement": [np.concatenate([card, film(seed, 5)[:8], card]) for seed in (1, 2)],
        "backwards": [film(1, 10), film(1, 10)[::-1]],
        "upside down": [film(1, 10), film(1, 10)[:, ::-1]],
        "too short to tell": [film(1, 0.5)] * 2,
    }
    for name, some in films.items():
        assert kinds(*some) == [], name
    assert [found[2:] for found in kinds(waving, waving)] == [("same", 0, 0, 12)]


def test_short_videos_must_be_more_similar():
    rng = np.random.default_rng(0)

    def similarity(seconds, noise):
        signatures = stored(film(1, seconds), film(1, seconds) + rng.normal(0, noise, (round(seconds * RATE), *SHAPE)))
        return [match.similarity for match in matches(signatures)]

    assert similarity(2, 0.3) and similarity(6, 0.3)
    (long,) = similarity(6, 2.5)
    assert 0.9 < long < 0.96 and similarity(2, 2.5) == []


def test_a_match_of_lengths():
    def kind(count, *lengths):
        return Match(0, 1, False, 0, 0, count, 1.0).kind(*lengths)

    assert kind(80, 80, 90) == kind(17, 18, 20) == "same" and kind(17, 18, 21) == ""
    assert kind(40, 44, 400) == kind(36, 400, 36) == "excerpt" and kind(35, 400, 36) == ""
    assert kind(40, 80, 400) == "shared part"


def jpeg(picture):
    return cv2.imencode(".jpg", picture.astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def written(path, videos, start=0.0):
    """A table of videos: by name the pictures, RGB [H, W, 3] each, and the levels of the signature."""
    names, pictures, signatures, numbers = [], [], [], []
    for name, (shown, levels) in videos.items():
        names += [name] * len(shown)
        pictures += map(jpeg, shown)
        signatures += [stored(levels)[0].tobytes()] + [b""] * (len(shown) - 1)
        numbers += range(len(shown))
    times = {
        name: [None if start is None else start + n + i for n in numbers] for i, name in enumerate(("start", "end"))
    }
    texts = {name: names for name in TEXTS} | {"thumbnail": pictures, "signature": signatures}
    write_part(path, {"key": "x"}, np.ones((len(names), 2), np.float32), texts | times)
    return Table(path)


def test_flat_videos_are_copies_if_they_have_one_colour(tmp_path):
    def flat(*color):
        return np.full((96, 128, 3), color) + np.random.default_rng(0).integers(0, 2, (96, 128, 3))

    textured = np.random.default_rng(1).integers(0, 255, (12, 16, 3)).repeat(8, 0).repeat(8, 1)
    videos = {
        "black": [flat(0, 0, 0)] * 3,
        "black again": [flat(1, 0, 1)] * 2,
        "white": [flat(250, 250, 250)],
        "red": [flat(200, 0, 0)],
        "red again": [flat(200, 0, 0)] * 4,
        "blue of red's luma": [flat(0, 60, 254)],
        "with a black moment": [flat(0, 0, 0), textured, 255 - textured],
        "copy": [flat(0, 0, 0), textured, 255 - textured],
        "other": [textured[::-1]],
        "mirrored": [flat(0, 0, 0), textured[:, ::-1], 255 - textured[:, ::-1]],
    }
    still = np.full((16, *SHAPE), 100.0)
    found = duplicates.duplicates(
        written(tmp_path / "t.parquet", {name: (shown, still) for name, shown in videos.items()})
    )
    pairs = {(found.videos[pair.first].id, found.videos[pair.second].id, pair.kind) for pair in found.pairs}
    assert pairs == {("black", "black again", "same"), ("red", "red again", "same")}
    assert all(pair.similarity <= 1 and pair.spans == (None, None) for pair in found.pairs)
    many = {str(number): ([flat(90, 90, 90)], still) for number in range(50)}
    assert (duplicates.duplicates(written(tmp_path / "many.parquet", many)).group == 0).all()
    pictures = {"a": [textured], "b": [textured[:, ::-1]], "c": [textured], "d": [textured[::-1]]}
    table = written(tmp_path / "still.parquet", {name: (shown, still) for name, shown in pictures.items()})
    told = [
        duplicates.duplicates(table).describe(pair).partition(" (")[0] for pair in duplicates.duplicates(table).pairs
    ]
    assert sorted(told) == ["mirrored: a and b", "mirrored: b and c", "same: a and c"]


@pytest.mark.parametrize("start", [100.0, None])
def test_what_is_written(tmp_path, start):
    shown = [np.full((96, 128, 3), grey) for grey in (40, 90, 140)]
    films = {"b/whole.mp4": film(1, 15), "a/part.mp4": film(1, 6, begin=4)[..., ::-1], "c/other.mp4": film(2, 9)}
    table = written(tmp_path / "t.parquet", {name: (shown, levels) for name, levels in films.items()}, start)
    found = duplicates.duplicates(table)
    assert found.title == "1 pair of duplicates in 1 group, of 3 videos" and found.group.tolist() == [0, 0, -1]
    files = found.write(tmp_path / "out", lambda row: None)
    with open(files[0], newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["group"], row["kind"], row["id"], row["other id"]) == (
        "0",
        "mirrored excerpt",
        "a/part.mp4",
        "b/whole.mp4",
    )
    page = files[1].read_text()
    assert "Mirrored excerpt, similarity" in page and page.count("<figure>") == 3 and "c/other.mp4" not in page
    if start is None:
        assert (row["start"], row["end"], row["other start"], row["other end"]) == ("", "", "", "")
    else:
        times = [float(row[name]) for name in ("start", "end", "other start", "other end")]
        assert times == pytest.approx([100, 106, 104, 110], abs=0.3)
        assert f"{times[2]:.1f} to {times[3]:.1f} s" in page


def test_the_page_in_a_browser(tmp_path, browser):
    shown = [np.full((96, 128, 3), grey) for grey in (40, 90, 140)]
    films = {"a/whole.mp4": film(1, 15), f"b/{'long' * 20}.mp4": film(1, 6, begin=4), "c.mp4": film(1, 6, begin=8)}
    found = duplicates.duplicates(written(tmp_path / "t.parquet", {name: (shown, one) for name, one in films.items()}))
    moving = np.random.default_rng(0).integers(0, 256, (4, 90, 120, 3), np.uint8), np.full(4, 0.25)
    _, page = found.write(tmp_path, lambda row: None if row["id"] == "c.mp4" else moving)
    assert len(found.pairs) == 2 and browser.faults(page) == []
    assert "2 pictures do not move" not in page.read_text() and "1 pictures do not move" in page.read_text()


def test_an_interrupted_call_leaves_no_page_of_other_pairs(tmp_path, monkeypatch):
    shown = [np.full((96, 128, 3), 40)]
    one = written(tmp_path / "t.parquet", {name: (shown, film(1, 4)) for name in "ab"})
    duplicates.duplicates(one).write(tmp_path / "out", lambda row: None)
    monkeypatch.setattr(duplicates, "page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        duplicates.duplicates(one).write(tmp_path / "out", lambda row: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["duplicates.csv"]


def test_faulty_tables(tmp_path):
    shown = [np.full((96, 128, 3), 40)]
    with pytest.raises(TrainerError, match="1 video to compare, expected at least 2"):
        duplicates.duplicates(written(tmp_path / "one.parquet", {"a": (shown, film(1, 4))}))
    columns = {name: ["a", "b"] for name in TEXTS} | {
        "start": [0.0] * 2,
        "end": [1.0] * 2,
        "thumbnail": [jpeg(shown[0])] * 2,
    }
    for signature, fault in ((b"abc", "a signature"), (b"", None)):
        write_part(tmp_path / "t.parquet", {}, np.ones((2, 2), np.float32), columns | {"signature": [signature] * 2})
        if fault:
            with pytest.raises(TrainerError, match=f"damaged .{fault}"):
                duplicates.duplicates(Table(tmp_path / "t.parquet"))
        else:
            assert not duplicates.duplicates(Table(tmp_path / "t.parquet")).pairs
