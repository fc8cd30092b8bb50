"""Backbones by name: functions of a width multiplier that return a module giving its stage features by name."""

from trainer.backbones.c3d import c3d, c3d_light
from trainer.backbones.resnet2d import resnet18, resnet50
from trainer.backbones.resnet3d import r2plus1d10, r2plus1d18, r3d10, r3d18, resnet3d18
from trainer.backbones.s3dg import s3dg

BACKBONES = {
    "c3d_light": c3d_light,
    "c3d": c3d,
    "r3d10": r3d10,
    "r2plus1d10": r2plus1d10,
    "r3d18": r3d18,
    "r2plus1d18": r2plus1d18,
    "resnet3d18": resnet3d18,
    "s3dg": s3dg,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
