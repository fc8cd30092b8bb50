"""The tables of README.md and docs/ are those that the code prints."""

import re
import shlex

import click
import pytest

from cli.main import main
from docs import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_not_stale(page):
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, f"run `make docs`: {page.name}"


def test_every_table_stands_on_a_page_and_a_change_would_be_found():
    texts = {page.name: page.read_text(encoding="utf-8") for page in tables.PAGES}
    used = [name for text in texts.values() for name in re.findall(r"<!-- table: (.+?) -->", text)]
    assert {name for name in used if ":" not in name} == set(tables.TABLES)
    stale = re.sub(r"(<!-- table: methods -->\n.*\n.*\n)", r"\1| an old row |\n", texts["methods.md"])
    assert stale != texts["methods.md"] and tables.filled(stale) == texts["methods.md"]


def printed_commands(page):
    """The commands of vssl in the blocks of a page, as words."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if found := re.match(r" {4,}(?:[A-Z_]+=\S+ )*(?:torchrun .*?-- )?(vssl (?!shard \d).*)", line):
            text = re.sub(r"\$\(.*\)", "OUTPUT", re.split(r"\s#", found[1])[0].rstrip("\\"))
            for command in re.split(r"&&|;", text):
                if (words := shlex.split(command))[:1] == ["vssl"]:
                    yield words[1:]


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_printed_command_has_options_that_there_are(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VIDEOS").mkdir()  # the one folder that is looked for while options are read
    for words in printed_commands(page):
        if any(word.startswith(("my.", "$")) for word in words):
            continue  # a module of the reader, a variable of a loop
        context = main.make_context("vssl", list(words))
        while isinstance(context.command, click.Group):
            name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
            context = command.make_context(name, rest, parent=context)


def test_an_option_that_is_gone_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "    vssl labelgen VIDEOS --gone 1   # what it does; not a command\n    A=1 vssl train; vssl map && vssl x\n"
    )
    assert [*printed_commands(page)] == [["labelgen", "VIDEOS", "--gone", "1"], ["train"], ["map"], ["x"]]
    with pytest.raises(click.NoSuchOption):
        main.commands["labelgen"].make_context("labelgen", ["VIDEOS", "--gone", "1"])
