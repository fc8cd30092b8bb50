"""Options of `vssl labelgen` as a user types them, and what `vssl show` and `vssl shards` make of the result."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.decode import frames
from labelgen.manifest import load
from labelgen.run.estimate import estimate
from labelgen.shards import NO_ROW, encode_frame, open_shards
from tests.command import ENVIRONMENT, vssl
from tests.labelgen.synthetic import write_video

TINY = ("--height", 48, "--width", 64, "--crop", 32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of 120, 70, 20 and 12 frames, 25 a second."""
    root = tmp_path_factory.mktemp("data") / "videos"  # the name of the data set
    write_video(root / "left" / "0.mp4", 120, 0, step=-2)
    for index, n_frames in enumerate((70, 20, 12), start=1):
        write_video(root / "right" / f"{index}.mp4", n_frames, index)
    return root


def labelgen(videos, out, *options):
    """Label the videos into one shard and open it."""
    common = ("--dataset", "folder", "--root", videos, "--out", out, "--videos-per-shard", 10)
    output = vssl("labelgen", *common, *options)
    assert "4 of 4 videos labelled, 0 failed" in output
    (shard,) = open_shards(out)
    return shard, output


@pytest.fixture(scope="module")
def plain(videos, tmp_path_factory):
    """Labelled with the default options, but small."""
    out = tmp_path_factory.mktemp("plain")
    return out, *labelgen(videos, out, *TINY)


# --- options


def test_a_folder_by_its_name_alone(videos, plain, tmp_path):
    options = ("--out", tmp_path, "--videos-per-shard", 10, *TINY)
    vssl("labelgen", videos, *options)
    assert (tmp_path / "videos/00000.h5").read_bytes() == Path(plain[1].path).read_bytes()
    vssl("labelgen", "--root", videos, *options)  # the same run
    for code, told, *arguments in (
        (2, f"VIDEOS is {videos} and --root {videos}; give only one of them", videos, "--root", videos),
        (2, "no videos given; give their folder"),
        (1, "folder not found", tmp_path / "absent"),
        (1, f"no layout of ucf101 fits: '{videos}'", videos, "--dataset", "ucf101"),
    ):
        assert told in vssl("labelgen", *arguments, "--out", tmp_path / "no", code=code)


def test_groups_of_a_folder(videos, plain, tmp_path):
    assert (
        "no groups: videos of one source" in plain[2]
        and "give the pattern of the sources with --group PATTERN" in plain[2]
    )
    shard, output = labelgen(videos, tmp_path / "grouped", *TINY, "--flow", "dis", "--group", "^([0-9])")
    assert list(shard.arrays["videos/group"]) == ["0", "1", "2", "3"]
    assert "\n  groups: 4\n" in output and "no groups" not in output
    refused = vssl("labelgen", videos, "--out", tmp_path, "--group", "^[0-9]", code=2)
    assert "group pattern: '^[0-9]'; expected one part in brackets" in refused


