"""Label kinds: a new one is a file and a line; what changes a stored byte changes the configuration."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from docs import tables
from labelgen import decode, flow, plugins, shards
from labelgen.config import Config
from labelgen.errors import ShardError
from labelgen.labels import LABELS, kinds, sampling
from labelgen.labels import clip as clip_module
from labelgen.labels.clip import Clip
from labelgen.labels.sampling import generator
from labelgen.manifest import load
from labelgen.run import plan
from labelgen.run.plan import configuration, file_sizes
from labelgen.shards import ShardReader, open_shards
from labelgen.shards.describe import describe
from labelgen.shards.verify import verify
from tests.command import ENVIRONMENT, ROOT, vssl
from tests.labelgen.synthetic import write_video

TINY = ("--height", "48", "--width", "64", "--crop", "32", "--rows", "4", "--flow", "dis", "--videos-per-shard", "10")


@pytest.fixture
def plugin(tmp_path):
    """A folder with the module of the page, which adds two kinds."""
    source = re.search(r"^```python\n(.*?)^```$", (ROOT / "docs" / "adding-a-label.md").read_text(), re.M | re.S)[1]
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "brightness_labels.py").write_text(source)
    return tmp_path / "plugin"


@pytest.fixture
def new_kinds(plugin, in_process, monkeypatch):
    """The kinds of the page, each added by a line."""
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setitem(LABELS, "brightness", "brightness_labels:BRIGHTNESS")
    monkeypatch.setitem(LABELS, "still", "brightness_labels:STILL")
    yield
    sys.modules.pop("brightness_labels", None)


def test_a_kind_from_outside_of_the_package_is_named_on_the_command_line(new_kinds, videos, tmp_path, monkeypatch):
    for name in ("brightness", "still"):
        monkeypatch.delitem(LABELS, name)
    monkeypatch.setenv(plugins.VARIABLE, "")
    folders = ("--dataset", "folder", "--root", videos, "--out", tmp_path / "out")
    vssl("--use", "brightness_labels:BRIGHTNESS", "labelgen", *folders, *TINY)
    (shard,) = open_shards(tmp_path / "out")
    assert shard.arrays["brightness/mean"].shape == (3, 16, 3) and "still/frame" not in shard.arrays
    LABELS.pop("brightness")  # in a process in which nothing is named
    (shard,) = open_shards(tmp_path / "out")
    assert shard.unknown == ["brightness"]
    monkeypatch.setenv(plugins.VARIABLE, "brightness_labels:BRIGHTNESS")
    assert "brightness " in vssl("shards", "info", tmp_path / "out")
    monkeypatch.setitem(LABELS, "brightness", "labelgen.labels.pace:PACE")
    refused = vssl("shards", "info", tmp_path / "out", code=2)
    assert "its kind is called 'brightness', which is the name of labelgen.labels.pace" in refused


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "videos"
    for index, n_frames in enumerate((40, 18)):
        write_video(root / f"{index}.mp4", n_frames, index)
    return root


def test_a_new_kind_is_labelled_read_verified_and_described(new_kinds, videos, tmp_path, monkeypatch):
    output = vssl("labelgen", "--dataset", "folder", "--root", videos, "--out", tmp_path / "out", *TINY)
    assert "too short: 0 videos for a clip, 2 for pace, 2 for order, 1 for still; 0 clips" in output
    assert "; 0 clips without motion; 0 clips in the dark\n" in output
    (shard,) = open_shards(tmp_path / "out")
    means = shard.arrays["brightness/mean"]
    assert means.shape == (3, 16, 3) and means.dtype == np.float32
    assert means[2] == pytest.approx(shard.frames(shard.clip_frames(2)).mean((1, 2)), abs=2)  # JPEG
    assert shard.arrays["still/frame"].shape == (2, 4) and (shard.arrays["still/frame"][1] == -1).all()
    assert (shard.arrays["still/frame"][0] == generator(0, "still", "0.mp4").integers(40, size=4)).all()
    assert shard.config["labels"]["brightness"] == {"version": 3, "weights": "equal"}
    assert [kind.name for kind in shard.kinds][-2:] == ["brightness", "still"]
    assert f"brightness {means.mean():.1f}\n" in vssl("shards", "info", tmp_path / "out")
    assert vssl("shards", "verify", tmp_path / "out") == "1 shard is undamaged\n"
    assert any("`/brightness/mean` | float32 | clips, clip_length, 3" in line for line in tables.shards())

    with h5py.File(shard.path, "r+") as file:
        file["brightness/mean"][0] = 300
    problems = verify(tmp_path / "out")[1]
    assert any("(brightness/mean is out of range)" in line for line in problems)
    assert not any("statistics" in line for line in problems)

    monkeypatch.delitem(LABELS, "brightness")  # a copy of vssl that does not know it
    (shard,) = open_shards(tmp_path / "out")
    assert shard.unknown == ["brightness"] and "brightness/mean" not in shard.arrays
    assert verify(tmp_path / "out")[1] == [f"{shard.path}: holds labels of unknown kinds: brightness"]


def test_a_shard_made_before_a_kind_was_added_is_whole(videos, tmp_path, request):
    vssl("labelgen", "--dataset", "folder", "--root", videos, "--out", tmp_path / "out", *TINY)
    request.getfixturevalue("new_kinds")
    (shard,) = open_shards(tmp_path / "out")
    assert [kind.name for kind in shard.kinds] == ["statistics", "curriculum", "pace", "order"]
    assert verify(tmp_path / "out") == (1, []) and "brightness" not in describe([shard])
    refused = vssl("labelgen", "--dataset", "folder", "--root", videos, "--out", tmp_path / "out", *TINY, code=1)
    assert "labels brightness version: None there, 3 now" in refused


def test_the_kinds_are_registered_under_their_names_and_named_after_their_groups():
    assert [kind.name for kind in kinds()] == list(LABELS)
    for kind in kinds():
        assert {field.name.split("/")[0] for field in kind.fields} == {kind.name}
        assert {field.axes[0] for field in kind.fields} == {"clips" if kind.of_clip else "videos"}


# --- versions


def clip():
    """A clip of 16 frames whose labels hang on no rounding error."""
    y, x = np.mgrid[:40, :48].astype(np.float32)
    t = np.arange(16)[:, None, None]
    frames = np.stack([(7 * x + 3 * y + 11 * t) % 256, (5 * x * y + 31 * t) % 256, (x + 13 * y * t) % 256], -1)
    flows = np.stack([(x * y / 96 + t % 5 * (x > 24))[:15], (y * y / 48 - t % 7 * (y > 11))[:15]], -1)
    return Clip.of(list(frames.astype(np.uint8)), list(flows.astype(np.float32)))


def fingerprint(kind):
    """Version of a kind, and a hash of its labels of a fixed clip or video."""
    config = Config(height=40, width=48, crop=32, order_clips=3, paces=("1/2", "1", "3"))
    made = (
        kind.of_clip(clip(), config)
        if kind.of_clip
        else kind.of_video(90, config, generator(0, kind.name, "a.avi"), np.zeros(90, np.uint8))
    )
    digest = hashlib.sha256()
    for field in kind.fields:
        digest.update(np.asarray(made[field.name], field.dtype).tobytes())
    return kind.version, digest.hexdigest()[:16]


# Where one of these changes, labels made before and after differ: raise the version of the kind, then write it here.
FINGERPRINTS = {
    "statistics": (1, "0077cf36404c8bbb"),
    "curriculum": (1, "a59b2e153fc999b5"),
    "pace": (1, "7d0f3701b0796621"),
    "order": (1, "e429a7c798d60480"),
}


def test_labels_change_with_the_version_only():
    assert {kind.name: fingerprint(kind) for kind in kinds()} == FINGERPRINTS


def test_draws_of_clips_change_with_the_version_only():
    starts = sampling.clip_starts(300, 8, 16, generator(0, "clips", "a.avi"))
    assert (sampling.VERSION, starts.tolist()) == (1, [10, 11, 26, 42, 51, 76, 166, 226])


@pytest.mark.parametrize(
    ("name", "constant", "value"),
    [
        ("statistics", "motion.MIN_MOTION", 1e3),
        ("curriculum", "curriculum.MIN_MOTION", 1e3),
        ("order", "order.GAP", 4),
    ],
)
def test_a_changed_constant_is_found_out(monkeypatch, name, constant, value):
    monkeypatch.setattr(f"labelgen.labels.{constant}", value)
    (kind,) = (kind for kind in kinds() if kind.name == name)
    assert fingerprint(kind) != FINGERPRINTS[name]


# Mean of |u| and of |v| in the quarters of the picture; in the last bits, processors differ.
FLOWS = {
    "tvl1": (2, [1.487, 0.74, 1.483, 0.724, 1.485, 0.733, 1.486, 0.716]),
    "opencv-tvl1": (1, [1.507, 0.802, 1.513, 0.794, 1.497, 0.799, 1.495, 0.784]),
    "dis": (1, [1.486, 0.699, 1.469, 0.679, 1.496, 0.732, 1.462, 0.743]),
    "dis-medium": (1, [1.479, 0.681, 1.471, 0.663, 1.483, 0.728, 1.477, 0.69]),
    "farneback": (1, [1.456, 0.66, 1.438, 0.655, 1.464, 0.672, 1.448, 0.686]),
}


def pair():
    y, x = np.mgrid[:48, :64].astype(np.float32)
    return [
        (128 + 60 * np.sin((x - dx) / 5) * np.cos((y - dy) / 7) + 40 * np.sin((x - dx) / 3 + (y - dy) / 11)).astype(
            np.uint8
        )
        for dx, dy in ((0, 0), (1.5, -0.75))
    ]


@pytest.mark.parametrize("name", flow.BACKENDS)
def test_flow_changes_with_the_version_only(name):
    field = flow.flow(*pair(), name)
    means = np.abs(field).reshape(2, 24, 2, 32, 2).mean((1, 3)).ravel()
    version, expected = FLOWS[name]
    assert flow.find(name).version == version and means == pytest.approx(expected, abs=0.003)


def test_the_parameters_of_a_flow_backend_are_those_that_it_computes_with():
    for name in flow.BACKENDS:
        backend = flow.find(name)
        assert backend.function.__kwdefaults__ == dict(backend.parameters)


STILL = """
import numpy as np

