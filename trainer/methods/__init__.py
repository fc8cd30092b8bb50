"""Pretext methods by name. None is imported before it is asked for, so that their names can be listed at once."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from labelgen import plugins
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
    "simclr": "trainer.methods.simclr:SimCLR",
    "moco": "trainer.methods.moco:MoCo",
    "byol": "trainer.methods.byol:BYOL",
    "rspnet": "trainer.methods.rspnet:RSPNet",
    "lejepa": "trainer.methods.lejepa:LeJEPA",
    "rotation": "trainer.methods.rotation:Rotation",
    "recognition": "trainer.methods.recognition:Recognition",
}


def method_class(name: str) -> type[Method]:
    """The class of a method of METHODS, or of an import path that the user has named, see labelgen.plugins. Raises SettingError
    for another name."""
    if plugins.is_path(name):
        from trainer.methods.method import Method

        found = plugins.find(name, SettingError)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise SettingError(f"{name}: {found!r:.80}, expected a child of trainer.methods.method.Method")
        return found
    if name not in METHODS:
        raise SettingError(f"unknown method {name!r}, expected one of: {', '.join(METHODS)}")
    return pkgutil.resolve_name(METHODS[name])


def known(name: str) -> bool:
    """Whether there is a method of that name, or the user has named it."""
    return name in METHODS or name in plugins.named()


def module_name(name: str) -> str:
    """The name under which a network keeps a method: PyTorch's modules have no dots in theirs."""
    return name.replace(".", "/")


def short(names: str) -> str:
    """Names of methods, or of a backbone, without the modules: Arrow+pace of my.module:Arrow+pace, for names of files."""
    return "+".join(name.rpartition(":")[2] for name in names.split("+"))
