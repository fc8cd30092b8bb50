"""Pretext methods by name. None is imported before it is asked for, so that their names can be listed at once."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from trainer.errors import SettingError

if TYPE_CHECKING:
    from trainer.methods.method import Method

METHODS = {
    "statistics": "trainer.methods.statistics:Statistics",
    "pace": "trainer.methods.pace:Pace",
    "order": "trainer.methods.order:Order",
    "skip_clip": "trainer.methods.skip_clip:SkipClip",
    "tce": "trainer.methods.tce:TCE",
    "ascnet": "trainer.methods.ascnet:ASCNet",
    "rotation": "trainer.methods.rotation:Rotation",
    "recognition": "trainer.methods.recognition:Recognition",
}


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises SettingError for an unknown name."""
    if name not in METHODS:
        raise SettingError(f"unknown method {name!r}, expected one of: {', '.join(METHODS)}")
    return pkgutil.resolve_name(METHODS[name])
