"""Flow on disk is made whole, or not at all, whatever happens."""

# ruff: noqa: F811 (a fixture of another file)

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from labelgen import decode
from labelgen.errors import MachineError, ShardError
from labelgen.extract import Extraction
from labelgen.extract import video as of_video
from labelgen.manifest import load
from labelgen.run.plan import file_sizes
from tests.command import ENVIRONMENT, file_size_limit, vssl
from tests.labelgen.sabotage import SEGFAULT, sabotaged
from tests.labelgen.synthetic import write_video
from tests.labelgen.test_extract import folder, run  # noqa: F401 (a fixture)


def content(out):
    """All visible files of a folder but the report, which has times."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: data for name, data in found.items() if name[0] != "." and name != "report.json"}


def test_failures_are_listed_and_the_rest_is_made(folder, tmp_path):
    root = tmp_path / "v"
    write_video(root / "good.mp4", 4)
    write_video(root / "one.mp4", 1)
    (root / "none.mp4").write_text("no video")
    short = write_video(root / "short.avi", 80)
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    command = ("flow", root, "--out", tmp_path / "out", "--short", 48, "--flow", "dis", "--frames", "--workers", 2)
    assert "flow of 2 of 4 videos, 2 failed, 1 cut short" in vssl(*command, code=3)
    report = json.loads((tmp_path / "out/report.json").read_text())
    reasons = {failure["id"]: (failure["stage"], failure["kept"], failure["reason"]) for failure in report["failures"]}
    assert reasons["one.mp4"] == ("flow", False, "a flow of step 1 needs 2 frames; the video has 1 frame")
    assert reasons["none.mp4"][:2] == ("decode", False)
    kept = len(list((tmp_path / "out/short").glob("img_*")))
    assert reasons["short.avi"][:2] == ("decode", True) and reasons["short.avi"][2].startswith(f"kept {kept} frames: ")
    assert len(list((tmp_path / "out/short").glob("flow_x_*"))) == kept - 1 > 5
    assert not (tmp_path / "out/one").exists() and not (tmp_path / "out/none").exists()
    before = content(tmp_path / "out")
    assert "4 of 4 videos are done" in vssl(*command, code=3) and content(tmp_path / "out") == before


def test_another_configuration_is_refused(folder, tmp_path, in_process):
    run(folder, tmp_path)
    before = content(tmp_path)
    for change, message in (
        ({"bound": 15.0}, "bound: 20.0 there, 15.0 now"),
        ({"flow": "farneback"}, 'flow backend: "dis" there, "farneback" now'),
        ({"frames": True}, "frames: null there"),
        ({"short": 64}, "size short: 48 there, 64 now"),
        ({"first": 0}, "first: 1 there, 0 now"),
    ):
        with pytest.raises(ShardError, match=message):
            run(folder, tmp_path, **change)
    assert content(tmp_path) == before


def test_new_changed_and_damaged_videos(tmp_path, in_process):
    root, out = tmp_path / "v", tmp_path / "out"
    for seed in range(3):
        write_video(root / f"{seed}.mp4", 4, seed)
    run(root, out)
    before, times = content(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    write_video(root / "1.mp4", 5, 7)  # another video of the same name
    (root / "2.mp4").write_text("no video now")
    write_video(root / "0.avi", 3, 9)  # new, and of the name of one that is there
    (out / "0/flow_x_00001.jpg").unlink()
    report = run(root, out)
    assert report["this_run"]["frames"] == 4 + 5 + 3 and report["videos"]["failed"] == 1
    after = content(out)
    assert {name for name in after if name.startswith("0/")} == {name for name in before if name.startswith("0/")}
    assert all(after[name] == before[name] for name in after if name.startswith("0/"))
    assert len(os.listdir(out / "1")) == 8 and len(os.listdir(out / "0.avi")) == 4 and not (out / "2").exists()
    assert times and run(root, out)["this_run"]["frames"] == 0
    (root / "1.mp4").unlink()  # gone: not in the lists, its files stay
    run(root, out)
    assert "1 " not in (out / "flow_list.txt").read_text() and (out / "1").exists()


def test_what_another_program_has_written_is_left_alone(folder, tmp_path, in_process):
    (tmp_path / "left/a").mkdir(parents=True)
    (tmp_path / "left/a/img_00001.jpg").write_text("precious")
    (tmp_path / ".cache.abcdefgh.tmp").mkdir()
    with pytest.raises(ShardError, match="left/a: exists, but was not made by this command"):
        run(folder, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["img_00001.jpg"]
    assert (tmp_path / ".cache.abcdefgh.tmp").exists()
    run(folder, tmp_path / "own")
    (tmp_path / "own/left/a/notes.txt").write_text("precious")
    assert run(folder, tmp_path / "own")["this_run"]["frames"] == 0 and (tmp_path / "own/left/a/notes.txt").exists()


def test_a_journal_of_a_stranger_leads_nowhere(folder, tmp_path, in_process):
    run(folder, tmp_path / "out")
    journal = tmp_path / "out/.flow.jsonl"
    first, *lines = journal.read_text().splitlines()
    (tmp_path / "precious").mkdir()
    entry = json.loads(lines[-1])
    odd = [
        {"id": "left/a.mp4", "name": "../../precious"},
        entry | {"places": [["/etc", 1, 1]]},
        entry | {"places": [[1, 2]]},
        entry | {"frames": "many"},
        entry | {"cut_short": "\x1b[2J"},
        [],
        7,
    ]
    journal.write_text("\n".join([first, *map(json.dumps, odd), "[" * 9999, *lines, "torn"]))
    assert run(folder, tmp_path / "out")["flows"] == 15 and not list((tmp_path / "precious").iterdir())
    journal.write_text("nonsense\n")
    with pytest.raises(ShardError, match="damaged .*choose another output folder"):
        run(folder, tmp_path / "out")


def test_killed_and_run_again(tmp_path, in_process):
    for seed in range(4):
        write_video(tmp_path / "v" / f"{seed}.mp4", 60, seed)
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--short", "48", "--flow", "dis", "--frames", "--layout", "uv", "--workers", "2"]
    begun = [sys.executable, "-m", "cli.main", "flow", tmp_path / "v", "--out", out, *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(begun, env=ENVIRONMENT, start_new_session=True, **quiet)
    while process.poll() is None and not list(out.glob(".*.tmp/new/u/*/*10.jpg")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(tmp_path / "v", whole, frames=True, layout="uv")
    expected = content(whole)
    assert all(data == expected[name] for name, data in content(out).items() if name in expected)
    run(tmp_path / "v", out, frames=True, layout="uv")
    assert content(out) == expected and len(expected) == 4 * (60 + 59 + 59) + 1
    assert not list(out.glob(".*.tmp"))


def test_stopped_between_the_folders_of_one_video(folder, tmp_path, in_process, monkeypatch):
    """u is in its place, v is not, and nothing says that the video is done."""
    original, moved = os.rename, []

    def stopped(source, target):
        if "/new/v/" in str(source):
            raise KeyboardInterrupt
        moved.append(target)
        original(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(of_video.os, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "out", layout="uv")
    assert moved and not (tmp_path / "out/v/left/a").exists()
    run(folder, tmp_path / "out", layout="uv")
    run(folder, tmp_path / "whole", layout="uv")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_full_disk_stops_the_run_and_leaves_whole_videos_only(folder, tmp_path, in_process):
    command = ("flow", folder, "--out", tmp_path / "out", "--layout", "npy", "--short", 48, "--flow", "dis")
    with file_size_limit(60_000):
        told = vssl(*command, code=1)
    assert "flow.npy: cannot be written (File too large)" in told
    assert "finished videos are kept: make room and run the same command again" in told
    assert not list((tmp_path / "out").glob(".*.tmp")) and not (tmp_path / "out/left/a/flow.npy").exists()
    run(folder, tmp_path / "out", layout="npy")
    assert np.load(tmp_path / "out/left/a/flow.npy").shape == (8, 48, 64, 2)


def test_two_commands_do_not_share_a_folder(folder, tmp_path, in_process):
    run(folder, tmp_path)
    code = (
        f"import fcntl; file = open({str(tmp_path / '.lock')!r}, 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ShardError, match="another command is writing flow here"):
            run(folder, tmp_path)
        other.communicate(b"\n")


def test_an_error_of_the_machine_is_not_written_down(folder, tmp_path, in_process, monkeypatch):
    original = of_video.Pairs.__call__

    def failing(self, frame):
        if len(self._images) == 4:
            raise MemoryError
        return original(self, frame)

    with monkeypatch.context() as patched:
        patched.setattr(of_video.Pairs, "__call__", failing)
        with pytest.raises(
            MachineError, match="2 of 3 videos failed because of the machine .*left/a.mp4: not enough memory"
        ):
            run(folder, tmp_path, step=4)
    assert not (tmp_path / "report.json").exists() and not (tmp_path / "left/a").exists()
    assert run(folder, tmp_path, step=4)["videos"]["failed"] == 1  # of three frames


def task(folder, out, at, **options):
    videos = load("folder", folder).videos
    sizes = dict(zip(videos.ids, file_sizes(videos).tolist(), strict=True))
    (out / ".lock").touch()
    settings, name = Extraction(flow="dis", short=48), os.path.splitext(videos.ids[at])[0]
    return of_video.FlowTask(
        out / f"{at}", videos[at : at + 1], folder, settings, name, stall=300, sizes=sizes, **options
    )


@pytest.mark.parametrize("make", [of_video.extract_video, of_video.extract_on_cluster])
def test_a_video_that_kills_its_process_is_the_only_one_lost(folder, tmp_path, monkeypatch, make):
    monkeypatch.syspath_prepend(sabotaged(tmp_path, 2, {"a.mp4": SEGFAULT}))  # of the processes to be started
    made = make(task(folder, tmp_path, 0, isolated=True))
    assert made.notes == {"stage": "process", "reason": "killed its process (signal 11)"}
    assert not (tmp_path / "left").exists()
    made = make(task(folder, tmp_path, 1, isolated=True))
    assert made.notes["flows"] == 5 and len(os.listdir(tmp_path / "right/b")) == 10 and made.counts["flow pairs"] == 5
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_file_that_has_changed_since_is_not_taken_for_what_it_was(folder, tmp_path):
    one = task(folder, tmp_path, 0)
    one.sizes["left/a.mp4"] += 1
    path = write_video(tmp_path / "v/left/a.mp4", 9)
    path.write_bytes(path.read_bytes()[:-400])
    made = of_video.extract_video(one)
    assert not made.fault and made.notes["flows"] == 8  # a file that can be read to its end is what it is


def test_files_that_vanish_while_they_are_written_are_missed(folder, tmp_path, in_process, monkeypatch):
    original = of_video.write_picture

    def losing(path, picture, quality):
        size = original(path, picture, quality)
        if path.name == "flow_y_00002.jpg":
            path.unlink()
        return size

    monkeypatch.setattr(of_video, "write_picture", losing)
    with pytest.raises(MachineError, match="left/a has 15 files, although all were written; expected 16"):
        run(folder, tmp_path)


def test_memory_holds_no_more_frames_than_the_step_needs(folder):
    pairs = of_video.Pairs("dis", 3)
    for frame in decode.frames(folder / "left/a.mp4", 48, 64):
        pairs(frame)
        assert len(pairs._images) <= 4
