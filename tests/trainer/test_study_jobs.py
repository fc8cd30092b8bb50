"""The jobs of a study: what they are known by, their devices and processes, and what is seen of them meanwhile."""

import os
import pickle
import tempfile
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from labelgen.errors import ClusterError
from tests.trainer.planted import write_colored
from tests.trainer.studies import SMALL, write_study
from trainer.errors import TrainerError
from trainer.study import devices, estimate, jobs, planning, runner
from trainer.study.file import read
from trainer.study.jobs import Store, Training
from trainer.study.runner import Machine, make, running
from trainer.study.sources import prepare
from trainer.study.study import show_plan


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """A folder with one shard of 16 videos in 4 classes, 4 of them tested."""
    folder = tmp_path_factory.mktemp("runs")
    write_colored(folder / "colors" / "00000.h5", 16, 24, split=[[1]] * 12 + [[3]] * 4)
    return folder


def planned(folder, root, **changes):
    study = read(write_study(folder, **changes))
    sources = {name: prepare(own, own.shards, root, study.seeds, ()) for name, own in study.data.items()}
    return planning.plan(study, sources, Store(root), "cpu", {})


def test_what_needs_no_labels_is_measured_once(colors):
    measures = [{"protocol": "smoothness"}, {"protocol": "knn"}, {"protocol": "knn", "k": 3, "targets": ["b"]}]
    targets = {name: {"csv": "labels.csv", "video": "name", "column": name} for name in "ab"}
    path = write_study(
        colors, measures=measures, data={"colors": {"shards": "colors", "test": 0.5, "targets": targets}}
    )
    found = planning.columns(read(path), {"colors": SimpleNamespace(overlays=dict.fromkeys("ab"))})
    assert [c.measure.protocol for c in found] == ["smoothness", "knn", "knn", "knn"]
    assert [c.target for c in found] == ["a", "a", "b", "b"]


def test_identities_follow_what_determines_a_run(colors, tmp_path, monkeypatch):
    def ids(**changes):
        found = planned(colors, tmp_path, **changes)
        return {id for id, job in found.jobs.items() if job.kind == "train"}, set(found.numbers.values())

    runs, numbers = ids()
    assert len(runs) == 2 and len(numbers) == 4  # two seeds, of the method and of random weights
    assert ids(about="other words") == (runs, numbers)
    assert ids(settings=SMALL["settings"] | {"workers": 3, "log_every": 5}) == (runs, numbers)
    assert ids(seeds=[1, 0, 2])[0] > runs
    assert not ids(settings=SMALL["settings"] | {"lr": 0.5})[0] & runs
    other = ids(measures=[{"protocol": "retrieval", "pooling": "max"}])
    assert other[0] == runs and not other[1] & numbers
    monkeypatch.setitem(jobs.VERSIONS, "frozen", 2)
    other = ids()
    assert other[0] == runs and not other[1] & numbers
    monkeypatch.setitem(jobs.VERSIONS, "frozen", 1)
    monkeypatch.setitem(jobs.VERSIONS, "train", 2)
    other = ids()
    assert not other[0] & runs and len(other[1] & numbers) == 2  # random weights are not trained


def test_measures_of_one_network_are_one_job(colors, tmp_path):
    measures = [{"protocol": "knn", "k": k, "pooling": "mean"} for k in (1, 2, 2)]
    found = planned(colors, tmp_path, seeds=[0], measures=measures)
    assert [(job.kind, len(job.makes)) for job in found.jobs.values()] == [("train", 1), ("frozen", 2), ("frozen", 2)]


class Started:
    """In place of runner.finished: what each process was given, of which so many run at once."""

    def __init__(self, at_once):
        self.seen, self.barrier = [], threading.Barrier(at_once)

    def __call__(self, child, job, *_, variables, **streams):
        pickle.dumps(job)  # as a process gets it
        self.seen.append((job.id, job.device, variables.get("CUDA_VISIBLE_DEVICES")))
        self.barrier.wait(60)
        return 0, b""


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)


def some_jobs(count, device):
    about = {"row": "row", "cost": "c", "clips": 1.0, "device": device, "source": None, "networks": {}}
    return [
        Training(id=f"{i}", title=f"number {i}", settings=None, videos=(1, 1), start="", **about) for i in range(count)
    ]


