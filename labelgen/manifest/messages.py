"""How a manifest or a folder that is not as expected is refused, and its regular expressions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NoReturn

from labelgen.errors import ManifestError, VsslError


def fail(what: str, value: object, expected: str, do: str, error: type[VsslError] = ManifestError) -> NoReturn:
    """Raise `error`: what was wrong, the value, what was expected, and what to do."""
    raise error(f"{what}: {str(value)!r}; expected {expected}. {do}.")


def compiled(pattern: str, where: str, error_type: type[VsslError] = ManifestError) -> re.Pattern[str]:
    """The pattern. Raises `error_type` if it is no regular expression that Python can use."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        fail(f"bad regular expression for {where}", pattern[:200], f"a valid one ({error})", "Correct it", error_type)


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
