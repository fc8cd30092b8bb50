"""The recipes say what the papers say, and where; and they run."""

import json
import re
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from labelgen.config import Config
from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data
from trainer.backbones import BACKBONES
from trainer.extends import chain
from trainer.methods import METHODS, method_class
from trainer.recipes import RECIPES, read, recipe
from trainer.settings import resolve, resumed

NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))
SOURCE = re.compile(r"assumed|(thesis|vcop|skip-clip|tce|ascnet|pyslowfast|cvrl|coclr|rspnet|lejepa),? \S.*")
ALWAYS = {
    "method",
    "repeats",
    "epochs",
    "batch_size",
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "schedule",
    "jitter",
}

# From the texts of the papers and the authors' code; lr, batch, epochs, schedule, drop_every and what else is published.
SGD = {"optimizer": "sgd", "momentum": 0.9, "schedule": "step"}
THESIS = SGD | {"batch_size": 30, "drop_every": 6, "weight_decay": 5e-3}
SIZE = {"height": 128, "width": 171, "crop": 112}
S3DG = {"height": 256, "width": 256, "crop": 224, "clip_length": 64}
PATTERNS = ["grid", "rings", "triangles"]
STATISTICS = THESIS | SIZE | {"lr": 5e-4, "epochs": 20, "targets": "raw", "hidden": 0, "patterns": PATTERNS}
STATISTICS |= {"jitter": "none", "parts": "both", "global_labels": True, "curriculum": 0, "repeats": 1, "mirror": True}
UCF, KINETICS = {"split": "1", "clips": None}, {"split": None, "clips": 20}
LIGHT = STATISTICS | UCF | {"lr": 1e-3, "epochs": 18, "backbone": "c3d_light", "hidden": 2048, "mirror": False}
MOTION = LIGHT | {"parts": "motion"}
ONE_TO_FOUR = ["1", "2", "3", "4"]
PACE = (
    THESIS
    | SIZE
    | {"lr": 1e-3, "epochs": 20, "split": "1", "paces": ONE_TO_FOUR, "jitter": "frame", "contrast": "none"}
)
PACE |= {"repeats": 10, "rows": 200, "allow_wrap": True, "pace_weight": 1, "random_backwards": False}
PLAIN = PACE | {"jitter": "none"}
PACE_S3DG = {name: value for name, value in PACE.items() if name != "allow_wrap"} | S3DG
PACE_S3DG |= {"lr": 1e-3, "batch_size": 32, "epochs": 18, "rows": 180, "wrap_any": True}
CONTEXT = PACE | {"contrast": "same-context", "contrast_weight": 0.1, "rows": 400}
SAME_PACE = PACE | {"contrast": "same-pace", "contrast_weight": 0.1, "literal": True}
ALONE = {"pace_weight": 0, "contrast_weight": 1}
ORDER = SGD | {"lr": 1e-3, "batch_size": 8, "epochs": 300, "weight_decay": 5e-4, "schedule": "constant", "rows": 300}
ORDER |= SIZE | {"order_clips": 3, "jitter": "none", "holdout": 800 / 9537, "split": "1"}
TCE = SGD | {"lr": 0.03, "batch_size": 100, "epochs": 50, "drop_every": 25, "weight_decay": 1e-4, "crop": 224}
TCE |= {"temperature": 0.07, "negatives": 8192, "lo": -1, "hi": 1, "rotation_weight": 1, "loss": "nce"}
FINETUNE = THESIS | {"method": "recognition", "lr": 3e-3, "epochs": 20, "repeats": 10, "mirror": True, "hidden": 0}
ASCNET = {"speeds": [1, 2], "optimizer": "sgd"}
PYSLOWFAST = {"batch_size": 64, "epochs": 200, "schedule": "cosine", "momentum": 0.9, "crop": 224, "clip_length": 8}
PYSLOWFAST |= {"jitter": "contrast", "crop_area": [0.2, 0.766], "color_strength": 0.75, "stride": 8, "clips": 2}
LARS = {"optimizer": "lars", "weight_decay": 1e-6}
SIMCLR = PYSLOWFAST | LARS | {"lr": 1.2, "layers": 3, "hidden": 2048, "outputs": 128, "temperature": 0.1}
CVRL = {"batch_size": 1024, "lr": 0.32, "epochs": 800, "optimizer": "sgd", "stride": 2, "layers": 4, "batch_norm": True}
MOCO = PYSLOWFAST | {"lr": 2 * 0.1, "weight_decay": 1e-4 / 2, "optimizer": "sgd", "temperature": 0.1, "layers": 3}
MOCO |= {"queue": 65536, "decay": 0.994, "rising": True, "symmetric": True, "hidden": 2048, "outputs": 128}
COCLR = {"lr": 1e-3, "epochs": 300, "batch_size": 64, "weight_decay": 1e-5, "temperature": 0.07, "queue": 2048}
COCLR |= {"decay": 0.999, "rising": False, "layers": 2, "symmetric": False, "clip_length": 32, "crop": 128}
COCLR |= {"drop_every": 250, "color_strength": 0.5, "crop_area": [0.2, 1], "optimizer": "adamw"}
BYOL = PYSLOWFAST | LARS | {"lr": 0.6, "layers": 2, "hidden": 4096, "outputs": 256, "temperature": 0.5, "decay": 0.996}
RSPNET = {"speeds": [1, 2], "queue": 16384, "temperature": 0.07, "decay": 0.999, "margin": 2, "speed_weight": 1}
RSPNET |= {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "lr": 0.1, "weight_decay": 1e-4, "epochs": 200}
RSPNET |= {"batch_size": 64, "jitter": "contrast", "crop_area": [0.4, 1], "crop": 112}
LEJEPA = {
    "optimizer": "adamw",
    "lr": 5e-4,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "epochs": 100,
    "batch_size": 256,
}
LEJEPA |= {"clips": 4, "layers": 3, "hidden": 2048, "outputs": 128, "directions": 1024, "crop_area": [0.3, 1]}
PUBLISHED = {
    "statistics-c3d_light-ucf101": LIGHT,
    "statistics-c3d_light-ucf101-motion": MOTION,
    "statistics-c3d_light-ucf101-appearance": LIGHT | {"parts": "appearance"},
    "statistics-c3d_light-ucf101-motion-pattern1": MOTION | {"patterns": ["grid"], "global_labels": False},
    "statistics-c3d_light-ucf101-motion-pattern2": MOTION | {"patterns": ["rings"], "global_labels": False},
    "statistics-c3d_light-ucf101-motion-pattern3": MOTION | {"patterns": ["triangles"], "global_labels": False},
    "statistics-c3d_light-ucf101-motion-patterns": MOTION | {"global_labels": False},
    "statistics-c3d_light-ucf101-motion-global": MOTION | {"patterns": []},
    "statistics-c3d_light-kinetics400": LIGHT | KINETICS | {"clips": 18},
    "statistics-c3d-ucf101": STATISTICS | UCF,
    "statistics-r3d10-ucf101": STATISTICS | UCF,
    "statistics-r2plus1d10-ucf101": STATISTICS | UCF,
    "statistics-c3d-kinetics400": STATISTICS | KINETICS,
    "statistics-r3d10-kinetics400": STATISTICS | KINETICS,
    "statistics-r2plus1d10-kinetics400": STATISTICS | KINETICS,
    "statistics-r2plus1d10-kinetics400-curriculum": STATISTICS | KINETICS | {"curriculum": 0.5, "pacing": "single"},
    "statistics-r2plus1d10-kinetics400-half": STATISTICS | KINETICS | {"fraction": 0.5},
    "statistics-r2plus1d10-kinetics400-easy": STATISTICS | KINETICS | {"subset": "easy"},
    "statistics-r2plus1d10-kinetics400-hard": STATISTICS | KINETICS | {"subset": "hard"},
    "pace-c3d-ucf101": PACE,
    "pace-r3d10-ucf101": PACE,
    "pace-r2plus1d10-ucf101": PACE,
    "pace-r2plus1d10-ucf101-same-context": CONTEXT | {"literal": False},
    "pace-r2plus1d10-ucf101-same-context-literal": CONTEXT | {"literal": True},
    "pace-r2plus1d10-ucf101-same-context-alone": CONTEXT | {"literal": True} | ALONE,
    "pace-r2plus1d10-ucf101-same-pace-literal": SAME_PACE,
    "pace-r2plus1d10-ucf101-same-pace-alone": SAME_PACE | ALONE,
    "pace-r2plus1d10-kinetics400-same-context": CONTEXT
    | {"split": None, "repeats": 1, "rows": 40, "allow_wrap": False},
    "pace-r2plus1d10-ucf101-1to3": PLAIN | {"paces": ["1", "2", "3"]},
    "pace-r2plus1d10-ucf101-1to4-no-jitter": PLAIN,
    "pace-r2plus1d10-ucf101-1to5": PLAIN | {"paces": [*ONE_TO_FOUR, "5"]},
    "pace-r2plus1d10-ucf101-1to6": PLAIN | {"paces": [*ONE_TO_FOUR, "5", "6"]},
    "pace-r2plus1d10-ucf101-slow": PACE | {"paces": ["1/4", "1/3", "1/2", "1"]},
    "pace-r2plus1d10-ucf101-slow-fast": PACE | {"paces": ["1/3", "1/2", "1", "2", "3"]},
    "pace-r2plus1d10-ucf101-step2": PACE | {"paces": ["1", "3", "5", "7"]},
    "pace-r2plus1d10-ucf101-step3": PACE | {"paces": ["1", "4", "7", "10"]},
    "pace-r2plus1d10-ucf101-backwards": PACE | {"paces": [*ONE_TO_FOUR, "-1", "-2", "-3", "-4"]},
    "pace-r2plus1d10-ucf101-random-backwards": PACE | {"random_backwards": True},
    "pace-s3dg-ucf101": PACE_S3DG,
    "order-c3d-ucf101": ORDER,
    "order-r3d10-ucf101": ORDER,
    "order-r2plus1d10-ucf101": ORDER,
    "order-c3d-ucf101-4clips": ORDER | {"order_clips": 4},
    "skip_clip-resnet3d18-ucf101": {"backbone": "resnet3d18", "optimizer": "sgd"},
    "skip_clip-resnet3d18-ucf101-rotation": {"negative_weight": 0},
    "skip_clip-resnet3d18-ucf101-base": {"negative_weight": 0, "rotation_weight": 0},
    "tce-resnet18-kinetics400": TCE,
    "tce-resnet50-kinetics400": TCE,
    "tce-resnet18-ucf101": TCE | {"split": "1", "negatives": 0},
    "tce-resnet18-ucf101-no-mining": TCE | {"negatives": 0, "hi": -1},
    "ascnet-r3d18-kinetics400": ASCNET,
    "ascnet-s3dg-kinetics400": ASCNET | S3DG,
    "simclr-resnet3d18-kinetics400": SIMCLR | {"batch_norm": False},
    "simclr-resnet3d18-kinetics400-cvrl": SIMCLR
    | CVRL
    | {"clip_length": 16, "crop_area": [0.3, 1]}
    | {"color_strength": 1},
    "moco-resnet3d18-kinetics400": MOCO,
    "moco-resnet3d18-kinetics400-4clips": MOCO | {"clips": 4, "lr": 4 * 0.1, "weight_decay": 1e-4 / 4},
    "moco-s3d-ucf101": COCLR,
    "byol-resnet3d18-kinetics400": BYOL | {"batch_norm": True},
    "byol-resnet3d18-kinetics400-4clips": BYOL | {"clips": 4, "stride": 4, "clip_length": 16, "lr": 1.2},
    "rspnet-resnet3d18-kinetics400": RSPNET,
    "rspnet-c3d-kinetics400": RSPNET,
    "rspnet-r2plus1d10-kinetics400": RSPNET | {"lr": 0.05},
    "rspnet-s3dg-kinetics400": RSPNET | {"lr": 0.05, "crop": 224},
    "lejepa-resnet3d18-kinetics400": LEJEPA,
    "pace-s3dg-kinetics400-speednet": S3DG | {"paces": ["1", "2"], "contrast": "none"},
    "rotation-resnet3d18-kinetics400": {"backbone": "resnet3d18", "crop": 224, "clips": 20},
    "finetune-thesis": FINETUNE | SIZE,
    "finetune-thesis-light": FINETUNE | SIZE | {"epochs": 18, "hidden": 2048, "mirror": False},
    "finetune-thesis-s3dg": FINETUNE | S3DG | {"epochs": 18, "batch_size": 32},
    "finetune-vcop": {"lr": 1e-3, "batch_size": 8, "epochs": 150, "momentum": 0.9, "weight_decay": 5e-4}
    | SIZE
    | {"mirror": False, "dropout": 0, "holdout": 800 / 9537, "repeats": 1},
    "finetune-tce": SGD
    | {"lr": 0.05, "batch_size": 100, "epochs": 900, "drop_every": 375, "weight_decay": 0}
    | {"mirror": False, "dropout": 0, "crop": 224, "width": 224, "repeats": 1},
    "finetune-skip_clip": {"freeze": False, "crop": 112},
    "finetune-ascnet": {"freeze": False, "crop": 112},
    "finetune-ascnet-s3dg": S3DG | {"freeze": False},
}


