"""The page of a study: every two rows, classes, and the curves of all rows, sound in a browser."""

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from labelgen.labels.patterns import centre_crop, patterns
from labelgen.shards import open_shards
from labelgen.show import label_films
from tests.trainer.pages import Page
from tests.trainer.planted import write_colored
from tests.trainer.studies import make_study, write_study
from tests.trainer.synthetic import write_shard
from trainer.settings import Settings
from trainer.study.jobs import Store, Training
from trainer.study.page import write_page
from trainer.study.planning import Plan
from trainer.study.tables import stars

ROWS = [f"method {i}, {'with a long name' * (i % 2)}" for i in range(12)]
CLASSES = ["bend", "jump <b>", "walk"]


def numbers(rng):
    """Of two columns, the first one with classes and chosen stages."""
    found = []
    for column, (i, row) in itertools.product((0, 1), enumerate(ROWS)):
        by_seed = (8 * i + rng.normal(size=2)).clip(0).tolist()
        value = sum(by_seed) / 2
        entry = {"row": row, "column": column, "value": value, "low": value - 3, "high": value + 3, "seeds": [0, 1]}
        entry |= {"by seed": by_seed, "videos": 30, "above": {"value": 1.0, "low": -1.0, "high": 3.0}}
        if column == 0:
            taken = {true: {name: 1 + (true == name) * i for name in CLASSES} for true in CLASSES}
            entry |= {"by class": {name: by_seed for name in CLASSES}, "predicted": taken}
            entry |= {"stages": [{"1": "conv3"}, {"1": "conv4"}]}
        found.append(entry)
    return found


def differences(entries):
    """As of a study: p by the size of the difference."""
    found = []
    for column in (0, 1):
        of_column = {entry["row"]: entry["value"] for entry in entries if entry["column"] == column}
        for row, than in itertools.combinations(of_column, 2):
            value = of_column[row] - of_column[than]
            one = {"column": column, "row": row, "than": than, "value": value, "low": value - 9, "high": value + 9}
            found.append(one | {"p": 10 ** (value / 20), "adjusted": min(1, 10 ** (value / 20))})
    return found


@pytest.fixture(scope="module")
def content():
    columns = [{**dict.fromkeys(("tested_on", "pretrained_on"), "own"), "target": "", "headline": True} for _ in "ab"]
    columns = [column | {"measure": name} for column, name in zip(columns, ("k-NN", "finetune"), strict=True)]
    entries = numbers(np.random.default_rng(0))
    rows = {row: {"kind": "method", "clips asked for": 4, "settings": {}, "label": {}} for row in ROWS}
    content = {"about": "all", "seeds": [0, 1], "rows": rows, "columns": columns, "numbers": entries, "data": {}}
    content |= dict.fromkeys(("unequal", "assumed", "orderings", "absent", "failures"), [])
    return content | {"differences": differences(entries)}


@pytest.fixture(scope="module")
def path(content, tmp_path_factory):
    """The page, with the logs of two seeds of each row."""
    store, plan = Store(tmp_path_factory.mktemp("page")), Plan()
    about = {"cost": "", "device": "cpu", "networks": {}, "start": "", "source": SimpleNamespace(splits=("1",))}
    for (i, row), seed in itertools.product(enumerate(ROWS), (0, 1)):
        id, folder = f"{i}-{seed}", store.run(f"{i}-{seed}") / "run"
        settings = Settings(method="pace+order" if i == 3 else "pace", weights=[1.0, 2.0] if i == 3 else None)
        plan.jobs[id] = Training(id=id, row=row, title=id, clips=600.0, settings=settings, videos=(1, 1), **about)
        plan.runs[row, "own", "1", seed] = id
        folder.mkdir(parents=True)
        (folder.parent / "done.json").touch()
        (folder / "log.csv").write_text(
            "step,loss,accuracy\n" + "".join(f"{s},{2 / s**0.2},{s / 99}\n" for s in range(1, 99))
        )
        held = (
            "step,pace.loss,order.loss\n49,1,0.5\n98,0.5,0.25\n"
            if i == 3
            else "step,loss\n49,1.5\n98,1.25\n"[: 16 if i == 5 else None]
        )
        (folder / "holdout.csv").write_text(held)
    write_page(content, plan, store, {})
    return store.root / "index.html"


