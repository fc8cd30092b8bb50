"""`vssl embed`, `search` and `cluster` on videos and on shards."""

import contextlib
import csv
import json
import os
import re
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli import video_files
from cli.main import main
from labelgen.decode import frames
from labelgen.manifest import Video
from labelgen.span import Span
from tests.labelgen.synthetic import write_video
from trainer import data
from trainer.checkpoint import load
from trainer.embeddings import extract
from trainer.embeddings.table import Table, write_part
from trainer.evaluate.features import Compute, features, networks

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"near/a.mp4": 64, "near/b.mp4": 40, "far/c.mp4": 9, "far/d.mp4": 33}


SIZE = ("--height", 40, "--width", 48, "--crop", 32, "--clips", 1)


def vssl(*arguments, code=0):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with videos/, one of them copied at a lower quality, their shards in out/ and a run trained on these."""
    folder = tmp_path_factory.mktemp("embed")
    with contextlib.chdir(folder):
        for seed, (name, length) in enumerate(LENGTHS.items()):
            write_video(folder / "videos" / name, length, seed=seed, step=seed - 1)
        write_video(folder / "videos" / "copy.mp4", 64, seed=0, step=-1, qscale="12")
        vssl("labelgen", "--dataset", "folder", "--root", "videos", "--videos-per-shard", 2, *SIZE)
        vssl("train", "--width", 0.05, "--epochs", 1, "--workers", 0, "--precision", "float32")
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A folder of one's own, with what `place` holds."""
    for name in ("videos", "out", "runs"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def columns(path):
    table = pq.read_table(path)
    vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
    return vectors, {name: table[name].to_pylist() for name in table.column_names if name != "vector"}


@pytest.mark.parametrize(
    "level, views, pooling, stage", [("clip", "sliding", "mean", "conv5"), ("video", "spread", "max", "conv3")]
)
def test_rows_equal_the_features_of_eval(here, level, views, pooling, stage):
    options = ("--level", level, "--pooling", pooling, "--stage", stage)
    vssl("embed", "--videos", "videos", "--out", "files.parquet", *options, "--workers", 2, "--batch-size", 3)
    vssl("embed", "--shards", "out", "--out", "shards.parquet", *options)
    shards, saved = data.Shards("out"), load("runs/pace-r3d10-1")
    own = features(saved, "pretrained", networks(saved)["pretrained"], shards, shards.videos, views, Compute())
    expected = own.arrays[stage, pooling] if level == "clip" else own.video_means((stage, pooling))
    (files, told), (stored, told_of_shards) = columns("files.parquet"), columns("shards.parquet")
    # to rounding: batches are not cut at the same places
    np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(files, expected, rtol=1e-4, atol=1e-6)
    ids = shards.text("videos/id")
    assert told["id"] == ([ids[row] for row in own.owner] if level == "clip" else ids)
    assert told["label"] == [name.split("/")[0] if "/" in name else "" for name in told["id"]]
    assert all(path == str(here / "videos" / name) for path, name in zip(told["path"], told["id"], strict=True))
    for name in ("id", "label", "split", "start", "end", "stage", "thumbnail"):
        assert told[name] == told_of_shards[name]
    rows = [row for row, name in enumerate(told["id"]) if name == "near/b.mp4"]
    times = [(told["start"][row], told["end"][row]) for row in rows]
    assert times == (
        [(0, 16 / 25), (8 / 25, 24 / 25), (16 / 25, 32 / 25), (24 / 25, 40 / 25)] if level == "clip" else [(0, 1.6)]
    )


def test_clips_are_as_long_as_those_of_the_shards(here):
    vssl("labelgen", "--dataset", "folder", "--root", "videos", "--out", "long", "--clip-length", 32, *SIZE)
    small = ("--method", "rotation", "--width", 0.05, "--epochs", 1, "--workers", 0)
    vssl("train", "--shards", "long", *small, "--run", here / "run")
    vssl("embed", "--checkpoint", "run", "--videos", "videos/near/a.mp4", "--workers", 1)
    vssl("embed", "--checkpoint", "run", "--shards", "long", "--out", "shards.parquet", "--workers", 1)
    (files, told), (stored, told_of_shards) = columns("features.parquet"), columns("shards.parquet")
    assert list(zip(told["start"], told["end"], strict=True)) == [(0, 32 / 25), (16 / 25, 48 / 25), (32 / 25, 64 / 25)]
    own = [row for row, name in enumerate(told_of_shards["id"]) if name == "near/a.mp4"]
    np.testing.assert_allclose(files, stored[own], rtol=1e-4, atol=1e-6)


def test_frames_of_files_are_those_of_shards(here):
    shards = data.Shards("out")
    paths = dict(zip(shards.text("videos/id"), shards.videos.tolist(), strict=True))
    videos = [Video(name, here / "videos" / name, "", "", ()) for name in paths]
    with video_files.VideoFiles(here, videos, shards.config, 2).open(videos, here) as piece:
        for reader, (shard, video) in zip(piece.frames.readers, paths.values(), strict=True):
            stored = shards.readers[shard]
            first, count = (int(stored.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
            assert reader.kinds == [] and reader.n_clips == 0 and reader.arrays["videos/n_frames"] == [count]
            assert all((reader.jpeg(frame) == stored.jpeg(first + frame)).all() for frame in range(count))
    assert not list(here.glob(".*.tmp"))


def test_items_in_are_items_out_and_broken_ones_are_listed(here):
    shutil.copytree(here / "videos", here / "mine")
    (here / "mine" / "broken.mp4").write_bytes(b"no video")
    whole = (here / "mine" / "near" / "a.mp4").read_bytes()
    (here / "mine" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(here / "mine" / "cut.mkv", 64, muxer={"live": "0"})
    content = (here / "mine" / "cut.mkv").read_bytes()
    (here / "mine" / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    told = vssl("embed", "--videos", "mine", "--npy", code=3)
    assert "broken.mp4: cannot be decoded at opening" in told and "cut.mkv: kept " in told
    table = Table("features.parquet")
    lost = {failure["id"] for failure in table.about["failures"] if not failure["kept"]}
    names = {str(path.relative_to(here / "mine")) for path in (here / "mine").rglob("*.m*")}
    vectors, own = columns("features.parquet")
    assert set(own["id"]) | lost == names and not set(own["id"]) & lost and lost == {"broken.mp4", "cut.mp4"}
    assert f"{len(names) - 2} of {len(names)} videos" in told
    np.testing.assert_array_equal(np.load("features.npy"), vectors)
    with open("features.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == own["id"]
    assert "features.parquet: up to date" in vssl("embed", "--videos", "mine", code=3)


def test_folders_of_images_are_embedded_and_searched(here):
    (here / "mine" / "near" / "a").mkdir(parents=True)
    for number, frame in enumerate(frames("videos/near/a.mp4")):
        cv2.imwrite(f"mine/near/a/{number}.png", frame[..., ::-1])
    for count in (1, 2):
        shutil.copy("videos/far/d.mp4", f"mine/{count}.mp4")
    told = vssl("embed", "--videos", "mine")
    assert set(columns("features.parquet")[1]["id"]) == {"1.mp4", "2.mp4"}  # nothing tells the rate of the images
    vssl("embed", "--videos", "mine", "--fps", 25, "--out", "images.parquet")
    vssl("embed", "--videos", "videos", "--out", "files.parquet")
    (vectors, own), (of_files, told) = columns("images.parquet"), columns("files.parquet")
    images, film = ([row for row, name in enumerate(part["id"]) if "near/a" in name] for part in (own, told))
    assert [own[name][images[0]] for name in ("id", "label")] == ["near/a", "near"]
    assert own["path"][images[0]] == str(here / "mine/near/a")
    assert [own["start"][row] for row in images] == [told["start"][row] for row in film]
    one, two = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (vectors[images], of_files[film]))
    assert ((one * two).sum(1) > 0.99).all()  # colours are coarser in the film
    query = "mine/near/a", "--from", 0, "--to", 0.64
    found = vssl("search", *query, "--fps", 25, "--in", "files.parquet", "--count", 2)
    assert "0.0 to 0.6 s" in found and "videos/near/a.mp4  (near)" in found and "videos/copy.mp4" in found
    assert "has no frame rate" in vssl("search", "mine/near/a", "--in", "files.parquet", code=1)
    vssl("embed", "--videos", "mine/near/a", "--videos", "videos/copy.mp4", "--fps", 25, "--out", "two.parquet")
    assert list(dict.fromkeys(columns("two.parquet")[1]["id"])) == ["a", "copy.mp4"]
    told = vssl("embed", "--videos", "mine/near/a", "--out", "no.parquet", code=2)
    assert "folders of images, whose frame rate is unknown" in told


def test_parts_of_files_keep_the_times_of_their_file(here):
    Path("cut.yaml").write_text(
        f"name: cut\nlists: {here}\n"
        "csv: {files: [cut.csv], video: '{video}'}\nsegments: {start: start, end: end}\n"
        "label: {column: what}\n"
    )
    Path("cut.csv").write_text(
        "video,start,end,what\nnear/a.mp4,0.64,1.6,run\nnear/a.mp4,1.28,,jump\ncopy.mp4,0,0.64,run\n"
    )
    vssl("labelgen", "videos", "--dataset", "cut.yaml", "--out", "cut", *SIZE)
    vssl("embed", "--videos", "videos", "--dataset", "cut.yaml", "--out", "files.parquet")
    vssl("embed", "--shards", "cut", "--out", "shards.parquet")
    (files, told), (shards, of_shards) = columns("files.parquet"), columns("shards.parquet")
    np.testing.assert_allclose(files, shards, rtol=1e-4, atol=1e-6)
    moments = list(zip(told["id"], told["label"], told["start"], told["end"], strict=True))
    assert moments == [
        ("copy.mp4@0-0.64", "run", 0, 0.64),
        ("near/a.mp4@0.64-1.6", "run", 0.64, 1.28), ("near/a.mp4@0.64-1.6", "run", 0.96, 1.6),
        ("near/a.mp4@1.28-", "jump", 1.28, 1.92), ("near/a.mp4@1.28-", "jump", 1.6, 2.24),
        ("near/a.mp4@1.28-", "jump", 1.92, 2.56),
    ]  # fmt: skip
    assert {*told["path"]} == {str(here / "videos/near/a.mp4"), str(here / "videos/copy.mp4")}
    assert [of_shards[name] for name in ("id", "start", "end", "label")] == [
        told[name] for name in ("id", "start", "end", "label")
    ]
    found = vssl("search", "videos/near/a.mp4", "--from", 1.3, "--to", 2.4, "--in", "files.parquet").splitlines()[1:]
    assert [line.split()[3] for line in found if "near/a" in line] == ["0.6"]  # what overlaps the query is left out


def test_the_part_of_the_split_is_in_the_table(here):
    (here / "parts.yaml").write_text(
        "name: parts\nlabel: {folder: 1}\ncsv: {files: [parts.csv], video: '{video}'}\nsplits: {column: part}\n"
    )
    (here / "mine").mkdir()
    for name in ("near", "far"):
        (here / "mine" / name).symlink_to(here / "videos" / name)
    (here / "mine" / "parts.csv").write_text("video,part\na.mp4,train\nb.mp4,test\nc.mp4,\nd.mp4,val\n")
    vssl("labelgen", "--dataset", "parts.yaml", "--root", "mine", "--out", "parts", *SIZE)
    parts = {"near/a.mp4": "train", "near/b.mp4": "test", "far/c.mp4": "", "far/d.mp4": "validation"}
    for source in (("--shards", "parts"), ("--videos", "mine", "--dataset", "parts.yaml")):
        vssl("embed", *source, "--level", "video", "--out", f"{source[1]}.parquet")
        own = columns(f"{source[1]}.parquet")[1]
        assert dict(zip(own["id"], own["split"], strict=True)) == parts


def test_a_stopped_run_goes_on(here, monkeypatch):
    monkeypatch.setattr(video_files, "PART_VIDEOS", 2)
    vssl("embed", "--videos", "videos", "--out", "whole.parquet")
    calls = []

    def stopped(path, *rest):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_part(path, *rest)

    monkeypatch.setattr(extract, "write_part", stopped)
    vssl("embed", "--videos", "videos", code=130)
    assert not Path("features.parquet").exists() and len(list(Path("features.parquet.parts").glob("*.parquet"))) == 2
    assert "2 of 3 parts exist" in vssl("embed", "--videos", "videos") and len(calls) == 4
    assert Path("features.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path("features.parquet.parts").exists()
    told = vssl("embed", "--videos", "videos", "--stage", "conv2", code=1)
    assert "stage conv5, not conv2" in told
    assert "no stage 'conv9', only conv1" in vssl("embed", "--videos", "videos", "--stage", "conv9", code=2)


def test_a_plan_leaves_nothing_behind(here, monkeypatch):
    (here / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "scratch"))
    there = sorted(path.name for path in here.iterdir())
    runs = sorted((here / "runs").rglob("*"))
    for source in (("--videos", "videos"), ("--shards", "out")):
        told = vssl("embed", *source, "--plan")
        (rows,) = re.findall(r"GB for ([0-9,]+) rows", told)
        assert re.search(r"time: +about [0-9.]+ (s|min|h)", told) and "memory: about" in told
        assert 15 <= int(rows) <= 30  # 22
    told = vssl("train", "--shards", "out", "--width", 0.05, "--epochs", 40, "--workers", 0, "--plan")
    assert "40 epochs, 40 steps of" in told and "disk:" in told
    assert sorted(path.name for path in here.iterdir()) == there and not list((here / "scratch").iterdir())
    assert sorted((here / "runs").rglob("*")) == runs


def grown(here):
    """A folder of files, embedded, and then two more, one less, one another."""
    shutil.copytree("videos", "mine")
    vssl("embed", "--videos", "mine")
    write_video(here / "mine" / "later.mp4", 40, 9)
    write_video(here / "mine" / "a first.mp4", 40, 10)
    (here / "mine" / "near" / "b.mp4").unlink()
    write_video(here / "mine" / "far" / "d.mp4", 70, 11)


def test_rows_of_files_that_have_not_changed_stay(here, monkeypatch):
    grown(here)
    (here / "mine" / "broken.mp4").write_bytes(b"no video")
    shutil.copy("features.parquet", "old.parquet")
    read = []
    opened = video_files.VideoFiles.open
    monkeypatch.setattr(
        video_files.VideoFiles,
        "open",
        lambda self, part, at: read.extend(own.id for own in part) or opened(self, part, at),
    )
    told = vssl("embed", "--videos", "mine", code=3)
    before = columns("old.parquet")[1]["id"]
    assert f"{len(set(before)) - 2} videos are unchanged, 2 deleted or changed" in told
    assert sorted(read) == ["a first.mp4", "broken.mp4", "far/d.mp4", "later.mp4"]
    vssl("embed", "--videos", "mine", "--out", "anew.parquet", code=3)
    (vectors, own), (expected, anew) = columns("features.parquet"), columns("anew.parquet")
    assert own == anew and "near/b.mp4" not in own["id"] and own["id"][0] == "a first.mp4"
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    about = Table("features.parquet").about
    assert about["videos"] == len(set(own["id"])) + 1 and [one["id"] for one in about["failures"]] == ["broken.mp4"]
    assert Table("features.parquet").groups == Table("anew.parquet").groups
    read.clear()
    assert "up to date" in vssl("embed", "--videos", "mine", code=3) and not read
    (here / "mine" / "later.mp4").unlink()  # nothing to compute
    vssl("embed", "--videos", "mine", code=3)
    assert "later.mp4" not in columns("features.parquet")[1]["id"] and not read
    assert "stage conv5, not conv2" in vssl("embed", "--videos", "mine", "--stage", "conv2", code=1)


@pytest.mark.parametrize("step", range(3))
def test_a_kill_while_a_table_grows_changes_nothing(here, monkeypatch, step):
    grown(here)
    monkeypatch.setattr(video_files, "PART_VIDEOS", 1)
    shutil.copy("features.parquet", "whole.parquet")
    vssl("embed", "--videos", "mine", "--out", "whole.parquet")
    done = []

    def killed(function):
        def counted(*arguments):
            done.append(function)
            if len(done) == (2, 4, 9)[step]:  # the second part, the table; below, behind it
                raise KeyboardInterrupt
            function(*arguments)
            if step == 2 and len(done) == 4:
                raise KeyboardInterrupt

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(extract, "write_part", killed(extract.write_part))
        patch.setattr(extract, "join", killed(extract.join))
        vssl("embed", "--videos", "mine", code=130)
    vssl("embed", "--videos", "mine")
    assert Path("features.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path("features.parquet.parts").exists()


def test_a_table_of_shards_that_grow(here):
    shutil.copytree("videos", "mine")
    vssl("labelgen", "mine", "--out", "grown", "--add", "--videos-per-shard", 2, *SIZE)
    vssl("embed", "--shards", "grown")
    grown_again = here / "mine" / "later.mp4"
    write_video(grown_again, 40, 9)
    (here / "mine" / "near" / "b.mp4").unlink()
    told = vssl("labelgen", "mine", "--out", "grown", "--add", "--videos-per-shard", 2, *SIZE)
    assert "1 videos added (0 of them changed)" in told and "1 dropped: near/b.mp4" in told
    assert "videos are unchanged" in vssl("embed", "--shards", "grown")
    vssl("embed", "--shards", "grown", "--out", "anew.parquet")
    (vectors, own), (expected, anew) = columns("features.parquet"), columns("anew.parquet")
    assert own == anew and {"later.mp4"} <= {*own["id"]} and "near/b.mp4" not in own["id"]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    small = ("--method", "rotation", "--width", 0.05, "--epochs", 1, "--workers", 0)
    vssl("train", "--shards", "grown", *small, "--run", here / "of grown")
    assert "undamaged" in vssl("shards", "verify", "grown") and "configuration" in vssl("shards", "info", "grown")


def test_the_nearest_moments(here):
    vssl("embed", "--videos", "videos")
    part = ("--from", 0, "--to", 0.64)
    told = vssl("search", "videos/near/a.mp4", *part, "--count", 3, "--page", "found.html").splitlines()
    # the copy is the most similar, and the query's own moments are left out
    assert told[1].endswith(str(here / "videos/copy.mp4")) and float(told[1].split()[0]) > 0.99
    assert "0.0 to 0.6 s" in told[1] and "videos/near/a.mp4" not in told[1]
    whole = vssl("search", "videos/near/a.mp4", "--count", 30)
    assert "copy.mp4" in whole and "videos/near/a.mp4  (" not in whole
    page = Path("found.html").read_text()
    assert page.count("<figure>") == 4 and 'href="videos/copy.mp4#t=' in page
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
    of_shards = [vssl("search", "videos/far/d.mp4", "--shards", "out") for _ in range(2)]
    found = [text.partition("less alike:\n")[2] for text in (of_shards[0], of_files)]
    assert found[0] and found[0] == found[1].replace(f"{here}/videos/", "")
    assert "up to date" in of_shards[1]


def test_another_network_is_refused(here):
    vssl("embed", "--videos", "videos")
    shutil.copytree("runs/pace-r3d10-1", "other")
    vssl("train", "--width", 0.05, "--epochs", 1, "--workers", 0, "--seed", 5, "--run", here / "second")
    assert "was made with" in vssl("search", "videos/far/d.mp4", "--checkpoint", "second", code=1)
    vssl("search", "videos/far/d.mp4", "--checkpoint", "other")
    assert "expected a run or a .safetensors file" in vssl(
        "embed", "--videos", "videos", "--checkpoint", "a.onnx", code=1
    )
    vssl("export", "other", "--out", "own.safetensors")
    vssl("embed", "--videos", "videos", "--checkpoint", "own.safetensors", "--out", "exported.parquet")
    np.testing.assert_array_equal(columns("exported.parquet")[0], columns("features.parquet")[0])


def test_clusters_and_copies_of_videos(here):
    vssl("embed", "--videos", "videos")
    told = vssl("cluster", "--k", 2)
    with open("clusters/clusters.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"] for row in rows) == sorted([*LENGTHS, "copy.mp4"]) and {row["group"] for row in rows} == {
        "0",
        "1",
    }
    assert "2 clusters of 5 videos" in told and len(list(Path("clusters").glob("clusters-*.png"))) == 2
    assert Path("clusters/index.html").read_text().count("<figure>") == 5
    vssl("cluster", "--duplicates", "--out", "copies")
    with open("copies/duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["id"]) for row in rows] == [("0", "copy.mp4"), ("0", "near/a.mp4")]
    assert float(rows[0]["similarity"]) > 0.995
    assert "no such file" in vssl("cluster", "--in", "none.parquet", code=1)
    Path("broken.parquet").write_text("no table")
    assert "not a readable table" in vssl("cluster", "--in", "broken.parquet", code=1)


def test_a_single_file(here):
    told = vssl("embed", "--videos", "videos/near/b.mp4", "--level", "video")
    assert "1 rows of 1 of 1 videos" in told
    assert json.loads(pq.read_schema("features.parquet").metadata[b"vssl"])["videos"] == 1


def needs_mongodb():
    """FiftyOne keeps its samples in MongoDB, which it brings along for some systems only."""
    import fiftyone
    from fiftyone.core.config import FiftyOneConfigError
    from fiftyone.core.service import ServiceException

    try:
        fiftyone.list_datasets()
    except (FiftyOneConfigError, ServiceException, ConnectionError) as error:
        pytest.skip(f"MongoDB cannot be started: {error}")


BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "embeddings.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"^(?:import|from) (\w+)", block, re.M)[1])
def test_the_page_is_right_about_other_programs(here, block):
    names = re.findall(r"^(?:import|from) (\w+)", block, re.M)
    for name in names:
        pytest.importorskip(name)
    if "fiftyone" in names:
        needs_mongodb()
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


def test_several_folders_are_one_table(here):
    told = vssl("embed", "--videos", "videos/near", "--videos", "videos/far", "--videos", "videos/copy.mp4")
    assert "5 of 5 videos" in told
    own = columns("features.parquet")[1]
    assert {*own["id"]} == {*LENGTHS, "copy.mp4"}
    assert all(Path(path).samefile(Path("videos", name)) for path, name in zip(own["path"], own["id"], strict=True))
    for name in ("x", "y"):
        (here / name).mkdir()
        (here / name / "same").symlink_to(here / "videos/far")
    vssl("embed", "--videos", "x/same", "--videos", "y/same", "--out", "same.parquet")
    assert {*columns("same.parquet")[1]["id"]} == {f"{here}/{a}/same/{b}.mp4" for a in "xy" for b in "cd"}
    assert "is given twice" in vssl("embed", "--videos", "videos", "--videos", "videos/", code=2)
    assert "given 2 times" in vssl("embed", "--shards", "out", "--shards", "out", code=2)


def timed_video(path, times, rate=1000):
    """A video whose frames are presented at these seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.codec_context.max_b_frames = 64, 48, 0
        stream.codec_context.time_base = stream.time_base = Fraction(1, rate)
        rng = np.random.default_rng(0)
        for time in times:
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_seconds_are_those_of_the_frames(here):
    times = [*np.arange(16) * 0.04, *0.64 + np.arange(16) * 0.5]  # ends at 8.64 s
    timed_video(here / "vfr.mkv", times)
    (here / "mine").mkdir()
    shutil.move(here / "vfr.mkv", here / "mine")
    timed_video(here / "mine" / "late.mkv", [5 + time for time in times])
    vssl("embed", "--videos", "mine")
    vssl("embed", "--videos", "mine", "--level", "video", "--out", "whole.parquet")
    vssl("labelgen", "--dataset", "folder", "--root", "mine", "--out", "own", *SIZE)
    vssl("embed", "--shards", "own", "--out", "shards.parquet")
    for name in ("features.parquet", "shards.parquet"):
        own = columns(name)[1]
        for video in ("vfr.mkv", "late.mkv"):
            moments = [(s, e) for id, s, e in zip(own["id"], own["start"], own["end"], strict=True) if id == video]
            np.testing.assert_allclose(moments, [(0, 0.64), (0.32, 4.64), (0.64, 8.64)], atol=1e-3)
    np.testing.assert_allclose(columns("whole.parquet")[1]["end"], 8.64, atol=1e-3)
    for begin, end, expected in ((0.1, 0.2, 3), (0.64, 1.64, 2), (2, 3, 3), (8.2, 8.3, 1), (8.5, 20, 1), (0, 0.01, 1)):
        part = Span(frames(here / "mine/late.mkv"), begin, end)
        seen = [part.time for _ in part]
        assert len(seen) == expected and seen[0] <= begin + 1e-3 and seen[-1] < end, (begin, end)
    told = vssl("search", "mine/vfr.mkv", "--from", 4, "--to", 20, "--in", "whole.parquet")
    assert "4 to 8.6 s" in told and "late.mkv" in told
    told = vssl("search", "mine/vfr.mkv", "--from", 9, "--in", "whole.parquet", code=1)
    assert "no frame from second 9 on, the video ends at 8.6 s" in told


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
    names = ["=1+1.mp4", "@a.mp4", "x" * 251, "-b.mp4", "+c.mp4"]
    names[2] = "x" * 247 + ".mp4"
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
