import json
import os

import pytest
import torch
from safetensors.torch import save_file

from labelgen.errors import WriteError
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.settings import Settings
from trainer.training import train


@pytest.fixture
def run(demo, here):
    return train(Settings(width=0.06, epochs=1, workers=0), demo)


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
    with pytest.raises(TrainerError, match="optimiser.pt: cannot be read"):
        loaded.optimiser_state()


def test_a_write_that_fails_leaves_the_old_checkpoint(run, here, monkeypatch):
    network = torch.nn.Linear(2, 2)
    weights, optimiser = network.state_dict(), torch.optim.SGD(network.parameters(), 0.1).state_dict()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match=r"checkpoints/00000002: cannot be written \(no space left on device\)"):
        checkpoint.save(run, 2, weights, optimiser, {})
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000001"]
    monkeypatch.undo()
    os.chdir(here)
    (run / "checkpoints/.dead.tmp").mkdir()  # left behind by a killed process
    checkpoint.save(run, 2, weights, optimiser, {})
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]


def test_errors_name_what_is_wrong(tmp_path, here):
    with pytest.raises(TrainerError, match="runs/nothing: neither a run, a checkpoint folder nor a .safetensors file"):
        checkpoint.load("nothing")
    with pytest.raises(TrainerError, match="no run with a checkpoint in runs/; train one"):
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
    with pytest.raises(TrainerError, match="checkpoint schema none, expected 2"):
        checkpoint.load(tmp_path / "foreign.safetensors")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(TrainerError, match="the run has no checkpoint yet"):
        checkpoint.load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta, weights: meta.pop("samples"), "samples missing or unknown in its metadata"),
        (lambda meta, weights: meta["settings"].update(speed=2), "speed missing or unknown"),
        (lambda meta, weights: meta["settings"].pop("width"), "width missing or unknown"),
        (lambda meta, weights: meta["config"].pop("crop"), "crop missing or unknown"),
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
            "x missing, unknown or of another",
        ),
    ],
)
def test_a_changed_checkpoint_is_told(run, tmp_path, change, message):
    saved = checkpoint.load(run)
    change(saved.meta, saved.weights)
    save_file(saved.weights, tmp_path / "changed.safetensors", {"vssl": json.dumps(saved.meta)})
    with pytest.raises(TrainerError, match=f"changed.safetensors: {message}.*; use another one, or train again"):
        checkpoint.load(tmp_path / "changed.safetensors")


def test_a_head_that_does_not_fit_cannot_be_resumed(run, demo):
    saved = checkpoint.load(run)
    del saved.weights["methods.pace.head.weight"]
    save_file(saved.weights, saved.file, {"vssl": json.dumps(saved.meta)})
    with pytest.raises(TrainerError, match="weights.safetensors: methods.pace.head.weight missing"):
        train(None, demo, resume=run)
