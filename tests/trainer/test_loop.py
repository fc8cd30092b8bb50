import csv
import itertools
import math
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from labelgen.errors import ShardError, WriteError
from labelgen.shards import ShardReader
from tests.command import file_size_limit, vssl
from tests.trainer.runs import SMALL, at_step, rows
from tests.trainer.synthetic import write_shard
from trainer import checkpoint, data, distributed
from trainer.errors import TrainerError
from trainer.methods.pace import Pace
from trainer.network import Network
from trainer.settings import Settings, resolve
from trainer.training import log as log_module
from trainer.training import train
from trainer.training.log import Log, at_chance
from trainer.training.loggers import Loggers
from trainer.training.precision import version_warnings
from trainer.training.schedule import learning_rate
from trainer.training.streams import epoch_of, training_clips


def test_a_run_is_logged_and_kept(unbroken):
    log = rows(unbroken)
    assert [int(row["step"]) for row in log] == list(range(1, 41))
    assert [int(row["epoch"]) for row in log] == [step // 2 for step in range(40)]
    assert [float(log[i]["lr"]) for i in (0, 11, 12, 24, 36)] == [1e-3, 1e-3, 1e-4, 1e-5, 1e-6]
    assert list(log[0]) == ["step", "epoch", "lr", "loss", "accuracy", "chance"]
    assert [path.name for path in (unbroken / "checkpoints").iterdir()] == ["00000040"]


@pytest.mark.parametrize("name", ["log.csv", "holdout.csv"])
def test_a_full_disk_names_the_log(tmp_path, name):
    told = rf"{name}: cannot be written \(.*File too large"
    with (
        pytest.raises(WriteError, match=told),
        Log(tmp_path, 0, 2, 2, Loggers([], tmp_path, {}, 0)) as log,
        file_size_limit(10),
    ):
        if name == "log.csv":
            log.step(0, 0, 0.1, {"loss": 1.0}, 0.1, 0.2, 3)
        else:
            log.held_out(1, {"loss": 1.0})


def test_what_is_held_out_is_told(demo, here, capsys):
    train(Settings(**SMALL, epochs=1, holdout=0.5), demo)
    assert "4 training videos are held out, 4 are used for training" in capsys.readouterr().out


def test_off_a_terminal_the_first_step_is_told_and_then_by_time(demo, here, capsys, monkeypatch):
    """With the time left."""
    clock = itertools.count(100, 4)  # seconds, of each step
    monkeypatch.setattr(log_module.time, "monotonic", lambda: next(clock))
    with Log(here, 3, 1000, 10, Loggers([], here, {}, 0)) as log:
        for step in range(3, 13):
            log.step(step, 0, 0.1, {"loss": 1.5, "accuracy": 0.5, "other": 1.0}, 0.1, 8.0, 3)
    told = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in told] == ["step 4/1000", "step 7/1000", "step 10/1000", "step 13/1000"]
    assert [line[-1] for line in told] == ["2.2 h left", "66 min left", "66 min left", "66 min left"]
    assert told[0][2:4] == ["loss 1.5000", "accuracy 0.5000"]


@pytest.mark.parametrize(
    ("method", "columns", "expected"),
    [
        ("pace", {"accuracy": 0.27, "chance": 0.25}, "accuracy 0.270, chance 0.250"),
        ("pace", {"accuracy": 0.40, "chance": 0.25}, ""),  # 60 samples: two standard errors are .11
        ("pace", {"loss": 0.9}, ""),
        (
            "ascnet",
            {"appearance": 1.13, "constant": 1.131},
            "appearance loss 1.130, that of the best constant prediction 1.131",
        ),
        ("ascnet", {"appearance": 0.9, "constant": 1.131}, ""),
        ("byol", {"distance": 0.1, "constant": 0.1}, "distance 0.100, that of the best constant prediction 0.100"),
        ("byol", {"distance": 0.09, "constant": 0.1}, ""),
        ("lejepa", {"invariance": 0.5, "unrelated": 0.5}, "invariance 0.5, that of unrelated clips 0.5"),
    ],
)
@pytest.mark.parametrize("other", [[], ["rotation"]])
def test_a_training_that_ended_at_chance_is_told(tmp_path, method, columns, expected, other):
    prefix = f"{method}." if other else ""
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *(prefix + name for name in columns)])
        writer.writeheader()
        for step in range(1, 101):  # the first ones are better
            good = {"accuracy": 0.9, "appearance": 0.1}
            row = {prefix + k: v if step > 80 else good.get(k, v) for k, v in columns.items()}
            writer.writerow({"step": step, **row})
    verdict = at_chance(tmp_path / "log.csv", {name: data.Batches(9, 3, 0) for name in [method, *other]})
    words = (
        f"; no better than chance in the last 20 steps ({f'{method}: ' if other else ''}{expected}): it has not learned"
    )
    assert verdict.startswith(words) if expected else verdict == ""


