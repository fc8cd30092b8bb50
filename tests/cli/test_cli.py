"""The commands as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from cli.demo import STUDY
from cli.main import main
from trainer.study.spec import read

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


def vssl(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, "-m", "cli.main", *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


@pytest.fixture
def videos(tmp_path):
    """Two classes of four videos of 64 frames."""
    for label in ("left", "right"):
        for index in range(4):
            path = tmp_path / "videos" / label / f"{index}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            strip = np.random.default_rng(index).integers(0, 256, (6, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=25)
                stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
                for t in range(64):
                    shown = np.ascontiguousarray(np.roll(strip, t if label == "right" else -t, 1)[:, :64])
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
                container.mux(stream.encode())
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


def test_an_interrupted_command_says_what_is_kept(monkeypatch):
    from trainer.evaluate.evaluator import Evaluator

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "__init__", interrupted)
    done = CliRunner().invoke(main, ["eval", "knn"])
    assert done.exit_code == 130
    assert done.output == "\nvssl eval: interrupted; finished features are kept\n"


def test_the_three_commands(videos, tmp_path, monkeypatch):
    size = ("--height", 40, "--width", 48, "--crop", 32)
    done = vssl("labelgen", "--dataset", "folder", "--root", videos, "--workers", 2, *size, cwd=tmp_path)
    assert done.returncode == 0 and "8 of 8 videos labelled" in done.stdout, done.stderr
    done = vssl("train", "--shards", "out/", "--width", 0.05, "--epochs", 2, "--workers", 1, cwd=tmp_path)
    assert done.returncode == 0 and "no --method given: pace" in done.stdout, done.stderr
    assert (tmp_path / "runs" / "pace-r3d10-1" / "log.csv").read_text().count("\n") == 3
    done = vssl("eval", "retrieval", cwd=tmp_path)
    assert done.returncode == 0 and "each video against all others" in done.stdout, done.stderr
    result = json.loads((tmp_path / "runs" / "pace-r3d10-1" / "results" / "retrieval-videos.json").read_text())
    assert {row["network"] for row in result["rows"]} == {"pretrained", "random", "chance"}
    monkeypatch.chdir(tmp_path)
    for command in (("show", "labels"), ("show", "curriculum"), ("shards", "info"), ("shards", "verify")):
        assert CliRunner().invoke(main, command).exit_code == 0
    assert len(list((tmp_path / "sheets").rglob("*.png"))) == 5


def test_the_study_of_the_demo(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = read(tmp_path / "study.yaml")
    rows = ["statistics", "random weights", "flow histogram", "boundary histogram"]
    assert [*study.rows] == rows and study.data["demo"].shards == tmp_path / "out" / "demo"


def test_exit_codes_and_messages(videos, tmp_path, monkeypatch):
    def run(*arguments):
        done = CliRunner().invoke(main, list(map(str, arguments)))
        return done.exit_code, done.output

    monkeypatch.chdir(tmp_path)
    (videos / "left" / "broken.mp4").write_text("no video")
    size = ("--height", 40, "--width", 48, "--crop", 32, "--clips", 1)
    labelgen = ("labelgen", "--dataset", "folder", "--root", videos)
    code, output = run(*labelgen, *size)
    assert code == 3 and "left/broken.mp4: decode: cannot be decoded at opening" in output and "(00004.h5)" in output
    for expected, told, *arguments in (
        (1, "seed: 0 there, 5 now", *labelgen, *size, "--seed", 5),
        (2, "crop is 100", *labelgen, "--crop", 100),
        (2, "'magic'", *labelgen, "--flow", "magic"),
        (2, "'imagenet'", "labelgen", "--dataset", "imagenet"),
        (2, "--dataset", "labelgen"),
        (1, "no such folder", "train", "--shards", tmp_path / "none"),
        (1, "Error: ", "eval", "retrieval"),
    ):
        code, output = run(*arguments)
        assert code == expected and told in output and "Traceback" not in output, output


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
        done = CliRunner().invoke(main, command.split())
        assert done.exit_code == 0 and told in done.output, done.output