from labelgen.flow.backend import Backend

BACKEND = Backend(lambda first, second: np.full((*first.shape, 2), 1.5, np.float32), version=4, parameters={"u": 1.5})
"""


def test_new_flow_backends_and_kinds_are_a_file_and_a_line_and_known_to_workers(videos, plugin, tmp_path):
    (plugin / "still_flow.py").write_text(STILL)
    code = (
        "from labelgen.flow import BACKENDS; BACKENDS['still'] = 'still_flow:BACKEND'\n"
        "from labelgen.labels import LABELS; LABELS['brightness'] = 'brightness_labels:BRIGHTNESS'\n"
        "from cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "labelgen", videos, "--out", tmp_path, *TINY, "--flow", "still"]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{plugin}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "3 clips without motion" in done.stdout, done.stderr
    (shard,) = open_shards(tmp_path / "videos")
    assert shard.config["flow"] == {"backend": "still", "version": 4, "u": 1.5}
    assert not np.asarray(shard.arrays["statistics/valid"]).any() and shard.unknown == ["brightness"]


# --- the configuration


def identity(videos, **settings):
    data = load("folder", videos)
    return configuration(data, data.videos, file_sizes(data.videos), "all", Config(**settings), 2)


def test_whatever_changes_a_stored_byte_is_in_the_configuration(videos, monkeypatch):
    before = identity(videos)
    assert before["boundaries"] == {"version": 1, "max_flow": 20} and before["crop_step"] == 8
    assert before["labels"]["statistics"] == {"version": 1, "min_motion": 1e-3}
    assert before["labels"]["order"] == {"version": 1, "gap": 8} and before["frames"] == {"version": 3}
    assert before["flow"] == {"backend": "tvl1", "version": 2, **flow.find("tvl1").parameters}
    assert before["clip_length"] == 16
    hashes = {shards.config_hash(before)}
    statistics = replace(kinds()[0], version=2)
    monkeypatch.setitem(sys.modules, "of_test", SimpleNamespace(kind=statistics))
    changes = [
        (clip_module, "MAX_FLOW", 25),
        (clip_module, "VERSION", 2),
        (decode, "VERSION", 4),
        (sampling, "VERSION", 2),
        (plan, "GRID_STEP", 4),
        (flow, "BACKENDS", flow.BACKENDS | {"tvl1": flow.BACKENDS["dis"]}),
    ]
    for module, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            hashes.add(shards.config_hash(identity(videos)))
    monkeypatch.setitem(LABELS, "statistics", "of_test:kind")
    hashes.add(shards.config_hash(identity(videos)))
    assert len(hashes) == 2 + len(changes)


def test_expected_counts_come_from_the_manifest(tmp_path):
    write_video(tmp_path / "a" / "0.mp4", 18)
    data = load("aslan", tmp_path)
    expected = configuration(data, data.videos, file_sizes(data.videos), "all", Config(), 2)["expected"]
    assert expected == {"videos": 3697, "folds": 10, "pairs": 6000}


def test_versions_name_vssl(videos, tmp_path):
    vssl("labelgen", "--dataset", "folder", "--root", videos, "--out", tmp_path, *TINY)
    (shard,) = open_shards(tmp_path)
    assert {"vssl", "python", "numpy", "numba", "av", "h5py"} <= shard.versions.keys()
    with open(shard.path, "r+b") as file:
        file.write(b"vssl shard 2")
    with pytest.raises(ShardError, match="shard schema 2, expected 4; label the videos again"):
        ShardReader(shard.path)
    assert json.loads((tmp_path / "videos" / "report.json").read_text())["config"] == shard.config
