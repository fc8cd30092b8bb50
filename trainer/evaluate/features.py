"""Features of videos from every stage of a backbone, extracted once and stored in the run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelgen.errors import ReadError
from labelgen.files import sync, writing
from labelgen.progress import ProgressBar, counted, detail
from labelgen.reading import load_json, open_regular, validate
from trainer import data, distributed, inputs
from trainer.augment import centre
from trainer.checkpoint import Checkpoint
from trainer.errors import TrainerError
from trainer.network import build_backbone, trained_backbone
from trainer.settings import Settings
from trainer.training.precision import exact

CELLS = "cells"
VERSION = 1  # raised when a change of the code gives the same weights and clips other features
_FORGOTTEN = 7 * 24 * 3600  # seconds after which a temporary folder counts as abandoned
VIEWS = {"spread": data.spread_frames, "sliding": data.sliding_frames, "adjacent": data.adjacent_frames}


@dataclass(frozen=True)
class Compute:
    """How features are computed; no field changes their values.

    Parameters
    ----------
    batch_size : int
        Clips at a time.
    workers : int
        Threads that decode frames.
    device : str
        "cpu", "cuda", "cuda:1", or "auto" for a GPU if there is one.

    Examples
    --------
    >>> from trainer.evaluate.features import Compute
    >>> Compute(device="cpu")
    Compute(batch_size=32, workers=1, device='cpu')
    """

    batch_size: int = 32
    workers: int = 1
    device: str = "auto"


COMPUTE = Compute()
Made = Callable[
    [nn.Module, dict[str, Tensor]], dict[tuple[str, str], Tensor]
]  # backbone, outputs of its stages for B clips -> features, [B, ...] each


class Vectors(NamedTuple):
    """Items that a protocol classifies or compares: x float32 [n, d]; video int64 [n], the row of each item's video."""

    x: np.ndarray
    video: np.ndarray

    def of_videos(self, videos: np.ndarray) -> Vectors:
        """The items that belong to these videos."""
        chosen = np.isin(self.video, videos)
        return self if chosen.all() else Vectors(self.x[chosen], self.video[chosen])


def select(items: Sequence[Vectors], videos: np.ndarray) -> Vectors:
    """The vectors of these videos, all of which are in one element of `items`."""
    return next(part for part in items if np.isin(videos, part.video).all()).of_videos(videos)


def joined(items: Sequence[Vectors]) -> Vectors:
    """The vectors of all elements, concatenated."""
    return items[0] if len(items) == 1 else Vectors(*map(np.concatenate, zip(*items, strict=True)))


