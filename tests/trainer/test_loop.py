import csv
import errno
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError

from labelgen.errors import ShardError
from labelgen.shards import ShardReader
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data, distributed, loop
from trainer.errors import Interrupted, TrainerError
from trainer.loop import learning_rate, train
from trainer.methods import Network
from trainer.settings import Settings, resolve

TIMES = ("data_ms", "compute_ms", "total_ms", "clips_per_s")
SMALL = {"width": 0.06, "batch_size": 3, "workers": 0, "device": "cpu"}


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one, other):
    assert rows(one) == rows(other)
    first, second = checkpoint.load(one), checkpoint.load(other)
    assert first.meta["step"] == second.meta["step"]
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())
    states = first.optimiser_state()["state"], second.optimiser_state()["state"]
    assert all(torch.equal(value, states[1][i][name]) for i in states[0] for name, value in states[0][i].items())


def at_step(monkeypatch, step, action):
    """Do something in the middle of a step."""

    def hook(now, *args):
        if now == step:
            action()
        return learning_rate(now, *args)

    monkeypatch.setattr(loop, "learning_rate", hook)


@pytest.fixture(scope="module")
def unbroken(demo, tmp_path_factory):
    """A pace run of 40 steps, two an epoch."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    torch.set_num_threads(1)
    return train(Settings(**SMALL, epochs=20), demo, run)


def test_a_run_is_logged_and_kept(unbroken):
    log = rows(unbroken)
    assert [int(row["step"]) for row in log] == list(range(1, 41))
    assert [int(row["epoch"]) for row in log] == [step // 2 for step in range(40)]
    assert [float(log[i]["lr"]) for i in (0, 11, 12, 24, 36)] == [1e-3, 1e-3, 1e-4, 1e-5, 1e-6]
    assert list(log[0]) == ["step", "epoch", "lr", "loss", "accuracy", "chance"]
    assert [path.name for path in (unbroken / "checkpoints").iterdir()] == ["00000040"]


@pytest.mark.parametrize("step", [0, 1, 2, 17, 38])
def test_stopped_in_any_step_and_resumed_equals_unbroken(unbroken, demo, here, monkeypatch, step):
    at_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(
        Interrupted, match=f"stopped by SIGTERM after step {step + 1} of 40; go on with: .*--resume"
    ) as stop:
        train(Settings(**SMALL, epochs=20), demo)
    assert stop.value.exit_code == 143
    assert [int(row["step"]) for row in rows(here / "runs/pace-r3d10-1")] == list(range(1, step + 2))
    monkeypatch.undo()
    os.chdir(here)
    assert_same_run(train(None, demo, resume="pace-r3d10-1"), unbroken)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_a_killed_process_resumes_bit_for_bit(unbroken, demo, here, number, code):
    program = (
        "import sys, torch\n"
        "from trainer.errors import Interrupted\n"
        "from trainer.loop import train\n"
        "from trainer.settings import Settings\n"
        "torch.set_num_threads(1)\n"
        "try:\n"
        "    settings = Settings(width=.06, batch_size=3, workers=2, device='cpu', epochs=20, checkpoint_every=7)\n"
        f"    train(settings, {str(demo)!r})\n"
        "except Interrupted as stop:\n"
        "    sys.exit(stop.exit_code)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, env=_environment())
    log = here / "runs/pace-r3d10-1/log.csv"
    while not log.exists() or log.read_text().count("\n") < 12:
        assert process.poll() is None
        time.sleep(0.002)
    (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)  # Ctrl-C reaches the workers, too
    assert process.wait(60) == code
    saved = checkpoint.load("pace-r3d10-1").meta["step"]
    assert 7 <= saved < 40 and (number != signal.SIGKILL or saved % 7 == 0)
    assert_same_run(train(Settings(workers=1), demo, resume="runs/pace-r3d10-1"), unbroken)


def _environment():
    root = str(loop.Path(loop.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root}


def test_a_torn_log_is_mended(unbroken, demo, here, monkeypatch):
    def die():
        raise OSError("disk is gone")

    at_step(monkeypatch, 9, die)
    with pytest.raises(OSError, match="disk is gone"):
        train(Settings(**SMALL, epochs=20, checkpoint_every=4), demo, "torn")
    assert checkpoint.load("torn").meta["step"] == 8
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
    with pytest.raises(TrainerError, match=r"seed is 1, the run has 0; lr is 0.5, the run has 0.001"):
        train(Settings(lr=0.5, seed=1, epochs=20), demo, resume=unbroken)
    write_shard(tmp_path / "demo" / "00000.h5", [64, 64], config={**CONFIG, "seed": 1})
    with pytest.raises(TrainerError, match=r"config_hash of .* is [0-9a-f]{16}, the run has [0-9a-f]{16}"):
        train(None, tmp_path, resume=unbroken)
    write_shard(tmp_path / "again" / "demo" / "00000.h5", [64, 64])
    with pytest.raises(TrainerError, match="samples of .* is {'pace': 2}, the run has {'pace': 6}"):
        train(None, tmp_path / "again", resume=unbroken)


def test_other_data_is_told_before_its_split(unbroken, tmp_path):
    write_shard(tmp_path / "other" / "00000.h5", [64, 64], splits=())
    for settings in (None, Settings(split="2")):
        with pytest.raises(TrainerError, match="dataset of .* is other, the run has demo"):
            train(settings, tmp_path, resume=unbroken)


def test_a_run_to_resume_has_its_folder(unbroken, demo):
    with pytest.raises(TrainerError, match="both a run to resume, .*, and a new run, other; leave one of them out"):
        train(None, demo, "other", resume=unbroken)


def test_a_run_is_trained_by_one_process_at_a_time(demo, here, monkeypatch):
    """In the middle of a step another process tries to resume the run."""
    program = f"from trainer.loop import train; train(None, {str(demo)!r}, resume='one')"
    tried = []

    def other():
        command = [sys.executable, "-c", program]
        tried.append(subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=100))

    at_step(monkeypatch, 1, other)
    run = train(Settings(**SMALL | {"workers": 1}, epochs=2), demo, "one")
    assert "TrainerError: runs/one: another process is training this run; wait for it" in tried[0].stderr
    assert [int(row["step"]) for row in rows(run)] == [1, 2, 3, 4]


def test_a_run_that_went_on_meanwhile_is_left_as_it_is(demo, here, monkeypatch):
    """Between a process's reading of the checkpoint and its lock another one trains the run to its end."""
    at_step(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        train(Settings(**SMALL, epochs=2), demo, "one")
    locked = loop._locked

    def late(folder):
        monkeypatch.setattr(loop, "_locked", locked)
        train(None, demo, resume="one")
        return locked(folder)

    monkeypatch.setattr(loop, "_locked", late)
    with pytest.raises(TrainerError, match=r"00000002: the run has another checkpoint, runs/one/checkpoints/00000004;"):
        train(None, demo, resume="one")
    assert [int(row["step"]) for row in rows(here / "runs/one")] == [1, 2, 3, 4]


def test_a_file_system_without_locks_trains(demo, here, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(loop.fcntl, "lockf", none)
    assert len(rows(train(Settings(**SMALL, epochs=1), demo, "one"))) == 2
    assert "warning: runs/one: cannot be locked ([Errno 37] No locks available)" in capsys.readouterr().out


def test_a_file_of_weights_is_no_run_to_go_on_with(unbroken, demo, here):
    copy = here / "elsewhere.safetensors"
    copy.write_bytes(checkpoint.load(unbroken).file.read_bytes())
    with pytest.raises(TrainerError, match=r"elsewhere.safetensors: belongs to no run whose training could go on"):
        train(None, demo, resume=copy)
    assert os.listdir(here) == [copy.name]


@pytest.mark.parametrize(
    ("log", "row", "reason"),
    [
        ("log.csv", b"two,0,0.1\n", "could not convert string to float: 'two'"),
        ("log.csv", b"1,0\n", "a row has not as many numbers as the first line has names"),
        ("log.csv", b"\xff\x00\xfe\n", "'utf-8' codec can't decode"),
        ("holdout.csv", b"1,x,0,0\n", "could not convert string to float: 'x'"),
    ],
)
def test_a_damaged_log_is_told(demo, here, log, row, reason):
    run = train(Settings(**SMALL, epochs=1, holdout=0.3), demo, "damaged")
    with open(run / log, "ab") as file:
        file.write(row)
    before = (run / log).read_bytes()
    with pytest.raises(TrainerError, match=rf"damaged/{log}: damaged \({reason}.*\); mend it or move it away, and res"):
        train(None, demo, resume=run)
    assert (run / log).read_bytes() == before
    (run / log).unlink()
    train(None, demo, resume=run)


@pytest.mark.parametrize("name", ["log.csv", "holdout.csv"])
def test_a_full_disk_names_the_log(tmp_path, name):
    """With the kernel's limit of a file's size in its place."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    try:
        with (
            pytest.raises(TrainerError, match=rf"{name}: cannot be written \(.*File too large"),
            loop._Log(tmp_path, 0, 2, 2, {}) as log,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
            if name == "log.csv":
                log.step(0, 0, 0.1, {"loss": 1.0}, 0.1, 0.2, 3)
            else:
                log.held_out(1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_what_is_held_out_is_told(demo, here, capsys):
    train(Settings(**SMALL, epochs=1, holdout=0.5), demo)
    assert "4 training videos are held out, 4 are trained on" in capsys.readouterr().out


def test_hints_may_be_pasted(demo, here, monkeypatch):
    shutil.copytree(demo, "my shards")
    at_step(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match="vssl train --shards 'my shards' --resume 'runs/a b'$"):
        train(Settings(**SMALL, epochs=1), "my shards", "a b")


def test_the_largest_seed_trains(demo, here):
    train(Settings(**SMALL, epochs=1, holdout=0.3, seed=2**63 - 1), demo)


def test_runs_are_numbered_named_and_never_overwritten(demo, here):
    once = Settings(**SMALL, epochs=1)
    assert [str(train(once, demo, run)) for run in (None, None, "mine", here / "there" / "x")] == [
        "runs/pace-r3d10-1",
        "runs/pace-r3d10-2",
        "runs/mine",
        str(here / "there" / "x"),
    ]
    with pytest.raises(TrainerError, match="runs/mine: exists; go on with --resume runs/mine, or choose another name"):
        train(once, demo, "mine")
    assert checkpoint.newest_run() == loop.Path("runs/mine")


@pytest.mark.parametrize("targets", ["raw", "scaled", "classes"])
def test_statistics_trains_and_resumes(demo, here, monkeypatch, targets):
    options = {"statistics": {"targets": targets}}
    settings = Settings(
        **(SMALL | {"batch_size": 9}), method="statistics", options=options, epochs=2, schedule="cosine"
    )
    whole = train(settings, demo)
    at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        train(settings, demo)
    assert_same_run(train(None, demo, resume="statistics-r3d10-2"), whole)


def test_seed_changes_the_run(demo, here):
    once = SMALL | {"epochs": 1}
    losses = [rows(train(Settings(**once, seed=seed), demo))[0]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_bf16_is_for_cuda(demo, here):
    with pytest.raises(TrainerError, match="bf16 needs a CUDA device, and this is cpu"):
        train(Settings(**SMALL, precision="bf16"), demo)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_trains_on_cuda(unbroken, demo, here, bf16):
    options = SMALL | {"device": "cuda", "workers": 2, "precision": "bf16" if bf16 else "float32"}
    first = rows(train(Settings(**options, epochs=20), demo))[0]
    assert float(first["loss"]) == pytest.approx(float(rows(unbroken)[0]["loss"]), abs=0.05 if bf16 else 1e-3)


def test_data_sets_smaller_than_a_batch_train(tmp_path, here):
    write_shard(tmp_path / "one" / "00000.h5", [64])
    assert len(rows(train(Settings(width=0.06, epochs=2, workers=0), tmp_path / "one"))) == 2


def test_nothing_to_train_on(tmp_path, here):
    write_shard(tmp_path / "short" / "00000.h5", [20, 12, 30])
    with pytest.raises(TrainerError, match="nothing that pace can use: 3 videos too short for the pace rows"):
        train(Settings(**SMALL), tmp_path / "short")


def test_stops_where_the_loss_is_not_finite(demo, here):
    for every in (1, 200):
        with pytest.raises(TrainerError, match=r"not finite at step \d+, whose batch holds 0000\d_\d, .* smaller --lr"):
            train(Settings(**SMALL, epochs=20, lr=1e18, checkpoint_every=every), demo, f"wild{every}")
        weights = checkpoint.load(f"wild{every}").weights
        assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_learning_rate_by_hand():
    step = resolve(Settings(lr=1.0, epochs=20))
    assert [learning_rate(s, step, 10) for s in (0, 59, 60, 119, 120, 199)] == [1, 1, 0.1, 0.1, 0.01, 0.001]
    cosine = resolve(Settings(lr=1.0, epochs=10, schedule="cosine"))
    rates = [learning_rate(s, cosine, 10) for s in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1]) and rates[-1] < 1e-3
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_defaults_are_the_papers():
    pace, statistics = resolve(Settings()), resolve(Settings(method="statistics"))
    assert (pace.method, pace.backbone, pace.lr, pace.batch_size, pace.epochs) == ("pace", "r3d10", 1e-3, 30, 20)
    assert (pace.momentum, pace.schedule, pace.drop_every, statistics.lr) == (0.9, "step", 6, 5e-4)
    assert resolve(pace) == pace


def test_a_run_with_everything_resumes_bit_for_bit(demo, here, monkeypatch):
    """Dropout, averaged weights, accumulation, curriculum, held-out videos and AdamW."""
    common = SMALL | {"batch_size": 6, "accumulate": 2, "ema": 0.9, "optimizer": "adamw", "checkpoint_every": 4}
    for settings in (
        Settings(**common, method="recognition", epochs=8, holdout=0.3),
        Settings(**common, method="statistics", epochs=3, curriculum=0.5, holdout=0.3),
    ):
        whole = train(settings, demo)
        at_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train(settings, demo, "stopped")
        monkeypatch.undo()
        os.chdir(here)
        assert_same_run(train(None, demo, resume="stopped"), whole)
        assert (here / "runs/stopped/holdout.csv").read_text() == (whole / "holdout.csv").read_text()
        (here / "runs/stopped").rename(here / f"runs/{settings.method}-resumed")


def test_accumulated_gradients_are_those_of_the_whole_batch(demo, here, monkeypatch):
    """With a backbone without batch normalisation: that one sees each part by itself."""
    small = SMALL | {"batch_size": 6, "backbone": "c3d_light", "width": 0.1}
    logs = [rows(train(Settings(**small, epochs=4, accumulate=n), demo)) for n in (1, 2, 3)]
    for row, *others in zip(*logs, strict=True):
        assert [float(other["loss"]) for other in others] == pytest.approx([float(row["loss"])] * 2, rel=1e-4)


def test_averaged_weights_follow_by_hand(demo, here):
    settings = Settings(**SMALL | {"batch_size": 30}, epochs=1, ema=0.75)  # one step
    saved = checkpoint.load(train(settings, demo))
    initial = Network(resolve(settings), data.Shards(demo)).state_dict()
    name = "backbone.conv5.0.conv1.0.weight"
    before, after, averaged = initial[name], saved.weights[name], saved.weights[f"ema.{name}"]
    assert not torch.equal(before, after)
    assert torch.allclose(averaged, 0.75 * before + 0.25 * after, atol=1e-7)
    assert torch.equal(checkpoint.backbone_weights(saved)[name.removeprefix("backbone.")], averaged)


def test_held_out_videos_are_scored_each_epoch_and_the_best_is_kept(demo, here):
    run = train(Settings(**SMALL, method="recognition", epochs=4, holdout=0.3, lr=0.01), demo)
    with open(run / "holdout.csv", newline="") as file:
        scored = list(csv.DictReader(file))
    assert [int(row["step"]) for row in scored] == [2, 4, 6, 8]
    accuracies = [float(row["accuracy"]) for row in scored]
    best = checkpoint.load(run, best=True)
    assert best.meta["step"] == 2 * (accuracies.index(max(accuracies)) + 1)
    assert checkpoint.load(run).meta["step"] == 8 and best.run == run


def test_finetuning_starts_from_the_backbone_and_refuses_another(unbroken, demo, here, capsys):
    train(Settings(**SMALL | {"width": None}, method="recognition", epochs=1), demo, "tuned", initial=unbroken)
    assert re.search(r"safetensors: (\d+) of \1 tensors matched \(100.0 % of the parameters\)", capsys.readouterr().out)
    meta = checkpoint.load("tuned").meta
    assert meta["settings"]["width"] == 0.06 and meta["initial"]["settings"]["method"] == "pace"
    refused = r"parameters\), at least 95 % must; \d+ of another shape: it holds r3d10 of width 0.06"
    with pytest.raises(TrainerError, match=refused):
        train(Settings(**SMALL | {"width": 0.1}, method="recognition", epochs=1), demo, "other", initial=unbroken)


@pytest.mark.parametrize(
    ("precision", "torch_version", "cudnn", "says"),
    [
        ("bf16", "2.9.1+cu128", 91002, "several times slower"),
        ("bf16", "2.9.1+cu128", 91501, None),
        ("bf16", "2.8.0+cu128", 91002, "wrong results"),
        ("tf32", "2.8.0+cu128", 91002, None),
        ("bf16", "2.13.0+cu130", 92000, None),
    ],
)
def test_warnings_about_versions(precision, torch_version, cudnn, says):
    warnings = loop.version_warnings(precision, torch_version, cudnn)
    assert len(warnings) == (says is not None) and (says is None or says in warnings[0])


def test_unknown_device():
    with pytest.raises(TrainerError, match="device 'gpu' cannot be used"):
        distributed.pick_device("gpu")


def test_a_damaged_frame_is_told_as_it_is_and_leaves_no_process_behind(demo, tmp_path, here):
    shutil.copytree(demo, tmp_path / "demo")
    path = tmp_path / "demo" / "00000.h5"
    reader = ShardReader(path)
    start = reader.jpeg(100).ctypes.data - reader.jpeg(0).ctypes.data  # of a frame in the middle
    offset = path.read_bytes().index(reader.jpeg(0)[:400].tobytes()) + start
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(60_000))
    before = set(multiprocessing.active_children())
    for workers in (0, 2):
        with pytest.raises(ShardError, match=r"^\S*00000.h5: frame \d+ does not decode to"):
            train(Settings(**SMALL | {"workers": workers}, epochs=20), tmp_path / "demo")
    assert not set(multiprocessing.active_children()) - before


def test_a_run_that_could_not_be_begun_leaves_no_folder(demo, here, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(SafetensorError("No space left")))
    with pytest.raises(TrainerError, match="00000000: cannot be written .No space left"):
        train(Settings(**SMALL, epochs=1), demo, "full")
    assert not (here / "runs" / "full").exists()
