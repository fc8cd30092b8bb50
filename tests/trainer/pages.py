"""HTML pages, read as text."""

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page's tags with their attributes, and its text; tags must be closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.tags, self.text = [], [], ""
        self.feed(str(text))  # markup, added to text, would escape it
        assert not self.stack
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        self.text += " "

    def handle_data(self, data):
        if not {"style", "script"} & {*self.stack}:
            self.text += data

    def all(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


EVIL = "<img src=x onerror=document.title='evil'>\"'&"


def assert_text(path: Path, least: int, scripts: int = 0) -> None:
    """EVIL is on the page as text, so often at least, and nothing of it is markup; scripts: that the page has of its own."""
    text = path.read_text(encoding="ascii")
    found = Page(text)
    assert text.count("onerror") >= least and "<img src=x" not in text and EVIL in found.text
    assert len(found.all("script")) == scripts and all(image["src"].startswith("data:") for image in found.all("img"))
    attributes = {name for _, attrs in found.tags for name in attrs}
    assert not any(name.startswith("on") or not name.replace("-", "").isalnum() for name in attributes)
    assert "&lt;" not in found.text and "&amp;" not in found.text  # nothing is escaped twice
    assert all(link["href"].startswith(("#", "file:", "data:")) for link in (*found.all("a"), *found.all("link")))
