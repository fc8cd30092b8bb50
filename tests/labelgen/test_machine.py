"""Whose fault it is: what the machine does wrong is not written down as a video's, and the same command tries again."""

import contextlib
import errno
import json
import os
import resource
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.errors import DecodeError, MachineError, ShardError
from labelgen.manifest import load
from labelgen.run import faults, guard, plan
from labelgen.run import video as of_video
from labelgen.run.plan import ShardTask
from labelgen.run.process import ProcessLost, in_new_process
from labelgen.run.shard import label_shard, label_shard_on_cluster
from labelgen.shards import ShardReader
from tests.labelgen.sabotage import SEGFAULT, sabotaged
from tests.labelgen.synthetic import write_video

SMALL = Config(height=48, width=64, crop=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of four videos, two a shard, of which one is cut short, and of their shards."""
    root = tmp_path_factory.mktemp("made") / "videos"
    for index in range(3):
        write_video(root / f"{index}.mp4", 20, index)
    path = write_video(root / "3.avi", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    label(root, root.parent / "out")
    return root.parent


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the videos."""
    return shutil.copytree(made / "videos", tmp_path / "videos")


def label(root, out, **options):
    data = load("folder", root)
    return run.run(data, data.videos, out, SMALL, 1, 2, **options)


def shards(out):
    return {path.name: path.read_bytes() for path in sorted((out / "videos").glob("*.h5"))}


def task(root, path, videos=slice(None), **options):
    data = load("folder", root)
    identity = plan.configuration(data, data.videos, plan.file_sizes(data.videos), "all", SMALL, 2)
    return ShardTask(path, data.videos[videos], data.root, data.splits, SMALL, identity, stall=300, **options)


def test_a_shard_with_a_crash_and_a_video_that_is_cut_short_keeps_all_others(folder, tmp_path, monkeypatch):
    """In the process that a Dask worker starts for it, which starts one for each video."""
    monkeypatch.syspath_prepend(sabotaged(tmp_path, 10, {"1.mp4": SEGFAULT}))  # of the processes to be started
    (tmp_path / ".lock").touch()
    path = tmp_path / "00000.h5"
    videos = load("folder", folder).videos
    order = [videos.ids.index(name) for name in ("3.avi", "1.mp4", "0.mp4")]  # cut short, crash, sound
    made = label_shard_on_cluster(replace(task(folder, path, isolated=True), videos=videos.take(order)))
    assert made.path == str(path) and not made.fault
    shard = ShardReader(path)
    assert shard.arrays["videos/id"] == ("3.avi", "0.mp4") and shard.arrays["failures/id"] == ("3.avi", "1.mp4")
    assert shard.arrays["failures/stage"] == ("decode", "process")
    count = shard.arrays["videos/n_frames"][0]
    assert shard.arrays["failures/reason"][0].startswith(f"kept {count} frames: ")
    assert shard.frames(range(count + 20)).shape == (count + 20, 48, 64, 3)


ERRORS = [
    *(
        OSError(number, os.strerror(number))
        for number in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM)
    ),
    OSError(errno.ETIMEDOUT, "timed out"),
    MemoryError(),
    RuntimeError("can't start new thread"),
]


