import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labelgen.errors import WriteError
from tests.command import vssl
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import measure
from trainer.export import export
from trainer.pages.report import report
from trainer.pages.trained import read_log
from trainer.settings import Settings, resolve
from trainer.training import train
from trainer.training.log import cut_log


@pytest.fixture
def run(pace_run, here):
    return Path(shutil.copytree(pace_run, "runs/pace-r3d10-1"))


def test_loads_from_run_folder_and_file(run):
    file = run / "checkpoints/00000001/weights.safetensors"
    loaded = [checkpoint.load(path) for path in (run, run.name, file.parent, file)]
    assert len({one.file for one in loaded}) == 1 and {one.run for one in loaded} == {run}
    assert loaded[0].meta == json.loads((file.parent / "checkpoint.json").read_text())
    meta = loaded[0].meta
    assert meta["settings"]["method"] == "pace" and meta["dataset"] == "demo" and meta["step"] == meta["steps"] == 1


def test_a_lone_weights_file_is_enough(run, tmp_path):
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(checkpoint.load(run).file.read_bytes())
    loaded = checkpoint.load(copy)
    assert loaded.run == tmp_path / "elsewhere" and loaded.meta == checkpoint.load(run).meta
    with pytest.raises(
        TrainerError, match="optimiser.safetensors: not a readable checkpoint .*training cannot continue from here"
    ):
        loaded.optimiser_state()


def test_a_write_that_fails_leaves_the_old_checkpoint(run, here, monkeypatch):
    network = torch.nn.Linear(2, 2)
    weights, optimiser = network.state_dict(), torch.optim.SGD(network.parameters(), 0.1).state_dict()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WriteError, match=r"checkpoints/00000002: cannot be written \(no space left on device\)"):
        checkpoint.save(run, 2, weights, optimiser, {})
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000001"]
    monkeypatch.undo()
    os.chdir(here)
    (run / "checkpoints/.dead.tmp").mkdir()  # left behind by a killed process
    checkpoint.save(run, 2, weights, optimiser, {})
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]


def test_a_run_that_never_took_a_step_is_used_for_nothing(run, demo, here, monkeypatch):
    """Its weights are random. It may be gone on with, and is not the newest run."""

    def die(*_):
        raise TrainerError("no frames")

    monkeypatch.setattr(data.TrainingClips, "batch", die)
    with pytest.raises(TrainerError, match="no frames"):
        train(Settings(width=0.06, epochs=1, workers=0), demo, "dead")
    monkeypatch.undo()
    os.chdir(here)
    assert checkpoint.newest_run() == run == checkpoint.newest_run(finetuned=False)
    uses = {
        "eval knn": lambda: measure("knn", demo, "dead"),
        "finetune": lambda: train(Settings(method="recognition"), demo, "tuned", initial="dead"),
        "export": lambda: export("dead", here / "dead.onnx"),
        "report": lambda: report("dead"),
        "a file": lambda: checkpoint.load("runs/dead/checkpoints/00000000/weights.safetensors"),
    }
    for use in uses.values():
        with pytest.raises(TrainerError, match="00000000/weights.safetensors: it was not trained yet, its weights"):
            use()
    assert "it was not trained yet" in vssl("embed", "--checkpoint", "dead", "--shards", demo, code=1)
    assert checkpoint.load(train(None, demo, resume="dead")).meta["step"] == 1
    (here / "runs/pace-r3d10-1").rename(here / "elsewhere")
    (here / "runs/dead/checkpoints/00000001").rename(here / "runs/dead/checkpoints/00000000")
    with pytest.raises(TrainerError, match="no run with at least one step in runs/"):
        checkpoint.newest_run()


