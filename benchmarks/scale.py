"""How time and memory grow with videos, their length, shards and workers.

python benchmarks/scale.py                 all parts
python benchmarks/scale.py --only rows     one part: rows, files, resume, length, index or cluster
python benchmarks/scale.py --only rows --most 10000000

rows     a manifest of many rows is planned; the listing of the folder is a stub, and the files do not exist
files    `--dataset folder` with many empty files
resume   the command of a finished run again; all shards are links to the same file, and the videos do not exist
length   one long video of small frames that are cheap to encode, at 10 frames per second
index    the trainer starts on many shards (one, linked many times), then two threads decode batches
cluster  Dask: tasks of 32 videos that finish immediately, and the cost of starting the process of a shard

Each measurement runs in a separate process. Its processor seconds, which other work on the machine affects less than wall-clock
time, and its peak memory are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from operator import attrgetter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # so that `labelgen` is the package

import av  # noqa: E402
import numpy as np  # noqa: E402

from labelgen import manifest, run, shards  # noqa: E402
from labelgen.config import Config  # noqa: E402
from labelgen.labels import kinds  # noqa: E402
from labelgen.labels.patterns import crop_grid  # noqa: E402
from labelgen.manifest import Dataset, Video, Videos  # noqa: E402
from labelgen.run import plan  # noqa: E402
from labelgen.run.finished import shard_summary  # noqa: E402
from labelgen.run.process import in_new_process  # noqa: E402
from labelgen.run.shard import label_shard, shard_arrays  # noqa: E402
from labelgen.run.video import Record, compile_kernels  # noqa: E402
from labelgen.shards.schema import sizes  # noqa: E402

SMALL = Config(height=48, width=64, crop=32)
LINKS = 30_000  # of one file; file systems limit their number
FRAMES = 300  # of a video of the index
PER_SHARD = 100


def measured(function, *arguments) -> tuple[dict, float, float]:
    """The result of a function run in a separate process, its processor seconds, and the growth of its memory in MB."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        told, seconds, before, peak = pool.submit(_measured, function, arguments).result()
    return told, seconds, peak - before


def _measured(function, arguments) -> tuple[dict, float, float, float]:
    before, begin = memory()["VmRSS"], time.process_time()
    told = function(*arguments)
    return told, time.process_time() - begin, before, memory()["VmHWM"]


