"""The amount of motion in a clip, by which videos can be chosen. Made with `vssl labelgen --motion`, not by default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from labelgen.labels.kind import Arrays, Field, Kind, Labels, Settings

if TYPE_CHECKING:
    from labelgen.config import Config
    from labelgen.labels.clip import Clip

STATIC = 0.1  # pixels per frame; slower pixels count as static
COLUMNS = (
    "flow_mean", "flow_median", "flow_95", "boundary_mean", "boundary_median", "boundary_95", "static",
)  # fmt: skip


def amounts(flows: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """The COLUMNS of a clip, float32 [7]: mean, median and 95th percentile of the magnitude of its flow (pixels per frame) and
    of its motion boundaries, over all pixels of all frames; and the share of pixels whose flow is smaller than STATIC.

    flows: float32 [T - 1, H, W, 2]; boundaries: float32 [T - 1, 4, H, W], see `motion_boundaries`
    """
    found = []
    for length in (np.hypot(flows[..., 0], flows[..., 1]), np.sqrt(np.square(boundaries).sum(1))):
        found += [length.mean(dtype=np.float64), *np.percentile(length, [50, 95])]
    still = np.hypot(flows[..., 0], flows[..., 1]) < STATIC
    return np.array([*found, still.mean()], np.float32)


def _of_clip(clip: Clip, config: Config) -> Labels:
    return {"amount/motion": amounts(np.stack(clip.flows), clip.boundaries)}


def _faults(arrays: Arrays, config: Settings) -> Iterator[tuple[str, bool]]:
    values = np.asarray(arrays["amount/motion"])
    yield "amount/motion", bool((~(values >= 0)).any() or (values[:, -1] > 1).any() or np.isinf(values).any())


def _lines(arrays: Arrays, config: Settings) -> Iterator[str]:
    values = np.asarray(arrays["amount/motion"])
    if len(values):
        middle = dict(zip(COLUMNS, np.median(values, 0).tolist(), strict=True))
        yield "motion, medians of clips: " + ", ".join(f"{name} {value:.3g}" for name, value in middle.items())


AMOUNT = Kind(
    name="amount",
    version=1,
    constants={"static": STATIC},
    fields=(
        Field(
            "amount/motion",
            np.float32,
            ("clips", len(COLUMNS)),
            "only with `--motion`: mean, median and 95th percentile of the flow, in pixels per frame, and of the motion "
            "boundaries; "
            f"share of pixels that move less than {STATIC}",
        ),
    ),
    of_clip=_of_clip,
    faults=_faults,
    lines=_lines,
)