@pytest.mark.parametrize(
    "device, visible, given",
    [
        ("auto", None, ["0", "1", "2", "3"]),
        ("cuda", None, ["0", "1", "2", "3"]),
        ("cuda", "7,5,GPU-ab,MIG-GPU-c/1/0", ["7", "5", "GPU-ab", "MIG-GPU-c/1/0"]),
        ("cuda:3,cuda:1", None, ["3", "1", "3", "1"]),
        ("cuda:1, cuda:0", "7,5,6,8", ["5", "7", "5", "7"]),
        ("cuda:2", None, ["2"] * 4),
        ("cpu", None, [None] * 4),
    ],
)
def test_every_run_has_a_gpu_of_its_own(four_gpus, tmp_path, monkeypatch, device, visible, given):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    started = Started(4)
    monkeypatch.setattr(runner, "finished", started)
    made = list(make(some_jobs(8, device), tmp_path, Machine(4, None, device)))  # twice four at a time
    assert [reason for _, reason in made] == [""] * 8
    assert {name for _, name, _ in started.seen} == {device if device == "cpu" else "cuda"}
    for four in (started.seen[:4], started.seen[4:]):
        assert sorted(map(str, (own for *_, own in four))) == sorted(map(str, given))
    assert not [*(tmp_path / "logs").glob("*.running")]


def test_runs_on_a_cluster_have_gpus_of_their_own(four_gpus, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    started = Started(3)
    monkeypatch.setattr(runner, "finished", started)
    with distributed.LocalCluster(
        1, threads_per_worker=3, dashboard_address=None, processes=False, resources={"GPU": 3}
    ) as cluster:
        made = list(make(some_jobs(3, "cuda"), tmp_path, Machine(1, cluster.scheduler_address, "cuda")))
    assert sorted(job.id for job, _ in made) == ["0", "1", "2"] == sorted(own for *_, own in started.seen)
    with pytest.raises(ClusterError, match="no Dask scheduler answers there"):
        next(make(some_jobs(1, "cpu"), tmp_path, Machine(1, "nowhere", "cpu")))


def test_without_locks_gpus_are_taken_in_turn(four_gpus, monkeypatch):
    monkeypatch.setattr(devices.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "no locks")))
    with devices.reserved("cuda") as one, devices.reserved("cuda") as two:
        assert one != two and {one.name, two.name} == {"cuda"}


def test_running_jobs_are_shown_with_device_and_last_line(colors, tmp_path, capsys):
    store = Store(tmp_path)
    first, other, _ = planned(colors, tmp_path, seeds=[0], clips=96).jobs.values()
    first.work_and_store(store, None)
    printed = capsys.readouterr().out
    (tmp_path / "logs").mkdir()
    assert running([first, other], store) == []
    for job, text, begin in (
        (first, printed, 0),
        (other, "of before\nfeatures: 3 of 9\rfeatures: 4 of 9 clips\n\n", 10),
    ):
        store.marker(job).write_text(f"GPU 2 of there\n{begin}")
        store.log(job).write_text(text[: text.rindex("trained")] if job is first else text)
    training, measuring = running([first, other], store)
    assert training.startswith(f"turns <i>: {first.title} (GPU 2 of there): step ")
    assert "loss" in training and training.endswith(" left")
    assert measuring == f"turns <i>: {other.title} (GPU 2 of there): features: 4 of 9 clips"
    store.log(other).write_text("of before\n")
    assert running([other], store)[0].endswith("(GPU 2 of there): starts")


def test_a_job_that_fails_says_why(colors, tmp_path):
    """In a process of its own, as all jobs are made."""
    job = next(iter(planned(colors, tmp_path, seeds=[0]).jobs.values()))
    lost = replace(job, source=replace(job.source, folder=tmp_path / "none"))
    ((_, reason),) = make([lost], tmp_path, Machine(device="cpu"))
    assert "no such folder of shards" in reason and not Store(tmp_path).done(lost)


def test_a_plan_before_labelling_says_so(tmp_path):
    given = {"dataset": "folder", "root": "videos", "label": {"paces": [1, 2]}, "test": 0.5}
    lines = show_plan(write_study(tmp_path, data={"own": given}), tmp_path / "out", 1, "cpu")
    assert lines[-1] == "no run is done; the others take: not known before labelling"
    assert "  runs on own: not known before labelling" in lines and " 0 s" not in " ".join(lines)


def test_a_plan_is_timed_on_the_device_asked_for(colors, tmp_path, monkeypatch):
    asked = []
    pick = estimate.distributed.pick_device
    monkeypatch.setattr(estimate.distributed, "pick_device", lambda name: asked.append(name) or pick("cpu"))
    estimate.seconds_per_clip.cache_clear()
    path = write_study(colors, seeds=[0])
    lines = show_plan(path, tmp_path / "out", 1, "cuda:1,cuda:2")
    assert set(asked) == {"cuda:1"} and "about" in lines[-1]
    monkeypatch.undo()
    estimate.seconds_per_clip.cache_clear()
    with pytest.raises(TrainerError, match="device 'nonsense' cannot be used"):
        show_plan(path, tmp_path / "out", 1, "nonsense")
