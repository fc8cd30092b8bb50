import csv
import json
import re
import shutil

import numpy as np
import pytest

from tests.command import vssl
from tests.trainer import planted
from tests.trainer.pages import Page
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.metrics import ItemScores, holm
from trainer.pages.compare import compare, format_table, mark, write
from trainer.settings import Settings
from trainer.training import train

CPU = Compute(16, 0, "cpu")


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """Two runs that differ in method and width, with their own retrieval results; the second one's networks have other
    dimensions, the third equals the first but for its seed."""
    folder = tmp_path_factory.mktemp("runs")
    settings = (
        Settings(width=0.06, epochs=1, workers=0),
        Settings(method="rotation", width=0.12, epochs=2, workers=0),
        Settings(width=0.06, epochs=1, workers=0, seed=1),
    )
    made = [train(own, demo, folder / name) for own, name in zip(settings, ("a", "b", "c"), strict=True)]
    for run in made[:2]:
        measure("retrieval", demo, run, compute=CPU)
    return made


def row(value, low=None, high=None, **what):
    return {**what, "value": value} | ({} if low is None else {"low": low, "high": high})


@pytest.mark.parametrize(
    "first, other, expected",
    [
        (row(50, 40, 60), row(70, 61, 80), "▲"),
        (row(50, 40, 60), row(70, 60, 80), ""),  # they touch
        (row(50, 40, 60), row(30, 20, 39.9), "▼"),
        (row(50, 40, 60), row(50, 40, 60), ""),
        (row(50), row(70, 61, 80), ""),
        (row(50, 40, 60), row(70), ""),
        (row(90, 60, 95), row(60, 55, 66), ""),  # they meet where intervals as wide on both sides would not
        (row(60, 40, 64), row(90, 65, 95), "▲"),  # and do not where those would
        (row(100, 72.2, 100), row(50, 40, 60), "▼"),
    ],
)
def test_mark(first, other, expected):
    assert mark(first, other) == expected


def put(run, name, rows, **changes):
    """A result in a run's folder, with the protocol of its retrieval result, but for these changes."""
    content = json.loads((run / "results" / "retrieval-demo-split1.json").read_text())
    content = {"protocol": content["protocol"] | changes, "rows": rows, "notes": []}
    (run / "results" / f"{name}-demo-split1.json").write_text(json.dumps(content))


def test_real_results_side_by_side(runs):
    result = compare(runs[:2])
    assert result["names"] == ["a", "b"] and len(result["tables"]) == 1
    stored = [json.loads((run / "results" / "retrieval-demo-split1.json").read_text())["rows"] for run in runs[:2]]
    own = result["tables"][0]
    of_networks = [r for r in stored[0] if r["network"] == "pretrained"]
    assert len([r for r in own["rows"] if r["what"]["network"] == "pretrained"]) == len(of_networks) == 100
    for line in own["rows"]:
        for name, rows in zip("ab", stored, strict=True):
            same = [r for r in rows if all(r.get(key) == value for key, value in line["what"].items())]
            assert same == [line["of"][name]]  # once, and the widths' other dimensions do not keep them apart
        assert line["marks"]["a"] == "" and line["marks"]["b"] == mark(
            line["of"]["a"], line["of"]["b"], line["differences"].get("b")
        )
        assert ("b" in line["differences"]) == ("low" in line["of"]["b"])
    assert not any(line["what"]["network"] == "chance" for line in own["rows"])
    assert any("random weights or chance, equal in all runs" in note for note in result["notes"])
    about = result["runs"]
    assert about["a"]["method"] == "pace" and about["b"]["method"] == "rotation" and about["b"]["epochs"] == 2
    assert about["a"]["pretrained on"] == "demo" and about["a"]["parameters"] != about["b"]["parameters"]
    told = format_table(result)
    marked = sum(any(line["marks"].values()) for line in own["rows"])
    assert (
        f"\n{marked} of {len(own['rows'])} rows differ from the first run, corrected for the number of rows\n" in told
    )
    assert "Retrieval on demo, split split1" in told and "views: 10 clips of 16 frames" in told


