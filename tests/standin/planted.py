"""Mistakes that a rehearsal must catch. Each is planted into a method's forward: (method, batch, loss) -> the loss, or None
if it stays. The last line of each function is the mistake."""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def item(method, batch, loss):
    loss.item()


def to_list(method, batch, loss):
    batch.video.tolist()


def new_tensor(method, batch, loss):
    loss.new_tensor(0.25)


def mask(method, batch, loss):
    batch.clips[batch.clips > 0.5].sum()


def mask_to_put(method, batch, loss):
    batch.clips.clone()[batch.video > -1] = batch.clips


def index_to_put(method, batch, loss):
    batch.clips.clone()[torch.arange(len(batch.clips))] = batch.clips


def index_of_the_host(method, batch, loss):
    batch.clips[torch.tensor([0, 1])].sum()


def pageable_upload(method, batch, loss):
    torch.ones(3).to(loss.device, non_blocking=True)


def blocking_download(method, batch, loss):
    batch.video.cpu()


def choice(method, batch, loss):
    return loss if loss > 0 else -loss


def two_devices(method, batch, loss):
    return loss + (batch.clips.flatten()[:2] * torch.ones(2)).sum()


def list_of_two_devices(method, batch, loss):
    torch.cat([batch.video, torch.zeros(1, dtype=torch.int64)])


def probabilities(method, batch, loss):
    share = batch.clips.sigmoid()
    with torch.autocast(loss.device.type, torch.bfloat16):
        return loss + F.binary_cross_entropy(share, share.detach())


def bank_of_another_type(method, batch, loss):
    rows = torch.arange(2, device=loss.device)
    with torch.autocast(loss.device.type, torch.bfloat16):
        embedding = F.linear(loss.new_ones(2, 4), loss.new_ones(3, 4))
    loss.new_zeros(5, 3)[rows] = embedding


def low_precision(method, batch, loss):
    with torch.autocast(loss.device.type, torch.bfloat16):
        embedding = F.linear(loss.new_ones(2, 4), loss.new_ones(3, 4))
    embedding.log_softmax(1)


def forgotten_tensor(method, batch, loss):
    method.seen = getattr(method, "seen", 0.0) + batch.clips.mean().detach()  # no buffer: no checkpoint holds it
    return loss * (1 + method.seen)


def collective_of_the_host(method, batch, loss):
    dist.all_reduce(torch.ones(1))
