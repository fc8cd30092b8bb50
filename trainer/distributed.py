"""Several processes as one: what a step on the joined batch needs under `torchrun`.

DistributedDataParallel averages gradients over processes. A loss that is built only from `mean` and `gather` therefore
has the gradients of one process with the joined batch, even if the processes hold unequal numbers of samples. How many
each one holds is known beforehand, see `sharing`, and never exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labelgen.errors import VsslError
from trainer.errors import SettingError, TrainerError
from trainer.memory import keep_freed_memory


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True)
class Place:
    """This process among those that were started together: its number on its machine, and the number of processes on
    its machine (None: unknown) and in all."""

    local_rank: int = 0
    local: int | None = 1
    world: int = 1


def place() -> Place:
    """Read from the variables of `torchrun`; if a Slurm script sets WORLD_SIZE, missing ones are set from those of
    `srun`. Raises TrainerError if some are still missing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Place()
    for name, of_slurm in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if name not in os.environ and of_slurm in os.environ:
            os.environ[name] = os.environ[of_slurm]
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise TrainerError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} not set; start with torchrun, or see "
            "docs/clusters.md for srun"
        )
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return Place(int(os.environ["LOCAL_RANK"]), int(local) if local else None, int(os.environ["WORLD_SIZE"]))


def pick_device(name: str, here: Place = Place()) -> torch.device:
    """The device of that name; "auto" is CUDA if available, else the CPU. Each of several processes gets a different
    CUDA device: the only one that it sees or the one of its number. Raises SettingError if it is not a device,
    TrainerError if it cannot be used, or not by all processes."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise SettingError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    try:
        if here.world > 1 and device.type == "cuda":
            number = 0 if torch.cuda.device_count() == 1 else here.local_rank
            if device.index is not None and (here.local != 1 or device.index != number):
                raise TrainerError(
                    f"device {name!r} is one GPU, but {here.world} processes need one each; give cuda, and choose GPUs by "
                    "CUDA_VISIBLE_DEVICES"
                )
            device = torch.device("cuda", number)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainerError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the default device from here on
    return device


@contextmanager
def session(device: str) -> Iterator[torch.device]:
    """The device of this process, with the group of all processes started by `torchrun` or `srun` set up for the block
    (NCCL on CUDA, else gloo)."""
    joined = dist.is_initialized()
    here = Place() if joined else place()
    chosen = pick_device(device, here)
    if chosen.type == "cpu":
        keep_freed_memory()
    if here.world == 1:
        yield chosen
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


_counts: Sequence[int] = ()


@contextmanager
def sharing(counts: Sequence[int]) -> Iterator[None]:
    """Within the block, the current batch has these numbers of samples, at least 1, in the processes; `mean` and
    `gather` need them if there are several processes."""
    global _counts
    before, _counts = _counts, counts
    try:
        yield
    finally:
        _counts = before


def mean(terms: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of the valid terms of all processes, 0 if there are none; if valid (bool) is None, of all terms, with the
    same number for every sample.

    The average over the processes of what it returns, in values and gradients, is that mean; in one process it is the mean.
    """
    if valid is not None:
        return means([(terms, valid)])[0]
    count = terms.numel() if world() == 1 else terms.numel() // _counts[rank()] * sum(_counts)
    return terms.sum() * world() / max(1, count)


def means(given: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """`mean` of each pair of terms and valid, with one exchange for all of them."""
    counts = torch.stack([valid.sum() for _, valid in given]).float()
    if world() > 1:
        dist.all_reduce(counts)
    totals = counts.clamp(min=1).unbind()
    return [torch.where(valid, x, 0).sum() * world() / n for (x, valid), n in zip(given, totals, strict=True)]


def gather(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, float or int [N, ...], in the order of ranks, and the index of this process's first row.
    Every sample has the same number of rows.

    Gradients flow back to the process that a row came from.
    """
    if world() == 1:
        return x, 0
    counts = [len(x) // _counts[rank()] * count for count in _counts]
    return _Gather.apply(x, counts), sum(counts[: rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, counts: list[int]) -> Tensor:
        context.begin, context.rows = sum(counts[: rank()]), len(x)
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[context.begin : context.begin + context.rows], None


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Run the action in the first process only, and return its result, or raise its error, in every process."""
    if world() == 1:
        return action()
    outcome: list[Any] = [None, None]  # result, error
    if rank() == 0:
        try:
            outcome[0] = action()
        except (VsslError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of the first process into those of all others."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def everywhere(holds: Tensor) -> bool:
    """Whether a bool [] is true in all processes; waits for the device."""
    number = holds.int()
    if world() > 1:
        dist.all_reduce(number, dist.ReduceOp.MIN)
    return bool(number)


def all_reduce_mean(values: Tensor) -> Tensor:
    """Mean of a tensor over the processes."""
    if world() > 1:
        dist.all_reduce(values)
        values = values / world()
    return values
