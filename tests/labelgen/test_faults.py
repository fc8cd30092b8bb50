"""Videos that are turned, damaged, cut, joined or mislabelled: what is decoded, what is labelled, what is said."""

import struct

import av
import numpy as np
import pytest

from labelgen.config import Config
from labelgen.decode import expected_frames, frame_times, frames
from labelgen.errors import DecodeError, ShardError
from labelgen.labels.order import order_rows
from labelgen.labels.pace import pace_offsets, pace_rows
from labelgen.labels.sampling import clip_starts, generator
from labelgen.manifest import Video, load
from labelgen.run import run
from labelgen.run.video import Clock, label_video
from labelgen.shards import ShardReader
from labelgen.shards.describe import describe
from labelgen.shards.verify import verify
from tests.labelgen import synthetic
from tests.labelgen.test_decode import pictures, write_video
from tests.trainer.synthetic import CONFIG, write_shard

ONE = 1 << 16
STRAIGHT, CROSSED = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)], [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def read(path, **options):
    """All frames, their seconds and damage, and what was wrong in the end."""
    stream, shown, times, damage, reason = frames(path, **options), [], [], [], ""
    try:
        for frame in stream:
            shown.append(frame)
            times.append(stream.time)
            damage.append(stream.damage)
    except DecodeError as error:
        reason = error.reason
    return shown, times, damage, reason


def remade(source, path, change=lambda number, data: data, **muxer):
    """A copy of a file whose packets are what `change` makes of their number and bytes, None leaves one out."""
    with av.open(str(source)) as whole, av.open(str(path), "w", options=muxer) as made:
        stream = whole.streams.video[0]
        copy = made.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in whole.demux(stream) if packet.size):
            data = change(number, bytes(packet))
            if data is not None:
                new = av.Packet(data)
                new.pts, new.dts, new.time_base, new.stream = packet.pts, packet.dts, packet.time_base, copy
                new.is_keyframe = packet.is_keyframe
                made.mux(new)
    return path


def spoilt(*numbers):
    """For `remade`: these packets are of zeros."""
    return lambda number, data: bytes(len(data)) if number in numbers else data


def turned_video(path, matrix, board):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *board.shape[:2], "yuv444p"
        stream.set_display_matrix(matrix)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(board, format="rgb24")))
        container.mux(stream.encode())
    return path


def board():
    """Four flat quarters, and a fifth colour in the corner of the first."""
    out = np.zeros((32, 48, 3), np.uint8)
    out[:16, :24], out[:16, 24:], out[16:, :24], out[16:, 24:] = (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)
    out[:4, :8] = 255
    return out


@pytest.mark.parametrize("matrix", STRAIGHT + CROSSED)
def test_all_eight_orientations_are_applied(tmp_path, matrix):
    a, b, c, d = matrix
    path = turned_video(tmp_path / "a.mp4", [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 7 * ONE, -ONE, 1 << 30], board())
    (stored,), _, _, _ = read(turned_video(tmp_path / "b.mp4", [ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30], board()))
    shown = {(a * x + c * y, b * x + d * y): stored[y, x] for y in range(32) for x in range(48)}
    left, top = min(x for x, _ in shown), min(y for _, y in shown)
    stream = frames(path)
    found = next(stream)
    assert found.shape == ((48, 32, 3) if a == 0 else (32, 48, 3))
    assert (stream.native_height, stream.native_width) == found.shape[:2]
    assert all((found[y - top, x - left] == colour).all() for (x, y), colour in shown.items())
    assert (read(path, region=(0, 0, 1, 1))[0][0] == found).all()
    height, width = found.shape[:2]
    part = read(path, region=(0.25, 0.5, 0.75, 1))[0][0]
    assert (part == found[height // 2 :, width // 4 : 3 * width // 4]).all()
    assert next(frames(path, 20, 30)).shape == (20, 30, 3)


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (1, 0.5, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1)])
def test_a_matrix_that_is_no_orientation_is_told(tmp_path, matrix):
    a, b, c, d = (round(number * ONE) for number in matrix)
    path = turned_video(tmp_path / "a.mp4", [a, b, 0, c, d, 0, 0, 0, 1 << 30], board())
    shown, _, _, reason = read(path)
    assert reason == "its display matrix is none of the eight orientations; frames are left as stored"
    assert shown[0].shape == (32, 48, 3) and shown[0][2, 2].min() > 240