@pytest.mark.parametrize(
    "error, wrapped", [*((error, False) for error in ERRORS), (ERRORS[2], True), (MemoryError(), True)], ids=repr
)
def test_an_error_of_the_machine_is_not_written_down(made, folder, tmp_path, in_process, monkeypatch, error, wrapped):
    """Raised as it is, or as the cause of what the decoder raises; the shard of the video is not there, the others are."""
    original = of_video.label_video

    def failing(video, *arguments):
        if video.id == "0.mp4":
            if not wrapped:
                raise error
            raise DecodeError(str(video.path), "cannot be decoded") from error
        return original(video, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(of_video, "label_video", failing)
        with pytest.raises(
            MachineError,
            match=r"1 of 2 shards failed because of the machine.*\(00000.h5: 0.mp4: .*the same command continues",
        ):
            label(folder, tmp_path / "out")
    assert list(shards(tmp_path / "out")) == ["00001.h5"] and not list(tmp_path.glob("out/videos/.*.tmp"))
    report = label(folder, tmp_path / "out")
    assert report["videos"]["labelled"] == 4 and [failure["id"] for failure in report["failures"]] == ["3.avi"]
    assert shards(tmp_path / "out") == shards(made / "out")


def test_a_folder_that_vanishes_for_a_moment_costs_nothing(folder, tmp_path, in_process, monkeypatch):
    original, away = of_video.label_video, tmp_path / "away"

    def vanishing(video, *arguments):
        record = original(video, *arguments)
        if video.id == "0.mp4":
            folder.rename(away)
        return record

    with monkeypatch.context() as patched:
        patched.setattr(of_video, "label_video", vanishing)
        with pytest.raises(MachineError, match="2 of 2 shards .*1.mp4: no longer there.*2.mp4: no longer there"):
            label(folder, tmp_path / "out")
    assert not shards(tmp_path / "out") and not (tmp_path / "out" / "videos" / "report.json").exists()
    away.rename(folder)
    assert label(folder, tmp_path / "out")["videos"]["labelled"] == 4


def test_no_more_files_may_be_opened(folder, tmp_path, in_process, monkeypatch):
    original, limits = of_video.label_video, resource.getrlimit(resource.RLIMIT_NOFILE)

    def limited(video, *arguments):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            return original(video, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    monkeypatch.setattr(of_video, "label_video", limited)
    with pytest.raises(MachineError, match="0.mp4: Too many open files"):
        label(folder, tmp_path / "out")
    assert not shards(tmp_path / "out")


def test_a_file_that_is_deleted_for_good_ends_in_a_message_that_says_what_to_do(
    folder, tmp_path, in_process, monkeypatch
):
    original = of_video.label_video

    def deleting(video, *arguments):
        (folder / "2.mp4").unlink(missing_ok=True)
        return original(video, *arguments)

    monkeypatch.setattr(of_video, "label_video", deleting)
    words = "00001.h5: 2.mp4: no longer there.*a file that is lost for good, choose another output folder"
    with pytest.raises(MachineError, match=words):
        label(folder, tmp_path / "out")
    assert list(shards(tmp_path / "out")) == ["00000.h5"]
    with pytest.raises(ShardError, match="4 there, 3 now, .* choose another output folder, or delete"):
        label(folder, tmp_path / "out")
    assert label(folder, tmp_path / "other")["videos"]["labelled"] == 3


def test_a_file_that_goes_while_the_run_is_planned_is_told(folder, tmp_path):
    data = load("folder", folder)
    (folder / "2.mp4").unlink()
    with pytest.raises(
        MachineError, match="2.mp4: is in its folder, but cannot be accessed .*run the same command again"
    ):
        run.run(data, data.videos, tmp_path / "out", SMALL)
    assert not list(tmp_path.glob("out/*/*.h5"))


def test_a_file_that_was_never_there_or_may_not_be_read_is_the_files_fault(folder, tmp_path, in_process, monkeypatch):
    (folder / "4.mp4").symlink_to("nowhere.mp4")
    (folder / "5.mp4").symlink_to("5.mp4")
    assert [failure["id"] for failure in label(folder, tmp_path / "out")["failures"]] == ["3.avi", "4.mp4", "5.mp4"]
    video = load("folder", folder).videos[0]

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(faults, "open_regular", refused)
    assert faults.unreadable(video, task(folder, tmp_path)) == ""
    assert "Permission denied" in faults.unreadable(video, replace(task(folder, tmp_path), root=tmp_path / "unmounted"))


def test_what_ffmpeg_says_of_a_damaged_file_is_the_files_fault(folder, tmp_path):
    one, video = task(folder, tmp_path), load("folder", folder).videos[0]
    for number in (errno.EIO, errno.ENOMEM, errno.EINVAL):
        with pytest.raises(av.FFmpegError) as caught:
            av.error.err_check(-number)
        assert faults.machine_fault(caught.value, video, one) == ""
        if number != errno.EINVAL:
            assert faults.machine_fault(OSError(number, "of the system"), video, one)
    with pytest.raises(av.FFmpegError) as caught:
        av.error.err_check(-errno.EMFILE)
    assert faults.machine_fault(caught.value, video, one) == os.strerror(errno.EMFILE)


def test_a_file_that_has_changed_is_not_labelled_as_what_it_was(folder, tmp_path):
    (tmp_path / ".lock").touch()
    data = load("folder", folder)
    sizes = dict(zip(data.videos.ids, plan.file_sizes(data.videos).tolist(), strict=True))
    (folder / "2.mp4").write_bytes((folder / "2.mp4").read_bytes()[:1000])
    made = label_shard(task(folder, tmp_path / "00000.h5", sizes=sizes))
    assert "2.mp4: changed since the run was planned" in made.fault and not (tmp_path / "00000.h5").exists()


@pytest.mark.parametrize(
    "action, fault, reason",
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "1.mp4: killed its process (signal 9); check memory", ""),
        ("raise MemoryError", "1.mp4: not enough memory", ""),
        ("os._exit(0)", "", "its process ended with 0"),
    ],
)
def test_how_the_process_of_a_video_ends_tells_whose_fault_it_is(folder, tmp_path, monkeypatch, action, fault, reason):
    monkeypatch.syspath_prepend(sabotaged(tmp_path, 10, {"1.mp4": action}))
    path = tmp_path / "00000.h5"
    made = label_shard(task(folder, path, slice(1, 2), isolated=True))
    if fault:
        assert made.fault.startswith(fault) and not path.exists()
    else:
        assert ShardReader(path).arrays["failures/reason"] == (reason,)