def test_marks_values_and_what_stands_alone(runs):
    what = {"network": "pretrained", "level": "video", "metric": "accuracy"}
    put(runs[0], "linear", [row(50, 40, 60, **what, stage="conv4"), row(20, 10, 30, **what, stage="conv3")])
    put(runs[1], "linear", [row(80, 70, 90, **what, stage="conv4", C="10")])
    put(runs[0], "knn", [row(50, 40, 60, **what)])
    result = compare(runs[:2])
    own = next(one for one in result["tables"] if one["title"].startswith("Linear"))
    assert [(r["what"]["stage"], r["marks"]["b"]) for r in own["rows"]] == [("conv4", "▲")]
    assert "Linear probe on demo, split split1: 1 of 2 rows left out, measured for only one run" in result["notes"]
    assert "k-NN on demo, split split1: measured only for a" in result["notes"]
    assert "50.0 [40.0, 60.0]    80.0 [70.0, 90.0] ▲" in format_table(result)
    turned = compare(runs[1::-1])
    assert "80.0 [70.0, 90.0]    50.0 [40.0, 60.0] ▼" in format_table(turned) and turned["names"] == ["b", "a"]


@pytest.mark.parametrize("change", [{"views": "1 clip"}, {"config_hash": "other"}, {"crop": 64}, {"items": "9 videos"}])
def test_other_conditions_are_never_in_one_row(runs, change):
    what = {"network": "pretrained", "metric": "accuracy"}
    put(runs[0], "scenes", [row(50, 40, 60, **what)])
    put(runs[1], "scenes", [row(80, 70, 90, **what)], **change)
    result = compare(runs[:2])
    assert not any(own["title"].startswith("Scenes") for own in result["tables"])
    told = next(note for note in result["notes"] if note.startswith("Scenes"))
    ((key, value),) = change.items()
    assert f"measured under different conditions, {key} is " in told and f"{value} (b)" in told


def keep(run, name, hits, named="ab"):
    """What became of the videos of a result with one row; hits: one string of 0 and 1 per class."""
    labels = [label for label, own in zip(named, hits, strict=True) for _ in own]
    items = [f"{label}{i}" for i, label in enumerate(labels)]
    scores = ItemScores(np.array(items), np.array(labels), np.full(len(items), ""), np.array([*named]), {})
    right = np.array([*map(int, "".join(hits))], bool)
    planted.keep(run / "results" / f"{name}-demo-split1.npz", scores, [scores.accuracy(right, np.arange(len(items)))])


def hits_of(right):
    """As many videos that are right as the number says, of 40."""
    return ["1" * right + "0" * (40 - right), "0" * 5]


def test_many_rows_are_corrected_by_holm(runs):
    what = {"network": "pretrained", "level": "video", "metric": "accuracy", "stage": "conv5"}
    for name, (one, two) in {"linear": (20, 26), "knn": (20, 27), "scenes": (20, 40)}.items():
        for run, right in zip(runs[:2], (one, two), strict=True):
            put(run, name, [row(50, 40, 60, **what)])
            keep(run, name, hits_of(right))
    result = compare(runs[:2])
    rows = [line for own in result["tables"] for line in own["rows"]]
    p = [line["differences"]["b"]["p"] for line in rows if line["differences"]]
    assert [line["differences"]["b"]["adjusted"] for line in rows if line["differences"]] == holm(p) and len(p) > 100
    found = {}
    for own in result["tables"]:
        if not own["title"].startswith("Retrieval"):
            (line,) = own["rows"]
            found[own["title"].split()[0]] = line["marks"]["b"], own["headline"]["marks"]["b"], line["differences"]["b"]
    assert all(own[2]["low"] > 0 and own[2]["p"] < 0.05 for own in found.values())  # each by itself
    # p of six, seven and twenty gained videos: 2/64, 2/128, about 2/2^20; of four headlines they are multiplied by 2, 3 and 4
    assert {name: own[2]["p"] for name, own in found.items()} == {
        "Linear": 2 / 2**6,
        "k-NN": 2 / 2**7,
        "Scenes": pytest.approx(0, abs=1e-4),  # drawn
    }
    assert {name: own[:2] for name, own in found.items()} == {
        "Linear": ("", ""),
        "k-NN": ("", "▲"),
        "Scenes": ("▲", "▲"),
    }
    for run in runs[:2]:
        for name in ("linear", "knn", "scenes"):
            for ending in ("npz", "json"):
                (run / "results" / f"{name}-demo-split1.{ending}").unlink()