def memory(process: int | str = "self") -> dict[str, float]:
    """Memory of a process in MB: VmRSS now, VmHWM at its peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {line[:5]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def counts(most: int) -> list[int]:
    """A hundredth, a tenth and all of them."""
    return [most // 100, most // 10, most]


# --- rows


def rows(most: int) -> None:
    print("    rows | processor s | MB")
    for n in counts(most):
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder), n)
            _, seconds, peak = measured(plan_rows, folder, n)
        print(f"{n:8} | {seconds:11.1f} | {peak:.0f}", flush=True)


def names(n: int) -> Iterator[str]:
    return (f"class {i % 400}/video{i:08d}_{i % 300:06d}.mp4" for i in range(n))


def write_table(folder: Path, n: int) -> None:
    with open(folder / "list.csv", "w") as file:
        file.write("label,id,start,split\n")
        file.writelines(f"class {i % 400},video{i:08d},{i % 300},{'train' if i % 9 else 'val'}\n" for i in range(n))
    template = "{label}/{id}_{start:06d}.mp4"
    lines = [f"csv: {{files: [list.csv], video: '{template}'}}", "label: {column: label}", "splits: {column: split}"]
    (folder / "many.yaml").write_text("\n".join(["name: many", *lines]))


def plan_rows(folder: str, n: int) -> dict:
    from labelgen.manifest import dataset

    dataset.find_videos = lambda *_: ({name: name for name in names(n)}, {}, [])
    data = manifest.load(f"{folder}/many.yaml", folder)
    plan.configuration(data, data.videos, plan.file_sizes(data.videos), "all", SMALL, 32)
    return {}


# --- files


def files(most: int) -> None:
    print("   files | processor s | MB")
    for n in counts(most):
        with tempfile.TemporaryDirectory() as folder:
            for name in names(n):
                path = Path(folder, "videos", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            _, seconds, peak = measured(plan_files, f"{folder}/videos")
        print(f"{n:8} | {seconds:11.1f} | {peak:.0f}", flush=True)


def plan_files(folder: str) -> dict:
    data = manifest.load("folder", folder)
    plan.configuration(data, data.videos, plan.file_sizes(data.videos), "all", SMALL, 32)
    return {}


# --- resume


def resume(most: int) -> None:
    print("  shards | processor s | MB")
    for n in counts(most):
        with tempfile.TemporaryDirectory() as out:
            summary = finish(Path(out), n)
            _, seconds, peak = measured(again, out, n)
        print(f"{n:8} | {seconds:11.1f} | {peak:.0f}", flush=True)
    print(f"a shard without a line in shards.jsonl: {1000 * summary:.1f} ms")


def no_videos(n: int) -> Dataset:
    """Videos whose files are not there."""
    videos = Videos("/nowhere", {}, [f"{i}.mp4" for i in range(n)], [""] * n, [""] * n, [()] * n)
    return Dataset("none", Path("/nowhere"), videos, (), (), (), ())


def finish(out: Path, n: int) -> float:
    """Writes shards and the lines that their runs would have left; returns the seconds that reading one shard takes."""
    data = no_videos(n)
    identity = plan.configuration(data, data.videos, plan.file_sizes(data.videos), "all", SMALL, 1)
    failure = {"id": "0.mp4", "path": "0.mp4", "stage": "decode", "reason": "stub"}
    arrays = shard_arrays([], [failure], data.root, SMALL, 0)
    grid = crop_grid(SMALL.height, SMALL.width, SMALL.crop)
    (out / "none").mkdir()
    lines: list[str] = []
    for index in range(n):
        path = out / "none" / plan.shard_name(index)
        if index % LINKS:
            os.link(path.with_name(plan.shard_name(index - index % LINKS)), path)
        else:
            shards.write(path, arrays, io.BytesIO(), identity, grid, ())
            begin = time.process_time()
            summary = shard_summary(path)
            spent = time.process_time() - begin
        status = path.stat()
        lines.append(json.dumps([path.name, status.st_size, status.st_mtime_ns, summary]) + "\n")
    (out / "none" / "shards.jsonl").write_text("".join(lines))
    return spent


def again(out: str, n: int) -> dict:
    data = no_videos(n)
    return run.run(data, data.videos, Path(out), SMALL, 1, 1)["videos"]


# --- length


def length(most: int) -> None:
    print(" minutes |  frames | processor s | MB")
    for minutes in (1, max(1, most // 10), most):
        with tempfile.TemporaryDirectory() as folder:
            frames = 600 * minutes
            write_long(Path(folder, "videos", "0.mp4"), frames)
            _, seconds, peak = measured(label_one, folder)
        print(f"{minutes:8} | {frames:7} | {seconds:11.1f} | {peak:.0f}", flush=True)


def write_long(path: Path, frames: int) -> None:
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(8)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t in range(frames):
            picture = np.roll(pictures[t // 50 % 8], t, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def label_one(folder: str) -> dict:
    data = manifest.load("folder", f"{folder}/videos")
    identity = plan.configuration(data, data.videos, plan.file_sizes(data.videos), "all", SMALL, 1)
    label_shard(plan.ShardTask(Path(folder, "00000.h5"), data.videos, data.root, data.splits, SMALL, identity, 300))
    return {}


# --- index


def index(most: int) -> None:
    print("                                         | of the batches            | batches/s of")
    print("  shards |  videos | start, processor s | MB | more MB, open files | processor time")
    with tempfile.TemporaryDirectory() as folder:
        first = write_large(Path(folder))
        for n in counts(most):
            own = Path(folder, str(n))
            own.mkdir()
            for number in range(n):
                os.link(first, own / plan.shard_name(number))
            told, seconds, peak = measured(start_trainer, str(own))
            cells = f"{told['start']:.1f} | {told['peak']:.0f} | {told['own']:.0f}, {told['open']} | {told['rate']:.1f}"
            print(f"{n:8} | {told['videos']:7} | {cells}", flush=True)


def write_large(folder: Path) -> Path:
    """A shard of PER_SHARD videos of 300 frames, all of them the same picture; its labels are ones."""
    jpeg = shards.encode_frame(np.zeros((SMALL.height, SMALL.width, 3), np.uint8), 90)
    grid = crop_grid(SMALL.height, SMALL.width, SMALL.crop)
    starts = list(range(0, FRAMES - SMALL.clip_length + 1, SMALL.clip_length))
    records = []
    for number in range(PER_SHARD):
        video = Video(f"class/{number:05d}.mp4", folder / f"class/{number:05d}.mp4", "class", "", (1,))
        records.append(Record(video, 25, 64, 48, start=starts))
        records[-1].jpeg_sizes.extend([len(jpeg)] * FRAMES)
        records[-1].time.extend(np.arange(FRAMES) / 25)
        records[-1].damage.extend(bytes(FRAMES))
        of = {"videos/n_frames": [FRAMES], "videos/id": [0], "clips/video": starts, "failures/id": []}
        axes = sizes(of, vars(SMALL), len(grid), 1)
        for kind in kinds():
            if kind.of_video is not None:
                records[-1].labels |= kind.of_video(
                    FRAMES, SMALL, np.random.default_rng(number), np.zeros(FRAMES, np.uint8)
                )
            else:
                records[-1].labels |= {one.name: np.ones(one.shape(axes), one.dtype) for one in kind.fields}
    arrays = shard_arrays(records, [], folder, SMALL, 1)
    config = plan.configuration(no_videos(1), [], np.empty(0, np.int64), "all", SMALL, PER_SHARD)
    del config["videos"], config["videos_per_shard"]  # so that any number of shards is complete
    path = folder / "first.h5"
    shards.write(path, arrays, io.BytesIO(jpeg * FRAMES * PER_SHARD), config, grid, ("1",))
    return path


def start_trainer(folder: str) -> dict:
    import torch

    from trainer import data
    from trainer.methods.pace import Pace

    begin = time.process_time()
    source, options = data.Shards(folder), Pace.option_values()
    clips = data.TrainingClips(source, Pace.samples(source, options)[0], Pace, options, 0, "frame")
    start, peak = time.process_time() - begin, memory()["VmHWM"]
    keys = data.Batches(len(clips.samples), 32, 0).sampler(range(100))
    begin, before = time.process_time(), private()
    shown = sum(1 for _ in data.prefetch(clips, keys, 2, torch.device("cpu")))
    rate = shown / (time.process_time() - begin)
    own, opened = private() - before, len(os.listdir("/proc/self/fd"))
    return {"videos": len(source.videos), "start": start, "peak": peak, "own": own, "open": opened, "rate": rate}


def private() -> float:
    """Private memory of this process in MB; pages of mapped files, which the system drops if it needs memory, do not count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- cluster


