"""Folders of numbered images as videos: which they are, what comes of them, and what is wrong with them."""

import os
import shutil
import struct
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.decode import expected_frames, frame_times, frames
from labelgen.errors import ConfigError, DecodeError, MachineError, ManifestError
from labelgen.manifest import load
from labelgen.shards import open_shards
from tests.labelgen.synthetic import write_images

SMALL = Config(height=48, width=64, crop=32, fps=25)


def seen(folder, fps=25, **options):
    """Frames, their times and damage, the reason at the end, and the stream."""
    stream, own, reason = frames(folder, 48, 64, fps, **options), [], ""
    try:
        for frame in stream:
            own.append((frame, stream.time, stream.damage))
    except DecodeError as error:
        reason = error.reason
    pictures, times, damage = zip(*own, strict=True) if own else ((), (), ())
    image_fps = options.get("image_fps")
    assert expected_frames(frame_times(folder, image_fps=image_fps or fps), fps) in (0, len(own)) or reason
    return pictures, np.array(times), list(damage), reason, stream


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "video", 12)


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "jpg"])
def test_frames_are_those_of_the_images(tmp_path, kind):
    folder = write_images(tmp_path / "video", 12, name="{}." + kind, first=0)  # 10.png after 9.png
    (folder / "notes.txt").write_text("no image")
    pictures, times, damage, reason, stream = seen(folder, 5)
    assert (len(pictures), set(damage), reason, stream.fps) == (12, {0}, "", 5)
    assert (stream.native_width, stream.native_height) == (128, 96)
    np.testing.assert_allclose(times, np.arange(12) / 5)
    for t, picture in enumerate(pictures):
        stored = cv2.imread(str(folder / f"{t}.{kind}"))[..., ::-1]
        small = cv2.resize(stored, (64, 48), interpolation=cv2.INTER_AREA)
        assert np.abs(picture.astype(int) - small).mean() < (
            12 if kind in ("jpg", "webp") else 1
        )  # colours are coarser


