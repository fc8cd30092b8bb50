"""A rehearsal of a GPU: commands of vssl run on the stand-in device, in a process made for it.

What the project asks of the name "cuda" is replaced here, and here alone: see `as_on_cuda`.
"""

import csv
import datetime
import inspect
import os
import pkgutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from click.testing import CliRunner
from safetensors.torch import load_file
from torch._C._distributed_c10d import AllgatherOptions, _create_work_from_future
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from cli.main import main
from tests.standin import device, planted
from trainer import data
from trainer.backbones.layers import FLAT
from trainer.methods import method_class

PRECISION = "trainer.training.loop", "pick_precision"  # (name, device) -> the precision that "auto" stands for
TIMES = {"data_ms", "compute_ms", "total_ms", "clips_per_s"}  # columns of log.csv that two runs do not share
SMALL = "--width .05 --batch-size 3 --epochs 1 --holdout .3 --workers 1"
CASES = {
    "statistics": "train --method statistics",
    "statistics-raw": "train --method statistics --set targets=raw --set hidden=8",
    "pace": "train --method pace --accumulate 1",
    "pace-context": "train --method pace --set contrast=same-context --jitter contrast --accumulate 2 --optimizer lars",
    "pace-pace": "train --method pace --set contrast=same-pace --jitter clip --optimizer adamw",
    "order": "train --method order",
    "skip_clip": "train --method skip_clip --set spacing=1",
    "tce": "train --method tce",
    "tce-nce": "train --method tce --backbone r3d10 --set frames=16 --set loss=nce --set negatives=2 --jitter contrast",
    "ascnet": "train --method ascnet",
    "simclr": "train --method simclr",
    "moco": "train --method moco",
    "moco-one": "train --method moco --set symmetric=false --set batch_norm=true --set clips=3",
    "byol": "train --method byol",
    "rspnet": "train --method rspnet",
    "lejepa": "train --method lejepa --set hidden=16 --set outputs=8",
    "rotation": "train --method rotation --batch-size 8 --curriculum .5",
    "recognition": "finetune --scratch",
    "recognition-freeze": "finetune --scratch --freeze",
    "joint": "train --method pace+statistics --weights 1,0.5 --ema .9",
    "c3d": "train --method pace --backbone c3d",
    "r2plus1d": "train --method pace --backbone r2plus1d10",
    "resnet3d": "train --method pace --backbone resnet3d18",
    "s3dg": "train --method pace --backbone s3dg",
    "resnet2d": "train --method tce --backbone resnet18",
}
FOR_TWO = "--epochs 2 --batch-size 4 --holdout .25 --workers 0"  # two samples for each, and two held-out ones
PROTOCOLS = {  # what reads pixels on the device, and the case whose run it is given
    "retrieval": "pace",
    "smoothness": "tce",
    "recognition": "recognition",
}


class RehearsalError(Exception):
    """A command that failed: what, and on which line of the project."""


@dataclass
class Rehearsal:
    """waits: of the step, or batch, that has most, by "file:line what"; low: what ran in bfloat16 and should not, likewise;
    differs: what a run that was stopped and resumed has other than the unbroken one; calls: collectives of the same step."""

    waits: Counter = field(default_factory=Counter)
    low: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    calls: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.waits.total():3} waits"]
        lines += [f"{n:5} x {what}" for what, n in (self.waits + self.calls).most_common()]
        return "\n".join(lines)


_extension = _folder = None


def start(library: Path, folder: Path) -> None:
    """Make this process one with a stand-in device, for good. folder: holds the shards, demo/, and takes the runs."""
    global _extension, _folder
    torch.set_num_threads(1)
    _extension, _folder = device.register(library), folder
    as_on_cuda()


def as_on_cuda() -> None:
    """Let the stand-in be what the project takes "cuda" for."""
    module = pkgutil.resolve_name(PRECISION[0])
    setattr(module, PRECISION[1], lambda name, device: "bf16")
    autocast, group = torch.autocast, dist.init_process_group
    FLAT["standin"] = FLAT["cuda"] | {"point", "temporal", "spatial"}  # what a GPU may be given, in views alone
    torch.autocast = lambda kind, *given, **named: autocast("standin" if kind == "cuda" else kind, *given, **named)
    dist.init_process_group = lambda _, **named: group(
        "standin-nccl", init_method=f"file://{os.environ['STANDIN_GROUP']}", rank=int(os.environ["RANK"]), world_size=2
    )
    dist.Backend.register_backend("standin-nccl", _Group, devices=["standin"])