def test_a_process_that_does_not_come_to_its_call_says_so(tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProcessLost, match="its process ended with 1 before it began") as lost:
        in_new_process(divmod, 7, 2)
    assert lost.value.of_machine and not lost.value.stalled and "no frame" not in guard.why_lost(lost.value, 1)


def test_a_system_that_starts_no_process_is_told(folder, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("labelgen.processes.subprocess.Popen", refused)
    made = label_shard(task(folder, tmp_path / "00000.h5", isolated=True))
    assert "no process or thread can be started (Resource temporarily unavailable); check `ulimit -u`" in made.fault


@pytest.mark.parametrize("seconds, slack", [(300, 1), (1, 0.25), (0.2, 0.05)])
def test_a_video_with_a_frame_within_the_time_is_never_ended(monkeypatch, seconds, slack):
    """Whenever the frames come, the alarm that is set rings no earlier than `seconds` after the last one."""
    now, alarm = [0.0], []
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(guard, "end_unless_called", lambda after: alarm.append(now[0] + after))
    with guard.ended_if_stalled(seconds) as alive:
        for step in (0.5, 0.99, 0.01, 0.2, 0.05, 0.99, 0.999):
            now[0] += step * seconds
            assert now[0] < alarm[-1]
            alive()
            assert now[0] + seconds <= alarm[-1] <= now[0] + seconds + slack + 1e-9


def test_flows_are_signs_of_life_as_frames_are(folder, tmp_path, monkeypatch):
    signs = []

    @contextlib.contextmanager
    def watching(_):
        yield lambda: signs.append(1)

    monkeypatch.setattr(guard, "ended_if_stalled", watching)
    clock = of_video.Clock()
    with open(tmp_path / "spool", "wb") as spool:
        record = guard.label_here(load("folder", folder).videos[0], task(folder, tmp_path), spool, clock)
    assert len(record.jpeg_sizes) == 20 and clock.counts["flow pairs"] == 15
    assert len(signs) >= 20 + 15 and type(clock.counts) is Counter


def test_a_full_disk_is_asked_before_memory_is_blamed(tmp_path, monkeypatch):
    from labelgen.run.jobs import check

    assert check(tmp_path) == "check memory"
    monkeypatch.setattr("labelgen.run.jobs.shutil.disk_usage", lambda _: _Full)
    assert check(tmp_path) == f"the disk of {tmp_path} has 4,096 bytes left: make room"


class _Full:
    free = 4096


def test_the_kernels_instruction_set_is_in_the_report_alone(folder, tmp_path, in_process):
    from labelgen.compiled import instructions

    report = label(folder, tmp_path / "out")
    assert report["this_run"]["instructions"] == [instructions()] and len(instructions()) > 10
    assert json.loads(Path(tmp_path, "out/videos/report.json").read_text()) == report
    assert instructions().encode() not in shards(tmp_path / "out")["00000.h5"]
