"""Accuracy and speed of optical flows on Middlebury pairs with known flow, and from video files to files of flow, on one core.

python benchmarks/flow.py               ours, OpenCV's TV-L1, DIS (fast, medium) and Farneback, at full size and at 128 x 171
python benchmarks/flow.py --parameters  TV-L1 with one parameter changed at a time
python benchmarks/flow.py --light       TV-L1 of images, of their texture, and OpenCV's, under changing light
python benchmarks/flow.py --extract     `vssl flow` from a video file to files, with each backend: pairs/s, memory, stages
python benchmarks/flow.py --stored      the error that 8 bits, JPEG and float16 add to the flow
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # so that `labelgen` is the package

import av  # noqa: E402
import cv2  # noqa: E402
import numba  # noqa: E402
import numpy as np  # noqa: E402

from labelgen import decode  # noqa: E402
from labelgen.extract.values import quantised  # noqa: E402
from labelgen.flow import BACKENDS, flow, luma, tvl1  # noqa: E402
from labelgen.flow.opencv import dis, dis_medium, farneback, opencv_tvl1  # noqa: E402

PAIRS = ("RubberWhale", "Dimetrodon", "Venus", "Grove2")
SMALL = 128, 171
UNKNOWN = 1e9
EXTRACTED = {"TV-L1": 4, "others": 61, "long": 1220}  # frames of the videos of --extract
VIDEOS = (".avi", ".mkv", ".mp4")


FLOWS = {  # name in a table -> function of two luma images uint8 [H, W], returns float32 [H, W, 2]
    "ours": tvl1,
    "TV-L1": opencv_tvl1,
    "DIS": dis,  # preset "fast"
    "DIS m": dis_medium,
    "Farn.": farneback,
}
NAMES = dict(zip(FLOWS, BACKENDS, strict=True))  # table names -> backends
CHANGES = (
    {},
    {"structure": 0, "attachment": 0.3},  # version 1
    *({"structure": value} for value in (0, 0.2, 0.4, 0.5)),
    {"structure": 0.8, "attachment": 0.4},
    *({"structure_steps": value} for value in (10, 30, 60)),
    *({"flatness": value} for value in (8.0, 32.0)),
    *({"attachment": value} for value in (0.25, 0.3, 0.4)),
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
    """The pair at the size of label frames, area-averaged; the flow is unknown if part of the area is unknown."""
    height, width = SMALL

    def shrink(image):
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    return shrink(first), shrink(second), shrink(true) * np.float32([width / true.shape[1], height / true.shape[0]])


def end_point_error(flow: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in pixels between flows [H, W, 2] at pixels with known true flow."""
    return float(np.nanmean(np.linalg.norm(flow - true, axis=-1)))


def milliseconds(computations: list[Callable[[], object]], repeats: int) -> np.ndarray:
    """Processor time of each computation, run alternately, float [repeats, computations]."""
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


def lit(image: np.ndarray, how: str) -> np.ndarray:
    """An image uint8 [H, W] under different lighting."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    lights = {
        "as it is": lambda: image,
        "10 % darker": lambda: image * 0.9,
        "15 grey levels brighter": lambda: image + 15.0,
        "lamp from the left": lambda: image * (1.15 - 0.3 * x / width),
        "flicker in rows": lambda: image * (1 + 0.1 * np.sin(2 * np.pi * y / (height / 3))),
    }
    return np.rint(np.clip(lights[how](), 0, 255)).astype(np.uint8)


LIGHTS = ("as it is", "10 % darker", "15 grey levels brighter", "lamp from the left", "flicker in rows")
IN_LIGHT = {  # of two luma images
    "images": lambda *pair: tvl1(*pair, structure=0),
    "texture": tvl1,
    "share .8": lambda *pair: tvl1(*pair, structure=0.8, attachment=0.4),
    "TV-L1": opencv_tvl1,
}


def warping_error(flow: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Mean difference in grey levels between the first image and the second one, sampled at the positions to which the flow
    points."""
    height, width = first.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    at_x, at_y = x + flow[..., 0], y + flow[..., 1]
    inside = (at_x >= 0) & (at_y >= 0) & (at_x <= width - 1) & (at_y <= height - 1)
    warped = cv2.remap(second.astype(np.float32), at_x, at_y, cv2.INTER_CUBIC)
    return float(np.abs(warped - first)[inside].mean())


