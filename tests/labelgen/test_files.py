"""Files are whole or as they were; one process at a time writes into a folder."""

import errno
import fcntl
import os
import stat
import subprocess
import sys

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
    assert told.startswith(f"warning: {tmp_path}: this file system does not tell") and told.count("\n") == 1

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(WriteError, match="Input/output error"):
        files.write_text(tmp_path / "a", "c")
