"""Speed of a training step, compared with the loop of the published repositories and with the device's peak.

python benchmarks/train.py                 on the CPU: all backbones, small
python benchmarks/train.py --device cuda   on a GPU: all backbones, 16 x 112 x 112
python benchmarks/train.py --backbones r3d10 --size 112 --width 1 --batch 4

loops    the plain loop against `vssl train`, alternately on the same shards: clips per second, the time that a step
         waits for data, and the share of the device's peak. The plain loop decodes the same frames, then crops,
         converts to float32 and normalises each frame in the DataLoader's workers; float32, contiguous, eager, and on the
         CPU with plain nn.Conv3d, while ours computes some kernels in two dimensions.
formats  only the step, with clips on the device: precision x memory format x convolutions in two dimensions (none, the
         trainer's choice for the device, all possible) x {eager, compile}

FLOPs are those of the convolutions and matrix products, forward and backward. The peak is the rate of a large matrix
product in the same precision, measured in the same run. The shards contain moving textures unless --shards is given."""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, product, repeat
from pathlib import Path

HERE = Path(__file__).resolve().parent  # `labelgen` must be the package, not a script here
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from labelgen import shards  # noqa: E402
from labelgen.config import CLIP_LENGTH  # noqa: E402
from labelgen.labels.pace import pace_rows  # noqa: E402
from trainer import data  # noqa: E402
from trainer.backbones import BACKBONES, create  # noqa: E402
from trainer.backbones.layers import FLAT, BatchNorm3d, Conv3d  # noqa: E402
from trainer.inputs import OURS  # noqa: E402
from trainer.memory import keep_freed_memory  # noqa: E402
from trainer.methods.pace import Pace  # noqa: E402
from trainer.methods.parts import embedding  # noqa: E402
from trainer.settings import Settings  # noqa: E402
from trainer.training import train  # noqa: E402

PACES = ("1", "2", "3", "4")
FRAMES = 64  # of a synthetic video: enough for pace 4
FRAME_SIZES = {56: (72, 72), 112: (128, 171), 224: (256, 340)}  # by crop
WIDELY = ("r2plus1d10", "r3d18")  # backbones that get the whole table of formats on a GPU
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last_3d


@dataclass(frozen=True)
class Setup:
    """The measured setup: clips of 16 x size x size in batches, networks of this width, on this device."""

    device: torch.device
    size: int
    width: float
    batch: int
    workers: int
    steps: int  # timed, after `warm` untimed steps
    warm: int
    repeats: int
    eager: bool  # formats: without compilation


class Classifier(nn.Module):
    """A backbone with a linear head on the mean of its last stage, as for pace prediction."""

    def __init__(self, backbone: str, width: float):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = create(backbone, width)
        self.head = nn.Linear(self.backbone.features, len(PACES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(embedding(self.backbone, x))


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)


# --- shards of moving textures


def write_shard(folder: Path, videos: int, size: int) -> None:
    """One shard of videos of FRAMES frames, with only the labels of pace."""
    rng = np.random.default_rng(0)
    height, width = FRAME_SIZES[size]
    spool, offsets, pace = io.BytesIO(), [0], []
    for _ in range(videos):
        texture = rng.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8)
        texture = cv2.resize(texture, (2 * width, height), interpolation=cv2.INTER_CUBIC)
        for frame in range(FRAMES):
            shown = np.ascontiguousarray(np.roll(texture, frame, axis=1)[:, :width])
            jpeg = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            offsets.append(offsets[-1] + spool.write(jpeg.tobytes()))
        pace.append(pace_rows(FRAMES, tuple(map(Fraction, PACES)), 32, 16, rng))
    start, label, wrapped = (np.stack(column) for column in zip(*pace, strict=True))
    names = [f"{video:05}" for video in range(videos)]
    arrays = {f"failures/{name}": [] for name in ("id", "path", "stage", "reason")}
    arrays |= {
        "frames/offset": offsets,
        "frames/time": np.tile(np.arange(FRAMES) / 25, videos),
        "frames/damage": np.zeros(videos * FRAMES),
        **{f"videos/{name}": names for name in ("id", "path", "group")},
        "videos/label": ["texture"] * videos,
        "videos/split": np.zeros((videos, 0)),
        "videos/first_frame": FRAMES * np.arange(videos),
        **{f"videos/{name}": [n] * videos for name, n in (("n_frames", FRAMES), ("fps", 25), ("width", width))},
        "videos/height": [height] * videos,
        "pace/start": start,
        "pace/pace": label,
        "pace/wrapped": wrapped,
        "clips/video": [],
        "clips/start": [],
    }
    config = {"dataset": "textures", "height": height, "width": width, "crop": size, "paces": PACES, "clip_length": 16}
    config |= {"clips": None, "rows": 32, "order_clips": 3, "allow_wrap": False, "flow": {"backend": "tvl1"}}
    corners = [(y, x) for y in np.linspace(0, height - size, 3) for x in np.linspace(0, width - size, 7)]
    folder.mkdir()
    shards.write(folder / "00000.h5", arrays, spool, config, np.int16(corners), ())


