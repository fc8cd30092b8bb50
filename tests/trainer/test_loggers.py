"""TensorBoard, Weights & Biases and MLflow, each with its own package, without a network."""

import csv
import json
import signal
import struct
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

import pytest
import torch

from tests.trainer.runs import SMALL, at_step
from trainer import checkpoint, distributed
from trainer.errors import Interrupted, SettingError, TrainerError
from trainer.settings import Settings, resolve
from trainer.training import loggers, train

STEPS = 8  # of four epochs


def settings(*names, **more):
    return Settings(**SMALL, epochs=4, holdout=0.3, log=[*names], **more)


def logged(run):
    """What the CSV files of a run say, by step and name, as loggers get it."""
    found = {}
    for part, file, left_out in (
        ("train", "log.csv", ("step", "epoch", "compute_ms", "total_ms")),
        ("holdout", "holdout.csv", ("step",)),
    ):
        for row in csv.DictReader((run / file).read_text().splitlines()):
            found |= {(int(row["step"]), f"{part}/{name}"): float(row[name]) for name in row if name not in left_out}
    return found


def interrupted_and_resumed(monkeypatch, demo, *names):
    """A run that is stopped in its fourth step, and resumed without being told the loggers again; the ids of its loggers before
    and afterwards."""
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(settings(*names), demo, "run")
    path = Path("runs/run/loggers.json")
    before = path.read_text() if path.exists() else ""
    run = train(None, demo, resume="runs/run")
    return run, before, path.read_text() if path.exists() else ""


def assert_same(found, run):
    expected = logged(run)
    assert {step for step, _ in expected} == {*range(1, STEPS + 1)}
    assert found.keys() == expected.keys()
    assert all(
        found[key] == pytest.approx(expected[key], rel=0.01, abs=0.06) for key in expected
    )  # log.csv rounds times


def test_tensorboard(demo, here, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run, _, _ = interrupted_and_resumed(monkeypatch, demo, "tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    found = [((event.step, name), event.value) for name in names for event in events.Scalars(name)]
    assert len(found) == len(dict(found))
    assert_same(dict(found), run)
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    stored = HParamsPluginData.FromString(content).session_start_info.hparams
    assert stored["lr"].number_value == 0.001 and stored["method"].string_value == "pace"
    assert stored["options.pace.contrast"].string_value == "none"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow(demo, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs the whole package, of 500 MB
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{here}/store")
    run, before, after = interrupted_and_resumed(monkeypatch, demo, "mlflow")
    from mlflow import MlflowClient

    client, id = MlflowClient(), json.loads(after)["mlflow"]
    stored = client.get_run(id)
    assert before == after and stored.info.status == "FINISHED" and stored.info.run_name == "run"
    assert stored.data.params["lr"] == "0.001" and stored.data.params["options.pace.contrast"] == "none"
    found = [((m.step, name), m.value) for name in stored.data.metrics for m in client.get_metric_history(id, name)]
    assert len(found) == len(dict(found))
    assert_same(dict(found), run)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb(demo, here, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, before, after = interrupted_and_resumed(monkeypatch, demo, "wandb")
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    id = json.loads(after)["wandb"]
    assert before == after and [file.name for file in files] == 2 * [f"run-{id}.wandb"]
    found, config, exits = {}, {}, []
    for record in (record for file in files for record in _records(file)):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            found |= {(values["_step"], name): value for name, value in values.items() if name[0] != "_"}
        elif kind == "exit":
            exits.append(record.exit.exit_code)
    assert config["lr"] == 0.001 and config["options.pace.contrast"] == "none" and exits == [1, 0]
    assert_same(found, run)


def _records(path):
    """The records of a file of Weights & Biases: 7 bytes, then blocks as in a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_what_cannot_be_opened_is_said_before_the_first_step(demo, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrainerError, match=r"mlflow is not installed \(.*\): pip install mlflow$"):
        train(settings("tensorboard", "mlflow"), demo, "run")
    assert not (here / "runs" / "run").exists()
    with pytest.raises(SettingError, match="log is 'comet', expected one of: tensorboard, wandb, mlflow"):
        resolve(Settings(log=["comet"]))


def test_a_logger_that_fails_is_said_twice_and_changes_nothing(demo, here, monkeypatch, capfd):
    unlogged = train(settings(), demo, "unlogged")
    at_step(monkeypatch, 3, lambda: rmtree("runs/run/tensorboard"))
    run = train(settings("tensorboard"), demo, "run")
    out, err = capfd.readouterr()
    assert out.count("warning: tensorboard failed (FileNotFoundError") == 2 and "log.csv has every step" in out
    assert "Traceback" not in out + err and {step for step, _ in logged(run)} == {*range(1, STEPS + 1)}
    one, other = (checkpoint.load(each).weights for each in (unlogged, run))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


class Waiting(loggers.Logger):
    """It logs nothing until it may."""

    go_on = threading.Event()
    rows: list

    def __init__(self, *_):
        self.id, Waiting.rows = None, []

    def log(self, rows):
        assert self.go_on.wait(60)
        Waiting.rows += rows

    def close(self, ending):
        Waiting.rows.append(ending)


def test_no_step_waits_for_a_logger(demo, here, monkeypatch, capsys):
    monkeypatch.setitem(loggers.LOGGERS, "wandb", Waiting)
    with monkeypatch.context() as patch:
        at_step(patch, STEPS - 1, Waiting.go_on.set)
        run = train(settings("wandb"), demo, "run")
    *rows, ending = Waiting.rows
    found = {(step, name): value for step, values in rows for name, value in values.items()}
    assert_same(found, run)
    assert ending == "finished"
    Waiting.go_on.clear()
    monkeypatch.setattr(loggers, "PATIENCE", 0.1)
    train(settings("wandb"), demo, "hangs")
    assert (
        "warning: wandb has not finished within 0.1 s: it may lack steps after 0; log.csv has all"
        in capsys.readouterr().out
    )
    Waiting.go_on.set()


def test_other_processes_than_the_first_log_nothing(here, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda outcome: None)
    assert loggers.Loggers(["tensorboard"], here, {}, 0).threads == [] and not any(here.iterdir())
