"""The one training loop: pretraining, finetuning and probes."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from labelgen.errors import VsslError
from trainer import checkpoint, data, distributed
from trainer.errors import Interrupted, TrainerError
from trainer.network import Network, build_backbone
from trainer.recipes import differing
from trainer.settings import Settings, resolve, resumed
from trainer.training import streams
from trainer.training.log import Log, at_chance, cut_log, say
from trainer.training.precision import pick_precision, set_precision, version_warnings
from trainer.training.run_folder import check_name, check_same_data, locked, new_run
from trainer.training.saver import Saver
from trainer.training.schedule import learning_rate, pacing
from trainer.training.signals import STOPS, StopSignals
from trainer.training.streams import for_budget, held_out_streams, training_clips, training_streams, warn_of_few_steps

_OPTIMIZERS = {
    "sgd": (torch.optim.SGD, lambda momentum: {"momentum": momentum}),
    "adamw": (torch.optim.AdamW, lambda momentum: {"betas": (momentum, 0.999)}),
}
_CHECKPOINT = 0
_FLAGS = (_CHECKPOINT, *map(int, STOPS))  # what a process may be asked for


def train(
    settings: Settings | None = None,
    shards: data.Folders = "out",
    run: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
    initial: str | os.PathLike | None = None,
    expected: dict | None = None,
    clips: int | None = None,
    overlay: str | os.PathLike | None = None,
) -> Path:
    """Train one or several methods on the shards and return the run's folder, which holds log.csv and checkpoints/.

    shards:  folder that labelgen wrote, or several that were labelled alike
    run:     name (in runs/) or path of the new run, default runs/<method>-<backbone>-<n>
    resume:  run to go on with; what was given in settings must be what the run has
    initial: checkpoint whose backbone the training starts from
    expected: configuration of the shards that the settings are meant for; a line tells where they have another one
    clips:   budget in clips shown, in the place of the settings' epochs
    overlay: file with other classes and splits of the videos, see `trainer.data.overlay`

    Under `torchrun` all processes call it alike; the first one writes. Raises TrainerError, ShardError, WriteError;
    Interrupted after SIGINT, SIGTERM or SIGHUP, when a checkpoint has been written.
    """
    if run is not None and resume is not None:
        raise TrainerError(f"both a run to resume, {resume}, and a new run, {run}; leave one of them out")
    check_name(run if resume is None else resume)
    settings, saved = settings or Settings(), None
    if resume is not None:
        saved = checkpoint.load(resume, untrained=True)
        checkpoint.check_newest(saved)
        opened = data.Shards(shards, overlay=overlay)
        check_same_data(saved, {"dataset": opened.dataset, "config_hash": opened.config_hash}, opened.folder)
    if initial is not None:
        of = checkpoint.load(initial, best=True).meta["settings"]
        missing = {name: of[name] for name in ("backbone", "width") if getattr(settings, name) is None}
        settings = replace(settings, **missing)
    settings = resumed(settings, saved.meta["settings"], saved.run) if saved else resolve(settings)
    with distributed.session(settings.device) as device:
        settings = replace(settings, precision=pick_precision(settings.precision, device))
        training = _Training(settings, shards, device, None if saved else initial, clips, overlay, saved)
        if saved and training.settings.epochs != settings.epochs:
            told = f"{clips:,} clips are {training.settings.epochs} epochs, the run has {settings.epochs}"
            raise TrainerError(f"cannot resume {saved.run}: {told}. Leave the clips out, or start a new run")
        expected = expected or {}
        for name in differing(expected, training.source.config):
            say(f"the recipe is for shards with {name} {expected[name]}, these have {training.source.config.get(name)}")
        return training.run(run, saved)


@dataclass
class _Step:
    """A step that has been launched. download: holds "numbers", the metrics by these names and then _FLAGS; waited, total:
    seconds, of waiting for data and in all"""

    number: int
    lr: float
    ids: list[str]
    names: list[str]
    download: data.Download
    waited: float
    total: float = 0.0


class _Training:
    """Data, network and optimiser of a run, and the loop over its steps."""

    def __init__(
        self,
        settings: Settings,
        shards: data.Folders,
        device: torch.device,
        initial: str | os.PathLike | None = None,
        budget: int | None = None,
        overlay: str | os.PathLike | None = None,
        saved: checkpoint.Checkpoint | None = None,
    ) -> None:
        self.device = device
        self.source, self.held_out = data.Shards(shards, settings.split, overlay=overlay), {}
        if len(self.source.splits) > 1 and "recognition" in settings.methods:
            raise TrainerError(f"recognition learns the labels of one data set, not of {', '.join(self.source.splits)}")
        if (weights := settings.shard_weights) and len(weights) != len(self.source.splits):
            raise TrainerError(f"shard_weights are {weights}, expected one for each of {', '.join(self.source.splits)}")
        if settings.holdout:
            held = self.source.hold_out(settings.holdout, settings.seed)
            say(f"{held.sum()} training videos are held out, {self.source.trains.sum()} are trained on")
        if settings.fraction < 1:
            before = self.source.trains.sum()
            self.source.keep(settings.fraction, settings.seed)
            say(f"{self.source.trains.sum()} of {before} training videos are used")
        clips = training_clips(self.source, settings)
        self.settings = settings = for_budget(settings, clips, budget) if budget else settings
        self.streams = training_streams(self.source, settings, clips)
        if settings.holdout:
            self.held_out = held_out_streams(self.source.with_training_videos(held), settings)
        self.per_epoch = max(stream.batches.per_epoch for stream in self.streams.values())
        self.last = settings.epochs * self.per_epoch

        backbone = build_backbone(settings, saved.meta if saved else None)
        self.initial = checkpoint.start_from(initial, backbone, say) if initial is not None else None
        self.streams, self.held_out = (streams.expecting(own, backbone.input) for own in (self.streams, self.held_out))
        self.network = Network(settings, self.source, backbone)
        if settings.sync_bn and distributed.world() > 1 and device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # unknown to its stub
        if settings.compile:
            self.network.compile_networks()
        create, momentum = _OPTIMIZERS[settings.optimizer]
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        options = momentum(settings.momentum) | ({"fused": True} if device.type != "cpu" else {})
        self.optimiser = create(weights, settings.lr, weight_decay=settings.weight_decay, **options)

    def run(self, name: str | os.PathLike | None, saved: checkpoint.Checkpoint | None) -> Path:
        """Train a new run, or the saved one from its checkpoint on, to the last step."""
        settings, network, meta = self.settings, self.network, self._meta()
        first = saved.meta["step"] if saved else 0
        meta["initial"] = saved.meta["initial"] if saved else self.initial
        if saved:
            check_same_data(saved, {name: meta[name] for name in ("split", "samples")}, self.source.folder)
            checkpoint.check_fit(saved.file, network, saved.weights)
        folder = saved.run if saved else distributed.on_rank_zero(lambda: new_run(name, settings))

        with ExitStack() as stack:
            distributed.on_rank_zero(lambda: stack.enter_context(locked(folder)))
            saver = stack.enter_context(Saver(folder, meta, settings.checkpoint_minutes, self.device))
            if saved:
                distributed.on_rank_zero(lambda: checkpoint.check_newest(saved))  # read before the run was locked
                saved.restore(self.optimiser)
                network.load_state_dict(saved.weights)
                for name in ("log.csv", "holdout.csv"):
                    distributed.on_rank_zero(partial(cut_log, folder / name, first))
            else:
                try:
                    # so that a run can be resumed from its first step
                    saver.save(first, network, self.optimiser, wait=True)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)  # a run without a checkpoint is none
                    raise
            self._introduce(folder, saved, meta)
            stop = stack.enter_context(StopSignals())
            log = stack.enter_context(Log(folder, first, self.last, settings.log_every))
            self._steps(first, log, stop, saver)
            batches = {name: stream.batches for name, stream in self.streams.items()}
            verdict = distributed.on_rank_zero(lambda: at_chance(folder / "log.csv", batches))
        say(f"trained {self.last} steps -> {folder}{verdict}")
        return folder

    def _steps(self, first: int, log: Log, stop: StopSignals, saver: Saver) -> None:
        """All steps from the first on. The metrics of a step are read while the next one is computed, but always before a score
        or a checkpoint is made of it."""
        settings, network = self.settings, self.network
        torch.backends.cudnn.benchmark = True  # batches differ by at most one clip
        set_precision(settings.precision, network)
        forward: nn.Module = network
        if distributed.world() > 1:
            with warnings.catch_warnings(action="ignore"):  # torch 2.13 renames it; older ones know this name alone
                forward = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        network.train()
        start = time.perf_counter()
        behind: _Step | None = None
        with ExitStack() as stack:
            loaders = {
                name: stack.enter_context(closing(stream.load(range(first, self.last), settings.workers, self.device)))
                for name, stream in self.streams.items()
            }
            for number in range(first, self.last):
                try:
                    step = self._step(number, loaders, forward, lambda: _asked(stop, saver))
                except VsslError:  # of the batch, which costs no step before
                    self._read(behind, log)
                    raise
                asked = self._read(behind, log)
                if distributed.world() == 1:  # several processes act on what all of them have read
                    asked |= _asked(stop, saver)
                end = time.perf_counter()
                step.total = end - start
                start = end  # so that scoring and checkpoints count in the next step's total
                behind = step

                done = number + 1
                last, scored = done == self.last, self.held_out and done % self.per_epoch == 0
                kept = settings.keep_every and done % (settings.keep_every * self.per_epoch) == 0
                if asked or last or scored or kept or number == first:  # a reader waits to hear of the first one
                    asked |= self._read(behind, log)
                    behind = None
                if scored:
                    self._score_and_keep_the_best(done, log, saver)
                stopping = max(asked - {_CHECKPOINT}, default=None)
                if asked or last or kept:
                    if not distributed.everywhere(_finite(network)):
                        raise TrainerError(_not_finite("a weight", step, log.folder))
                    log.sync()  # a checkpoint never runs ahead of its log
                    if kept:
                        saver.save(done, network, self.optimiser, "kept")
                if asked or last:
                    saver.save(done, network, self.optimiser, wait=last or stopping is not None)
                if stopping and not last:
                    message = f"stopped by {signal.Signals(stopping).name} after step {done} of {self.last}"
                    raise Interrupted(message, 128 + stopping, log.folder)

    def _step(
        self, number: int, loaders: Mapping[str, Iterator[dict]], forward: nn.Module, asked: Callable[[], set[int]]
    ) -> _Step:
        """Launch one step of the optimiser. On a GPU its batch is copied while the step before is computed."""
        settings = self.settings
        lr = learning_rate(number, settings, self.per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        seed_step(settings.seed, number)
        self.optimiser.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        ids, waited = [], 0.0
        for micro in range(settings.accumulate):
            begin = time.perf_counter()
            raw = {name: next(loader) for name, loader in loaders.items()}
            waited += time.perf_counter() - begin
            ids += [id for batch in raw.values() for id in batch["id"]]
            batches, shares = {}, {}
            for name, stream in self.streams.items():
                counts, shares[name] = stream.batches.counts(number)[micro], stream.batches.shares(number)[micro]
                batches[name] = stream.on_device(raw[name], number / self.last, self.device, counts)
            last = micro + 1 == settings.accumulate
            with nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync():
                metrics = forward(batches, shares)
                for key, value in metrics.items():
                    sums[key] = sums.get(key, 0) + value.detach()
                if last:
                    now = asked()
                    flags = [metrics["loss"].new_full((), float(flag in now)) for flag in _FLAGS]
                    numbers = distributed.all_reduce_mean(torch.stack([*sums.values(), *flags]))
                    download = data.Download({"numbers": numbers}, self.device)
                metrics["loss"].backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimiser.step()
        self.network.after_step((number + 1) / self.last)
        return _Step(number, lr, ids, [*sums], download, waited)

    def _read(self, step: _Step | None, log: Log) -> set[int]:
        """Log a step, and return what any process was asked for before its end. Raises TrainerError if the loss is not
        finite."""
        if step is None:
            return set()
        settings, number = self.settings, step.number
        numbers = step.download.wait()["numbers"].tolist()
        values = dict(zip(step.names, numbers, strict=False))  # the flags follow them
        if not math.isfinite(values["loss"]):
            raise TrainerError(_not_finite("the loss", step, log.folder))
        if settings.curriculum:
            stages = pacing(settings, self.last)
            values["clips_share"] = next((share for stop, share in stages if number < stop), 1.0)
        clips = sum(stream.batches.size(number) * stream.clips.n for stream in self.streams.values())
        log.step(number, number // self.per_epoch, step.lr, values, step.waited, step.total, clips)
        return {flag for flag, value in zip(_FLAGS, numbers[len(step.names) :], strict=True) if value}

    def _score_and_keep_the_best(self, done: int, log: Log, saver: Saver) -> None:
        scores = self._score(done - 1)
        best = distributed.on_rank_zero(lambda: log.held_out(done, scores))
        if best and all(stream.clips.method.supervised for stream in self.streams.values()):
            saver.save(done, self.network, self.optimiser, "best")
        self.network.train()

    @torch.no_grad()
    def _score(self, step: int) -> dict[str, float]:
        """Means of the metrics over all held-out samples, of the network in evaluation mode. Same draws every time."""
        self.network.eval()
        distributed.broadcast(self.network.buffers())
        seed_step(self.settings.seed, step)
        totals: dict[str, float] = {}
        for name, stream in self.held_out.items():
            prefix = f"{name}." if len(self.held_out) > 1 else ""
            names: list[str] = []
            found = []
            batches = stream.load(range(stream.batches.per_epoch), self.settings.workers, self.device)
            for number, raw in enumerate(batches):
                counts = stream.batches.counts(number)[0]
                metrics = self.network({name: stream.on_device(raw, step / self.last, self.device, counts)})
                names = [*metrics]
                found.append(torch.stack([*metrics.values()]))
            numbers = distributed.all_reduce_mean(torch.stack(found)).tolist()  # [batches, metrics]
            for number, row in enumerate(numbers):
                share = stream.batches.size(number) / len(stream.clips.samples)
                for key, value in zip(names, row, strict=True):
                    totals[prefix + key] = totals.get(prefix + key, 0.0) + share * value
        return totals

    def _meta(self) -> dict:
        return {
            "settings": asdict(self.settings),
            "dataset": self.source.dataset,
            "split": self.source.split,
            "datasets": self.source.splits,
            "samples": {name: len(stream.clips.samples) for name, stream in self.streams.items()},
            "videos": len(self.source.videos),
            "classes": self.source.classes,
            "steps": self.last,
            "config_hash": self.source.config_hash,
            "config": self.source.config,
            **checkpoint.carried(self.network.backbone),
            "environment": {
                "device": self.device.type,
                "processes": distributed.world(),
                "threads": torch.get_num_threads(),
                **checkpoint.versions(),
            },
        }

    def _introduce(self, folder: Path, saved: checkpoint.Checkpoint | None, meta: dict) -> None:
        """Print what is trained on what, and what a reader of its numbers should know."""
        settings, source = self.settings, self.source
        parameters = sum(weight.numel() for weight in self.network.backbone.parameters())
        times = f", each {settings.repeats} times," if settings.repeats > 1 else ""
        samples = ", ".join(f"{n} samples{times}" for n in meta["samples"].values())
        device = f"{self.device} x {distributed.world()}" if distributed.world() > 1 else f"{self.device}"
        say(
            f"{settings.method}, {settings.backbone} (width {settings.width:g}, {parameters:,} parameters) on "
            f"{device} in {settings.precision}, "
            f"{samples} of {source.dataset}, {settings.epochs} epochs of {self.per_epoch} steps -> {folder}"
        )
        for name in source.whole:
            where = f" in split {source.splits[name]}" if source.splits[name] else ""
            say(f"{name} marks no video as train{where}: all are used")
        if not saved and self.initial is None:
            warn_of_few_steps({name: stream.clips for name, stream in self.streams.items()}, settings)
        for name in settings.methods:
            for note in self.network.method(name).notes:
                say(note)
        for warning in version_warnings(settings.precision, torch.__version__, torch.backends.cudnn.version()):
            say(f"warning: {warning}")
        if saved:
            say(f"resuming after step {saved.meta['step']} of {self.last}")
            before, now = saved.meta["environment"], meta["environment"]
            changed = [
                f"{name} {old} -> {now[name]}" for name in now if (old := before.get(name, "unknown")) != now[name]
            ]
            if changed:
                say(f"not bit for bit the unbroken run, because of other conditions: {', '.join(changed)}")


def seed_step(seed: int, step: int) -> None:
    """Make what is drawn inside a step, such as dropout, a function of seed, step and process alone."""
    words = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _asked(stop: StopSignals, saver: Saver) -> set[int]:
    """Which of _FLAGS this process is asked for now."""
    return ({_CHECKPOINT} if saver.due else set()) | ({int(stop.caught)} if stop.caught else set())


def _finite(network: nn.Module) -> torch.Tensor:
    return torch.stack([value.isfinite().all() for value in network.state_dict().values()]).all()


def _not_finite(what: str, step: _Step, folder: Path) -> str:
    return (
        f"{what} is not finite at step {step.number + 1}, whose batch holds {', '.join(step.ids)}; "
        f"log and last checkpoint are in {folder}. Try a smaller learning rate"
    )
