"""Speed of the trainer's data path on real clips, one core, compared with the decoding alone, its lower bound.

python benchmarks/loader.py

The videos are first labelled into a temporary folder. Then the same clips of 16 frames are read in the same random order

imdecode  from the JPEG frames of the shards by bare cv2.imdecode, discarding the frames
vssl      as batches of the trainer's loader from one thread
PyAV      from the video files: open, seek to the key frame before the clip, decode, convert to RGB, resize

alternately, several times, the others in a separate process while the loader waits. It prints frames per second of processor
time, which other work on the machine affects less than wall-clock time, and the ratio to imdecode: medians over the
repetitions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # so that `labelgen` is the package

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from labelgen.config import CLIP_LENGTH  # noqa: E402
from trainer import data  # noqa: E402
from trainer.methods.statistics import Statistics  # noqa: E402

SETS = ("weizmann", "grid", "ucf101", "clips")
SUFFIXES = (".avi", ".mp4")
BATCH = 30
AHEAD = 2  # batches that the thread has decoded while the others were measured
SETTLE = 0.5  # seconds that it needs for them


def label(videos: list[Path], folder: Path) -> tuple[data.Shards, list[Path]]:
    """Shards that `vssl labelgen` makes from these videos, and the path of every video in them."""
    root = folder / "videos"
    root.mkdir()
    for number, video in enumerate(videos):
        (root / f"{number:05}{video.suffix}").symlink_to(video)
    command = ["labelgen", "--dataset", "folder", "--root", root, "--out", folder / "out", "--flow", "dis"]
    done = subprocess.run([sys.executable, "-m", "cli.main", *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vssl labelgen failed on {videos[0].parent}:\n{done.stdout}{done.stderr}")
    shards = data.Shards(folder / "out")
    return shards, [root / path for reader in shards.readers for path in reader.arrays["videos/path"]]


class OneThread:
    """The trainer's loader with one thread that repeats the batches endlessly."""

    def __init__(self, clips: data.TrainingClips, batches: list[np.ndarray]):
        self.batches = len(batches)
        self.iterator = data.prefetch(clips, cycle(batches), 1, torch.device("cpu"))

    def take(self, batches: int) -> None:
        for _ in range(batches):
            next(self.iterator)

    def __call__(self) -> tuple[float, float]:
        """Processor seconds of the process for one pass over all batches, and wall-clock seconds."""
        self.take(AHEAD)
        begin = time.perf_counter(), time.process_time()
        self.take(self.batches)
        clock, processor = np.subtract((time.perf_counter(), time.process_time()), begin)
        time.sleep(SETTLE)
        return processor, clock


class Contenders:
    """The methods that the loader is compared with, in a forked process that holds all they need.

    jpegs: the frames of the clips, views of the mapped shards; clips: the arguments of `video_clip` for each
    """

    def __init__(self, jpegs: list[np.ndarray], clips: list[tuple]):
        self.process = multiprocessing.get_context("fork").Pool(1, _take, (jpegs, clips))

    def __call__(self, way: Callable[[], None]) -> float:
        """Processor seconds of `imdecode` or `pyav`."""
        return self.process.apply(_timed, (way,))


_work = []


def _take(*given) -> None:
    _work[:] = given


def _timed(way: Callable[[], None]) -> float:
    begin = time.process_time()
    way()
    return time.process_time() - begin


def imdecode() -> None:
    for jpeg in _work[0]:
        cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def pyav() -> None:
    for clip in _work[1]:
        for _ in video_clip(*clip):
            pass


def presentation_times(path: Path) -> list[int]:
    """Of all frames of a video."""
    import av

    with av.open(str(path)) as container:
        return [frame.pts for frame in container.decode(video=0)]


