"""A wheel built from the repository holds all that the commands need, away from the repository."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = "name: tiny\nlabel: {folder: 2}\nsplits: {folder: 1}\n"


@pytest.mark.slow
def test_the_three_commands_run_from_the_wheel(tmp_path):
    def run(*command, cwd=tmp_path, **variables):
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source, site = tmp_path / "source", tmp_path / "site"  # a copy, since building writes into the source
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "demo", "out", "runs", "data")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", "./source")
    (wheel,) = tmp_path.glob("vssl-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(site), str(wheel))
    shutil.rmtree(source)

    away = tmp_path / "away"
    away.mkdir()
    (away / "tiny.yaml").write_text(MANIFEST)
    render = "from pathlib import Path; import labelgen.demo as d; d.render(Path('videos'), train=2, test=1); print(d.__file__)"
    assert str(site) in run("-c", render, cwd=away, PYTHONPATH=str(site))
    for command in (
        "labelgen --dataset tiny.yaml --root videos --height 40 --width 40 --crop 32 --rows 4",
        "train --epochs 1 --width 0.05 --batch-size 6 --workers 0 --device cpu",
        "eval retrieval --workers 0 --device cpu",
        "reproduce",
        "report",
    ):
        told = run("-m", "cli.main", *command.split(), cwd=away, PYTHONPATH=str(site))
    assert (away / "runs/pace-r3d10-1/report.html").exists(), told
    recipes = run(
        "-c", "from trainer.recipes import RECIPES; print(len([*RECIPES.glob('*.yaml')]))", PYTHONPATH=str(site)
    )
    assert int(recipes) == len([*(ROOT / "trainer" / "recipes").glob("*.yaml")])


def test_what_is_imported_is_declared():
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    needed = declared["options"]["install_requires"].split()
    needed += [name for value in declared["options.extras_require"].values() for name in value.split("\n") if name]
    needed = {re.match(r"[\w.-]+", name)[0].lower().replace("-", "_") for name in needed}
    imported = set()
    for folder in ("cli", "labelgen", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module)
    imported = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    known = packages_distributions() | {"cv2": ["opencv-contrib-python-headless"], "distributed": ["dask"]}
    for name in imported - {"cli", "labelgen", "trainer", "data_manifests"}:
        names = {own.lower().replace("-", "_") for own in known.get(name, [name])}
        assert names & needed, f"{name} ({', '.join(names)})"
