"""What all protocols share: the registry, to which one is added here, the bench, the order of stages, the blocks of the docs."""

import errno
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cli.main import main
from labelgen.errors import WriteError
from labelgen.shards import ShardReader
from tests.trainer.pages import Page
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS, features, protocol_class
from trainer.evaluate.evaluator import Evaluator, Selection, measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocol import Protocol, ProtocolOption
from trainer.settings import Settings
from trainer.training import train

ONE = Compute(8, 0, "cpu")
CENTROID = '''
"""Nearest centroid: which class has the nearest mean?"""

from trainer.evaluate.protocol import FeatureProtocol, ProtocolOption


class Centroid(FeatureProtocol):
    """Name the class whose mean is nearest."""

    title = "Nearest centroid"
    question = "Is the nearest class mean the right one?"
    items = "Each video."
    classifier = "The nearest mean of a class."
    left_out = "Videos without a label."
    source = "A test."
    options = (ProtocolOption("power", int, "Power of the distance.", default=2, least=1, shared=True),)

    def choose(self, power=2):
        self.power = power
        return super().choose()

    def predict(self, train, test, level):
        import numpy as np

        targets = self.shards.targets[train.video]
        classes = np.unique(targets)
        means = np.stack([train.x[targets == name].mean(0) for name in classes])
        distance = (np.abs(test.x[:, None] - means) ** self.power).sum(2)
        return {"accuracy": classes[distance.argmin(1)]}

    def conditions(self):
        return {**super().conditions(), "views": "10 clips of 16 frames, averaged", "classifier": f"power {self.power}"}
'''


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Eight videos, of which one protocol computes the flow."""
    folder = tmp_path_factory.mktemp("out") / "small"
    config = {**CONFIG, "flow": {"backend": "dis"}}
    write_shard(folder / "00000.h5", [20] * 8, [1] * 4 + [3] * 4, list("aabb") * 2, config=config)
    return folder


@pytest.fixture
def centroid(tmp_path, monkeypatch):
    """A protocol that is added by its file and one line."""
    (tmp_path / "centroid_of_a_test.py").write_text(CENTROID)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "centroid", "centroid_of_a_test:Centroid")
    yield
    sys.modules.pop("centroid_of_a_test", None)


def vssl(*arguments):
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_protocol_is_its_file_and_one_line(centroid, small, run):
    common = ("--shards", small, "--checkpoint", run, "--workers", 0)
    assert "centroid     Name the class whose mean is nearest." in vssl("eval", "--help")
    told = vssl("eval", "centroid", "--help")
    assert "--power INTEGER RANGE" in told and "Power of the distance.  [default:" in told and "or all" in told
    told = vssl("eval", "centroid", *common, "--power", 3)
    assert told.startswith(
        "nearest centroid on small, split split1\nmode: test part against train part; views: 10 clips"
    )
    assert "pretrained  conv5  mean" in told and str(run / "results/centroid-small-split1.json") in told
    result = json.loads((run / "results/centroid-small-split1.json").read_text())
    assert result["protocol"]["classifier"] == "power 3" and len(result["rows"]) == 2 * 5 * 2
    assert CliRunner().invoke(main, ["eval", "centroid", "--power", "0"]).exit_code == 2
    together = vssl("eval", "all", *common, "--power", 4)
    assert "nearest centroid on small, split split1" in together and "retrieval on small" in together
    result = json.loads((run / "results/centroid-small-split1.json").read_text())
    assert result["protocol"]["classifier"] == "power 4"
    vssl("report", run, "--shards", small)
    text = Page((run / "report.html").read_text()).text
    assert "Nearest centroid on small, split split1: accuracy, video, conv5, max" in text
    (run / "results/centroid-small-split1.json").unlink()
    vssl("report", run, "--shards", small)
    text = Page((run / "report.html").read_text()).text
    assert f"Nearest centroid: vssl eval centroid --checkpoint {run} --shards {small}" in text
    scores = Evaluator(small, run, compute=ONE).scores("centroid", Selection(pooling="mean"), power=4)  # as in studies
    assert {*scores.right.values()} <= {0, 1} and len(scores.right) == 4 and scores.chance is None


def test_every_protocol_declares_what_the_docs_say():
    words = ("title", "question", "items", "classifier", "left_out", "source", "__doc__")
    for name in PROTOCOLS:
        protocol = protocol_class(name)
        assert all(getattr(protocol, word).strip() for word in words) and issubclass(protocol, Protocol)
        assert len({option.argument or option.name for option in protocol.options}) == len(protocol.options)
        assert all(isinstance(option, ProtocolOption) and option.help for option in protocol.options)
    with pytest.raises(TrainerError, match="unknown protocol 'luck': there are retrieval, knn, "):
        protocol_class("luck")


@pytest.mark.parametrize("command", [["knn", "--split", "all"], ["recognition"]])  # and all: test_recognition_eval
def test_shards_are_opened_once_for_a_command(tmp_path, monkeypatch, command):
    folder, opened = tmp_path / "two", []
    config = {**CONFIG, "flow": {"backend": "dis"}}
    for shard in (0, 1):
        split = np.where(np.arange(8)[:, None] % 2 == np.arange(2), 3, 1)
        write_shard(folder / f"0000{shard}.h5", [20] * 8, split, list("aabb") * 2, config=config, splits=("x", "y"))
    method = {"recognition": "recognition"}.get(command[0], "rotation")
    settings = Settings(method=method, width=0.06, epochs=1, workers=0, batch_size=8, holdout=0.3)
    made = train(settings, folder, tmp_path / "run")
    reading = ShardReader.__init__
    monkeypatch.setattr(ShardReader, "__init__", lambda self, path: opened.append(str(path)) or reading(self, path))
    vssl("eval", *command, "--shards", folder, "--checkpoint", made, "--workers", 0)
    assert sorted(opened) == [str(folder / "00000.h5"), str(folder / "00001.h5")]


class ManyStages(nn.Module):
    """Stages whose names are sorted in another order than they stand in."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        mean = x.mean((2, 3, 4), keepdim=True)
        return {name: mean + place for place, name in enumerate(("stem", "layer9", "layer10", "head"))}


