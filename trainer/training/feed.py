"""What each pass of the network is given, made ready while the one before it is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from labelgen.errors import VsslError
from trainer import data
from trainer.errors import LoaderLost
from trainer.network import Network
from trainer.training.streams import Stream


@dataclass(frozen=True)
class Part:
    """A step or, where gradients are accumulated, a part of one: batches by method, as they come from the loaders and on the
    device, the share of the step's samples that each holds, and the ids of the samples."""

    raw: dict[str, dict]
    batches: dict[str, data.Batch]
    shares: dict[str, float]
    ids: list[str]


class Feed:
    """The parts of the steps in their order. waited: seconds, since it was set to 0, in which there was no batch."""

    def __init__(
        self,
        streams: dict[str, Stream],
        loaders: dict[str, Iterator[dict]],
        network: Network,
        steps: range,
        device: torch.device,
    ):
        self.streams, self.loaders, self.network, self.last, self.device = streams, loaders, network, steps.stop, device
        micros = next(iter(streams.values())).batches.micro
        self.places = ((step, micro) for step in steps for micro in range(micros))
        self.waited = 0.0
        self._next: Part | VsslError | None = None
        self._rows: data.Download | None = None

    def take(self) -> Part:
        """The part that is next. Clips of other videos are decoded here, while the device is still busy with the pass before.
        Raises what befell its data, see trainer.data.received."""
        if not isinstance(self._next, Part):
            assert self._next is not None, "nothing was prepared"
            raise self._next
        part, rows = self._next, self._rows.wait()["rows"] if self._rows else {}
        others = {
            name: self.streams[name].with_others(part.batches[name], part.raw[name], chosen.numpy())
            for name, chosen in rows.items()
        }
        return replace(part, batches={**part.batches, **others})

    def prepare(self, look_ahead: bool = True) -> dict[str, torch.Tensor]:
        """Have the part after the one in hand uploaded and augmented, and return rows of the other videos whose clips it
        needs, on the device, by method; `chosen` takes them on their way to the host.

        look_ahead: False where these have been chosen before, by a run that this one goes on with
        """
        self._next = self._rows = None
        place = next(self.places, None)
        if place is None:
            return {}
        try:
            self._next = part = self._part(*place)
        except VsslError as error:
            self._next = error  # of another step than that in hand
            return {}
        if look_ahead:
            self.network.look_ahead(part.batches)
        return self.network.others(part.batches)

    def chosen(self, rows: data.Download) -> None:
        """rows: holds under "rows" what `prepare` has returned, where that was anything"""
        self._rows = rows

    def _part(self, step: int, micro: int) -> Part:
        begin = time.perf_counter()
        try:
            raw = {name: next(loader) for name, loader in self.loaders.items()}
        except LoaderLost as lost:
            lost.untouched = micro == 0
            raise
        self.waited += time.perf_counter() - begin
        batches, shares = {}, {}
        for name, stream in self.streams.items():
            counts, shares[name] = stream.batches.counts(step)[micro], stream.batches.shares(step)[micro]
            batches[name] = stream.on_device(raw[name], step / self.last, self.device, counts)
        return Part(raw, batches, shares, [name for batch in raw.values() for name in batch["id"]])
