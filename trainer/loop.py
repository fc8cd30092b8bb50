"""The one training loop: pretraining, finetuning and probes."""

from __future__ import annotations

import csv
import fcntl
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from labelgen.shards import ShardReader, shard_paths
from trainer import checkpoint, data, distributed
from trainer.augment import augment
from trainer.errors import Interrupted, TrainerError
from trainer.methods import METHODS, Network, build_backbone
from trainer.settings import Settings, resolve, resumed

_OPTIMIZERS = {
    "sgd": (torch.optim.SGD, lambda momentum: {"momentum": momentum}),
    "adamw": (torch.optim.AdamW, lambda momentum: {"betas": (momentum, 0.999)}),
}
_TRAINING, _HELD_OUT = 0, 1  # tags of the draws


def learning_rate(step: int, settings: Settings, per_epoch: int) -> float:
    """Learning rate of a step, counted from 0; per_epoch: steps per epoch."""
    if settings.schedule == "constant":
        return settings.lr
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
    initial: str | os.PathLike | None = None,
    expected: dict | None = None,
) -> Path:
    """Train one or several methods on the shards and return the run's folder, which holds log.csv and checkpoints/.

    run:     name (in runs/) or path of the new run, default runs/<method>-<backbone>-<n>
    resume:  run to go on with; what was given in settings must be what the run has
    initial: checkpoint whose backbone the training starts from
    expected: configuration of the shards that the settings are meant for; others are told, not refused

    Under `torchrun` all processes call it alike; the first one writes. Raises TrainerError, ShardError; Interrupted after
    SIGINT or SIGTERM, when a checkpoint has been written.
    """
    if run is not None and resume is not None:
        raise TrainerError(f"both a run to resume, {resume}, and a new run, {run}; leave one of them out")
    saved = checkpoint.load(resume) if resume is not None else None
    if saved:
        checkpoint.check_newest(saved)
        first = ShardReader(shard_paths(shards)[0])
        _check_same_data(saved, {"dataset": first.config["dataset"], "config_hash": first.config_hash}, shards)
    settings = settings or Settings()
    if initial is not None:
        of = checkpoint.load(initial, best=True).meta["settings"]
        settings = replace(
            settings, **{name: of[name] for name in ("backbone", "width") if getattr(settings, name) is None}
        )
    settings = resumed(settings, saved.meta["settings"], saved.run) if saved else resolve(settings)
    with distributed.session(settings.device) as device, data.ending_workers():
        settings = replace(settings, precision=_precision(settings, device))
        training = _Training(settings, shards, device, None if saved else initial)
        for name, value in (expected or {}).items():
            if training.source.config.get(name) != value:
                say(f"the recipe is for shards with {name} {value}, these have {training.source.config.get(name)}")
        return training.run(run, saved)


