"""The protocols of `vssl eval`, one file each, and the modules that they use.

The modules are imported when first used, because `vssl eval --help` imports all protocols and would wait seconds for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Lazy:
    """A module that is imported when it is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import cv2
    import numpy as np
    import torch

    from labelgen import files, progress, reading, shards, sheets
    from trainer import checkpoint, data, histograms, inputs, methods, network, settings
    from trainer.evaluate import evaluator, features, metrics, neighbours, results, splits
    from trainer.training import precision, streams
else:
    cv2, np, torch = map(_Lazy, ("cv2", "numpy", "torch"))
    files, progress, reading, shards, sheets = (
        _Lazy(f"labelgen.{name}") for name in ("files", "progress", "reading", "shards", "sheets")
    )
    checkpoint, data, histograms, inputs, methods, network, settings = (
        _Lazy(f"trainer.{name}")
        for name in ("checkpoint", "data", "histograms", "inputs", "methods", "network", "settings")
    )
    evaluator, features, metrics, neighbours, results, splits = (
        _Lazy(f"trainer.evaluate.{name}")
        for name in ("evaluator", "features", "metrics", "neighbours", "results", "splits")
    )
    precision, streams = (_Lazy(f"trainer.training.{name}") for name in ("precision", "streams"))
