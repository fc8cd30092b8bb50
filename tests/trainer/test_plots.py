"""The parts of pages: plots, tables, curves of a log, pictures."""

import re

import cv2
import numpy as np
import pytest

from tests.trainer.pages import Page
from trainer.pages import plots
from trainer.pages.differences import Line, differences_table
from trainer.pages.drawn import read_png
from trainer.pages.page import fill, join, page, table
from trainer.pages.trained import binned, read_log


def test_log_without_its_broken_last_row(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,0.25\n3")
    log, told = read_log(tmp_path / "log.csv")
    assert {name: values.tolist() for name, values in log.items()} == {"step": [1, 2], "loss": [0.5, 0.25]}
    assert told == "log.csv: 1 of 3 rows are damaged and left out"
    assert read_log(tmp_path / "none.csv") == ({}, "")


def test_binned_curve_equals_plain_means():
    rng = np.random.default_rng(0)
    x, y, weights = np.arange(1, 1001.0), rng.normal(size=1000), rng.random(1000)
    last, mean, low, high = binned(x, y, weights)
    assert len(last) == 240 and last[-1] == 1000 and (np.diff(last) > 0).all()
    begin = 0
    for k, end in enumerate(last.astype(int)):
        own, w = y[begin:end], weights[begin:end]
        assert mean[k] == pytest.approx(sum(own * w) / sum(w)) and (low[k], high[k]) == (own.min(), own.max())
        begin = end
    np.testing.assert_array_equal(binned(x[:5], y[:5])[1], y[:5])


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 100, [0, 50, 100]), (0, 1, [0, 0.5, 1]), (1.7, 2.5, [1.8, 2, 2.2, 2.4]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks(low, high, expected):
    assert plots.ticks(low, high) == expected


def test_ticks_are_few_and_inside():
    for seed in range(50):
        low, high = np.sort(np.random.default_rng(seed).normal(size=2) * 10 ** (seed % 7 - 3))
        found = plots.ticks(low, high)
        assert 1 <= len(found) <= 5 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_curve_goes_through_its_points():
    drawn = plots.lines([plots.Series("a", [0, 5, 10], [0, 1, 2], "dots")], "a curve", zero=True)
    places = [
        tuple(map(float, pair)) for pair in re.findall(r'<circle class="mark dots" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1) and y0 - y1 == pytest.approx(y1 - y2, abs=0.1) and y0 > y1
    grid = {float(y) for y in re.findall(r'class="grid" d="M[\d.]+ ([\d.]+)H', drawn)}
    assert {y0, y1, y2} <= grid  # 0, 1 and 2 are ticks
    assert "step 5: 1" in drawn and Page(drawn)
    assert Page(plots.lines([plots.Series("one", [3], [3])], "one point")).all("circle")


@pytest.mark.parametrize("largest", [0.0007, 0.002, 100, 123456])
def test_numbers_of_an_axis_have_room(largest):
    drawn = plots.lines([plots.Series("lr", [0, 10], [0, largest])], "a curve", zero=True)
    ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([\d.,]+)</text>', drawn)
    assert len(ends) >= 2 and all(float(x) >= 6.8 * len(text) for x, text in ends)
    drawn = plots.lines([plots.Series("loss", [0, largest], [0, 1])], "a curve")
    below = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.,]+)</text>', drawn)
    assert len(below) >= 2 and all(float(x) + 3.4 * len(text) <= 300.1 for x, text in below)


def test_differences_stand_on_one_axis():
    pairs = [{"value": -10, "low": -31, "high": 5}, None, {"value": 20}]
    lines = [Line(name, [name.upper()], {"By": pair, "Never": None}) for name, pair in zip("abc", pairs, strict=True)]
    drawn = differences_table("T", "Row", ["Value"], lines)
    assert re.findall(r">([-+\d]+)</text>", drawn) == ["-40", "0", "+40"]
    assert Page(drawn).text == "T Row -40 0 +40 By Value a -10.0 [-31.0, +5.0] A b B c +20.0 C"
    a, b, c = drawn.split("<tbody>")[1].split("</tr>")[:3]
    low, high, value = map(float, re.search(r'x1="([\d.]+)%" x2="([\d.]+)%" y1="10".*cx="([\d.]+)%', a).groups())
    assert (value - 50) / 46 == pytest.approx(-10 / 40, abs=0.01)
    assert ((high - 50) / 46, (low - 50) / 46) == pytest.approx((5 / 40, -31 / 40), abs=0.01)
    assert "svg" not in b and "interval" not in c and 'mark plain"' in c
    assert "p = .040" in differences_table("T", "Row", [], [Line("a", [], {"By": {"value": 1, "adjusted": 0.04}})])
    assert 'mark gain"' in plots.difference({"value": 2, "low": 1, "high": 3}, 5)
    assert 'mark loss"' in plots.difference({"value": -2, "low": -3, "high": -1}, 5)


@pytest.mark.parametrize("value, expected", [(0, 1), (0.31, 0.4), (4, 4), (9.1, 10), (22, 30), (100, 100)])
def test_rounded_up(value, expected):
    assert plots.rounded_up(value) == pytest.approx(expected)


def test_intervals_stand_where_their_numbers_are():
    drawn = plots.intervals([("conv5", [plots.Point("chance", 10), plots.Point("pretrained", 40, 20, 100)])], "plot")
    low, high = map(float, re.search(r'interval pretrained" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn).groups())
    value, chance = (
        float(re.search(r'mark pretrained" cx="([\d.]+)"', drawn)[1]),
        float(re.search(r'level" d="M([\d.]+)', drawn)[1]),
    )
    assert (value - low) / (high - low) == pytest.approx(20 / 80, abs=0.01)
    assert (value - chance) / (high - low) == pytest.approx(30 / 80, abs=0.01)
    assert "95 % interval 20.0 to 100.0" in drawn
    (mark,), name = re.findall(r'cy="([\d.]+)"', drawn), re.search(r'y="([\d.]+)" text-anchor="end"', drawn)[1]
    assert float(name) - float(mark) == 4  # alone, on the line of its name
    pair = plots.intervals([("conv5", [plots.Point("random", 10), plots.Point("pretrained", 40)])], "plot")
    assert len(set(re.findall(r'cy="([\d.]+)"', pair))) == 2


def test_matrix_shades_every_count_once():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (100, 100)) * (rng.random((100, 100)) < 0.05)
    drawn = plots.matrix([f"class {i}" for i in range(100)], counts, "matrix")
    assert (
        drawn.count("z") - drawn.count("z<") == np.count_nonzero(counts)
        and len(drawn) < 40 * np.count_nonzero(counts) + 2000
    )
    small = plots.matrix(["a", "b"], np.array([[3, 1], [0, 4]]), "matrix")
    assert re.findall(r'fill-opacity="([\d.]+)"', small) == ["0.3", "0.8", "1"]
    assert re.findall(r">(\d)</text>", small) == ["3", "1", "4"]
    linked = Page(plots.matrix(["a", "b"], np.array([[3, 1], [0, 4]]), "matrix", {(0, 1): ("there", "1 of a")}))
    assert [link["href"] for link in linked.all("a")] == ["#there"] and linked.all("svg")[0]["role"] == "group"


def test_escaping_and_tables():
    assert fill('<a href="{}">{}</a>', '"x">', fill("<b>{:.1f}</b>", 2)) == '<a href="&#34;x&#34;&gt;"><b>2.0</b></a>'
    assert join(["<i>", fill("<b>")]) + "<p>" == "&lt;i&gt;<b>&lt;p&gt;"
    found = Page(table("T", ("Name", "N"), [("a<b", 1), ("c", 2)], (1,), ["published", ""]))
    assert found.text == "T Name N a<b 1 c 2"
    assert [row.get("class") for row in found.all("tr")] == [None, "published", None]
    assert page("ü", "", "", [], "\udc80").isascii()


def test_a_sheet_is_decoded_only_where_its_chunks_are_whole(tmp_path, monkeypatch):
    """OpenCV makes room for as many bytes as a chunk declares before it reads them."""
    decoded, decode, path = [], cv2.imdecode, tmp_path / "a.png"
    monkeypatch.setattr(cv2, "imdecode", lambda content, flags: decoded.append(len(content)) or decode(content, flags))
    whole = cv2.imencode(".png", np.full((8, 9, 3), 7, np.uint8))[1].tobytes()
    path.write_bytes(whole)
    assert (read_png(path) == 7).all() and decoded == [len(whole)]
    data = whole.index(b"IDAT")
    large = whole[: data - 4] + b"\x7f\xff\xff\xff" + whole[data:]
    wide = whole.replace(whole[16:24], b"\0\1\0\0" * 2)
    for damaged in (large, wide, whole[:-1], whole + b"x", whole.replace(b"IDAT", b"fcTL"), b"", b"\x89PNG"):
        path.write_bytes(damaged)
        assert read_png(path) is None and decoded == [len(whole)]