def test_a_short_training_is_told_at_its_begin_and_at_its_end(demo, here, capsys):
    train(Settings(**SMALL, epochs=20, lr=1e-9), demo, "short")
    told = capsys.readouterr().out
    assert "40 steps in all: with fewer than 500 a network hardly learns" in told
    assert "--clips, here 3,000 for 1,000 steps" in told
    assert (
        "trained 40 steps -> runs/short; no better than chance in the last 20 steps (accuracy 0."
        in told.splitlines()[-1]
    )


def test_a_budget_in_clips_sets_epochs_and_the_drops_of_the_learning_rate(demo, here, capsys):
    """Six samples of one clip, in batches of three, 20 epochs with drops after 6, 12 and 18; and two clips of each."""
    small = ("--width", 0.06, "--batch-size", 3, "--workers", 0, "--device", "cpu")

    def given(*options, code=0):
        return vssl("train", "--shards", demo, *options, code=code)

    assert "62 clips are 10 epochs" in given(*small, "--clips", 62, "--run", "one")
    meta = checkpoint.load("one").meta
    assert (meta["steps"], meta["settings"]["epochs"], meta["settings"]["drop_every"]) == (20, 10, 3)
    given("--resume", "one", "--clips", 60)
    train(Settings(epochs=18, drop_every=6), demo, resume="one", clips=62)  # as its recipe says it
    told = "cannot resume runs/one: 100 clips are 17 epochs, but the run has 10"
    assert told in given("--resume", "one", "--clips", 100, code=1)
    given(*small, "--set", "contrast=same-context", "--run", "two", "--clips", 1)
    assert checkpoint.load("two").meta["settings"]["epochs"] == 1
    settings = resolve(Settings(**SMALL, options={"pace": {"contrast": "same-context"}}))
    assert epoch_of(training_clips(data.Shards(demo), settings), settings) == (2, 12)
    for told, *options in (
        ("--clips", "--clips", 0),
        ("epochs is 1666666666", "--clips", 9999999999),
        ("--epochs and", "--clips", 9, "--epochs", 2),
    ):
        assert told in given(*small, *options, code=2)


def test_hints_may_be_pasted(demo, here, monkeypatch):
    shutil.copytree(demo, "my shards")
    at_step(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGINT))
    small = ("--epochs", 1, "--width", 0.06, "--batch-size", 3, "--workers", 0, "--device", "cpu")
    printed = vssl("train", "--shards", "my shards", "--run", "a b", *small, code=130)
    assert "after step 1 of 2; continue with: vssl train --shards 'my shards' --resume 'runs/a b'\n" in printed


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
    with pytest.raises(TrainerError, match="runs/mine: exists; resume it, or choose another name"):
        train(once, demo, "mine")
    assert checkpoint.newest_run() == Path("runs/mine")