def entries(name):
    """(where, key, value, source) of every entry of a recipe."""
    has = read(name)
    options = has["settings"].pop("options", {})
    for where, part in (("settings", has["settings"]), ("options", options), ("shards", has["shards"])):
        for key, entry in part.items():
            yield where, key, entry["value"], entry["source"]


def files(name):
    """(path, content) of the files that a recipe is made of, its own last."""
    return list(chain(RECIPES / f"{name}.yaml", lambda base, _: RECIPES / f"{base}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_differs_from_the_one_that_it_extends(name):
    *bases, (_, own) = files(name)
    assert len(bases) < 4 and len(own["about"]) > 40
    if bases:
        base = read(bases[-1][0].stem)
        parts = [(own.get(part, {}), base[part]) for part in ("settings", "shards")]
        parts += [tuple(part.pop("options", {}) for part in parts[0])]
        assert any(given for given, _ in parts)
        assert not [key for given, extended in parts for key in given if given[key] == extended.get(key)]


def test_every_recipe_is_in_the_table():
    assert sorted(PUBLISHED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_published_values(name):
    settings, shards = recipe(name)
    resolved = asdict(resolve(settings))
    values = (
        resolved | {"split": settings.split and str(settings.split)} | resolved["options"][settings.method] | shards
    )
    expected = PUBLISHED[name]
    for key, value in expected.items():
        found = values.get(key, getattr(Config, key, None))
        assert found == (pytest.approx(value, abs=5e-4) if key == "holdout" else value), key
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


@pytest.mark.parametrize("name", NAMES)
def test_what_the_shards_store_is_enough_for_every_draw(name):
    settings, shards = recipe(name)
    showings = settings.epochs * (settings.repeats or 1)
    if settings.method == "pace":
        assert shards["rows"] == showings * (2 if settings.options["pace"]["contrast"] == "same-context" else 1)
    if settings.method == "order":
        assert shards["rows"] == showings
    if method_class(settings.method).of_labelled_clips and shards["clips"] is not None:
        assert shards["clips"] == showings


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("pace-") and "ucf101" in name])
def test_every_set_of_paces_is_trained_on_all_videos_of_ucf101(name):
    shards = recipe(name)[1]
    widest = max(abs(Fraction(pace)) for pace in shards["paces"])
    frames = int((shards.get("clip_length", 16) - 1) * widest) + 1
    assert shards.get("allow_wrap") or shards["wrap_any"]
    abouts = [" ".join(own["about"].split()) for _, own in files(name)]
    about = next(about for about in reversed(abouts) if "fewer than the " in about)
    assert f"fewer than the {frames} frames" in about and ("% of UCF101's training videos" in about) == (frames > 16)


BACKBONES_OF = {
    "finetune-thesis-light": "c3d_light",
    "finetune-thesis-s3dg": "s3dg",
    "finetune-ascnet": "r3d18",
    "finetune-ascnet-s3dg": "s3dg",
    "finetune-skip_clip": "resnet3d18",
    "finetune-tce": "resnet18",
}


@pytest.fixture(scope="module")
def shards_for(tmp_path_factory):
    """Maker of small shards of the kind that a recipe is for: its clips and paces, 6 videos of 40 x 48 pixels, 4 rows."""
    made = {}

    def make(expected: dict) -> Path:
        kind = {name: value for name, value in expected.items() if name not in ("height", "width", "crop", "rows")}
        key = json.dumps(kind, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("out") / "demo"
            length = 130 if kind.get("clip_length") == 64 else 90  # of 90, wide paces wrap; ascnet spans 2 x 64 - 1
            write_shard(made[key] / "00000.h5", [length] * 6, config=CONFIG | kind)
        return made[key]

    return make


def kind(name):
    """Method, family of the backbone, options of the method, and how the samples are chosen."""
    settings, _ = recipe(name)
    backbone = BACKBONES[BACKBONES_OF.get(name) or settings.backbone or "r3d10"].partition(":")[0]
    chosen = [key for key in ("subset", "fraction", "pacing") if getattr(settings, key) is not None]
    return settings.method, backbone, *sorted((settings.options or {}).get(settings.method, ())), *chosen


KINDS = {kind(name): name for name in reversed(NAMES)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in KINDS.values() else pytest.mark.slow) for name in NAMES]
)
def test_a_recipe_runs_two_steps(name, shards_for, here):
    settings, expected = recipe(name)
    shards = shards_for(expected)
    samples = len(method_class(settings.method).samples(data.Shards(shards, "1"), options_of(settings))[0])
    samples -= settings.holdout is not None  # a video, which is a group
    samples //= 1 if settings.fraction is None and settings.subset is None else 2
    batch = -(-(settings.repeats or 1) * samples // 2)
    command = ["finetune", "--scratch"] if name.startswith("finetune") else ["train"]
    command += ["--backbone", BACKBONES_OF[name]] if name in BACKBONES_OF else []
    small = ["--epochs", 1, "--width", 0.06, "--batch-size", batch, "--workers", 0, "--device", "cpu", "--run", "one"]
    done = CliRunner().invoke(main, [*command, "--recipe", name, "--shards", shards, *small], standalone_mode=False)
    assert done.exception is None, done.output
    told = [line for line in done.output.splitlines() if line.startswith("warning: the recipe expects shards with")]
    differing = {"height", "width", "crop"} | ({"rows"} & expected.keys())
    assert {line.split()[6] for line in told} == differing
    saved = checkpoint.load("one").meta
    has = saved["settings"]
    assert (saved["step"], has["epochs"], has["width"], has["batch_size"]) == (2, 1, 0.06, batch)
    for key, value in asdict(resolve(settings)).items():  # all else as the recipe has it
        if key not in ("epochs", "width", "batch_size", "workers", "device", "precision", "backbone"):
            assert has[key] == value, key


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_with_its_recipe(name):
    settings, _ = recipe(name)
    assert resumed(settings, asdict(resolve(settings)), Path("one")) == resolve(settings)


def options_of(settings):
    return resolve(settings).options[settings.method]


def test_the_recipes_cover_every_method():
    assert {recipe(name)[0].method for name in NAMES} == set(METHODS)
