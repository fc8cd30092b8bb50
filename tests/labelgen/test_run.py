"""The label generator as a whole: interrupted, broken, hanging and killed; always the same shards."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from numba.core import caching

from labelgen import compiled, decode, run
from labelgen.config import Config
from labelgen.errors import ShardError, VsslError
from labelgen.flow import flow
from labelgen.labels.patterns import crop_grid
from labelgen.manifest import load
from labelgen.run.video import Clock, label_video
from labelgen.shards import ShardReader, open_shards
from tests.command import ENVIRONMENT, ROOT
from tests.labelgen.sabotage import HANG, SEGFAULT, sabotaged
from tests.labelgen.synthetic import write_video

SMALL = Config(height=48, width=64, crop=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos, of 70, 40, 12 and 90 frames, and one that is none."""
    root = tmp_path_factory.mktemp("data") / "videos"  # the name of the data set
    for index, n_frames in enumerate((70, 40, 12, 90)):
        write_video(root / "right" / f"{index}.mp4", n_frames, index)
    (root / "right" / "9.mp4").write_text("no video")
    return root


def label(root, out, workers=1, config=SMALL, **options):
    data = load("folder", root)
    return run.run(data, data.videos, out, config, workers, options.pop("videos_per_shard", 2), **options)


def content(out):
    return {path.name: path.read_bytes() for path in sorted((out / "videos").glob("*.h5"))}


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return out, label(folder, out)


def test_report_counts_everything(folder, unbroken):
    out, report = unbroken
    assert report["videos"] == {
        "asked": 5, "labelled": 4, "cut_short": 0, "failed": 1, "listed_but_missing": 0, "in_no_official_list": 0,
    }  # fmt: skip
    assert report["frames"] == 212 and report["clips"] == 4 + 2 + 0 + 5 and report["shards"] == 3
    assert (report["without_clip"], report["too_short_for_pace"], report["too_short_for_order"]) == (1, 2, 2)
    assert report["failures"][0]["id"] == "right/9.mp4" and report["failures"][0]["stage"] == "decode"
    assert report["this_run"]["flow pairs"] == 11 * 15
    assert json.loads((out / "videos" / "report.json").read_text()) == report
    assert {p.name for p in (out / "videos").iterdir()} == {
        "00000.h5",
        "00001.h5",
        "00002.h5",
        "report.json",
        "shards.jsonl",
        ".lock",
    }


def test_shards_hold_the_videos(folder, unbroken):
    readers = open_shards(unbroken[0])
    ids = [name for reader in readers for name in reader.arrays["videos/id"]]
    assert ids == ["right/0.mp4", "right/1.mp4", "right/2.mp4", "right/3.mp4"]
    reader = readers[1]
    assert reader.arrays["videos/label"] == ("right", "right") and reader.arrays["videos/path"][1] == "right/3.mp4"
    assert reader.arrays["videos/n_frames"].tolist() == [12, 90] and reader.arrays["videos/width"].tolist() == [128] * 2
    assert reader.arrays["pace/start"][0].tolist() == [-1] * 32 and reader.arrays["pace/start"][1].min() >= 0
    original = np.stack(list(decode.frames(folder / "right" / "3.mp4", 48, 64)))
    stored = reader.frames(np.arange(12, 102))
    distance = np.abs(original[:40, None].astype(int) - stored[None, :40]).mean((2, 3, 4))
    assert (distance.argmin(0) == np.arange(40)).all()  # every stored frame is most like its own original
    assert reader.clip_frames(4).tolist() == list(range(12 + 64, 12 + 80))


def test_flow_of_the_moving_picture_is_to_the_right(folder):
    first, second = list(decode.frames(folder / "right" / "0.mp4", 96, 128))[:2]
    u, v = np.moveaxis(flow(*(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (first, second))), -1, 0)
    assert np.median(u) == pytest.approx(2, abs=0.1) and np.median(v) == pytest.approx(0, abs=0.1)


