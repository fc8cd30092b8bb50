"""The commands as a user types them."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cli.demo import STUDY
from cli.main import main
from labelgen import progress
from tests.command import ENVIRONMENT, ROOT, vssl
from tests.labelgen.synthetic import write_video
from tests.trainer.synthetic import write_shard
from trainer.study.file import read

SIZE = ("--height", "40", "--width", "48", "--crop", "32")
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def videos(tmp_path):
    """Two classes of two videos of 64 frames."""
    for label, step in (("left", -1), ("right", 1)):
        for index in range(2):
            write_video(tmp_path / "videos" / label / f"{index}.mp4", 64, index, step)
    return tmp_path / "videos"


def test_help_imports_nothing_heavy():
    """Of all commands and, whose options come from what protocols declare, of those of eval: in one interpreter."""
    code = (
        "import sys, click\n"
        "from cli.main import main\n"
        "def helps(command, *names):\n"
        "    with click.Context(command, info_name=' '.join(('vssl', *names))) as context:\n"
        "        print(command.get_help(context))\n"
        "        for name in command.list_commands(context) if isinstance(command, click.Group) else ():\n"
        "            helps(command.get_command(context, name), *names, name)\n"
        "helps(main)\n"
        "heavy = {'numpy', 'sklearn', 'torch', 'numba', 'cv2', 'av', 'h5py', 'joblib', 'yaml', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for usage in ("vssl train", "vssl eval retrieval", "vssl eval all", "vssl search", "vssl shards verify"):
        assert f"Usage: {usage}" in done.stdout


def test_choices_are_those_of_the_settings():
    from cli.train import train
    from trainer.settings import DECLARATIONS

    offered = {option.name: tuple(option.type.choices) for option in train.params if hasattr(option.type, "choices")}
    assert offered == {name: declared.choices for name, declared in DECLARATIONS.items() if declared.choices}


def commands(command=main, *names):
    """All commands without commands of their own, with their names."""
    context = click.Context(command, info_name="vssl")
    if not isinstance(command, click.Group):
        return [(names, command, context)]
    children = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [found for name, child in children for found in commands(child, *names, name)]


def test_every_command_has_its_options_in_groups_and_its_whole_summary():
    for names, command, context in commands():
        options = {option.name for option in command.params if isinstance(option, click.Option)}
        assert options >= {"verbose", "quiet"}, names
        missing = options - command.groups.keys() - {"verbose", "quiet"}
        assert not missing if command.groups else len(options) <= 12, (names, missing)
        text = command.get_help(context)
        assert all(f"\n{title}:\n" in text for name, title in command.groups.items() if name in options)
        summary = command.get_short_help_str(10_000)
        assert not summary.endswith(("...", "tab.", "fig.")) and summary.count("(") == summary.count(")")
        assert summary[:40] in " ".join(vssl(*names[:-1], "--help").split()), names
    helps = " ".join(vssl("train", "--help").split())
    for option in ("momentum", "weight-decay", "drop-every", "log-every"):
        assert f" --{option} " in helps
    assert "Budget: --epochs" in helps and "Hardware: --precision" in helps


def test_how_much_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "out" / "one" / "00000.h5", [64, 64])
    line = ("train", "--shards", "out", "--method", "pace", "--width", 0.05, "--epochs", 1, "--workers", 0)
    quiet = vssl(*line, "-q").splitlines()
    assert "trained 1 step -> runs/pace-r3d10-1" in quiet[-1]
    assert all(text.startswith("warning: ") for text in quiet[:-1])
    detailed = vssl(*line, "--momentum", 0.5, "-v")
    assert "momentum 0.5; " in detailed and "step 1: checkpoint -> runs/pace-r3d10-2/checkpoints" in detailed
    assert "-v and -q exclude each other" in vssl(*line, "-v", "-q", code=2)
    told = vssl("train", "--shards", "none", "-v", code=1)
    assert "Traceback" in told and told.splitlines()[-1].startswith("Error: none: no such folder")
    assert progress.level() == 0


def test_the_shell_completes_commands_options_and_values():
    for words, expected in (
        ("vssl finet", "finetune"),
        ("vssl train --log", "--log-every"),
        ("vssl train --optimizer l", "lars"),
    ):
        environment = {
            "_VSSL_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = CliRunner().invoke(main, prog_name="vssl", env=environment)
        assert f",{expected}\n" in done.output


def test_an_interrupted_command_says_what_is_kept(monkeypatch):
    from trainer.evaluate.evaluator import Evaluator

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "__init__", interrupted)
    assert vssl("eval", "knn", code=130) == "\nvssl eval: interrupted; finished features are kept\n"


def test_the_three_commands(videos, tmp_path, monkeypatch):
    """The first one with its workers as a user starts it, the others in this process."""
    monkeypatch.chdir(tmp_path)
    line = ["labelgen", "--dataset", "folder", "--root", videos, "--workers", "2", *SIZE]
    command = [sys.executable, "-m", "cli.main", *map(str, line)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and "4 of 4 videos labelled" in done.stdout, done.stderr
    assert "no --method given: pace" in vssl(
        "train", "--shards", "out/", "--width", 0.05, "--epochs", 2, "--workers", 1
    )
    assert (tmp_path / "runs" / "pace-r3d10-1" / "log.csv").read_text().count("\n") == 3
    assert "each video against all others" in vssl("eval", "retrieval")
    result = json.loads((tmp_path / "runs" / "pace-r3d10-1" / "results" / "retrieval-videos.json").read_text())
    assert {row["network"] for row in result["rows"]} == {"pretrained", "random", "chance"}
    for command in (("show", "labels"), ("show", "curriculum"), ("shards", "info"), ("shards", "verify")):
        vssl(*command)
    assert len(list((tmp_path / "sheets").rglob("*.png"))) == 5


def test_the_study_of_the_demo(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = read(tmp_path / "study.yaml")
    rows = ["motion statistics", "random weights", "flow histogram", "boundary histogram"]
    assert [*study.rows] == rows and study.data["demo"].shards == tmp_path / "out" / "demo"


def test_exit_codes_and_messages(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (videos / "left" / "broken.mp4").write_text("no video")
    labelgen = ("labelgen", "--dataset", "folder", "--root", videos, *SIZE, "--clips", 1)
    output = vssl(*labelgen, code=3)
    assert "left/broken.mp4: decode: cannot be decoded at opening" in output and "(00002.h5)" in output
    for code, told, *arguments in (
        (1, "seed: 0 there, 5 now", *labelgen, "--seed", 5),
        (2, "'imagenet'", "labelgen", "--dataset", "imagenet"),
        (2, "--dataset", "labelgen"),
        (2, "unknown method ''", "train", "--method", ""),
        (1, "no such folder", "train", "--shards", tmp_path / "none"),
        (1, "Error: ", "eval", "retrieval"),
    ):
        output = vssl(*arguments, code=code)
        assert told in output and "Traceback" not in output, output


@pytest.mark.skipif(not DATA.is_dir(), reason="the real videos are not here")
def test_kinetics_of_which_only_two_validation_videos_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VSSL_DATA", str(DATA))
    small = "--height 40 --width 48 --crop 32 --clips 1 --flow dis"
    for command, told in (
        (f"labelgen --dataset kinetics400 --workers 64 {small}", "2 of 2 videos labelled"),
        ("train --shards out/ --width 0.05 --epochs 1 --workers 1", "marks no video as train"),
        ("eval retrieval", ""),
    ):
        assert told in vssl(*command.split())
