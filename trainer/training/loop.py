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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from labelgen import progress
from labelgen.errors import VsslError
from trainer import checkpoint, data, distributed
from trainer.errors import Interrupted, TrainerError
from trainer.network import Network, build_backbone
from trainer.recipes import differing
from trainer.settings import Settings, resolve, resumed
from trainer.training import streams
from trainer.training.lars import LARS
from trainer.training.log import Log, at_chance, cut_log, introduce, say
from trainer.training.loggers import Loggers
from trainer.training.precision import pick_precision, set_precision
from trainer.training.run import STOPS, Saver, StopSignals, check_name, check_same_data, locked, metadata, new_folder
from trainer.training.schedule import learning_rate, pacing

_OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[float], dict]]] = {
    "sgd": (torch.optim.SGD, lambda momentum: {"momentum": momentum}),
    "lars": (LARS, lambda momentum: {"momentum": momentum}),
    "adamw": (torch.optim.AdamW, lambda momentum: {"betas": (momentum, 0.999)}),
}
_CHECKPOINT = 0
_REQUESTS = (_CHECKPOINT, *map(int, STOPS))  # requests to a process that trains


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
    """Train one or several methods on shards. Under `torchrun`, all processes make the same call and the first one writes.

    Parameters
    ----------
    settings : Settings
        None: the defaults, or those of the run that is resumed.
    shards : path, or several
        Folders of shards that were labelled with the same settings.
    run : str or path
        Name (in runs/) or path of the new run; default: runs/<method>-<backbone>-<n>.
    resume : str or path
        Run to continue; given settings must equal those of the run.
    initial : str or path
        Checkpoint whose backbone the training starts from.
    expected : dict
        Configuration of shards for which the settings are meant; differences are printed.
    clips : int
        Number of clips to show, instead of the settings' epochs.
    overlay : str or path
        File with other classes and splits of the videos, see `trainer.data.overlay`.

    Returns
    -------
    Path
        The folder of the run, which holds log.csv and checkpoints/.

    Raises
    ------
    TrainerError, ShardError, WriteError
        If settings, shards or checkpoint do not fit together, cannot be read or cannot be written.
    Interrupted
        After SIGINT, SIGTERM or SIGHUP, once a checkpoint is written.

    Examples
    --------
    >>> from trainer.settings import Settings
    >>> from trainer.training import train
    >>> settings = Settings(method="pace", epochs=1, width=0.06, workers=0, device="cpu")
    >>> run = train(settings, "out/demo", "runs/small")  # doctest: +ELLIPSIS
    pace...
    >>> run
    PosixPath('runs/small')
    """
    if run is not None and resume is not None:
        raise TrainerError(f"both a run to resume, {resume}, and a new run, {run}; leave one of them out")
    check_name(run if resume is None else resume)
    settings, saved = settings or Settings(), None
    if resume is not None:
        saved = checkpoint.load(resume, untrained=True)
        checkpoint.check_newest(saved)
        opened = data.Shards(shards, overlay=overlay)  # before the split is looked up in other data
        check_same_data(saved, {"dataset": opened.dataset, "config_hash": opened.config_hash}, opened.folder)
    settings = like_initial(settings, initial)
    if saved and clips:
        settings = Settings(**vars(settings) | dict.fromkeys(("epochs", "drop_every")))  # the budget says them
    settings = resumed(settings, saved.meta["settings"], saved.run) if saved else resolve(settings)
    with distributed.session(settings.device) as device:
        settings = replace(settings, precision=pick_precision(settings.precision, device))
        training = _Training(settings, shards, device, None if saved else initial, clips, overlay, saved)
        if saved and training.settings.epochs != settings.epochs:
            epochs = progress.counted(training.settings.epochs, "epoch")
            budget = (
                f"{progress.counted(clips or 0, 'clip is', 'clips are')} {epochs}, but the run has {settings.epochs}"
            )
            raise TrainerError(f"cannot resume {saved.run}: {budget}. Leave the clips out, or start a new run")
        expected = expected or {}
        for name in differing(expected, training.source.config):
            but = f"shards with {name} {expected[name]}, but these have {training.source.config.get(name)}"
            say(f"{progress.WARNING}the recipe expects {but}")
        return training.run(run, saved)


def like_initial(settings: Settings, initial: str | os.PathLike | None) -> Settings:
    """Settings whose missing backbone and width are those of the initial checkpoint, if there is one."""
    if initial is None:
        return settings
    of = checkpoint.load(initial, best=True).meta["settings"]
    return replace(settings, **{name: of[name] for name in ("backbone", "width") if getattr(settings, name) is None})


