"""Whatever a text of a run, a result or a shard holds, the pages show it as text."""

import json
import shutil

import pytest
from safetensors.torch import save_file

from tests.command import vssl
from tests.trainer.pages import EVIL, assert_text
from tests.trainer.planted import colored
from tests.trainer.synthetic import CONFIG, video_frames, write_shard
from trainer import checkpoint
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.pages.report import Sheet, report
from trainer.settings import Settings
from trainer.training import train

CPU = Compute(16, 0, "cpu")
KEPT = ("distance", "file")  # of results: one is checked when it is read, one names a picture


def poisoned(value, kept=()):
    """The same content with markup behind every text; kept: keys whose texts stay."""
    if isinstance(value, dict):
        return {key: own if key in kept else poisoned(own, kept) for key, own in value.items()}
    if isinstance(value, list):
        return [poisoned(own, kept) for own in value]
    return value + EVIL if isinstance(value, str) else value


def poison_checkpoint(run):
    """Markup in every text of a checkpoint's metadata that is not checked against what there is, names included."""
    file = next(run.glob("checkpoints/*/weights.safetensors"))
    saved = checkpoint.load(file)
    meta = saved.meta
    free = ("dataset", "split", "classes", "config", "environment", "config_hash")
    meta |= {key: poisoned(meta[key]) for key in free}
    meta["config"][EVIL] = EVIL
    meta["samples"] = {name + EVIL: count for name, count in meta["samples"].items()} | {EVIL: 1}
    if meta["initial"]:
        meta["initial"] |= {key: poisoned(meta["initial"][key]) for key in ("dataset", "split")}
    save_file(saved.weights, file, {"vssl": json.dumps(meta)})


def poison_results(run, kept):
    for path in (run / "results").glob("*.json"):
        content = json.loads(path.read_text())
        changed = poisoned(content, (*KEPT, *kept))
        changed["protocol"][EVIL] = EVIL
        path.write_text(json.dumps(changed))


def poison_log(run):
    for name in ("log.csv", "holdout.csv"):
        head, *rows = (run / name).read_text().splitlines()
        text = EVIL.replace('"', "")
        lines = [f"{head},{text}.loss,{text}.accuracy,{text}.chance", *(f"{row},1,0.5,0.25" for row in rows)]
        (run / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The shards and two runs, with every kind of result; the second was finetuned from the first."""
    folder, runs = tmp_path_factory.mktemp("out") / "ucf101", tmp_path_factory.mktemp("runs")
    names = [f"{i}{EVIL}" for i in range(8)]
    labels = [f"{'ab'[i % 2]}{EVIL}" for i in range(8)]
    config = {**CONFIG, "flow": {"backend": "dis"}}
    write_shard(folder / "00000.h5", [64] * 8, [1] * 4 + [3] * 4, labels, names, config, frames=colored)
    settings = Settings(width=0.06, epochs=2, batch_size=2, workers=0, lr=0.01, holdout=0.3)
    first = train(settings, folder, runs / f"first{EVIL}")
    for name in ("retrieval", "knn", "linear", "scenes", "smoothness", "attention"):
        measure(name, folder, first, compute=CPU)
    settings = Settings(method="recognition", epochs=1, batch_size=4, workers=0, lr=0.01, holdout=0.3)
    second = train(settings, folder, runs / f"second{EVIL}", initial=first)
    measure("recognition", folder, second, compute=CPU)
    shutil.copytree(first / "results", second / "results", dirs_exist_ok=True)
    return folder, first, second


@pytest.fixture(
    scope="module",
    params=[(), ("network", "metric", "level", "split", "dataset")],
    ids=["all", "all but the rows' own"],
)
def pages(made, tmp_path_factory, request):
    """The two reports and the comparison, when every text is markup."""
    (folder, *runs), copies = made, tmp_path_factory.mktemp("copies")
    runs = [shutil.copytree(run, copies / run.name) for run in runs]
    for run in runs:
        poison_checkpoint(run)
        poison_results(run, request.param)
        poison_log(run)
    (runs[0] / "results" / f"damaged{EVIL}.json").write_text(json.dumps({EVIL: EVIL}))
    sheet = Sheet(f"caption{EVIL}", f"what it shows{EVIL}", video_frames(0, 1)[0])
    found = [report(run, [folder], lambda readers: ([sheet], [sheet]))[0] for run in runs]
    out = copies / "comparison.html"
    vssl("compare", *runs, "--out", out)
    return [*found, out]


def test_markup_in_any_text_is_shown_as_text(pages):
    for path in pages:
        assert_text(path, 21)


def test_no_markup_of_a_text_runs(pages, browser):
    for path in pages:
        browser.open(path, 1000)
        assert browser.run("document.title") != "evil" and browser.errors() == []
        assert browser.requests() == [path.resolve().as_uri()]