@pytest.mark.parametrize("tag", range(1, 9))
def test_orientations_of_photographs_are_applied(tmp_path, tag):
    import cv2

    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(board()[..., ::-1]))[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, tag, 0, 0)
    (tmp_path / "a.mjpeg").write_bytes(
        (jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]) * 3
    )
    wanted = board().transpose(1, 0, 2) if tag > 4 else board()
    wanted = wanted[:: -1 if tag in (3, 4, 7, 8) else 1, :: -1 if tag in (2, 3, 6, 7) else 1]  # [EXIF 2.3, tag 274]
    found = read(tmp_path / "a.mjpeg")[0]
    assert len(found) == 3 and np.abs(found[0].astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("size", [(128, 171), (45, 37), (None, None)])
def test_a_region_of_all_is_no_region(tmp_path, size):
    path = synthetic.write_video(tmp_path / "a.mp4", 3)
    whole, part = (
        read(path, height=size[0], width=size[1])[0],
        read(path, height=size[0], width=size[1], region=(0, 0, 1, 1))[0],
    )
    assert all((one == other).all() for one, other in zip(whole, part, strict=True))
    half = read(path, region=(0.5, 0.25, 1, 1))[0]
    assert all(
        np.abs(one[24:, 64:].astype(int) - other).mean() < 1 for one, other in zip(read(path)[0], half, strict=True)
    )


def test_time_stamps_that_step_back_begin_a_new_time_line(tmp_path):
    path = write_video(tmp_path / "a.ts", pictures(50))
    path.write_bytes(path.read_bytes() * 3)
    for fps, count in ((None, 150), (12.5, 75)):
        shown, times, _, reason = read(path, fps=fps)
        assert len(shown) == count and "time stamps step back 2 times, the longest by 2 s after frame " in reason
        assert np.allclose(np.diff(times), 1 / (fps or 25), atol=1e-4)
    grey = [int(round(frame[40, 60, 1] / 5)) for frame in shown]
    assert np.abs(np.array(grey) - [*range(0, 50, 2)] * 3).max() <= 1


def test_seconds_are_those_of_the_file(tmp_path):
    times = [*np.arange(10) / 25, *(2 + np.arange(10) / 2)]
    path = write_video(tmp_path / "a.mkv", pictures(20), times=times)
    _, found, damage, reason = read(path)
    assert np.allclose(found, times, atol=0.03) and not any(damage) and not reason
    stream = frames(path, fps=10)
    assert np.allclose([stream.time for _ in stream], np.arange(66) / 10, atol=1e-3)
    jumped = write_video(tmp_path / "b.mkv", pictures(4), times=[0, 1, 101, 102])
    found = read(jumped, fps=1)[1]
    assert np.allclose(found, [*range(6), *range(96, 103)], atol=0.03)  # 10 s for the jump


def test_rates_that_cannot_be_are_told(tmp_path):
    path = synthetic.write_video(tmp_path / "a.mp4", 20, rate=1680)
    stream = frames(path)
    with pytest.raises(DecodeError, match="its header says 1,680 frames per second, its time stamps"):
        list(stream)
    path = write_video(tmp_path / "a.mkv", pictures(20))
    data = path.read_bytes()
    at = data.index(b"\x23\xe3\x83\x84") + 4  # DefaultDuration, nanoseconds
    path.write_bytes(data[:at] + (2_000_000).to_bytes(4, "big") + data[at + 4 :])
    stream = frames(path)
    with pytest.raises(DecodeError, match="its header says 500 frames per second, its time stamps 25$"):
        list(stream)
    assert stream.fps == pytest.approx(25) and stream.count == 20


CODINGS = {
    "a.mp4": "libx264",
    "a.mkv": "libx264",
    "b.mp4": "mpeg4",
    "a.avi": "mjpeg",
    "b.mkv": "mjpeg",
    "a.ts": "mpeg2video",
    "a.mov": "mjpeg",
}


CODED = {"mjpeg": {"strict": "unofficial"}, "libx264": {"g": "10"}, "mpeg4": {"g": "10"}, "mpeg2video": {"g": "10"}}


@pytest.mark.parametrize("name", CODINGS)
def test_a_bad_packet_costs_itself(tmp_path, name):
    whole = synthetic.write_video(tmp_path / f"whole-{name}", 60, codec=CODINGS[name], **CODED[CODINGS[name]])
    for bad in (0, 30, 57):
        shown, _, damage, reason = read(remade(whole, tmp_path / name, spoilt(bad)))
        assert 50 <= len(shown) <= 60  # a key frame takes those with it that refer to it
        assert "damaged" in reason or "lost" in reason or "ends within" in reason
        assert all(t >= bad - 2 for t in np.flatnonzero(damage)) and (bad != 30 or any(damage))


def test_a_file_of_bad_packets_alone_says_why(tmp_path):
    whole = synthetic.write_video(tmp_path / "whole.avi", 20, codec="mjpeg", strict="unofficial")
    reason = read(remade(whole, tmp_path / "a.avi", spoilt(*range(20))))[3]
    assert reason.startswith("no frame in the video stream; 20 frames lost, from frame 0 on")


def test_a_gap_is_a_loss_where_rates_are_fixed_and_else_no_harm(tmp_path):
    whole = synthetic.write_video(tmp_path / "whole.ts", 60, codec="mpeg2video", g="1")
    cut = remade(whole, tmp_path / "a.ts", lambda number, data: None if 20 <= number < 30 else data)
    shown, _, damage, reason = read(cut)
    assert len(shown) == 50 and np.flatnonzero(damage).tolist() == [20] and damage[20] == 2
    assert reason == "10 frames lost, from frame 20 on"
    (tmp_path / "slides").mkdir()
    times = np.cumsum([0.04, 3, 9, 0.52] * 10)
    slides = write_video(tmp_path / "slides" / "a.mkv", pictures(40), codec="ffv1", times=times)
    assert read(slides)[2:] == ([0] * 40, "")
    dataset = load("folder", tmp_path / "slides")
    report = run(dataset, dataset.videos, tmp_path / "out", Config(height=48, width=64, crop=32, flow="dis"))
    assert not report["failures"]
    told = describe([ShardReader(tmp_path / "out" / "slides" / "00000.h5")])
    # of 39 steps 9 are .04, 10 are .52, 10 are 3 and 10 are 9 seconds: the one in the middle is 3
    assert "gaps in their time stamps, which labels cross: 1\n  a.mkv: 10, the longest 9 s\n" in told


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A data set of one video of 200 frames, of which 100 is damaged, and 150 follows a loss."""
    folder = tmp_path_factory.mktemp("damaged")
    whole = synthetic.write_video(folder / "whole.mkv", 201, codec="mjpeg", strict="unofficial")
    (folder / "videos" / "a").mkdir(parents=True)
    cut = {100: lambda data: data[: len(data) // 2], 150: lambda data: bytes(40)}
    path = remade(whole, folder / "videos" / "a" / "1.mkv", lambda number, data: cut.get(number, bytes)(data))
    shown, _, damage, _ = read(path)
    assert len(shown) == 200 and np.flatnonzero(damage).tolist() == [100, 150] and damage[100] == 1 and damage[150] == 2
    (folder / "mine.yaml").write_text("name: mine\nvideos: {levels: [1], extensions: [mkv]}\n")
    return load(str(folder / "mine.yaml"), folder / "videos")


@pytest.mark.parametrize(("clips", "count"), [(None, 6 + 3 + 3), (60, 60)])
def test_no_label_crosses_damage(damaged, tmp_path, clips, count):
    config = Config(height=24, width=32, crop=16, flow="dis", clips=clips)
    report = run(damaged, damaged.videos, tmp_path, config)
    assert [failure["kept"] for failure in report["failures"]] == [True]
    assert "1 frame damaged, from frame 100 on and 1 frame lost, from frame 150 on" in report["failures"][0]["reason"]
    reader = ShardReader(tmp_path / "mine" / "00000.h5")
    arrays = reader.arrays
    assert np.flatnonzero(arrays["frames/damage"]).tolist() == [100, 150]
    assert np.allclose(arrays["frames/time"][:100], np.arange(100) / 25, atol=1e-3)

    def sound(first, last):
        return last < 100 or (first > 100 and (last < 150 or first >= 150))

    starts = arrays["clips/start"].tolist()
    assert all(sound(start, start + 15) for start in starts)
    drawn = clip_starts(200, clips, 16, generator(0, "clips", "a/1.mkv"), arrays["frames/damage"])
    assert starts == drawn.tolist() and len(starts) == count
    for row in range(32):
        paced, orders = reader.pace_frames(0, row), reader.order_frames(0, row)
        assert sound(paced.min(), paced.max()) and sound(orders.min(), orders.max())
    assert verify(tmp_path) == (1, [])


def test_draws_of_sound_videos_do_not_change_and_small_runs_have_none():
    none, rng = np.zeros(90, np.uint8), lambda: np.random.default_rng(5)
    paces = Config().fractions
    for n in (16, 61, 90):
        assert clip_starts(n, None, 16, rng(), none[:n]).tolist() == list(range(0, n - 15, 16))
        drawn = np.sort(rng().choice(n - 15, min(4, n - 15), replace=False))
        assert (
            clip_starts(n, 4, 16, rng(), none[:n]).tolist() == drawn.tolist() == clip_starts(n, 4, 16, rng()).tolist()
        )
    for one, other in zip(
        pace_rows(90, paces, 50, 16, rng()), pace_rows(90, paces, 50, 16, rng(), damage=none), strict=True
    ):
        assert (one == other).all()
    broken = none.copy()
    broken[45] = 1
    assert (
        pace_rows(90, paces, 4, 16, rng(), damage=broken)
        is None
        is pace_rows(90, paces, 4, 16, rng(), True, damage=broken)
    )
    start, label, _ = pace_rows(90, paces[:2], 400, 16, rng(), damage=broken)
    spans = np.array([pace_offsets(pace, 16)[-1] for pace in paces[:2]])[label]
    assert ((start + spans < 45) | (start > 45)).all() and start.max() > 46 and start.min() == 0
    assert (
        order_rows(90, 2, 4, 16, rng(), broken)[0][:, 0].max() <= 50 and order_rows(90, 3, 4, 16, rng(), broken) is None
    )


@pytest.mark.parametrize(
    ("name", "at", "value", "fault"),
    [
        ("frames/damage", 5, b"\1", "clips/start"),
        ("frames/damage", 5, b"\2", "clips/start"),
        ("frames/damage", 5, b"\4", "frames/damage"),
        ("frames/damage", 19, b"\1", "pace/start"),
        ("frames/time", 5 * 8, struct.pack("<d", -1), "frames/time"),
        ("frames/time", 5 * 8, struct.pack("<d", np.inf), "frames/time"),
        ("frames/time", 5 * 8, struct.pack("<d", np.nan), "frames/time"),
    ],
)
def test_shards_whose_labels_cross_damage_or_whose_time_steps_back_are_refused(tmp_path, name, at, value, fault):
    path = tmp_path / "00000.h5"
    write_shard(path, [20, 20], config=CONFIG | {"paces": ["1", "5/4"], "rows": 60})
    with open(path, "r+b") as file:
        file.seek(ShardReader(path).header.stored[name].offset + at)
        file.write(value)
    with pytest.raises(ShardError, match=f"{fault} is out of range"):
        ShardReader(path)


def test_cropping_of_matroska_is_applied(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        stream.color_range = stream.color_primaries = stream.color_trc = stream.colorspace = 1
        container.mux(stream.encode(av.VideoFrame.from_ndarray(board(), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"\x55\xb0\x90")  # Colour, of 16 bytes, has the room

    def cropped(left, right, top, bottom):
        crop = b"".join(
            bytes([0x54, kind, 0x81, n]) for kind, n in ((0xCC, left), (0xDD, right), (0xBB, top), (0xAA, bottom))
        )
        path.write_bytes(data[:at] + crop + b"\xec\x81\0" + data[at + 19 :])
        return read(path)[0][0]

    whole = cropped(0, 0, 0, 0)
    assert whole.shape == (32, 48, 3) and (cropped(6, 1, 5, 2) == whole[5:-2, 6:-1]).all()
    stream = frames(path, 20, 30)
    small = next(stream)
    assert (stream.native_height, stream.native_width) == (25, 41) and small.shape == (20, 30, 3)
    assert (read(path, height=20, width=30, region=(0, 0, 1, 1))[0][0] == small).all()
    assert (read(path, region=(0.5, 0, 1, 1))[0][0] == whole[5:-2, 6 + 20 : -1]).all()


def test_the_reason_is_that_of_ffmpeg(tmp_path):
    path = synthetic.write_video(tmp_path / "a.mp4", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # its index is at the end
    assert read(path)[3] == "cannot be decoded at opening: moov atom not found"


@pytest.mark.parametrize(
    "name", ["list.mp4", "list.txt", "list.ffconcat", "list.m3u8", "list.mpd", "list.sdp", "part%03d.png"]
)
def test_a_list_of_files_opens_none(tmp_path, name):
    secret = synthetic.write_video(tmp_path / "secret.ts", 20, codec="mpeg2video")
    (tmp_path / "part001.png").write_bytes(secret.read_bytes())
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "list.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"><Period>'
        '<AdaptationSet mimeType="video/mp2t"><Representation id="1" bandwidth="1"><BaseURL>secret.ts</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    }
    (tmp_path / name).write_text(lists.get(name, f"ffconcat version 1.0\nfile {secret.name}\n"))
    shown, _, _, reason = read(tmp_path / name)
    assert not shown and reason, reason


def test_clips_are_drawn_without_decoding_twice(tmp_path, monkeypatch):
    from labelgen import decode

    path = synthetic.write_video(tmp_path / "a.mp4", 60, codec="libx264")
    assert [expected_frames(frame_times(path), fps) for fps in (None, 12.5)] == [60, 30]
    assert expected_frames(frame_times(tmp_path / "none"), None) == 0
    made, calls, original = [], [], decode.FrameStream
    monkeypatch.setattr(decode, "FrameStream", lambda *options: made.append(1) or original(*options))
    config = Config(height=48, width=64, crop=32, flow="dis", clips=2)
    record = label_video(Video("a", path, "", "", ()), config, len, Clock(), lambda: calls.append(1))
    assert len(made) == 1 and len(calls) >= 120 and len(record.start) == 2
    assert record.start == clip_starts(60, 2, 16, generator(0, "clips", "a")).tolist()