def test_stages_stand_in_the_order_of_the_network(demo, run, monkeypatch):
    source, saved = data.Shards(demo), checkpoint.load(run)
    order = [(stage, pooling) for stage in ("stem", "layer9", "layer10", "head") for pooling in ("max", "mean")]
    for _ in range(2):  # extracted, then read again
        found = features.features(saved, "pretrained", ManyStages(), source, source.videos[:2], "spread", ONE)
        assert list(found.arrays) == order
    about = next(run.glob("features/*/layer10-max.npy")).with_name("about.json")
    assert [tuple(key) for key in json.loads(about.read_text())["arrays"]] == order
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": ManyStages()})
    rows = measure("scenes", demo, run, compute=ONE)["rows"]
    stages = [row["stage"] for row in rows if row["metric"] == "accuracy" and "stage" in row]
    assert stages == ["layer9", "layer9", "layer10", "layer10", "head", "head"]


def test_features_are_kept_where_files_have_no_shared_memory_maps(demo, run, monkeypatch):
    """As on FUSE with direct_io, and with the names of macOS alone."""
    source, saved, original = data.Shards(demo), checkpoint.load(run), mmap.mmap

    def mapped(handle, length, flags=mmap.MAP_SHARED, *arguments, **options):
        if not flags & mmap.MAP_PRIVATE:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return original(handle, length, flags, *arguments, **options)

    monkeypatch.setattr(mmap, "mmap", mapped)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    for views in ("spread", "sliding"):
        made, read = (
            features.features(saved, "pretrained", ManyStages(), source, source.videos[2:4], views, ONE) for _ in "ab"
        )
        for key, array in made.arrays.items():
            assert (array == read.arrays[key]).all() and array.any(1).all()
    monkeypatch.setattr(mmap, "mmap", original)
    again = features.features(saved, "pretrained", ManyStages(), source, source.videos[2:4], "spread", ONE)
    np.testing.assert_array_equal(again.arrays["head", "mean"] - again.arrays["stem", "mean"], 3)


def test_a_full_disk_names_the_file_of_features(demo, run, monkeypatch):
    source, saved, whole = data.Shards(demo), checkpoint.load(run), features._file
    file = lambda folder, *key: Path("/dev/full") if key == ("head", "mean") else whole(folder, *key)  # noqa: E731
    monkeypatch.setattr(features, "_file", file)
    with pytest.raises(WriteError, match="/dev/full: cannot be written .No space left on device"):
        features.features(saved, "pretrained", ManyStages(), source, source.videos[4:6], "spread", ONE)
    assert not [*run.glob("features/.*.tmp")]


def test_features_of_another_version_are_not_used(demo, run, monkeypatch):
    source, saved = data.Shards(demo), checkpoint.load(run)
    extracted = []
    whole = features._extract
    monkeypatch.setattr(features, "_extract", lambda *given: extracted.append(1) or whole(*given))

    def found():
        backbone = features.networks(saved)["pretrained"]
        features.features(saved, "pretrained", backbone, source, source.videos[:3], "spread", ONE)
        return len(extracted)

    assert found() == found() == 1
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    assert found() == 2
    monkeypatch.setattr(torch, "__version__", "of another day")
    assert found() == found() == 3


class Pixels(nn.Module):
    """A network whose one stage is its input."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"pixels": x}


def test_features_are_what_this_version_gives(demo, run):
    """Whoever changes these numbers raises features.VERSION."""
    source, saved = data.Shards(demo), checkpoint.load(run)
    found = features.features(saved, "pixels", Pixels(), source, source.videos[:2], "spread", ONE)
    assert features.VERSION == 1 and found.owner.tolist() == [0] * 10 + [1] * 10
    most, mean = (found.arrays["pixels", pooling] for pooling in ("max", "mean"))
    assert most.shape == (20, 3 * 18) and mean.shape == (20, 3)
    assert most[[0, 9, 10, 19], 7] == pytest.approx([1.59, 1.63, 1.97, 2.36], abs=0.02)
    assert mean[[0, 9, 10, 19], 1] == pytest.approx([0.01, 0.35, -0.26, -0.16], abs=0.02)


def test_a_folder_that_another_process_may_still_write_stays(tmp_path, monkeypatch):
    """Of this host the lock tells, of another one age."""
    own, old = socket.gethostname(), time.time() - 30 * 24 * 3600
    for name in (f".{own}-held.tmp", f".{own}-killed.tmp", ".other-1-new.tmp", ".other-1-old.tmp", ".4194305-a.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    for path in (tmp_path / ".other-1-old.tmp" / "lock", tmp_path / ".other-1-old.tmp"):
        os.utime(path, (old, old))
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    line = [sys.executable, "-c", script, tmp_path / f".{own}-held.tmp" / "lock"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        features._keep(tmp_path / "whole", {}, lambda folder: [])
        process.stdin.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("whole", f".{own}-held.tmp", ".other-1-new.tmp", ".4194305-a.tmp")
    }
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["about.json"]
    features._keep(tmp_path / "next", {}, lambda folder: [])
    assert not (tmp_path / f".{own}-held.tmp").exists()


def test_one_bench_measures_several_protocols(demo, run):
    both = Evaluator(demo, run, compute=ONE)
    for name in ("knn", "smoothness"):
        alone, shared = measure(name, demo, run, compute=ONE), both.measure(name)
        assert alone == shared
