"""The label generator on a Dask cluster: the shards of the local run, whatever happens to workers and videos."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numba
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.errors import ClusterError, ReadError
from labelgen.extract import Extraction, extract
from labelgen.manifest import load
from labelgen.reading import read_bytes
from labelgen.run.plan import ShardTask
from labelgen.run.process import ProcessLost, in_new_process
from labelgen.run.shard import label_shard_on_cluster
from labelgen.run.workers import pool
from labelgen.shards import ShardReader
from tests.command import ENVIRONMENT
from tests.labelgen.sabotage import HANG, sabotaged
from tests.labelgen.synthetic import write_video

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")

SMALL = Config(height=48, width=64, crop=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos and one that is none."""
    root = tmp_path_factory.mktemp("data") / "videos"  # the name of the data set
    for index, n_frames in enumerate((70, 40, 12, 90, 64)):
        write_video(root / "right" / f"{index}.mp4", n_frames, index)
    (root / "right" / "9.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("local")
    return out, label(folder, out)


@pytest.fixture(scope="module")
def cluster():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster


def refused(match, call):
    """The call fails with a ClusterError. What is left of Dask's client must not be collected while the next one is started: it
    would wait for a lock that is held."""
    with pytest.raises(ClusterError, match=match):
        call()
    gc.collect()


def label(root, out, cluster=None, **options):
    data = load("folder", root)
    address = cluster.scheduler_address if cluster else None
    return run.run(data, data.videos, out, SMALL, 1, 3, scheduler=address, **options)


def content(out):
    return {path.name: path.read_bytes() for path in sorted((out / "videos").glob("*.h5"))}


def test_a_cluster_writes_the_same_bytes_wherever_the_command_runs(folder, local, cluster, tmp_path, monkeypatch):
    said, done = [], []
    monkeypatch.chdir(tmp_path)  # the workers have another current folder
    report = label(folder, "out", cluster, say=said.append, progress=lambda *counts: done.append(counts[:2]))
    assert content(tmp_path / "out") == content(local[0])
    assert said == [f"{cluster.scheduler_address}: 2 Dask workers, 2 shards at a time"]
    assert done == [(0, 6), (3, 6), (6, 6)] and report["this_run"]["workers"] == 2
    assert report["this_run"]["flow pairs"] == local[1]["this_run"]["flow pairs"]
    assert {key: report[key] for key in report if key != "this_run"} == {
        key: local[1][key] for key in report if key != "this_run"
    }


def test_a_cluster_writes_the_same_flow(folder, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, settings = load("folder", folder), Extraction(flow="dis", short=48)
    reports = [
        extract(data, data.videos, Path(name), settings, scheduler=scheduler)
        for name, scheduler in (("here", None), ("there", cluster.scheduler_address))
    ]
    assert reports[0]["flows"] == reports[1]["flows"] == 70 + 40 + 12 + 90 + 64 - 5
    here, there = (
        {path.relative_to(name): path.read_bytes() for path in Path(name).rglob("*.jpg")} for name in ("here", "there")
    )
    assert here == there and len(here) == 2 * reports[0]["flows"]
    assert [failure["id"] for failure in reports[1]["failures"]] == ["right/9.mp4"]


def test_a_video_that_hangs_the_process_of_its_shard_is_the_only_one_lost(folder, local, tmp_path, monkeypatch):
    """What a Dask worker does, without a cluster."""
    monkeypatch.syspath_prepend(sabotaged(tmp_path, 20, {"1.mp4": HANG}))  # of the processes to be started
    data, shard = load("folder", folder), ShardReader(local[0] / "videos" / "00000.h5")
    (tmp_path / ".lock").touch()
    path = tmp_path / "00000.h5"
    task = ShardTask(path, data.videos[:2], data.root, data.splits, SMALL, shard.config, stall=4)
    assert label_shard_on_cluster(task)[0] == str(path)
    found = ShardReader(path)
    assert found.arrays["videos/id"] == ("right/0.mp4",) and (found.jpeg(69) == shard.jpeg(69)).all()
    assert found.arrays["failures/id"] == ("right/1.mp4",) and found.arrays["failures/reason"] == ("no frame for 4 s",)


def test_workers_that_do_not_see_the_files_are_told(folder, cluster, tmp_path):
    data = replace(load("folder", folder), root=tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match=f"elsewhere is not on {socket.gethostname()}; all Dask workers need"):
        run.run(data, data.videos, tmp_path, SMALL, scheduler=cluster.scheduler_address)


def test_a_cluster_that_cannot_be_used_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("labelgen.cluster._SECONDS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    data = load("folder", folder)
    for scheduler in (address, "nonsense://x"):
        told = f"{scheduler}: no Dask scheduler answers there"
        refused(told, lambda scheduler=scheduler: run.run(data, data.videos, tmp_path, SMALL, scheduler=scheduler))
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        told = "the Dask cluster has no worker; start some with `dask worker"
        refused(told, lambda: label(folder, tmp_path, empty))


def test_a_process_of_its_own_gives_results_and_errors_and_its_death_is_told():
    assert in_new_process(os.getpid) != os.getpid()
    with pytest.raises(ReadError, match="none.mp4: .*No such file"):
        in_new_process(read_bytes, "none.mp4")
    with pytest.raises(ProcessLost, match=r"killed its process \(signal 6\)"):
        in_new_process(os.abort)
    assert in_new_process(cv2.getNumThreads) == in_new_process(numba.get_num_threads) == 1


def test_a_process_of_its_own_ends_with_its_parent():
    code = "import time; from labelgen.run.process import in_new_process; in_new_process(time.sleep, 1000)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not (child := children.read_text()):
        time.sleep(0.05)
    time.sleep(1)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child.strip()}").exists():  # until the test's own time limit
        time.sleep(0.05)


def test_a_dask_worker_that_is_killed_loses_nothing(folder, local, cluster, tmp_path):
    def kill():
        while not list(tmp_path.glob("videos/.*.jpeg.tmp")):  # a shard is being made
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    victim = next(iter(cluster.workers.values())).pid
    thread = threading.Thread(target=kill)
    thread.start()
    label(folder, tmp_path, cluster)
    thread.join()
    assert content(tmp_path) == content(local[0])
    assert not list(tmp_path.glob("videos/.*.tmp"))


def test_a_machine_that_stands_still_while_dask_starts_its_thread_loses_no_run(cluster, monkeypatch):
    start, waited = distributed.utils.LoopRunner.start, []

    def late(self):
        waited.append(self)
        assert len(waited) > 1
        start(self)

    monkeypatch.setattr(distributed.utils.LoopRunner, "start", late)
    with pool(1, cluster.scheduler_address, print) as (each, _):
        assert list(each(str, [7])) == ["7"]
    assert len(waited) == 2
    gc.collect()  # see `refused`


def test_calls_wait_here_until_a_thread_is_free_and_a_worker_that_joins_late_gets_some(cluster):
    asked, workers = [], set()

    def items():
        while len(workers) < 3:
            asked.append(len(asked))
            yield asked[-1]

    with pool(1, cluster.scheduler_address, print) as (each, _):
        for done, (pid, _) in enumerate(each(_slow_pid, map(str, items()))):
            workers.add(pid)
            assert len(asked) - done <= 2 * 3 + 1
            if done == 2:
                cluster.scale(3)
    assert len(workers) == 3


def _slow_pid(text):
    time.sleep(0.1)
    return os.getpid(), text


def test_a_scheduler_that_is_killed_costs_no_finished_shard(folder, local, cluster, tmp_path):
    """A scheduler and a worker as a user starts them; then the same command again on another cluster."""
    dask = [sys.executable, "-c", "from dask.__main__ import main; main()"]
    address, log = f"tcp://127.0.0.1:{_free_port()}", open(tmp_path / "log", "w")  # noqa: SIM115
    quiet = {"env": ENVIRONMENT, "stdout": log, "stderr": log}
    scheduler = subprocess.Popen([*dask, "scheduler", "--port", address.rpartition(":")[2], "--no-dashboard"], **quiet)
    worker = subprocess.Popen([*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"], **quiet)

    def kill(done, total, frames):
        if done:
            scheduler.kill()

    try:
        with distributed.Client(address, timeout=120) as client:
            client.wait_for_workers(1, timeout=120)
        data = load("folder", folder)
        with pytest.raises(ClusterError, match="finished shards are kept: the same command continues from them"):
            run.run(data, data.videos, tmp_path, SMALL, 1, 3, scheduler=address, progress=kill)
    finally:
        scheduler.kill()
        worker.terminate()
        scheduler.wait()
        worker.wait()
        log.close()
    assert content(tmp_path)
    label(folder, tmp_path, cluster)
    assert content(tmp_path) == content(local[0])
    assert not list(tmp_path.glob("videos/.*.tmp"))


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_a_cluster_behind_tls_is_reached_with_dasks_own_settings_and_not_without(tmp_path):
    """Certificates of one's own, as docs/clusters.md has it."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=vssl", "-keyout"]
    subprocess.run([*make, key, "-out", cert], check=True, capture_output=True)
    files = {"tls_ca_file": str(cert)}
    for role in ("scheduler", "worker", "client"):
        files |= {f"tls_{role}_cert": str(cert), f"tls_{role}_key": str(key)}
    security = distributed.Security(require_encryption=True, **files)
    options = {"processes": False, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(1, protocol="tls://", security=security, **options) as closed:
        assert closed.scheduler_address.startswith("tls://")
        told = "no Dask scheduler answers there.*TLS.*certificates"
        refused(told, lambda: pool(1, closed.scheduler_address, print).__enter__())
        names = {"CA_FILE": cert, "CLIENT__CERT": cert, "CLIENT__KEY": key}
        tls = dask.config.collect_env(
            {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(path) for name, path in names.items()}
        )
        dotted = {f"distributed.comm.tls.{name}": value for name, value in _flat(tls["distributed"]["comm"]["tls"])}
        with dask.config.set(dotted), pool(1, closed.scheduler_address, print) as (each, _):
            assert list(each(str, [7])) == ["7"]


def _flat(settings, prefix=""):
    for key, value in settings.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
