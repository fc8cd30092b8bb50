"""The page of a real, small run: well-formed, complete, and sound in a browser."""

import json
import re
import shutil

import pytest

from labelgen.shards import open_shards
from tests.command import vssl
from tests.trainer.pages import Page
from tests.trainer.planted import colored
from tests.trainer.synthetic import CONFIG, video_frames, write_shard
from trainer.errors import TrainerError
from trainer.evaluate import PROTOCOLS
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.results import headline, read_results
from trainer.evaluate.results import shown as shown_row
from trainer.pages import report
from trainer.pages.report import Sheet
from trainer.settings import Settings
from trainer.training import train

CPU = Compute(16, 0, "cpu")
NASTY = '<b>"jump" & run</b>'


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """12 videos of 4 classes in the layout of UCF101's shards; names and labels hold what HTML takes for its own."""
    folder = tmp_path_factory.mktemp("out") / "ucf101"
    names = [f"v/<i>{i}</i>&.avi" for i in range(12)]
    labels = [(NASTY, "walk", "wave", "çığlık")[i % 4] for i in range(12)]
    config = {**CONFIG, "flow": {"backend": "dis"}}
    parts = [1] * 8 + [3] * 4
    write_shard(folder / "00000.h5", [64] * 12, parts, labels, names, config, frames=colored)
    return folder


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A pretrained run with results, and one beside it that was finetuned from it."""
    runs = tmp_path_factory.mktemp("runs")
    settings = Settings(width=0.06, epochs=3, batch_size=2, workers=0, lr=0.01, holdout=0.3)
    own = train(settings, shards, runs / "first & <only>")
    measure("retrieval", shards, own, compute=CPU)
    measure("smoothness", shards, own, compute=CPU)
    measure("attention", shards, own, compute=CPU, count=2)
    settings = Settings(method="recognition", epochs=2, batch_size=4, workers=0, lr=0.01, holdout=0.0)
    measure("recognition", shards, train(settings, shards, runs / "finetuned", initial=own), compute=CPU)
    return own


@pytest.fixture(scope="module")
def path(run, shards):
    sheet = Sheet("A sheet of <labels>", "What it shows", video_frames(0, 1)[0].repeat(20, 0).repeat(20, 1))
    return report.report(run, [shards], lambda readers: ([sheet], [sheet]))[0]


def by_the_command(run, monkeypatch, folder):
    """What `vssl report` prints in a folder, and the text of the page."""
    monkeypatch.chdir(folder)
    return vssl("report", run), Page((run / "report.html").read_text()).text


def test_of_several_data_sets_in_out_the_runs_own_are_shown(run, shards, tmp_path, monkeypatch):
    out = tmp_path / "out"
    told, text = by_the_command(run, monkeypatch, tmp_path)
    assert "note: out holds no shards of ucf101: the page shows none" in told and "Sheets of labels" in text
    write_shard(out / "other" / "00000.h5", [20] * 2, config={**CONFIG, "dataset": "other"})
    told, text = by_the_command(run, monkeypatch, tmp_path)
    assert "note: out holds no shards of ucf101" in told and "other" not in told and "Sheets of labels" in text
    write_shard(
        out / "a" / "00000.h5", [20] * 2, config={**CONFIG, "dataset": "ucf101", "crop": 16}
    )  # of this name, but labelled otherwise
    shutil.copytree(shards, out / "ucf101")
    told, text = by_the_command(run, monkeypatch, tmp_path)
    assert "note" not in told and "A few clips" in text and "Sheets of labels" not in text
    films = [span for span in Page((run / "report.html").read_text()).all("span") if span.get("role") == "img"]
    assert films
    (out / "ucf101" / "00000.h5").write_bytes(b"damaged")
    told, text = by_the_command(run, monkeypatch, tmp_path)
    assert "00000.h5" in told and "these shards are left out" in told and "A few clips" not in text


def test_out_that_is_empty_or_a_file_is_no_error(run, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    assert "note: out holds no shards of ucf101" in by_the_command(run, monkeypatch, tmp_path)[0]
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("")
    assert "note: out holds no shards of ucf101" in by_the_command(run, monkeypatch, tmp_path)[0]


def test_page_is_well_formed_and_says_what_it_shows(path):
    text = path.read_text(encoding="ascii")
    found = Page(text)
    assert found.all("html")[0]["lang"] == "en" and not found.all("script", "iframe", "object")
    assert all(image["alt"] and image["src"].startswith("data:") for image in found.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in found.all("svg"))
    assert all(head["scope"] in ("col", "row") for head in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table")) > 8
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in found.all("div") if box.get("role") == "region")
    groups = [div["aria-label"] for div in found.all("div") if div.get("class") == "together"]
    assert "Training samples" in found.text and len(groups) == 2 and "Clips and targets" not in found.text
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    links = [link["href"].removeprefix("#") for link in found.all("a")]
    assert len(set(ids)) == len(ids) and set(links) <= set(ids)
    cells = [link for link in links if link.startswith("cell-")]
    assert len(links) == 1 + len(found.all("section")) + len(cells) and cells
    assert not re.search(r"(?:src|href)=.https?:|@import|url\((?!data:)", text)


def test_texts_are_escaped(path):
    text, found = path.read_text(), Page(path.read_text())
    assert "<i>" not in text and NASTY not in text and "<only>" not in text
    for shown in (NASTY, "çığlık", "v/<i>8</i>&.avi", "first & <only>", "A sheet of <labels>"):
        assert shown in found.text or any(shown in str(attrs.values()) for _, attrs in found.tags)


def test_numbers_on_the_page_are_those_of_the_results(run, path):
    found = Page(path.read_text())
    result = next(result for result in read_results(run)[0] if result.name == "retrieval")
    row = headline(result)
    assert (row["metric"], row["level"], row["stage"], row["pooling"]) == ("top-1", "video", "conv5", "max")
    assert f"{row['value']:.1f} % 95 %: {row['low']:.1f} to {row['high']:.1f}" in found.text
    for row in result.content["rows"]:
        assert shown_row(row) in found.text
    wrong = sum(name != q["label"] for q in result.content["neighbours"] for _, name in q["nearest"])
    right = sum(name == q["label"] for q in result.content["neighbours"] for _, name in q["nearest"])
    kinds = [attrs.get("class") for attrs in found.all("li")]
    assert (kinds.count("wrong"), kinds.count("right")) == (wrong, right) and (found.text.count("✗") - 1) == wrong
    films = [span["aria-label"] for span in found.all("span") if span.get("role") == "img"]
    assert sum(told.startswith(("Query", "Found")) for told in films) == 4 + wrong + right
    for query in result.content["neighbours"]:
        for (name, label), cosine in zip(query["nearest"], query["cosines"], strict=True):
            assert f"{label} {cosine:.2f} {name}" in found.text
    shown = [image["alt"] for image in found.all("img")]
    assert sum(alt.endswith(": pretrained conv5") for alt in shown) == 2 and shown.count("What it shows") == 2
    assert "Recognition on ucf101, split split1, finetuned as finetuned" in found.text
    assert found.text.count("95 % intervals") == 1  # explained once
    assert "Recognition on ucf101, split split1 (finetuned): accuracy, video" in found.text
    assert "Confusion matrix of 4 classes" in str(found.all("svg")) and "this run" in found.text


def test_middle_frame_of_a_video_is_the_one_in_the_shard(path, shards):
    import base64

    reader = open_shards(shards)[0]
    row = reader.arrays["videos/id"].index("v/<i>9</i>&.avi")
    middle = reader.jpeg(int(reader.arrays["videos/first_frame"][row]) + 32).tobytes()
    text = path.read_text()
    film = next(span for span in Page(text).all("span") if span.get("aria-label") == "Query v/<i>9</i>&.avi")
    rule = re.search(rf"\.{film['class'].split()[1]}\{{aspect-ratio:48/40;.*?base64,(.*?)\)", text)
    assert base64.b64decode(rule[1]) == middle and text.count(rule[1]) == 1  # once, however often it is shown


def test_what_is_missing_is_said_with_a_command_that_exists(shards, tmp_path):
    bare = train(Settings(width=0.06, epochs=1, workers=0), shards, tmp_path / "bare")
    text = Page(report.report(bare)[0].read_text()).text
    missing = text[text.rindex("What is missing") :]
    commands = re.findall(r"vssl ([a-z ]+) ", missing)
    assert {command.split()[1] for command in commands if command.startswith("eval")} == set(PROTOCOLS)
    for command in commands:
        vssl(*command.split()[: 2 if command.startswith("eval") else 1], "--help")
    assert "Sheets of labels" in missing and "curriculum" in missing and "Clips and targets" in missing
    with pytest.raises(TrainerError, match="neither a run"):
        report.report(tmp_path / "nothing")


def test_what_is_missing_for_several_results_is_said_once(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    result = run / "results" / "retrieval-ucf101-split1.json"
    shutil.copy(result, result.with_name("retrieval-ucf101-by-ucf101-split1.json"))
    text = html_text(report.report(run)[0])
    assert text.count("Retrieval from ucf101 by ucf101") and text.count("Pictures of the videos of ucf101") == 1


def test_joint_training_and_a_run_without_a_step(shards, tmp_path):
    own = train(Settings(method="pace+rotation", width=0.06, epochs=1, workers=0, ema=0.5), shards, tmp_path / "joint")
    text = Page(report.report(own)[0].read_text()).text
    assert "pace.accuracy, %" in text and "rotation.loss" in text and "Published numbers: none known" in text
    (own / "log.csv").unlink()
    assert "No steps logged yet." in Page(report.report(own)[0].read_text()).text


def test_a_damaged_result_and_an_older_one(run, shards, tmp_path):
    own = train(Settings(width=0.06, epochs=1, workers=0), shards, tmp_path / "own")
    (own / "results").mkdir()
    content = json.loads((run / "results" / "retrieval-ucf101-split1.json").read_text())
    file = own / "results" / "retrieval-ucf101-split1.json"
    file.write_text(json.dumps(content))
    assert "Measured at step 9; the checkpoint is now at step 1." in Page(report.report(own)[0].read_text()).text
    content["rows"][0]["value"] = "0"
    for damaged in (b"", b"{}", b"[1]", b"\xff\x00\x80", file.read_bytes()[:-9], json.dumps(content).encode()):
        file.write_bytes(damaged)
        path, notes = report.report(own)
        assert len(notes) == 1 and notes[0].startswith(f"{file}: not a result of vssl eval, or damaged (")
        assert notes[0] in html_text(path) and "Measured at step 9" not in html_text(path)


def test_damaged_predictions_are_told(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    file = run / "results" / "retrieval-ucf101-split1.npz"
    file.write_bytes(b"no")
    path, (note,) = report.report(run)
    assert note.startswith(f"{file}: damaged") and note in html_text(path) and "Retrieval on ucf101" in html_text(path)


def test_four_tiles_of_fixed_protocols_in_two_columns_on_a_phone(path, browser):
    text = html_text(path)
    tiles = [text.index(name) for name in ("Recognition on", "Retrieval on", "Training accuracy", "What was trained")]
    assert tiles == sorted(tiles) and len(re.findall("<li><span>", path.read_text())) == 4
    browser.open(path, 400)
    box = "[...document.querySelectorAll('.tiles li')].map(one => one.getBoundingClientRect())"
    left, top = (browser.run(f"{box}.map(own => own.{side})") for side in ("left", "top"))
    assert top[0] == top[1] < top[2] and left[0] == left[2] < left[1]
    assert browser.run("document.querySelector('.tiles').getBoundingClientRect().height") < 450  # two lines of them


def html_text(path):
    return Page(path.read_text()).text


@pytest.mark.parametrize("name", ["log.csv", "holdout.csv"])
def test_damaged_logs(run, shards, tmp_path, name):
    run = shutil.copytree(run, tmp_path / "run")
    file = run / name
    first, *rows = file.read_text().splitlines()
    cells = rows[0].split(",")
    broken = [
        "",
        "\x00,1",
        "a" + rows[0],
        rows[0] + ",1",
        ",".join(["nan", *cells[1:]]),
        ",".join(["1e99", *cells[1:]]),
    ]
    file.write_text("\n".join([first, *broken, *rows]))
    path, notes = report.report(run, [shards])
    assert notes == [f"{name}: 6 of {6 + len(rows)} rows are damaged and left out"] and notes[0] in html_text(path)
    for damaged in (b"\x80\xff", "\n".join([first.replace("step", "stop"), *rows]).encode()):
        file.write_bytes(damaged)
        path, (note,) = report.report(run, [shards])
        assert note.startswith((f"{name} cannot be read (", f"{name} is damaged: it has no column step"))
        assert note in html_text(path) and ("clips per second" in html_text(path)) == (name == "holdout.csv")
    file.write_text("")
    assert report.report(run, [shards])[1] == []


def test_shards_that_are_not_used(run, shards, tmp_path):
    write_shard(tmp_path / "other" / "00000.h5", [20, 20])
    path, notes = report.report(run, [shards, tmp_path / "other"])
    assert len(notes) == 1 and notes[0].startswith(
        f"{tmp_path / 'other'} is not used: the page shows no videos of other"
    )
    assert f"note: {notes[0]}" in vssl("report", run, "--shards", tmp_path / "other").splitlines()
    report.report(run, [shards])


def test_videos_of_one_moment_each(run, shards, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    write_shard(tmp_path / "short" / "00000.h5", [20, 20], splits=())
    rows = measure("smoothness", tmp_path / "short", run, compute=CPU)["rows"]
    assert {row["distance"] for row in rows if row["metric"] == "cosine"} == {"other video"}
    assert "Smoothness on short" in html_text(report.report(run, [shards])[0])


def test_command(run, shards, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    assert "report.html (" in vssl("report", run, "--shards", shards, "--count", 1)
    found = Page((run / "report.html").read_text())
    assert sum("motion boundaries, blocks of largest motion" in image["alt"] for image in found.all("img")) == 1
    clips = [image["alt"] for image in found.all("img") if image["alt"].startswith("Middle frame and motion bound")]
    captions = re.findall(r"(easy|middle|hard): [.\d]+, (\S+)", found.text)
    assert len(clips) == len(captions) == 18 and [place for place, _ in captions[::6]] == ["easy", "middle", "hard"]
    assert clips[7].endswith(captions[7][1])
    vssl("report", run)
    assert "Pictures of the videos of ucf101" in Page((run / "report.html").read_text()).text


def test_own_numbers_stand_first_and_published_ones_are_grey(run, path):
    tags, rows = Page(path.read_text()).tags, []
    for tag, attrs in tags:
        if tag == "table":
            rows.append([])
        elif tag == "tr":
            rows[-1].append(attrs.get("class"))
    mixed = [kinds[1:] for kinds in rows if "published" in kinds and None in kinds[1:]]
    assert mixed and all(kinds == sorted(kinds, key=str) for kinds in mixed)  # None, then published


# --- in a browser


def test_page_in_a_browser(path, browser):
    assert browser.faults(path) == [] and browser.run("document.images.length") >= 7
