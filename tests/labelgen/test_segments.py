"""Parts of files as videos: what a list says, which frames they have, and when."""

import math
import subprocess

import numpy as np
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.decode import frames
from labelgen.errors import DecodeError, ManifestError
from labelgen.manifest import load
from labelgen.manifest.segments import Part, part_name, read_part
from labelgen.shards import open_shards
from labelgen.span import Span
from tests.labelgen.synthetic import write_images, write_video

SMALL = Config(height=48, width=64, crop=32)
MANIFEST = """
name: cut
csv: {files: [cut.csv], video: "{video}"}
segments: {start: start, end: end%s}
label: {column: label}
group: {column: who}
splits: {column: part}
"""
HEADER = "video,start,end,label,who,part"


def place(folder, *rows, options="", header=HEADER):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cut.csv").write_text("\n".join((header, *rows)) + "\n")
    (folder / "cut.yaml").write_text(MANIFEST % options)
    return load(str(folder / "cut.yaml"), folder)


@pytest.fixture
def folder(tmp_path):
    """Films of 100 and 60 frames, 25 a second."""
    write_video(tmp_path / "videos" / "a.mp4", 100)
    write_video(tmp_path / "videos" / "b.mkv", 60, 1)
    return tmp_path / "videos"


def test_each_row_is_a_video_with_its_times(folder):
    write_video(folder / "none.mp4", 20)
    rows = [
        "a.mp4,2,4,run,ann,train",
        "a.mp4,0.4,1.6,jump,ann,train",
        "b,00:00:00.4,,run,bob,test",
        "c,0,1,run,bob,test",
    ]
    data = place(folder, *rows)
    assert [(v.id, v.label, v.group, v.split, v.part) for v in data.videos] == [
        ("a.mp4@0.4-1.6", "jump", "ann", (1,), Part(0.4, 1.6)),
        ("a.mp4@2-4", "run", "ann", (1,), Part(2, 4)),
        ("b.mkv@0.4-", "run", "bob", (3,), Part(0.4, None)),
    ]
    assert (data.missing, data.without, data.unlisted) == (("c",), ("none.mp4",), ())
    assert "3 parts of 2 of 4 videos" not in data.summary() and "cut: 3 parts of 2" in data.summary()
    assert "left out because no list has a part of them: 1 (none.mp4)" in data.summary()
    assert [video.path for video in data.videos] == [folder / "a.mp4", folder / "a.mp4", folder / "b.mkv"]
    assert [video.id for video in data.videos.take([2])] == ["b.mkv@0.4-"] and data.videos[1:][0].part == Part(2, 4)
    # other rows change no name
    assert [video.id for video in place(folder, *reversed(rows[:2])).videos] == ["a.mp4@0.4-1.6", "a.mp4@2-4"]


def test_frames_and_times_are_those_of_the_file(folder, tmp_path):
    data = place(folder, "a,0.4,1.6,x,g,train", "a,1.2,3,x,g,train", "b,1.2,,y,g,test")
    report = run.run(data, data.videos, tmp_path / "out", SMALL, videos_per_shard=2)
    assert not report["failures"] and report["config"]["segments"] == "seconds"
    whole = {name: list(frames(folder / name, 48, 64)) for name in ("a.mp4", "b.mkv")}
    for shard in open_shards(tmp_path / "out"):
        arrays = shard.arrays
        for video, id in enumerate(arrays["videos/id"]):
            name, _, times = id.partition("@")
            begin, end = (float(text or "2.4") for text in times.split("-"))
            first, count = arrays["videos/first_frame"][video], arrays["videos/n_frames"][video]
            assert arrays["videos/path"][video] == name and count == round(25 * (end - begin))
            own = arrays["frames/time"][first : first + count]
            np.testing.assert_allclose(own, begin + np.arange(count) / 25, atol=1e-3)
            expected = whole[name][round(25 * begin) :][:count]
            difference = np.abs(shard.frames(range(first, first + count)).astype(int) - expected)
            assert difference.mean() < 14  # JPEG; of the next frame 60


