from dataclasses import asdict

import pytest
import yaml

from cli.train import finetune, train
from tests.command import vssl
from trainer.errors import SettingError, TrainerError
from trainer.methods import METHODS, method_class
from trainer.recipes import parse_options, read, recipe
from trainer.settings import DECLARATIONS, Settings, default_workers, over, resolve, resumed


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(64, None, 8), (12, None, 6), (64, "8", 4), (16, "8", 1), (2, "4", 1), (1, None, 1)],
)
def test_processes_of_one_machine_share_its_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert default_workers() == workers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pacman"}, "unknown method 'pacman', expected one of: statistics, pace"),
        ({"method": "pace+pace"}, "each method may be named once"),
        ({"backbone": "r4d"}, "unknown backbone 'r4d', expected one of: c3d_light"),
        ({"options": {"statistics": {}}}, "options of 'statistics' are given, but the method is pace"),
        ({"options": {"pace": {"targets": "raw"}}}, "targets is no option of method pace: it has contrast"),
        (
            {"options": {"pace": {"contrast": "all"}}},
            "contrast is 'all', expected one of: none, same-context, same-pace",
        ),
        ({"options": {"pace": {"temperature": "hot"}}}, "temperature is 'hot', expected a number"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 to 65536"),
        ({"batch_size": 1.5}, "batch_size is 1.5, expected a whole number"),
        ({"epochs": True}, "epochs is True, expected a whole number"),
        ({"lr": float("nan")}, "lr is nan, expected a finite number"),
        ({"lr": float("inf")}, "lr is inf, expected a finite number"),
        ({"lr": 10**400}, "lr is 10*, expected a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, expected a finite number"),
        ({"weights": [1.0, float("inf")]}, "weights is inf, expected a finite number"),
        ({"options": {"pace": {"temperature": float("nan")}}}, "temperature is nan, expected a finite number"),
        ({"method": "ascnet", "options": {"ascnet": {"speeds": [1, float("inf")]}}}, "speeds is inf, expected a whole"),
        ({"seed": 2**63}, "seed is 9223372036854775808, expected a finite number smaller than 2.63"),
        ({"width": 1e-9}, "width is 1e-09, expected 0.01 to 16"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"clip": -1.0}, "clip is -1.0, expected 0 or more"),
        ({"holdout": 1.0}, "holdout is 1.0, expected 0 or more and less than 1"),
        ({"schedule": "linear"}, "schedule is 'linear', expected one of: step, cosine, constant"),
        ({"weights": [1.0, 2.0]}, r"weights are \[1.0, 2.0\], expected one more than 0 for each of pace"),
        ({"method": "pace+statistics", "weights": [1.0, 0.0]}, "expected one more than 0 for each"),
        (
            {"method": "pace+statistics", "jitter": "contrast"},
            "jitter is contrast, but statistics learns labels of the grid crops and colours in the shards",
        ),
        ({"jitter": "contrast", "crop_area": [0.5]}, r"crop_area is \[0.5\], expected two shares of the frame"),
        ({"jitter": "contrast", "crop_area": [0.8, 0.5]}, r"crop_area is \[0.8, 0.5\], expected two shares"),
        (
            {"crop_area": [0.5, 1]},
            r"crop_area is \[0.5, 1.0\], but jitter is frame, which does not use it; leave it at \[0.2, 1.0\]",
        ),
        (
            {"method": "order", "color_strength": 0.5},
            "color_strength is 0.5, but jitter is none, which does not use it",
        ),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(TrainerError, match=message):
        resolve(Settings(**options))


def test_resolving_twice_changes_nothing():
    for settings in (Settings(), Settings(method="pace+statistics", weights=[1, 2], lr=1, split=2)):
        once = resolve(settings)
        assert resolve(once) == once
    assert once.weights == [1.0, 2.0] and once.lr == 1.0 and once.split == "2" and once.jitter is None


def test_options_from_the_command_line():
    assert parse_options(("contrast=same-pace", "temperature=1e-1"), "pace") == {
        "pace": {"contrast": "same-pace", "temperature": 0.1}
    }
    assert parse_options(("pace.literal=true", "targets=raw"), "pace+statistics") == {
        "pace": {"literal": True},
        "statistics": {"targets": "raw"},
    }
    for text in ("speeds=1,2,4", "speeds=[1, 2, 4]"):
        assert parse_options((text,), "ascnet") == {"ascnet": {"speeds": [1, 2, 4]}}
    for text, message in (
        ("contrast", "expected name=value"),
        ("colour=red", "no option 'colour'; known: pace.contrast"),
    ):
        with pytest.raises(TrainerError, match=message):
            parse_options((text,), "pace")


