"""Videos by the names that users give: an id or a part of it, with or without the extension."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from labelgen.errors import ShardError

_SHOWN = 5  # videos of an ambiguous name


class VideoNames:
    """The ids of a data set's videos, str [n], which can be found by the names that users give.

    The first rule that finds a video decides: the id itself; the id, or its part after the last /, with or without the
    extension; the end of one of these. Except for the first rule, composed and decomposed accents (NFC, NFD) are equal.
    """

    def __init__(self, ids: Sequence[str]):
        self.ids = ids
        self._row = {name: row for row, name in enumerate(ids)}
        self._spelt: dict[str, list[int]] = {}
        for row, name in enumerate(map(_composed, ids)):
            path = PurePosixPath(name)
            for spelling in {name, str(path.with_suffix("")) if path.name else name, path.name, path.stem}:
                self._spelt.setdefault(spelling, []).append(row)

    def spelt(self, name: str) -> list[int]:
        """Rows of the videos with this id or last part of it, with or without the extension."""
        return [self._row[name]] if name in self._row else self._spelt.get(_composed(name), [])

    def ending(self, name: str) -> list[int]:
        """Rows of the videos of whose spellings one ends with `name`."""
        end = _composed(name)
        return sorted({row for spelling, rows in self._spelt.items() if spelling.endswith(end) for row in rows})

    def rows(self, names: Iterable[str], where: str, what: str = "video") -> list[int]:
        """Rows of the videos of these names, sorted; where, what: for messages. Raises ShardError for names of no video
        or of several."""
        found = set()
        for name in names:
            rows = (self.spelt(name) or self.ending(name)) if name else []
            if not rows:
                raise ShardError(
                    f"{where}: no {what} is called {name!r}; ids look like {next(iter(self.ids), '')!r}, and their end is "
                    "enough, with or without the extension"
                )
            if len(rows) > 1:
                raise ShardError(
                    f"{where}: {name!r} is the name of {self.listed(rows)}; give more of one id, or all of it"
                )
            found.add(rows[0])
        return sorted(found)

    def listed(self, rows: Sequence[int]) -> str:
        """Several videos as text; ids that look alike are written with escapes."""
        names = [self.ids[row] for row in rows[:_SHOWN]]
        alike = len(set(map(_composed, names))) < len(names)
        shown = ", ".join(ascii(name) if alike else repr(name) for name in names)
        return f"{len(rows)} videos: {shown}{', ...' if len(rows) > _SHOWN else ''}"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
