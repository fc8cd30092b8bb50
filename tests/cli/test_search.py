"""`vssl search` and `cluster` on tables of features, and what other programs do with these."""

import contextlib
import csv
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.tables import LENGTHS, SIZE, columns
from tests.command import ROOT, vssl


def test_the_nearest_moments(here, browser):
    vssl("embed", "--videos", "videos")
    part = ("--from", 0, "--to", 0.64)
    told = vssl("search", "videos/near/a.mp4", *part, "--count", 3, "--page", "found.html").splitlines()
    # the copy is the most similar, and the query's own moments are left out
    assert told[1].endswith(str(here / "videos/copy.mp4")) and float(told[1].split()[0]) > 0.99
    assert "0.0 to 0.6 s" in told[1] and "videos/near/a.mp4" not in told[1]
    whole = vssl("search", "videos/near/a.mp4", "--count", 30)
    assert "copy.mp4" in whole and "videos/near/a.mp4  (" not in whole
    page = Path("found.html").read_text()
    assert page.count("<figure>") == 4 == page.count("data:image/webp") and 'href="videos/copy.mp4#t=' in page
    value, share = told[1].split()[:2]
    assert f"nearer than {share} % of random pairs; cosine {value}" in page
    assert browser.faults(Path("found.html")) == []
    browser.run("document.querySelector('.play').click()")
    films = "[...document.querySelectorAll('.film')].map(one => getComputedStyle(one, '::after').backgroundImage.slice(0, 20))"
    assert browser.run(films) == ['url("data:image/webp'] * 4
    told = vssl("search", "videos/near/a.mp4", "--from", 0.64, "--to", 1.28, "--page", "found.png").splitlines()
    assert "0.64 to 1.3 s" in told[0] and Path("found.png").read_bytes()[:4] == b"\x89PNG"
    # of the same video, what does not overlap the query is found
    own = [line for line in told[1:] if "videos/near/a.mp4" in line]
    assert own and not any("0.6 to 1.3 s" in line for line in own)
    assert "from second 99 on, the video ends at 2.6 s" in vssl("search", "videos/near/a.mp4", "--from", 99, code=1)
    assert "is not after" in vssl("search", "videos/near/a.mp4", "--from", 2, "--to", 1, code=2)
    both = "--in", "features.parquet", "--shards", "out"
    assert "give either --in or --shards" in vssl("search", "videos/near/a.mp4", *both, code=2)


def test_shards_are_searched_as_files_are(here):
    vssl("embed", "--videos", "videos", "--out", "own.parquet")
    of_files = vssl("search", "videos/far/d.mp4", "--in", "own.parquet")
    outputs = [vssl("search", "videos/far/d.mp4", "--shards", "out") for _ in range(2)]
    found = [text.partition("less alike:\n")[2].replace(f"{here}/videos/", "") for text in (outputs[0], of_files)]
    # rounding decides whether a video or its copy comes first
    of_shards, lines_of_files = (text.splitlines() for text in found)
    assert of_shards and sorted(of_shards) == sorted(lines_of_files)
    assert [line.split()[0] for line in of_shards] == [line.split()[0] for line in lines_of_files]
    assert "up to date" in outputs[1]


def test_another_network_is_refused(here):
    vssl("embed", "--videos", "videos")
    shutil.copytree("runs/pace-r3d10-1", "other")
    vssl("train", "--width", 0.05, "--epochs", 1, "--workers", 0, "--seed", 5, "--run", here / "second")
    assert "was made with" in vssl("search", "videos/far/d.mp4", "--checkpoint", "second", code=1)
    vssl("search", "videos/far/d.mp4", "--checkpoint", "other")
    refused = vssl("embed", "--videos", "videos", "--checkpoint", "a.onnx", code=1)
    assert "expected a run or a .safetensors file" in refused
    vssl("export", "other", "--out", "own.safetensors")
    vssl("embed", "--videos", "videos", "--checkpoint", "own.safetensors", "--out", "exported.parquet")
    np.testing.assert_array_equal(columns("exported.parquet")[0], columns("features.parquet")[0])


