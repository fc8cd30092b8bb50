"""Protocols that turn a checkpoint into numbers."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from labelgen import plugins
from trainer.errors import SettingError

if TYPE_CHECKING:
    from trainer.evaluate.protocol import Protocol

# name of a protocol, its command and its results -> its class
PROTOCOLS = {
    "retrieval": "trainer.evaluate.protocols.retrieval:Retrieval",
    "knn": "trainer.evaluate.protocols.knn:KNearest",
    "linear": "trainer.evaluate.protocols.linear:Linear",
    "attentive": "trainer.evaluate.protocols.attentive:Attentive",
    "recognition": "trainer.evaluate.protocols.recognition:Recognition",
    "scenes": "trainer.evaluate.protocols.scenes:Scenes",
    "similarity": "trainer.evaluate.protocols.similarity:Similarity",
    "smoothness": "trainer.evaluate.protocols.smoothness:Smoothness",
    "attention": "trainer.evaluate.protocols.attention:Attention",
    "pretext": "trainer.evaluate.protocols.pretext:Pretext",
    "future": "trainer.evaluate.protocols.future:Future",
    "self": "trainer.evaluate.protocols.self_evaluation:SelfEvaluation",
}


def protocol_class(name: str) -> type[Protocol]:
    """The class of a protocol, by its name in PROTOCOLS or by an import path that the user has given (see
    labelgen.plugins). Raises SettingError for any other name."""
    if plugins.is_path(name):
        from trainer.evaluate.protocol import Protocol

        found = plugins.find(name, SettingError)
        if not (isinstance(found, type) and issubclass(found, Protocol)):
            raise SettingError(f"{name}: {found!r:.80}, expected a subclass of trainer.evaluate.protocol.Protocol")
        return found
    if name not in PROTOCOLS:
        raise SettingError(f"unknown protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    return pkgutil.resolve_name(PROTOCOLS[name])


def known(name: str) -> bool:
    """Whether the name is in PROTOCOLS, or the user has given it as an import path."""
    return name in PROTOCOLS or name in plugins.named()