def test_the_screen_stops_after_the_headlines(runs):
    short = vssl("compare", *runs[:2])
    whole = format_table(compare(runs[:2]))
    assert len(short.splitlines()) < 40 < 130 < len(whole.splitlines())
    head = "Retrieval on demo, split split1: top-1, video, conv5, max"
    assert head in short and head in whole and "more rows" in short and "--all" in short
    assert "conv1" not in short and "conv1" in whole
    told = "unequal budgets, so that a difference may not be due to the methods; clips seen: 6 (a), 54 (b)"
    for text in (short, whole):
        assert text.index(told) < text.index(head)


def test_equal_budgets_are_not_called_unequal(runs):
    result = compare([runs[0], runs[2]])
    assert result["unequal"] == [] and "unequal" not in format_table(result)
    assert result["runs"]["a"]["clips seen"] == result["runs"]["c"]["clips seen"] == "6"
    assert result["runs"]["a"]["optimizer"] == "sgd, step, lr 0.001"
    assert result["runs"]["a"]["jitter"] == "frame, strength 1"


def test_classes_that_gain_and_lose_most(runs, tmp_path):
    what = {"network": "pretrained", "level": "video", "metric": "accuracy", "stage": "conv5"}
    hits = (["0000011111", "11110"], ["1111100111", "00000"])
    for run, own in zip(runs[:2], hits, strict=True):
        put(run, "linear", [row(50, 40, 60, **what)])
        keep(run, "linear", own)
    result = compare(runs[:2])
    own = next(one for one in result["tables"] if one["title"].startswith("Linear"))
    assert own["headline"]["what"] == what
    a, b = own["classes"]["b"]
    assert (a["class"], a["items"], a["first"], a["other"], a["value"]) == ("a", 10, 50, 80, pytest.approx(30))
    assert a["low"] < 30 < a["high"]
    assert b == {
        "class": "b",
        "items": 5,
        "first": 80,
        "other": 0,
        "value": pytest.approx(-80),
    }  # too few for an interval
    told = format_table(result)
    assert "classes that gain most, b, accuracy, video, conv5: a +30.0 [" in told
    assert "classes that lose most, b, accuracy, video, conv5: b -80.0\n" in told
    write(result, tmp_path / "table.html")
    text = Page((tmp_path / "table.html").read_text()).text
    assert text.index("clips seen: 6 (a), 54 (b)") < text.index("Headline row of each result")
    assert "Classes: b minus a" in text and "b -80.0 0.0 80.0 5" in text
    for run in runs[:2]:
        (run / "results" / "linear-demo-split1.npz").unlink()


def test_changed_rows_stand_first(runs, tmp_path):
    what = {"network": "pretrained", "metric": "accuracy"}
    values = {"conv1": (50, 52), "conv2": (50, 90), "conv3": (50, 51), "conv4": (50, 10)}
    for i, run in enumerate(runs[:2]):
        put(run, "scenes", [row(v[i], v[i] - 5, v[i] + 5, **what, stage=stage) for stage, v in values.items()])
    result = compare(runs[:2])
    own = next(one for one in result["tables"] if one["title"].startswith("Scenes"))
    assert [line["what"]["stage"] for line in own["rows"]] == ["conv2", "conv4", "conv1", "conv3"]
    write(result, tmp_path / "table.html")
    text = Page((tmp_path / "table.html").read_text()).text
    text = text[text.index("Rows that differ from the first run, %: pretrained, accuracy") :]
    assert text.index("conv4") < text.index("The other rows, %: pretrained, accuracy") < text.index("conv1")