@pytest.mark.parametrize("gone", ["weights.safetensors", "."])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_looked_for_again(run, monkeypatch, gone):
    """By a training, which has removed the older one, or a part of it."""
    reads, read = [], checkpoint.read_tensors

    def replaced(file):
        reads.append(file.parent.name)
        if len(reads) <= 2:
            new = file.parents[1] / f"{len(reads) + 1:08d}"
            shutil.copytree(file.parent, new)
            shutil.rmtree(file.parent) if gone == "." else file.unlink()
        return read(file)

    monkeypatch.setattr(checkpoint, "read_tensors", replaced)
    assert checkpoint.load(run).file.parent.name == "00000003" and reads == ["00000001", "00000002", "00000003"]
    (run / "checkpoints/00000003/weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainerError, match="00000003/weights.safetensors: not a readable checkpoint"):
        checkpoint.load(run)


def test_a_best_checkpoint_that_is_being_written_is_not_waited_for(run):
    (run / "best/.half.tmp").mkdir(parents=True)
    assert checkpoint.load(run, best=True).file.parent.parent.name == "checkpoints"


def test_errors_name_what_is_wrong(tmp_path, here):
    with pytest.raises(TrainerError, match="runs/nothing: neither a run, a checkpoint folder nor a .safetensors file"):
        checkpoint.load("nothing")
    with pytest.raises(TrainerError, match="no run with at least one step in runs/; train one"):
        checkpoint.newest_run()
    for name, method in (("pretrained", "pace"), ("finetuned", "recognition")):  # the newer last
        folder = here / "runs" / name / "checkpoints" / "00000001"
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(json.dumps({"settings": {"method": method}}))
        assert checkpoint.newest_run() == folder.parents[1].relative_to(here)
    assert checkpoint.newest_run(finetuned=False).name == "pretrained"
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint at all")
    with pytest.raises(TrainerError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "bad.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(TrainerError, match="did not write; import them first, .* vssl import"):
        checkpoint.load(tmp_path / "foreign.safetensors")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(TrainerError, match="the run has no checkpoint yet"):
        checkpoint.load(tmp_path / "empty")


def test_an_older_checkpoint_may_lack_settings_that_came_later(run, tmp_path):
    saved, lacking = checkpoint.load(run), {"keep_every": 0, "color_strength": 1.0, "crop_area": [0.2, 1.0]}
    assert {name: saved.meta["settings"].pop(name) for name in lacking} == lacking
    save_file(saved.weights, tmp_path / "older.safetensors", {"vssl": json.dumps(saved.meta)})
    settings = checkpoint.load(tmp_path / "older.safetensors").meta["settings"]
    assert {name: settings[name] for name in lacking} == lacking


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta, weights: meta.pop("samples"), r"its metadata are damaged \(it has no samples\)"),
        (lambda meta, weights: meta["settings"].update(speed=2), "speed missing or unknown"),
        (lambda meta, weights: meta["settings"].pop("width"), "width missing or unknown"),
        (lambda meta, weights: meta["config"].pop("crop"), r"its metadata are damaged \(config has no crop\)"),
        (lambda meta, weights: meta["settings"].update(method="chess"), "unknown method 'chess', expected one of"),
        (
            lambda meta, weights: meta["settings"].update(width=0.1),
            "conv1.0.0.weight and 59 others missing, unknown",
        ),
        (
            lambda meta, weights: weights.pop("backbone.conv1.0.0.weight"),
            "conv1.0.0.weight missing, unknown or of",
        ),
        (
            lambda meta, weights: weights.update({"backbone.x": torch.zeros(1)}),
            "x missing, unknown or of a shape that does not match",
        ),
    ],
)
def test_a_changed_checkpoint_is_told(run, tmp_path, change, message):
    saved = checkpoint.load(run)
    change(saved.meta, saved.weights)
    save_file(saved.weights, tmp_path / "changed.safetensors", {"vssl": json.dumps(saved.meta)})
    with pytest.raises(TrainerError, match=f"changed.safetensors: {message}.*; use another one, or train again"):
        checkpoint.load(tmp_path / "changed.safetensors")


def test_conditions_that_a_checkpoint_does_not_name_are_unknown(run, demo, capsys):
    saved = checkpoint.load(run)
    del saved.meta["environment"]["processes"]
    save_file(saved.weights, saved.file, {"vssl": json.dumps(saved.meta)})
    train(None, demo, resume=run)
    assert "in the last bits: processes unknown -> 1\n" in capsys.readouterr().out