def write(path, settings, **more):
    content = {"about": "a test", "settings": settings, **more}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_recipe_is_read_and_the_command_line_wins(tmp_path):
    entries = {
        "method": {"value": "pace", "source": "here"},
        "lr": {"value": "1e-2", "source": "there"},
        "options": {"contrast": {"value": "same-context", "source": "assumed"}},
    }
    file = write(tmp_path / "one.yaml", entries, shards={"crop": {"value": 112, "source": "x"}})
    settings, expected = recipe(file)
    assert settings == Settings(method="pace", lr=0.01, options={"pace": {"contrast": "same-context"}})
    assert expected == {"crop": 112}
    given = Settings(lr=0.5, options={"pace": {"temperature": 1.0}})
    assert over(settings, given).options == {"pace": {"contrast": "same-context", "temperature": 1.0}}
    assert over(settings, given).lr == 0.5 and over(settings, Settings()) == settings
    with pytest.raises(TrainerError, match="the recipe is for method pace, not statistics"):
        over(settings, Settings(method="statistics"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"speed": {"value": 1, "source": "x"}}, "unknown key 'speed', expected method or"),
        ({"lr": 0.1}, r"lr is 0.1, expected .* {value: ..., source: ...}"),
        ({"lr": {"value": 0.1}}, "lr has no source"),
        ({"lr": {"value": "fast", "source": "x"}}, "lr is 'fast', expected a number"),
        ({"epochs": {"value": 1.5, "source": "x"}}, "epochs is 1.5, expected a whole number"),
        ({"options": {"colour": {"value": 1, "source": "x"}}}, "colour is no option of method pace"),
        ("all", "settings is 'all', expected a mapping"),
    ],
)
def test_recipes_with_mistakes(tmp_path, entries, message):
    with pytest.raises(TrainerError, match=message):
        recipe(write(tmp_path / "bad.yaml", entries))


def test_a_recipe_extends_another_one(tmp_path):
    write(
        tmp_path / "one.yaml",
        {"lr": {"value": 0.5, "source": "a"}, "options": {"temperature": {"value": 1.0, "source": "b"}}},
        extends="pace-r2plus1d10-ucf101-same-context",
    )
    two = write(tmp_path / "two.yaml", {}, extends="one.yaml", shards={"rows": {"value": 7, "source": "c"}})
    base, base_shards = recipe("pace-r2plus1d10-ucf101-same-context")
    settings, shards = recipe(two)
    assert settings == over(base, Settings(lr=0.5, options={"pace": {"temperature": 1.0}}))
    assert shards == base_shards | {"rows": 7} != base_shards
    (tmp_path / "three.yaml").write_text("about: nothing differs\nextends: two.yaml\n")
    assert recipe(str(tmp_path / "three.yaml")) == (settings, shards)
    entries = read(two)["settings"]
    assert entries["lr"] == {"value": 0.5, "source": "a"} and entries["epochs"] == {"value": 20, "source": "thesis 4.3"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pacy", {}, "bad.yaml: extends 'pacy': no recipe 'pacy', expected one of: .*pace-c3d-ucf101"),
        ("other.yaml", {}, "bad.yaml: extends 'other.yaml': no recipe"),
        ("bad.yaml", {}, "bad.yaml: more than 10 files .* expected fewer; does one extend itself"),
        (["pace-c3d-ucf101"], {}, r"bad.yaml: extends is \['pace-c3d-ucf101'\], expected the name of a file"),
        ("pace-c3d-ucf101", {"lr": {"value": 0.1}}, "bad.yaml: settings, lr has no source"),
        ("pace-c3d-ucf101", {"lr": {"value": -1.0, "source": "x"}}, "bad.yaml: lr is -1.0, expected more than 0"),
        ("pace-c3d-ucf101", {"speed": {"value": 1, "source": "x"}}, "bad.yaml: settings has the unknown key 'speed'"),
        ("empty.yaml", None, "bad.yaml: no settings, expected some"),
    ],
)
def test_recipes_that_extend_wrongly(tmp_path, name, settings, message):
    (tmp_path / "empty.yaml").write_text("about: nothing\n")
    content = {"about": "a test", "extends": name} | ({} if settings is None else {"settings": settings})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(TrainerError, match=message) as error:
        recipe(str(tmp_path / "bad.yaml"))
    assert not isinstance(error.value, SettingError)  # the file is wrong, not the command


