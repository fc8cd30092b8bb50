"""The tables of README.md and docs/ are those that the code prints."""

import re

import pytest

from docs import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_not_stale(page):
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, f"run `make docs`: {page.name}"


def test_every_table_stands_on_a_page_and_a_change_would_be_found():
    texts = {page.name: page.read_text(encoding="utf-8") for page in tables.PAGES}
    used = [name for text in texts.values() for name in re.findall(r"<!-- table: (.+?) -->", text)]
    assert {name for name in used if not name.startswith("study:")} == set(tables.TABLES)
    stale = re.sub(r"(<!-- table: methods -->\n.*\n.*\n)", r"\1| an old row |\n", texts["training.md"])
    assert stale != texts["training.md"] and tables.filled(stale) == texts["training.md"]
