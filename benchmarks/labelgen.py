"""Speed, memory and agreement of the label generator on real clips.

python benchmarks/labelgen.py                 all parts, six minutes on two free cores
python benchmarks/labelgen.py --only workers  one part: workers, published, memory or backends

workers    time per stage of one worker, and two workers against one
published  against OpenCV's TV-L1 with the labels of one crop in SciPy and NumPy, as in previous code
memory     peak memory of the workers for few, many and long videos
backends   how often the motion labels agree between flows, including OpenCV's other flows and one of 8 bits
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # so that `labelgen` is the package

import av  # noqa: E402
import cv2  # noqa: E402
import h5py  # noqa: E402
import joblib  # noqa: E402
import numba  # noqa: E402
import numpy as np  # noqa: E402
import scipy  # noqa: E402
from joblib.externals.loky import get_reusable_executor  # noqa: E402
from scipy.ndimage import prewitt  # noqa: E402

from labelgen import decode, manifest, shards  # noqa: E402
from labelgen.config import CLIP_LENGTH, Config  # noqa: E402
from labelgen.extract.values import quantised  # noqa: E402
from labelgen.flow import BACKENDS, find, luma  # noqa: E402
from labelgen.labels.appearance import appearance_statistics  # noqa: E402
from labelgen.labels.boundaries import motion_boundaries  # noqa: E402
from labelgen.labels.clip import MAX_FLOW  # noqa: E402
from labelgen.labels.motion import motion_statistics  # noqa: E402
from labelgen.labels.patterns import BLOCKS, centre_crop, crop_grid, patterns  # noqa: E402
from labelgen.manifest import Dataset, Video  # noqa: E402
from labelgen.run import run  # noqa: E402
from labelgen.run.plan import configuration, file_sizes  # noqa: E402
from labelgen.run.shard import shard_arrays  # noqa: E402
from labelgen.run.video import Clock, label_video  # noqa: E402

CONFIG = Config()
CORNERS = crop_grid(CONFIG.height, CONFIG.width, CONFIG.crop)
MASKS = [[ids == block for block in range(n)] for ids, n in zip(patterns(CONFIG.crop), BLOCKS, strict=True)]
COPIES = 2  # of the data set, so that the start of the workers matters little
LONGER = 20  # times
KINDS = {
    "block": np.s_[:12:2],
    "direction": np.s_[1:12:2],
    "direction, same block": np.s_[1:12:2],
    "flow": np.s_[12:],
}
CLEAR = 1.25  # ratio of the best score to the second-best


def label(dataset: Dataset, videos: tuple[Video, ...], workers: int) -> dict:
    """The report of `vssl labelgen` on these videos, with new worker processes as the command starts them."""
    get_reusable_executor().shutdown(wait=True)
    with tempfile.TemporaryDirectory() as out:
        report = run(dataset, videos, Path(out), CONFIG, workers=workers)
    if report["failures"]:
        raise SystemExit(f"{dataset.root}: {report['failures']}; the benchmark needs readable videos")
    return report


def copies(data: Path, root: Path, n: int) -> Dataset:
    """The Weizmann clips n times over, by links."""
    for copy in range(n):
        Path(root, str(copy)).symlink_to(data / "weizmann")
    return manifest.load("folder", root)


# --- workers


def workers(data: Path, repeats: int) -> None:
    reports = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as root:
        dataset = copies(data, Path(root), COPIES)
        label(dataset, dataset.videos[:2], 1)  # compiles what is not in Numba's cache yet
        for _ in range(repeats):
            for n in reports:
                reports[n].append(label(dataset, dataset.videos, n))
    _profile(reports[1])
    print(f"\nworkers | seconds | speed-up    (median and range of {repeats} alternating runs)")
    seconds = {n: np.array([report["this_run"]["seconds"] for report in reports[n]]) for n in reports}
    for n in reports:
        ratio = seconds[1] / seconds[n]
        at_work = reports[n][0]["this_run"]["workers"]
        note = "" if at_work == n else f"  only {at_work} working: there are no more cores"
        print(
            f"{n:7} | {np.median(seconds[n]):7.2f} | {np.median(ratio):5.2f}  {ratio.min():.2f}..{ratio.max():.2f}{note}"
        )


def _profile(reports: list[dict]) -> None:
    """Print the time per stage of one worker, medians of several runs."""
    runs = [report["this_run"] for report in reports]
    total = np.median([run["seconds"] for run in runs])
    stage = {name: np.median([run["seconds_per_stage"][name] for run in runs]) for name in runs[0]["seconds_per_stage"]}
    stage["start"] = total - sum(stage.values())
    frames, pairs, clips = (runs[0][name] for name in ("frames", "flow pairs", "clips"))
    print(f"{reports[0]['videos']['labelled']} videos, {frames} frames, {clips} clips, one worker\n")
    print("stage                                              | seconds | share | each")
    for name, title, count, unit in (
        ("decode", "decoding, resizing", frames, "frame"),
        ("jpeg", "JPEG", frames, "frame"),
        ("flow", "TV-L1", pairs, "pair"),
        ("labels", f"labels: boundaries to appearance, {len(CORNERS)} crops x 2", clips, "clip"),
        ("write", "writing and checking shards", reports[0]["shards"], "shard"),
        ("start", "starting, waiting, report", 1, "run"),
    ):
        each = f"{1e3 * stage[name] / count:7.2f} ms a {unit}"
        print(f"{title:50} | {stage[name]:7.2f} | {stage[name] / total:4.0%}  | {each}")
    print(f"\ndecoding and TV-L1 together: {(stage['decode'] + stage['flow']) / total:.0%} of the time")
    print(f"labels / TV-L1: {stage['labels'] / stage['flow']:.2f}")


# --- published


def published(data: Path, repeats: int) -> None:
    dataset = manifest.load("weizmann", data / "weizmann")
    print("processor seconds a clip, one core\n")
    print("                    |       |               so far                   |        | so far")
    print("video               | clips | decoding | OpenCV TV-L1 | NumPy labels | vssl   | / vssl")
    ours, theirs, clips, same = 0.0, Counter(), 0, []
    label_to_shard(dataset, dataset.videos[0])  # loads the kernels
    for video in dataset.videos[::17]:
        times = [label_to_shard(dataset, video) for _ in range(repeats)]
        seconds, n = Counter(), len(same)
        for frames, flows, labels in published_way(video.path, seconds):
            same.append(np.array(labels) == our_labels(frames, flows))
        times += [label_to_shard(dataset, video) for _ in range(repeats)]
        n = len(same) - n
        _compare(video.id, n, seconds, np.median(times))
        clips, ours = clips + n, ours + np.median(times)
        theirs.update(seconds)
    _compare("all", clips, theirs, ours)
    print(
        f"\nso far: labels of one crop; vssl: of {len(CORNERS)}, plain and mirrored, all frames as JPEG, and the shard on disk"
    )
    print(f"given the same frames, flow and crop, {np.mean(same):.1%} of {np.size(same)} labels are the same")


def _compare(title: str, clips: int, theirs: Counter, ours: float) -> None:
    """Print one row of the comparison."""
    decoding, tvl1, labels = (theirs[stage] / clips for stage in ("decode", "flow", "labels"))
    cells = f"{title:19} | {clips:5} | {decoding:8.4f} | {tvl1:12.3f} | {labels:12.3f} | {ours / clips:6.4f}"
    print(f"{cells} | {theirs.total() / ours:5.0f}x", flush=True)


@contextmanager
def processor_time(seconds: Counter, stage: str) -> Iterator[None]:
    """Add this process' processor time to a stage. Other work on the machine affects it less than wall-clock time."""
    begin = time.process_time()
    yield
    seconds[stage] += time.process_time() - begin