def test_seed_changes_the_run(demo, here):
    once = SMALL | {"epochs": 1}
    losses = [rows(train(Settings(**once, seed=seed), demo))[0]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("largest", [0.0, 1e-3, 1e3])
def test_gradients_are_clipped_to_their_norm(demo, here, largest):
    settings = Settings(**SMALL | {"batch_size": 9}, epochs=1, weight_decay=0.0, clip=largest)
    states = checkpoint.load(train(settings, demo)).optimiser_state().values()
    norm = (
        torch.cat([state["momentum_buffer"].flatten() for state in states]).norm().item()
    )  # the gradients of the one step
    assert norm == pytest.approx(1e-3, rel=1e-3) if largest == 1e-3 else 1e-2 < norm < 1e3


def test_bf16_is_for_cuda(demo, here):
    with pytest.raises(TrainerError, match="bf16 needs a CUDA device, but this is cpu"):
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
    with pytest.raises(TrainerError, match="pace has nothing to use: 3 videos too short for the pace rows"):
        train(Settings(**SMALL), tmp_path / "short")


def test_stops_where_the_loss_is_not_finite(demo, here):
    for minutes in (0.0, 5.0):
        with pytest.raises(
            TrainerError, match=r"not finite at step \d+, with the batch 0000\d_\d, .* smaller learning rate"
        ):
            train(Settings(**SMALL, epochs=20, lr=1e18, checkpoint_minutes=minutes), demo, f"wild{minutes}")
        weights = checkpoint.load(f"wild{minutes}", untrained=True).weights
        assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_the_metrics_of_a_step_are_read_when_the_next_one_is_launched(demo, here, monkeypatch):
    """But for those of the first step, which a reader waits for, and of the last one of an epoch before it is scored."""
    done, forward, wait = [], Pace.forward, data.Download.wait

    def read(self):
        found = wait(self)
        done.extend(["read"] * ("numbers" in found))
        return found

    def launch(self, backbone, batch):
        done.append("launched" if self.training else "scored")
        return forward(self, backbone, batch)

    monkeypatch.setattr(data.Download, "wait", read)
    monkeypatch.setattr(Pace, "forward", launch)
    train(Settings(**SMALL, epochs=2, holdout=0.3), demo)
    first = ["launched", "read", "launched", "read", "scored"]
    assert done == [*first, "launched", "launched", "read", "read", "scored"]


def test_a_loss_that_is_not_finite_is_told_of_its_own_step(demo, here, monkeypatch):
    """It is read while the next step is computed."""
    forward, shown = Pace.forward, []

    def broken(self, backbone, batch):
        metrics = forward(self, backbone, batch)
        shown.append(batch.video.tolist())
        return metrics | {"loss": metrics["loss"] * (math.nan if len(shown) == 4 else 1)}

    monkeypatch.setattr(Pace, "forward", broken)
    with pytest.raises(TrainerError, match="the loss is not finite at step 4, with the batch ") as raised:
        train(Settings(**SMALL, epochs=20, checkpoint_minutes=0.0), demo, "broken")
    names = data.Shards(demo).text("videos/id")
    assert f"the batch {', '.join(names[row] for row in shown[3])}; " in str(raised.value)
    assert [row["step"] for row in rows(here / "runs/broken")] == ["1", "2", "3"]
    assert checkpoint.load("broken").meta["step"] <= 3


def test_a_batch_that_cannot_be_had_costs_no_step_before(demo, here, monkeypatch):
    get = data.TrainingClips.batch

    def broken(self, keys):
        asked.append(keys)
        if len(asked) == 4:
            raise ShardError("frame 7 is damaged")
        return get(self, keys)

    asked = []
    monkeypatch.setattr(data.TrainingClips, "batch", broken)
    with pytest.raises(ShardError, match="frame 7 is damaged"):
        train(Settings(**SMALL, epochs=20), demo, "broken")
    assert [row["step"] for row in rows(here / "runs/broken")] == ["1", "2", "3"]


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
    refused = r"parameters\), expected at least 95 %; \d+ of different shape: it holds r3d10 of width 0.06"
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
    warnings = version_warnings(precision, torch_version, cudnn)
    assert len(warnings) == (says is not None) and (says is None or says in warnings[0])


def test_unknown_device():
    with pytest.raises(TrainerError, match="device 'gpu' cannot be used"):
        distributed.pick_device("gpu")


def test_a_damaged_frame_is_told_as_it_is_and_leaves_no_thread_behind(demo, tmp_path, here):
    shutil.copytree(demo, tmp_path / "demo")
    path = tmp_path / "demo" / "00000.h5"
    reader = ShardReader(path)
    start = reader.jpeg(100).ctypes.data - reader.jpeg(0).ctypes.data  # of a frame in the middle
    offset = path.read_bytes().index(reader.jpeg(0)[:400].tobytes()) + start
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(60_000))
    before = threading.active_count()
    for workers in (0, 2):
        with pytest.raises(ShardError, match=r"^\S*00000.h5: frame \d+ does not decode to"):
            train(Settings(**SMALL | {"workers": workers}, epochs=20), tmp_path / "demo")
    assert threading.active_count() == before


def test_all_networks_are_compiled_for_their_sizes(demo, monkeypatch):
    taken = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: taken.append((self, options)))
    network = Network(resolve(Settings(**SMALL, method="ascnet+skip_clip+pace")), data.Shards(demo))
    network.compile_networks()
    ascnet, skip_clip, _ = network.methods.values()
    assert [each for each, _ in taken] == [network.backbone, ascnet.target["backbone"], skip_clip.encoder]
    assert all(options == {"dynamic": False} for _, options in taken)


def test_a_run_that_could_not_be_begun_leaves_no_folder(demo, here, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(SafetensorError("No space left")))
    with pytest.raises(WriteError, match="00000000: cannot be written .No space left"):
        train(Settings(**SMALL, epochs=1), demo, "full")
    assert not (here / "runs" / "full").exists()