class _Training:
    """Everything that a run needs, and the loop over its steps."""

    def __init__(self, settings: Settings, shards: str | os.PathLike, device: torch.device, initial=None):
        self.settings, self.shards, self.device = settings, shards, device
        self.source = data.Shards(shards, settings.split)
        held = self.source.hold_out(settings.holdout, settings.seed) if settings.holdout else None
        if held is not None:
            say(f"{held.sum()} training videos are held out, {self.source.trains.sum()} are trained on")
        self.parts = {name: self._clips(name, _TRAINING) for name in settings.methods}
        sizes = [len(clips.samples) for clips in self.parts.values()]
        self.per_epoch = max(math.ceil(size / settings.batch_size) for size in sizes)
        self.last = settings.epochs * self.per_epoch
        self.batches = {name: self._batches(clips) for name, clips in self.parts.items()}
        self.held_out = None
        if held is not None:
            trains, self.source.trains = self.source.trains, held
            self.held_out = {name: self._clips(name, _HELD_OUT) for name in settings.methods}
            self.source.trains = trains
            parts = 1, distributed.world(), distributed.rank()
            self.scored = {
                name: data.Batches(len(clips.samples), settings.batch_size, 0, parts=parts)
                for name, clips in self.held_out.items()
            }

        backbone = build_backbone(settings)
        self.initial = checkpoint.start_from(initial, backbone, say) if initial is not None else None
        self.network = Network(settings, self.source, backbone)
        if settings.sync_bn and distributed.world() > 1 and device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.network.to(device, memory_format=torch.channels_last_3d)
        if settings.compile:
            self.network.backbone.compile()
        create, momentum = _OPTIMIZERS[settings.optimizer]
        self.optimiser = create(
            [weight for weight in self.network.parameters() if weight.requires_grad],
            settings.lr,
            weight_decay=settings.weight_decay,
            **momentum(settings.momentum),
        )

    def _clips(self, name: str, tag: int) -> data.TrainingClips:
        """The samples of a method among the videos that the source now trains on."""
        method, options = METHODS[name], self.settings.options[name]
        samples, left_out, reason = method.samples(self.source, options)
        if not len(samples):
            what = "hold out" if tag else "use"
            raise TrainerError(f"{self.shards}: nothing that {name} can {what}: {left_out} videos {reason}")
        if left_out and not tag:
            say(f"{name} leaves out: {left_out} videos {reason}")
        jitter = self.settings.jitter or method.defaults["jitter"]
        return data.TrainingClips(self.source, samples, method, options, self.settings.seed, jitter, tag)

    def _batches(self, clips: data.TrainingClips) -> data.Batches:
        settings, easy, easy_steps = self.settings, None, 0
        if settings.curriculum:
            easy = self.source.easier_half(clips.samples, clips.method)
            easy_steps = round(settings.curriculum * self.last)
        parts = settings.accumulate, distributed.world(), distributed.rank()
        return data.Batches(len(clips.samples), settings.batch_size, settings.seed, easy, easy_steps, parts)

    def _meta(self) -> dict:
        return {
            "settings": asdict(self.settings),
            "dataset": self.source.dataset,
            "split": self.source.split,
            "samples": {name: len(clips.samples) for name, clips in self.parts.items()},
            "videos": len(self.source.videos),
            "classes": self.source.classes,
            "steps": self.last,
            "config_hash": self.source.config_hash,
            "config": self.source.config,
            "environment": {
                "device": self.device.type,
                "processes": distributed.world(),
                "threads": torch.get_num_threads(),
                **checkpoint.versions(),
            },
        }

    def run(self, name, saved: checkpoint.Checkpoint | None) -> Path:
        settings, network, meta = self.settings, self.network, self._meta()
        first = saved.meta["step"] if saved else 0
        loaders = self._loaders(first)
        meta["initial"] = saved.meta["initial"] if saved else self.initial
        if saved:
            _check_same_data(saved, {name: meta[name] for name in ("split", "samples")}, self.shards)
            checkpoint.check_fit(saved.file, network, saved.weights)
        folder = saved.run if saved else distributed.by_first(lambda: _new_run(name, settings))
        with ExitStack() as stack:
            distributed.by_first(lambda: stack.enter_context(_locked(folder)))
            if saved:
                distributed.by_first(lambda: checkpoint.check_newest(saved))  # read before the run was locked
                self.optimiser.load_state_dict(saved.optimiser_state())
                network.load_state_dict(saved.weights)
                distributed.by_first(lambda: [_cut_log(folder / log, first) for log in ("log.csv", "holdout.csv")])
            else:
                try:
                    self._save(folder, first, meta)  # so that a run can be resumed from its first step
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)  # a run without a checkpoint is none
                    raise
            self._introduce(folder, saved, meta)
            stop = stack.enter_context(_StopSignals())
            log = stack.enter_context(_Log(folder, first, self.last, settings.log_every, meta))
            self._steps(loaders, folder, first, meta, stop, log)
        say(f"trained {self.last} steps -> {folder}")
        return folder

    def _introduce(self, folder: Path, saved: checkpoint.Checkpoint | None, meta: dict) -> None:
        settings, source = self.settings, self.source
        parameters = sum(weight.numel() for weight in self.network.backbone.parameters())
        samples = ", ".join(f"{len(clips.samples)} samples" for clips in self.parts.values())
        say(
            f"{settings.method}, {settings.backbone} (width {settings.width:g}, {parameters:,} parameters) on "
            f"{self.device}{f' x {distributed.world()}' if distributed.world() > 1 else ''} in {settings.precision}, "
            f"{samples} of {source.dataset}, {settings.epochs} epochs of {self.per_epoch} steps -> {folder}"
        )
        if source.whole:
            say(
                f"{source.dataset} marks no video as train{f' in split {source.split}' * bool(source.split)}: all are used"
            )
        for warning in version_warnings(settings.precision, torch.__version__, torch.backends.cudnn.version()):
            say(f"warning: {warning}")
        if saved:
            say(f"resuming after step {saved.meta['step']} of {self.last}")
            _warn_of_inexact(saved.meta["environment"], meta["environment"])

    def _steps(self, loaders: dict, folder: Path, first: int, meta: dict, stop: _StopSignals, log: _Log) -> None:
        settings, network, device = self.settings, self.network, self.device
        torch.backends.cudnn.benchmark = True  # batches differ by at most one clip
        allow_tf32 = settings.precision != "float32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        forward = network
        if distributed.world() > 1:
            with warnings.catch_warnings(action="ignore"):  # torch 2.13 renames it; older ones know this name alone
                forward = DistributedDataParallel(network, broadcast_buffers=False)
        network.train()
        start = time.perf_counter()
        for step in range(first, self.last):
            lr = learning_rate(step, settings, self.per_epoch)
            for group in self.optimiser.param_groups:
                group["lr"] = lr
            seed_step(settings.seed, step)
            self.optimiser.zero_grad()
            values, waited, ids = {}, 0.0, []
            for micro in range(settings.accumulate):
                begin = time.perf_counter()
                raw = {name: data.told(next(loader)) for name, loader in loaders.items()}
                waited += time.perf_counter() - begin
                ids += [name for part in raw.values() for name in part["id"]]
                batches = {name: self._batch(name, part, step / self.last) for name, part in raw.items()}
                last_part = micro + 1 == settings.accumulate
                shares = {name: self.batches[name].shares(step)[micro] for name in batches}
                with nullcontext() if last_part or forward is network else forward.no_sync():
                    with self._autocast():
                        metrics = forward(batches, shares)
                    metrics["loss"].backward()
                for key, value in metrics.items():
                    values[key] = values.get(key, 0) + value.detach()
            self.optimiser.step()
            network.after_step((step + 1) / self.last)
            numbers = distributed.average(torch.stack([*values.values()])).tolist()  # waits for the device
            values = dict(zip(values, numbers, strict=True))
            done = time.perf_counter()
            if not math.isfinite(values["loss"]):
                raise TrainerError(_not_finite("the loss", step, ids, folder))
            if settings.curriculum:
                values["easier_half"] = float(step < round(settings.curriculum * self.last))
            clips = sum(self.batches[name].size(step) * part.n for name, part in self.parts.items())
            log.step(step, step // self.per_epoch, lr, values, waited, done - start, clips)
            start = done  # so that logging, scoring and checkpoints count in the next step's total

            if self.held_out and (step + 1) % self.per_epoch == 0:
                scores = self.score(step)
                best = distributed.by_first(lambda scores=scores, step=step: log.held_out(step + 1, scores))
                if best and all(clips.method.supervised for clips in self.parts.values()):
                    self._save(folder, step + 1, meta, best=True)
                network.train()
            number = distributed.any_of(int(stop.caught or 0), device)
            if number or step + 1 == self.last or (step + 1) % settings.checkpoint_every == 0:
                if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
                    raise TrainerError(_not_finite("a weight", step, ids, folder))
                log.sync()  # a checkpoint never runs ahead of its log
                self._save(folder, step + 1, meta)
            if number and step + 1 < self.last:
                raise Interrupted(
                    f"stopped by {signal.Signals(number).name} after step {step + 1} of {self.last}; "
                    f"go on with: vssl train --shards {_quoted(self.shards)} --resume {_quoted(folder)}",
                    128 + number,
                )

    def _loaders(self, first: int) -> dict:
        """Iterators over the raw batches of the steps from `first`, by method; those of held-out samples are made ready.

        All processes that decode start here, before anything is exchanged between processes: a fork may hang for ever when
        a thread of gloo is just entering Python (CPython issue 112275).
        """
        workers, self.held_out_loaders = self.settings.workers, {}
        for name, clips in (self.held_out or {}).items():
            keys: list = []  # none yet, so that the processes wait
            loader = data.loader(clips, workers, self.device, batch_sampler=keys, persistent_workers=workers > 0)
            iter(loader)
            keys += self.scored[name].sampler(range(self.scored[name].per_epoch))
            self.held_out_loaders[name] = loader
        samplers = {name: self.batches[name].sampler(range(first, self.last)) for name in self.parts}
        return {
            name: iter(data.loader(clips, workers, self.device, batch_sampler=samplers[name]))
            for name, clips in self.parts.items()
        }

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _batch(self, name: str, raw: dict, progress: float, held_out: bool = False) -> data.Batch:
        clips = (self.held_out if held_out else self.parts)[name]

        def on_device(pixels, view):
            view = {key: value.flatten(0, 1) for key, value in view.items()}
            x = augment(data.to_device(pixels, self.device).flatten(0, 1), view)
            return x.unflatten(0, pixels.shape[:2])

        def fetch(rows, read):
            return on_device(*clips.fetch(raw["key"].numpy(), rows.cpu().numpy(), read))

        labels, video = data.to_device(raw["labels"], self.device), raw["video"].to(self.device)
        return data.Batch(on_device(raw["clips"], raw["view"]), labels, video, progress, fetch)

    @torch.no_grad()
    def score(self, step: int) -> dict[str, float]:
        """Means of the metrics over all held-out samples, of the network in evaluation mode. Same draws every time."""
        self.network.eval()
        distributed.share(self.network.buffers())
        seed_step(self.settings.seed, step)
        totals: dict[str, float] = {}
        for name, clips in self.held_out.items():
            batches = self.scored[name]
            for number, raw in enumerate(self.held_out_loaders[name]):
                with self._autocast():
                    metrics = self.network({name: self._batch(name, data.told(raw), step / self.last, held_out=True)})
                prefix = f"{name}." * (len(self.held_out) > 1)
                share = batches.size(number) / len(clips.samples)
                for key, value in metrics.items():
                    value = float(distributed.average(value.detach().float()))
                    totals[prefix + key] = totals.get(prefix + key, 0.0) + share * value
        return totals

    def _save(self, folder: Path, step: int, meta: dict, best: bool = False) -> None:
        distributed.by_first(lambda: checkpoint.save(folder, step, self.network, self.optimiser, meta, best))


def seed_step(seed: int, step: int) -> None:
    """Make what is drawn inside a step, such as dropout, a function of seed, step and process alone."""
    words = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _precision(settings: Settings, device: torch.device) -> str:
    if settings.precision == "auto":
        return "bf16" if device.type == "cuda" else "float32"
    if settings.precision != "float32" and device.type != "cuda":
        # torch 2.13's CPU convolution returns garbage gradients in bfloat16
        raise TrainerError(f"{settings.precision} needs a CUDA device, and this is {device}; leave it out")
    return settings.precision


def version_warnings(precision: str, version: str, cudnn: int | None) -> list[str]:
    """What is known to be slow or wrong about 3D convolutions in these versions of torch and cuDNN (e.g. 91002)."""
    warnings = []
    if precision != "bf16" or cudnn is None:
        return warnings
    if version.startswith("2.9.") and cudnn < 91500:
        warnings.append(
            f"torch {version} does not use cuDNN {cudnn} for bf16 3D convolutions, which makes them several times slower "
            "(pytorch issue 166122); use torch 2.10 or later, cuDNN 9.15 or later, or --precision tf32"
        )
    elif 90800 <= cudnn < 91300:
        warnings.append(
            f"cuDNN {cudnn} gives wrong results for some bf16 3D convolutions (pytorch issue 163539); "
            "use cuDNN 9.13 or later, or --precision tf32"
        )
    return warnings


def say(text: str) -> None:
    """Print a line, of the first process only, without breaking a progress bar."""
    if distributed.rank() == 0:
        tqdm.write(text)
        sys.stdout.flush()


class _Log:
    """log.csv, holdout.csv, TensorBoard where it is installed, and the screen."""

    def __init__(self, folder: Path, first: int, last: int, every: int, meta: dict):
        self.folder, self.last, self.every, self.on = folder, last, every, distributed.rank() == 0
        self.bar = tqdm(total=last, initial=first, unit="step", disable=not (self.on and sys.stderr.isatty()))
        self.board = _tensorboard(folder, first) if self.on else None
        self.file = (folder / "log.csv").open("a", newline="", buffering=1) if self.on else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        for name, opened in (("log.csv", self.file), ("tensorboard", self.board)):
            if opened:
                with checkpoint.writing(self.folder / name):
                    opened.close()

    def step(self, step: int, epoch: int, lr: float, values: dict, waited: float, total: float, clips: int) -> None:
        if not self.on:
            return
        row = {
            "step": step + 1,
            "epoch": epoch,
            "lr": f"{lr:g}",
            **{name: f"{value:.9g}" for name, value in values.items()},
            "data_ms": f"{1000 * waited:.1f}",
            "compute_ms": f"{1000 * (total - waited):.1f}",
            "total_ms": f"{1000 * total:.1f}",
            "clips_per_s": f"{clips / total:.1f}",
        }
        with checkpoint.writing(self.folder / "log.csv"):
            writer = csv.writer(self.file, lineterminator="\n")
            if self.file.tell() == 0:
                writer.writerow(row)
            writer.writerow(row.values())
        if self.board:
            for name, value in (
                *values.items(),
                ("lr", lr),
                ("clips_per_s", clips / total),
                ("data_ms", 1000 * waited),
            ):
                self.board.add_scalar(f"train/{name}", value, step + 1)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", clips_per_s=row["clips_per_s"], refresh=False)
        self.bar.update()
        if self.bar.disable and (step + 1 == self.last or (step + 1) % self.every == 0):
            say(
                f"step {step + 1}/{self.last} | epoch {epoch} | {_shown(values)} | data {row['data_ms']} ms | "
                f"compute {row['compute_ms']} ms | {row['clips_per_s']} clips/s"
            )

    def held_out(self, step: int, values: dict) -> bool:
        """Write the metrics of the held-out samples down; whether their accuracy is the best so far."""
        path = self.folder / "holdout.csv"
        before = [float(row.get("accuracy", -1)) for row in csv.DictReader(path.open())] if path.exists() else []
        with checkpoint.writing(path), open(path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{value:.9g}" for value in values.values())])
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"holdout/{name}", value, step)
        say(f"held out after step {step}: {_shown(values)}")
        return values.get("accuracy", -1) > max(before, default=-1)

    def sync(self) -> None:
        if self.on:
            with checkpoint.writing(self.folder / "log.csv"):
                os.fsync(self.file.fileno())


def _shown(values: dict) -> str:
    names = [name for name in values if name.split(".")[-1] in ("loss", "accuracy", "chance")]
    return " | ".join(f"{name} {values[name]:.4f}" for name in names)


def _tensorboard(folder: Path, first: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=first + 1)


def _not_finite(what: str, step: int, ids: list[str], folder: Path) -> str:
    return (
        f"{what} is not finite at step {step + 1}, whose batch holds {', '.join(ids)}; "
        f"log and last checkpoint are in {folder}. Try a smaller --lr"
    )


def _new_run(name: str | os.PathLike | None, settings: Settings) -> Path:
    if name is not None:
        folder = checkpoint.run_path(name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainerError(
                f"{folder}: exists; go on with --resume {_quoted(folder)}, or choose another name with --run"
            )
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


def _quoted(path: str | os.PathLike) -> str:
    return shlex.quote(str(path))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training a run. The lock is this process's alone: decoding processes, which may outlive it
    for a moment, do not hold it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainerError(f"{folder}: another process is training this run; wait for it, or stop it") from None
        except OSError as error:  # a file system without locks
            say(f"warning: {folder}: cannot be locked ({error}); make sure that no other process trains this run")
        yield


def _check_same_data(saved: checkpoint.Checkpoint, found: dict, shards: str | os.PathLike) -> None:
    for name, value in found.items():
        if saved.meta[name] != value:
            raise TrainerError(
                f"cannot resume {saved.run}: {name} of {shards} is {value}, the run has {saved.meta[name]}; "
                "name its shards with --shards, or start a new run"
            )


def _warn_of_inexact(before: dict, now: dict) -> None:
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before[name] != now[name]]
    if changed:
        say(f"not bit for bit the unbroken run, because of other conditions: {', '.join(changed)}")


def _cut_log(path: Path, steps: int) -> None:
    """Drop the rows after the checkpoint, which are about to be made again, and a row that was cut off. Raises TrainerError
    for rows that are not numbers."""
    if not path.exists():
        return
    try:
        head, *rows = path.read_text().splitlines(keepends=True) or [""]
        rows = [row for row in rows if row.endswith("\n")]
        numbers = [[float(cell) for cell in row.split(",")] for row in rows]
        if any(len(row) != len(head.split(",")) for row in numbers):
            raise ValueError("a row has not as many numbers as the first line has names")
    except ValueError as error:
        raise TrainerError(
            f"{path}: damaged ({error}); mend it or move it away, and resume again: what follows is logged anew"
        ) from error
    kept = [text for text, row in zip(rows, numbers, strict=True) if row[0] <= steps]
    checkpoint.write_text(path, "".join([head, *kept]) if kept else "")


class _StopSignals:
    """Notes SIGINT and SIGTERM in `caught`, so that a step can be ended and saved; in one process a second one acts at
    once."""

    def __enter__(self):
        self.caught: signal.Signals | None = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _frame) -> None:
        self.caught = signal.Signals(number)
        alone = distributed.world() == 1  # a launcher passes signals on, which its processes may have had before
        os.write(2, f"\n{self.caught.name}: stopping after this step{' (again to stop at once)' * alone}\n".encode())
        if alone:
            self.__exit__()

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
