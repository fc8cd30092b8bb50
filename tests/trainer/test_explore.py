"""What of a report can be explored: videos that move, the filter of the neighbours, the videos behind a confusion."""

import re

import cv2
import numpy as np
import pytest

from labelgen.shards import open_shards
from tests.trainer.pages import Page
from tests.trainer.planted import keep
from tests.trainer.synthetic import video_frames, write_shard
from trainer.evaluate.metrics import ItemScores
from trainer.evaluate.results import Result
from trainer.pages.classes import classes_html, compared_html, confusion
from trainer.pages.films import Films, animation, frames_of
from trainer.pages.page import page
from trainer.pages.queries import neighbours_html

NAMES = [f"v/<i>{i}</i>.avi" for i in range(8)]
LABELS = ["run", "<b>walk</b>"] * 4
NAMED = [0, 0, 0, 1, 1, 1, 0, 0]  # run is right but for video 4, walk for videos 3 and 5


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "some"
    write_shard(folder / "00000.h5", [40] * 8, labels=LABELS, names=NAMES, splits=())
    return {"some": open_shards(folder)}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result of a linear probe and its neighbours, with what became of its videos; random weights name all of them run."""
    row = {"metric": "accuracy", "level": "video", "stage": "conv5", "pooling": "max", "low": 40, "high": 80}
    rows = [{"network": "pretrained", **row, "value": 62.5}, {"network": "random", **row, "value": 50}]
    queries = [(0, [(2, "run", 0.9), (1, "<b>walk</b>", 0.25)]), (1, [(0, "run", 0.75), (3, "<b>walk</b>", 0.5)])]
    neighbours = [
        {"query": NAMES[q], "label": LABELS[q], "nearest": [[NAMES[i], label] for i, label, _ in found]}
        | {"cosines": [cosine for *_, cosine in found]}
        for q, found in queries
    ]
    protocol = {"dataset": "some", "split": None, "initial": None}
    folder = tmp_path_factory.mktemp("run")
    content = {"protocol": protocol, "rows": rows, "notes": [], "neighbours": neighbours}
    made = Result("linear", content, folder, folder / "linear-some.json")
    scores = ItemScores(np.array(NAMES), np.array(LABELS), np.full(8, ""), np.array(["run", "<b>walk</b>"]), {})
    classes, owner = np.array([0, 1] * 4), np.arange(8)
    answered = (scores.accuracy(named == classes, owner, named) for named in (np.array(NAMED), np.zeros(8, int)))
    keep(made.file.with_suffix(".npz"), scores, answered)
    return made


@pytest.fixture(scope="module")
def path(readers, result, tmp_path_factory):
    films = Films(readers)
    parts = [("near", "Near", neighbours_html(result, films))]
    parts.append(("classes", "Classes", classes_html([result], {result.file: result.scores}, films)))
    out = tmp_path_factory.mktemp("page") / "page.html"
    out.write_text(page("A page", "", "", parts, "", films.style()))
    return out


@pytest.mark.parametrize(
    "length, expected",
    [(1, [0]), (2, [0]), (5, [0, 2, 4]), (24, [*range(0, 24, 2)]), (40, [*range(8, 32, 2)])],
)
def test_frames_of_a_film(length, expected):
    assert frames_of(length).tolist() == expected


@pytest.mark.parametrize("seconds, expected", [(0.08, 80), (1e-9, 20), (np.inf, 1000)])
def test_film_shows_its_frames_in_their_order(seconds, expected):
    frames = np.repeat(video_frames(3, 6), 3, axis=1).repeat(3, axis=2)  # of 120 lines
    film = cv2.imdecodeanimation(np.frombuffer(animation(frames, seconds), np.uint8))[1]
    assert film.frames[0].shape[:2] == (96, 115) and [*film.durations] == [expected] * 6 and film.loop_count == 0
    for shown, frame in zip(film.frames, frames, strict=True):
        away = [np.abs(cv2.resize(own, (115, 96)) - shown[..., 2::-1].astype(float)).mean() for own in frames]
        assert np.argmin(away) == next(i for i, own in enumerate(frames) if own is frame or (own == frame).all())


def test_a_video_is_on_the_page_once(path):
    text = path.read_text()
    found = Page(text)
    shown = [span["class"] for span in found.all("span") if span.get("role") == "img"]
    assert len(shown) > len(set(shown)) and not found.all("script")
    assert len(set(shown)) == text.count("base64,") / 2 == len(re.findall(r"\.v\d+\{aspect", text))


def test_films_of_other_data_sets_are_blank(readers):
    films = Films(readers)
    assert "blank" in films.show("other", NAMES[0], "x") and films.style() == "" and len(films) == 0
    assert ("some", NAMES[0]) in films and ("other", NAMES[0]) not in films


def test_a_cell_holds_its_videos(result, path):
    found = confusion(result, result.content["rows"][0], result.scores)
    assert found.classes == ["run", "<b>walk</b>"] and found.counts.tolist() == [[3, 1], [2, 2]]
    assert found.videos[1, 0] == [NAMES[1], NAMES[7]] and found.videos[0, 1] == [NAMES[4]]
    text = path.read_text()
    cell = Page(re.search(r'<div class="taken" id="cell-0-1-0">.*?</div></div>', text, re.S)[0])
    assert (
        cell.text.startswith("<b>walk</b> taken for run: 2 videos") and NAMES[1] in cell.text and NAMES[7] in cell.text
    )
    assert not any(name in cell.text for name in NAMES if name not in (NAMES[1], NAMES[7]))
    links = [link["href"] for link in Page(text).all("a") if link["href"].startswith("#cell")]
    assert sorted(links) == sorted(
        [f"#cell-0-{t}-{p}" for t in (0, 1) for p in (0, 1)] + ["#cell-0-0-1", "#cell-0-1-0"]
    )


def test_without_predictions_or_shards(result):
    assert confusion(result, result.content["rows"][0], None) is None and classes_html([result], {}, Films({})) == ""
    counts = {"classes": ["a", "b"], "counts": [[2, 0], [1, 3]]}
    stored = Result("recognition", result.content | {"confusion": counts}, result.run, result.run / "other.json")
    assert "5 of 6 videos on the diagonal" in classes_html([stored], {}, Films({}))
    listed = Page(classes_html([result], {result.file: result.scores}, Films({})))
    assert NAMES[7] in listed.text and not [span for span in listed.all("span") if span.get("role") == "img"]


def test_classes_beside_random_weights(path):
    text = Page(path.read_text()).text
    assert "<b>walk</b> +50.0 50.0 0.0 4" in text and "run -25.0 75.0 100.0 4" in text


def test_many_classes_that_gain_and_lose_most():
    classes = [{"class": f"c{i}", "items": 9, "first": 50.0, "other": 90.0 - i, "value": 40.0 - i} for i in range(80)]
    found = Page(compared_html(classes, "One", "Two")).text
    gain, lose = found.index("gain most"), found.index("lose most")
    assert (
        gain
        < found.index("c0 +40.0 90.0 50.0 9")
        < found.index(" c9 ")
        < lose
        < found.index(" c79 ")
        < found.index(" c70 ")
    )
    assert "All 80 classes" in found and found.count(" c40 ") == 1


# --- in a browser


def test_the_page_in_a_browser(path, browser):
    assert browser.faults(path) == []


def test_a_picture_moves_while_it_has_the_focus(path, browser):
    browser.open(path, 1000)
    assert browser.run("getComputedStyle(document.querySelector('.film'), '::after').backgroundImage") == "none"
    browser.run("document.querySelector('.film').focus()")
    shots = set()
    for _ in range(60):  # as many as a busy machine needs
        box = browser.run(
            "(r => [r.x, r.y, r.width, r.height])(document.querySelector('.film').getBoundingClientRect())"
        )
        shots.add(browser.shot(**dict(zip(("x", "y", "width", "height"), box, strict=True))))
        if len(shots) > 2:
            break
        browser.run("new Promise(done => setTimeout(done, 50))")
    assert len(shots) > 2


def test_wrong_only(path, browser):
    browser.open(path, 1000)
    seen = "[...document.querySelectorAll('.found > li')].map(one => one.checkVisibility())"
    assert browser.run(seen) == [True, True]
    browser.run("document.querySelector('.wrong-only').click()")
    assert browser.run(seen) == [False, True]


@pytest.mark.parametrize("width", [400, 1400])
def test_a_cell_shows_its_videos_when_it_is_chosen(path, browser, width):
    browser.open(path, width)
    seen = "[...document.querySelectorAll('.taken')].filter(one => one.checkVisibility()).map(one => one.id)"
    assert browser.run(seen) == [] and browser.run("document.querySelector('.hint').checkVisibility()")
    link = "document.querySelector('svg a[href=\"#cell-0-1-0\"]')"
    browser.run(f"{link}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))")
    assert browser.run(seen) == ["cell-0-1-0"] and not browser.run("document.querySelector('.hint').checkVisibility()")
    inside = "(r => r.bottom > 0 && r.top < innerHeight)"
    both = f"[{link}, document.querySelector(':target')].map(one => {inside}(one.getBoundingClientRect()))"
    for _ in range(100):  # until it has scrolled there
        if browser.run(both) == [True, True]:
            break
        browser.run("new Promise(done => setTimeout(done, 20))")
    assert browser.run(both) == [True, True]
