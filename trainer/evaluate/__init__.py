"""Protocols that turn a checkpoint into numbers."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from trainer.errors import SettingError

if TYPE_CHECKING:
    from trainer.evaluate.protocol import Protocol

# name of the protocol, of its command and of its results -> where its class is
PROTOCOLS = {
    "retrieval": "trainer.evaluate.retrieval:Retrieval",
    "knn": "trainer.evaluate.knn:KNearest",
    "linear": "trainer.evaluate.linear:Linear",
    "recognition": "trainer.evaluate.recognition:Recognition",
    "scenes": "trainer.evaluate.scenes:Scenes",
    "similarity": "trainer.evaluate.similarity:Similarity",
    "smoothness": "trainer.evaluate.smoothness:Smoothness",
    "attention": "trainer.evaluate.attention:Attention",
    "pretext": "trainer.evaluate.pretext:Pretext",
    "future": "trainer.evaluate.future:Future",
}


def protocol_class(name: str) -> type[Protocol]:
    """The class of a protocol. Raises SettingError for an unknown name."""
    if name not in PROTOCOLS:
        raise SettingError(f"unknown protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    return pkgutil.resolve_name(PROTOCOLS[name])
