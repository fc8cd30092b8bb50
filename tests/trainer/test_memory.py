import resource
import sys

import pytest
import torch

from trainer import distributed
from trainer.memory import keep_freed_memory

PAGES = 10_000  # of 4 KB, 40 MB: more than glibc ever keeps by itself


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1024 * PAGES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_step_frees_is_kept_for_the_next_one():
    keep_freed_memory()
    assert min(faults() for _ in range(6)) < PAGES / 10


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_training_on_the_cpu_keeps_its_memory(monkeypatch, device):
    called = []
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: called.append(1))
    with distributed.session(device):
        assert called == [1] * (device == "cpu")
