"""The documentation site: links that lead out of docs/, which `make lint` cannot judge on its own, and no address elsewhere."""

import logging
import re

import pytest
import yaml

from docs import hooks
from tests.command import ROOT

REPOSITORY = "https://host.example/someone/vssl"


def linked(text, source="docs/flow.md", page="flow.md", repository=""):
    return hooks._LINK.sub(lambda link: hooks.linked(link, source, page, repository), text)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("[a](weights.md#out) [b](#here) [c](https://host.example)", None),
        ("[how](../CONTRIBUTING.md#style)", "[how](contributing.md#style)"),
        (
            "see [README](../README.md), ![picture](../docs/search.png)",
            "see [README](overview.md), ![picture](search.png)",
        ),
        ("two\nlines: [how\nto](../CONTRIBUTING.md)", "two\nlines: [how\nto](contributing.md)"),
        ("`x[0](y)` and [code](../labelgen/flow/tv_l1.py)", "`x[0](y)` and code"),
    ],
)
def test_links_of_a_page(text, shown):
    assert linked(text) == (shown or text)


def test_links_to_files_that_are_not_on_the_site_lead_to_the_repository():
    assert (
        linked("[b](../benchmarks/flow.py)", repository=f"{REPOSITORY}/")
        == f"[b]({REPOSITORY}/blob/main/benchmarks/flow.py)"
    )
    assert linked("[b](../docs/tables.py)", repository=REPOSITORY) == f"[b]({REPOSITORY}/blob/main/docs/tables.py)"


def test_links_of_a_page_in_a_folder_and_of_a_file_in_the_root():
    assert linked("[c](../../CONTRIBUTING.md)", "docs/papers/index.md", "papers/index.md") == "[c](../contributing.md)"
    assert linked("[c](../flow.md)", "docs/papers/index.md", "papers/index.md") == "[c](../flow.md)"
    assert linked("[f](docs/flow.md#method)", "CONTRIBUTING.md", "contributing.md") == "[f](flow.md#method)"


def test_a_link_to_no_file_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert linked("[f](../gone.md)") == "f"
    assert "docs/flow.md: the link ../gone.md leads to no file" in caplog.text


def test_the_navigation_has_every_page():
    class Loader(yaml.SafeLoader):
        """Of mkdocs.yml, whose tags are not needed here."""

    Loader.add_multi_constructor("", lambda loader, tag, node: None)
    content = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    listed = re.findall(r"[\w./-]+\.md", str(content["nav"]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(pages | set(hooks.FROM_ROOT.values()))
    assert content["theme"]["font"] is False
