"""How a manifest or a folder that is not as expected is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NoReturn

from labelgen.errors import ManifestError, VsslError


def fail(what: str, value: object, expected: str, do: str, error: type[VsslError] = ManifestError) -> NoReturn:
    """Raise `error`: what was wrong, the value, what was expected, and what to do."""
    raise error(f"{what}: {str(value)!r}; expected {expected}. {do}.")


def some(names: Sequence[str]) -> str:
    """How many names there are, and the first three."""
    return f"{len(names):,} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def composed(name: str) -> str:
    """A name whose letters with accents are one sign each: Unicode's normal form C."""
    return unicodedata.normalize("NFC", name)


def apart(one: str, other: str) -> str:
    """Two names for a message; as codes what is not ASCII in them, if accents are what they differ by."""
    alike = composed(one + other) != one + other
    return " and ".join(ascii(name)[1:-1] if alike else name for name in (one, other))