def cluster(most: int) -> None:
    dask, address = [sys.executable, "-c", "from dask.__main__ import main; main()"], "tcp://127.0.0.1:38786"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (str(HERE), *sys.path) if path)}
    print("   tasks | ms a task of the scheduler | of the client | MB of the scheduler | of the client")
    for n in counts(most):
        scheduler = subprocess.Popen(
            [*dask, "scheduler", "--port", "38786", "--no-dashboard"], env=environment, **quiet
        )
        worker = subprocess.Popen(
            [*dask, "worker", address, "--nthreads", "4", "--no-dashboard"], env=environment, **quiet
        )
        try:
            told, _, _ = measured(send, address, n, scheduler.pid)
        finally:
            worker.terminate()
            worker.wait()
            scheduler.kill()
            scheduler.wait()
        cells = " | ".join(f"{told[key]:.2f}" for key in ("scheduler", "client"))
        print(f"{n:8} | {cells} | {told['scheduler MB']:.0f} | {told['client MB']:.0f}", flush=True)
    spent = []
    for _ in range(3):
        begin = os.times()
        in_new_process(compile_kernels, "tvl1")
        end = os.times()
        spent.append(end.children_user + end.children_system - begin.children_user - begin.children_system)
    print(f"the process of a shard: {np.median(spent):.1f} processor s to start and load the kernels")


def send(address: str, n: int, scheduler: int) -> dict:
    from labelgen.run.workers import pool

    data = no_videos(32)
    identity = plan.configuration(data, data.videos, plan.file_sizes(data.videos), "all", SMALL, 32)

    def task(index: int) -> plan.ShardTask:
        return plan.ShardTask(Path(f"{index:05d}.h5"), data.videos, data.root, (), SMALL, identity, 300)

    time.sleep(5)  # until they are running
    with pool(1, address, lambda text: None) as (each, _):
        list(each(attrgetter("path"), map(task, range(10))))
        begin, before = time.process_time(), processor_seconds(scheduler)
        for _ in each(attrgetter("path"), task, range(n)):
            pass
        spent, there = time.process_time() - begin, processor_seconds(scheduler) - before
    mb = {"scheduler MB": memory(scheduler)["VmHWM"], "client MB": memory()["VmHWM"]}
    return {"scheduler": 1000 * there / n, "client": 1000 * spent / n, **mb}


PARTS = {
    "rows": (rows, 1_000_000),
    "files": (files, 100_000),
    "resume": (resume, 100_000),
    "length": (length, 120),
    "index": (index, 10_000),
    "cluster": (cluster, 10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument(
        "--most", type=int, help="size of the largest measurement: rows, files, shards, minutes, shards or tasks"
    )
    options = parser.parse_args()
    for name in [options.only] if options.only else PARTS:
        part, most = PARTS[name]
        print(f"\n{name}")
        part(options.most or most)


if __name__ == "__main__":
    main()