def test_clusters_and_copies_of_videos(here):
    vssl("embed", "--videos", "videos")
    told = vssl("cluster", "--k", 2)
    with open("clusters/clusters.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {*LENGTHS, "copy.mp4"} and {row["group"] for row in rows} == {"0", "1"}
    assert "2 clusters of 5 videos" in told and len(list(Path("clusters").glob("clusters-*.png"))) == 2
    assert Path("clusters/index.html").read_text().count("<figure>") == 5
    vssl("cluster", "--duplicates", "--out", "copies")
    with open("copies/duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["id"], row["other id"]) for row in rows] == [("same", "copy.mp4", "near/a.mp4")]
    assert float(rows[0]["similarity"]) > 0.99 and float(rows[0]["end"]) == pytest.approx(2.56, abs=0.26)
    assert "no such file" in vssl("cluster", "--in", "none.parquet", code=1)
    Path("broken.parquet").write_text("no table")
    assert "not a readable table" in vssl("cluster", "--in", "broken.parquet", code=1)


BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "embeddings.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"^(?:import|from) (\w+)", block, re.M)[1])
def test_the_page_is_right_about_other_programs(here, block):
    for name in re.findall(r"^(?:import|from) (\w+)", block, re.M):
        pytest.importorskip(name)
    vssl("embed", "--videos", "videos", "--npy")
    exec(compile(block, "docs/embeddings.md", "exec"), {})


def test_several_tables_are_one(here):
    vssl("embed", "--videos", "videos/near", "--out", "near.parquet")
    vssl("embed", "--videos", "videos/far", "--out", "far.parquet")
    both = ("--in", "near.parquet", "--in", "far.parquet")
    told = vssl("search", "videos/copy.mp4", *both, "--count", 50)
    assert "among 15 rows of near.parquet, far.parquet" in told
    assert all(f"/{name}" in told for name in LENGTHS)
    vssl("cluster", *both, "--k", 2)
    with open("clusters/clusters.csv", newline="") as file:
        assert sorted(row["id"] for row in csv.DictReader(file)) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    vssl("map", *both)
    assert Path("map.html").read_text().count("<circle") > 4
    vssl("embed", "--videos", "videos/far", "--out", "other.parquet", "--stage", "conv2")
    assert "tables made with the same settings" in vssl(
        "search", "videos/copy.mp4", *both, "--in", "other.parquet", code=1
    )
    assert "given 2 times" in vssl("search", "videos/copy.mp4", "--shards", "out", "--shards", "out", code=2)


def test_names_that_are_no_utf_8(here):
    odd = os.fsdecode(b"odd\xff.mp4")
    shutil.copy("videos/near/b.mp4", here / odd)
    vssl("embed", "--videos", "videos")
    told = vssl("search", here / odd, "--page", "found.png")
    assert "copy.mp4" in told and Path("found.png").exists()
    vssl("search", here / odd, "--page", "found.html")
    assert "odd" in Path("found.html").read_text()
    vssl("embed", "--videos", here / odd, "--out", "odd.parquet")
    assert {*columns("odd.parquet")[1]["id"]} == {"odd\\xff.mp4"}
    vssl("search", "videos/near/a.mp4", "--in", "odd.parquet", "--page", "of_odd.png")
    out = os.fsdecode(b"out\xff")
    for command in (
        ("embed", "--videos", "videos", "--out", out),
        ("search", "videos/near/a.mp4", "--page", f"{out}.png"),
        ("cluster", "--out", out),
        ("map", "--out", out),
        ("train", "--run", out),
        ("export", "runs/pace-r3d10-1", "--out", out),
        ("show", "labels", "--out", out),
        ("compare", "runs/pace-r3d10-1", "--out", f"{out}.csv"),
    ):
        assert "out\\xff" in (told := vssl(*command, code=2)) and "not valid UTF-8" in told
    (here / out).mkdir()
    with contextlib.chdir(here / out):
        vssl("embed", "--checkpoint", here / "runs/pace-r3d10-1", "--videos", here / "videos", "--out", "own.parquet")
        vssl("search", here / odd, "--in", "own.parquet", "--page", "page.html")
        shutil.copytree(here / "runs/pace-r3d10-1", "run")
        vssl("embed", "--checkpoint", "run", "--videos", here / "videos", "--out", "here.parquet", "--npy")
        vssl("search", here / odd, "--in", "here.parquet", "--checkpoint", "run")


def test_cells_and_names_of_sheets(here):
    (here / "mine").mkdir()
    names = ["=1+1.mp4", "@a.mp4", f"{'x' * 247}.mp4", "-b.mp4", "+c.mp4"]
    for name in names:
        shutil.copy("videos/near/b.mp4", here / "mine" / name)
    vssl("embed", "--videos", "mine", "--npy")
    vssl("cluster", "--k", 2)
    for path in ("features.csv", "clusters/clusters.csv"):
        with open(path, newline="") as file:
            own = {row["id"] for row in csv.DictReader(file)}
        assert own == {name if name[0] == "x" else f"'{name}" for name in names}
    vssl("map", "--color", "clusters/clusters.csv", "--column", "group")
    assert ">none<" not in Path("map.html").read_text()
    vssl("labelgen", "--dataset", "folder", "--root", "mine", "--out", "long", *SIZE)
    vssl("show", "labels", "--shards", "long", "--count", 5)
    assert len(list(Path("sheets").glob("*.png"))) == 5 and not list(Path("sheets").glob(".*"))
