"""How a manifest or a folder that is not as expected is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from labelgen.errors import ManifestError, VsslError


def fail(what: str, value: object, expected: str, do: str, error: type[VsslError] = ManifestError) -> NoReturn:
    """Raise `error`: what was wrong, the value, what was expected, and what to do."""
    raise error(f"{what}: {str(value)!r}; expected {expected}. {do}.")


def some(names: Sequence[str]) -> str:
    """How many names there are, and the first three."""
    return f"{len(names):,} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
