"""The one training loop."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from trainer import checkpoint, data
from trainer.augment import augment
from trainer.backbones import BACKBONES
from trainer.errors import Interrupted, TrainerError
from trainer.methods import METHODS, build


@dataclass(frozen=True)
class Settings:
    """What a run is made of. None: as the run has it when resuming, else the method's own default, else the one here.

    Fields of one method only may be given with that method alone.
    """

    method: str | None = None  # a name of trainer.methods.METHODS [pace]
    backbone: str | None = None  # a name of trainer.backbones.BACKBONES [r3d10]
    width: float | None = None  # multiplies the backbone's channels [1.0]
    split: str | None = None  # official split, name or 1-based number [the first]
    seed: int | None = None  # of initial weights and all draws [0]

    epochs: int | None = None  # passes over all samples [method]
    batch_size: int | None = None  # clips per step at most [method]
    lr: float | None = None  # learning rate at the start [method]
    optimizer: str | None = None  # sgd, adamw [sgd]
    momentum: float | None = None  # of SGD; AdamW's first beta [method]
    weight_decay: float | None = None  # on all parameters [method]
    schedule: str | None = None  # step: lr / 10 every drop_every epochs; cosine: 5 % warm-up, then to 0 [method]
    drop_every: int | None = None  # epochs between two drops of the step schedule [method]
    jitter: str | None = None  # colour jitter: none, one per clip, one per frame [method]
    bf16: bool | None = None  # bfloat16 autocast of the network on CUDA; losses stay in float32 [False]

    targets: str | None = None  # statistics: raw, scaled or classes [classes]
    parts: str | None = None  # statistics: motion, appearance or both [both]

    # the following do not change what is computed, and may change on resume
    workers: int | None = None  # processes that decode frames [half of the cores, 1 to 8]
    device: str | None = None  # auto, cpu, cuda, cuda:1, ... [auto: cuda where there is one]
    checkpoint_every: int | None = None  # steps between checkpoints; one at the end in any case [200]
    log_every: int | None = None  # steps between two plain lines where there is no terminal [10]


WORKERS = min(8, max(1, (os.cpu_count() or 1) // 2))
_DEFAULTS = {
    "method": "pace",
    "backbone": "r3d10",
    "width": 1.0,
    "split": "1",
    "seed": 0,
    "optimizer": "sgd",
    "bf16": False,
    "workers": WORKERS,
    "device": "auto",
    "checkpoint_every": 200,
    "log_every": 10,
}
_OPTIMIZERS = {
    "sgd": (torch.optim.SGD, lambda momentum: {"momentum": momentum}),
    "adamw": (torch.optim.AdamW, lambda momentum: {"betas": (momentum, 0.999)}),
}
_MAY_CHANGE = ("workers", "device", "checkpoint_every", "log_every")


def resolve(settings: Settings) -> Settings:
    """The settings with every default filled in. Raises TrainerError for values that make no sense."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    for name, known in (("method", METHODS), ("backbone", BACKBONES)):
        if given.get(name, _DEFAULTS[name]) not in known:
            raise TrainerError(f"unknown {name} {given[name]!r}, expected one of: {', '.join(known)}")
    method = given.get("method", _DEFAULTS["method"])
    defaults = {**_DEFAULTS, **METHODS[method].defaults}
    for name in given.keys() - defaults.keys():
        raise TrainerError(f"{name} is no setting of method {method}")
    values = {**defaults, **given}
    for name in ("width", "epochs", "batch_size", "lr", "drop_every", "checkpoint_every", "log_every"):
        if not values[name] > 0:
            raise TrainerError(f"{name} is {values[name]}, expected more than 0")
    for name in ("seed", "momentum", "weight_decay", "workers"):
        if not values[name] >= 0:
            raise TrainerError(f"{name} is {values[name]}, expected 0 or more")
    for name, known in (
        ("jitter", ("none", "clip", "frame")),
        ("schedule", ("step", "cosine")),
        ("optimizer", tuple(_OPTIMIZERS)),
    ):
        if values[name] not in known:
            raise TrainerError(f"{name} is {values[name]!r}, expected one of: {', '.join(known)}")
    return Settings(**values)


def _resolve_resumed(given: Settings, stored: dict, run: Path) -> Settings:
    """The stored settings of a run, with what is given and may change. Raises TrainerError for other differences."""
    given = {name: value for name, value in asdict(given).items() if value is not None}
    differences = [
        f"{name} is {value!r}, the run has {stored[name]!r}"
        for name, value in given.items()
        if name not in _MAY_CHANGE and value != stored[name]
    ]
    if differences:
        raise TrainerError(f"cannot resume {run}: {'; '.join(differences)}. Leave the options out, or start a new run")
    return resolve(replace(Settings(**stored), **given))


