"""A run that was stopped, killed or damaged goes on as if nothing had happened, or says why not."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from labelgen import files
from tests.command import ENVIRONMENT
from tests.trainer.runs import SMALL, assert_same_run, at_step, rows
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint
from trainer.errors import Interrupted, TrainerError
from trainer.settings import Settings
from trainer.training import loop, train

ACCUMULATED = {"batch_size": 6, "accumulate": 2, "ema": 0.9, "optimizer": "adamw"}
RUNS = {  # of each method: labels, banks, averaged networks, dropout, curricula, held-out videos
    "statistics": {"epochs": 2, "options": {"statistics": {"targets": "raw"}}},
    "statistics scaled": {
        "epochs": 2,
        "options": {"statistics": {"targets": "scaled", "hidden": 16}},
        "curriculum": 0.5,
    },
    "pace": {"epochs": 3, "batch_size": 6, "accumulate": 2, "optimizer": "lars", "lr": 1.0},
    "pace same-context": {
        "epochs": 3,
        "options": {"pace": {"contrast": "same-context", "random_backwards": True}},
        "jitter": "contrast",
    },
    "pace same-pace": {
        "epochs": 3,
        "options": {"pace": {"contrast": "same-pace", "literal": True, "pace_weight": 0.0}},
    },
    "order": {"batch_size": 2, "epochs": 3, "holdout": 0.3, "checkpoint_minutes": 0.0},
    "skip_clip": {"epochs": 2, "repeats": 2, "holdout": 0.2, "options": {"skip_clip": {"spacing": 1}}},
    "tce": {"epochs": 3, "holdout": 0.2},
    "tce nce": {"backbone": "r3d10", "epochs": 3, "options": {"tce": {"frames": 16, "loss": "nce", "negatives": 3}}},
    "ascnet": {"epochs": 4, "holdout": 0.3},
    "simclr": {"epochs": 2, "options": {"simclr": {"clips": 3, "stride": 2}}},
    "moco": {"epochs": 3, "holdout": 0.3, "options": {"moco": {"queue": 11}}},
    "byol": {**ACCUMULATED, "epochs": 3, "holdout": 0.3},
    "rspnet": {"epochs": 2, "holdout": 0.2},
    "lejepa": {"epochs": 2, "holdout": 0.2, "options": {"lejepa": {"clips": 2, "hidden": 16, "outputs": 8}}},
    "rotation": {"backbone": "resnet18", "epochs": 1, "curriculum": 0.7, "pacing": "varied", "holdout": 0.2},
    "recognition": {**ACCUMULATED, "epochs": 4, "holdout": 0.3},
    "ascnet+statistics": {**ACCUMULATED, "weights": [1.0, 0.5], "epochs": 1, "holdout": 0.3},
}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_in_any_step_and_resumed_equals_unbroken(demo, here, name):
    """In the first, a middle and the last but one of the steps."""
    settings = Settings(**SMALL | {"method": name.split()[0], **RUNS[name]})
    whole = train(settings, demo, "whole")
    steps = len(rows(whole))
    for step in sorted({0, steps // 2, steps - 2}):
        stopped = f"stopped in {step}"
        expected = f"stopped by SIGTERM after step {step + 1} of {steps}$"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=expected) as stop:
            at_step(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
            train(settings, demo, stopped)
        assert stop.value.exit_code == 143
        assert [int(row["step"]) for row in rows(here / "runs" / stopped)] == list(range(1, step + 2))
        resumed = train(None, demo, resume=stopped)
        assert_same_run(resumed, whole)
        if settings.holdout:
            assert (resumed / "holdout.csv").read_text() == (whole / "holdout.csv").read_text()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_a_killed_process_resumes_bit_for_bit(unbroken, demo, here, number, code):
    program = (
        "import sys, torch\n"
        "from trainer.errors import Interrupted\n"
        "from trainer.training import train\n"
        "from trainer.settings import Settings\n"
        "torch.set_num_threads(1)\n"
        "try:\n"
        "    settings = Settings(width=.06, batch_size=3, workers=2, device='cpu', epochs=20, checkpoint_minutes=0)\n"
        f"    train(settings, {str(demo)!r})\n"
        "except Interrupted as stop:\n"
        "    sys.exit(stop.exit_code)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, env=ENVIRONMENT)
    log = here / "runs/pace-r3d10-1/log.csv"
    while not log.exists() or log.read_text().count("\n") < 12:
        assert process.poll() is None
        time.sleep(0.002)
    (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)  # Ctrl-C reaches the workers, too
    assert process.wait(60) == code
    saved = checkpoint.load("pace-r3d10-1").meta["step"]
    assert 0 < saved < 40
    assert_same_run(train(Settings(workers=1), demo, resume="runs/pace-r3d10-1"), unbroken)


def test_a_hang_up_that_the_caller_ignores_stops_nothing(demo, here, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGHUP))
        assert len(rows(train(Settings(**SMALL, epochs=1), demo))) == 2
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_torn_log_is_mended(unbroken, demo, here, monkeypatch):
    def die():
        raise OSError("disk is gone")

    at_step(monkeypatch, 9, die)
    with pytest.raises(OSError, match="disk is gone"):
        train(Settings(**SMALL, epochs=20, checkpoint_minutes=0.0), demo, "torn")
    assert 0 < checkpoint.load("torn").meta["step"] <= 9
    with open("runs/torn/log.csv", "a") as file:
        file.write("1")  # a row cut off after its first digit
    monkeypatch.undo()
    os.chdir(here)
    assert_same_run(train(None, demo, resume="torn"), unbroken)


def test_resuming_a_finished_run_changes_nothing(unbroken, demo):
    before = (unbroken / "log.csv").read_bytes()
    assert train(None, demo, resume=unbroken) == unbroken
    assert (unbroken / "log.csv").read_bytes() == before


def test_resume_refuses_other_settings_and_shards(unbroken, demo, tmp_path):
    with pytest.raises(TrainerError, match=r"seed is 1, but the run has 0; lr is 0.5, but the run has 0.001"):
        train(Settings(lr=0.5, seed=1, epochs=20), demo, resume=unbroken)
    write_shard(tmp_path / "demo" / "00000.h5", [64, 64], config={**CONFIG, "seed": 1})
    with pytest.raises(TrainerError, match=r"config_hash of .* is [0-9a-f]{16}, but the run has [0-9a-f]{16}"):
        train(None, tmp_path, resume=unbroken)
    write_shard(tmp_path / "again" / "demo" / "00000.h5", [64, 64])
    with pytest.raises(TrainerError, match="samples of .* is {'pace': 2}, but the run has {'pace': 6}"):
        train(None, tmp_path / "again", resume=unbroken)


def test_other_data_is_told_before_its_split(unbroken, tmp_path):
    write_shard(tmp_path / "other" / "00000.h5", [64, 64], splits=())
    for settings in (None, Settings(split="2")):
        with pytest.raises(TrainerError, match="dataset of .* is other, but the run has demo"):
            train(settings, tmp_path, resume=unbroken)


def test_a_run_to_resume_has_its_folder(unbroken, demo):
    with pytest.raises(TrainerError, match="both a run to resume, .*, and a new run, other; leave one of them out"):
        train(None, demo, "other", resume=unbroken)


def test_a_run_is_trained_by_one_process_at_a_time(demo, here, monkeypatch):
    """In the middle of a step another process tries to resume the run."""
    program = f"from trainer.training import train; train(None, {str(demo)!r}, resume='one')"
    tried = []

    def other():
        command = [sys.executable, "-c", program]
        tried.append(subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100))

    at_step(monkeypatch, 1, other)
    run = train(Settings(**SMALL | {"workers": 1}, epochs=2), demo, "one")
    assert "TrainerError: runs/one: another process is training this run; wait for it" in tried[0].stderr
    assert [int(row["step"]) for row in rows(run)] == [1, 2, 3, 4]


def test_a_run_that_went_on_meanwhile_is_left_as_it_is(demo, here, monkeypatch):
    """Between a process's reading of the checkpoint and its lock another one trains the run to its end."""
    at_step(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        train(Settings(**SMALL, epochs=2), demo, "one")
    locked = loop.locked

    def late(folder):
        monkeypatch.setattr(loop, "locked", locked)
        train(None, demo, resume="one")
        return locked(folder)

    monkeypatch.setattr(loop, "locked", late)
    with pytest.raises(TrainerError, match=r"00000002: the run has another checkpoint, runs/one/checkpoints/00000004;"):
        train(None, demo, resume="one")
    assert [int(row["step"]) for row in rows(here / "runs/one")] == [1, 2, 3, 4]


def test_a_file_system_without_locks_trains(demo, here, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", none)
    assert len(rows(train(Settings(**SMALL, epochs=1), demo, "one"))) == 2
    assert "warning: runs/one: cannot be locked ([Errno 37] No locks available)" in capsys.readouterr().out


def test_a_file_of_weights_is_no_run_to_go_on_with(unbroken, demo, here):
    copy = here / "elsewhere.safetensors"
    copy.write_bytes(checkpoint.load(unbroken).file.read_bytes())
    with pytest.raises(
        TrainerError, match=r"elsewhere.safetensors: it does not belong to a run whose training could continue"
    ):
        train(None, demo, resume=copy)
    assert os.listdir(here) == [copy.name]


@pytest.mark.parametrize(
    ("log", "row", "reason"),
    [
        ("log.csv", b"two,0,0.1\n", "could not convert string to float: 'two'"),
        ("log.csv", b"1,0\n", "a row and the first line differ in the number of columns"),
        ("log.csv", b"\xff\x00\xfe\n", "not valid UTF-8"),
        ("holdout.csv", b"1,x,0,0\n", "could not convert string to float: 'x'"),
    ],
)
def test_a_damaged_log_is_told(demo, here, log, row, reason):
    run = train(Settings(**SMALL, epochs=1, holdout=0.3), demo, "damaged")
    with open(run / log, "ab") as file:
        file.write(row)
    before = (run / log).read_bytes()
    with pytest.raises(
        TrainerError, match=rf"damaged/{log}: damaged \({reason}.*\); repair or move the file, then resume"
    ):
        train(None, demo, resume=run)
    assert (run / log).read_bytes() == before
    (run / log).unlink()
    train(None, demo, resume=run)