class _Group(dist.ProcessGroup):
    """Like NCCL's it takes tensors of the device alone; gloo carries them."""

    def __init__(self, store, rank: int, size: int, timeout: datetime.timedelta):
        super().__init__(rank, size)
        self.gloo = dist.ProcessGroupGloo(store, rank, size, datetime.timedelta(seconds=30))

    @property
    def _device_types(self):  # where torch puts objects that are exchanged
        return [torch.device("standin")]

    def getBackendName(self):
        return "standin-nccl"

    def allreduce(self, tensors, options=None):
        work = self.gloo.allreduce(_checked("all_reduce", tensors), options or dist.AllreduceOptions())
        return _done(work, tensors)

    def broadcast(self, tensors, options=None):
        work = self.gloo.broadcast(_checked("broadcast", tensors), options or dist.BroadcastOptions())
        return _done(work, tensors)

    def allgather(self, outputs, tensors, options=None):
        hosts = [_checked(None, output) for output in outputs]
        return _done(self.gloo.allgather(hosts, _checked("all_gather", tensors), AllgatherOptions()), outputs)

    def barrier(self, options=None):
        return self.gloo.barrier(dist.BarrierOptions())


def _done(work: dist.Work, result: list) -> dist.Work:
    """The work of gloo, ended, as one whose result is on the device."""
    work.wait()
    future = torch.futures.Future(devices=["standin:0"])
    future.set_result(result)
    return _create_work_from_future(future)


def _checked(call: str | None, tensors: list) -> list:
    """The tensors as gloo can take them; the call is marked."""
    for tensor in tensors:
        if tensor.device.type != "standin":
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
    if call:
        _mark("collective", call)
    return [_extension.on_host(tensor) for tensor in tensors]


_seen: list[device.Event] = []


def _mark(kind: str, what: str = "") -> None:
    _seen.append(device.Event(kind, what, device.line_of_project()))


@contextmanager
def _watching(after_step: Callable[[int], None] = lambda step: None):
    """The events of the block, with a mark after each step of an optimiser and around each batch that a loader gives."""
    global _seen
    steps, given = 0, data.prefetch

    def stepped(*_):
        nonlocal steps
        steps += 1
        _mark("step")
        after_step(steps)

    def prefetch(*arguments):
        for batch in given(*arguments):
            _mark("batch")
            yield batch
            _mark("asked")

    hook = register_optimizer_step_post_hook(stepped)
    try:
        with device.listening(_extension) as _seen, mock.patch.object(data, "prefetch", prefetch):
            yield _seen
    finally:
        hook.remove()


def vssl(*arguments, exit_code: int = 0) -> None:
    """Run a command. Raises RehearsalError when it ends otherwise."""
    result = CliRunner().invoke(main, [*map(str, arguments)])
    if result.exit_code != exit_code:
        error = result.exception
        if isinstance(error, SystemExit):
            raise RehearsalError(f"vssl {' '.join(map(str, arguments))}: {result.output}")
        raise RehearsalError(f"{type(error).__name__} at {device.line_of_error(error)}: {error}")


def train(name: str, *mistakes: str) -> Rehearsal:
    """Train a case of CASES, and once more stopped in its second step and resumed. mistakes: of planted.py."""
    command, *options = CASES[name].split()
    shards = ["--shards", _folder / "demo", "--device", "standin"]
    run, stopped = (_folder / "-".join((kind, name, *mistakes[:1])) for kind in ("whole", "stopped"))
    with _planted(mistakes):
        with _watching() as seen:
            vssl(command, *SMALL.split(), *options, *shards, "--run", run)
        with _watching(lambda step: step == 2 and signal.raise_signal(signal.SIGTERM)):
            vssl(command, *SMALL.split(), *options, *shards, "--run", stopped, exit_code=128 + signal.SIGTERM)
        vssl("train", "--resume", stopped, *shards, "--workers", 0)
    return _rehearsal(_steps(seen, run), differs=_differences(run, stopped))


def train_in_two(name: str, rank: int, *mistakes: str) -> Rehearsal:
    """This process's part of the training of a case in two processes."""
    command, *options = CASES[name].split()
    run = _folder / "-".join(("two", name, *mistakes))
    group = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "STANDIN_GROUP": f"{run}.group"}
    group |= {"MASTER_ADDR": "-", "MASTER_PORT": "-"}  # not used: the processes meet in that file
    with mock.patch.dict(os.environ, group), _planted(mistakes), _watching() as seen:
        shards = ["--shards", _folder / "demo", "--device", "standin"]
        vssl(command, *SMALL.split(), *options, *FOR_TWO.split(), *shards, "--run", run)
    return _rehearsal(_steps(seen, run))


def evaluate(protocol: str) -> Rehearsal:
    """Run a protocol of PROTOCOLS on a case that has been trained, or is now."""
    run = _folder / f"whole-{PROTOCOLS[protocol]}"
    if not run.exists():
        train(PROTOCOLS[protocol])
    options = ["--checkpoint", run, "--shards", _folder / "demo", "--device", "standin"]
    with _watching() as seen:
        vssl("eval", protocol, *options, "--batch-size", 16, "--workers", 1)
    return _rehearsal(_between(seen, "batch", "asked"))


