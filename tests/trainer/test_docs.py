"""What docs/ says about the trainer is true: the method and the backbone that it adds run, what it names exists."""

import importlib.util
import inspect
import re
import signal
import sys
from pathlib import Path

import pytest

from cli.main import main
from docs import tables
from tests.command import vssl
from tests.trainer.runs import SMALL, assert_same_run, at_step, rows
from trainer import backbones, checkpoint, methods
from trainer.backbones import BACKBONES
from trainer.errors import Interrupted, TrainerError
from trainer.methods import METHODS
from trainer.recipes import RECIPES
from trainer.settings import Settings
from trainer.training import train

DOCS = Path(__file__).parents[2] / "docs"
TRAINING, METHOD_PAGE, ADDING = (DOCS / name for name in ("training.md", "methods.md", "adding-a-method.md"))


def code_blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def imported(name, source, folder):
    """A module of that name made of the source; it stays in sys.modules until the caller takes it out."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def added(monkeypatch, registry, line, source, folder):
    """The module of the source, registered by a line of the page as if it stood in the package."""
    name, target = re.fullmatch(r' *"(\w+)": "([\w.:]+)",', line).groups()
    module = target.partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)  # so that it goes afterwards
    monkeypatch.setitem(registry, name, target)
    return imported(module, source, folder)


def registry_line(name):
    return next(line for line in ADDING.read_text().splitlines() if line.startswith(f'    "{name}": '))


@pytest.fixture
def arrow(tmp_path, monkeypatch):
    """The page's method, added as the page says."""
    return added(monkeypatch, METHODS, registry_line("arrow"), code_blocks(ADDING)[0], tmp_path).Arrow


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """The page's backbone, added as the page says."""
    return added(monkeypatch, BACKBONES, registry_line("plain"), code_blocks(ADDING)[2], tmp_path).plain


FEW = ("--epochs", 1, "--width", 0.06, "--batch-size", 4, "--workers", 0, "--device", "cpu")


def test_the_new_method_is_used_by_the_command_line(arrow, demo, here):
    out = vssl("train", "--method", "arrow", "--shards", demo, "--set", "backwards=0.3", *FEW)
    assert "arrow, r3d10 (width 0.06" in out and "-> runs/arrow-r3d10-1" in out
    assert checkpoint.load("arrow-r3d10-1").meta["settings"]["options"] == {"arrow": {"backwards": 0.3}}
    vssl("finetune", "--checkpoint", "arrow-r3d10-1", "--shards", demo, "--holdout", 0, *FEW)
    assert "| `arrow` | is the clip played forwards or backwards |" in "\n".join(tables.methods())
    assert "| `arrow` | `backwards` | 0.5 | 0 or more and less than 1 |" in "\n".join(tables.options())


def test_the_new_backbone_is_used_by_the_command_line(plain, demo, here):
    out = vssl("train", "--backbone", "plain", "--shards", demo, "--run", "one", *FEW)
    assert "pace, plain (width 0.06" in out
    assert checkpoint.load("one").meta["settings"]["backbone"] == "plain"
    vssl("finetune", "--checkpoint", "one", "--shards", demo, "--holdout", 0, "--run", "two", *FEW)
    vssl("eval", "knn", "--checkpoint", "one", "--shards", demo, "--workers", 0)
    assert "| 256 | Three convolutions with stride 2, batch normalisation and ReLU |" in "\n".join(tables.backbones())


def test_the_new_method_trains_and_resumes_bit_for_bit(arrow, demo, here, monkeypatch):
    settings = Settings(
        **SMALL, method="arrow", epochs=1, curriculum=0.5, holdout=0.3, options={"arrow": {"backwards": 0.3}}
    )
    whole = train(settings, demo)
    assert whole.name == "arrow-r3d10-1" and len(rows(whole)) > 4
    assert {"loss", "accuracy", "chance", "clips_share"} <= rows(whole)[0].keys()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        train(settings, demo, "stopped")
    assert_same_run(train(None, demo, resume="stopped"), whole)


def test_the_new_method_trains_beside_another_and_refuses_nonsense(arrow, demo, here):
    run = train(Settings(**SMALL, method="arrow+pace", epochs=1, weights=[1, 0.5]), demo)
    row = {name: float(value) for name, value in rows(run)[0].items()}
    assert row["loss"] == pytest.approx(row["arrow.loss"] + 0.5 * row["pace.loss"], rel=1e-5)
    with pytest.raises(TrainerError, match="backwards is 1.0, expected 0 or more and less than 1"):
        train(Settings(**SMALL, method="arrow", options={"arrow": {"backwards": 1.0}}), demo)


def test_the_tests_of_the_new_method_pass(arrow, demo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_arrow", None)
    module = imported("test_arrow", code_blocks(ADDING)[1], tmp_path)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        assert list(inspect.signature(test).parameters) == ["demo"]
        test(demo)


def test_the_page_registers_where_methods_and_backbones_are():
    text = ADDING.read_text()
    assert (
        "`METHODS` of `trainer/methods/__init__.py`" in text
        and "`BACKBONES` of `trainer/backbones/__init__.py`" in text
    )
    for module, line in ((methods, '    "rotation": '), (backbones, '    "r3d10": ')):
        assert f"\n{line}" in Path(module.__file__).read_text()


def options_of(command):
    nested = getattr(command, "commands", {}).values()
    return {name for parameter in command.params for name in parameter.opts}.union(*map(options_of, nested))


def test_options_and_recipes_that_the_pages_name_exist():
    known = options_of(main) | {"--help", "--nproc-per-node", "--no-python"}
    for page in (TRAINING, METHOD_PAGE, ADDING):
        text = page.read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known
        for name in re.findall(r"--recipe ([a-z][\w-]+)", text):
            assert (RECIPES / f"{name}.yaml").exists()