def label_to_shard(dataset: Dataset, video: Video) -> float:
    """Processor seconds for one video, from the file to the finished shard."""
    spent = Counter()
    with tempfile.TemporaryDirectory() as out, open(Path(out, "frames"), "wb+") as spool, processor_time(spent, ""):
        record = label_video(video, CONFIG, spool.write, Clock())
        arrays = shard_arrays([record], [], dataset.root, CONFIG, len(dataset.splits))
        config = configuration(dataset, [video], file_sizes([video]), "all", CONFIG, 1)
        shards.write(Path(out, "00000.h5"), arrays, spool, config, CORNERS, dataset.splits)
    return spent.total()


def published_way(path: Path, seconds: Counter) -> Iterator[tuple[list[np.ndarray], list[np.ndarray], list[int]]]:
    """Frames, flows and the 27 labels of the centre crop of each clip of a video, as in previous code.

    One pass with OpenCV for frames and flow, then SciPy's Prewitt filter and NumPy's histograms block by block; only for one
    unmirrored crop, since the published code labels no others.
    """
    capture, frames = cv2.VideoCapture(str(path)), []
    with processor_time(seconds, "decode"):
        while (read := capture.read())[0]:
            frame = cv2.resize(read[1], (CONFIG.width, CONFIG.height), interpolation=cv2.INTER_AREA)
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    for start in range(0, len(frames) - CLIP_LENGTH + 1, CLIP_LENGTH):
        clip = frames[start : start + CLIP_LENGTH]
        with processor_time(seconds, "flow"):
            grey = [luma(frame) for frame in clip]
            solver = cv2.optflow.DualTVL1OpticalFlow_create()
            flows = [solver.calc(*pair, None) for pair in pairwise(grey)]
        with processor_time(seconds, "labels"):
            labels = published_labels(clip, flows)
        yield clip, flows, labels


