"""Declarations: a value that a user may give is declared once; its check, command-line option and line in the docs
follow. Nothing heavy is imported here, so that the command line can list options quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.errors import SettingError


@dataclass(frozen=True)
class Range:
    """A range of numbers, in words and as a test, which is false for nan."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Range("more than 0", lambda x: x > 0)
SHARE = Range("0 or more and less than 1", lambda x: 0 <= x < 1)


def at_least(least: float) -> Range:
    return Range(f"{least} or more", lambda x: x >= least)


def between(low: float, high: float) -> Range:
    return Range(f"{low} to {high}", lambda x: low <= x <= high)


@dataclass(frozen=True)
class Option:
    """A value that a user may give.

    Parameters
    ----------
    default : object
        The value without the option; its type is that of the option.
    help : str
        One line.
    range : Range
        The allowed numbers: POSITIVE, SHARE, at_least(low), between(low, high).
    choices : tuple of str
        The allowed words.

    Examples
    --------
    >>> from trainer.options import Option, between
    >>> Option(0.5, "share of clips that are reversed", between(0, 1)).checked("backwards", 1)
    1.0
    """

    default: object
    help: str
    range: Range | None = None
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> Any:
        return type(self.default)

    @property
    def form(self) -> Any:
        """The type for labelgen.reading.validate; a list has entries of the default's type."""
        return [type(self.default[0])] if isinstance(self.default, list) else self.type

    def checked(self, name: str, value: Any) -> Any:
        """The value, an integer as float if a float is expected. Raises SettingError for another type, a number that is
        not finite or too large, and values outside of the range or the choices."""
        check_form(value, self.form, name)
        if self.form is float:
            value = float(value)
        if self.range and not self.range.holds(value):
            raise SettingError(f"{name} is {value}, expected {self.range.words}")
        for one in (value if isinstance(value, list) else [value]) if self.choices else ():
            if one not in self.choices:
                raise SettingError(f"{name} is {one!r}, expected one of: {', '.join(self.choices)}")
        return [*map(float, value)] if self.form == [float] else value


def check_form(value: Any, form: Any, name: str) -> None:
    """labelgen.reading.validate with SettingError."""
    from labelgen.reading import validate  # not above: it imports YAML, which the command line's help does not need

    try:
        validate(value, form, name)
    except ValueError as error:
        raise SettingError(str(error)) from error
