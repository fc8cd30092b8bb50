"""Videos of which parts are lost, that hold more than a film, or whose time stamps are odd: what is told, and of which frame."""

import av
import numpy as np
import pytest

from labelgen.decode import frames
from tests.labelgen import synthetic
from tests.labelgen.test_decode import pictures
from tests.labelgen.test_faults import board, read, remade, spoilt


@pytest.mark.parametrize("bad", [0, 40])
def test_damage_belongs_to_the_frame_of_its_packet_where_none_tells_a_duration(tmp_path, bad):
    whole = synthetic.write_video(tmp_path / "whole.mkv", 60, codec="mjpeg", strict="unofficial")
    path = remade(whole, tmp_path / "a.mkv", lambda number, data: data[: len(data) // 2 if number == bad else None])
    shown, _, damage, reason = read(path)
    assert len(shown) == 60 and np.flatnonzero(damage).tolist() == [bad] and damage[bad] == 1
    assert reason.startswith(f"1 frame damaged, from frame {bad} on")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_packets_that_mpeg_leaves_out_in_silence_are_told(tmp_path, name):
    whole = synthetic.write_video(tmp_path / f"whole-{name}", 60, codec="mpeg2video", g="10", bf="2")
    assert not read(whole)[3]
    for bad in (0, 31, 59):
        shown, _, damage, reason = read(remade(whole, tmp_path / name, spoilt(bad)))
        assert (48 if bad == 0 else 58) <= len(shown) < 60
        assert "lost, from frame" in reason or "ends within frame 59" in reason
        assert bad == 59 or any(damage)


def test_a_frame_out_of_order_begins_no_new_time_line(tmp_path):
    whole = synthetic.write_video(tmp_path / "whole.mkv", 60, codec="mpeg2video", g="10", bf="2")
    odd = 0
    for bad in range(15, 40, 2):
        _, times, _, reason = read(remade(whole, tmp_path / f"{bad}.mkv", spoilt(bad)))
        odd += "step back" in reason
        assert times[-1] == pytest.approx(59 / 25, abs=0.01) and (np.diff(times) >= 0).all()
    assert odd


def test_an_avi_that_repeats_frames_is_whole(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=50)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t, picture in enumerate(pictures(50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(64, 48)
            frame.pts = 2 * t
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    stream = frames(tmp_path / "a.avi")
    times = [stream.time for _ in stream]
    assert np.allclose(np.diff(times), 1 / 25) and stream.count == 50 and stream.fps == 25


def films(path, *sizes, default=None, disposition=None):
    """A file of a stream of 25 frames for each size (height, width), of one frame if the height is negative."""
    with av.open(str(path), "w") as container:
        streams = []
        for number, (height, width) in enumerate(sizes):
            stream = container.add_stream("mjpeg" if height < 0 else "mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = abs(height), width, "yuvj420p" if height < 0 else "yuv420p"
            stream.disposition = (disposition or {}).get(number, 1 if number == default else 0)
            streams.append(stream)
        for t in range(25):
            for stream in streams:
                if t == 0 or stream.codec_context.name == "mpeg4":
                    flat = np.full((stream.height, stream.width, 3), 9 * t, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


def test_the_film_is_taken_and_not_its_cover(tmp_path):
    several = "2 video streams: number 1 of 96 x 64 pixels is taken"
    for name, sizes, default, size, reason in (
        ("a.mkv", [(32, 48), (64, 96)], None, (64, 96), several),
        ("b.mkv", [(320, 480), (64, 96)], 1, (64, 96), several),
        ("c.mp4", [(-400, 480), (64, 96)], 1, (64, 96), ""),
        ("d.mp4", [(-400, 480), (64, 96)], 0, (64, 96), ""),
    ):
        shown, _, _, found = read(films(tmp_path / name, *sizes, default=default))
        assert (len(shown), shown[0].shape[:2], found) == (25, size, reason), name
    attached = films(tmp_path / "e.mp4", (-400, 480), (64, 96), disposition={0: av.stream.Disposition.attached_pic})
    assert len(read(attached)[0]) == 25


def test_a_picture_alone_is_no_video(tmp_path):
    cover = films(tmp_path / "a.mp4", (-40, 48), disposition={0: av.stream.Disposition.attached_pic})
    assert read(cover)[3] == "no video, only a picture"


def test_single_pictures_and_empty_streams_are_no_films(tmp_path):
    film = synthetic.write_video(tmp_path / "film.mkv", 25)
    cover = films(tmp_path / "cover.mkv", (-400, 480))
    for name, number in (("a.mkv", 1), ("b.mkv", 0)):  # of the cover's pictures
        with (
            av.open(str(cover)) as first,
            av.open(str(film)) as second,
            av.open(str(tmp_path / name), "w") as made,
        ):
            sources = [first.streams.video[0], second.streams.video[0]]
            copies = [made.add_stream_from_template(source) for source in sources]
            for source, copy, container in zip(sources, copies, (first, second), strict=True):
                for packet in container.demux(source):
                    if packet.size and (copy is copies[1] or number):
                        packet.stream = copy
                        made.mux(packet)
        shown, _, _, reason = read(tmp_path / name)
        assert (len(shown), reason) == (25, "") and shown[0].shape == read(film)[0][0].shape


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_a_sound_with_a_picture_is_no_video(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as container:
        picture = container.add_stream("mjpeg", rate=25)
        picture.height, picture.width, picture.pix_fmt = 48, 64, "yuvj420p"
        sound = container.add_stream("mp3" if name.endswith("avi") else "aac", rate=48000)
        container.mux(picture.encode(av.VideoFrame.from_ndarray(board(), format="rgb24").reformat(64, 48)))
        for _ in range(20):
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
        container.mux(picture.encode() + sound.encode())
    assert read(tmp_path / name)[3] == "no video, only a picture"


def test_parts_between_samples_of_colour_keep_their_colours_in_place(tmp_path):
    whole = read(synthetic.write_video(tmp_path / "a.mp4", 2))[0]
    height, width = whole[0].shape[:2]
    part = read(tmp_path / "a.mp4", region=(7 / width, 5 / height, 1, (height - 2) / height))[0]
    assert all((one[5:-2, 7:] == other).all() for one, other in zip(whole, part, strict=True))
