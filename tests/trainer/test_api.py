"""The public calls of docs/api: each has a description of its arguments and an example, and the examples run."""

import contextlib
import doctest
import inspect
import io
import pkgutil
import re
import shutil
from dataclasses import is_dataclass

import pytest
import torch

from labelgen.flow import flow
from tests.command import ROOT
from tests.labelgen.synthetic import write_video
from tests.trainer import references
from tests.trainer.studies import execute_here
from trainer.checkpoint import load
from trainer.embeddings.chosen import extractor
from trainer.embeddings.extract import Choice, ShardVideos, embed
from trainer.evaluate.features import Compute
from trainer.study import runner

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
NAMES = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
# Their arguments and examples stand elsewhere: a field of Settings has a line of help, and others belong to one call.
WITHOUT_ARGUMENTS = {"trainer.settings.Settings", "trainer.checkpoint.Checkpoint"}
WITHOUT_EXAMPLE = {"trainer.embeddings.chosen.extractor", "trainer.embeddings.extract.ShardVideos"}
STUDY = """
about: Do random weights tell the classes apart?
seeds: [0]
clips: 8
settings: {width: 0.05, backbone: c3d_light}
data: {demo: {shards: out/demo}}
rows: {pace: {method: pace}}
measures: [{protocol: retrieval, pooling: mean}]
baselines: []
"""


def arguments(found):
    """The names of the arguments of a function or a class."""
    if inspect.isclass(found) and issubclass(found, Exception):
        return []
    return [name for name in inspect.signature(found).parameters if name not in ("self", "args")]


def described(text):
    """The names in the lines `a, b : type` of a docstring in the form of numpydoc."""
    lines = re.findall(r"^([*\w]+(?:, [*\w]+)*)(?: : .+)?$", text, re.M)
    return {name.strip("*") for line in lines for name in line.split(", ")}


def test_names_are_once_on_the_pages():
    assert len(NAMES) > 50 and len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_described(name):
    found = pkgutil.resolve_name(name)
    text = inspect.cleandoc(found.__doc__)
    if name not in WITHOUT_ARGUMENTS and "Method" not in name:
        assert {*arguments(found)} <= described(text), name
    record = inspect.isclass(found) and (is_dataclass(found) or issubclass(found, tuple | Exception))
    assert record or name in WITHOUT_EXAMPLE or "\nExamples\n--------\n" in text
    if inspect.isfunction(found):
        assert "\nReturns\n-------\n" in text


def test_arguments_without_a_description_would_be_found():
    assert described("What it does.\n\nParameters\n----------\na, b : int\n    Both.\n**more\n    c : no\n") >= {
        "a",
        "b",
        "more",
    }
    assert "c" not in described("a : int\n    c : no\n")


def without_output(*job):
    """A job of a study in this process, which is quicker; its output would go into a file."""
    with contextlib.redirect_stdout(io.StringIO()):
        return execute_here(*job)


@pytest.fixture(scope="module")
def folder(demo, pace_run, tmp_path_factory):
    """A folder as docs/api/index.md describes it, with two videos, a table of features, published weights and a study."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(demo, folder / "out" / "demo")
    shutil.copytree(pace_run, folder / "runs" / "pace-r3d10-1")
    write_video(folder / "video.mp4", 40)
    write_video(folder / "videos" / "walk" / "a.mp4", 20)
    write_video(folder / "videos" / "run" / "b.mp4", 20, 1)
    (folder / "study.yaml").write_text(STUDY)
    references.vcop(published := references.Reference(), torch.zeros(1, 3, 4, 16, 16), depth=1, factorised=False)
    torch.save(published.state, folder / "vcop_r3d.pth")
    source, saved = ShardVideos(folder / "out"), load(folder / "runs" / "pace-r3d10-1")
    embed(extractor(saved, Choice(), source.config, Compute(device="cpu"), flow), source, folder / "features.parquet")
    return folder


SLOW = ["trainer.study.study.study"]  # other tests make studies, too


@pytest.mark.parametrize(
    "names",
    [[name for name in NAMES if name not in SLOW], pytest.param(SLOW, marks=pytest.mark.slow)],
    ids=["quick", "slow"],
)
def test_the_examples_run(names, folder, monkeypatch):
    """In the order of the pages, each without names from elsewhere."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(runner, "execute", without_output)
    finder, runs = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    for name in names:
        for example in finder.find(pkgutil.resolve_name(name), name, globs={}):
            runs.run(example)
    assert runs.tries > 3 * len(names) // 2 and not runs.failures
