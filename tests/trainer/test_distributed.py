"""Two processes equal one: gradients, banks, logs, stops.

Batch normalisation is the exception by design: on the CPU each process normalises over its own samples. Here the backbone
is c3d_light, which has none, and that of the heads stays in evaluation mode, as does dropout, whose draws differ between
processes. On CUDA --sync-bn joins the samples: there r3d10 trains with it, in two processes on one GPU.
"""

import csv
import datetime
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.command import ENVIRONMENT
from tests.trainer.runs import TIMES, at_step
from tests.trainer.synthetic import write_shard
from trainer import checkpoint, distributed
from trainer.errors import TrainerError
from trainer.methods import METHODS, method_class
from trainer.network import Network
from trainer.settings import Settings
from trainer.training import train

SMALL = {"backbone": "c3d_light", "width": 0.06, "workers": 0, "device": "cpu", "optimizer": "sgd"}
VARIANTS = {
    "statistics": [{"targets": "classes"}, {"targets": "raw"}],
    "pace": [
        *({"contrast": contrast} for contrast in ("none", "same-context", "same-pace")),
        {"contrast": "same-context", "literal": True},
        {"contrast": "same-pace", "literal": True, "pace_weight": 0.0},
    ],
    "tce": [{"frames": 16, "negatives": 2}, {"frames": 16, "loss": "nce"}],
    "simclr": [{"hidden": 8, "clips": 3}],
    "moco": [{"hidden": 8, "queue": 7}, {"hidden": 0, "symmetric": False, "batch_norm": True}],
    "byol": [{"hidden": 8}],
    "lejepa": [{"hidden": 16, "outputs": 8}],
}
CASES = {
    "-".join([method, *map(str, options.values())]): {"method": method, "options": {method: options}}
    for method in METHODS
    for options in VARIANTS.get(method, [{}])
}
CASES["tce-frames"] = {"method": "tce", "backbone": "resnet18"}
CASES["joint"] = {"method": "ascnet+statistics", "weights": [1.0, 0.5], "ema": 0.9}
CASES["queue"] = {"method": "moco+pace", "accumulate": 2}
CASES["accumulated"] = {"method": "rotation", "accumulate": 2, "jitter": "contrast"}
ON_CUDA = {"backbone": "r3d10", "device": "cuda:0", "precision": "float32", "sync_bn": True}
CUDA_CASES = {
    name: CASES[name] | ON_CUDA
    for name in ("pace-same-context", "order", "ascnet", "skip_clip", "tce-16-2", "simclr-8-3", "moco-8-7", "byol-8")
}


def steps(case: dict) -> int:
    """Of a case: 5 for the 22 labelled clips, at most 5 in a step, 2 for twice the 5 videos."""
    return 5 if method_class(case["method"].split("+")[-1]).of_labelled_clips else 2


def spawned(kind: int, folder: Path, cases: dict, not_trained: tuple) -> None:
    """What process 0 and 1 do together, and process 2 alone."""
    torch.set_num_threads(1)
    for layer in not_trained:
        layer.train = lambda self, mode=True: nn.Module.train(self, False)
    results, runs = {}, folder / ("one" if kind == 2 else "two")
    if kind < 2:
        limit = datetime.timedelta(seconds=60)
        dist.init_process_group("gloo", f"file://{folder}/group", limit, world_size=2, rank=kind)
    for name, case in cases.items():
        epochs = {5: 1, 2: 2}[steps(case)]
        settings = Settings(**SMALL | case, batch_size=5, epochs=epochs, holdout=0.0)
        results[name] = outcome(train, settings, folder / "five", runs / name)
    if kind < 2 and cases == CASES:
        results["taken"] = outcome(train, Settings(**SMALL, epochs=1), folder / "five", runs / "joint")
        results["reduced"] = reduced(kind)
        results["few"] = outcome(train, Settings(**SMALL, epochs=1, holdout=0.2), folder / "five", runs / "few")
        results["damaged"] = outcome(damaged, kind, folder / "five", runs / "damaged")
        results["stopped"] = outcome(stopped, kind, folder / "five", runs / "stopped")
    if kind < 2:
        dist.destroy_process_group()
    torch.save(results, folder / f"{kind}.pt")


def outcome(action, *arguments) -> str:
    try:
        return str(action(*arguments))
    except Exception:
        return traceback.format_exc()