def published_labels(frames: list[np.ndarray], flows: list[np.ndarray]) -> list[int]:
    """14 motion and 13 appearance labels of the centre crop."""
    y, x = CORNERS[centre_crop(CONFIG.height, CONFIG.width, CONFIG.crop)]
    crop = np.s_[..., y : y + CONFIG.crop, x : x + CONFIG.crop]
    boundaries = np.array(
        [[prewitt(flow[..., c], axis, mode="nearest") / 6 for c in (0, 1) for axis in (1, 0)] for flow in flows]
    )
    labels = [int(scores.argmax()) for scores in motion_scores(boundaries[crop])]
    pixels = np.moveaxis(np.stack(frames), -1, 0)[crop]
    colour = 4 * (pixels[0] >= 128) + 2 * (pixels[1] >= 128) + (pixels[2] >= 128)
    for pattern in MASKS:
        overlap = []
        for mask in pattern:
            values = pixels[..., mask]  # [3, 16, pixels]
            histograms = np.array([[np.histogram(v, 256, (0, 256))[0] for v in channel] for channel in values])
            overlap.append(np.mean(histograms.min(1).sum(1) / histograms.max(1).sum(1)))
        for block in (int(np.argmin(overlap)), int(np.argmax(overlap))):
            labels += [block, int(np.histogram(colour[:, pattern[block]], 8, (0, 8))[0].argmax())]
    return [*labels, int(np.histogram(colour, 8, (0, 8))[0].argmax())]


def motion_scores(boundaries: np.ndarray) -> list[np.ndarray]:
    """The scores whose maxima are the 14 motion labels: means per block, votes per direction, sums per flow.

    boundaries: float32 [15, 4, crop, crop]
    """
    summed, scores = boundaries.sum(0), []
    polar = [(np.hypot(x, y), np.degrees(np.arctan2(-y, x)) % 360) for x, y in (summed[:2], summed[2:])]
    for pattern in MASKS:
        for magnitude, angle in polar:
            means = np.array([magnitude[mask].mean() for mask in pattern])
            inside = pattern[means.argmax()]
            scores += [means, np.histogram(angle[inside], 8, (0, 360), weights=magnitude[inside])[0]]
    return scores + [np.hypot(boundaries[:, i], boundaries[:, i + 1]).sum((1, 2)) for i in (0, 2)]


