"""Backbones by name: functions of a width multiplier that return a module whose output is stage features by name. They
are imported on use."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from labelgen import plugins
from trainer.errors import SettingError

if TYPE_CHECKING:
    from trainer.backbones.layers import Stages

BACKBONES = {
    "c3d_light": "trainer.backbones.c3d:c3d_light",
    "c3d": "trainer.backbones.c3d:c3d",
    "r3d10": "trainer.backbones.resnet3d:r3d10",
    "r2plus1d10": "trainer.backbones.resnet3d:r2plus1d10",
    "r3d18": "trainer.backbones.resnet3d:r3d18",
    "r2plus1d18": "trainer.backbones.resnet3d:r2plus1d18",
    "r2plus1d18_tv": "trainer.backbones.resnet3d:r2plus1d18_tv",
    "resnet3d18": "trainer.backbones.resnet3d:resnet3d18",
    "s3dg": "trainer.backbones.s3dg:s3dg",
    "s3d": "trainer.backbones.s3dg:s3d",
    "resnet18": "trainer.backbones.resnet2d:resnet18",
    "resnet50": "trainer.backbones.resnet2d:resnet50",
}


def create(name: str, width: float = 1.0) -> Stages:
    """A backbone with new weights.

    Parameters
    ----------
    name : str
        A key of `BACKBONES`, or an import path that the user has named (see labelgen.plugins).
    width : float
        Multiplies the channels.

    Returns
    -------
    Stages
        The network; docs/methods.md has the paper of each.

    Raises
    ------
    SettingError
        For other names.

    Examples
    --------
    >>> from trainer.backbones import create
    >>> create("r3d10", width=0.5).features
    256
    """
    check_name(name)
    if not plugins.is_path(name):
        return pkgutil.resolve_name(BACKBONES[name])(width)
    from trainer.backbones.layers import Stages

    try:
        made = plugins.find(name, SettingError)(width)
    except TypeError as error:
        raise SettingError(
            f"{name}: it does not make a backbone ({error}), expected a function of the width"
        ) from error
    if not isinstance(made, Stages):
        raise SettingError(f"{name}: it returns {type(made).__name__}, expected trainer.backbones.layers.Stages")
    return made


def check_name(name: str) -> None:
    """Raises SettingError for an unknown name, and for an import path that the user has not named."""
    plugins.check_named([name], SettingError)
    if name not in BACKBONES and not plugins.is_path(name):
        raise SettingError(f"unknown backbone {name!r}, expected one of: {', '.join(BACKBONES)}")
