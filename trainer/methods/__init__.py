"""Pretext methods by name. Each is imported only when it is first used, so that listing the names is quick."""

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
    """The class of a method in METHODS, or at an import path given by the user, see labelgen.plugins. Raises SettingError for
    any other name."""
    if plugins.is_path(name):
        from trainer.methods.method import Method

        found = plugins.find(name, SettingError)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise SettingError(f"{name}: {found!r:.80}, expected a subclass of trainer.methods.method.Method")
        return found
    if name not in METHODS:
        raise SettingError(f"unknown method {name!r}, expected one of: {', '.join(METHODS)}")
    return pkgutil.resolve_name(METHODS[name])


def known(name: str) -> bool:
    """Whether METHODS has a method of that name, or the user has given it as an import path."""
    return name in METHODS or name in plugins.named()


def module_name(name: str) -> str:
    """The name of a method's module in a network: PyTorch allows no dots in the names of modules."""
    return name.replace(".", "/")


def short(names: str) -> str:
    """Names of methods, or of a backbone, without their modules, for file names: my.module:Arrow+pace -> Arrow+pace."""
    return "+".join(name.rpartition(":")[2] for name in names.split("+"))