def light(data: Path, repeats: int) -> None:
    """The second image of each pair under different lighting: error of the flow if it is known, and on real videos how well the
    flow fits the unchanged second image."""
    known = [read_pair(data / name) for name in PAIRS]
    for name in ("ucf101", "asl", "clips", "arid", "weizmann"):
        paths = sorted(path for path in (data.parent / name).rglob("*.*") if path.suffix in VIDEOS)
        pairs = []
        for path in paths[:: -(-len(paths) // 4)]:
            grey = [luma(frame) for frame in islice(decode.frames(path, *SMALL), 24)]
            pairs += [(grey[at], grey[at + 1]) for at in range(0, len(grey) - 1, 8)]
        _light(f"{name}, {len(pairs)} pairs: warping error, grey levels", pairs, warping_error)
    _light("known flow at 128 x 171: error, pixels", [shrink_pair(*pair) for pair in known], None)
    others = dict(IN_LIGHT)
    del others["TV-L1"]  # it takes seconds
    _light("known flow, full size: error, pixels", known, None, others)


def _light(
    title: str, pairs: Sequence[tuple[np.ndarray, ...]], error: Callable[..., float] | None, flows=IN_LIGHT
) -> None:
    print(" | ".join([f"{title:46}", *(f"{name:>8}" for name in flows)]))
    for how in LIGHTS:
        rows = []
        for first, second, *true in pairs:
            found = [flow(first, lit(second, how)) for flow in flows.values()]
            rows.append([error(one, first, second) if error else end_point_error(one, *true) for one in found])
        print(" | ".join([f"  {how:44}", *(f"{value:8.3f}" for value in np.mean(rows, 0))]), flush=True)


def clip_of(videos: Path, path: Path, frames: int) -> Path:
    """A video like those of UCF101, MPEG-4 of 320 x 240 pixels, with `frames` frames from the first real video in a folder,
    back and forth, or from a moving texture if there is none."""
    real = next(iter(sorted(videos.rglob("*.avi")) if videos.is_dir() else []), None)
    if real is not None:
        shown = list(islice(decode.frames(real, 240, 320), 150))
    else:
        noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        texture = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
        shown = [np.roll(texture, (t, 2 * t), (0, 1)) for t in range(40)]
    there_and_back = shown + shown[-2:0:-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "4"})
        stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
        for t in range(frames):
            picture = np.ascontiguousarray(there_and_back[t % len(there_and_back)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def extraction(path: Path, out: Path, backend: str) -> tuple[float, Mapping[str, float], Mapping[str, int], int]:
    """Processor seconds, seconds per stage and counts for writing the flow of a video, and the peak memory of this process."""
    from labelgen.extract import Extraction, dataset_of
    from labelgen.extract.video import FlowTask, extract_video

    data = dataset_of(path)
    settings = Extraction(flow=backend, short=None, height=256, width=340)
    begin = time.process_time()
    made = extract_video(FlowTask(out / "job", data.videos, data.root, settings, backend, stall=600))
    return time.process_time() - begin, made.seconds, made.counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _memory(path: Path, out: Path) -> int:
    """Peak memory of a separate process that writes the flow of a video, kB."""
    code = "import sys; sys.argv.pop(0); from pathlib import Path; from benchmarks.flow import extraction; "
    code += "print(extraction(Path(sys.argv[0]), Path(sys.argv[1]), 'tvl1')[3])"
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, path, out], env=environment, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def extract(data: Path, repeats: int) -> None:
    """From a video file to JPEGs of 256 x 340 in the layout of MMAction2, in one process."""
    with TemporaryDirectory() as folder:
        out, videos = Path(folder), data.parent / "ucf101"
        clips = {name: clip_of(videos, out / f"{frames}.avi", frames) for name, frames in EXTRACTED.items()}
        for name in NAMES:  # loads the kernels
            extraction(clips["TV-L1"], out, NAMES[name])
        runs = {name: [] for name in NAMES}
        for _ in range(repeats):  # alternately
            for name, backend in NAMES.items():
                runs[name].append(extraction(clips.get(name, clips["others"]), out, backend))
        pairs = {name: runs[name][0][2]["flow pairs"] for name in NAMES}
        times = {name: np.array([seconds for seconds, *_ in runs[name]]) / pairs[name] for name in NAMES}
        stages = ("decode", "flow", "jpeg", "write")
        print(" | ".join([f"{'':5}", "pairs/s", "ms/pair", " ratio", *(f"{stage:>6}" for stage in stages)]))
        for name in NAMES:
            each = np.median(times[name])
            spent = [sum(run[1][stage] for run in runs[name]) for stage in stages]
            shares = (100 * seconds / sum(spent) for seconds in spent)
            ratio = np.median(times[name] / times["ours"])
            print(
                f"{name:5} | {1 / each:7.1f} | {1e3 * each:7.2f} | {ratio:6.2f} | "
                + " | ".join(f"{share:4.1f} %" for share in shares)
            )
        short, long = (_memory(clips[name], out) for name in ("others", "long"))
        few, many = EXTRACTED["others"], EXTRACTED["long"]
        print(f"memory of a process: {short / 1024:.0f} MB after {few} frames, {long / 1024:.0f} MB after {many}")
    print("published: denseflow's TV-L1 with CUDA logs 45 and 119.5 flows/s of a whole GPU")


def stored(data: Path, repeats: int) -> None:
    """The cost of storing: error relative to the flow before storing, in pixels, for the first frames of real clips at 256 x
    340."""
    folders = (data.parent / name for name in ("ucf101", "asl", "clips"))
    paths = [path for folder in folders for path in sorted(folder.rglob("*.*")) if path.suffix in VIDEOS]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for path in paths:
        grey = [luma(frame) for frame in islice(decode.frames(path, 256, 340), 6)]
        for pair in pairwise(grey):
            one = np.clip(flow(*pair), -20, 20)
            for name, (read, size) in as_stored(one).items():
                error = np.abs(read - one)
                found.setdefault(name, []).append((error.mean(), np.quantile(error, 0.99), size))
    print(
        f"{sum(map(len, found.values())) // len(found)} flows of {len(paths)} videos, 256 x 340, clipped to 20 pixels"
    )
    print(f"{'':26} | mean error | 99 % below | kB per flow")
    for name, rows in found.items():
        mean, most, size = np.mean(rows, 0)
        print(f"{name:26} | {mean:10.4f} | {most:10.4f} | {size / 1e3:11.1f}")


def as_stored(one: np.ndarray) -> dict[str, tuple[np.ndarray, int]]:
    """A flow as it is read back, and its size in bytes, by storage format."""
    planes, _ = quantised(one, 20)

    def coded(suffix: str, *options: int) -> tuple[np.ndarray, int]:
        files = [cv2.imencode(suffix, plane, options)[1] for plane in planes]
        read = np.stack([cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files], -1)
        return read.astype(np.float64) * 40 / 255 - 20, sum(map(len, files))

    qualities = {f"8 bits, JPEG {q}": coded(".jpg", cv2.IMWRITE_JPEG_QUALITY, q) for q in (100, 95, 90, 75)}
    half = one.astype(np.float16)
    return {
        "8 bits, lossless (.png)": coded(".png"),
        **qualities,
        "float16 (npy)": (half.astype(np.float32), half.nbytes),
    }


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
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, alternately")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--parameters", action="store_true", help="compare parameters of TV-L1 instead of backends")
    what.add_argument("--light", action="store_true", help="measure flow under changing light")
    what.add_argument("--extract", action="store_true", help="measure `vssl flow`")
    what.add_argument("--stored", action="store_true", help="measure the cost of storing flow")
    arguments = parser.parse_args()
    missing = [name for name in PAIRS if not (arguments.data / name / "flow10.flo").is_file()]
    missing = [] if arguments.extract or arguments.stored else missing
    if missing:
        print(
            f"{arguments.data}: no Middlebury pairs {', '.join(missing)}; give their folder with --data",
            file=sys.stderr,
        )
        return 2
    cv2.setNumThreads(1)
    print(machine())
    others = {"parameters": parameters, "light": light, "extract": extract, "stored": stored}
    next((run for name, run in others.items() if getattr(arguments, name)), backends)(arguments.data, arguments.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
