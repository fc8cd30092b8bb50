"""Files are whole or as they were; one process at a time writes into a folder."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile

import cv2
import numpy as np
import pytest

from labelgen import files
from labelgen.errors import ShardError, WriteError


def test_a_file_takes_its_place_whole_with_the_permissions_of_a_new_one(tmp_path):
    (tmp_path / "plain").write_text("")
    files.write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1,\n    2\n  ]\n}\n'
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.json")}
    assert len(modes) == 1
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    files.write_png(tmp_path / "p.png", picture)
    assert np.array_equal(cv2.imread(str(tmp_path / "p.png"))[..., ::-1], picture)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "p.png", "plain"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    files.write_text(tmp_path / "a", "old")
    expected = WriteError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught, files.replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise failure
    if expected is WriteError:
        assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written (No space left on device)"
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_errors_of_libraries_name_the_file(tmp_path):
    with pytest.raises(WriteError, match="a: cannot be written .file write failed."), files.writing("a", RuntimeError):
        raise RuntimeError("file write failed")
    with pytest.raises(WriteError, match="none/a: cannot be written .No such file"):
        files.write_text(tmp_path / "none" / "a", "")


def test_a_second_process_is_refused_and_the_lock_goes_with_the_first(tmp_path):
    take = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    lock = str(tmp_path / ".lock")
    with files.locked(tmp_path, ShardError("taken"), print):
        assert subprocess.run([sys.executable, "-c", take, lock], capture_output=True).returncode == 1
    assert subprocess.run([sys.executable, "-c", take, lock]).returncode == 0
    hold = f"{take}; print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ShardError, match="taken"), files.locked(tmp_path, ShardError("taken"), print):
        pass
    holder.communicate()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    told = []
    with files.locked(tmp_path, ShardError("taken"), told.append):
        assert told and "cannot be locked" in told[0] and "No locks available" in told[0]


def killed_while_writing(path):
    """A process that is killed while it writes a file, and one that still does."""
    code = (
        "import sys, time; from labelgen.files import replacing\n"
        "with replacing(sys.argv[1]) as name: name.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    started = []
    for _ in range(2):
        started.append(subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"writing\n"
    started[0].kill()
    started[0].wait()
    return started[1]


@pytest.mark.parametrize("name", ["a.csv", "x" * 255, "ü" * 127, "[a]*.png", os.fsdecode(b"\xff.csv")])
def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path, name):
    path, other = tmp_path / name, tmp_path / ".other.csv.abcdefgh.tmp"
    other.touch()
    living = killed_while_writing(path)
    try:
        assert len(os.listdir(tmp_path)) == 3
        files.write_text(path, "whole")
        (left,) = {*os.listdir(tmp_path)} - {name, other.name}
        assert (tmp_path / left).read_text() == "half" and path.read_text() == "whole"
    finally:
        living.kill()
        living.wait()
    files.write_text(path, "again")
    assert {*os.listdir(tmp_path)} == {name, other.name} and path.read_text() == "again"


def test_many_processes_may_replace_one_file(tmp_path):
    code = (
        "import sys; from labelgen.files import write_text\n"
        "for _ in range(200): write_text(sys.argv[1], sys.argv[2] * 10_000)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a"), letter]) for letter in "xyz"]
    assert [one.wait() for one in running] == [0, 0, 0] and os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() in {letter * 10_000 for letter in "xyz"}


def test_a_file_system_without_locks_keeps_what_is_left(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".a.abcdefgh.tmp").touch()
    files.write_text(tmp_path / "a", "whole")
    assert sorted(os.listdir(tmp_path)) == [".a.abcdefgh.tmp", "a"]


def test_names_of_files_fit_and_differ(tmp_path):
    for name in ("a", "x" * 251, "x" * 400, "ü" * 127, os.fsdecode(b"\xff" * 255)):
        for suffix in ("", ".png"):
            own = files.path_name(name, suffix)
            assert own.endswith(suffix) and len(os.fsencode(own)) <= 255
            (tmp_path / own).touch()
    assert files.path_name("x" * 251, ".png") == "x" * 251 + ".png"
    assert files.path_name("x" * 400) != files.path_name("x" * 401)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_a_folder_has_the_permissions_of_a_new_one(tmp_path, mask):
    before = os.umask(mask)
    try:
        (tmp_path / "plain").mkdir()
        own = tempfile.mkdtemp(dir=tmp_path)
        files.public(own)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(own).st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_file_system_that_does_not_sync_is_told_once_and_used(tmp_path, monkeypatch, capsys):
    real = os.fsync

    def of_files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    monkeypatch.setattr(files, "_warned", False)
    for text in ("a", "b"):
        files.write_text(tmp_path / "a", text)
        assert (tmp_path / "a").read_text() == text
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {tmp_path}: this file system cannot sync") and told.count("\n") == 1

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(WriteError, match="Input/output error"):
        files.write_text(tmp_path / "a", "c")
