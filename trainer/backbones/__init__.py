"""Backbones by name: functions of a width multiplier that return a module giving its stage features by name."""

from trainer.backbones.resnet3d import r3d10

BACKBONES = {"r3d10": r3d10}