def test_images_are_labelled_as_a_film_of_them_is(tmp_path):
    """The same JPEG files as a folder and as the packets of a film give the same bytes."""
    folder = write_images(tmp_path / "videos" / "left" / "a", 40, name="{:03d}.jpg")
    with av.open(str(tmp_path / "videos" / "left" / "b.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuvj420p"
        for t, path in enumerate(sorted(folder.iterdir())):
            packet = av.Packet(path.read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, t, t, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    data = load("folder", tmp_path / "videos")
    assert [(video.id, video.label) for video in data.videos] == [("left/a", "left"), ("left/b.avi", "left")]
    assert not data.others and not data.images
    for config in (SMALL, replace(SMALL, clips=2)):
        out = tmp_path / f"out{config.clips}"
        report = run.run(data, data.videos, out, config, videos_per_shard=2)
        assert report["failures"] == [] and report["clips"] == 4
        (shard,) = open_shards(out)
        arrays = shard.arrays
        assert arrays["videos/n_frames"].tolist() == [40, 40] and arrays["videos/width"].tolist() == [128, 128]
        np.testing.assert_allclose(arrays["frames/time"][:40], arrays["frames/time"][40:])
        assert all((shard.jpeg(t) == shard.jpeg(40 + t)).all() for t in range(40))
        if config.clips is None:
            assert (arrays["statistics/motion"][:2] == arrays["statistics/motion"][2:]).all()


def test_another_rate_is_resampled(folder):
    pictures, times, _, reason, _ = seen(folder, 12.5, image_fps=25)
    assert len(pictures) == 6 and reason == ""
    whole, _, _, _, stream = seen(folder, None, image_fps=25)
    assert len(whole) == 12 and stream.fps == 25
    assert all((one == other).all() for one, other in zip(pictures, whole[::2], strict=True))
    np.testing.assert_allclose(times, np.arange(6) / 12.5)


def test_the_smallest_step_between_numbers_is_one_frame(tmp_path):
    folder = write_images(tmp_path / "video", 6)
    for number in (2, 4, 6):
        os.remove(folder / f"img_{number:05d}.png")
    assert [len(part) for part in seen(folder)[:2]] == [3, 3] and seen(folder)[3] == ""


def remove(path):
    path.unlink()


def truncate(path):
    cv2.imwrite(str(path), cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn_into(what):
    def change(path):
        path.unlink()
        what(path)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove, "1 image missing, the first before img_00007.png"),
        (lambda path: path.write_bytes(b""), "1 image undecodable, the first img_00006.png (an empty file)"),
        (lambda path: path.write_bytes(b"#EXTM3U\n/etc/passwd"), "img_00006.png (not a BMP, JPEG, PNG or WebP file)"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\nx"), "1 image undecodable, the first img_00006.png ("),
        (turn_into(os.mkfifo), "img_00006.png (a named pipe; expected a regular file)"),
        (turn_into(os.mkdir), "img_00006.png (a folder; expected a regular file)"),
        (turn_into(lambda path: path.symlink_to(path.parent / "absent")), "img_00006.png (a broken link)"),
        (
            lambda path: cv2.imwrite(str(path), np.zeros((50, 40, 3), np.uint8)),
            "1 image of another size, the first img_00006.png (40 x 50, not 128 x 96)",
        ),
        (
            lambda path: cv2.imwrite(str(path), np.zeros((3000, 3000, 3), np.uint8)),
            "1 image undecodable, the first img_00006.png (Picture size 3000x3000 exceeds specified max pixel count",
        ),
    ],
)
def test_what_is_wrong_with_an_image_costs_itself_alone(folder, change, told):
    change(folder / "img_00006.png")
    pictures, _, damage, reason, _ = seen(folder, max_pixels=128 * 96)
    assert told in reason
    assert len(pictures) == 12 and damage.count(2) == 1 and damage.index(2) in (4, 5)


def test_half_an_image_is_damaged(tmp_path):
    folder = write_images(tmp_path / "video", 12, name="{}.jpg")
    path = folder / "6.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    pictures, _, damage, reason, _ = seen(folder)
    assert len(pictures) == 12 and damage == [0] * 5 + [1] + [0] * 6
    assert "1 image damaged, the first 6.jpg (" in reason


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: shutil.copy(folder / "img_00001.png", folder / "img_1.png"), "two images have the number 1"),
        (lambda folder: write_images(folder, 3, name="other{}.png"), "images of 2 videos (12 such as img_00001.png, 3"),
        (
            lambda folder: [path.write_bytes(b"x") for path in folder.iterdir()],
            "no frame in the video stream; 12 images undec",
        ),
        (lambda folder: cv2.imwrite(str(folder / "img_00001.png"), np.zeros((500, 500, 3))), "more than --max-pixels"),
    ],
)
def test_folders_that_are_no_video(folder, change, told):
    change(folder)
    pictures, _, _, reason, _ = seen(folder, max_pixels=200 * 200)
    assert not pictures and told in reason


def test_numbers_that_lie_far_apart_fill_no_memory(folder):
    shutil.copy(folder / "img_00001.png", folder / "img_999999999999999.png")
    pictures, _, _, reason, _ = seen(folder)
    assert len(pictures) < 12 + 300 and "999,999,999,999,986 images missing" in reason


def test_flow_beside_the_images_is_none_of_them(folder):
    for name in ("flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg", "x_{}.jpg", "y_{}.jpg"):
        write_images(folder, 11, name=name)
    assert len(seen(folder)[0]) == 12 and seen(folder)[3] == ""
    assert [video.id for video in load("folder", folder.parent).videos] == ["video"]


def test_orientation_of_photographs_is_applied(tmp_path):
    folder = write_images(tmp_path / "video", 3, name="{}.jpg")
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(turned) + 2) + turned + data[2:])
    stream = seen(folder)[4]
    assert (stream.native_width, stream.native_height) == (96, 128)


