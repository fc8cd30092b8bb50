"""Errors of manifests and folders, and regular expressions of manifests."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NoReturn

from labelgen.errors import ManifestError, VsslError


def fail(what: str, value: object, expected: str, do: str, error: type[VsslError] = ManifestError) -> NoReturn:
    """Raise `error` with what was wrong, the value, what was expected, and what to do."""
    raise error(f"{what}: {str(value)!r}; expected {expected}. {do}.")


def compiled(pattern: str, where: str, error_type: type[VsslError] = ManifestError) -> re.Pattern[str]:
    """The compiled pattern. Raises `error_type` if it is not a valid regular expression."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        fail(f"bad regular expression for {where}", pattern[:200], f"a valid one ({error})", "Correct it", error_type)


def some(names: Sequence[str]) -> str:
    """The number of names, and the first three."""
    return f"{len(names):,} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def composed(name: str) -> str:
    """A name whose accented letters are one character each: Unicode normal form C."""
    return unicodedata.normalize("NFC", name)


def apart(one: str, other: str) -> str:
    """Two names for a message; non-ASCII characters are written as codes if the names differ only in the form of accents."""
    alike = composed(one + other) != one + other
    return " and ".join(ascii(name)[1:-1] if alike else name for name in (one, other))