def test_a_folder_that_grows(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    options = (tmp_path / "videos", "--out", tmp_path / "out", "--add", "--flow", "dis", *TINY)
    assert "4 videos added (0 of them changed), 0 kept, 0 dropped\n" in vssl("labelgen", *options)
    write_video(tmp_path / "videos" / "left" / "9.mp4", 20, 9)
    (tmp_path / "videos" / "right" / "3.mp4").unlink()
    output = vssl("labelgen", *options)
    assert "1 video added (0 of them changed), 3 kept, 1 dropped: right/3.mp4" in output
    assert "4 of 4 videos labelled" in output
    vssl("shards", "verify", tmp_path / "out")
    assert "videos 4," in vssl("shards", "info", tmp_path / "out")
    vssl("show", "labels", "--shards", tmp_path / "out", "--out", tmp_path / "sheets", "--count", 1)


def test_a_plan_leaves_nothing_behind(videos, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    options = (videos / "left", "--out", tmp_path / "out", "--flow", "dis", "--clips", 1, *TINY)
    output = vssl("labelgen", *options, "--plan")
    assert "measured on the first 20 s of 1 video" in output
    assert not (tmp_path / "out").exists() and not list((tmp_path / "scratch").iterdir())
    numbers = dict(re.findall(r"(processor|disk): +about ([0-9.,]+)", output))
    assert set(numbers) == {"processor", "disk"} and "with 1 worker" in output
    # what is labelled already is not planned again
    vssl("labelgen", *options)
    assert "all videos are labelled already" in vssl("labelgen", *options, "--plan", code=1)


def test_a_plan_is_what_the_run_takes(videos, tmp_path):
    """Of two videos, both of which are measured to their end."""
    found = load("folder", videos)
    config, two = Config(height=48, width=64, crop=32, flow="dis"), found.videos[:2]
    guess = estimate(found, two, tmp_path / "out", config, 1, 60)
    assert guess.videos == len(guess.sample) == 2 and not guess.failed
    assert guess.hours * 3600 == pytest.approx((120 + 70 - 2) / 25, rel=0.01)
    report = run.run(found, two, tmp_path / "out", config, videos_per_shard=1)
    assert guess.disk == pytest.approx(report["bytes"], rel=0.1)


def test_without_options(plain):
    out, shard, output = plain
    assert shard.arrays["videos/n_frames"].tolist() == [120, 70, 20, 12]
    assert np.bincount(shard.arrays["clips/video"], minlength=4).tolist() == [7, 4, 1, 0]
    # 61 frames for pace 4, 64 for three clips
    assert "too short: 1 video for a clip, 2 for pace, 2 for order; 0 clips without motion" in output
    assert shard.config["flow"]["backend"] == "tvl1" and len(shard.crop_grid) == 15
    assert shard.config["split"] == "all" and shard.arrays["pace/pace"].shape == (4, 32)


def test_size_224(videos, tmp_path):
    shard, _ = labelgen(videos, tmp_path, "--size", 224, "--clips", 1, "--flow", "dis")
    assert shard.frame_size == (256, 340) and shard.frames([0]).shape == (1, 256, 340, 3)
    assert len(shard.crop_grid) == 5 * 15 and shard.arrays["statistics/motion"].shape[1:] == (75, 2, 14)
    assert shard.config["crop"] == 224 and [16, 58] in shard.crop_grid.tolist()
    options = ("--height", 72, "--crop", 64)  # overrule it
    shard, _ = labelgen(videos, tmp_path / "own", "--size", 224, *options, "--clips", 1, "--flow", "dis")
    assert shard.frame_size == (72, 340) and shard.config["crop"] == 64


def test_fps(videos, tmp_path, plain):
    shard, output = labelgen(videos, tmp_path, *TINY, "--fps", 12.5, "--rows", 3)
    assert shard.arrays["videos/n_frames"].tolist() == [60, 35, 10, 6]
    assert shard.arrays["videos/fps"].tolist() == [12.5] * 4 and plain[1].arrays["videos/fps"].tolist() == [25] * 4
    every_other = np.abs(shard.frames(range(30)).astype(int) - plain[1].frames(range(0, 60, 2)))
    assert every_other.max() == 0
    assert shard.arrays["order/permutation"].shape == (4, 3)
    assert "too short: 2 videos for a clip, 4 for pace, 4 for order" in output


def test_flow(videos, tmp_path, plain):
    shard, _ = labelgen(videos, tmp_path, *TINY, "--flow", "dis")
    assert shard.config["flow"]["backend"] == "dis"
    agree = shard.arrays["statistics/motion"] == plain[1].arrays["statistics/motion"]
    assert 0.3 < agree.mean() < 1
    assert (shard.arrays["statistics/appearance"] == plain[1].arrays["statistics/appearance"]).all()


def test_paces(videos, tmp_path):
    shard, output = labelgen(videos, tmp_path, *TINY, "--clips", 1, "--flow", "dis", "--paces", "1/2,1,-1")
    assert [str(pace) for pace in shard.paces] == ["1/2", "1", "-1"]
    assert "3 videos for pace" not in output and "1 for pace" in output  # 16 frames are enough
    for pace, step in enumerate((0.5, 1, -1)):
        row = np.flatnonzero(shard.arrays["pace/pace"][2] == pace)[0]
        frames = shard.pace_frames(2, row) - shard.arrays["videos/first_frame"][2]
        assert (frames == frames[0] + np.floor(np.arange(16) * step)).all() and 0 <= frames.min() <= frames.max() < 20


def test_region(videos, tmp_path, plain):
    shard, _ = labelgen(videos, tmp_path, *TINY, "--clips", 1, "--flow", "dis", "--region", "0,0.25,0.5,1")
    assert shard.config["region"] == [0, 0.25, 0.5, 1]
    own = next(frames(videos / shard.arrays["videos/path"][0], 48, 64, region=(0, 0.25, 0.5, 1)))
    stored = cv2.imdecode(np.frombuffer(encode_frame(own, 90), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert (shard.frames([0])[0] == stored).all() and (stored != plain[1].frames([0])[0]).any()


def test_allow_wrap(videos, tmp_path):
    shard, output = labelgen(videos, tmp_path, *TINY, "--clips", 1, "--flow", "dis", "--allow-wrap")
    assert "0 for pace" in output and (shard.arrays["pace/pace"] != NO_ROW).all()
    wrapped = shard.arrays["pace/wrapped"].mean(1)
    assert wrapped[:2].tolist() == [0, 0] and 0 < wrapped[2] < wrapped[3] == 1


def test_wrap_any(videos, tmp_path):
    shard, output = labelgen(videos, tmp_path, *TINY, "--clips", 1, "--flow", "dis", "--wrap-any")
    assert "0 for pace" in output and (shard.arrays["pace/pace"] != NO_ROW).all()
    wrapped = shard.arrays["pace/wrapped"].mean(1)
    assert (wrapped > 0).all() and (wrapped[:2] < 1).all() and wrapped[3] == 1
    for row in np.flatnonzero(shard.arrays["pace/wrapped"][0]):
        assert (np.diff(shard.pace_frames(0, row)) < 0).sum() == 1  # runs on from the first frame
    assert vssl("shards", "verify", tmp_path) == "1 shard is undamaged\n"


@pytest.mark.parametrize(("clips", "classes", "short"), [(2, 2, 2), (5, 120, 3)])
def test_order_clips(videos, tmp_path, clips, classes, short):
    options = ("--clips", 1, "--flow", "dis", "--order-clips", clips, "--rows", 1000)
    shard, output = labelgen(videos, tmp_path, *TINY, *options)
    assert f"{short} for order" in output and shard.arrays["order/start"].shape == (4, 1000, clips)
    assert set(shard.arrays["order/permutation"][0]) == set(range(classes))
    assert (shard.arrays["order/permutation"][4 - short :] == NO_ROW).all()
    assert shard.order_frames(0, 0).shape == (clips, 16)


def test_clips(videos, tmp_path, plain):
    shard, _ = labelgen(videos, tmp_path, *TINY, "--clips", 2)
    assert np.bincount(shard.arrays["clips/video"], minlength=4).tolist() == [2, 2, 2, 0]
    assert shard.arrays["clips/start"].tolist() != plain[1].arrays["clips/start"].tolist()
    other, _ = labelgen(videos, tmp_path / "seed", *TINY, "--clips", 2, "--seed", 1)
    assert other.arrays["clips/start"].tolist() != shard.arrays["clips/start"].tolist()


@pytest.mark.parametrize("length", [8, 40])
def test_clip_length(videos, tmp_path, plain, length):
    options = ("--flow", "dis", "--clip-length", length, "--order-clips", 2, "--paces", "1,2")
    shard, output = labelgen(videos, tmp_path, *TINY, *options)
    lengths = shard.arrays["videos/n_frames"]
    assert shard.clip_length == length and shard.config["clip_length"] == length
    assert np.bincount(shard.arrays["clips/video"], minlength=4).tolist() == (lengths // length).tolist()
    assert shard.clip_frames(1).tolist() == list(range(length, 2 * length))
    flows = shard.arrays["statistics/motion"][..., 12:]
    assert length // 2 < flows.max() < length - 1
    for video in range(4):
        long = lengths[video] > 2 * (length - 1)
        assert (shard.arrays["pace/pace"][video] != NO_ROW).all() == long
        assert not long or len(shard.pace_frames(video, 0)) == length
        assert (shard.arrays["order/permutation"][video] != NO_ROW).all() == (lengths[video] >= 2 * length + 8)
    assert shard.order_frames(0, 0).shape == (2, length)
    assert (shard.order_frames(0, 0)[1] - shard.order_frames(0, 0)[0] == length + 8).all()
    assert vssl("shards", "verify", tmp_path) == "1 shard is undamaged\n"
    assert f"clips {shard.n_clips} of {length} frames" in vssl("shards", "info", tmp_path)
    vssl("show", "labels", "--shards", tmp_path, "--out", tmp_path, "--count", 1)
    with h5py.File(shard.path, "r+") as file:
        file["statistics/motion"][0, 0, 0, 12] = length - 1
    assert "statistics/motion is out of range" in vssl("shards", "verify", tmp_path, code=1)


def test_jpeg_quality(videos, tmp_path, plain):
    shard, _ = labelgen(videos, tmp_path, *TINY, "--jpeg-quality", 30)
    assert shard.arrays["frames/offset"][-1] < 0.6 * plain[1].arrays["frames/offset"][-1]
    for kind in ("motion", "appearance"):  # labels are those of the decoded video
        assert (shard.arrays[f"statistics/{kind}"] == plain[1].arrays[f"statistics/{kind}"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", 113), "'113' is not one of '112', '224'"),
        (("--height", 8), "height is 8; expected 16 to 4096"),
        (("--width", 0), "width is 0; expected 16 to 4096"),
        (("--crop", 100), "crop is 100; expected a multiple of 8"),
        (
            ("--crop", 136),
            "crop is 136; expected a multiple of 8 from 16 to the smaller side of the frames (128 x 171)",
        ),
        (("--fps", 0), "fps is 0.0; expected frames per second"),
        (("--fps", "nan"), "fps is nan, expected a finite number"),
        (("--fps", "fast"), "'fast' is not a valid float"),
        (("--flow", "magic"), "'magic' is not one of"),
        (("--paces", "1"), "paces are 1; expected at least two different paces"),
        (("--paces", "1,0"), "none of them 0"),
        (("--paces", "1,1/0"), "paces are 1, 1/0; expected numbers such as"),
        (("--paces", "2,4/2"), "two different paces"),
        (("--paces", "1,fast"), "paces are 1, fast; expected numbers such as"),
        *((("--paces", f"1,{pace}"), "at most six digits") for pace in ("1e9999999999", "9" * 5000, "1/1e9")),
        (
            ("--height", 4096, "--width", 4096, "--clip-length", 24),
            "24 frames of 4096 x 4096; expected 268,435,456 pixels",
        ),
        (("--order-clips", 1), "order-clips is 1; expected 2 to 5"),
        (("--order-clips", 6), "order-clips is 6; expected 2 to 5"),
        (("--region", "0.5,0,0.5,1"), "region is 0.5, 0.0, 0.5, 1.0; expected left, top, right, bottom"),
        (("--clips", 0), "clips is 0; expected 'all' or a number"),
        (("--clips", "some"), "'some'; expected 'all' or a number"),
        (("--clip-length", 20), "clip-length is 20; expected a multiple of 8 from 8 to 256"),
        (("--clip-length", 0), "clip-length is 0; expected a multiple of 8 from 8 to 256"),
        (("--clip-length", 264), "clip-length is 264; expected a multiple of 8 from 8 to 256"),
        (("--rows", 0), "rows is 0; expected 1 to 65535"),
        (("--jpeg-quality", 0), "jpeg-quality is 0; expected 1 to 100"),
        (("--jpeg-quality", 101), "jpeg-quality is 101; expected 1 to 100"),
        (("--workers", 0), "0 is not in the range x>=1"),
        (("--videos-per-shard", 0), "0 is not in the range x>=1"),
        (("--stall", 0), "0.0 is not in the range x>0"),
        (("--backend", "dask"), "give both --backend dask and --scheduler"),
        (("--scheduler", "tcp://127.0.0.1:1"), "give both --backend dask and --scheduler"),
        (("--backend", "slurm"), "'slurm' is not one of 'loky', 'dask'"),
    ],
)
def test_bad_values_are_refused(videos, tmp_path, options, message):
    output = vssl("labelgen", videos, "--out", tmp_path / "out", *options, code=2)
    assert message in " ".join(output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", 3), "seed: 0 there, 3 now"),
        (("--jpeg-quality", 80), "jpeg_quality: 90 there, 80 now"),
        (("--paces", "1,2"), 'paces: ["1", "2", "3", "4"] there, ["1", "2"] now'),
        (("--fps", 10), "fps: null there, 10.0 now"),
        (("--flow", "dis"), 'flow backend: "tvl1" there, "dis" now'),
        (("--clips", 2), "clips: null there, 2 now"),
        (("--allow-wrap",), "allow_wrap: false there, true now"),
        (("--width", 72), "width: 64 there, 72 now"),
        (("--clip-length", 24), "clip_length: 16 there, 24 now"),
        (("--videos-per-shard", 3), "videos_per_shard: 10 there, 3 now"),
    ],
)
def test_another_configuration_in_the_same_folder_is_an_error(videos, plain, options, message):
    before = {path.name: path.read_bytes() for path in (plain[0] / "videos").glob("*.h5")}
    output = vssl("labelgen", videos, "--out", plain[0], "--videos-per-shard", 10, *TINY, *options, code=1)
    assert message in output and "choose another output folder" in output
    assert {path.name: path.read_bytes() for path in (plain[0] / "videos").glob("*.h5")} == before


def test_the_split_that_was_labelled_is_named(videos, tmp_path):
    manifest = tmp_path / "mine.yaml"
    manifest.write_text("name: mine\nlabel: {folder: 1}\ngroup: {folder: 1}\nsplits: {leave_out: group}\n")
    common = ("labelgen", "--dataset", manifest, "--root", videos, "--out", tmp_path, *TINY, "--flow", "dis")
    assert "1 of 1 video labelled" in vssl(*common, "--split", "1/test")
    vssl(*common, "--split", "test")  # the same
    assert 'split: "1/test" there, "2/train" now' in vssl(*common, "--split", "2/train", code=1)
    assert "unknown split: '3'; expected 1, 2, train" in vssl(*common, "--split", "3", code=2)


# --- Ctrl-C


@pytest.mark.parametrize("sign", [".lock", ".*.jpeg.tmp"])  # workers are started, videos are labelled
def test_ctrl_c_twice_stops_in_order(videos, tmp_path, sign):
    command = [sys.executable, "-m", "cli.main", "labelgen", "--dataset", "folder", "--root", videos, "--out", tmp_path]
    command += ["--videos-per-shard", "10", "--workers", "2"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob(f"videos/{sign}")):
        time.sleep(0.01)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    message = process.communicate()[1]
    assert process.returncode == 130, message
    assert message == "stopped; finished shards are kept, the same command continues\n"
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [".lock"]
    labelgen(videos, tmp_path)


# --- show, shards


def pictures(folder):
    return {str(path.relative_to(folder)): cv2.imread(str(path)) for path in sorted(folder.rglob("*.png"))}


def test_show_labels(plain, tmp_path):
    output = vssl("show", "labels", "--shards", plain[0], "--out", tmp_path)
    sheets = pictures(tmp_path)
    # the video of 12 frames has no clip
    assert list(sheets) == ["left/0.mp4.png", "right/1.mp4.png", "right/2.mp4.png"]
    assert all(str(tmp_path / name) in output for name in sheets)
    for sheet in sheets.values():  # four rows of four tiles, each the frame enlarged
        assert sheet.shape == (20 + 4 * (20 + 48 * 5 + 6) - 6, 4 * (64 * 5 + 6) - 6, 3)
        assert sheet.std() > 20 and (sheet == 255).all(2).mean() < 0.5
    different = [np.abs(a.astype(int) - b).mean() for a in sheets.values() for b in sheets.values() if a is not b]
    assert min(different) > 5


def test_show_labels_of_chosen_videos(plain, tmp_path):
    def show(*options, code=0):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        told = vssl("show", "labels", "--shards", plain[0], "--out", tmp_path / "out", *options, code=code)
        return told if code else list(pictures(tmp_path / "out"))

    for name in ("right/2.mp4", "right/2"):
        assert show("--video", name) == ["right/2.mp4.png"]
    assert "no video with a labelled clip is called 'right/3.mp4'" in show("--video", "right/3.mp4", code=1)
    told = "'.mp4' is the name of 3 videos: 'left/0.mp4', 'right/1.mp4', 'right/2.mp4'"
    assert told in show("--video", ".mp4", code=1)
    assert len(show("--count", 1, "--seed", 5)) == 1


def test_show_curriculum(plain, tmp_path):
    output = vssl("show", "curriculum", "--shards", plain[0], "--out", tmp_path)
    (sheet,) = pictures(tmp_path).values()
    assert output.strip() == str(tmp_path / "curriculum.png")
    # easy, middle, hard: six of twelve clips each, with their boundaries below
    assert sheet.shape == (20 + 6 * (20 + 48 * 5 + 6) - 6, 6 * (64 * 5 + 6) - 6, 3) and sheet.std() > 20


def test_shards_info_and_verify(plain, tmp_path):
    output = vssl("shards", "info", plain[0])
    assert "videos: 1 shard" in output and "frames 222" in output and "I_v" in output
    assert vssl("shards", "verify", plain[0]) == "1 shard is undamaged\n"
    assert "holds no shards" in vssl("shards", "verify", tmp_path, code=1)
    for command in (("shards", "info"), ("shards", "verify"), ("show", "labels", "--shards")):
        assert vssl(*command, tmp_path / "none", code=1).endswith("or choose another folder\n")
    data = (plain[0] / "videos" / "00000.h5").read_bytes()
    (tmp_path / "00000.h5").write_bytes(data)
    (tmp_path / "00001.h5").write_bytes(data[:-100])
    with h5py.File(tmp_path / "00000.h5", "r+") as file:
        file["statistics/motion"][0, 0, 0, 0] = 99
    output = vssl("shards", "verify", tmp_path, code=1)
    assert output.startswith("Error: 3 faults; delete these shards and run labelgen again\n")
    assert "00000.h5: statistics/motion is out of range" in output and "00001.h5: not a readable shard" in output


def test_a_camera_films_only_the_demo(tmp_path):
    (tmp_path / "videos").mkdir()
    refused = vssl("labelgen", tmp_path / "videos", "--camera", "pan", code=2)
    assert "--camera pan" in refused and "--dataset demo" in refused
