"""A run of imported weights: what it holds, that every path sees what its program saw, and what is written of it."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.command import vssl
from tests.labelgen.synthetic import write_video
from tests.trainer import references
from tests.trainer.references import KINETICS, Reference, scaled
from trainer import backbones, checkpoint, data, inputs
from trainer.embeddings.table import Table
from trainer.errors import SettingError, TrainerError
from trainer.evaluate.evaluator import Evaluator
from trainer.export import FORMATS, export
from trainer.inputs import Input
from trainer.network import trained_backbone
from trainer.pages.compare import compare
from trainer.settings import Settings, resolve
from trainer.training import loop
from trainer.weights.families import FAMILIES

R3D = partial(references.vcop, depth=1, factorised=False)


@pytest.fixture(scope="module")
def s3d_file(tmp_path_factory):
    """torchvision's S3D with a head, as `torch.save` writes it."""
    reference = Reference(epsilon=1e-3)
    references.s3d(reference, torch.zeros(1, 3, 8, 32, 32))
    path = tmp_path_factory.mktemp("published") / "s3d.pth"
    torch.save(reference.state | {"classifier.1.weight": torch.ones(400, 1024, 1, 1, 1)}, path)
    return path


@pytest.fixture(scope="module")
def imported(s3d_file):
    """A run of it, with short clips."""
    out = s3d_file.with_name("run")
    return out, vssl("import", s3d_file, "--out", out, "--frames", 8, "--stride", 2)


def test_import_makes_a_run_that_says_where_it_is_from(imported, s3d_file):
    run, told = imported
    assert "s3d of torchvision's s3d (Kinetics-400), 462 tensors" in told and "classifier.1.weight" in told
    assert "RGB, 0 to 1, mean 0.43216" in told and "8 frames, 2 apart at 15 per second, 224 x 224 of 256 x 256" in told
    meta = json.loads((run / "checkpoints" / "00000001" / "checkpoint.json").read_text())
    own = meta["imported"]
    assert own["file"] == "s3d.pth" and own["sha256"] == hashlib.sha256(s3d_file.read_bytes()).hexdigest()
    assert (own["family"], own["dropped"], meta["norm_epsilon"]) == ("torchvision", ["classifier.1.weight"], 1e-3)
    assert inputs.read(meta["input"]) == Input(mean=KINETICS[0], std=KINETICS[1], frames=8, stride=2)
    assert (meta["config"]["crop"], meta["config"]["clip_length"], meta["config"]["fps"]) == (224, 8, 15)


