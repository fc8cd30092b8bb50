"""Estimates of how long the jobs of a study take."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator

import torch

from trainer import distributed
from trainer.network import build_backbone
from trainer.settings import Settings, resolve
from trainer.study.devices import kind_of_device
from trainer.study.jobs import Job, Store
from trainer.training.precision import pick_precision, set_precision

_FLOW = 0.3  # seconds per video


def seconds(planned: Iterable[Job], store: Store, device: str) -> Iterator[tuple[Job, float]]:
    """Each job with an estimate of its seconds on this kind of device: at the rate of similar finished jobs of this study, else
    of a few steps timed now. Raises TrainerError for a device that cannot be used."""
    kind_of, spent = kind_of_device(device), dict[str, list[float]]()
    for made in map(store.result, store.ids()):
        if made.get("device") == kind_of:
            total = spent.setdefault(made["cost"], [0.0, 0.0])
            total[0] += made["seconds"]
            total[1] += made["clips"]
    for job in planned:
        if job.cost in spent:
            yield job, job.clips * spent[job.cost][0] / spent[job.cost][1]
        else:
            yield job, job.clips * (_FLOW if job.cost == "flow" else seconds_per_clip(job.cost, device.split(",")[0]))


@functools.cache
def seconds_per_clip(cost: str, name: str) -> float:
    """Seconds per clip of a network on the device of that name, in training or, for "features", only forward. cost: that of a
    job, such as "features r3d10 0.125 16x40"."""
    what, backbone, width, clip = cost.split(" ")
    trains = what != "features"
    frames, crop = map(int, clip.split("x"))
    settings, device = resolve(Settings(backbone=backbone, width=float(width))), distributed.pick_device(name)
    network = build_backbone(settings)
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    set_precision(pick_precision("auto" if trains else "float32", device), network)
    clips = torch.rand(4 if device.type == "cpu" else 16, 3, frames, crop, crop, device=device)
    for _ in range(2):  # the first pass also chooses kernels
        begin = time.perf_counter()
        with torch.set_grad_enabled(trains):
            total = [*network(clips).values()][-1].sum()
        if trains:
            total.backward()
            gradients = (weight.grad for weight in network.parameters() if weight.grad is not None)
            total = next(gradients).sum()  # that of the first layer is computed last
        total.item()  # wait for the device
        took = time.perf_counter() - begin
    return took / len(clips)