def video_clip(path: Path, first: int, height: int, width: int) -> Iterator[np.ndarray]:
    """16 RGB frames uint8 [height, width, 3] of a video file, starting at presentation time `first`."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        container.seek(first, stream=stream)
        count = 0
        for frame in container.decode(stream):
            if frame.pts >= first:
                yield cv2.resize(frame.to_ndarray(format="rgb24"), (width, height), interpolation=cv2.INTER_AREA)
                count += 1
                if count == CLIP_LENGTH:
                    return


def compare(shards: data.Shards, paths: list[Path], most: int, repeats: int) -> None:
    """Print the table of one set of videos; `most`: clips at most."""
    samples, _, _ = Statistics.samples(shards, Statistics.option_values())
    chosen = np.random.default_rng(0).permutation(len(samples))[:most]
    clips = data.TrainingClips(shards, samples, Statistics, Statistics.option_values(), 0, "none")
    batches = np.array_split(np.stack([np.zeros_like(chosen), chosen], 1), -(-len(chosen) // BATCH))
    readers = [(shards.readers[shard], clip) for shard, clip in samples[chosen]]
    jpegs = [reader.jpeg(frame) for reader, clip in readers for frame in reader.clip_frames(clip)]
    files = [paths[shards.clip_video[(shards.clips == samples[i]).all(1)][0]] for i in chosen]
    times = {path: presentation_times(path) for path in set(files)}
    starts = [reader.arrays["clips/start"][clip] for reader, clip in readers]
    jobs = [(path, times[path][start], *shards.frame_size) for path, start in zip(files, starts, strict=True)]

    difference = np.mean(
        [
            np.abs(np.stack(list(video_clip(*job))).astype(int) - reader.frames(reader.clip_frames(clip))).mean()
            for job, (reader, clip) in list(zip(jobs, readers, strict=True))[:BATCH]
        ]
    )
    one_thread = OneThread(clips, batches)
    contenders, turns = Contenders(jpegs, jobs), []
    for _ in range(repeats + 1):  # the first one is not counted
        turns.append((contenders(imdecode), *one_thread(), contenders(imdecode), contenders(pyav)))
    before, thread, clock, after, video = np.array(turns[1:]).T
    bare = (before + after) / 2
    print(
        f"{len(chosen)} clips of {len(times)} videos, {len(jpegs)} frames of {shards.frame_size[0]}x{shards.frame_size[1]}\n"
    )
    print("                | frames/s | clips/s | of imdecode: median, range")
    for title, seconds in (("imdecode", bare), ("vssl", thread), ("PyAV", video)):
        rate, ratio = len(jpegs) / np.median(seconds), bare / seconds
        share = f"{np.median(ratio):11.2f}  {ratio.min():.2f}..{ratio.max():.2f}"
        print(f"{title:15} | {rate:8.0f} | {rate / CLIP_LENGTH:7.0f} | {share}")
    faster = video / thread
    print(f"\nvssl / PyAV: {np.median(faster):.1f}, {faster.min():.1f}..{faster.max():.1f}")
    print(f"in wall-clock time the thread produced {len(chosen) / np.median(clock):.0f} clips/s")
    print(f"stored frames differ from PyAV's by {difference:.1f} grey levels on average", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(os.environ.get("VSSL_DATA") or HERE.parents[1] / "shared/data")
    parser.add_argument(
        "--data", type=Path, default=folder, help="folder that contains a folder of videos for each set"
    )
    parser.add_argument("--sets", default=",".join(SETS), help="folders of videos, separated by commas")
    parser.add_argument("--videos", type=int, default=50, help="largest number of videos per set")
    parser.add_argument("--clips", type=int, default=120, help="largest number of clips per set")
    parser.add_argument("--repeats", type=int, default=9, help="repetitions, of which the median is taken")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(machine())
    for name in arguments.sets.split(","):
        paths = sorted(path for path in (arguments.data / name).rglob("*") if path.suffix in SUFFIXES)
        if not paths:
            print(f"{arguments.data / name}: no videos; give their folder with --data or VSSL_DATA", file=sys.stderr)
            return 2
        print(f"\n{name}: ", end="", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            chosen = [path.resolve() for path in paths[:: -(-len(paths) // arguments.videos)]]
            compare(*label(chosen, Path(temporary)), arguments.clips, arguments.repeats)
    return 0


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, OpenCV {cv2.__version__}"
    return f"{model}, one core; {versions}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
