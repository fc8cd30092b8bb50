"""The recipes say what the papers say, and where; and they run."""

import re
from dataclasses import asdict, fields

import pytest
import yaml
from click.testing import CliRunner

from cli.main import main
from labelgen.config import Config
from trainer import checkpoint
from trainer.backbones import BACKBONES
from trainer.methods import METHODS, method_class
from trainer.recipes import RECIPES, recipe
from trainer.settings import resolve

NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))
SOURCE = re.compile(r"assumed|(thesis|vcop|skip-clip|tce|ascnet),? \S.*")
ALWAYS = {"method", "epochs", "batch_size", "lr", "optimizer", "momentum", "weight_decay", "schedule", "jitter"}

# From the texts of the papers; lr, batch, epochs, schedule, drop_every and what else is published.
STATISTICS = {"lr": 5e-4, "batch_size": 30, "epochs": 20, "optimizer": "sgd", "schedule": "step", "drop_every": 6}
LIGHT = STATISTICS | {"lr": 1e-3, "epochs": 18, "backbone": "c3d_light", "targets": "raw", "hidden": 2048}
PACE = {"lr": 1e-3, "batch_size": 30, "epochs": 20, "optimizer": "sgd", "schedule": "step", "drop_every": 6}
ONE_TO_FOUR, SIZE = ["1", "2", "3", "4"], {"height": 128, "width": 171, "crop": 112}
CONTEXT = {"contrast": "same-context", "contrast_weight": 0.1}
ORDER = {"lr": 1e-3, "batch_size": 8, "epochs": 300, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "constant"}
ORDER |= {"order_clips": 3, "jitter": "none", "holdout": 800 / 9537} | SIZE
TCE = {"lr": 0.03, "batch_size": 100, "epochs": 50, "drop_every": 25, "momentum": 0.9, "weight_decay": 1e-4}
TCE |= {"temperature": 0.07, "negatives": 8192, "lo": -1, "hi": 1, "rotation_weight": 1, "loss": "nce", "crop": 224}
PUBLISHED = {
    "statistics-c3d_light-ucf101": LIGHT | {"parts": "both", "split": "1"},
    "statistics-c3d_light-ucf101-motion": LIGHT | {"parts": "motion"},
    "statistics-c3d_light-ucf101-appearance": LIGHT | {"parts": "appearance"},
    "statistics-c3d-ucf101": STATISTICS | {"targets": "raw", "clips": None} | SIZE,
    "statistics-r3d10-ucf101": STATISTICS | {"split": "1", "jitter": "none"} | SIZE,
    "statistics-r2plus1d10-ucf101": STATISTICS | {"split": "1", "curriculum": 0} | SIZE,
    "statistics-c3d-kinetics400": STATISTICS | {"clips": 1},
    "statistics-r3d10-kinetics400": STATISTICS | {"clips": 1},
    "statistics-r2plus1d10-kinetics400": STATISTICS | {"clips": 1, "curriculum": 0},
    "statistics-r2plus1d10-kinetics400-curriculum": STATISTICS | {"clips": 1, "curriculum": 0.5},
    "pace-c3d-ucf101": PACE | {"paces": ONE_TO_FOUR, "jitter": "frame", "contrast": "none"} | SIZE,
    "pace-r3d10-ucf101": PACE | {"paces": ONE_TO_FOUR, "jitter": "frame", "split": "1"},
    "pace-r2plus1d10-ucf101": PACE | {"paces": ONE_TO_FOUR, "jitter": "frame", "split": "1"},
    "pace-r2plus1d10-ucf101-same-context": PACE | CONTEXT | {"literal": False, "paces": ONE_TO_FOUR},
    "pace-r2plus1d10-ucf101-same-context-literal": PACE | CONTEXT | {"literal": True},
    "pace-r2plus1d10-ucf101-same-pace-literal": PACE | CONTEXT | {"contrast": "same-pace", "literal": True},
    "pace-r2plus1d10-kinetics400-same-context": PACE | CONTEXT | {"paces": ONE_TO_FOUR},
    "pace-r2plus1d10-ucf101-1to3": PACE | {"paces": ["1", "2", "3"], "jitter": "none"},
    "pace-r2plus1d10-ucf101-1to4-no-jitter": PACE | {"paces": ONE_TO_FOUR, "jitter": "none"},
    "pace-r2plus1d10-ucf101-1to5": PACE | {"paces": [*ONE_TO_FOUR, "5"], "jitter": "none"},
    "pace-r2plus1d10-ucf101-1to6": PACE | {"paces": [*ONE_TO_FOUR, "5", "6"], "jitter": "none"},
    "pace-r2plus1d10-ucf101-slow": PACE | {"paces": ["1/4", "1/3", "1/2", "1"], "jitter": "frame"},
    "pace-r2plus1d10-ucf101-slow-fast": PACE | {"paces": ["1/3", "1/2", "1", "2", "3"], "jitter": "frame"},
    "pace-r2plus1d10-ucf101-step2": PACE | {"paces": ["1", "3", "5", "7"], "jitter": "frame"},
    "pace-r2plus1d10-ucf101-step3": PACE | {"paces": ["1", "4", "7", "10"], "jitter": "frame"},
    "pace-r2plus1d10-ucf101-backwards": PACE | {"paces": [*ONE_TO_FOUR, "-1", "-2", "-3", "-4"]},
    "pace-s3dg-ucf101": PACE | {"paces": ONE_TO_FOUR, "crop": 224, "split": "1"},
    "order-c3d-ucf101": ORDER,
    "order-r3d10-ucf101": ORDER,
    "order-r2plus1d10-ucf101": ORDER | {"split": "1"},
    "order-c3d-ucf101-4clips": ORDER | {"order_clips": 4},
    "skip_clip-resnet3d18-ucf101": {"backbone": "resnet3d18", "optimizer": "sgd"},
    "skip_clip-resnet3d18-ucf101-rotation": {"negative_weight": 0},
    "skip_clip-resnet3d18-ucf101-base": {"negative_weight": 0, "rotation_weight": 0},
    "tce-resnet18-ucf101": TCE | {"split": "1"},
    "tce-resnet18-ucf101-no-mining": TCE | {"hi": -1},
    "tce-resnet18-kinetics400": TCE,
    "tce-resnet50-kinetics400": TCE | {"backbone": "resnet50"},
    "ascnet-r3d18-kinetics400": {"speeds": [1, 2], "optimizer": "sgd"},
    "ascnet-s3dg-kinetics400": {"speeds": [1, 2], "optimizer": "sgd"},
    "rotation-resnet3d18-kinetics400": {"backbone": "resnet3d18", "crop": 224},
    "finetune-thesis": {"method": "recognition", "lr": 3e-3, "batch_size": 30, "epochs": 20, "drop_every": 6} | SIZE,
    "finetune-vcop": {"lr": 1e-3, "batch_size": 8, "epochs": 150, "momentum": 0.9, "weight_decay": 5e-4} | SIZE,
}