def test_the_same_import_again_changes_nothing_and_another_is_refused(imported, s3d_file, here):
    run, _ = imported
    before = (run / "checkpoints" / "00000001" / "weights.safetensors").stat()
    assert "up to date" in vssl("import", s3d_file, "--out", run, "--frames", 8, "--stride", 2)
    assert (run / "checkpoints" / "00000001" / "weights.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert "holds other weights" in vssl("import", s3d_file, "--out", run, "--frames", 8, code=1)
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").touch()
    assert "exists and holds notes.txt" in vssl("import", s3d_file, "--out", "mine", code=1)
    (here / "killed" / "checkpoints" / ".x.tmp").mkdir(parents=True)  # what a killed import leaves
    vssl("import", s3d_file, "--out", "killed")
    assert [path.name for path in (here / "killed" / "checkpoints").iterdir()] == ["00000001"]
    refused = vssl("train", "--resume", "killed", "--shards", "x", code=1)
    assert "imported weights, whose training cannot be resumed" in refused
    refused = vssl("import", s3d_file, "--out", "other", "--from", "vcop", code=1)
    assert "not those of vcop, but of: torchvision" in refused
    assert not (here / "other").exists()


def by_hand(demo, frames):
    """Features of the program's own network for the centre of frames (int64 [clips, T]) of the first video, [clips, 1024]."""
    reference = Reference(epsilon=1e-3)
    references.s3d(reference, torch.zeros(1, 3, 8, 32, 32))
    reader = data.Shards(demo).readers[0]
    pixels = torch.from_numpy(reader.frames(frames.ravel())).unflatten(0, frames.shape)[:, :, 4:36, 8:40].float()
    with torch.no_grad():
        return references.s3d(reference, scaled(*KINETICS)(pixels).permute(0, 4, 1, 2, 3)).mean((2, 3, 4)).numpy()


def close(got, expected):
    assert got.shape == expected.shape and expected.std() > 1e-3
    return np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


def test_eval_and_embed_see_what_the_program_saw(imported, demo, here):
    run = imported[0]
    opened = data.Shards(demo)
    found = Evaluator(opened, run).features("pretrained", opened, np.arange(1), "spread")
    starts = np.rint(np.linspace(0, 64 - 15, 10)).astype(int)
    assert close(np.array(found.arrays["conv5", "mean"]), by_hand(demo, starts[:, None] + 2 * np.arange(8)))
    vssl("embed", "--checkpoint", run, "--shards", demo, "--out", "x.parquet")
    vectors = np.array(pq.read_table("x.parquet")["vector"].to_pylist())[: len(range(0, 64 - 14, 7))]
    assert close(vectors, by_hand(demo, np.arange(0, 64 - 14, 7)[:, None] + 2 * np.arange(8)))


def test_trainings_that_begin_with_it_see_what_it_expects(imported, demo, here):
    run, _ = imported
    small = ("--shards", demo, "--batch-size", 2, "--workers", 0, "--device", "cpu", "--epochs", 1)
    told = vssl("train", "--from", run, "--method", "rotation", "--fraction", 0.1, *small)
    assert "(100.0 % of the parameters)" in told
    meta = checkpoint.load(here / "runs" / "rotation-s3d-1").meta
    assert meta["initial"]["imported"]["file"] == "s3d.pth" and len(meta["initial"]["weights"]) == 16
    assert meta["settings"]["backbone"] == "s3d" and meta["norm_epsilon"] == 1e-3
    expected = Input(mean=KINETICS[0], std=KINETICS[1])  # the clips are those of the shards
    assert inputs.read(meta["input"]) == expected
    settings = resolve(Settings(method="rotation", backbone="s3d", workers=0, device="cpu"))
    training = loop._Training(settings, demo, torch.device("cpu"), run)
    assert training.streams["rotation"].input == training.network.backbone.input == expected
    raw = next(training.streams["rotation"].load(range(1), 0, torch.device("cpu")))
    clips = training.streams["rotation"].on_device(raw, 0.0, torch.device("cpu")).clips
    mirrored = raw["view"]["mirror"].bool()[..., None, None, None, None]
    pixels = torch.where(mirrored, raw["clips"].flip(4), raw["clips"]).float()
    assert torch.allclose(clips, scaled(*KINETICS)(pixels.flatten(0, 1)).movedim(-1, 1), atol=1e-5)
    again = loop._Training(settings, demo, torch.device("cpu"), saved=checkpoint.load("rotation-s3d-1"))
    assert again.network.backbone.input == expected and again.network.backbone.norm_epsilon == 1e-3


def test_what_was_imported_is_exported_with_its_input(imported, here):
    run, _ = imported
    for name, form in (("a.pth", "torchvision"), ("b.safetensors", "torchvision"), ("c.safetensors", None)):
        about, difference = export(run, here / name, form)
        assert difference < 1e-3 and about["input"]["mean"] == [*KINETICS[0]] and about["norm_epsilon"] == 1e-3
        assert about["input"]["frames"] == 8 and about["stages"]["conv5"] == [1024, 1, 7, 7]
    own = json.loads((here / "a.pth.json").read_text())
    own["input"] |= {"mean": [0.45] * 3, "resize": [64, 80], "crop": [56, 56], "fps": 12.5}
    (here / "a.pth.json").write_text(json.dumps(own))
    assert "its input is that of a.pth.json" in vssl("import", "a.pth", "--out", "again")
    meta = checkpoint.load("again").meta
    assert inputs.of_run(meta).mean == (0.45,) * 3 and meta["config"]["width"] == 80 and meta["config"]["fps"] == 12.5
    (here / "a.pth.json").write_text(json.dumps(own | {"input": own["input"] | {"std": [0, 1, 1]}}))
    assert "a.pth.json: it does not give the input" in vssl("import", "a.pth", "--out", "damaged", code=1)
    reference = Reference(epsilon=1e-3)
    references.s3d(reference, torch.zeros(1, 3, 8, 32, 32))
    for state in (torch.load("a.pth", weights_only=True), load_file("b.safetensors")):
        assert state.keys() == reference.state.keys()
        assert all(torch.equal(value, reference.state[name]) for name, value in state.items())
    saved = checkpoint.load("c.safetensors")
    assert inputs.of_run(saved.meta).mean == KINETICS[0] and trained_backbone(saved).norm_epsilon == 1e-3
    with pytest.raises(TrainerError, match="vcop has no s3d, only r3d10"):
        export(run, here / "d.pth", "vcop")
    with pytest.raises(SettingError, match="or give the format"):
        export(run, here / "d.pth")


def test_pages_and_protocols_know_that_nothing_is_known_of_its_training(imported, demo, here):
    run, _ = imported
    refused = vssl("eval", "pretext", "--checkpoint", run, "--shards", demo, code=1)
    assert "imported weights, whose pretext task is unknown" in refused
    told = vssl("eval", "knn", "--checkpoint", run, "--shards", demo, "--workers", 0, "--device", "cpu")
    assert "made for crops of 224 pixels, those of the shards have 32" in told
    assert "10 clips of 8 frames, 2 apart" in told and "imported from s3d.pth, expects RGB" in told
    stored = json.loads((run / "results" / "knn-demo-split1.json").read_text())
    assert stored["protocol"]["input"].startswith("RGB, 0 to 1, mean 0.43216")
    vssl("report", run, "--shards", demo)
    page = (run / "report.html").read_text()
    assert "Imported from" in page and "torchvision&#39;s s3d" in page and "No steps logged" not in page
    about = next(iter(compare([run, shutil.copytree(run, here / "again")])["runs"].values()))
    assert {about[name] for name in ("epochs", "batch size", "optimizer", "jitter")} == {"unknown"}


def test_files_are_decoded_as_the_network_expects_them(imported, here):
    write_video(Path("videos/one.mp4").absolute(), 40)
    options = ("--videos", "videos", "--level", "video", "--views", "spread", "--workers", 0)
    vssl("embed", "--weights", imported[0], *options)
    frames = Table("features.parquet").about["settings"]["frames"]
    assert (frames["height"], frames["width"], frames["crop"], frames["fps"]) == (256, 256, 224, 15)


@pytest.mark.parametrize(
    ("program", "backbone", "network"), [("vcop", "r3d10", R3D), ("kenshohara", "resnet3d18", None)]
)
def test_what_is_written_for_a_program_is_its_own_state_dict(program, backbone, network, here):
    network, reference = network or references.resnet, Reference()
    own = backbones.create(backbone).eval()
    settings = {"backbone": backbone, "width": 1.0}
    saved = checkpoint.Checkpoint(here, here, {"settings": settings}, {})
    convert, read = FORMATS[program]
    (here / "out.pth").write_bytes(convert(own, None, saved, here / "out.pth"))
    state = torch.load("out.pth", weights_only=True)
    network(reference, torch.zeros(1, 3, 8, 32, 32))
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in reference.state.items()}
    reference.state, clips = state, torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        expected, got = network(reference, clips), own(clips)["conv5"]
        assert float((got - expected).abs().max()) < 1e-3 * float(expected.abs().max())
        assert torch.allclose(read("out.pth")(clips)["conv5"], got, rtol=1e-4, atol=1e-4 * float(got.max()))
    own.norm_epsilon = 1e-3
    with pytest.raises(TrainerError, match="has an epsilon of 0.001"):
        convert(own, None, saved, here / "out.pth")
    settings["width"] = 0.5
    with pytest.raises(TrainerError, match="only networks of full width, but this one has width 0.5"):
        convert(own, None, saved, here / "out.pth")


