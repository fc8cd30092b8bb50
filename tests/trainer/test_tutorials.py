"""The tutorials, followed to the letter: their commands run as they stand, and print what the pages say."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from labelgen import plugins
from labelgen.demo import CLASSES
from tests.command import ROOT, vssl
from tests.trainer.references import Reference, torchvision
from trainer.study.file import read

TUTORIALS = ROOT / "docs" / "tutorials"
FOLDER, METHOD = TUTORIALS / "folder.md", TUTORIALS / "method.md"


@dataclass(frozen=True)
class Block:
    """A block of code: the heading above it, its language, the file that it is to be saved as, its text."""

    heading: str
    language: str
    title: str
    text: str


def blocks(page):
    found, heading = [], ""
    for line in re.findall(r"^##+ [^\n]*$|^```\w+.*?^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        else:
            language, title, text = re.fullmatch(r'```(\w+)(?: title="(.+?)")?\n(.*?)```', line, re.S).groups("")
            found.append(Block(heading, language, title, text))
    return found


def without_values(line):
    """A line of output without what differs between machines: numbers, and the names of the demo's motions."""
    return re.sub(r"[+-]?\.?\d[\d.,]*", "#", re.sub("|".join(CLASSES), "motion", " ".join(line.split())))


def assert_printed(shown, printed):
    """Every line of a page's block is printed, in this order; `...` stands for anything that the page leaves out of a line."""
    lines = iter([without_values(line) for line in printed.splitlines()])
    for line in map(without_values, shown.splitlines()):
        expected = ".*".join(map(re.escape, re.split(r" ?\.\.\. ?", line)))
        assert any(re.fullmatch(expected, own) for own in lines), f"{line}\nis not printed, or elsewhere:\n{printed}"


@pytest.mark.parametrize("page", [FOLDER, METHOD], ids=lambda page: page.stem)
def test_a_tutorial_is_short_and_has_only_blocks_that_are_tested(page):
    assert len(page.read_text().splitlines()) <= 200
    assert {block.language for block in blocks(page)} <= {"sh", "text", "python", "yaml"}
    assert all(block.title for block in blocks(page) if block.language in ("python", "yaml"))
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


SMALLER = {"train=10": "train=1"}  # a video of each motion instead of ten
CHEAP = ("1. The videos", "Without a download", "3. Search", "4. Groups and a map")


def test_the_folder_is_embedded_searched_and_grouped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = ""
    for block in blocks(FOLDER):
        if block.heading in CHEAP and block.language == "text":
            assert_printed(block.text, printed)
        elif block.heading in CHEAP:
            printed = "".join(map(run_here, block.text.splitlines()))
    assert Path("found.html").stat().st_size and Path("map.html").stat().st_size


def run_here(line):
    """What a command prints, run in this process."""
    for shown, used in (SMALLER | {"spin/003": "spin/000"}).items():
        line = line.replace(shown, used)
    program, *arguments = shlex.split(line)
    if program == "vssl":
        return vssl(*arguments)
    if program == "python":
        return exec(arguments[1], {}) or ""
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_method_has_samples_and_trains(tmp_path, monkeypatch, demo):
    files = {block.title: block.text for block in blocks(METHOD) if block.title}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "boomerang:Boomerang")
    vssl("show", "samples", "--shards", demo, "--method", "boomerang:Boomerang")
    assert re.search(r"quarter [0-3]", Path("samples.html").read_text())
    given = ("--method", "boomerang:Boomerang", "--clips", 8, "--batch-size", 4, "--width", 0.06, "--workers", 0)
    assert "chance 0.2500" in vssl("train", "--shards", demo, *given)
    assert [*read("study.yaml").rows][:3] == ["boomerang", "pace", "statistics"]
    del sys.modules["boomerang"]


def followed(page, folder):
    """What each block of commands of a page prints, in a shell that runs it to the letter, after checking what is shown."""
    programs = folder / "bin"
    programs.mkdir()
    for name, code in (("vssl", "-P -m cli.main"), ("python", ""), ("curl", f"{folder}/curl.py")):
        (programs / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}:$PYTHONPATH exec {sys.executable} {code} "$@"\n')
        (programs / name).chmod(0o755)
    (folder / "curl.py").write_text(
        f"import shutil, sys\nshutil.copy({str(folder / 'weights.pth')!r}, sys.argv[-1].rpartition('/')[2])\n"
    )
    script, shown = ["set -e"], []
    for block in blocks(page):
        if block.title:
            script.append(f"cat > {block.title} <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.language == "sh":
            script += [f"echo '@@ {len(shown)}'", block.text]
            shown.append((block, []))
        else:
            shown[-1][1].append(block.text)
    empty = folder / "empty"
    empty.mkdir()
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=empty, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    printed = re.split(r"^@@ \d+\n", done.stdout, flags=re.M)[1:]
    for (_, texts), text in zip(shown, printed, strict=True):
        for expected in texts:
            assert_printed(expected, text)
    return empty, done.stdout


@pytest.mark.slow
def test_the_folder_to_the_letter(tmp_path):
    reference = Reference()
    torchvision(reference, torch.zeros(1, 3, 4, 16, 16))
    torch.save(reference.state, tmp_path / "weights.pth")  # random ones with the names and shapes of the published file
    folder, _ = followed(FOLDER, tmp_path)
    assert {path.name for path in folder.glob("*.html")} >= {"found.html", "map.html", "compare.html", "found-own.html"}


@pytest.mark.slow
def test_the_method_to_the_letter(tmp_path):
    folder, _ = followed(METHOD, tmp_path)
    assert {path.name for path in (folder / "study").iterdir()} >= {"index.html", "table.tex", "differences.csv"}