def our_labels(frames: list[np.ndarray], flows: list[np.ndarray]) -> np.ndarray:
    """The same 27 labels by the package."""
    corners = CORNERS[[centre_crop(CONFIG.height, CONFIG.width, CONFIG.crop)]]
    motion, _ = motion_statistics(np.stack([motion_boundaries(flow) for flow in flows]), corners, CONFIG.crop)
    return np.concatenate([motion[0, 0], appearance_statistics(np.stack(frames), corners, CONFIG.crop)[0, 0]])


# --- memory


def memory(data: Path, repeats: int) -> None:
    if not Path("/proc/self/status").exists():
        print("memory is read from /proc, which is missing on this system")
        return
    with tempfile.TemporaryDirectory() as many, tempfile.TemporaryDirectory() as one:
        dataset = copies(data, Path(many), 4)
        lengthen(dataset.videos[0].path, Path(one, "long.mp4"))
        long = manifest.load("folder", one)
        print("                          |  frames | peak of each worker, MB")
        for title, source, videos in (
            ("1 video", dataset, dataset.videos[:1]),
            ("10 videos", dataset, dataset.videos[:50:5]),
            ("50 videos", dataset, dataset.videos[:50]),
            ("200 videos", dataset, dataset.videos),
            (f"1 video, {LONGER} times as long", long, long.videos),
        ):
            report = label(source, videos, 2)
            peaks = [f"{peak_megabytes(child.pid):.0f}" for child in multiprocessing.active_children()]
            print(f"{title:25} | {report['frames']:7} | {', '.join(sorted(peaks))}", flush=True)