def test_unknown_recipes_and_files(tmp_path):
    with pytest.raises(TrainerError, match="no recipe 'pacy', expected one of: .*; or the path of a .yaml file"):
        recipe("pacy")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(TrainerError, match="invalid YAML"):
        recipe(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("speed: 1")
    with pytest.raises(TrainerError, match="unknown key 'speed', expected about or settings or shards"):
        recipe(str(tmp_path / "x.yaml"))


def test_resuming_takes_what_the_run_has(tmp_path):
    stored = asdict(resolve(Settings(lr=0.1)))
    assert resumed(Settings(workers=5, lr=0.1), stored, tmp_path).workers == 5
    assert resumed(Settings(options={"pace": {"contrast": "none"}}), stored, tmp_path).lr == 0.1
    with pytest.raises(
        TrainerError, match="lr is 0.2, but the run has 0.1; contrast is 'same-pace', but the run has 'none'"
    ):
        resumed(Settings(lr=0.2, options={"pace": {"contrast": "same-pace"}}), stored, tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_of_every_method_make_sense(name):
    assert None not in asdict(resolve(Settings(method=name))).values()
    options = method_class(name).option_values()
    assert method_class(name).option_values(options) == options


@pytest.mark.parametrize("name", METHODS)
def test_options_outside_of_what_is_declared_are_refused(name):
    for key, option in method_class(name).options.items():
        wrong = [3 if option.type is list else [3], "chess"]
        wrong += [option.type(v) for v in (-2, -1, 0, 2, 70_000) if option.range and not option.range.holds(v)]
        for value in wrong:
            with pytest.raises(SettingError, match=rf"^{key} is .*, expected "):
                method_class(name).option_values({key: value})


@pytest.mark.parametrize("command", [train, finetune])
def test_the_command_line_offers_what_is_declared(command):
    offered = {parameter.name for parameter in command.params} - {"options"}  # --set
    assert offered & DECLARATIONS.keys() == {
        name for name, declared in DECLARATIONS.items() if command.name in declared.commands
    }


UNKNOWN = {
    "train": (
        *(
            ["--method", "chess"],
            ["--method", ""],
            ["--method", "pace+"],
            ["--recipe", ""],
            ["--method", "pace+chess"],
            ["--backbone", "chess"],
            ["--recipe", "chess"],
        ),
        *(["--set", "chess=1"], ["--set", "pace.chess=1"], ["--set", "contrast=chess"], ["--set", "chess"]),
        *(["--split", "chess"], ["--device", "chess"], ["--epochs", "0"], ["--pacing", "fixed"], ["--lr", "nan"]),
        *(["--method", "ascnet", "--set", "speeds=1"], ["--method", "tce", "--set", "lo=1", "--set", "hi=-1"]),
        *(["--method", "statistics", "--set", "patterns=chess"], ["--set", "pace_weight=0"]),
    ),
    "finetune": (
        ["--scratch", "--backbone", "chess"],
        ["--scratch", "--set", "chess=1"],
        ["--scratch", "--recipe", "chess"],
    ),
    "eval": (["chess"], ["knn", "--split", "chess"], ["knn", "--device", "chess"], ["attention", "--stage", "chess"]),
    "embed": (["--stage", "chess"], ["--device", "chess"]),
    "export": (["--out", "x.chess"], ["--out", "x.onnx", "--format", "chess"]),
}


@pytest.mark.parametrize(("command", "options"), [(name, one) for name, every in UNKNOWN.items() for one in every])
def test_an_unknown_name_or_value_is_an_error_of_usage(demo, unbroken, here, command, options):
    shards, checkpoint = ["--shards", str(demo)], ["--checkpoint", str(unbroken)]
    given = {
        "train": [*options, *shards],
        "finetune": [*options, *shards],
        "eval": options if options == ["chess"] else [*options, *shards, *checkpoint],
        "embed": [*options, *shards, *checkpoint],
        "export": [str(unbroken), *options],
    }
    assert "Error: " in vssl(command, *given[command], code=2)


def test_what_a_file_says_is_no_error_of_usage(demo, here):
    (here / "odd.yaml").write_text("about: x\nsettings: {method: {value: chess, source: assumed}}\n")
    told = vssl("train", "--shards", demo, "--recipe", "odd.yaml", code=1)
    assert "odd.yaml: unknown method 'chess'" in told
