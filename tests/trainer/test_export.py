"""A backbone in a file of its own computes what the network computed."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from labelgen.errors import WriteError
from tests.command import file_size_limit, vssl
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.export import FORMATS, TOLERANCE, compare, export
from trainer.network import build_backbone
from trainer.settings import Settings
from trainer.training import train

SMALL = {"width": 0.06, "batch_size": 6, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """Averaged weights, which differ from the last ones, and a held-out part."""
    torch.set_num_threads(1)
    return train(Settings(**SMALL, epochs=2, ema=0.5, holdout=0.3), demo, tmp_path_factory.mktemp("run") / "one")


@pytest.fixture(scope="module")
def network(run):
    saved = checkpoint.load(run)
    network = build_backbone(Settings(**saved.meta["settings"]))
    network.load_state_dict(checkpoint.backbone_weights(saved))
    return network.eval()


@pytest.fixture
def clips():
    return torch.randn(5, 3, 16, 32, 32)


def onnx(file, clips):
    session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"clips": clips.numpy()})
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}


def test_onnx_gives_the_stages_of_the_network_for_any_batch(run, network, clips, tmp_path):
    pytest.importorskip("onnxscript")
    about, difference = export(run, tmp_path / "x.onnx")
    with torch.no_grad():
        eager = network(clips)
    exported = onnx(tmp_path / "x.onnx", clips)
    assert list(exported) == list(eager) == list(about["stages"])
    for stage, values in eager.items():
        assert list(values.shape[1:]) == about["stages"][stage]
        assert torch.allclose(exported[stage], values, atol=1e-4)
        assert values.std() > 1e-2  # so that equality says something
    assert 0 <= difference < 1e-3


def test_an_exported_backbone_is_finetuned(run, network, demo, here, capsys):
    about, difference = export(run, "backbone.safetensors")
    assert difference == 0 and about["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert json.loads(Path("backbone.safetensors.json").read_text()) == about
    assert sorted(file.name for file in here.iterdir()) == ["backbone.safetensors", "backbone.safetensors.json"]
    tuned = train(
        Settings(**SMALL | {"width": None}, method="recognition", epochs=1), demo, initial="backbone.safetensors"
    )
    assert "(100.0 % of the parameters)" in capsys.readouterr().out
    meta = checkpoint.load(tuned).meta
    assert meta["settings"]["width"] == 0.06 and meta["initial"]["settings"]["method"] == "pace"
    weights = checkpoint.backbone_weights(checkpoint.load("backbone.safetensors"))
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_the_description_says_how_to_use_it(run, tmp_path):
    about, _ = export(run, tmp_path / "b.weights", "safetensors")
    assert about["format"] == "safetensors" and about["backbone"] == "r3d10" and about["width"] == 0.06
    assert about["input"] == {
        "name": "clips",
        "layout": "B, 3 (RGB), T, H, W; float32; (value / 255 - mean) / std",
        "order": "RGB",
        "top": 1.0,
        "mean": [0.45] * 3,
        "std": [0.225] * 3,
        "stride": 1,
        "frames": 16,
        "fps": None,
        "region": None,
        "resize": [40, 48],
        "crop": [32, 32],
    }
    assert about["stages"]["conv5"] == [31, 2, 2, 2]
    source = about["source"]
    assert (source["run"], source["method"], source["dataset"], source["step"]) == ("one", "pace", "demo", 2)
    assert source["environment"]["torch"] == torch.__version__


def test_a_file_exported_again_keeps_its_origin(run, tmp_path):
    first, _ = export(run, tmp_path / "first.safetensors")
    second, _ = export(tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    third, _ = export(tmp_path / "second.safetensors", tmp_path / "third.weights", "safetensors")
    assert first["source"] == second["source"] == third["source"] and first["source"]["run"] == "one"


def test_a_full_disk_names_the_file(run, tmp_path):
    told = r"x.safetensors: cannot be written \(.*File too large"
    with file_size_limit(10_000), pytest.raises(WriteError, match=told):
        export(run, tmp_path / "x.safetensors")
    assert not os.listdir(tmp_path)


def test_a_difference_is_an_error_that_leaves_no_file(run, tmp_path, monkeypatch):
    convert, read = FORMATS["safetensors"]

    def wrong(backbone, *rest):
        backbone.conv5[0].conv2[1].bias += 1e-3
        content = convert(backbone, *rest)
        backbone.conv5[0].conv2[1].bias -= 1e-3
        return content

    monkeypatch.setitem(FORMATS, "safetensors", (wrong, read))
    (tmp_path / "x.safetensors").write_text("what was there before")
    with pytest.raises(TrainerError, match=r"differs from the original by 0.001 in conv5, expected at most"):
        export(run, tmp_path / "x.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_text() == "what was there before"


def test_comparison_by_hand():
    eager = {"conv1": torch.tensor([1.0, -10.0]), "conv2": torch.tensor([2.0])}
    near = {"conv1": torch.tensor([1.0, -10.0 + 5 * TOLERANCE]), "conv2": torch.tensor([2.0])}
    assert compare(eager, near) == pytest.approx(5 * TOLERANCE, rel=1e-2)
    for stage, values, message in (
        ("conv2", [2 + 3 * TOLERANCE], "in conv2, expected at most 0.0002"),
        ("conv1", [torch.nan, -10.0], "by nan in conv1"),
    ):
        with pytest.raises(TrainerError, match=message):
            compare(eager, near | {stage: torch.tensor(values)})
    with pytest.raises(TrainerError, match="returns conv1, expected conv1, conv2"):
        compare(eager, {"conv1": eager["conv1"]})


def test_what_cannot_be_exported(run, tmp_path, monkeypatch):
    with pytest.raises(TrainerError, match="expected the name of a file in an existing folder"):
        export(run, tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(TrainerError, match="expected the name of a file"):
        export(run, tmp_path)
    with pytest.raises(TrainerError, match=r"x.pt: ends in .pt, expected .safetensors, .onnx; or give the format"):
        export(run, tmp_path / "x.pt")
    with pytest.raises(TrainerError, match="unknown format 'tflite', expected one of: safetensors, onnx"):
        export(run, tmp_path / "x.tflite", "tflite")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TrainerError, match=r"onnxruntime is missing; install them with: pip install 'vssl\[export\]'"):
        export(run, tmp_path / "x.onnx")
    assert not os.listdir(tmp_path)


def test_the_command(run, here):
    printed = vssl("export", run, "--out", "x", "--format", "safetensors")
    assert printed.startswith("r3d10 (width 0.06, 54,002 parameters) of one as safetensors -> x, x.json; largest")
    assert json.loads(Path("x.json").read_text())["format"] == "safetensors" and Path("x").exists()
    assert "nothing: neither a run" in vssl("export", "nothing", "--out", "y.onnx", code=1)
    assert not Path("y.onnx").exists()
