"""The map of videos."""

import functools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.browser import OVERFLOW
from tests.command import vssl
from tests.trainer.pages import Page
from trainer.embeddings import map_page as pages
from trainer.embeddings.map import layout
from trainer.embeddings.table import Table, write_part
from trainer.errors import TrainerError

PANEL = "document.querySelector('.chosen').textContent"
VIEW = "document.querySelector('.map').getAttribute('viewBox').split(' ').map(Number)"
METHODS = ["tsne", pytest.param("umap", marks=pytest.mark.slow)]  # umap compiles for half a minute


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Forty videos of two rows each, in two heaps, labelled so; one id has characters that HTML reads."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 40)
    vectors = np.eye(16, dtype=np.float32)[kind] + rng.normal(size=(80, 16)).astype(np.float32) * 0.05
    ids = [f"<{row // 2:02d}>.mp4" for row in range(80)]
    texts = {"id": ids, "path": ids, "label": [("run", "sit")[k] for k in kind], "stage": ["conv5"] * 80}
    texts["split"] = ["train", "train", "test", "test", "", "", "", ""] * 10
    jpeg = cv2.imencode(".jpg", np.zeros((96, 128, 3), np.uint8))[1].tobytes()
    times = {"start": [0.0, 1.0] * 40, "end": [1.0, 2.0] * 40}
    write_part(tmp_path / "features.parquet", {"key": "x"}, vectors, texts | times | {"thumbnail": [jpeg] * 80})
    return vectors, kind


def circles(path):
    text = Path(path).read_text()
    begin = text.index('<svg class="map"')
    svg = ET.fromstring(text[begin : text.index("</svg>", begin) + 6])
    return [child for child in svg.iter() if child.tag == "circle"]


@pytest.mark.parametrize("method", METHODS)
def test_heaps_stay_apart(planted, method):
    vectors, kind = planted
    places = layout(vectors, method)
    assert places.shape == (80, 2) and places.min() == 0 and places.max() == 1
    centres = np.array([places[kind == k].mean(0) for k in (0, 1)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, kind)
    with pytest.raises(TrainerError, match="a map of 2 points"):
        layout(vectors[:2])


def test_every_video_is_a_point_in_the_colour_of_its_kind(planted):
    assert vssl("map") == "map.html\n"
    drawn = circles("map.html")
    assert len(drawn) == 40 and len({circle.get("fill") for circle in drawn}) == 2
    assert drawn[0].find("title").text == "<00>.mp4, 0.0 to 2.0 s, run"
    assert Path("map.html").read_text().count("<img ") == 40
    vssl("map", "--level", "row", "--out", "rows.html")
    assert len(circles("rows.html")) == 80
    vssl("cluster", "--k", 4)
    vssl("map", "--color", "clusters/clusters.csv", "--out", "own.html")
    assert len({circle.get("fill") for circle in circles("own.html")}) == 4
    told = vssl("map", "--color", "clusters/clusters.csv", "--column", "size", code=1)
    assert "no column size, only group, id, path" in told
    vssl("map", "--column", "split", "--out", "new/split.html")
    colors = [circle.get("fill") for circle in circles("new/split.html")]
    assert colors[:8] == colors[:4] * 2 and len(set(colors)) == 3 and colors[2] == colors[3]
    assert "no column size, only id, path, label, split" in vssl("map", "--column", "size", code=2)


def test_without_labels_clusters_have_colours(planted):
    table = Table("features.parquet")
    texts = {name: [""] * 80 for name in ("label", "split")} | {"stage": ["conv5"] * 80}
    kept = {
        name: [row[name] for row in table.take(range(80), (name,))]
        for name in ("id", "path", "start", "end", "thumbnail")
    }
    write_part(Path("features.parquet"), {"key": "x"}, planted[0], texts | kept)
    vssl("map")
    colors = [circle.get("fill") for circle in circles("map.html")]
    assert len({*colors}) == 4 and not {*colors[:20]} & {
        *colors[20:]
    }  # the root of 40 / 2 clusters, none of both heaps
    page = Page(Path("map.html").read_text()).text
    assert "Coloured by cluster, as no video has a label" in page and "cluster 3" in page and "none" not in page
    vssl("map", "--column", "label")
    assert len({circle.get("fill") for circle in circles("map.html")}) == 1


def test_neighbours_are_of_other_videos_and_of_the_same_heap(planted):
    vssl("map", "--level", "row")
    entries = re.findall(r'<li id="p(\d+)">(.*?)</li>', Path("map.html").read_text(), re.S)
    assert [int(number) for number, _ in entries] == [*range(80)]
    unit = planted[0] / np.linalg.norm(planted[0], axis=1, keepdims=True)
    for number, entry in enumerate(content for _, content in entries):
        near = [int(other) for other in re.findall(r'<a href="#p(\d+)"', entry)]
        cosine = np.where(np.arange(80) // 2 == number // 2, -1, unit @ unit[number])
        assert near == np.argsort(-cosine, kind="stable")[:6].tolist()


@pytest.mark.parametrize("count, kind", [(20, "jpeg"), (21, "webp")])
def test_pictures_of_many_points_are_smaller(count, kind, monkeypatch):
    monkeypatch.setattr(pages, "_FULL", 20)
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))[1].tobytes()
    row = {"id": "a", "path": "a", "start": None, "end": None, "thumbnail": jpeg}
    places, near = np.random.default_rng(0).random((count, 2)), np.zeros((count, 0), np.int64)
    text = pages.map_page("many", places, [row] * count, ["a"] * count, "label", near, Path("."))
    assert text.count(f"data:image/{kind};base64,") == count