def entries(name):
    """(where, key, value, source) of every entry of a recipe file."""
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    options = content["settings"].pop("options", {})
    for where, part in (("settings", content["settings"]), ("options", options), ("shards", content["shards"])):
        for key, entry in part.items():
            yield where, key, entry["value"], entry["source"]


def test_every_recipe_is_in_the_table():
    assert sorted(PUBLISHED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_published_values(name):
    settings, shards = recipe(name)
    resolved = asdict(resolve(settings))
    values = resolved | resolved["options"][settings.method] | shards
    expected = PUBLISHED[name]
    for key, value in expected.items():
        assert values[key] == (pytest.approx(value, abs=5e-4) if key == "holdout" else value), key
    method, backbone = name.split("-")[:2]
    if method != "finetune":
        assert (settings.method, settings.backbone) == (method, backbone) and backbone in BACKBONES
    else:  # the checkpoint has the backbone
        assert (settings.method, settings.backbone, settings.width) == ("recognition", None, None)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_to_defaults_and_all_has_a_source(name):
    settings, shards = recipe(name)
    method = method_class(settings.method)
    given = {part: {key for where, key, *_ in entries(name) if where == part} for part in ("settings", "options")}
    needed = set(ALWAYS)
    needed |= {"backbone", "width"} if settings.method != "recognition" else {"holdout"}
    needed |= {"drop_every"} if settings.schedule == "step" else set()
    needed |= {"curriculum"} if method.of_labelled_clips else set()
    assert needed <= given["settings"] and ("drop_every" in given["settings"]) == (settings.schedule == "step")
    options = (settings.options or {}).get(settings.method, {})
    unused = {"contrast_weight", "temperature", "literal"} if options.get("contrast") == "none" else set()
    unused |= {"temperature"} if options.get("literal") else set()
    assert method.options.keys() - unused == given["options"]
    assert {"height", "width", "crop"} <= shards.keys() <= {field.name for field in fields(Config)}
    assert ("paces" in shards) == (settings.method == "pace") and ("order_clips" in shards) == (
        settings.method == "order"
    )
    Config(**shards | ({"paces": tuple(shards["paces"])} if "paces" in shards else {}))
    for where, key, _, source in entries(name):
        assert SOURCE.fullmatch(source), f"{where}: {key}: {source!r}"
    about = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["about"]
    assert len(about) > 40


@pytest.mark.parametrize(
    "name",
    [
        "statistics-c3d_light-ucf101",
        "statistics-r2plus1d10-kinetics400-curriculum",
        "pace-r2plus1d10-ucf101-same-context-literal",
        "order-r3d10-ucf101",
        "skip_clip-resnet3d18-ucf101",
        "tce-resnet18-ucf101",
        "ascnet-r3d18-kinetics400",
        "rotation-resnet3d18-kinetics400",
        "finetune-thesis",
    ],
)
def test_a_recipe_of_each_method_runs(name, demo, here):
    command = ["finetune", "--scratch"] if name.startswith("finetune") else ["train"]
    small = ["--epochs", 1, "--width", 0.06, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--run", "one"]
    done = CliRunner().invoke(main, [*command, "--recipe", name, "--shards", demo, *small], standalone_mode=False)
    assert done.exception is None, done.output
    settings, shards = recipe(name)
    assert f"the recipe is for shards with crop {shards['crop']}, these have 32" in done.output
    has = checkpoint.load("one").meta["settings"]
    assert (has["epochs"], has["width"], has["batch_size"]) == (1, 0.06, 4)
    for key, value in asdict(resolve(settings)).items():  # all else as the recipe has it
        if key not in ("epochs", "width", "batch_size", "workers", "device", "precision"):
            assert has[key] == value, key


def test_the_runs_cover_every_method():
    runs = test_a_recipe_of_each_method_runs.pytestmark[0].args[1]
    assert {recipe(name)[0].method for name in runs} == set(METHODS) == {recipe(name)[0].method for name in NAMES}
