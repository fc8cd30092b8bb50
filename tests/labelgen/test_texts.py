"""Names in pictures, CSV and Markdown."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from labelgen.texts import csv_cells, draw, from_csv, markdown

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "text, same",
    [
        ("a\udcff", "a?"),
        ("\ud800", "?"),
        ("\0\n\t\x7f", "????"),
        ("e\u0301", "é"),
        ("漢字 ü \U0001f600", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_what_cannot_be_drawn_is_replaced(text, same):
    drawn, expected = (np.full((20, 100, 3), 255, np.uint8) for _ in range(2))
    draw(drawn, text, 2, 15, 0.4)
    draw(expected, same or text, 2, 15, 0.4)
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn < 255).any() == bool(text)


def test_texts_are_drawn_in_one_place():
    found = [path for folder in ("labelgen", "trainer", "cli") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in found if "putText" in path.read_text()] == ["texts.py"]


FORMULAS = ["=1+1", "@SUM(1)", "+a", "-a", "\t=1", "\r=1", "-", "=", "-1-1", "+cmd|' /C calc'!A0"]
PLAIN = ["a=1", "", "-1.5", "+3", "-1e-9", "'a", "a@b", 3, -2.5, None]


def test_no_cell_is_a_formula():
    cells = csv_cells([*FORMULAS, *PLAIN])
    assert cells == [f"'{text}" for text in FORMULAS] + PLAIN
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    (read,) = csv.reader(io.StringIO(text.getvalue(), newline=""))
    assert [from_csv(cell) for cell in read] == [*FORMULAS, *("" if value is None else str(value) for value in PLAIN)]


def test_cells_of_csv_are_written_in_one_way():
    for folder in ("labelgen", "trainer", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if "csv.writer(" in text and path.name != "log.py":  # which holds numbers alone
                assert "csv_cells" in text, path
            assert "DictWriter" not in text, path


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a_b c.mp4 > d", "a_b c.mp4 > d"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("<img src=x>", r"\<img src=x>"),
        ("[a](http://b) ![c](d)", r"\[a\](http://b) !\[c\](d)"),
        ("*a* _b_ `c` ~d~ $e$", r"\*a\* \_b\_ \`c\` \~d\~ \$e\$"),
        ("a\n\n# b\r\tc", "a # b c"),
        ("a & b &lt; &#60;", r"a & b \&lt; \&#60;"),
    ],
)
def test_markdown_shows_the_text(text, expected):
    assert markdown(text) == expected