def test_three_runs(runs):
    what = {"network": "pretrained", "metric": "accuracy"}
    (runs[2] / "results").mkdir(exist_ok=True)
    for run, value in zip(runs, (50, 20, 90), strict=True):
        source = json.loads((runs[0] / "results" / "retrieval-demo-split1.json").read_text())["protocol"]
        content = {"protocol": source, "rows": [row(value, value - 5, value + 5, **what)], "notes": []}
        (run / "results" / "similarity-demo-split1.json").write_text(json.dumps(content))
    own = next(one for one in compare(runs)["tables"] if one["title"].startswith("Similarity"))
    assert own["rows"][0]["marks"] == {"a": "", "b": "▼", "c": "▲"}


def test_a_damaged_result_is_left_out(runs):
    file = runs[0] / "results" / "attention-demo-split1.json"
    file.write_bytes(b"\x80\x00")
    result = compare(runs[:2])
    assert not any(one["title"].startswith("Attention") for one in result["tables"])
    assert result["notes"][0].startswith(f"{file}: not a result of vssl eval, or dam")
    file.unlink()


def test_what_differs_stands_first_and_budgets_before_settings(runs, tmp_path):
    result = compare(runs[:2])
    told = format_table(result)
    lines = told.splitlines()[2:]
    assert lines[0].split() == ["a", "b"] and lines[1].split() == ["clips", "seen", "6", "54"]
    differ, _, same = told.partition("the same in all runs: ")
    assert re.search("^method +pace +rotation$", differ, re.M) and "backbone" not in differ
    assert "backbone r3d10; " in same and "options usual" in same and "method" not in same.splitlines()[0]
    write(result, tmp_path / "table.html")
    found = Page((tmp_path / "table.html").read_text())
    assert [section["id"] for section in found.all("section")][:2] == ["runs", "first"]
    text = found.text[found.text.index("Budgets and settings that differ") :]
    assert text.index("clips seen 6 54") < text.index("method pace rotation") < text.index("The same in all runs")


def test_runs_of_the_same_name_are_told_apart_by_their_folders(runs, tmp_path):
    places = [tmp_path / name / "run" for name in ("x", "y")]
    for place, run in zip(places, runs[:2], strict=True):
        shutil.copytree(run, place)
    assert compare(places)["names"] == ["x/run", "y/run"]


def test_wrong_use(runs, tmp_path):
    for chosen in (runs[:1], [runs[0], runs[0]], []):
        with pytest.raises(TrainerError, match="name two or more, each once"):
            compare(chosen)
    with pytest.raises(TrainerError, match=r"the suffix is .txt, expected .html or .csv"):
        write({}, tmp_path / "x.txt")


def test_files_by_the_command(runs, tmp_path):
    vssl("compare", *runs[:2], "--out", tmp_path / "table.csv")
    write(result := compare(runs[:2]), tmp_path / "table.html")
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    expected = [of for own in result["tables"] for one in own["rows"] for of in one["of"].values()]
    assert [float(line["value"]) for line in lines] == [of["value"] for of in expected]
    found = Page((tmp_path / "table.html").read_text(encoding="ascii"))
    assert len(found.all("table")) == len(found.all("caption")) > 1 + len(result["tables"])
    assert all(f"{of['value']:.1f}" in found.text for of in expected)


def test_page_in_a_browser(runs, tmp_path, browser):
    write(compare(runs[:2]), tmp_path / "table.html")
    assert browser.faults(tmp_path / "table.html") == []
    for width, wide in ((400, "block"), (1400, "table-cell")):
        browser.open(tmp_path / "table.html", width)
        assert browser.run("getComputedStyle(document.querySelector('.stacked td')).display") == wide
    browser.open(tmp_path / "table.html", 400)
    boxes = "[...document.querySelectorAll('#runs .scroll, #first .scroll')]"
    assert (
        browser.run(f"{boxes}.filter(one => one.scrollWidth > one.clientWidth).length") == 0
    )  # nothing is out of sight