def test_a_clip_never_sees_the_frame_after_its_last(folder):
    data = load("folder", folder)
    clock = Clock()
    record = label_video(data.videos[0], SMALL, lambda encoded: None, clock)
    assert record.start == [0, 16, 32, 48] and clock.counts["flow pairs"] == 4 * 15
    assert record.labels["statistics/motion"][0].shape == (len(crop_grid(48, 64, 32)), 2, 14)


def test_random_clips_that_overlap_get_the_labels_they_would_get_alone(folder):
    data = load("folder", folder)
    some = label_video(data.videos[3], Config(height=48, width=64, crop=32, clips=6), lambda encoded: None, Clock())
    assert len(some.start) == 6 and min(np.diff(some.start)) < 16
    every = label_video(data.videos[3], Config(height=48, width=64, crop=32, clips=75), lambda encoded: None, Clock())
    assert every.start == list(range(75))
    for name in ("statistics/motion", "statistics/appearance"):
        for start, labels in zip(some.start, some.labels[name], strict=True):
            assert (labels == every.labels[name][start]).all()


def test_two_workers_write_the_same_bytes(folder, unbroken, tmp_path):
    label(folder, tmp_path, workers=2)
    assert content(tmp_path) == content(unbroken[0])


def test_the_shards_of_the_largest_files_are_made_first(folder, unbroken, tmp_path, monkeypatch):
    """Of 2, 2 and 1 videos: 70 + 40, 12 + 90 frames, and one that is none."""
    begun = []

    def each(function, tasks):
        for task in tasks:
            begun.append(int(task.path.stem))
            yield function(task)

    monkeypatch.setattr(run, "pool", lambda *_: contextlib.nullcontext((each, 1)))
    label(folder, tmp_path)
    data = load("folder", folder)
    sizes = [sum(video.path.stat().st_size for video in data.videos[at : at + 2]) for at in (0, 2, 4)]
    assert [sizes[index] for index in begun] == sorted(sizes, reverse=True) and sizes[0] != sizes[1]
    assert content(tmp_path) == content(unbroken[0])


def test_a_finished_folder_is_not_read_again(folder, unbroken, tmp_path, monkeypatch):
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)  # with the times of the files
    notes = tmp_path / "videos" / "shards.jsonl"
    opened = []

    def reader(path):
        opened.append(path.name)
        return ShardReader(path)

    monkeypatch.setattr("labelgen.shards.ShardReader", reader)
    same = {key: unbroken[1][key] for key in unbroken[1] if key != "this_run"}

    def again():
        opened.clear()
        report = label(folder, tmp_path)
        assert {key: report[key] for key in same} == same
        return opened

    assert again() == []
    os.utime(tmp_path / "videos" / "00001.h5")
    assert again() == ["00001.h5"]
    notes.write_bytes(notes.read_bytes()[:-9])  # a line that was cut off
    assert again() == ["00001.h5"] and again() == []
    notes.write_text('["00001.h5", 0]\nnonsense\n\n["00002.h5", 1, 2, {}]\n')
    assert again() == ["00000.h5", "00001.h5", "00002.h5"] and again() == []


def test_a_finished_folder_is_left_alone(folder, unbroken):
    before = {p: p.stat().st_mtime_ns for p in (unbroken[0] / "videos").glob("*.h5")}
    report = label(folder, unbroken[0])
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert report["this_run"]["frames"] == 0 and report["videos"] == unbroken[1]["videos"]


def command(root, out, *options):
    """`vssl labelgen` as SMALL has it, in a process of its own."""
    size = ("--height", "48", "--width", "64", "--crop", "32", "--videos-per-shard", "2")
    own = ("--dataset", "folder", "--root", str(root), "--out", str(out), *size, *options)
    return [sys.executable, "-c", "from cli.main import main; main()", "labelgen", *own]


def test_killed_and_run_again(folder, unbroken, tmp_path):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    line = command(folder, tmp_path, "--workers", "2")
    process = subprocess.Popen(line, env=ENVIRONMENT, start_new_session=True, **quiet)
    while process.poll() is None and not list(tmp_path.glob("videos/.*.tmp")):
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for name, data in content(tmp_path).items():
        assert data == content(unbroken[0])[name]  # whatever carries the final name is whole
    label(folder, tmp_path)
    assert content(tmp_path) == content(unbroken[0])
    assert not list(tmp_path.glob("videos/.*.tmp"))


