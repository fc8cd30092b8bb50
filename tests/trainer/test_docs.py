"""What docs/ says of the trainer holds: its tables are the code's, and the method that it adds runs."""

import importlib.util
import inspect
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from cli.main import main
from tests.trainer.test_loop import SMALL, assert_same_run, at_step, rows
from trainer import loop, methods
from trainer.backbones import BACKBONES
from trainer.errors import Interrupted, TrainerError
from trainer.loop import train
from trainer.methods import METHODS
from trainer.settings import RECIPES, Settings

DOCS = Path(loop.__file__).parents[1] / "docs"
TRAINING, ADDING = (DOCS / name for name in ("training.md", "adding-a-method.md"))


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


@pytest.fixture
def arrow(tmp_path, monkeypatch):
    """The page's method, added as the page says."""
    name = "trainer.methods.arrow"
    monkeypatch.setitem(sys.modules, name, None)  # so that it goes afterwards
    module = imported(name, code_blocks(ADDING)[0], tmp_path)
    monkeypatch.setitem(METHODS, "arrow", module.Arrow)
    return module.Arrow


def test_the_new_method_trains_and_resumes_bit_for_bit(arrow, demo, here, monkeypatch):
    settings = Settings(
        **SMALL, method="arrow", epochs=1, curriculum=0.5, holdout=0.3, options={"arrow": {"backwards": 0.3}}
    )
    whole = train(settings, demo)
    assert whole.name == "arrow-r3d10-1" and len(rows(whole)) > 4
    assert {"loss", "accuracy", "chance", "easier_half"} <= rows(whole)[0].keys()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        train(settings, demo, "stopped")
    assert_same_run(train(None, demo, resume="stopped"), whole)


def test_the_new_method_trains_beside_another_and_refuses_nonsense(arrow, demo, here):
    run = train(Settings(**SMALL, method="arrow+pace", epochs=1, weights=[1, 0.5]), demo)
    row = {name: float(value) for name, value in rows(run)[0].items()}
    assert row["loss"] == pytest.approx(row["arrow.loss"] + 0.5 * row["pace.loss"], rel=1e-5)
    with pytest.raises(TrainerError, match="backwards is 1.0, expected more than 0 and less than 1"):
        train(Settings(**SMALL, method="arrow", options={"arrow": {"backwards": 1.0}}), demo)


def test_the_tests_of_the_new_method_pass(arrow, demo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_arrow", None)
    module = imported("test_arrow", code_blocks(ADDING)[1], tmp_path)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        assert list(inspect.signature(test).parameters) == ["demo"]
        test(demo)


def test_the_page_registers_it_where_methods_are():
    text = ADDING.read_text()
    assert "    from trainer.methods.arrow import Arrow\n" in text and "`trainer/methods/__init__.py`" in text
    assert "from trainer.methods.rotation import Rotation\n" in Path(methods.__file__).read_text()


def table(page, first):
    """Cells of the rows of the table whose first heading is `first`, without its backquotes."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return found


def test_the_table_of_defaults():
    expected = []
    for name, method in METHODS.items():
        d = method.defaults
        schedule = f"/ 10 every {d['drop_every']}" if d["schedule"] == "step" else d["schedule"]
        numbers = (f"{d['lr']:g}", schedule, f"{d['momentum']:g}", f"{d['weight_decay']:g}")
        backbone = d.get("backbone", "r3d10")
        expected.append([name, *numbers, str(d["batch_size"]), str(d["epochs"]), d["jitter"], backbone])
    assert table(TRAINING, "defaults of") == expected
    assert [row[0] for row in table(TRAINING, "method")] == list(METHODS)


def test_the_table_of_options():
    expected = [
        (name, option, str(value).lower() if isinstance(value, bool) else str(value))
        for name, method in METHODS.items()
        for option, value in method.options.items()
    ]
    assert [tuple(row[:3]) for row in table(TRAINING, "options of")] == expected
    text = TRAINING.read_text()
    for method in METHODS.values():
        for choices in method.choices.values():
            assert all(f"`{choice}`" in text for choice in choices)


def test_the_table_of_backbones():
    expected = []
    for name, build in BACKBONES.items():
        with torch.device("meta"):
            backbone = build()
        parameters = sum(weight.numel() for weight in backbone.parameters())
        expected.append([name, f"{parameters:,}", str(backbone.features)])
    assert [row[:3] for row in table(TRAINING, "backbone")] == expected


def options_of(command):
    nested = getattr(command, "commands", {}).values()
    return {name for parameter in command.params for name in parameter.opts}.union(*map(options_of, nested))


def test_options_and_recipes_that_the_pages_name_exist():
    known = options_of(main) | {"--help", "--nproc-per-node", "--no-python"}
    for page in (TRAINING, ADDING):
        text = page.read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known
        for name in re.findall(r"--recipe ([a-z][\w-]+)", text):
            assert (RECIPES / f"{name}.yaml").exists()