def test_which_folders_are_videos(tmp_path):
    write_images(tmp_path / "root" / "run" / "a", 3)
    write_images(tmp_path / "root" / "run" / "b.mp4", 3, name="frame{:06d}.jpg")  # called as the video was
    write_images(tmp_path / "root" / "one", 1)
    write_images(tmp_path / "root" / "covers", 3)
    (tmp_path / "root" / "covers" / "film.mp4").write_bytes(b"")
    data = load("folder", tmp_path / "root")
    assert [(video.id, video.label) for video in data.videos] == [
        ("covers/film.mp4", "covers"), ("run/a", "run"), ("run/b.mp4", "run"),
    ]  # fmt: skip
    assert data.others == ("covers/img_00001.png", "covers/img_00002.png", "covers/img_00003.png", "one/img_00001.png")
    without = load("folder", tmp_path / "root", images=False)
    assert [video.id for video in without.videos] == ["covers/film.mp4"] and without.images == ("run/a", "run/b.mp4")
    assert "folders of images left out because their frame rate is unknown: 2 (run/a, run/b.mp4)" in without.summary()
    with pytest.raises(ConfigError, match="only folders of images, whose frame rate is unknown"):
        load("folder", tmp_path / "root" / "run", images=False)
    (itself,) = load("folder", tmp_path / "root" / "run" / "a").videos
    assert (itself.id, itself.path, itself.label) == ("a", tmp_path / "root" / "run" / "a", "")


def test_a_manifest_may_leave_images_out(tmp_path):
    write_images(tmp_path / "root" / "a", 3)
    manifest = tmp_path / "m.yaml"
    manifest.write_text("name: m\nvideos: {extensions: [mp4]}\n")
    with pytest.raises(ManifestError, match="no videos found"):
        load(str(manifest), tmp_path / "root")
    manifest.write_text("name: m\nvideos: {extensions: [png]}\n")
    assert [video.id for video in load(str(manifest), tmp_path / "root").videos] == ["a"]


def test_damaged_folders_are_listed_and_the_others_labelled(tmp_path):
    for name in ("good", "gap"):
        write_images(tmp_path / "videos" / name, 40)
    (tmp_path / "videos" / "gap" / "img_00020.png").unlink()
    for path in write_images(tmp_path / "videos" / "text", 3).iterdir():
        path.write_text("no image")
    data = load("folder", tmp_path / "videos")
    report = run.run(data, data.videos, tmp_path / "out", SMALL, videos_per_shard=3)
    told = [(failure["id"], failure["stage"], failure["kept"]) for failure in report["failures"]]
    assert told == [("gap", "decode", True), ("text", "decode", False)]
    assert report["failures"][0]["reason"].startswith("kept 40 frames: 1 image missing, the first before img_00021.png")
    (shard,) = open_shards(tmp_path / "out")
    video, start = shard.arrays["clips/video"], shard.arrays["clips/start"]
    assert start[video == 0].tolist() == [0, 19] and start[video == 1].tolist() == [0, 16]  # none crosses the gap
    assert np.flatnonzero(shard.arrays["frames/damage"]).tolist() == [19]
    # the same command with an image less is another list of videos
    (tmp_path / "videos" / "good" / "img_00040.png").unlink()
    again = load("folder", tmp_path / "videos")
    with pytest.raises(Exception, match="with other paths, sizes or labels"):
        run.run(again, again.videos, tmp_path / "out", SMALL, videos_per_shard=3)


def test_images_that_vanish_are_the_machines_fault(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "videos" / "a", 40)
    data = load("folder", tmp_path / "videos")
    sizes = run.file_sizes(data.videos)
    monkeypatch.setattr(run, "file_sizes", lambda videos: sizes)
    (folder / "img_00030.png").unlink()
    with pytest.raises(MachineError, match="changed since the run was planned"):
        run.run(data, data.videos, tmp_path / "out", SMALL)