def test_videos_that_kill_or_hang_their_worker_are_the_only_ones_lost(folder, unbroken, tmp_path):
    site = sabotaged(tmp_path, 20, {"1.mp4": SEGFAULT, "3.mp4": HANG})
    line = command(folder, tmp_path, "--stall", "2")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{site}:{ROOT}"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    report = json.loads((tmp_path / "videos" / "report.json").read_text())
    assert {f["id"]: f["reason"] for f in report["failures"] if f["stage"] == "process"} == {
        "right/1.mp4": "killed its process (signal 11)",
        "right/3.mp4": "no frame for 2 s",
    }
    assert report["videos"]["labelled"] == 2 and content(tmp_path)["00002.h5"] == content(unbroken[0])["00002.h5"]
    for kept, whole in zip(open_shards(tmp_path)[:2], open_shards(unbroken[0]), strict=False):
        assert kept.arrays["videos/id"] == whole.arrays["videos/id"][:1]
        last = int(kept.arrays["videos/n_frames"][0]) - 1
        assert (kept.jpeg(last) == whole.jpeg(last)).all()


def test_a_changed_list_of_videos_is_refused(folder, unbroken, tmp_path):
    (tmp_path / "v").mkdir()
    for path in (folder / "right").iterdir():
        (tmp_path / "v" / path.name).symlink_to(path)
    label(tmp_path / "v", tmp_path)
    words = "with other paths, sizes or labels"
    (tmp_path / "v" / "1.mp4").rename(tmp_path / "v" / "a.mp4")
    with pytest.raises(ShardError, match=rf"\(videos: 5 there, 5 now, {words}; gone is 1.mp4; new is a.mp4\)"):
        label(tmp_path / "v", tmp_path)
    (tmp_path / "v" / "a.mp4").unlink()
    with pytest.raises(ShardError, match=rf"\(videos: 5 there, 4 now, {words}; gone is 1.mp4\)"):
        label(tmp_path / "v", tmp_path)
    (tmp_path / "v" / "1.mp4").write_text("of another size")
    with pytest.raises(ShardError, match=rf"\(videos: 5 there, 5 now, {words}\)"):
        label(tmp_path / "v", tmp_path)


def test_two_folders_of_one_name_are_not_mixed(folder, tmp_path):
    write_video(tmp_path / "other" / "videos" / "x.mp4", 20)
    write_video(tmp_path / "ucf101" / "x.mp4", 20)
    label(folder, tmp_path)
    with pytest.raises(ShardError, match="videos: 5 there, 1 now"):
        label(tmp_path / "other" / "videos", tmp_path)
    assert label(tmp_path / "ucf101", tmp_path)["dataset"] == "ucf101"
    assert len(list((tmp_path / "ucf101").glob("*.h5"))) == 1


def test_a_file_that_breaks_off_is_kept_and_listed(tmp_path):
    path = write_video(tmp_path / "v" / "0.avi", 80)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for options in ({}, {"fps": 12.5}, {"clips": 1}):
        out = tmp_path / f"out{len(options)}{list(options)}"
        report = label(tmp_path / "v", out, config=Config(height=48, width=64, crop=32, **options))
        (failure,) = report["failures"]
        assert (failure["stage"], failure["kept"], failure["shard"]) == ("decode", True, "00000.h5")
        assert failure["reason"].startswith(f"kept {report['frames']} frames: the file ends after ")
        assert failure["reason"].endswith(" of 80 frames") and report["videos"]["cut_short"] == 1


def test_links_to_nowhere_are_listed_as_failed(tmp_path):
    write_video(tmp_path / "v" / "0.mp4", 20)
    (tmp_path / "v" / "1.mp4").symlink_to(tmp_path / "gone.mp4")
    report = label(tmp_path / "v", tmp_path)
    assert report["videos"]["asked"] == 2 and report["videos"]["failed"] == 1
    (failure,) = report["failures"]
    assert (failure["id"], failure["stage"]) == ("1.mp4", "decode")
    assert failure["reason"].endswith(f"a link to {tmp_path / 'gone.mp4'}, which does not exist")


