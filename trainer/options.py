"""Declarations: a value that a user may give is declared once, and its check, its command-line option and its line in the
docs follow. Nothing heavy is imported here, so that the command line lists options at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.errors import SettingError


@dataclass(frozen=True)
class Range:
    """Which numbers make sense, in words and as a test, which is false for nan."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Range("more than 0", lambda x: x > 0)
SHARE = Range("0 or more and less than 1", lambda x: 0 <= x < 1)


def at_least(least: float) -> Range:
    return Range(f"{least} or more", lambda x: x >= least)


def between(low: float, high: float) -> Range:
    return Range(f"{low} to {high}", lambda x: low <= x <= high)


def strictly_between(low: float, high: float) -> Range:
    return Range(f"more than {low} and less than {high}", lambda x: low < x < high)


@dataclass(frozen=True)
class Option:
    """A value with a default, whose type it has, one line of help, and a range or a few choices."""

    default: object
    help: str
    range: Range | None = None
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> type:
        return type(self.default)

    def checked(self, name: str, value: object) -> object:
        """The value, of the option's type. Raises SettingError for another type, nan, what is too large for a generator's
        seed or a float, and what is outside of the range or the choices."""
        value = typed(name, value, self.type)
        check_value(name, value, self.range, self.choices)
        return value


def check_value(name: str, value: Any, range: Range | None, choices: tuple[str, ...]) -> None:
    """Raises SettingError for a value outside of the range, and for one that is not among the choices, if there are any."""
    if range and not range.holds(value):
        raise SettingError(f"{name} is {value}, expected {range.words}")
    if choices and value not in choices:
        raise SettingError(f"{name} is {value!r}, expected one of: {', '.join(choices)}")


def typed(name: str, value: Any, kind: type) -> Any:
    """The value, a whole number as float where one is meant. Raises SettingError for another type and for numbers that are
    not finite or too large."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not abs(number) < 1 << 63:
            raise SettingError(f"{name} is {number}, expected a finite number smaller than 2^63")
        if isinstance(value, list) and not isinstance(number, str | int | float):
            raise SettingError(f"{name} is {value!r:.60}, expected a list of numbers or texts")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SettingError(f"{name} is {value!r:.200}, a {type(value).__name__}, expected a {kind.__name__}")
    return value
