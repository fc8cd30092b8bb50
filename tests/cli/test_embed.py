"""Features of videos as a table, and what is found in it."""

import contextlib
import csv
import json
import os
import re
import shutil
import tempfile
import tracemalloc
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
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
from trainer.embeddings import cluster, extract, search
from trainer.embeddings.table import TEXTS, Table, write_part
from trainer.errors import TrainerError
from trainer.evaluate.features import Compute, features, networks

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"near/a.mp4": 64, "near/b.mp4": 40, "far/c.mp4": 9, "far/d.mp4": 33}
DOTS = np.array([[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 1, 0, 0], [0, 0.9, 0.1, 0], [0.8, 0.2, 0, 0]], np.float32)


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
    assert vssl("embed", "--videos", "mine", code=3).startswith("features.parquet: is there already")


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
    assert "tells no frame rate" in vssl("search", "mine/near/a", "--in", "files.parquet", code=1)
    vssl("embed", "--videos", "mine/near/a", "--videos", "videos/copy.mp4", "--fps", 25, "--out", "two.parquet")
    assert list(dict.fromkeys(columns("two.parquet")[1]["id"])) == ["a", "copy.mp4"]
    told = vssl("embed", "--videos", "mine/near/a", "--out", "no.parquet", code=2)
    assert "folders of images, which tell no frame rate" in told


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
    assert "2 of 3 parts are there" in vssl("embed", "--videos", "videos") and len(calls) == 4
    assert Path("features.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path("features.parquet.parts").exists()
    told = vssl("embed", "--videos", "videos", "--stage", "conv2", code=1)
    assert "stage conv5, not conv2" in told
    assert "no stage 'conv9', only conv1" in vssl("embed", "--videos", "videos", "--stage", "conv9", code=2)


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
    assert f"{len(set(before)) - 2} videos are as they were, 2 gone or changed" in told
    assert sorted(read) == ["a first.mp4", "broken.mp4", "far/d.mp4", "later.mp4"]
    vssl("embed", "--videos", "mine", "--out", "anew.parquet", code=3)
    (vectors, own), (expected, anew) = columns("features.parquet"), columns("anew.parquet")
    assert own == anew and "near/b.mp4" not in own["id"] and own["id"][0] == "a first.mp4"
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    about = Table("features.parquet").about
    assert about["videos"] == len(set(own["id"])) + 1 and [one["id"] for one in about["failures"]] == ["broken.mp4"]
    assert Table("features.parquet").groups == Table("anew.parquet").groups
    read.clear()
    assert "is there already" in vssl("embed", "--videos", "mine", code=3) and not read
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
    assert "1 videos added (0 of them changed)" in told and "1 forgotten: near/b.mp4" in told
    assert "videos are as they were" in vssl("embed", "--shards", "grown")
    vssl("embed", "--shards", "grown", "--out", "anew.parquet")
    (vectors, own), (expected, anew) = columns("features.parquet"), columns("anew.parquet")
    assert own == anew and {"later.mp4"} <= {*own["id"]} and "near/b.mp4" not in own["id"]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    small = ("--method", "rotation", "--width", 0.05, "--epochs", 1, "--workers", 0)
    vssl("train", "--shards", "grown", *small, "--run", here / "of grown")
    assert "sound" in vssl("shards", "verify", "grown") and "configuration" in vssl("shards", "info", "grown")


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
    assert page.count("<figure>") == 4 and (here / "videos/copy.mp4").as_uri() + "#t=" in page
    told = vssl("search", "videos/near/a.mp4", "--from", 0.64, "--to", 1.28, "--page", "found.png").splitlines()
    assert "0.64 to 1.3 s" in told[0] and Path("found.png").read_bytes()[:4] == b"\x89PNG"
    # of the same video, what does not overlap the query is found
    own = [line for line in told[1:] if "videos/near/a.mp4" in line]
    assert own and not any("0.6 to 1.3 s" in line for line in own)
    assert "from second 99 on, it ends at 2.6 s" in vssl("search", "videos/near/a.mp4", "--from", 99, code=1)
    assert "is not after" in vssl("search", "videos/near/a.mp4", "--from", 2, "--to", 1, code=2)
    both = "--in", "features.parquet", "--shards", "out"
    assert "give one of --in and --shards" in vssl("search", "videos/near/a.mp4", *both, code=2)


def test_shards_are_searched_as_files_are(here):
    vssl("embed", "--videos", "videos", "--out", "own.parquet")
    of_files = vssl("search", "videos/far/d.mp4", "--in", "own.parquet")
    of_shards = [vssl("search", "videos/far/d.mp4", "--shards", "out") for _ in range(2)]
    found = [text.partition("less alike:\n")[2] for text in (of_shards[0], of_files)]
    assert found[0] and found[0] == found[1].replace(f"{here}/videos/", "")
    assert "is there already" in of_shards[1]


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
    own = [hit["row"] for hit in search.search(table, query, 9, own=("/x/a", 0.0, 1.2))]
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
    found, distance = cluster.clusters(cluster.points(table, "video").vectors, method, 3)
    np.testing.assert_array_equal(found, kind)  # the largest is number 0
    assert (distance < 0.1).all()
    with pytest.raises(TrainerError, match="70 clusters of 60 points"):
        cluster.clusters(vectors, "kmeans", 70)


def test_a_video_is_the_mean_of_its_rows(tmp_path):
    table = planted(tmp_path / "t.parquet", DOTS, ["a", "a", "b", "c", "c"], [0.0, 1.0, 0.0, 0.0, 3.0])
    own = cluster.points(table, "video")
    expected = np.array([[1.9, 0.1, 0, 0], [0, 1, 0, 0], [0.8, 1.1, 0.1, 0]])
    np.testing.assert_allclose(own.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert [(field["id"], field["start"], field["end"]) for field in own.fields] == [
        ("a", 0, 2),
        ("b", 0, 1),
        ("c", 0, 4),
    ]
    assert own.rows.tolist() == [1, 2, 4] and len(cluster.points(table, "row").rows) == 5


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


# --- what was wrong once


def jpeg(picture):
    return cv2.imencode(".jpg", picture.astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def pictured(path, videos):
    """A table of videos, by name a list of pictures, RGB [H, W, 3] each."""
    names = [name for name, pictures in videos.items() for _ in pictures]
    shown = [jpeg(picture) for pictures in videos.values() for picture in pictures]
    texts = {name: names for name in TEXTS} | {"thumbnail": shown}
    times = {"start": [0.0] * len(names), "end": [1.0] * len(names)}
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
    }
    group, nearest = cluster.duplicates(pictured(tmp_path / "t.parquet", videos), 0.995)
    groups = {}
    for name, number in zip(videos, group, strict=True):
        groups.setdefault(number, []).append(name)
    assert {tuple(names) for number, names in groups.items() if number >= 0} == {
        ("black", "black again"),
        ("red", "red again"),
    }
    assert nearest[0] > 0.999 and (nearest <= 1 + 1e-5).all()
    many = {str(number): [flat(90, 90, 90)] for number in range(50)}
    assert (cluster.duplicates(pictured(tmp_path / "many.parquet", many), 0.995)[0] == 0).all()


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
        found = search.search(table, query, 30, per_video, own)
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
        own = cluster.points(table, "video").vectors
        np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("start, end", [(1.0, None), (None, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_moments_that_cannot_be_are_damage(tmp_path, start, end):
    texts = {name: ["a", "b"] for name in TEXTS} | {"thumbnail": [b"", b""]}
    write_part(tmp_path / "t.parquet", {"key": "x"}, DOTS[:2], texts | {"start": [0.0, start], "end": [1.0, end]})
    table = Table(tmp_path / "t.parquet")
    for ask in (
        lambda: search.search(table, DOTS[0]),
        lambda: cluster.points(table, "video"),
        lambda: table.take([1], ("start", "end")),
    ):
        with pytest.raises(TrainerError, match="damaged .a moment from .* make it anew"):
            ask()


def test_several_tables_are_one(here):
    vssl("embed", "--videos", "videos/near", "--out", "near.parquet")
    vssl("embed", "--videos", "videos/far", "--out", "far.parquet")
    both = ("--in", "near.parquet", "--in", "far.parquet")
    told = vssl("search", "videos/copy.mp4", *both, "--count", 50)
    assert "of 15 rows of near.parquet, far.parquet" in told
    assert all(f"/{name}" in told for name in LENGTHS)
    vssl("cluster", *both, "--k", 2)
    with open("clusters/clusters.csv", newline="") as file:
        assert sorted(row["id"] for row in csv.DictReader(file)) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    vssl("map", *both)
    assert Path("map.html").read_text().count("<circle") > 4
    vssl("embed", "--videos", "videos/far", "--out", "other.parquet", "--stage", "conv2")
    assert "tables that were made alike" in vssl("search", "videos/copy.mp4", *both, "--in", "other.parquet", code=1)
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
    assert "no frame from second 9 on, it ends at 8.6 s" in told


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
        assert "out\\xff" in (told := vssl(*command, code=2)) and "no UTF-8" in told
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