def test_the_matrix_is_that_of_all_pairs(path, content):
    found = re.findall(
        r'<span class="([a-z]*) ?s?(\d?)" title="(.*?) less (.*?): [^"]*">([+-][\d.]+)(\**)</span>', path.read_text()
    )
    shown = {
        (row, than): (kind, level, value, sure) for kind, level, row, than, value, sure in found[len(found) // 2 :]
    }
    pairs = {(pair["row"], pair["than"]): pair for pair in content["differences"] if pair["column"] == 1}
    assert len(found) == 2 * len(ROWS) * (len(ROWS) - 1) and len(shown) == len(found) // 2
    for (row, than), (kind, level, value, sure) in shown.items():
        sign, pair = (1, pairs[row, than]) if (row, than) in pairs else (-1, pairs[than, row])
        assert value == f"{sign * pair['value']:+.1f}" and sure == stars(pair) and level == str(len(sure) or "")
        assert kind == ("" if not sure else "gain" if sign * pair["value"] > 0 else "loss")
    assert {"gain", "loss", ""} == {kind for kind, *_ in shown.values()}
    text = Page(path.read_text()).text
    assert (
        f"own: k-NN: {sum(bool(stars(pair)) for pair in pairs.values())} of 66 pairs differ" in text
        or "own: k-NN" in text
    )


def test_seeds_classes_and_confusions_are_there(path, content):
    text = Page(path.read_text()).text
    first = content["numbers"][0]
    assert f"{first['by seed'][0]:.1f} conv3 {first['by seed'][1]:.1f} conv4" in text
    assert text.count("Confusion matrices") == 1 and "jump <b>" in text
    assert "method 2, : 9 of 15 answers of all seeds on the diagonal" in text  # 3 x 3 of 3 x 5 with i = 2
    assert text.count("By class, mean over seeds") == 1 and text.count("By seed, with the stage") == 2


def test_all_curves_stand_on_one_axis(path):
    text = path.read_text()
    titles = re.findall(r'<g class="row(\d+)"><title>(.*?), seed (\d)(.*?)</title>', text)
    assert len(titles) == 2 * 2 * len(ROWS)  # training and held-out loss, two seeds
    assert [numbers for row, _, _, numbers in titles if row == "3"][2:] == [": 2 to 1"] * 2  # 1 + 2 x .5, weighted
    single = re.findall(r'<g class="row5"><title>[^<]*</title><path[^>]*/><circle[^>]* style="stroke:oklch', text)
    assert len(single) == 2  # of one value a mark, of the colour of its row
    assert text.count('type="radio"') == 1 + len(ROWS) and "#row11:checked" in text


def test_the_page_in_a_browser(path, browser):
    assert browser.faults(path) == []
    seen = "getComputedStyle(document.querySelector('.all .row4')).opacity"
    assert browser.run(seen) == "1"
    browser.run("document.getElementById('row5').click()")
    assert float(browser.run(seen)) < 0.2
    fixed = "document.querySelector('.pairs th:first-child').getBoundingClientRect().left"
    browser.open(path, 400)
    before = browser.run(fixed)
    browser.run("document.querySelector('.pairs .scroll').scrollLeft = 200")
    assert browser.run("document.querySelector('.pairs .scroll').scrollLeft") > 100 and browser.run(fixed) == before


def test_films_show_what_labels_are_made_of(tmp_path):
    write_shard(tmp_path / "00000.h5", [40])  # a texture that moves to the right
    (reader,) = open_shards(tmp_path)
    films = label_films(reader, 1)
    assert {len(film) for film in films.values()} == {15}
    np.testing.assert_array_equal(films["video"], reader.frames(np.arange(16, 31)))
    assert [np.argmax(color) for color in np.median(films["flow"], (1, 2))] == [0] * 15  # red
    centre = centre_crop(*reader.frame_size, 32)
    diverse = patterns(32)[0] == reader.arrays["statistics/appearance"][1, centre, 0, 0]
    outline = (films["most diverse, most stable colours"] == (255, 200, 0)).all(-1)
    assert outline[0].any() and (outline == outline[0]).all()  # where the block is, in every frame
    block, zoom = np.argwhere(diverse).mean(0) + reader.crop_grid[centre], outline.shape[2] / 48
    assert np.argwhere(outline[0]).mean(0) / zoom == pytest.approx(block, abs=1)


def test_places_on_curves_say_their_values(path):
    told = re.findall(r"<title>method 0, , seed 1, clips ([\d.]+): ([\d.]+)</title>", path.read_text())
    means = [part.mean() for part in np.array_split(2 / np.arange(1, 99) ** 0.2, 60)]
    assert len(told) == 24 + 2  # of the training loss, and of the two held-out losses
    assert (told[0][1], told[23]) == ("1", ("600", f"{means[-1] / means[0]:.4g}"))
    assert [value for _, value in told[24:]] == [f"{loss / means[0]:.4g}" for loss in (1.5, 1.25)]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """The folder of a study whose rows retrieve colours."""
    folder, rows = tmp_path_factory.mktemp("pictured"), {"turns <i>": {"method": "rotation"}}
    write_colored(folder / "colors" / "00000.h5", 16, 24, split=[[1]] * 12 + [[3]] * 4)
    measures = [{"protocol": "retrieval", "stage": ["conv4", "conv5"], "pooling": "mean"}]
    path = write_study(folder, seeds=[0], clips=8, rows=rows, measures=measures, baselines=["flow"])
    with pytest.MonkeyPatch.context() as patch:
        make_study(patch, path, folder / "out", flow=lambda a, b: np.zeros((*a.shape, 2), "f4"), draw=label_films)
    return folder / "out"


def test_pictures_stand_before_curves_and_numbers(pictured):
    page = Page((pictured / "index.html").read_text())
    names = [section["id"] for section in page.all("section")]
    assert names[:5] == ["videos", "curves", "neighbours", "map", "numbers"]
    films = [span["aria-label"] for span in page.all("span") if span.get("role") == "img"]
    assert films[:15:5] == ["video of 00000_12", "video of 00000_13", "video of 00000_15"]
    found = films[15:]
    assert len(found) == 4 * 3 * 6 and found[::6] == [f"Query 00000_{i}" for i in (12, 13, 14, 15) for _ in "abc"]
    assert len(page.all("circle")) >= 3 * 4 and page.text.count("turns <i>") > 5
    for path in (pictured / "results").glob("*.json"):  # whose first find is of its class scores
        made = json.loads(path.read_text())
        scores = {query["query"]: query["nearest"][0][1] == query["label"] for query in made.get("neighbours", ())}
        assert not scores or scores == made["scores"] and made["map"].keys() == scores.keys()
        assert all(np.diff(query["cosines"]).max() < 1e-6 for query in made.get("neighbours", ()))
    assert sum("neighbours" in path.read_text() for path in (pictured / "results").glob("*.json")) == 3


def test_each_run_has_a_page_with_its_clips_and_targets(pictured, browser):
    page = Page((pictured / "index.html").read_text())
    links = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert len(links) == 1 and "turns <i> colors, split split1, seed 0" in page.text
    (run,) = (pictured / link for link in links)
    shown = Page(run.read_text())
    assert "turns <i>, colors, split split1, seed 0" in shown.text and "What is missing" not in shown.text
    assert sum(div.get("class") == "together" for div in shown.all("div")) == 2 and "270 degrees" in shown.text
    back = [link["href"] for link in shown.all("a") if not link["href"].startswith("#")]
    assert [(run.parent / link).resolve() for link in back] == [(pictured / "index.html").resolve()]
    assert browser.faults(run) == []


def test_the_pictures_in_a_browser(pictured, browser):
    picture = "getComputedStyle(film, '::after').backgroundImage.slice(0, 16)"
    moving = f"[...document.querySelectorAll('.playing .film')].map(film => {picture})"
    assert browser.faults(pictured / "index.html") == []
    assert browser.run(moving) == ['url("data:image/'] * 15
    browser.run("document.querySelector('.playing input').click()")
    assert browser.run(moving) == ["none"] * 15
    browser.run("document.querySelector('.map circle').focus()")
    assert browser.run("getComputedStyle(document.querySelector('.map circle + g')).display") != "none"