def test_a_head_that_does_not_fit_cannot_be_resumed(run, demo):
    saved = checkpoint.load(run)
    del saved.weights["methods.pace.head.weight"]
    save_file(saved.weights, saved.file, {"vssl": json.dumps(saved.meta)})
    with pytest.raises(TrainerError, match="weights.safetensors: methods.pace.head.weight missing"):
        train(None, demo, resume=run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["settings"].update(width=1e15), "width is 1000000000000000.0, expected 0.01 to 16"),
        (lambda meta: meta["settings"].update(epochs=None, lr="fast"), "lr is 'fast', expected a number"),
        (lambda meta: meta["settings"]["options"].update(pace=[]), r"options, pace is \[\], expected a mapping"),
        (lambda meta: meta.update(step="1"), r"its metadata are damaged \(step is '1', expected a whole number\)"),
        (lambda meta: meta.update(step=-1), r"\(step -1 of 1\)"),
        (lambda meta: meta.update(classes=[1]), r"\(classes is 1, expected text\)"),
        (lambda meta: meta.update(initial={"file": 1}), r"\(initial, file is 1, expected text\)"),
        (lambda meta: meta["config"].update(height=10**9), "height is 1000000000; expected 16 to 4096"),
        (lambda meta: meta.update(environment=json.loads("[" * 60 + "]" * 60)), "nest deeper than 40 levels"),
    ],
)
def test_metadata_of_other_types_are_told(tmp_path, meta, change, message):
    change(meta)
    save_file({"x": torch.zeros(1)}, tmp_path / "changed.safetensors", {"vssl": json.dumps(meta)})
    with pytest.raises(TrainerError, match=f"changed.safetensors: .*{message}"):
        checkpoint.load(tmp_path / "changed.safetensors")


@pytest.fixture
def meta():
    """Metadata as training writes them."""
    told = {"dataset": "demo", "split": None, "samples": {"pace": 1}, "steps": 1, "step": 1, "config_hash": "x"}
    config = {"height": 40, "width": 48, "crop": 32}
    others = {"videos": 1, "classes": ["a"], "config": config, "environment": {"torch": "2"}, "initial": None}
    return {"schema": checkpoint.SCHEMA, "settings": asdict(resolve(Settings())), **told, **others}


def test_headers_are_read_within_bounds(tmp_path):
    file = tmp_path / "a.safetensors"
    for header, message in (
        ((1 << 40).to_bytes(8, "little"), "a header of 1,099,511,627,776 bytes"),
        (b"\x05\0\0\0\0\0\0\0[[[[[", "invalid JSON"),
        (b"\x13\0\0\0\0\0\0\0" + b'{"x":{"dtype":"Q"}}', "'x' is of type 'Q'"),
    ):
        file.write_bytes(header)
        with pytest.raises(TrainerError, match=f"not a readable checkpoint .*{message}"):
            checkpoint.load(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(TrainerError, match="a named pipe; expected a regular file"):
        checkpoint.load(file)


def test_a_state_of_another_optimiser_is_told(tmp_path):
    network = torch.nn.Linear(2, 2)
    sgd, adam = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9), torch.optim.AdamW(network.parameters())
    for one in (sgd, adam):
        network(torch.ones(1, 2)).sum().backward()
        one.step()
    folder = checkpoint.save(tmp_path, 1, network.state_dict(), adam.state_dict(), {})
    saved = checkpoint.Checkpoint(folder / "weights.safetensors", tmp_path, {}, {})
    with pytest.raises(TrainerError, match="the state of parameter 0 is of another optimiser"):
        saved.restore(sgd)
    before = {number: dict(own) for number, own in adam.state_dict()["state"].items()}
    saved.restore(adam)
    assert all(
        torch.equal(adam.state_dict()["state"][i][key], value) for i in before for key, value in before[i].items()
    )
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    with pytest.raises(TrainerError, match="optimiser.safetensors: the state of parameter 0"):
        saved.restore(other)


@pytest.mark.parametrize("name", ["log.csv", "holdout.csv"])
def test_a_pipe_as_log_does_not_hang(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(TrainerError, match=f"{name}: damaged .*a named pipe"):
        cut_log(tmp_path / name, 1)
    assert "a named pipe" in read_log(tmp_path / name)[1]


@pytest.mark.parametrize("mask, mode", [(0o002, 0o775), (0o027, 0o750)])
def test_a_checkpoint_has_the_permissions_of_a_new_folder(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        folder = checkpoint.save(tmp_path, 1, {}, {"state": {}}, {})
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == mode
