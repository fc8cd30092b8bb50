"""Flow on disk: read back as the programs read it whose layout it has."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cli.flow import _LAYOUTS
from labelgen import decode, extract
from labelgen.errors import ConfigError, DecodeError
from labelgen.extract import Extraction, dataset_of
from labelgen.extract.layouts import LAYOUTS, Template, names
from labelgen.extract.values import quantised
from labelgen.flow import flow, flows, luma
from labelgen.manifest import load
from tests.command import ROOT, vssl
from tests.labelgen.synthetic import write_images, write_video

COUNTS = {"left/a": 9, "right/b": 6, "right/c": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "videos"
    for seed, (name, n_frames) in enumerate(COUNTS.items()):
        write_video(root / f"{name}.mp4", n_frames, seed, step=3 if seed else -3)
    return root


def run(root, out, **settings):
    data = dataset_of(root) if root.is_file() else load("folder", root)
    settings = {"flow": "dis", "short": 48} | settings
    if "height" in settings:
        settings["short"] = None
    return extract.extract(data, data.videos, out, Extraction(**settings))


def truth(path, step=1, height=48, width=64):
    """Frames, RGB, and flows of a video, computed without the code under test."""
    shown = list(decode.frames(path, height, width))
    grey = [luma(frame) for frame in shown]
    return shown, [flow(one, two, "dis") for one, two in zip(grey, grey[step:], strict=False)]


def pixels(flow_image, bound=20):
    """What a program that reads flow in 8 bits takes for the displacement."""
    return flow_image.astype(float) * 2 * bound / 255 - bound


STEP = 40 / 255  # pixels


# --- read back as the programs do


def test_mmaction2(folder, tmp_path, in_process):
    """RawframeDataset: lines DIR TOTAL LABEL; start_index 1, img_{:05}.jpg, flow_x_{:05}.jpg."""
    report = run(folder, tmp_path, frames=True)
    lists = {
        kind: [line.split() for line in (tmp_path / f"{kind}_list.txt").read_text().splitlines()]
        for kind in ("flow", "rgb")
    }
    assert [int(total) for _, total, _ in lists["rgb"]] == [9, 6, 3]
    assert (tmp_path / "classes.txt").read_text().split() == ["left", "right"]
    assert [label for *_, label in lists["flow"]] == [label for *_, label in lists["rgb"]] == ["0", "1", "1"]
    for directory, total, _ in lists["flow"]:
        shown, true = truth(folder / f"{directory}.mp4")
        assert int(total) == len(true) == len(shown) - 1
        assert len(os.listdir(tmp_path / directory)) == 2 * len(true) + len(shown)
        for index in range(1, int(total) + 1):
            for axis, name in enumerate("xy"):
                image = cv2.imread(str(tmp_path / directory / f"flow_{name}_{index:05}.jpg"), cv2.IMREAD_UNCHANGED)
                assert image.shape == (48, 64)
                assert np.abs(pixels(image) - true[index - 1][..., axis].clip(-20, 20)).mean() < STEP
        for index, frame in enumerate(shown, 1):  # the last one is there, too
            image = cv2.imread(str(tmp_path / directory / f"img_{index:05}.jpg"))[..., ::-1]
            assert np.abs(luma(image).astype(int) - luma(frame)).mean() < 3  # JPEG keeps less of the colours
            assert np.abs(image.mean((0, 1)) - frame.mean((0, 1))).max() < 3
    assert report["frames"] == 18 and report["flows"] == 15 and report["failures"] == []
    assert json.loads((tmp_path / "report.json").read_text()) == report


@pytest.mark.parametrize("step", [1, 2])
def test_denseflow(folder, tmp_path, in_process, step):
    """Counts from 0, N - step of each, _p{step} in the names if the step is not 1."""
    run(folder, tmp_path, layout="denseflow", step=step)
    between = "" if step == 1 else f"p{step}_"
    for name, n_frames in COUNTS.items():
        _, true = truth(folder / f"{name}.mp4", step)
        wanted = {f"flow_{axis}_{between}{index:05d}.jpg" for axis in "xy" for index in range(n_frames - step)}
        assert set(os.listdir(tmp_path / name)) == wanted
        for index in range(n_frames - step):
            image = cv2.imread(str(tmp_path / name / f"flow_x_{between}{index:05d}.jpg"), cv2.IMREAD_GRAYSCALE)
            assert np.abs(pixels(image) - true[index][..., 0].clip(-20, 20)).mean() < STEP
    assert not (tmp_path / "flow_list.txt").exists()


def test_uv(folder, tmp_path, in_process):
    """u/VIDEO/frame000001.jpg, v/VIDEO/..., jpegs_256/VIDEO/...: as the published UCF101 flow."""
    run(folder, tmp_path, layout="uv", frames=True)
    for name, n_frames in COUNTS.items():
        _, true = truth(folder / f"{name}.mp4")
        for place, axis in (("u", 0), ("v", 1)):
            files = sorted((tmp_path / place / name).iterdir())
            assert [path.name for path in files] == [f"frame{index:06d}.jpg" for index in range(1, n_frames)]
            for path, one in zip(files, true, strict=True):
                assert np.abs(pixels(cv2.imread(str(path), 0)) - one[..., axis].clip(-20, 20)).mean() < STEP
        assert len(list((tmp_path / "jpegs_256" / name).iterdir())) == n_frames


def test_npy(folder, tmp_path, in_process):
    report = run(folder, tmp_path, layout="npy")
    for name, n_frames in COUNTS.items():
        stored = np.load(tmp_path / name / "flow.npy")
        _, true = truth(folder / f"{name}.mp4")
        assert stored.dtype == np.float16 and stored.shape == (n_frames - 1, 48, 64, 2)
        assert (stored == np.stack(true).astype(np.float16)).all()
    assert report["clipped"] is None


def test_flo(folder, tmp_path, in_process):
    """Middlebury: float 202021.25, width, height, then u and v of each pixel."""
    run(folder, tmp_path, layout="flo")
    _, true = truth(folder / "left/a.mp4")
    for index, one in enumerate(true, 1):
        words = np.fromfile(tmp_path / f"left/a/flow_{index:05d}.flo", "<f4")
        assert words[0] == 202021.25 and words[1:3].view("<i4").tolist() == [64, 48]
        assert (words[3:].reshape(48, 64, 2) == one).all()


def test_folders_of_images_and_parts_of_files(tmp_path, in_process):
    """Flow needs no rate; a part of a file, by its seconds or frames, is a video of its own."""
    write_images(tmp_path / "videos/images", 5)
    write_video(tmp_path / "videos/long.mp4", 30)
    (tmp_path / "cut.csv").write_text("video,start,end\nlong.mp4,10,20\nimages,1,4\n")
    (tmp_path / "cut.yaml").write_text(
        "name: cut\nvideos: {folder: videos}\ncsv: {files: [cut.csv], video: '{video}'}\n"
        "segments: {start: start, end: end, unit: frames}\n"
    )
    assert run(tmp_path / "videos", tmp_path / "whole", layout="npy")["videos"]["extracted"] == 2
    assert np.load(tmp_path / "whole/images/flow.npy").shape == (4, 48, 64, 2)
    data = load(str(tmp_path / "cut.yaml"), tmp_path)
    report = extract.extract(data, data.videos, tmp_path / "parts", Extraction(layout="npy", flow="dis", short=48))
    assert not report["failures"] and len(data.videos) == 2
    (parts,) = [*(tmp_path / "parts").glob("long*")]
    stored, whole = np.load(parts / "flow.npy"), np.load(tmp_path / "whole/long/flow.npy")
    assert len(stored) == 10 and np.array_equal(stored, whole[10:20])  # frames 10 to 20
    seconds = (tmp_path / "cut.yaml").read_text().replace(", unit: frames", "")
    (tmp_path / "cut.yaml").write_text(seconds)
    (tmp_path / "cut.csv").write_text("video,start,end\nimages,1,4\n")
    data = load(str(tmp_path / "cut.yaml"), tmp_path)
    report = extract.extract(data, data.videos, tmp_path / "none", Extraction(layout="npy", flow="dis", short=48))
    assert "give the part of it in frames" in report["failures"][0]["reason"]


def test_a_template_of_ones_own(folder, tmp_path, in_process):
    """pytorch-i3d reads VID/VID-000001x.jpg, video_features one array of a video; .png loses nothing beyond 8 bits."""
    i3d = {"template": "{video}/{name}-{index:06d}{axis}.png", "frames_template": "{video}/{name}-{index:06d}.jpg"}
    run(folder, tmp_path / "i3d", frames=True, first=7, **i3d)
    _, true = truth(folder / "right/c.mp4")
    files = {f"c-{number:06d}{kind}" for number in (7, 8) for kind in (".jpg", "x.png", "y.png")} | {"c-000009.jpg"}
    assert set(os.listdir(tmp_path / "i3d/right/c")) == files
    stored = cv2.imread(str(tmp_path / "i3d/right/c/c-000008y.png"), cv2.IMREAD_UNCHANGED)
    assert (stored == np.rint(255 * (true[1][..., 1].clip(-20, 20).astype(float) + 20) / 40)).all()
    run(folder, tmp_path / "coclr", template="{video}/flow_{index:05d}.png")  # MemDPC and CoCLR: x, y, 128 of OpenCV
    stored = cv2.imread(str(tmp_path / "coclr/right/c/flow_00002.png"))
    assert (stored[..., 2] == 128).all() and len(os.listdir(tmp_path / "coclr/right/c")) == 2
    assert (stored[..., :2] == np.rint(255 * (true[1].clip(-20, 20).astype(float) + 20) / 40)).all()
    run(folder, tmp_path / "whole", template="{video}_raft.npy")
    assert np.load(tmp_path / "whole/right/c_raft.npy").shape == (2, 48, 64, 2)


def test_flows_are_those_that_are_stored(folder):
    path = folder / "left/a.mp4"
    _, true = truth(path, 2)
    found = list(flows(path, "dis", short=48, step=2))
    assert len(found) == 7 and found[0].dtype == np.float32 and np.array_equal(found, true)
    with pytest.raises(ConfigError, match="step is 0; expected at least 1"):
        flows(path, step=0)
    with pytest.raises(DecodeError):
        list(flows(Path(__file__)))


def test_one_file_is_enough(folder, tmp_path):
    told = vssl("flow", folder / "right/c.mp4", "--out", tmp_path, "--short", 48, "--flow", "dis")
    assert "flow of 1 of 1 video" in told and len(os.listdir(tmp_path / "c")) == 4


# --- values


def test_values_by_hand():
    """255 (v + b) / (2 b), half values to the even neighbour; with b = 127.5 that is v + 127.5."""
    given = np.float32([0, 1, 2, -1, 127.5, -127.5, 128, -200, 0.25, 0.75])
    wanted = [128, 128, 130, 126, 255, 0, 255, 0, 128, 128]
    stored, outside = quantised(np.stack([given, given[::-1]], -1)[None], 127.5)
    assert stored.dtype == np.uint8 and stored[0, 0].tolist() == wanted and stored[1, 0].tolist() == wanted[::-1]
    assert outside == 4
    # 8 bits of 20 pixels: a step is 40 / 255; no motion, ten pixels, one pixel
    stored, outside = quantised(np.float32([[[0, 10], [1, -20.001]]]), 20)
    assert stored.tolist() == [[[128, 134]], [[191, 0]]] and outside == 1


def test_values_are_denseflows_for_any_flow():
    """Its CAST(v, L, H): v > H ? 255 : v < L ? 0 : cvRound(255 * (v - L) / (H - L)), in double precision."""
    given = np.random.default_rng(0).normal(0, 12, (40, 50, 2)).astype(np.float32)
    given.flat[:256] = (np.arange(256) * 40 / 255 - 20).astype(np.float32)  # the values of the steps themselves

    def cast(v):
        return 255 if v > 20 else 0 if v < -20 else round(255 * (float(v) + 20) / 40)

    stored, outside = quantised(given, 20)
    assert stored.transpose(1, 2, 0).ravel().tolist() == [cast(v) for v in given.ravel()]
    assert outside == (np.abs(given) > 20).sum()


def test_the_share_of_clipped_values_is_reported(folder, tmp_path, in_process):
    report = run(folder, tmp_path, bound=1.0)
    outside, total = 0, 0
    with open(tmp_path / "videos.csv", newline="") as file:
        for row in csv.DictReader(file):
            _, true = truth(folder / row["id"])
            share = np.mean(np.abs(true) > 1)
            assert float(row["clipped"]) == pytest.approx(share, abs=1e-6)
            assert (row["height"], row["width"]) == ("48", "64")
            outside, total = outside + (np.abs(true) > 1).sum(), total + np.size(true)
    assert report["clipped"] == pytest.approx(outside / total, abs=1e-6) and outside


def test_sizes(folder, tmp_path, in_process):
    """The shorter side, rounded, or height and width; upright."""
    run(folder, tmp_path / "short", layout="npy", short=25)
    assert np.load(tmp_path / "short/left/a/flow.npy").shape[1:3] == (25, 33)
    run(folder, tmp_path / "size", layout="npy", height=30, width=50)
    assert np.load(tmp_path / "size/left/a/flow.npy").shape[1:3] == (30, 50)
    turned = ROOT.parent / "shared/data/codecs/video_90.mov"
    if turned.exists():
        stream = decode.frames(turned, short=20)
        assert next(stream).shape[1] == 20 and stream.native_width < stream.native_height
    with pytest.raises(DecodeError, match="are 2667 x 2000, more than --max-pixels 1,000,000"):
        next(decode.frames(folder / "left/a.mp4", short=2000, max_pixels=10**6))


# --- names


def test_no_two_videos_share_a_folder():
    ids = ["a.mp4", "a.avi", "b.mp4", "b/c.mp4", "b/c.mkv", "d.mp4", "d.mp4.avi", "report.json.mp4", "x_y.mp4"] + [
        "x y.mp4"
    ]
    found = names(ids, [Template(LAYOUTS["uv"].flow)], {})
    assert found["a.mp4"] == "a.mp4" and found["a.avi"] == "a.avi"
    assert found["b.mp4"] == "b.mp4" and found["b/c.mp4"] == "b/c.mp4" and found["b/c.mkv"] == "b/c.mkv"
    assert found["x y.mp4"] == "x y" and len(set(found.values())) == len(ids)
    plain = names(ids, [Template(LAYOUTS["mmaction2"].flow)], {}, spaces=False)
    assert plain["report.json.mp4"] == "report.json.mp4" and plain["x y.mp4"].startswith("x_y.mp4")
    assert len(set(plain.values())) == len(ids) and not any(" " in name for name in plain.values())
    for one in plain.values():  # and none lies within another's
        assert not any(other.startswith(f"{one}/") for other in plain.values())


def test_names_of_an_earlier_run_stay():
    template = [Template(LAYOUTS["npy"].flow)]
    assert names(["a.avi", "a.mp4"], template, {"a.mp4": "a"}) == {"a.avi": "a.avi", "a.mp4": "a"}


def test_hostile_names():
    template = [Template(LAYOUTS["mmaction2"].flow)]
    odd = ["..mp4", ".lock.mp4", "a\nb.mp4", "-rf.mp4", "{index}.mp4", "%05d.mp4", "ü/\\xff.mp4"]
    found = names(odd, template, {}, spaces=False)
    assert found["..mp4"] == "_..mp4" and found[".lock.mp4"] == "_.lock" and found["a\nb.mp4"] == "a_b"
    assert found["{index}.mp4"] == "{index}" and template[0].path("{index}", 3) == "{index}/flow_x_00003.jpg"
    with pytest.raises(
        ConfigError, match="would have 26. bytes; expected at most 255: rename the video, or choose a shorter"
    ):
        names(["n" * 250 + ".mp4"], [Template("{video}/{name}-{index:06d}{axis}.jpg")], {})
    with pytest.raises(ConfigError, match="report.json/x.mp4: its files would lie in .*, which is taken"):
        names(["report.json/x.mp4"], template, {})


def test_videos_of_one_name_and_odd_names_are_all_made(tmp_path, in_process):
    root = tmp_path / "v"
    odd = ["a.mp4", "a.avi", "sub/a.mp4", "a/b.mp4", "with space.mp4", "new\nline.mp4", "=1+1.mp4"]
    for seed, name in enumerate(odd):
        write_video(root / name, 3, seed)
    (root / os.fsdecode(b"\xff.mp4")).write_bytes((root / "a.avi").read_bytes())
    report = run(root, tmp_path / "out")
    assert report["videos"] == {"asked": 8, "extracted": 8, "cut_short": 0, "failed": 0}
    lines = (tmp_path / "out/flow_list.txt").read_text().splitlines()
    assert len(lines) == 8 and len({line.split()[0] for line in lines}) == 8
    for line in lines:
        directory, total, _ = line.split()
        assert total == "2" and len(os.listdir(tmp_path / "out" / directory)) == 4


@pytest.mark.parametrize(
    "template, message",
    [
        ("flow_{axis}_{index}.jpg", "expected {video} once"),
        ("{video}/{video}_{axis}_{index}.jpg", "expected {video} once"),
        ("{video}_{axis}_{index}.jpg", "expected {video} once"),
        ("../{video}/{axis}_{index}.jpg", "below the output folder"),
        ("/tmp/{video}/{axis}_{index}.jpg", "below the output folder"),
        ("{video}/.{axis}_{index}.jpg", "without hidden names"),
        ("{video}/{axis}.jpg", "expected {index} in each name"),
        ("{video}/{axis}_{index}.flo", "expected {axis} or {uv} only in the names of pictures of flow"),
        ("{video}/{index}.npy", "not in that of a .npy file"),
        ("{video}/{axis}_{index}.mp4", "ends in .jpg"),
        ("{video}/{axis}_{index:5}.jpg", "width of at most 9 digits"),
        ("{video}/{axis}_{index!r}.jpg", "expected none but"),
        ("{video}/{axis.__class__}_{index}.jpg", "expected none but"),
        ("{video}/{0}{axis}_{index}.jpg", "expected none but"),
        ("{video}/{axis}_{index.jpg", "expected '}' before end of string"),
        ("{video}/deep/{axis}_{index}.jpg", "directly in the folder"),
    ],
)
def test_templates_that_cannot_be(template, message):
    with pytest.raises(ConfigError, match="the template is .*" + message.replace("{", r"\{").replace("}", r"\}")):
        Extraction(template=template)


def test_options_are_checked(folder, tmp_path):
    assert set(_LAYOUTS) == set(LAYOUTS)
    with pytest.raises(ConfigError, match="frames and flow have the same template"):
        Extraction(frames=True, template="{video}/{axis}{index}.jpg", frames_template="{video}/x{index}.jpg")
    for options, message in (
        ({"bound": 0.0}, "bound is 0; expected 0.001 to 10000"),
        ({"bound": float("nan")}, "bound is nan"),
        ({"layout": "x"}, "layout is 'x'; expected one of mmaction2"),
        ({"flow": "raft"}, "flow backend is 'raft'"),
        ({"height": 20, "width": 20}, "short is 256 and the size 20 x 20"),
        ({"frames_template": "{video}/{index}.jpg"}, "no frames are written"),
    ):
        with pytest.raises(ConfigError, match=message):
            Extraction(**options)
    for arguments, message in (
        (("--size", "256"), "expected height x width such as 256x340"),
        (("--size", "256x340", "--short", 256), "give only one of them"),
        (("--backend", "dask"), "give both --backend dask and --scheduler"),
        (("--bound", 0), "bound is 0; expected"),
    ):
        assert message in vssl("flow", folder, "--out", tmp_path / "out", *arguments, code=2)
        assert not (tmp_path / "out").exists()