@dataclass(frozen=True)
class Features:
    """Features of clips, in the order of their videos.

    arrays: float32 [clips, d] by (stage, pooling), the stages in the order of the network, each pooled by "max", then by
            "mean"; memory maps, because the features of a large data set do not fit into memory
    owner:  int64 [clips], index of each clip's video among the videos of these features
    """

    arrays: dict[tuple[str, str], np.ndarray]
    owner: np.ndarray

    def video_means(self, key: tuple[str, str], parts: int = 1) -> np.ndarray:
        """Mean of each video's clips, L2-normalised, float32 [videos, d] [thesis 2.6]; with several parts of a video's
        time, the means of their clips concatenated, [videos, parts d]."""
        clips, part = np.bincount(self.owner)[:, None], np.arange(parts)
        first = np.cumsum(clips)[:, None] - clips
        starts = first + part * (clips // parts) + np.minimum(part, clips % parts)  # as np.array_split does
        sums = np.add.reduceat(self.arrays[key], starts.ravel(), axis=0)
        return normalised(sums).reshape(len(clips), -1)

    def vectors(self, key: tuple[str, str], level: str, videos: np.ndarray, parts: int = 1) -> Vectors:
        """The items of a stage and pooling, at level "clip" or "video"; videos: int64 rows of the videos of these features."""
        if level == "clip":
            return Vectors(self.arrays[key], videos[self.owner])
        return Vectors(self.video_means(key, parts), videos)

    def but(self, other: Features, of: np.ndarray, videos: np.ndarray, key: tuple[str, str]) -> Features:
        """One kind of these features, with those of some videos (int64 rows) replaced by `other`, which has as many clips per
        video; of: ascending int64 rows of the videos of `other`."""
        x = np.array(self.arrays[key])
        x[np.isin(self.owner, videos)] = other.arrays[key][np.isin(of[other.owner], videos)]
        return Features({key: x}, self.owner)

    def of_videos(self, rows: np.ndarray, keys: Sequence[tuple[str, str]]) -> Features:
        """The features of some stages and poolings for some of the videos (int64 rows), in the order of the rows."""
        begin, end = (np.searchsorted(self.owner, rows, side) for side in ("left", "right"))
        clips = np.concatenate([np.arange(*ends) for ends in zip(begin, end, strict=True)])
        return Features({key: self.arrays[key][clips] for key in keys}, np.repeat(np.arange(len(rows)), end - begin))


def normalised(x: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1, of the dtype of x, float [..., d]; zero vectors stay zero."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def networks(saved: Checkpoint) -> dict[str, nn.Module]:
    """The networks of a checkpoint, in evaluation mode unless they are random.

    Parameters
    ----------
    saved : Checkpoint
        See `trainer.checkpoint.load`.

    Returns
    -------
    dict of Stages
        "pretrained": its backbone; "random": the same backbone with its initial weights.

    Examples
    --------
    >>> import torch
    >>> from trainer.checkpoint import load
    >>> from trainer.evaluate.features import networks
    >>> network = networks(load("runs/pace-r3d10-1"))["pretrained"]
    >>> clips = network.input.normalised(torch.rand(2, 16, 32, 32, 3)).permute(0, 4, 1, 2, 3)
    >>> stages = network(clips)
    >>> stages["conv5"].mean((2, 3, 4)).shape == (2, network.features)
    True
    """
    random = build_backbone(Settings(**saved.meta["settings"]), saved.meta)
    return {"pretrained": trained_backbone(saved), "random": random}


def pool(stage: Tensor) -> dict[str, Tensor]:
    """[B, C, T, H, W] -> float32 `max` over 2 x 3 x 3 cells [B, 18 C], `mean` over all cells [B, C]."""
    stage = stage.float()
    return {"max": F.adaptive_max_pool3d(stage, (2, 3, 3)).flatten(1), "mean": stage.mean((2, 3, 4))}


def pooled(backbone: nn.Module, stages: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """The output of `pool` for each stage, by (stage, pooling)."""
    return {
        (stage, name): x
        for stage, output in stages.items()
        for name, x in pool(output).items()
        if name in getattr(backbone, "poolings", (name,))  # a histogram has nothing to pool
    }


def cells(backbone: nn.Module, stages: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """The unpooled last stage, (stage, CELLS): float16 [B, T H W, C]. Raises TrainerError for values beyond float16."""
    stage, output = [*stages.items()][-1]
    if output.abs().amax() > torch.finfo(torch.float16).max:
        raise TrainerError(
            f"stage {stage} gives values up to {output.abs().amax():g}, too large for float16, as which cells are stored"
        )
    return {(stage, CELLS): output.flatten(2).transpose(1, 2).half()}


def features(
    saved: Checkpoint,
    network: str,
    backbone: nn.Module,
    shards: data.Shards,
    videos: np.ndarray,
    views: str | int,
    compute: Compute,
    time: data.Time | None = None,
    made: Made = pooled,
) -> Features:
    """Features of the clips of videos (int64 [n, 2]: shard, video), from the run's folder if they have been extracted
    before for the same weights, shards, videos and views.

    network: the name of the backbone ("pretrained", "random"); views: a name of VIEWS, or a number of spread clips
    time: how the frames of each clip are reordered, None for not at all; made: `pooled` or `cells`
    Clips are centre-cropped and normalised as the network expects; batch normalisation in evaluation mode, float32.
    """
    frames = partial(data.spread_frames, views=views) if isinstance(views, int) else VIEWS[views]
    clips = data.VideoViews(shards, videos, frames, inputs.of(backbone), time)
    views = ", ".join([str(views), *([str(time)] if time else []), *([made.__name__] if made is not pooled else [])])
    folder = saved.run / "features" / _key(backbone, shards, videos, views)
    there = (folder / "about.json").exists()
    detail(f"{folder}: {'read' if there else 'made'}, {counted(len(clips), 'clip')} of {counted(len(videos), 'video')}")
    if not there:
        about = {
            "network": network,
            "dataset": shards.dataset,
            "views": views,
            "videos": len(videos),
            "clips": len(clips),
        }
        _keep(folder, about, lambda temporary: _extract(backbone, clips, temporary, compute, made))
    return Features({key: _stored(_file(folder, *key), len(clips)) for key in _kept(folder)}, clips.owner)


def _file(folder: Path, stage: str, pooling: str) -> Path:
    return folder / f"{stage}-{pooling}.npy"


def _stored(path: Path, clips: int) -> np.ndarray:
    """A stored array, a memory map of float32 [clips, d] or float16 [clips, cells, d]. Raises TrainerError if it cannot be read
    or is damaged."""
    try:
        with open_regular(path) as file:
            np.lib.format.read_magic(file)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
            wanted = np.dtype(np.float32 if len(shape) == 2 else np.float16)
            if dtype != wanted or by_column or len(shape) not in (2, 3) or shape[0] != clips:
                raise ValueError(f"{dtype} {shape}, expected float32 [{clips}, d] or float16 [{clips}, cells, d]")
            kept = mmap.mmap(
                file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ
            )  # not every file system supports shared maps
            return np.frombuffer(kept, dtype, offset=file.tell()).reshape(shape)
    except (FileNotFoundError, ReadError, ValueError, EOFError) as error:
        raise TrainerError(f"{path}: damaged ({error}); delete its folder to extract the features again") from error
    except OSError as error:
        raise TrainerError(f"{path}: cannot be read ({error.strerror})") from error


def _kept(folder: Path) -> list[tuple[str, str]]:
    """Stages and poolings of the arrays in a folder, in the order of the network."""
    try:
        about = load_json(folder / "about.json")
        validate(about, {"arrays": [[str]]}, "it")
        kept = about["arrays"]
        if any(len(pair) != 2 or not all(map(str.isalnum, pair)) for pair in kept):
            raise ValueError(f"arrays are {kept!r:.60}")
    except (ReadError, ValueError) as error:
        raise TrainerError(f"{folder}: damaged ({error}); delete it to extract the features again") from error
    return [(stage, pooling) for stage, pooling in kept]


def sha256_of(backbone: nn.Module) -> hashlib._Hash:
    """Hash of the weights and buffers of a network."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(inputs.conditions(backbone).encode())
    return digest


def _key(backbone: nn.Module, shards: data.Shards, videos: np.ndarray, views: str) -> str:
    """Hash of everything that determines the features, including the versions of this code and of torch."""
    digest = sha256_of(backbone)
    digest.update(json.dumps([VERSION, torch.__version__, type(backbone).__name__, views, shards.config_hash]).encode())
    for sha256 in shards.readers.sha256:
        digest.update(json.dumps(sha256, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(videos, np.int64).tobytes())
    return digest.hexdigest()[:16]


def _keep(folder: Path, about: dict, extract: Callable[[Path], list[tuple[str, str]]]) -> None:
    """Write a folder completely or not at all, and remove leftovers of killed processes.

    extract: writes the arrays into a folder and returns their stages and poolings in order, which about.json lists.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".*.tmp"):
        if _left_over(left):
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.parent / f".{socket.gethostname()}-{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        with open(temporary / "lock", "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: see _left_over
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = {**about, "arrays": extract(temporary)}
            (temporary / "about.json").write_text(json.dumps(about, indent=2) + "\n")
            (temporary / "lock").unlink()
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "about.json").exists():  # otherwise another process was faster with the same features
                raise
            shutil.rmtree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _left_over(temporary: Path) -> bool:
    """Whether a temporary folder is abandoned: its process, on this host, no longer holds its lock. For another host, whose
    locks may not be visible here, and without locks, the age decides."""
    with contextlib.suppress(OSError):  # no lock, or no support for locks
        if temporary.name[1:].rpartition("-")[0] == socket.gethostname():
            with open(temporary / "lock", "r+") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
    with contextlib.suppress(OSError):  # it has just been removed
        times = [path.stat().st_mtime for path in (temporary, *temporary.iterdir())]
        return time.time() - max(times) > _FORGOTTEN
    return False


def _extract(
    backbone: nn.Module, clips: data.VideoViews, folder: Path, compute: Compute, made: Made
) -> list[tuple[str, str]]:
    done, keys = 0, list[tuple[str, str]]()
    for index, stages in stage_outputs(backbone, clips, compute):
        found = made(backbone, stages)
        together = torch.cat([*found.values()], 1).cpu()  # one wait for the device
        parts = together.split([x.shape[1] for x in found.values()], 1)
        keys = list(found)
        if (index != np.arange(done, done + len(index))).any():
            raise AssertionError(f"clips {index} after the first {done}")
        for (stage, pooling), values in zip(keys, parts, strict=True):
            if not values.isfinite().all():
                raise TrainerError(f"stage {stage} gives values that are not finite: the weights are damaged")
            # a memory map would kill the process on a full disk, and not every file system supports it
            with writing(file := _file(folder, stage, pooling)), open(file, "ab") as opened:
                if not done:
                    shape = (len(clips), *values.shape[1:])
                    header = {"descr": f"<f{values.itemsize}", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(opened, header)
                opened.write(values.contiguous().numpy().astype(header["descr"], copy=False))
        done += len(index)
    for key in keys:
        sync(_file(folder, *key))
    return keys


def stage_outputs(
    backbone: nn.Module, clips: data.VideoViews, compute: Compute
) -> Iterable[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield every clip once: the indices int64 [B] and the output of each stage, [B, C, T, H, W]. Clips are centre-cropped and
    normalised as the network expects; float32, batch normalisation in evaluation mode."""
    device = distributed.pick_device(compute.device)
    backbone.eval().to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    seen = np.zeros(len(clips), np.int64)
    size = compute.batch_size
    keys = [range(first, min(first + size, len(clips))) for first in range(0, len(clips), size)]
    with ProgressBar("features", "clip", len(clips)) as bar:
        for batch in data.prefetch(clips, keys, compute.workers, device):
            index = batch["index"].numpy()
            with exact(device):
                x = centre(
                    batch["clips"].to(device, non_blocking=True), clips.shards.config["crop"], inputs.of(backbone)
                )
                yield index, backbone(x)
            seen[index] += 1
            bar.step(len(index))
    if not (seen == 1).all():
        raise AssertionError(f"{np.count_nonzero(seen != 1)} of {len(seen)} clips were not scored exactly once")
