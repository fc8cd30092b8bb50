"""Methods, backbones and protocols from outside of the package, by import path; nothing but the user's word imports one."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labelgen import plugins
from tests.command import vssl
from tests.trainer.runs import SMALL, at_step, rows
from trainer import checkpoint
from trainer.errors import Interrupted, TrainerError
from trainer.evaluate.results import read_results
from trainer.methods import short
from trainer.settings import Settings
from trainer.training import train

ADDING = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
PROTOCOL = '''
from trainer.evaluate.protocol import Protocol


class Counting(Protocol):
    """Count videos."""

    title = "Counting"
    question = items = classifier = left_out = source = "none"

    def rows(self):
        yield {"network": "pretrained", "metric": "videos", "value": float(len(self.shards.videos))}

    def conditions(self):
        return {"mode": "counting", "views": "none"}
'''
ARROW, PLAIN, COUNTING = "mine.arrow:Arrow", "mine.plain:plain", "mine.counting:Counting"
FEW = ("--epochs", 1, "--width", 0.06, "--batch-size", 4, "--workers", 0, "--device", "cpu")


@pytest.fixture
def mine(tmp_path_factory, monkeypatch):
    """A package outside of vssl with the method and the backbone of docs/adding-a-method.md, and a protocol; nothing is named."""
    method, _, backbone = re.findall(r"^```python\n(.*?)^```$", ADDING.read_text(), re.M | re.S)[:3]
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mine").mkdir()
    for name, source in (("__init__", ""), ("arrow", method), ("plain", backbone), ("counting", PROTOCOL)):
        (folder / "mine" / f"{name}.py").write_text(source)
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.syspath_prepend(folder)
    yield folder
    forget_imports()


def forget_imports():
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def nothing_named(monkeypatch):
    """As in a new process, in which the user has named nothing."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    forget_imports()


def test_trained_by_import_path_and_used_where_it_is_named_again(mine, demo, here, monkeypatch):
    out = vssl("train", "--method", ARROW, "--backbone", PLAIN, "--shards", demo, "--set", "backwards=0.3", *FEW)
    assert f"{ARROW}, {PLAIN} (width 0.06" in out and "-> runs/Arrow-plain-1" in out
    assert plugins.named() == [ARROW, PLAIN]
    settings = checkpoint.load("Arrow-plain-1").meta["settings"]
    assert (settings["method"], settings["backbone"]) == (ARROW, PLAIN)
    assert settings["options"] == {ARROW: {"backwards": 0.3}}
    evaluated = ("eval", "pretext", "--checkpoint", "Arrow-plain-1", "--shards", demo, "--workers", 0)
    nothing_named(monkeypatch)
    told = vssl(*evaluated, code=1)
    assert f"'{ARROW}' is code outside of vssl" in told and f"{plugins.VARIABLE}=MODULE:NAME" in told
    assert "mine" not in sys.modules  # the checkpoint alone has imported nothing
    assert "accuracy" in vssl("--use", ARROW, "--use", PLAIN, *evaluated)
    nothing_named(monkeypatch)
    monkeypatch.setenv(plugins.VARIABLE, f"{ARROW} {PLAIN}")
    out = vssl("finetune", "--checkpoint", "Arrow-plain-1", "--shards", demo, "--holdout", 0, *FEW)
    assert "runs/recognition-plain-1" in out


def test_an_absent_module_and_other_objects_are_told(mine, demo, here, monkeypatch):
    vssl("train", "--method", ARROW, "--shards", demo, *FEW)
    nothing_named(monkeypatch)
    shutil.rmtree(mine / "mine")
    monkeypatch.setenv(plugins.VARIABLE, ARROW)
    with pytest.raises(TrainerError, match=f"{ARROW}: cannot be imported \\(No module named 'mine'\\).*PYTHONPATH"):
        checkpoint.load("Arrow-r3d10-1")
    given = ("train", "--shards", demo, *FEW)
    for arguments, told in (
        (
            (*given, "--method", "os:getcwd"),
            "os:getcwd: <built-in function getcwd>, expected a subclass of trainer.methods",
        ),
        (
            (*given, "--backbone", "builtins:float"),
            "builtins:float: it returns float, expected trainer.backbones.layers.Stages",
        ),
        ((*given, "--backbone", "os:sep"), "os:sep: it does not make a backbone ('str' object is not callable)"),
        ((*given, "--method", "os.path:"), "'os.path:': expected an import path MODULE:NAME"),
        (("eval", "os:getcwd"), "expected a subclass of trainer.evaluate.protocol.Protocol"),
        (("--use", "none.there:x", "eval", "knn"), "none.there:x: cannot be imported (No module named 'none')"),
    ):
        nothing_named(monkeypatch)
        assert told in vssl(*arguments, code=2)


def test_joint_and_resumed(mine, demo, here, monkeypatch):
    plugins.use(ARROW)
    both = Settings(**SMALL, method=f"{ARROW}+pace", epochs=2, weights=[1, 0.5], ema=0.9)
    whole = train(both, demo)
    assert whole.name == "Arrow+pace-r3d10-1" and short(both.method) == "Arrow+pace"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        train(both, demo, "stopped")
    assert rows(train(None, demo, resume="stopped")) == rows(whole)
    assert {f"{ARROW}.loss", "pace.loss", "loss"} <= rows(whole)[0].keys()
    first, second = checkpoint.load(whole).weights, checkpoint.load("stopped").weights
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_a_protocol_by_import_path(mine, demo, pace_run, here, monkeypatch):
    run = shutil.copytree(pace_run, "run")
    measured = ("--checkpoint", run, "--shards", demo)
    assert "Count videos." in vssl("eval", COUNTING, "--help")
    assert "counting on demo" in vssl("eval", COUNTING, *measured)
    (stored,) = read_results(Path(run))[0]
    assert stored.kind == COUNTING and stored.title == "Counting on demo, split split1"
    vssl("report", run, "--shards", demo)
    assert "Counting on demo" in (Path(run) / "report.html").read_text()
    nothing_named(monkeypatch)
    assert read_results(Path(run))[0][0].protocol_type is None and "mine" not in sys.modules


@pytest.mark.parametrize("name", ["method", "backbone"])
def test_a_checkpoint_of_a_stranger_imports_nothing(name, pace_run, tmp_path, monkeypatch):
    """Neither what it names, nor what is only named for something else."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('sprung').touch()\nevil = print\n")
    monkeypatch.syspath_prepend(trap)
    monkeypatch.setenv(plugins.VARIABLE, "evil:other")
    saved = checkpoint.load(pace_run)
    for path in ("evil:evil", "pace+evil:evil", "evil:evil.sub"):
        meta = {**saved.meta, "settings": {**saved.meta["settings"], name: path}}
        save_file(saved.weights, tmp_path / "gift.safetensors", {"vssl": json.dumps(meta)})
        with pytest.raises(TrainerError, match=r"gift.safetensors: .*code outside of vssl"):
            checkpoint.load(tmp_path / "gift.safetensors")
    assert not (trap / "sprung").exists() and "evil" not in sys.modules
