"""The map of videos."""

import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.command import vssl
from trainer.embeddings.map import layout
from trainer.embeddings.table import write_part
from trainer.errors import TrainerError

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
    text = Path("map.html").read_text()
    assert text.count("<image ") == 40 and "<script" not in text
    assert len(circles("map.html")) == 40
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
