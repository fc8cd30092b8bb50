"""`vssl embed` on videos and on shards."""

import csv
import json
import math
import re
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cli import video_files
from labelgen.decode import frames
from labelgen.manifest import Video
from labelgen.span import Span
from tests.cli.tables import LENGTHS, SIZE, columns
from tests.command import vssl
from tests.labelgen.synthetic import write_video
from tests.trainer.synthetic import extent
from trainer import data
from trainer.checkpoint import load
from trainer.embeddings import extract
from trainer.embeddings.table import Table, write_part
from trainer.evaluate.features import Compute, features, networks


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
    for name in ("id", "label", "split", "start", "end", "stage", "thumbnail", "signature"):
        assert told[name] == told_of_shards[name]
    first = [told["id"].index(name) for name in ids]
    pictures = {told["id"][row]: len(told["signature"][row]) / 192 for row in first}
    assert pictures == {name: math.ceil(8 * LENGTHS[name] / 25) if name in LENGTHS else 21 for name in ids}
    assert not any(told["signature"][row] for row in range(len(told["id"])) if row not in first)
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
            first, count = extent(stored, video)
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
    runs = sorted((here / "runs").rglob("*"))  # the first is the run that all have
    for source in (("--videos", "videos"), ("--shards", "out")):
        told = vssl("embed", *source, "--plan")
        (rows,) = re.findall(r"GB for ([0-9,]+) rows", told)
        assert re.search(r"time: +about [0-9.]+ (s|min|h)", told) and "memory: about" in told
        assert 15 <= int(rows) <= 30  # 22
    told = vssl("train", "--shards", "out", "--width", 0.05, "--epochs", 40, "--workers", 0, "--plan")
    assert "40 epochs, 40 steps of" in told and "disk:" in told
    told = vssl("train", "--shards", "out", "--from", runs[0], "--epochs", 1, "--workers", 0, "--plan")
    assert "1 epoch, 1 step of" in told and "0.00 GB for the run" in told  # as narrow as the run that it starts from
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
    noted = lambda self, part, at: read.extend(own.id for own in part) or opened(self, part, at)  # noqa: E731
    monkeypatch.setattr(video_files.VideoFiles, "open", noted)
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
    write_video(here / "mine" / "later.mp4", 40, 9)
    (here / "mine" / "near" / "b.mp4").unlink()
    told = vssl("labelgen", "mine", "--out", "grown", "--add", "--videos-per-shard", 2, *SIZE)
    assert "1 video added (0 of them changed)" in told and "1 dropped: near/b.mp4" in told
    assert "videos are unchanged" in vssl("embed", "--shards", "grown")
    vssl("embed", "--shards", "grown", "--out", "anew.parquet")
    (vectors, own), (expected, anew) = columns("features.parquet"), columns("anew.parquet")
    assert own == anew and {"later.mp4"} <= {*own["id"]} and "near/b.mp4" not in own["id"]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    small = ("--method", "rotation", "--width", 0.05, "--epochs", 1, "--workers", 0)
    vssl("train", "--shards", "grown", *small, "--run", here / "of grown")
    assert "undamaged" in vssl("shards", "verify", "grown") and "configuration" in vssl("shards", "info", "grown")


def test_a_single_file(here):
    told = vssl("embed", "--videos", "videos/near/b.mp4", "--level", "video")
    assert "1 row of 1 of 1 video" in told
    assert json.loads(pq.read_schema("features.parquet").metadata[b"vssl"])["videos"] == 1


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
    (here / "mine").mkdir()
    timed_video(here / "mine" / "vfr.mkv", times)
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