def assert_close_logs(path: Path, other: Path, steps: int) -> None:
    logs = [[*csv.DictReader(file.read_text().splitlines())] for file in (path, other)]
    assert len(logs[0]) == len(logs[1]) == steps
    for two, one in zip(*logs, strict=True):
        two, one = ({key: float(row[key]) for key in row if key not in TIMES} for row in (two, one))
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder of the runs, and what the processes returned."""
    normalisation = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
    return spawn(tmp_path_factory.mktemp("two"), CASES, (nn.Dropout, *normalisation))


@pytest.fixture(scope="module")
def results_on_cuda(tmp_path_factory):
    """The same of two processes that share a GPU (by gloo: NCCL wants one for each), with batch normalisation."""
    return spawn(tmp_path_factory.mktemp("cuda"), CUDA_CASES, (nn.Dropout,))


def spawn(folder: Path, cases: dict, not_trained: tuple) -> tuple[Path, list]:
    write_shard(folder / "five" / "00000.h5", [80, 70, 75, 90, 66, 80, 80], split=[1, 1, 3, 1, 1, 1, 3])
    torch.multiprocessing.spawn(spawned, (folder, cases, not_trained), nprocs=3)
    return folder, [torch.load(folder / f"{kind}.pt") for kind in range(3)]


def test_every_method_is_here():
    assert {case["method"] for case in CASES.values()} >= METHODS.keys()


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(results, name):
    """3 and 2 samples in two processes against 5 in one: what is logged, weights, banks, averages and, in the momentum, the
    gradients."""
    assert_two_equal_one(name, *results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CUDA_CASES)
def test_two_processes_on_a_gpu_equal_one(results_on_cuda, name):
    assert_two_equal_one(name, *results_on_cuda)


def assert_two_equal_one(name: str, folder: Path, returned: list) -> None:
    for kind, path in enumerate(("two", "two", "one")):
        assert returned[kind][name] == str(folder / path / name), returned[kind][name]
    assert_close_logs(*(folder / path / name / "log.csv" for path in ("two", "one")), steps(CASES[name]))
    two, one = (checkpoint.load(folder / path / name) for path in ("two", "one"))
    for key, value in one.weights.items():
        torch.testing.assert_close(
            two.weights[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key} {text}"
        )
    states = [saved.optimiser_state() for saved in (two, one)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        # one rounding of ascnet's first weights changes gradients by 1e-4 of scale, as where a ReLU or a maximum turns
        scale = state["momentum_buffer"].abs().max().item()
        torch.testing.assert_close(
            states[0][number]["momentum_buffer"], state["momentum_buffer"], rtol=1e-3, atol=3e-4 * scale
        )
    assert any(state["momentum_buffer"].any() for state in states[1].values())


def test_an_error_of_the_first_process_is_that_of_all(results):
    folder, returned = results
    for kind in range(2):
        assert f"TrainerError: {folder / 'two' / 'joint'}: exists" in returned[kind]["taken"]


def damaged(rank: int, shards: Path, run: Path) -> None:
    """A run in which statistics of batch normalisation, which each process has of its own, are not finite in the second."""

    def after_step(network, progress):
        if rank:
            network.backbone.conv2[0].conv1[1].running_var.fill_(torch.inf)

    with mock.patch.object(Network, "after_step", after_step):
        train(Settings(**SMALL | {"backbone": "r3d10"}, epochs=1, batch_size=5), shards, run)


def test_a_check_that_one_process_fails_ends_all(results):
    for returned in results[1][:2]:
        assert "TrainerError: a weight is not finite at step 1" in returned["damaged"]


def stopped(rank: int, shards: Path, run: Path) -> None:
    """A run of which the second process alone gets a signal, in its second step."""
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            at_step(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
        train(Settings(**SMALL, epochs=6, batch_size=5), shards, run)


def test_a_signal_to_one_process_stops_all_after_the_same_step(results):
    told = r"Interrupted: stopped by SIGTERM after step (\d) of 6"
    first, other = (re.search(told, returned["stopped"])[1] for returned in results[1][:2])
    assert first == other


def test_fewer_held_out_samples_than_processes(results):
    for returned in results[1][:2]:
        assert "TrainerError: 1 sample is held out for pace, but 2 processes evaluate them; hold out" in returned["few"]


LAUNCHED = {"WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Set these variables of a launcher, and no others."""

    def set_variables(**variables):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_srun_tells_the_place_as_torchrun_does(environment):
    environment(**LAUNCHED, RANK="3", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", SLURM_PROCID="0", SLURM_LOCALID="0")
    assert distributed.place() == distributed.Place(1, 2, 4)
    environment(**LAUNCHED, SLURM_PROCID="3", SLURM_LOCALID="1")
    assert distributed.place() == distributed.Place(1, None, 4) and os.environ["RANK"] == "3"
    environment(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NTASKS="4")  # one process that a script of four tasks starts
    assert distributed.place() == distributed.Place()


def test_what_a_launcher_has_not_set_is_named(environment):
    environment(WORLD_SIZE="4", MASTER_ADDR="node0", RANK="3")
    with pytest.raises(TrainerError, match="WORLD_SIZE is 4, but LOCAL_RANK, MASTER_PORT not set; start with torchrun"):
        distributed.place()


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many; what is done with them is noted."""
    done: list = []

    def pretend(count: int) -> list:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return done

    monkeypatch.setattr(torch, "empty", lambda *_, device: done.append(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("set", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: done.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    return pretend


@pytest.mark.parametrize(
    ("name", "count", "here", "expected"),
    [
        ("cuda", 4, distributed.Place(3, 4, 8), "cuda:3"),
        ("auto", 1, distributed.Place(3, 4, 8), "cuda:0"),  # --gpus-per-task: each process sees its own one
        ("cuda:0", 1, distributed.Place(0, 1, 2), "cuda:0"),  # a process on each machine
        ("cuda:1", 2, distributed.Place(), "cuda:1"),
        ("cuda", 2, distributed.Place(), "cuda"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(gpus, name, count, here, expected):
    done = gpus(count)
    device = distributed.pick_device(name, here)
    assert device == torch.device(expected) and done == [device, *([("set", device)] if ":" in expected else [])]


@pytest.mark.parametrize(
    "here", [distributed.Place(0, 2, 2), distributed.Place(1, 2, 2), distributed.Place(0, None, 2)]
)
def test_one_gpu_for_several_processes_is_refused_in_all_of_them(gpus, here):
    assert gpus(2) == []
    with pytest.raises(TrainerError, match="device 'cuda:0' is one GPU, but 2 processes need one each; give cuda"):
        distributed.pick_device("cuda:0", here)


def test_gpus_are_joined_by_nccl_and_the_host_by_gloo(gpus, environment):
    done = gpus(2)
    environment(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", MASTER_ADDR="-", MASTER_PORT="-")
    with distributed.session("cuda") as device:
        assert device == torch.device("cuda:1") and done[-1] == "cpu:gloo,cuda:nccl"


ROWS = (3, 2)  # of the two processes
VALID = {
    "all": [[1, 1, 1], [1, 1]],
    "some": [[0, 1, 1], [1, 0]],
    "one process": [[1, 0, 1], [0, 0]],
    "none": [[0, 0, 0], [0, 0]],
}


def samples(count: int) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


@distributed.sharing(ROWS)
def reduced(rank: int) -> dict:
    """Means and gathers of two processes, and their gradients as DistributedDataParallel averages them."""
    x, found = samples(sum(ROWS)).split(ROWS)[rank], {}
    for name, valid in VALID.items():
        w = torch.ones(4, requires_grad=True)
        value = distributed.mean((x * w).square().sum(1), torch.tensor(valid[rank]) > 0)
        value.backward()
        found[name] = distributed.all_reduce_mean(value.detach()), distributed.all_reduce_mean(w.grad)
    w = torch.ones(4, requires_grad=True)
    value = distributed.mean((x * w).square())
    value.backward()
    found["terms"] = distributed.all_reduce_mean(value.detach()), distributed.all_reduce_mean(w.grad)

    w = torch.ones(4, requires_grad=True)
    everything, begin = distributed.gather(x * w)
    own = everything[begin : begin + len(x)]
    value = distributed.mean((own @ everything.T).exp().sum(1))
    value.backward()
    found["pairs"] = distributed.all_reduce_mean(value.detach()), distributed.all_reduce_mean(w.grad)
    found["gathered"] = everything.detach(), begin
    terms = x.sum(1), torch.tensor(VALID["some"][rank]) > 0
    found["several"] = [distributed.all_reduce_mean(value) for value in distributed.means([terms, terms])]
    with distributed.sharing((2, 1)):
        found["whole numbers"] = distributed.gather(torch.arange(rank, 2))[0]
    found["two each"] = distributed.gather(torch.arange(2 * len(x)))[0]
    found["everywhere"] = [distributed.everywhere(torch.tensor(holds)) for holds in (True, rank == 0)]
    return found


@pytest.mark.parametrize("name", VALID)
def test_mean_equals_a_loop(results, name):
    total, gradient, count = 0.0, [0.0] * 4, 0
    for row, valid in zip(samples(5).tolist(), sum(VALID[name], []), strict=True):
        if valid:
            total += sum(value**2 for value in row)
            gradient = [sum_ + 2 * value**2 for sum_, value in zip(gradient, row, strict=True)]
            count += 1
    for returned in results[1][:2]:
        mean, slope = returned["reduced"][name]
        assert mean.item() == pytest.approx(total / max(1, count), rel=1e-5)
        assert slope.tolist() == pytest.approx([value / max(1, count) for value in gradient], rel=1e-5)


def test_mean_of_a_matrix_is_over_all_its_terms(results):
    x = samples(5)
    for returned in results[1][:2]:
        mean, slope = returned["reduced"]["terms"]
        assert mean.item() == pytest.approx(x.square().mean().item(), rel=1e-5)
        assert slope.tolist() == pytest.approx((2 * x.square().sum(0) / x.numel()).tolist(), rel=1e-5)


def test_gather_and_its_gradient_equal_a_loop(results):
    x = samples(5).tolist()
    total, gradient = 0.0, [0.0] * 4
    for a, b in itertools.product(x, x):
        term = sum(p * q for p, q in zip(a, b, strict=True))
        total += torch.tensor(term).exp().item()
        for d in range(4):  # of exp(sum_d w_d^2 a_d b_d) at w = 1
            gradient[d] += 2 * a[d] * b[d] * torch.tensor(term).exp().item()
    for rank, returned in enumerate(results[1][:2]):
        found = returned["reduced"]
        assert found["gathered"][0].tolist() == x and found["gathered"][1] == (0, 3)[rank]
        assert found["pairs"][0].item() == pytest.approx(total / 5, rel=1e-5)
        assert found["pairs"][1].tolist() == pytest.approx([value / 5 for value in gradient], rel=1e-4)
        assert found["whole numbers"].tolist() == [0, 1, 1] and found["whole numbers"].dtype == torch.int64
        assert found["two each"].tolist() == [*range(6), *range(4)]


def test_several_means_and_what_holds_everywhere(results):
    rows = samples(5).sum(1)[torch.tensor(sum(VALID["some"], [])) > 0]
    for returned in results[1][:2]:
        assert [value.item() for value in returned["reduced"]["several"]] == pytest.approx([rows.mean().item()] * 2)
        assert returned["reduced"]["everywhere"] == [True, False]


def test_one_process_needs_no_group():
    x = samples(5)
    assert distributed.gather(x) == (x, 0) and distributed.mean(x).item() == pytest.approx(x.mean().item())
    assert distributed.mean(x, x > 9).item() == 0
    assert distributed.everywhere(torch.tensor(True)) and not distributed.everywhere(torch.tensor(False))


@pytest.fixture
def launched(demo, here):
    """Start `vssl train` in two processes, in an empty folder; what still runs in the end is stopped."""
    started = []

    def launch(*options) -> subprocess.Popen:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
        vssl = ["-m", "--", "cli.main", "train", "--shards", demo, "--workers", 1, "--device", "cpu", *options]
        variables = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([*map(str, torchrun + vssl)], env=variables, start_new_session=True, **pipes))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def processes(launcher: int) -> list[int]:
    """Process ids of rank 0 and 1."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(text[5:]): child for text in variables if text.startswith(b"RANK=")}
    return [ranks[0], ranks[1]]


STEPS = 40


def wait_for(process, log: Path, lines: int) -> None:
    while not log.exists() or log.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_torchrun_stops_resumes_and_equals_one_process(launched, here, alone):
    """A signal to all of them and to their launcher, which sends it to them once more, as a cluster does it."""
    options = ("--backbone", "c3d_light", "--width", 0.06, "--batch-size", 3, "--epochs", STEPS, "--holdout", 0.4)
    log = here / "runs/two/log.csv"
    process = launched(*options, "--run", "two")
    wait_for(process, log, 10)
    for target in (*processes(process.pid), process.pid):
        os.kill(target, signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    step = checkpoint.load("two").meta["step"]
    assert 9 <= step < STEPS and process.returncode, printed
    assert f"stopped by SIGTERM after step {step} of {STEPS}; continue with: vssl train --shards" in printed
    assert printed.count("--resume runs/two") and log.read_text().count("\n") == step + 1
    process = launched("--resume", "two")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and printed.count(f"trained {STEPS} steps -> runs/two") == 1, printed
    for name in ("log.csv", "holdout.csv"):
        assert_close_logs(here / "runs/two" / name, alone / name, STEPS)


@pytest.fixture(scope="module")
def alone(demo, tmp_path_factory):
    """The same run of one process."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("alone") / "run"
    return train(Settings(**SMALL, batch_size=3, epochs=STEPS, holdout=0.4), demo, run)
