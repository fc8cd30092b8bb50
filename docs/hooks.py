"""Hooks of MkDocs: pages from the root of the repository, and links that work on the site as in the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {  # files of the root, and their pages
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"(?P<text>!?\[(?:[^\]\n]|\n(?!\n))*\])\((?P<target>[^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:|#|//")

log = get_plugin_logger(__name__)  # a warning ends a strict build


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from the root of the repository."""
    for name, page in FROM_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the links of a page that lead out of docs/ those of the site, of the repository, or plain text."""
    in_repository = {uri: name for name, uri in FROM_ROOT.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda link: linked(link, in_repository, page.file.src_uri, config.repo_url or ""), markdown)


def linked(link: re.Match[str], source: str, page: str, repository: str) -> str:
    """A link of a file as Markdown for its page.

    Parameters
    ----------
    link : re.Match
        Of `_LINK`.
    source : str
        The file that has it, from the root of the repository: "docs/flow.md".
    page : str
        Its page, from the root of the site: "flow.md".
    repository : str
        Address of the repository, "" if it is unknown: then a link to a file that is not on the site becomes its text.
    """
    target, _, anchor = link["target"].partition("#")
    if _ELSEWHERE.match(link["target"]) or (source.startswith("docs/") and not target.startswith("../")):
        return link[0]  # within docs/, which MkDocs checks
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        log.warning(f"{source}: the link {link['target']} leads to no file")
    inside = FROM_ROOT.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
    if inside and not inside.endswith(".py"):
        relative = posixpath.relpath(inside, posixpath.dirname(page) or ".")
        return f"{link['text']}({relative}{'#' * bool(anchor)}{anchor})"
    if repository:
        return f"{link['text']}({repository.rstrip('/')}/blob/main/{path})"
    return link["text"][1:-1]
