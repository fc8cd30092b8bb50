"""Print the tables of the pages anew: each stands between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES: dict[str, str] = {  # name -> function without arguments that gives lines of Markdown
    "shards": "labelgen.shards.schema:table",
    "manifests": "labelgen.manifest.form:table",
    "manifest-names": "labelgen.manifest.form:names",
    "methods": "trainer.tables:methods",
    "defaults": "trainer.tables:defaults",
    "options": "trainer.tables:options",
    "backbones": "trainer.tables:backbones",
    "backbone-names": "trainer.tables:backbone_names",
    "settings": "trainer.tables:settings",
    "commands": "trainer.evaluate.tables:commands",
    "protocols": "trainer.evaluate.tables:blocks",
}


def filled(text: str) -> str:
    """The text of a page with every table printed anew. Raises KeyError for a table that nothing prints."""

    def table(match: re.Match) -> str:
        lines = pkgutil.resolve_name(TABLES[match[1]])()
        return "\n".join([f"<!-- table: {match[1]} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