def test_the_map_is_explored(planted, browser):
    vssl("map")
    path = Path("map.html")
    assert browser.faults(path) == []
    browser.open(path, 400)
    box = "(r => [r.left, r.right, r.width])(document.querySelector('.map').getBoundingClientRect())"
    left, right, width = browser.run(box)
    assert 0 <= left < right <= 400 and width > 300  # all of it is visible
    for _ in range(40):  # by keyboard alone
        browser.press("Tab")
        if browser.run("document.activeElement.classList.contains('map')"):
            break
    browser.press("ArrowRight")
    first = browser.run(PANEL)
    browser.press("ArrowRight")
    assert "mp4" in first and "mp4" in browser.run(PANEL) != first
    assert browser.run(OVERFLOW) == 0
    browser.press("+", "+")
    assert browser.run(VIEW)[2] == 250
    browser.press("0")
    assert browser.run(VIEW) == [0, 0, 1000, 750]
    browser.press(
        "Enter", "Enter"
    )  # to the first link of the panel, a neighbour, as the file is not known, and along it
    assert browser.run(PANEL) != first
    browser.run("document.querySelector('[type=search]').focus()")
    browser.press(*"07>", "Enter")
    assert browser.run("document.querySelector('output').textContent") == "1 of 40" and "<07>.mp4" in browser.run(PANEL)
    visible = "[...document.querySelectorAll('.points > li')].filter(one => one.checkVisibility()).length"
    assert browser.run(visible) == 1
    browser.run("document.querySelector('.tools [type=checkbox]').click()")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.run("document.querySelectorAll('.pictures image').length") == 1
    browser.shot(x=0, y=0, width=400, height=2000)  # for which the page is laid out anew
    assert browser.errors() == []


def test_without_its_script_the_page_lists_all_videos_and_neighbours(planted, browser):
    vssl("map")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(Path("map.html"), 400)
        seen = "[...document.querySelectorAll('{}')].filter(one => one.checkVisibility()).length"
        found = [
            browser.run(seen.format(part)) for part in (".points > li", ".points .near a", ".map a", ".tools, .chosen")
        ]
        assert found == [40, 240, 40, 0] and browser.run(OVERFLOW) == 0 and browser.errors() == []
        for _ in range(40):
            browser.press("Tab")
            if browser.run("document.activeElement.closest('.map')?.tagName"):
                break
        browser.press("Enter")
        assert browser.run("document.querySelector('.points > li:target').id") == "p0"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_pointer_drags_and_chooses(planted, browser):
    vssl("map")
    browser.open(Path("map.html"), 1400)
    circle = "document.querySelector('.map a:nth-of-type(8) circle')"
    x, y = browser.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({circle}.getBoundingClientRect())")
    mouse = functools.partial(browser.call, "Input.dispatchMouseEvent", button="left", buttons=1, clickCount=1)
    for kind in ("mousePressed", "mouseReleased"):
        mouse(type=kind, x=x, y=y)
    assert "<07>.mp4" in browser.run(PANEL)
    browser.run("document.querySelector('[data-zoom=\"2\"]').click()")
    before = browser.run(VIEW)
    for kind, way in (("mousePressed", 0), ("mouseMoved", 20), ("mouseMoved", 40), ("mouseReleased", 40)):
        mouse(type=kind, x=x - way, y=y)
    after = browser.run(VIEW)
    assert after[0] > before[0] and after[2] == before[2] == 500 and "<07>.mp4" in browser.run(PANEL)


def test_the_policy_allows_the_script_of_the_page_alone(planted, browser):
    vssl("map")
    Path("bad.html").write_text(
        Path("map.html").read_text().replace("</main>", "<script>document.title='evil'</script></main>")
    )
    browser.open(Path("bad.html"), 1000)
    assert browser.run("document.title") == "40 videos" and browser.run("document.body.className") == "scripted"
    assert any("Content Security Policy" in said for said in browser.errors())


def test_moments_are_coloured_one_by_one(planted):
    with open("own.csv", "w") as file:
        file.write("id,start,group\n" + "".join(f"<{row // 2:02d}>.mp4,{row % 2}.0,{row % 2}\n" for row in range(80)))
    vssl("map", "--level", "row", "--color", "own.csv")
    colors = [circle.get("fill") for circle in circles("map.html")]
    assert colors == colors[:2] * 40 and colors[0] != colors[1]
    # which of the two a video is nobody knows
    assert "80 rows of 40 ids, expected one per video" in vssl("map", "--color", "own.csv", code=1)
    assert "none.csv: cannot be read" in vssl("map", "--color", "none.csv", code=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("points", [3, 4, 30])
@pytest.mark.parametrize("noise", [0, 1e-8])
def test_equal_points_have_places_of_their_own(method, points, noise):
    vectors = np.full((points, 8), 8**-0.5) + noise * np.random.default_rng(0).normal(size=(points, 8))
    places = layout(vectors.astype(np.float32), method)
    assert len(np.unique(places, axis=0)) == points and (places >= 0).all() and (places <= 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_few_points_and_values(method):
    rng = np.random.default_rng(0)
    for shape in ((3, 8), (10, 1)):
        places = layout(rng.random(shape, np.float32), method)
        assert places.shape == (shape[0], 2) and np.isfinite(places).all()