def fused(name: str) -> bool:
    """Whether the optimiser of a case updates all weights at once."""
    command, *options = CASES[name].split()
    shards, found = ["--shards", _folder / "demo", "--device", "standin"], []
    hook = register_optimizer_step_post_hook(
        lambda used, *_: found.append(all(own["fused"] for own in used.param_groups))
    )
    try:
        vssl(command, *SMALL.split(), *options, *shards, "--run", _folder / f"fused-{name}")
    finally:
        hook.remove()
    return bool(found) and all(found)


PRECISION_TABLE = {
    "linear": torch.bfloat16,
    "matmul": torch.bfloat16,
    "conv3d": torch.bfloat16,
    "softmax": torch.float32,
    "log_softmax": torch.float32,
    "exp": torch.float32,
    "sum": torch.float32,
    "norm": torch.float32,
    "cosine_similarity": torch.float32,
    "mse_loss": torch.float32,
    "relu": torch.bfloat16,  # as it comes
    "cat with float32": torch.float32,  # the widest
}


def precisions() -> dict[str, torch.dtype]:
    """Precision of what operators give for bfloat16 under autocast."""
    x, clip = (torch.ones(shape, device="standin", dtype=torch.bfloat16) for shape in ((2, 2), (1, 1, 2, 2, 2)))
    with torch.autocast("standin", torch.bfloat16):
        found = {
            "linear": F.linear(x.float(), x.float()),
            "matmul": x.float() @ x.float(),
            "conv3d": F.conv3d(clip.float(), clip.float()),
            "softmax": x.softmax(1),
            "log_softmax": x.log_softmax(1),
            "exp": x.exp(),
            "sum": x.sum(),
            "norm": x.norm(),
            "cosine_similarity": F.cosine_similarity(x, x),
            "mse_loss": F.mse_loss(x, x),
            "relu": x.relu(),
            "cat with float32": torch.cat([x, x.float()]),
        }
    return {name: value.dtype for name, value in found.items()}


@contextmanager
def _planted(mistakes: tuple[str, ...]):
    """Have the method "rotation" make mistakes in the block."""
    method = method_class("rotation")
    right = method.forward

    def forward(self, backbone, batch):
        metrics = right(self, backbone, batch)
        for name in mistakes:
            loss = getattr(planted, name)(self, batch, metrics["loss"])
            metrics["loss"] = metrics["loss"] if loss is None else loss
        return metrics

    with mock.patch.object(method, "forward", forward):
        yield


def line_of(mistake: str) -> str:
    """file:line of a mistake."""
    lines, first = inspect.getsourcelines(getattr(planted, mistake))
    return f"tests/standin/planted.py:{first + len(lines) - 1}"


def _steps(seen: list[device.Event], run: Path) -> list[list[device.Event]]:
    """The events of each step that follows one of the same epoch, so that neither scoring nor a checkpoint is among them, nor
    what is done once after the first step."""
    epochs = [row["epoch"] for row in csv.DictReader((run / "log.csv").read_text().splitlines())]
    between = _between(seen, "step", "step")
    return [events for i, events in enumerate(between) if i and epochs[i] == epochs[i + 1]]


def _between(seen: list[device.Event], begin: str, end: str) -> list[list[device.Event]]:
    """The events from each mark of one kind to the next of the other."""
    found, current = [], None
    for event in seen:
        if event.kind == end and current is not None:
            found.append(current)
            current = None
        if event.kind == begin:
            current = []
        elif current is not None:
            current.append(event)
    return found


def _rehearsal(parts: list[list[device.Event]], **more) -> Rehearsal:
    def count(kind: str) -> Counter:
        counted = [Counter(f"{e.where or 'no line'} {e.what}" for e in part if e.kind == kind) for part in parts]
        return max(counted, key=Counter.total)

    low = {f"{e.where} {e.what}" for part in parts for e in part if e.kind == "low precision" and e.where}
    return Rehearsal(count("wait"), sorted(low), calls=count("collective"), **more)


def _differences(one: Path, other: Path) -> list[str]:
    """Names of the weights, optimiser's tensors and lines of the logs that two runs do not share."""
    names = []
    files = [next(run.glob("checkpoints/*/weights.safetensors")) for run in (one, other)]
    first, second = map(load_file, files)
    names += [name for name in first if not torch.equal(first[name], second[name])]
    first, second = (load_file(file.with_name("optimiser.safetensors")) for file in files)
    names += [f"{name} of the optimiser" for name, value in first.items() if not torch.equal(value, second[name])]
    first, second = map(_log, (one, other))
    return names + [f"log.csv:{i + 2}" for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


def _log(run: Path) -> list[dict]:
    rows = csv.DictReader((run / "log.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