def learning_rate(step: int, settings: Settings, per_epoch: int) -> float:
    """Learning rate of a step, counted from 0; per_epoch: steps per epoch."""
    if settings.schedule == "step":
        return settings.lr / 10 ** (step // per_epoch // settings.drop_every)
    total = settings.epochs * per_epoch
    warmup = math.ceil(total / 20)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def train(
    settings: Settings | None = None,
    shards: str | os.PathLike = "out",
    run: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
) -> Path:
    """Train a method on the shards and return the run's folder, which holds log.csv and checkpoints/.

    run:    name (in runs/) or path of the new run, default runs/<method>-<backbone>-<n>
    resume: run to go on with; what was given in settings must be what the run has

    Raises TrainerError, ShardError; Interrupted after SIGINT or SIGTERM, when a checkpoint has been written.
    """
    saved = checkpoint.load(resume) if resume is not None else None
    settings = settings or Settings()
    settings = _resolve_resumed(settings, saved.meta["settings"], saved.run) if saved else resolve(settings)
    device = pick_device(settings.device)
    if settings.bf16 and device.type != "cuda":  # torch 2.13's CPU convolution returns garbage gradients in bfloat16
        raise TrainerError(f"bf16 needs a CUDA device, and this is {device}; leave it out")
    source = data.Shards(shards, settings.split)
    method = METHODS[settings.method]
    samples, left_out, reason = method.samples(source)
    if not len(samples):
        raise TrainerError(f"{shards}: nothing that {settings.method} can use: {left_out} videos {reason}")
    per_epoch = data.steps_per_epoch(len(samples), settings.batch_size)
    last = settings.epochs * per_epoch

    network = build(settings, source.config).to(device, memory_format=torch.channels_last_3d)
    create, momentum = _OPTIMIZERS[settings.optimizer]
    optimiser = create(
        network.parameters(), settings.lr, weight_decay=settings.weight_decay, **momentum(settings.momentum)
    )
    meta = {
        "settings": asdict(settings),
        "dataset": source.dataset,
        "split": source.split,
        "samples": len(samples),
        "steps": last,
        "config_hash": source.config_hash,
        "config": source.config,
        "environment": {"device": device.type, "threads": torch.get_num_threads(), **checkpoint.versions()},
    }
    if saved:
        _check_same_data(saved, meta, shards)
        folder, first = saved.run, saved.meta["step"]
        network.load_state_dict(saved.weights)
        optimiser.load_state_dict(saved.optimiser_state())
        _cut_log(folder / "log.csv", first)
    else:
        folder, first = _new_run(run, settings), 0
        checkpoint.save(folder, first, network, optimiser, meta)  # so that a run can be resumed from its first step
    parameters = sum(weight.numel() for weight in network.backbone.parameters())
    say(
        f"{settings.method}, {settings.backbone} (width {settings.width:g}, {parameters:,} parameters) on {device}, "
        f"{len(samples)} samples of {source.dataset}, {settings.epochs} epochs of {per_epoch} steps -> {folder}"
    )
    if source.whole:
        say(f"{source.dataset} marks no video as train{f' in split {source.split}' * bool(source.split)}: all are used")
    if left_out:
        say(f"left out: {left_out} videos {reason}")
    if saved:
        say(f"resuming after step {first} of {last}")
        _warn_of_inexact(saved.meta["environment"], meta["environment"])

    torch.backends.cudnn.benchmark = True  # batches differ by at most one clip
    precision = torch.autocast("cuda", torch.bfloat16, enabled=settings.bf16)
    clips = data.TrainingClips(source, samples, method, settings.seed, settings.jitter)
    indices = data.batch_indices(len(samples), settings.batch_size, settings.seed, range(first, last))
    loader = data.loader(clips, settings.workers, device, batch_sampler=indices)
    network.train()
    with (
        _StopSignals() as stop,
        open(folder / "log.csv", "a", newline="", buffering=1) as file,
        tqdm(total=last, initial=first, unit="step", disable=not sys.stderr.isatty()) as bar,
    ):
        log = csv.writer(file, lineterminator="\n")
        start = time.perf_counter()
        for step, batch in enumerate(loader, first):
            loaded = time.perf_counter()
            epoch = step // per_epoch
            lr = learning_rate(step, settings, per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = lr
            batch = data.to_device(batch, device)
            with precision:
                metrics = network(augment(batch["clip"], batch["view"], source.config["crop"]), batch["labels"])
            optimiser.zero_grad()
            metrics["loss"].backward()
            optimiser.step()
            values = torch.stack([value.detach() for value in metrics.values()]).tolist()  # waits for the device
            done = time.perf_counter()

            values = dict(zip(metrics, values, strict=True))
            if not math.isfinite(values["loss"]):
                raise TrainerError(_not_finite("the loss", step, batch["id"], folder))
            total = done - start
            row = {
                "step": step + 1,
                "epoch": epoch,
                "lr": f"{lr:g}",
                **{name: f"{value:.9g}" for name, value in values.items()},
                "data_ms": f"{1000 * (loaded - start):.1f}",
                "compute_ms": f"{1000 * (done - loaded):.1f}",
                "total_ms": f"{1000 * total:.1f}",
                "clips_per_s": f"{len(batch['id']) / total:.1f}",
            }
            start = done  # so that logging and checkpoints count in the next step's total
            if file.tell() == 0:
                log.writerow(row)
            log.writerow(row.values())
            bar.set_postfix(loss=f"{values['loss']:.4f}", clips_per_s=row["clips_per_s"], refresh=False)
            bar.update()
            if bar.disable and (step + 1 == last or (step + 1) % settings.log_every == 0):
                say(_line(row, values, last))

            if stop.caught or step + 1 == last or (step + 1) % settings.checkpoint_every == 0:
                if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
                    raise TrainerError(_not_finite("a weight", step, batch["id"], folder))
                os.fsync(file.fileno())  # a checkpoint never runs ahead of its log
                checkpoint.save(folder, step + 1, network, optimiser, meta)
            if stop.caught and step + 1 < last:
                raise Interrupted(
                    f"stopped by {stop.caught.name} after step {step + 1} of {last}; "
                    f"go on with: vssl train --shards {shards} --resume {folder}",
                    128 + stop.caught,
                )
    say(f"trained {last} steps -> {folder}")
    return folder


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU. Raises TrainerError for no device."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainerError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def say(text: str) -> None:
    """Print a line without breaking a progress bar."""
    tqdm.write(text)
    sys.stdout.flush()


def _line(row: dict, values: dict, last: int) -> str:
    metrics = " | ".join(f"{name} {values[name]:.4f}" for name in ("loss", "accuracy", "chance") if name in values)
    return (
        f"step {row['step']}/{last} | epoch {row['epoch']} | {metrics} | data {row['data_ms']} ms | "
        f"compute {row['compute_ms']} ms | {row['clips_per_s']} clips/s"
    )


def _not_finite(what: str, step: int, ids: list[str], folder: Path) -> str:
    return (
        f"{what} is not finite at step {step + 1}, whose batch holds {', '.join(ids)}; "
        f"log and last checkpoint are in {folder}. Try a smaller --lr"
    )


def _new_run(name: str | os.PathLike | None, settings: Settings) -> Path:
    if name is not None:
        folder = checkpoint.run_path(name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainerError(f"{folder}: exists; go on with --resume {folder}, or choose another name with --run")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    n = 1
    while True:
        folder = checkpoint.RUNS / f"{settings.method}-{settings.backbone}-{n}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1


def _check_same_data(saved: checkpoint.Checkpoint, meta: dict, shards: str | os.PathLike) -> None:
    for name in ("dataset", "split", "config_hash", "samples"):
        if saved.meta[name] != meta[name]:
            raise TrainerError(
                f"cannot resume {saved.run}: {name} of {shards} is {meta[name]}, the run has {saved.meta[name]}; "
                "name its shards with --shards, or start a new run"
            )


def _warn_of_inexact(before: dict, now: dict) -> None:
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before[name] != now[name]]
    if changed:
        say(f"not bit for bit the unbroken run, because of other conditions: {', '.join(changed)}")


def _cut_log(path: Path, steps: int) -> None:
    """Drop the rows after the checkpoint, which are about to be made again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines[: steps + 1]) if steps else "")
    temporary.replace(path)


class _StopSignals:
    """Notes SIGINT and SIGTERM in `caught`, so that a step can be ended and saved; a second one acts at once."""

    def __enter__(self):
        self.caught: signal.Signals | None = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _frame) -> None:
        self.caught = signal.Signals(number)
        os.write(2, f"\n{self.caught.name}: stopping after this step (again to stop at once)\n".encode())
        self.__exit__()

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