def lengthen(source: Path, target: Path) -> None:
    """The frames of a video, repeated LONGER times, as H.264."""
    frames = list(decode.frames(source))
    with av.open(target, "w") as container:
        stream = container.add_stream("libx264", 25, options={"preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames * LONGER:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def peak_megabytes(process: int) -> float:
    """Peak memory of a process, including shared libraries."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# --- backends


def eight_bits(flow: np.ndarray) -> np.ndarray:
    """The flow as programs such as denseflow store it in pictures: -20 to 20 pixels as 0 to 255."""
    return (
        np.rint((np.clip(flow, -MAX_FLOW, MAX_FLOW) + MAX_FLOW) * 255 / (2 * MAX_FLOW)) * 2 * MAX_FLOW / 255 - MAX_FLOW
    )


def of_jpeg(flow: np.ndarray) -> np.ndarray:
    """The flow as it is read back from the pictures that `vssl flow` writes."""
    planes, _ = quantised(flow, MAX_FLOW)
    files = (cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for plane in planes)
    read = np.stack([cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files], -1)
    return (read * np.float64(2 * MAX_FLOW / 255) - MAX_FLOW).astype(np.float32)


FLOWS = {  # functions of two luma images uint8 [H, W], return float32 [H, W, 2]
    **{name: find(name).function for name in BACKENDS},
    "8 bits": lambda first, second: eight_bits(find("tvl1").function(first, second)).astype(np.float32),
    "JPEG 95": lambda first, second: of_jpeg(find("tvl1").function(first, second)),
    "float16": lambda first, second: find("tvl1").function(first, second).astype(np.float16).astype(np.float32),
}
COMPARED = [("tvl1", name) for name in FLOWS if name != "tvl1"]
COMPARED += [("opencv-tvl1", name) for name in ("dis", "dis-medium", "farneback")]


def backends(data: Path, repeats: int) -> None:
    labels, valid, clear = ({name: [] for name in FLOWS} for _ in range(3))
    sources = [paths[:: max(1, len(paths) // 4)] if name == "weizmann" else paths for name, paths in _videos(data)]
    paths = [path for source in sources for path in source]
    for path in paths:
        frames = list(islice(decode.frames(path, CONFIG.height, CONFIG.width), CLIP_LENGTH))
        if len(frames) < CLIP_LENGTH:
            continue
        grey = [luma(frame) for frame in frames]
        for name, flow in FLOWS.items():
            flows = [np.clip(flow(*pair), -MAX_FLOW, MAX_FLOW) for pair in pairwise(grey)]
            boundaries = np.stack([motion_boundaries(flow) for flow in flows])
            motion, moves = motion_statistics(boundaries, CORNERS, CONFIG.crop)
            labels[name].append(motion[:, 0])
            valid[name].append(moves[:, 0])
            clear[name].append([_clear(boundaries[..., y : y + CONFIG.crop, x : x + CONFIG.crop]) for y, x in CORNERS])
    labels, valid, clear = (
        {name: np.array(of[name]).reshape(-1, 14) for name in FLOWS} for of in (labels, valid, clear)
    )
    print(f"first {CLIP_LENGTH} frames of {len(labels['tvl1']) // len(CORNERS)} videos, {len(CORNERS)} crops of each;")
    print("motion labels that are valid in both; the 13 appearance labels do not depend on the flow")
    print("8 bits: our flow, rounded as in stored pictures")
    print(f"clear: with the first flow the best score is at least {CLEAR} times the second-best\n")
    print("flows                   | label                 | labels | agree, % | clear, % | of these agree, %")
    for one, two in COMPARED:
        both, same = (valid[one] & valid[two]).astype(bool), labels[one] == labels[two]
        for kind, columns in KINDS.items():
            where = both[:, columns]
            if kind == "direction, same block":
                where = where & same[:, KINDS["block"]]
            agree, sure = same[:, columns][where], clear[one][:, columns][where]
            cells = f"{one + ', ' + two:23} | {kind:21} | {len(agree):6} | {100 * agree.mean():8.1f}"
            print(f"{cells} | {100 * sure.mean():8.1f} | {100 * agree[sure].mean():17.1f}", flush=True)


def _videos(data: Path) -> Iterator[tuple[str, list[Path]]]:
    for name in ("weizmann", "ucf101", "hmdb51", "clips"):
        found = sorted(path for path in (data / name).rglob("*") if path.suffix in (".avi", ".mp4"))
        if not found:
            print(f"{data / name}: no videos, skipped", file=sys.stderr)
        yield name, found


def _clear(boundaries: np.ndarray) -> list[bool]:
    """Whether each of the 14 motion labels wins by a factor of CLEAR or more."""
    two = [np.sort(scores)[-2:] for scores in motion_scores(boundaries)]
    return [largest >= CLEAR * second for second, largest in two]


PARTS = {part.__name__: part for part in (workers, published, memory, backends)}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")
    versions = {"NumPy": np, "SciPy": scipy, "Numba": numba, "OpenCV": cv2, "PyAV": av, "h5py": h5py, "joblib": joblib}
    python = "Python " + sys.version.split()[0]
    cores = f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before"
    return f"{model}, {cores}; " + ", ".join([python, *(f"{k} {v.__version__}" for k, v in versions.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("VSSL_DATA") or HERE.parents[1] / "shared/data")
    parser.add_argument(
        "--data", type=Path, default=data, help="folder that contains weizmann/ and other sets of videos"
    )
    parser.add_argument("--only", choices=list(PARTS), help="run one part")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of which the median is taken")
    arguments = parser.parse_args()
    if not (arguments.data / "weizmann").is_dir():
        print(f"{arguments.data}: no folder weizmann/ in it; give the folder with --data or VSSL_DATA", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    print(machine())
    for part in [PARTS[arguments.only]] if arguments.only else PARTS.values():
        print(f"\n{part.__name__}\n")
        part(arguments.data.resolve(), arguments.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
