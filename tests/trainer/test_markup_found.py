"""Whatever a text of a table of features, a CSV file or a study holds, their pages show it as text."""

import csv
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tests.command import vssl
from tests.trainer.pages import EVIL, assert_text
from trainer.embeddings.sheets import write_hits
from trainer.embeddings.table import Table, write_part
from trainer.study.jobs import Store
from trainer.study.page import write_page


@pytest.fixture
def features(tmp_path):
    """A table of a dozen videos whose every text is markup."""
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))[1].tobytes()
    ids = [f"{i:02d}{EVIL}" for i in range(12)]
    texts = {
        "id": ids,
        "path": [f"/{name}" for name in ids],
        "label": [EVIL] * 12,
        "split": [EVIL] * 12,
        "stage": [EVIL] * 12,
    }
    columns = texts | {"start": [0.0] * 12, "end": [1.0] * 12, "thumbnail": [jpeg] * 12, "signature": [bytes(192)] * 12}
    path = tmp_path / f"features{EVIL.replace('/', '')}.parquet"
    write_part(path, {"key": EVIL}, np.random.default_rng(0).random((12, 8), np.float32), columns)
    return path


def test_map_and_its_colours(features, tmp_path, browser):
    vssl("map", "--in", features, "--out", tmp_path / "map.html")
    assert_text(tmp_path / "map.html", 24, scripts=1)
    colors = tmp_path / "colors.csv"
    with open(colors, "w", newline="") as file:
        csv.writer(file).writerows([["id", EVIL], *([f"{i:02d}{EVIL}", f"{EVIL}{i % 2}"] for i in range(12))])
    vssl("map", "--in", features, "--out", tmp_path / "own.html", "--color", colors, "--column", EVIL)
    assert_text(tmp_path / "own.html", 26, scripts=1)
    browser.open(tmp_path / "own.html", 1000)  # the script moves texts about
    browser.run("document.querySelector('.map').focus()")
    browser.press("ArrowRight", "Tab")
    assert EVIL in browser.run("document.querySelector('.chosen').textContent")
    assert browser.run("document.title") == "12 videos" and browser.errors() == []


@pytest.mark.parametrize("options", [["--k", 2], ["--duplicates"]])
def test_clusters_and_copies(features, tmp_path, options):
    vssl("cluster", "--in", features, "--out", tmp_path / "found", *options)
    assert_text(tmp_path / "found" / "index.html", 12)


def test_what_a_search_finds(features, tmp_path):
    table = Table(features)
    rows = table.take(range(12), ("id", "path", "label", "start", "end", "thumbnail"))
    query = [rows[0] | {"id": EVIL}]
    write_hits(tmp_path / "found.html", query, [row | {"similarity": 0.5} for row in rows], lambda row: None)
    assert_text(tmp_path / "found.html", 24)


def test_a_study(tmp_path):
    above = {"value": 1.0, "low": 0.5, "high": 2.0}
    numbers = [
        {
            "row": row,
            "column": column,
            "value": 50.0,
            "low": 40.0,
            "high": 60.0,
            "by seed": [50.0],
            "seeds": [0],
            "stages": [{EVIL: EVIL}],
            "by class": {EVIL: [50.0]},
            "predicted": {EVIL: {EVIL: 2, f"b{EVIL}": 2}},
            "videos": 4,
            "above": above,
        }
        for row in (f"a{EVIL}", f"b{EVIL}")
        for column in (0, 1)
    ]
    named = ("measure", "tested_on", "target", "pretrained_on")
    run = {"run": "a", "data": EVIL, "videos": 1, "of videos": 2, "clips": 1}
    trained = {EVIL: {**run, "epochs": 1, "lr": 0.1, "held-out loss": None}}
    tried = {EVIL: [{EVIL: EVIL, "loss": 0.1}]}
    told = {"row": EVIL, "what": EVIL, "reason": EVIL}
    of_data = {"dataset": EVIL, "videos": 4, "tested videos": {EVIL: 2}, "classes": {EVIL: 2}, "groups": 2, "crop": 112}
    content = {
        "about": EVIL,
        "seeds": [0],
        "rows": {
            row: {
                "kind": "method",
                "clips asked for": 4,
                "settings": {"method": row, "options": {EVIL: {EVIL: row}}},
                "label": {EVIL: row},
                "trained": trained,
                "tried": tried,
            }
            for row in (f"a{EVIL}", f"b{EVIL}")
        },
        "unequal": [EVIL],
        "columns": [{**{name: f"{i}{EVIL}" for name in named}, "headline": True} for i in (1, 2)],
        "numbers": numbers,
        "differences": [{"column": 0, "row": f"a{EVIL}", "than": f"b{EVIL}", "p": 0.01, "adjusted": 0.01, **above}],
        "data": {EVIL: of_data},
        "assumed": [EVIL],
        "orderings": [{"better": EVIL, "worse": EVIL, "source": EVIL, "values": [], "here": []}],
        "absent": [told],
        "failures": [told],
    }
    folder = tmp_path / f"study{EVIL}"
    folder.mkdir()
    write_page(content, SimpleNamespace(runs={}, numbers={}), Store(folder), {})
    assert_text(folder / "index.html", 30)
