"""Work in two processes, and what of it is compared with that of one."""

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainer import distributed

SHARES = (4, 2)  # samples of the first and of the second process


def in_two_processes(folder, work, *arguments):
    """What work(rank, *arguments) returns, tensors, in each of two processes that are joined by gloo."""
    mp.start_processes(_joined, (folder, work, arguments), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _joined(rank, folder, work, arguments):
    dist.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def step(backbone, method, data):
    """Metrics and gradients, averaged over the processes as DistributedDataParallel does."""
    with distributed.sharing(SHARES):
        out = method(backbone, data)
        out["loss"].backward()
    gradients = [weight.grad for weight in (*backbone.parameters(), *method.parameters())]
    return [distributed.all_reduce_mean(value.detach().clone()) for value in (*out.values(), *gradients)]


def share(data, rank):
    """SHARES of 6 samples."""
    part = slice(0, 4) if rank == 0 else slice(4, None)
    labels = {name: value[part] for name, value in data.labels.items()}
    clips = data.clips.unflatten(0, (len(data.video), -1))[part].flatten(0, 1)
    return replace(data, clips=clips, video=data.video[part], labels=labels)