@pytest.mark.parametrize("clips", [None, 2])
def test_parts_are_labelled_as_films_of_their_own(folder, tmp_path, clips):
    """The labels of a part are those of the same frames as a folder of images, drawn clips included."""
    config = Config(height=48, width=64, crop=32, clips=clips)
    data = place(folder, "a,1,3,x,g,")
    run.run(data, data.videos, tmp_path / "out", config)
    (shard,) = open_shards(tmp_path / "out")
    again = place(folder, "a,1,3,x,g,", "b,0,1,x,g,")
    run.run(again, again.videos, tmp_path / "more", config, videos_per_shard=1)
    other = open_shards(tmp_path / "more")[0]
    for name, values in shard.arrays.items():
        assert np.array_equal(np.asarray(values), np.asarray(other.arrays[name])), name
    assert len(shard.arrays["clips/start"]) == (3 if clips is None else 2)


def test_numbers_of_frames(folder, tmp_path):
    for first in (0, 1):
        data = place(folder, "a,10,29,x,g,", "b,40,,x,g,", options=f", unit: frames, first: {first}")
        assert [video.id for video in data.videos] == ["a.mp4@10-29", "b.mkv@40-"]
        report = run.run(data, data.videos, tmp_path / f"out{first}", SMALL, videos_per_shard=2)
        assert not report["failures"] and report["config"]["segments"] == "frames"
        (shard,) = open_shards(tmp_path / f"out{first}")
        assert shard.arrays["videos/n_frames"].tolist() == [20, 20 + first]
        times = shard.arrays["frames/time"]
        np.testing.assert_allclose(times[[0, 19, 20]], np.array([10, 29, 40]) / 25 - first / 25, atol=1e-3)
    data = place(folder, "a,500,600,x,g,", options=", unit: frames")
    (failure,) = run.run(data, data.videos, tmp_path / "none", SMALL)["failures"]
    assert failure["reason"] == "no frame 500, the video has 100"


def test_parts_of_folders_of_images(tmp_path):
    write_images(tmp_path / "videos" / "a", 60)
    data = place(tmp_path / "videos", "a,10,29,x,g,", options=", unit: frames, first: 1")
    config = Config(height=48, width=64, crop=32, fps=10)
    report = run.run(data, data.videos, tmp_path / "out", config)
    assert not report["failures"]
    (shard,) = open_shards(tmp_path / "out")
    np.testing.assert_allclose(shard.arrays["frames/time"], np.arange(9, 29) / 10)
    expected = list(frames(tmp_path / "videos" / "a", 48, 64, 10))[9:29]
    assert np.abs(shard.frames(range(20)).astype(int) - expected).mean() < 14


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("a,5,2,x,g,", "line 2: 'from 5 to 2'; expected an end after the start"),
        ("a,2,2,x,g,", "expected an end after the start"),
        ("a,-1,2,x,g,", "line 2: \"'-1'\"; expected seconds, such as 72.5 or 00:01:12.5"),
        ("a,nan,2,x,g,", "expected seconds"),
        ("a,1e999,2,x,g,", "expected seconds"),
        ("a,1:2:3:4,9,x,g,", "expected seconds"),
    ],
)
def test_times_that_cannot_be(folder, row, told):
    with pytest.raises(ManifestError) as error:
        place(folder, row)
    assert told in str(error.value)