@dataclass
class _Step:
    """A launched step. download: "numbers", the values of `names`, then _REQUESTS; waited, total: seconds of waiting
    for data, and in all."""

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
        self.source, held_out = streams.select_videos(shards, settings, overlay)
        clips = streams.training_clips(self.source, settings)
        self.settings = settings = streams.for_budget(settings, clips, budget) if budget else settings
        self.streams = streams.training_streams(self.source, settings, clips)
        self.held_out = streams.held_out_streams(held_out, settings) if held_out else {}
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
        """Train a new run, or continue a saved one from its checkpoint, up to the last step."""
        settings, network, source = self.settings, self.network, self.source
        samples = {name: len(stream.clips.samples) for name, stream in self.streams.items()}
        initial = saved.meta["initial"] if saved else self.initial
        meta = metadata(settings, source, network.backbone, samples, self.last, self.device, initial)
        first = saved.meta["step"] if saved else 0
        if saved:
            check_same_data(saved, {"split": source.split, "samples": samples}, source.folder)
            checkpoint.check_fit(saved.file, network, saved.weights)
        folder = saved.run if saved else distributed.on_rank_zero(lambda: new_folder(name, settings))

        with ExitStack() as stack:
            distributed.on_rank_zero(lambda: stack.enter_context(locked(folder)))
            saver = stack.enter_context(Saver(folder, meta, settings.checkpoint_minutes, self.device))
            if saved:
                # again, as it was read before the run was locked
                distributed.on_rank_zero(lambda: checkpoint.check_newest(saved))
                saved.restore(self.optimiser)
                network.load_state_dict(saved.weights)
                for file in ("log.csv", "holdout.csv"):
                    distributed.on_rank_zero(partial(cut_log, folder / file, first))
                loggers = stack.enter_context(Loggers(settings.log, folder, meta, first))
            else:
                try:  # so that a run can be resumed from its first step
                    saver.save(first, network, self.optimiser, wait=True)
                    loggers = stack.enter_context(Loggers(settings.log, folder, meta, first))
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)  # without a checkpoint it is not a run
                    raise
            introduce(settings, source, network, self.per_epoch, folder, meta, saved)
            if not saved and self.initial is None:
                streams.warn_of_few_steps({name: stream.clips for name, stream in self.streams.items()}, settings)
            stop = stack.enter_context(StopSignals())
            log = stack.enter_context(Log(folder, first, self.last, settings.log_every, loggers))
            self._steps(first, log, stop, saver)
            batches = {name: stream.batches for name, stream in self.streams.items()}
            verdict = distributed.on_rank_zero(lambda: at_chance(folder / "log.csv", batches))
        say(f"trained {progress.counted(self.last, 'step')} -> {folder}{verdict}", result=True)
        return folder

    def _steps(self, first: int, log: Log, stop: StopSignals, saver: Saver) -> None:
        """Run all steps from `first` on. The metrics of a step are read while the next one is computed, but before any
        evaluation or checkpoint after it."""
        settings, network = self.settings, self.network
        torch.backends.cudnn.benchmark = True  # batches differ by at most one clip
        set_precision(settings.precision, network)
        forward: nn.Module = network
        if distributed.world() > 1:
            with warnings.catch_warnings(action="ignore"):  # torch 2.13 renames it; older versions know only this name
                forward = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        network.train()
        start, unread = time.perf_counter(), None
        with ExitStack() as stack:
            loaders = {
                name: stack.enter_context(closing(stream.load(range(first, self.last), settings.workers, self.device)))
                for name, stream in self.streams.items()
            }
            for number in range(first, self.last):
                try:
                    step = self._launch(number, loaders, forward, stop, saver)
                except VsslError:  # an error of the batch; the step before it is done
                    self._read(unread, log)
                    raise
                requests = self._read(unread, log)
                if distributed.world() == 1:  # several processes act only on what all have read
                    requests |= _requests(stop, saver)
                now = time.perf_counter()
                step.total, start, unread = now - start, now, step  # evaluation and checkpoints count in the next total

                done = number + 1
                last, scored = done == self.last, self.held_out and done % self.per_epoch == 0
                kept = settings.keep_every and done % (settings.keep_every * self.per_epoch) == 0
                if requests or last or scored or kept or number == first:  # users wait for the first step
                    requests |= self._read(unread, log)
                    unread = None
                if scored:
                    self._score(done, log, saver)
                stopping = max(requests - {_CHECKPOINT}, default=None)
                if requests or last or kept:
                    if not distributed.everywhere(_finite(network)):
                        raise TrainerError(_not_finite("a weight", step, log.folder))
                    log.sync()  # a checkpoint is never newer than the log
                    if kept:
                        saver.save(done, network, self.optimiser, "kept")
                if requests or last:
                    saver.save(done, network, self.optimiser, wait=last or stopping is not None)
                if stopping and not last:
                    message = f"stopped by {signal.Signals(stopping).name} after step {done} of {self.last}"
                    raise Interrupted(message, 128 + stopping, log.folder)

    def _launch(
        self, number: int, loaders: Mapping[str, Iterator[dict]], forward: nn.Module, stop: StopSignals, saver: Saver
    ) -> _Step:
        """Launch one step of the optimiser. On a GPU its batch is copied while the previous step is computed."""
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
            batches = {
                name: stream.on_device(raw[name], number / self.last, self.device, number, micro)
                for name, stream in self.streams.items()
            }
            last = micro + 1 == settings.accumulate
            with nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync():
                metrics = forward(batches)
                for key, value in metrics.items():
                    sums[key] = sums.get(key, 0) + value.detach()
                if last:
                    now = _requests(stop, saver)
                    flags = [metrics["loss"].new_full((), float(request in now)) for request in _REQUESTS]
                    numbers = distributed.all_reduce_mean(torch.stack([*sums.values(), *flags]))
                    download = data.Download({"numbers": numbers}, self.device)
                metrics["loss"].backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimiser.step()
        self.network.after_step((number + 1) / self.last)
        return _Step(number, lr, ids, [*sums], download, waited)

    def _read(self, step: _Step | None, log: Log) -> set[int]:
        """Log a step, and return the requests that any process received before its end. Raises TrainerError if the loss
        is not finite."""
        if step is None:
            return set()
        settings, number = self.settings, step.number
        numbers = step.download.wait()["numbers"].tolist()
        values = dict(zip(step.names, numbers, strict=False))  # the requests follow them
        if not math.isfinite(values["loss"]):
            raise TrainerError(_not_finite("the loss", step, log.folder))
        if settings.curriculum:
            stages = pacing(settings, self.last)
            values["clips_share"] = next((share for stop, share in stages if number < stop), 1.0)
        clips = sum(stream.batches.size(number) * stream.clips.n for stream in self.streams.values())
        log.step(number, number // self.per_epoch, step.lr, values, step.waited, step.total, clips)
        return {request for request, value in zip(_REQUESTS, numbers[len(step.names) :], strict=True) if value}

    @torch.no_grad()
    def _score(self, done: int, log: Log, saver: Saver) -> None:
        """Log the mean metrics over all held-out samples, with the same random draws every time; keep the best classifier."""
        self.network.eval()
        distributed.broadcast(self.network.buffers())
        seed_step(self.settings.seed, done - 1)
        totals: dict[str, float] = {}
        for name, stream in self.held_out.items():
            prefix = f"{name}." if len(self.held_out) > 1 else ""
            names: list[str] = []
            found = []
            batches = stream.load(range(stream.batches.per_epoch), self.settings.workers, self.device)
            for number, raw in enumerate(batches):
                metrics = self.network({name: stream.on_device(raw, (done - 1) / self.last, self.device, number)})
                names = [*metrics]
                found.append(torch.stack([*metrics.values()]))
            numbers = distributed.all_reduce_mean(torch.stack(found)).tolist()  # [batches, metrics]
            for number, row in enumerate(numbers):
                share = stream.batches.size(number) / len(stream.clips.samples)
                for key, value in zip(names, row, strict=True):
                    totals[prefix + key] = totals.get(prefix + key, 0.0) + share * value
        best = distributed.on_rank_zero(lambda: log.held_out(done, totals))
        if best and all(stream.clips.method.supervised for stream in self.streams.values()):
            saver.save(done, self.network, self.optimiser, "best")
        self.network.train()


def seed_step(seed: int, step: int) -> None:
    """Make random draws within a step, such as dropout, depend only on seed, step and process."""
    words = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _requests(stop: StopSignals, saver: Saver) -> set[int]:
    """The current _REQUESTS to this process."""
    return ({_CHECKPOINT} if saver.due else set()) | ({int(stop.caught)} if stop.caught else set())


def _finite(network: nn.Module) -> torch.Tensor:
    return torch.stack([value.isfinite().all() for value in network.state_dict().values()]).all()


def _not_finite(what: str, step: _Step, folder: Path) -> str:
    return (
        f"{what} is not finite at step {step.number + 1}, with the batch {', '.join(step.ids)}; "
        f"log and last checkpoint are in {folder}. Try a smaller learning rate"
    )
