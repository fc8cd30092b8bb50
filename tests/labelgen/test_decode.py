"""Decoding: sizes, order, rotation, failures; on files made here and on the codec collection if it is present."""

import os
import resource
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from labelgen.decode import frames
from labelgen.errors import DecodeError
from tests.labelgen import synthetic

CODECS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "codecs"
codecs = pytest.mark.skipif(not CODECS.is_dir(), reason="the codec collection is not here")


def write_video(path, pictures, rate=25, codec="libx264", times=None, **options):
    """Encode RGB uint8 pictures [T, H, W, 3], near lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "4"} | options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv444p"
        stream.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = int(1000 * (times[index] if times is not None else index / rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pictures(count, height=48, width=64):
    """Frame k is grey 5k, with a red top left quarter."""
    out = np.repeat(np.arange(count, dtype=np.uint8)[:, None, None, None] * 5, 3, -1)
    out = np.broadcast_to(out, (count, height, width, 3)).copy()
    out[:, : height // 2, : width // 2] = (250, 0, 0)
    return out


def test_frames_come_in_order_at_the_size_asked_for(tmp_path):
    path = write_video(tmp_path / "a.mp4", pictures(20))
    stream = frames(path, height=24, width=30)
    out = list(stream)
    assert len(out) == stream.count == 20 and all(f.shape == (24, 30, 3) and f.dtype == np.uint8 for f in out)
    assert [abs(int(f[20, 25, 1]) - 5 * k) <= 3 for k, f in enumerate(out)] == [True] * 20
    assert out[3][3, 3, 0] > 200 > 60 > out[3][3, 3, 1]
    assert (stream.native_height, stream.native_width, stream.fps) == (48, 64, 25)
    assert next(frames(path)).shape == (48, 64, 3)


def test_a_region_is_cut_before_frames_are_resized(tmp_path):
    board = np.zeros((48, 64, 3), np.uint8)
    board[24:36, 16:32] = 250
    path = write_video(tmp_path / "a.mp4", [board])
    part = next(frames(path, 24, 32, region=(0.25, 0.5, 0.5, 0.75)))
    assert part.shape == (24, 32, 3) and part[2:-2, 2:-2].min() > 200
    assert next(frames(path, region=(0.25, 0, 1, 0.5))).shape == (24, 48, 3)  # its own size
    stream = frames(path, 24, 32, region=(0, 0, 0.2, 0.2))
    assert next(stream).max() < 50 and (stream.native_height, stream.native_width) == (48, 64)


def test_area_interpolation_averages(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    path = write_video(tmp_path / "a.mp4", [np.repeat(board[..., None], 3, -1).astype(np.uint8)])
    assert np.abs(next(frames(path, 16, 16)).astype(int) - 127).max() < 12


def test_fps_takes_the_frame_presented_nearest(tmp_path):
    path = write_video(tmp_path / "a.mp4", pictures(20))
    shown = [int(round(f[40, 60, 1] / 5)) for f in frames(path, fps=12.5)]
    assert shown == list(range(0, 20, 2))
    assert [int(round(f[40, 60, 1] / 5)) for f in frames(path, fps=50)][:6] in ([0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2])
    times = [0, 0.04, 0.08, 0.5, 0.54]
    path = write_video(tmp_path / "b.mp4", pictures(5), times=times)
    wanted = [int(np.argmin(np.abs(np.array(times) - k / 10))) for k in range(6)]
    assert [int(round(f[40, 60, 1] / 5)) for f in frames(path, fps=10)] == wanted


def test_what_cannot_be_decoded_says_why(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(DecodeError, match="text.mp4: cannot be decoded at opening: moov atom not found"):
        next(frames(tmp_path / "text.mp4"))
    (tmp_path / "letters.txt").write_text("Some letters, and some more of them.\n" * 500)
    with pytest.raises(DecodeError, match="letters.txt: a text file, no video"):
        next(frames(tmp_path / "letters.txt"))
    with pytest.raises(DecodeError, match="No such file"):
        next(frames(tmp_path / "none.mp4"))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DecodeError):
        next(frames(tmp_path / "empty.mp4"))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DecodeError, match="no video stream"):
        next(frames(tmp_path / "sound.wav"))


FORMATS = {
    "a.avi": {},
    "bframes.avi": {"bf": "2"},
    "sound.avi": {"sound": 6},
    "a.mkv": {},
    "bframes.mkv": {"codec": "libx264"},
    "sound.mkv": {"codec": "libx264", "sound": 6},
    "a.webm": {"codec": "libvpx", "deadline": "realtime"},
    "a.mp4": {"muxer": {"movflags": "faststart"}},
    "bframes.mp4": {"codec": "libx264", "muxer": {"movflags": "faststart"}},
    "sound.mp4": {"codec": "libx264", "sound": 6, "muxer": {"movflags": "faststart"}},
    "a.mpg": {"codec": "mpeg2video"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_breaks_off_is_told_from_a_whole_one(tmp_path, name):
    path = synthetic.write_video(tmp_path / name, 80, **FORMATS[name])
    assert len(list(frames(path))) == 80 and len(list(frames(path, fps=12.5))) == 40
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    counts = []
    for fps in (None, 12.5):
        stream = frames(path, fps=fps)
        with pytest.raises(DecodeError, match=r"the file ends (after|within)|cannot be decoded after"):
            list(stream)
        counts.append(stream.count)
    assert 0 < counts[0] < 75 and counts[1] == pytest.approx(counts[0] / 2, abs=1)


def test_the_reason_says_how_much_is_there(tmp_path):
    for name, reason in (("a.avi", r"after \d\d of 80 frames$"), ("a.mkv", r"after [12]\.\d of 3\.2 s$")):
        path = synthetic.write_video(tmp_path / name, 80)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DecodeError, match=f"{name}: the file ends {reason}"):
            list(frames(path))


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path):
    path = synthetic.write_video(tmp_path / "long.mp4", 100, codec="libx264")
    with av.open(str(path)) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = whole.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                packet.pts -= int(2 / stream.time_base)
                packet.dts -= int(2 / stream.time_base)
                packet.stream = copy
                cut.mux(packet)
    assert len(list(frames(tmp_path / "cut.mp4"))) == 50


def test_repeated_frames_of_an_avi_are_not_missed(tmp_path):
    path = write_video(tmp_path / "a.avi", pictures(20), codec="ffv1")  # 1000 a second, nearly all empty
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 700
    assert len(list(frames(path))) == 20


def test_metadata_that_is_not_utf8_does_not_stop_a_video(tmp_path):
    path = write_video(tmp_path / "a.avi", pictures(3), codec="ffv1")
    data = path.read_bytes()
    tag = b"ISFT"
    at = data.index(tag) + 8
    path.write_bytes(data[:at] + b"\xff\xfe\xe9" + data[at + 3 :])
    assert len(list(frames(path))) == 3


@codecs
def test_every_codec_gives_its_frames():
    expected = {
        "av1_video.mkv": 125, "big_buck_bunny.mpg": 125, "h264_10bits.mp4": 30, "h265_video.mp4": 10, "indeo.avi": 30,
        "newtonscradle.gif": 36, "no_duration.webm": 74, "qcif_YVU9.avi": 1, "realshort.mp4": 36, "unordered.mov": 4,
        "video_90.mov": 3, "wmv9.avi": 30,
    }  # fmt: skip
    assert {name: sum(1 for _ in frames(CODECS / name, 32, 48)) for name in expected} == expected


@codecs
def test_rotation_is_applied():
    upright = frames(CODECS / "video_90.mov")
    assert next(upright).shape == (568, 320, 3) and (upright.native_height, upright.native_width) == (568, 320)
    assert next(frames(CODECS / "video_90.mov", 128, 171)).shape == (128, 171, 3)


@codecs
def test_a_broken_file_gives_what_comes_before_and_after_the_error():
    stream = frames(CODECS / "corrupted.mp4", 32, 48)
    with pytest.raises(DecodeError, match="2 frames damaged, from frame 31 on and 1 frame lost, from frame 30 on"):
        list(stream)
    assert stream.count == 49


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "a.mp4"
    {"a named pipe": os.mkfifo, "a device": lambda p: p.symlink_to("/dev/zero"), "a folder": os.mkdir}[kind](path)
    with pytest.raises(DecodeError) as error:
        list(frames(path))
    without = " without numbered images" if kind == "a folder" else ""
    assert error.value.reason.startswith(f"{kind}{without}; expected a regular file")


def test_time_stamps_that_jump_repeat_no_picture_for_long_and_are_told(tmp_path):
    times = [*np.arange(20) / 25, *(4000 + np.arange(20) / 25)]
    path = write_video(tmp_path / "a.mkv", pictures(40), times=times)
    stream, shown = frames(path, fps=5), []
    with pytest.raises(DecodeError) as error:
        shown.extend(stream)
    assert stream.count == len(shown) == 4 + 5 * 10 + 4
    assert error.value.reason == (
        "time stamps jump once, by 3,999 s after frame 20: no picture is repeated for longer than 10 s"
    )
    stream = frames(path)
    with pytest.raises(DecodeError, match="time stamps jump once, by 3,999 s after frame 20$"):
        list(stream)
    assert stream.count == 40  # every frame of the file, as it is


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    size = struct.pack("<HH", 16000, 16000)
    bomb = tmp_path / "bomb.gif"
    bomb.write_bytes(b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0;")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match="have no size, or more than twice --max-pixels 35,389,440"):
        list(frames(bomb, 40, 48))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB; decoded it takes 1 GB
    path = write_video(tmp_path / "a.mp4", pictures(5))
    assert len(list(frames(path, max_pixels=48 * 64))) == 5
    with pytest.raises(DecodeError, match="its pictures are 64 x 48, more than --max-pixels 3,071"):
        list(frames(path, max_pixels=48 * 64 - 1))