def test_lists_that_cannot_be(folder):
    with pytest.raises(ManifestError, match="expected the number of a frame"):
        place(folder, "a,1.5,2,x,g,", options=", unit: frames")
    with pytest.raises(ManifestError, match="frame 0.*expected at least 1"):
        place(folder, "a,0,2,x,g,", options=", unit: frames, first: 1")
    with pytest.raises(ManifestError, match="two different rows for one part of a video in .*a@1-2"):
        place(folder, "a,1,2,x,g,", "a,1.0,2,y,g,")
    assert len(place(folder, "a,1,2,x,g,", "a,1.0,2,x,g,").videos) == 1
    with pytest.raises(ManifestError, match="column not found in .*: 'end'; .*Correct segments"):
        place(folder, "a,1,x,g,", header="video,start,label,who,part")
    with pytest.raises(ManifestError, match="no part of a video of"):
        place(folder, "z,1,2,x,g,")
    for options, told in (
        (", unit: hours", "seconds or frames"),
        (", first: 1", "0 or 1"),
        (", unit: frames, first: 7", "0 or 1"),
    ):
        with pytest.raises(ManifestError, match=told):
            place(folder, "a,1,2,x,g,", options=options)
    (folder / "no.yaml").write_text("name: other\nsegments: {start: a, end: b}\n")
    with pytest.raises(ManifestError, match="a csv section that has this column"):
        load(str(folder / "no.yaml"), folder)


def test_a_part_behind_the_end_is_listed_and_damage_outside_of_it_is_not(folder, tmp_path):
    content = (folder / "b.mkv").read_bytes()
    (folder / "b.mkv").write_bytes(content[: len(content) * 2 // 3])
    data = place(folder, "b,0,0.8,x,g,", "b,1,9,x,g,", "b,30,40,x,g,")
    report = run.run(data, data.videos, tmp_path / "out", SMALL)
    told = {failure["id"]: (failure["kept"], failure["reason"]) for failure in report["failures"]}
    assert set(told) == {"b.mkv@1-9", "b.mkv@30-40"}
    assert told["b.mkv@1-9"][0] and "the file ends" in told["b.mkv@1-9"][1]
    assert not told["b.mkv@30-40"][0] and "no frame from second 30 on" in told["b.mkv@30-40"][1]


def test_damage_within_a_part_is_told(tmp_path):
    folder = write_images(tmp_path / "a", 60, name="{}.jpg")
    path = folder / "30.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    assert len(list(Span(frames(folder, 48, 64, 10), 0, 2.9))) == 29
    assert len(list(Span(frames(folder, 48, 64, 10), 3, 4))) == 10
    with pytest.raises(
        DecodeError, match="1 frame of the part is damaged or preceded by lost ones, the first at 2.90 s"
    ):
        list(Span(frames(folder, 48, 64, 10), 2.5, 3.5))


@pytest.mark.parametrize(
    "codec", ["libx264 -bf 2 -g 50", "libx264 -x264opts open-gop=1:bframes=3:keyint=40", "mpeg4 -g 30"]
)
@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_frames_behind_a_key_frame_are_those_of_the_whole_file(tmp_path, codec, kind):
    path = tmp_path / f"a.{kind}"
    source = ["-f", "lavfi", "-i", "testsrc2=duration=16:size=64x48:rate=25"]
    done = subprocess.run(["ffmpeg", "-loglevel", "error", *source, "-c:v", *codec.split(), path], check=False)
    if done.returncode:
        pytest.skip("no ffmpeg program, or it lacks this codec")
    for fps in (None, 7):
        whole, part = frames(path, fps=fps), Span(frames(path, fps=fps, since=13), 13, math.inf)
        expected = [(frame, whole.time - whole.origin) for frame in whole]
        expected = [(frame, time) for frame, time in expected if time >= 13 - 1e-6]
        found = [(frame, part.time) for frame in part]
        if fps and len(found) > len(expected):  # the picture that is seen at that second
            del found[0]
        assert len(found) == len(expected) > 15
        assert all(
            (one == other).all() and time == pytest.approx(its)
            for (one, time), (other, its) in zip(found, expected, strict=True)
        )
        if kind != "avi":
            assert part._stream.count < whole.count / 2  # the rest was skipped


def test_names():
    spec = {"start": "s", "end": "e", "unit": "frames", "first": 1}
    assert part_name(spec, "a/b.mp4", read_part(spec, "1", "20")) == "a/b.mp4@1-20"
    assert read_part(spec, "1", "20") == Part(0, 19, True)
    assert read_part({}, "1:02:03,25", "") == Part(3723.25, None) and read_part({}, "", "62:03") == Part(0, 3723)