def test_a_folder_with_missing_shards_is_not_read(folder, tmp_path):
    label(folder, tmp_path)
    (tmp_path / "videos" / "00001.h5").unlink()
    with pytest.raises(ShardError, match="2 of 3 shards are done"):
        open_shards(tmp_path)


def test_two_runs_do_not_share_a_folder(folder, unbroken):
    path = str(unbroken[0] / "videos" / ".lock")
    code = f"import fcntl; file = open({path!r}, 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ShardError, match="another labelgen is writing"):
            label(folder, unbroken[0])
        other.communicate(b"\n")


def test_a_full_disk_stops_the_run_and_leaves_whole_shards_only(folder, unbroken, tmp_path):
    limit = 200_000  # bytes a file may have: enough for the smaller shards, not for all
    sizes = {name: len(data) for name, data in content(unbroken[0]).items()}
    assert min(sizes.values()) < limit < max(sizes.values()), sizes
    line = command(folder, tmp_path)
    line[2] = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {line[2]}"
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and "cannot be written (File too large)" in done.stderr, done.stderr
    assert all(data == content(unbroken[0])[name] for name, data in content(tmp_path).items())
    assert not list(tmp_path.glob("videos/.*.tmp"))
    label(folder, tmp_path)
    assert content(tmp_path) == content(unbroken[0])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("labelgen.run.video", {"torch", "trainer"}),
        ("labelgen.shards", {"torch", "trainer", "numba", "av", "cv2", "h5py"}),
        ("cli.main", {"torch", "numba", "numpy", "h5py"}),
        ("trainer.training, trainer.evaluate.protocols.retrieval", {"av", "h5py", "numba", "sklearn"}),
    ],
)
def test_what_is_not_needed_is_not_imported(module, absent):
    code = f"import {module}, sys; assert not {absent} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def test_notes_of_shards_that_are_not_what_was_written_are_not_believed(folder, unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    notes = tmp_path / "videos" / "shards.jsonl"
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    for at, change in (
        (0, lambda summary: summary.pop("totals")),
        (0, lambda summary: summary["totals"].update(frames="many")),
        (0, lambda summary: summary["totals"].update(frames=float("nan"))),
        (1, lambda summary: summary.update(failures=[{}])),
        (1, lambda summary: summary.update(failures={"a": 1})),
        (2, lambda summary: summary["failures"][0].update(reason="\x1b[2J")),
        (2, lambda summary: summary["failures"][0].update(kept=None)),
    ):
        changed = json.loads(json.dumps(lines))
        change(next(line for line in changed if line[0] == f"0000{at}.h5")[3])
        notes.write_text("".join(json.dumps(line) + "\n" for line in changed))
        report = label(folder, tmp_path)
        assert {key: report[key] for key in report if key != "this_run"} == {
            key: unbroken[1][key] for key in report if key != "this_run"
        }
    notes.write_text('["00000.h5", 1, 1, ' + "[" * 100_000 + '\n["00001.h5"]\n["00002.h5", 1, 1, 7]\n\xff\n')
    assert label(folder, tmp_path)["videos"] == unbroken[1]["videos"]
    notes.unlink()
    os.mkfifo(notes)
    with pytest.raises(VsslError, match="shards.jsonl: a named pipe; expected a regular file"):
        label(folder, tmp_path)


def test_kernels_that_cannot_be_kept_are_compiled_and_that_is_said_once(folder, unbroken, tmp_path, monkeypatch):
    """As of a read-only installation without a home: Numba finds no folder."""
    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    monkeypatch.setattr(compiled, "uncached", "")
    added = [compiled.njit(nogil=True)(function) for function in (lambda x: x + 1, lambda x: x + 2)]
    assert [kernel(1) for kernel in added] == [2, 3]
    said = []
    label(folder, tmp_path, say=said.append)
    assert len(said) == 1 and "each process compiles the kernels again" in said[0] and "NUMBA_CACHE_DIR" in said[0]
    assert content(tmp_path) == content(unbroken[0])
