"""Accuracy and speed of optical flows on Middlebury pairs with known flow, on one core.

python benchmarks/flow.py               ours, OpenCV's TV-L1, DIS (fast, medium) and Farneback, at full size and at 128 x 171
python benchmarks/flow.py --parameters  TV-L1 with one parameter changed at a time
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # `labelgen` is the package, no script here

import cv2  # noqa: E402
import numba  # noqa: E402
import numpy as np  # noqa: E402

from labelgen import decode  # noqa: E402
from labelgen.flow import tvl1  # noqa: E402
from labelgen.flow.opencv import dis, opencv_tvl1  # noqa: E402

PAIRS = ("RubberWhale", "Dimetrodon", "Venus", "Grove2")
SMALL = 128, 171
UNKNOWN = 1e9


def farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """OpenCV's Farneback flow with the parameters of its tutorial: three levels of half the size, windows of 15, three
    iterations, polynomials of 5 pixels."""
    return cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)


FLOWS = {  # name in a table -> of two luma images uint8 [H, W], float32 [H, W, 2]
    "ours": tvl1,
    "TV-L1": opencv_tvl1,
    "DIS": dis,  # preset "fast"
    "DIS m": partial(dis, preset=cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    "Farn.": farneback,
}
CHANGES = (
    {},
    *({"attachment": value} for value in (0.2, 0.25, 0.35, 0.4)),
    *({"tightness": value} for value in (0.15, 0.25, 0.3)),
    *({"step": value} for value in (0.2, 0.225)),
    *({"scale": value} for value in (0.5, 0.6, 0.7, 0.75, 0.85)),
    *({"warps": warps, "iterations": n} for warps, n in ((2, 15), (3, 10), (3, 15), (4, 8), (4, 15), (5, 8), (5, 30))),
)


def read_pair(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both luma images uint8 [H, W] and the true flow float32 [H, W, 2] of a Middlebury folder; NaN where unknown."""
    first, second = (cv2.imread(str(folder / f"frame1{i}.png"), cv2.IMREAD_GRAYSCALE) for i in (0, 1))
    words = np.fromfile(folder / "flow10.flo", "<f4")
    width, height = words[1:3].view("<i4")
    true = words[3:].reshape(height, width, 2)
    return first, second, np.where(np.abs(true) > UNKNOWN, np.float32(np.nan), true)


def shrink_pair(first: np.ndarray, second: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pair at the size of label frames, area-averaged; the flow is unknown where a part of the area is."""
    height, width = SMALL

    def shrink(image):
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    return shrink(first), shrink(second), shrink(true) * np.float32([width / true.shape[1], height / true.shape[0]])


def end_point_error(flow: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in pixels between flows [H, W, 2] where the true one is known."""
    return float(np.nanmean(np.linalg.norm(flow - true, axis=-1)))


def milliseconds(computations: list[Callable[[], object]], repeats: int) -> np.ndarray:
    """Processor time of each, run in turn, float [repeats, computations]."""
    times = np.empty((repeats, len(computations)))
    for row in times:
        for k, compute in enumerate(computations):
            begin = time.process_time()
            compute()
            row[k] = 1e3 * (time.process_time() - begin)
    return times


def compare(title: str, first: np.ndarray, second: np.ndarray, true: np.ndarray | None, repeats: int) -> None:
    """Print one row of the table of flows."""
    flows = [flow(first, second) for flow in FLOWS.values()]
    errors = ["    -" if true is None else f"{end_point_error(flow, true):.3f}" for flow in flows]
    times = milliseconds([lambda flow=flow: flow(first, second) for flow in FLOWS.values()], repeats)
    ratios = np.median(times / times[:, :1], 0)[1:]
    cells = [f"{title:22}", *errors, f"{np.median(times[:, 0]):6.2f}", *(f"{ratio:6.2f}" for ratio in ratios)]
    print(" | ".join(cells), flush=True)


def backends(data: Path, repeats: int) -> None:
    ours, *others = FLOWS
    print(f"{'':22} | error, pixels{'':24} | {'ms':>6} | time / that of ours{'':10}".rstrip())
    print(" | ".join([f"{'':22}", *(f"{name:>5}" for name in FLOWS), f"{ours:>6}", *(f"{name:>6}" for name in others)]))
    pairs = {name: read_pair(data / name) for name in PAIRS}
    for name, pair in pairs.items():
        height, width = pair[0].shape
        compare(f"{name} {height}x{width}", *pair, repeats)
    height, width = SMALL
    for name, pair in pairs.items():
        compare(f"{name} {height}x{width}", *shrink_pair(*pair), repeats)
    for video in sorted((data.parent / "ucf101").rglob("*.avi")):
        frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in islice(decode.frames(video, *SMALL, None), 2)]
        compare(video.stem[2:24], *frames, None, repeats)


def parameters(data: Path, repeats: int) -> None:
    pairs = [read_pair(data / name) for name in PAIRS]
    small = [shrink_pair(*pair) for pair in pairs]
    print(f"{'':29} | error, pixels: {', '.join(PAIRS)}; mean | mean at 128x171 | ms at 128x171")
    for change in CHANGES:
        errors, small_errors = (
            [end_point_error(tvl1(*images, **change), true) for *images, true in some] for some in (pairs, small)
        )
        elapsed = np.median(milliseconds([lambda change=change: tvl1(*small[0][:2], **change)], 20 * repeats))
        title = ", ".join(f"{name} {value}" for name, value in change.items()) or "defaults"
        cells = " ".join(f"{error:.3f}" for error in errors)
        print(f"{title:29} | {cells} ; {np.mean(errors):.4f} | {np.mean(small_errors):.4f} | {elapsed:.2f}", flush=True)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
    return f"{model}, one core; {versions}, OpenCV {cv2.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=HERE.parents[1] / "shared/data/flow", help="folder of Middlebury pairs"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, in turn")
    parser.add_argument("--parameters", action="store_true", help="compare parameters of TV-L1 instead of backends")
    arguments = parser.parse_args()
    missing = [name for name in PAIRS if not (arguments.data / name / "flow10.flo").is_file()]
    if missing:
        print(
            f"{arguments.data}: no Middlebury pairs {', '.join(missing)}; give their folder by --data", file=sys.stderr
        )
        return 2
    cv2.setNumThreads(1)
    print(machine())
    (parameters if arguments.parameters else backends)(arguments.data, arguments.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