# --- loops


class PlainClips(Dataset):
    """Clips as the published repositories prepare them: frame by frame, as float32, in the worker."""

    def __init__(self, folder: Path):
        self.source = data.Shards(folder)
        self.samples = Pace.samples(self.source, Pace.option_values())[0]
        self.crop = self.source.config["crop"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """float32 [3, 16, size, size] and the pace."""
        shard, video = self.samples[index]
        reader, rng = self.source.readers[shard], np.random.default_rng()
        row = rng.integers(reader.arrays["pace/pace"].shape[1])
        (y, x), mirror = rng.choice(self.source.crop_grid), rng.integers(2)
        frames = []
        for number in reader.pace_frames(video, row):
            frame = cv2.cvtColor(cv2.imdecode(reader.jpeg(number), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            frame = frame[y : y + self.crop, x : x + self.crop]
            if mirror:
                frame = frame[:, ::-1]
            frame = frame.astype(np.float32) / 255
            frames.append((frame - OURS.mean[0]) / OURS.std[0])
        clip = np.ascontiguousarray(np.stack(frames).transpose(3, 0, 1, 2), np.float32)
        return torch.from_numpy(clip), int(reader.arrays["pace/pace"][video, row])


def plain_loop(backbone: str, folder: Path, setup: Setup, tf32: bool = False) -> np.ndarray:
    """Seconds of each timed step, and those spent waiting for data, float64 [2, steps]."""
    _precision("tf32" if tf32 else "float32")
    torch.backends.cudnn.benchmark = True
    loader = DataLoader(
        PlainClips(folder),
        setup.batch,
        shuffle=True,
        num_workers=setup.workers,
        pin_memory=setup.device.type == "cuda",
        drop_last=True,
    )
    network = Classifier(backbone, setup.width).to(setup.device)
    for layer in network.modules():
        if isinstance(layer, Conv3d | BatchNorm3d):
            layer.__class__ = layer.__class__.__base__  # theirs
    optimiser, criterion = sgd(network), nn.CrossEntropyLoss()
    network.train()
    times, batches, start = [], chain.from_iterable(repeat(loader)), time.perf_counter()
    for _ in range(setup.warm + setup.steps):
        begin = time.perf_counter()
        clips, labels = next(batches)
        waited = time.perf_counter() - begin
        loss = criterion(network(clips.to(setup.device)), labels.to(setup.device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        end = time.perf_counter()
        times.append((end - start, waited))
        start = end
    return np.array(times[setup.warm :]).T


def trainer_loop(backbone: str, folder: Path, setup: Setup, compiled: bool = False) -> np.ndarray:
    """The same for `vssl train`, from its log."""
    per_epoch = -(-len(PlainClips(folder)) // setup.batch)
    settings = Settings(
        method="pace",
        jitter="none",  # the plain loop has none
        backbone=backbone,
        width=setup.width,
        batch_size=setup.batch,
        epochs=-(-(setup.warm + setup.steps) // per_epoch),
        compile=compiled,
        workers=setup.workers,
        device=str(setup.device),
    )
    with tempfile.TemporaryDirectory() as run, redirect_stdout(io.StringIO()):
        train(settings, folder, run)
        log = Path(run, "log.csv").read_text().splitlines()
    rows = list(csv.DictReader(log))[setup.warm :][: setup.steps]
    return np.array([[float(row[name]) / 1000 for row in rows] for name in ("total_ms", "data_ms")])


def loops(backbones: list[str], folder: Path, setup: Setup, peaks: dict[str, float]) -> None:
    """Print the table of the loops."""
    ways = {"plain, float32": ("float32", plain_loop)}
    if setup.device.type == "cuda":
        ways["plain, TF32"] = "tf32", lambda *given: plain_loop(*given, tf32=True)  # PyTorch's default for convolutions
        ways["vssl, bf16"] = "bf16", trainer_loop
        ways["vssl, bf16, compile"] = "bf16", lambda *given: trainer_loop(*given, compiled=True)
    else:
        ways["vssl, float32"] = "float32", trainer_loop
    print("backbone   | GFLOP/clip | loop                | clips/s | waiting, ms (share) | of peak | to plain, range")
    for backbone in backbones:
        flops = flops_per_clip(backbone, setup)
        turns = {name: [] for name in ways}
        for _ in range(setup.repeats):
            for name, (_, loop) in ways.items():
                turns[name].append(np.median(loop(backbone, folder, setup), 1))
        base = np.array(turns["plain, float32"])[:, 0]
        for name, (precision, _) in ways.items():
            total, waited = np.median(turns[name], 0)
            rate, ratio = setup.batch / total, base / np.array(turns[name])[:, 0]
            cells = f"{backbone:10} | {flops / 1e9:10.2f} | {name:19} | {rate:7.1f} | {1e3 * waited:9.1f} ({waited / total:6.1%})"
            share = f"{rate * flops / peaks[precision]:7.1%}"
            print(f"{cells} | {share} | {np.median(ratio):.2f}  {ratio.min():.2f}..{ratio.max():.2f}", flush=True)


# --- formats


@dataclass(frozen=True)
class Format:
    """How a step is computed. flat: a name of _flat"""

    precision: str
    memory: torch.memory_format
    flat: str
    compiled: bool


def _flat(device: torch.device) -> dict[str, set[str]]:
    """The convolutions that are computed in two dimensions, by name."""
    return {"none": set(), "ours": FLAT[device.type], "all": {"point", "temporal", "spatial", "norm"}}


def formats(backbones: list[str], folder: Path, setup: Setup, peaks: dict[str, float]) -> None:
    """Print the table of precisions, memory formats, dimensions, eager and compiled."""
    print(
        "backbone   | precision | memory format    | 2D   | mode    | ms a step | clips/s | of peak | to the first, range"
    )
    flat = _flat(setup.device)
    for backbone in backbones:
        torch.compiler.reset()  # it keeps few variants of a function, then runs it uncompiled
        flops, rows = flops_per_clip(backbone, setup), {}
        for found in _formats(backbone, setup):
            if found.compiled and setup.eager:
                continue
            step = _step(backbone, setup, found, flat[found.flat])
            try:
                for _ in range(setup.warm):
                    _seconds(step, setup.device)
            except RuntimeError as error:  # out of memory, or no working compiler
                step = str(error).strip().splitlines()[0]
            rows[found] = step
        steps = [step for step in rows.values() if callable(step)]
        turns = {step: [] for step in steps}
        for _ in range(setup.steps):
            for step in steps:
                turns[step].append(_seconds(step, setup.device))
        for found, step in rows.items():
            name = "contiguous" if found.memory is CONTIGUOUS else "channels_last_3d"
            mode = "compile" if found.compiled else "eager"
            cells = f"{backbone:10} | {found.precision:9} | {name:16} | {found.flat:4} | {mode:7}"
            if not callable(step):
                print(f"{cells} | failed: {step}")
                continue
            seconds, ratio = np.median(turns[step]), np.array(turns[steps[0]]) / turns[step]
            share = setup.batch * flops / seconds / peaks[found.precision]
            cells = f"{cells} | {1e3 * seconds:9.1f} | {setup.batch / seconds:7.1f} | {share:7.1%}"
            low, high = np.percentile(ratio, (25, 75))
            print(f"{cells} | {np.median(ratio):.2f}  {low:.2f}..{high:.2f}", flush=True)
    FLAT[setup.device.type] = flat["ours"]


def _formats(backbone: str, setup: Setup) -> list[Format]:
    if setup.device.type == "cpu":  # its bf16 convolutions are wrong in PyTorch 2.13, and it has no TF32
        forms = [(CONTIGUOUS, "none"), *((CHANNELS_LAST, flat) for flat in ("none", "ours", "all"))]
        return [*(Format("float32", *form, False) for form in forms), Format("float32", CHANNELS_LAST, "ours", True)]
    if backbone in WIDELY:
        ways = product(("float32", "tf32"), (CONTIGUOUS, CHANNELS_LAST), ("ours",), (False, True))
        plain, best = [Format(*way) for way in [*ways, ("bf16", CONTIGUOUS, "ours", False)]], "bf16"
    else:
        plain, best = [Format(precision, CONTIGUOUS, "none", False) for precision in ("float32", "tf32")], "bf16"
    return plain + [
        *(Format(best, CHANNELS_LAST, flat, False) for flat in ("none", "ours", "all")),
        *(Format(best, CHANNELS_LAST, flat, True) for flat in ("ours", "all")),
    ]


def _step(backbone: str, setup: Setup, found: Format, flat: set[str]) -> Callable[[], None]:
    """A training step on one batch that stays on the device."""
    device = setup.device
    network = Classifier(backbone, setup.width).to(device, memory_format=found.memory).train()
    if found.compiled:
        network.backbone.compile()
    optimiser = sgd(network)
    clips = torch.randn(setup.batch, 3, CLIP_LENGTH, setup.size, setup.size, device=device)
    clips = clips.contiguous(memory_format=found.memory)
    labels = torch.arange(setup.batch, device=device) % len(PACES)

    def step() -> None:
        FLAT[device.type] = flat
        _precision(found.precision)
        torch.backends.cudnn.benchmark = True
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=found.precision == "bf16"):
            loss = F.cross_entropy(network(clips), labels)
        loss.backward()
        optimiser.step()

    return step


def _precision(name: str) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name != "float32"


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """For one thread on the CPU its processor time, which does not grow if other programs run."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait()
    begin = clock()
    step()
    wait()
    return clock() - begin


# --- peak


def flops_per_clip(backbone: str, setup: Setup) -> float:
    """Floating-point operations of convolutions and matrix products, forward and backward, counted without computing them."""
    with torch.device("meta"):
        network = Classifier(backbone, setup.width)
        clip = torch.empty(2, 3, CLIP_LENGTH, setup.size, setup.size)
    with FlopCounterMode(display=False) as counter:
        network(clip).sum().backward()
    return counter.get_total_flops() / 2


def peak(device: torch.device, precision: str) -> float:
    """FLOP/s of the fastest of several large matrix products."""
    n = 8192 if device.type == "cuda" else 2048
    _precision(precision)
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * n**3 / min(_seconds(lambda: a @ b, device) for _ in range(30))


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        name = torch.cuda.get_device_name(device)
        return f"{name}; PyTorch {torch.__version__}, {versions}; {os.cpu_count()} CPU cores"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads; PyTorch {torch.__version__}"


PARTS = {"loops": loops, "formats": formats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--only", choices=list(PARTS), help="run one part")
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="separated by commas")
    parser.add_argument("--shards", type=Path, help="folder of shards to train on; their crop sets the size")
    parser.add_argument(
        "--size", type=int, choices=list(FRAME_SIZES), help="crop of synthetic shards: 56 on the CPU, 112 on CUDA"
    )
    parser.add_argument("--width", type=float, help="width of the networks: 0.25 on the CPU, 1 on CUDA")
    parser.add_argument("--batch", type=int, help="clips per step: 8 on the CPU, 32 on CUDA")
    parser.add_argument("--workers", type=int, default=min(16, max(1, (os.cpu_count() or 1) - 1)), help="processes")
    parser.add_argument("--steps", type=int, help="timed steps per repetition: 6 on the CPU, 30 on CUDA")
    parser.add_argument("--eager", action="store_true", help="formats: leave out compiled variants")
    parser.add_argument("--repeats", type=int, help="repetitions of the loops: 3 on the CPU, 1 on CUDA")
    arguments = parser.parse_args()
    backbones = arguments.backbones.split(",")
    if unknown := set(backbones) - BACKBONES.keys():
        parser.error(f"unknown backbone {', '.join(unknown)}; expected {', '.join(BACKBONES)}")
    device = torch.device(arguments.device)
    cuda = device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    keep_freed_memory()  # for the plain loop, too, so that the order of the loops does not matter
    with tempfile.TemporaryDirectory() as temporary:
        size, batch = arguments.size or (112 if cuda else 56), arguments.batch or (32 if cuda else 8)
        folder = arguments.shards or Path(temporary, "textures")
        if arguments.shards:
            size = data.Shards(folder).config["crop"]
        else:
            write_shard(folder, 4 * batch, size)
        width, steps = arguments.width or (1.0 if cuda else 0.25), arguments.steps or (30 if cuda else 6)
        warm, repeats = (5, 1) if cuda else (2, 3)
        setup = Setup(
            device, size, width, batch, arguments.workers, steps, warm, arguments.repeats or repeats, arguments.eager
        )
        print(f"{machine(device)}, {arguments.workers} loader workers")
        print(f"clips of 16 x {size} x {size}, batches of {batch}, width {width:g}")
        peaks = {name: peak(device, name) for name in (("float32", "tf32", "bf16") if cuda else ("float32",))}
        print("peak, a large matrix product: " + ", ".join(f"{n} {p / 1e12:.3g} TFLOP/s" for n, p in peaks.items()))
        for part in [PARTS[arguments.only]] if arguments.only else PARTS.values():
            print(f"\n{part.__name__}\n")
            part(backbones, folder, setup, peaks)


if __name__ == "__main__":
    main()