@pytest.mark.parametrize(
    "expected", dict.fromkeys([inputs.OURS, *(family.input for family in FAMILIES)]), ids=lambda own: own.described
)
def test_an_input_is_turned_round_and_stored(expected):
    rgb = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    values = expected.normalised(torch.from_numpy(rgb).float() / 255)
    by_hand = rgb[..., ::-1] if expected.order == "BGR" else rgb
    by_hand = (by_hand / 255 * expected.top - np.array(expected.mean)) / np.array(expected.std)
    assert np.allclose(values.numpy(), by_hand, atol=1e-4)
    assert np.abs(expected.pixels(values.numpy()).astype(int) - rgb).max() <= 1  # rounded down, as before
    assert inputs.read(json.loads(json.dumps(expected.stored()))) == expected


@pytest.mark.parametrize("change", [
    {"order": "GBR"}, {"top": 2}, {"mean": [0, 0]}, {"std": [1, 0, 1]}, {"std": [1, 1, "1"]}, {"frames": 0},
    {"frames": 10**9}, {"stride": 0}, {"stride": True}, {"mean": [0, float("nan"), 0]}, {"more": 1},
])  # fmt: skip
def test_an_input_that_makes_no_sense_is_refused(change):
    with pytest.raises(ValueError, match=r"input|more"):
        inputs.read(inputs.OURS.stored() | change)
