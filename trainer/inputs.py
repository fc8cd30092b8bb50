"""The input that a network expects: order, range and normalisation of pixels, and the frames of a clip."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.reading import Only, validate


@dataclass(frozen=True)
class Input:
    """A network gets (value * top / 255 - mean) / std for each channel of the pixels.

    order: of the channels, "RGB" or "BGR", also in mean and std
    top: end of the range, 1 or 255
    frames, stride: frames of a clip, and distance between them; frames None: as many as in the shards, without gaps
    """

    order: str = "RGB"
    top: float = 1.0
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    frames: int | None = None
    stride: int = 1

    def normalised(self, x: Tensor) -> Tensor:
        """RGB float32 [..., 3] in 0..1, which is overwritten -> network input, [..., 3]."""
        if self.order == "BGR":
            x = x.flip(-1)
        if self.top != 1:
            x.mul_(self.top)
        # in place, because new memory takes longer than the arithmetic
        return x.sub_(_number(self.mean, x.device)).div_(_number(self.std, x.device))

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """Network input, float32 [..., 3], as RGB uint8."""
        values = 255 / self.top * (x * np.array(self.std, x.dtype) + np.array(self.mean, x.dtype))
        return np.clip(np.rint(values[..., ::-1] if self.order == "BGR" else values), 0, 255).astype(np.uint8)

    @property
    def described(self) -> str:
        """The input in words."""
        mean, std = (" ".join(f"{value:g}" for value in dict.fromkeys(own)) for own in (self.mean, self.std))
        return f"{self.order}, 0 to {self.top:g}, mean {mean}, std {std}"

    def stored(self) -> dict[str, Any]:
        """The input as JSON content, see `read`."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def read(stored: object) -> Input:
    """The inverse of `Input.stored`. Raises ValueError for anything else."""
    number = float | int
    form = {"order": str, "top": number, "mean": [number], "std": [number], "frames": int | None, "stride": int}
    validate(stored, Only(form), "input")
    assert isinstance(stored, dict)
    found = Input(**stored | {"mean": tuple(stored["mean"]), "std": tuple(stored["std"])})
    sane = len(found.mean) == len(found.std) == 3 and all(0 < abs(s) < 1e6 for s in found.std) and found.stride >= 1
    sane &= all(abs(m) < 1e6 for m in found.mean) and found.order in ("RGB", "BGR") and found.top in (1, 255)
    sane &= (found.frames is None or 1 <= found.frames <= 256) and found.stride <= 256
    if not sane:
        raise ValueError(f"input is {stored!r:.200}, expected that of a network")
    return found


def of(backbone: nn.Module) -> Input:
    """The input of a network; `OURS` if it has no attribute for it."""
    return getattr(backbone, "input", OURS)


def of_run(meta: dict) -> Input:
    """The input of a run's network, from the content of its checkpoint.json; `OURS` for older versions."""
    return read(meta["input"]) if "input" in meta else OURS


def conditions(backbone: nn.Module) -> str:
    """What else than weights determines the features of a network, in words; "" for networks trained here from random
    weights."""
    own = of(backbone), getattr(backbone, "norm_epsilon", 1e-5)
    return "" if own == (OURS, 1e-5) else json.dumps([own[0].stored(), own[1]])


OURS = Input()  # for networks trained here from random weights


def _number(values: tuple[float, ...], device: torch.device) -> Any:
    """One number if all channels have the same value, which is fastest, else one per channel."""
    return values[0] if len(set(values)) == 1 else constant(values, device)


@functools.cache  # else each step would wait for its upload
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, float32 [n]."""
    return torch.tensor(values, device=device)
