"""From videos to a table of features, part by part, so that memory does not grow with their number and an interrupted
run can be resumed."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from labelgen.files import json_sha256, locked
from labelgen.progress import counted, detail
from labelgen.shards import NONE, PARTS, ShardReader, open_shards
from labelgen.texts import path_text
from labelgen.times import frame_bounds
from trainer import data
from trainer.checkpoint import Checkpoint, versions
from trainer.embeddings.pictures import signature, thumbnail
from trainer.embeddings.table import Table, join, write_part
from trainer.errors import SettingError, TrainerError
from trainer.evaluate.features import VIEWS, Compute, Features, pool, sha256_of, stage_outputs
from trainer.network import trained_backbone

POOLINGS = ("mean", "max")
Progress = Callable[[int, int], None]  # called with the number of videos done and of all
_STORED = (
    "height",
    "width",
    "region",
    "crop",
    "fps",
    "jpeg_quality",
    "clip_length",
)  # settings of frames that affect features


@dataclass(frozen=True)
class Choice:
    """What makes a row of a table.

    Parameters
    ----------
    level : str
        "clip" or "video".
    stage : str
        Of the backbone, None for the last.
    pooling : str
        "mean" or "max".
    views : str
        A name of VIEWS, None for "sliding" with clips and "spread" with videos.
    crops : int
        1, the centre, or 10, whose vectors are concatenated, see data.TenCrops.
    """

    level: str = "clip"
    stage: str | None = None
    pooling: str = "mean"
    views: str | None = None
    crops: int = 1


@dataclass(frozen=True)
class StoredFrames:
    """Shards for data.VideoViews, and the configuration of their frames."""

    readers: Sequence[ShardReader]
    config: dict

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.config["height"], self.config["width"]

    @property
    def clip_length(self) -> int:
        return self.config.get("clip_length", 16)  # older checkpoints lack this setting


@dataclass(frozen=True)
class Piece:
    """A few videos. videos: int64 [n, 2], reader and video in it; fields: id, path, label, split (part of the first
    one), width, height (before resizing) of each; failures: id, path, reason, and kept: whether the video is included
    nevertheless; bounds: for each video, the begin of its frames and the end of the last one, see labelgen.times."""

    frames: StoredFrames
    videos: np.ndarray
    fields: list[dict]
    failures: list[dict]
    bounds: Sequence[np.ndarray] = ()


class VideoSource(Protocol):
    """A source of videos. about: kind and folder, for information; config: of the frames; count: of the videos; parts:
    arguments of `open`, in order, each of so few videos that they fit into memory; stamp: changes with its part; files:
    by the ids of all videos, in order, a value that changes with the rows of each; only: the same source with some of
    the videos; sample: with a few of them, or their beginning, and their share of all."""

    about: dict
    config: dict
    count: int
    parts: Sequence

    def stamp(self, part: Any) -> object: ...

    def size(self, part: Any) -> int: ...

    def open(self, part: Any, scratch: Path) -> AbstractContextManager[Piece]: ...

    def files(self) -> dict[str, str]: ...

    def only(self, ids: Set[str]) -> VideoSource: ...

    def sample(self) -> tuple[VideoSource, float]: ...


def split_part(parts: Sequence[int]) -> str:
    """train, validation or test: the part of a video in the first official split; "" for none."""
    return PARTS[parts[0]] if len(parts) and parts[0] != NONE else ""


class ShardVideos:
    """The videos of shards as a VideoSource, one part per shard.

    Parameters
    ----------
    folder : path
        Of shards.
    """

    def __init__(self, folder: Path):
        self.parts: Sequence[Any] = open_shards(folder)
        self.config = self.parts[0].config
        self.about = {"kind": "shards", "folder": path_text(Path(folder).resolve()), "dataset": self.config["dataset"]}
        self.count = sum(map(self.size, self.parts))

    def stamp(self, part: ShardReader) -> object:
        return part.sha256

    def size(self, part: ShardReader) -> int:
        return len(self._ids(part))

    def _ids(self, part: ShardReader) -> dict[str, None]:
        return dict.fromkeys((*part.arrays["videos/id"], *part.arrays["failures/id"]))

    def files(self) -> dict[str, str]:
        return {id: json_sha256(part.sha256) for part in self.parts for id in self._ids(part)}

    def only(self, ids: Set[str]) -> ShardVideos:
        some = copy.copy(self)
        some.parts = [part for part in self.parts if not ids.isdisjoint(self._ids(part))]
        some.count = sum(map(some.size, some.parts))
        return some

    def sample(self) -> tuple[ShardVideos, float]:
        some = copy.copy(self)
        some.parts = self.parts[:: max(1, len(self.parts) // 2)][:2]
        some.count = sum(map(some.size, some.parts))
        frames, whole = (
            sum(int(part.arrays["videos/n_frames"].sum()) for part in of) for of in (some.parts, self.parts)
        )
        return some, frames / max(1, whole)

    @contextmanager
    def open(self, part: ShardReader, scratch: Path) -> Iterator[Piece]:
        yield piece_of([part], self.config)


def piece_of(shards: Sequence[ShardReader], config: dict) -> Piece:
    """All videos of some shards with frames of this configuration."""
    names = ("id", "path", "label", "width", "height")
    videos, fields, failures, bounds = [], [], [], []
    for number, shard in enumerate(shards):
        arrays = shard.arrays
        videos += [(number, video) for video in range(shard.n_videos)]
        columns = [arrays[f"videos/{name}"] for name in names]
        splits = map(split_part, arrays["videos/split"])
        fields += [
            {**dict(zip(names, values, strict=True)), "split": split}
            for *values, split in zip(*columns, splits, strict=True)
        ]
        failed = zip(*(arrays[f"failures/{name}"] for name in ("id", "path", "reason")), strict=True)
        failures += [
            {"id": id, "path": path, "reason": reason, "kept": id in arrays["videos/id"]} for id, path, reason in failed
        ]
        times = np.split(arrays["frames/time"], arrays["videos/first_frame"][1:]) if shard.n_videos else []
        for time, fps in zip(times, arrays["videos/fps"], strict=True):
            begin = time[0] if "segments" in shard.config else 0  # parts keep the times of their file
            bounds.append(np.round(begin + frame_bounds(time, fps), 6))
    return Piece(StoredFrames(shards, config), np.array(videos, np.int64).reshape(-1, 2), fields, failures, bounds)


class Extractor:
    """The backbone of a checkpoint, and the features to take from it.

    choice: complete; settings: everything besides the video that determines a row; about: description of the network in
    the table. Raises TrainerError for a stage that the backbone does not have.
    """

    def __init__(self, saved: Checkpoint, choice: Choice, frames: dict, compute: Compute):
        self.backbone, self.compute, crop = trained_backbone(saved), compute, frames["crop"]
        self.input = self.backbone.input
        with torch.inference_mode():
            length = self.input.frames or StoredFrames([], frames).clip_length
            stages = self.backbone(torch.zeros(1, 3, length, crop, crop))
        self._choose(choice, stages)
        self.width = choice.crops * pool(stages[self.stage])[choice.pooling].shape[1]
        self.settings = self.settings_of(sha256_of(self.backbone).hexdigest()[:16], frames)
        meta = saved.meta["settings"]
        self.about = {
            "checkpoint": saved.meta.get("baseline") or path_text(saved.file.resolve()),
            "backbone": meta["backbone"],
            "network_width": meta["width"],
        }
        self.about |= {"method": meta["method"], "versions": versions()}

    def _choose(self, choice: Choice, stages: Iterable[str]) -> None:
        """Fill in the open fields of a choice. Raises SettingError for unknown values."""
        stages = list(stages)
        stage = choice.stage or stages[-1]
        if stage not in stages:
            raise SettingError(f"the backbone has no stage {stage!r}, only {', '.join(stages)}")
        for name, value, known in (
            ("level", choice.level, ("clip", "video")),
            ("pooling", choice.pooling, POOLINGS),
            ("views", choice.views, (None, *VIEWS)),
            ("crops", choice.crops, (1, 10)),
        ):
            if value not in known:
                raise SettingError(f"{name} is {value!r}, expected one of: {', '.join(map(str, filter(None, known)))}")
        views = choice.views or {"clip": "sliding", "video": "spread"}[choice.level]
        self.stage, self.views, self.choice = stage, VIEWS[views], replace(choice, stage=stage, views=views)

    def settings_of(self, weights: str, frames: dict) -> dict:
        """Everything besides the video that determines a row."""
        settings = {"weights": weights, **asdict(self.choice), "frames": stored_frames(frames)}
        return settings if self.choice.crops > 1 else {name: x for name, x in settings.items() if name != "crops"}

    def __call__(self, piece: Piece) -> tuple[np.ndarray, dict[str, list]]:
        """Vectors float32 [rows, d] of the videos of a piece, in order, and the other columns of the table."""
        views = data.VideoViews if self.choice.crops == 1 else data.TenCrops
        clips = views(piece.frames, piece.videos, self.views, self.input)  # type: ignore[arg-type]  # works like Shards
        vectors, whole = self.vectors(piece, clips)
        owner, first, last = clips.owner, clips.frames.min(1, initial=1 << 62), clips.frames.max(1, initial=0)
        middle = clips.frames[:, clips.frames.shape[1] // 2]
        if self.choice.level == "video" and len(clips):
            vectors = vectors if whole else video_means(vectors, owner)
            owner = np.arange(len(piece.videos))
            lengths = np.array([len(bounds) - 1 for bounds in piece.bounds])
            first, last, middle = 0 * lengths, lengths - 1, lengths // 2
        fields = [piece.fields[video] for video in owner]
        columns = {name: [field[name] for field in fields] for name in ("id", "path", "label", "split")}
        for name, at in (("start", first), ("end", last + 1)):
            times = [float(piece.bounds[int(video)][int(frame)]) for video, frame in zip(owner, at, strict=True)]
            columns[name] = [None if np.isnan(time) else time for time in times]
        columns["stage"] = [self.stage] * len(fields)
        stored = [(piece.frames.readers[number], int(row)) for number, row in piece.videos]
        shown = zip(owner.tolist(), middle.tolist(), strict=True)
        columns["thumbnail"] = [thumbnail(*stored[video], frame, piece.fields[video]) for video, frame in shown]
        firsts = zip(owner.tolist(), np.diff(owner, prepend=-1) != 0, strict=True)
        columns["signature"] = [
            signature(*stored[video], piece.bounds[video]) if first else b"" for video, first in firsts
        ]
        return vectors, columns

    def vectors(self, piece: Piece, clips: data.VideoViews) -> tuple[np.ndarray, bool]:
        """Vectors float32 [clips, d] of the clips of a piece, or [videos, d] of its videos, and whether they are of videos."""
        vectors = np.empty((len(clips), self.width // self.choice.crops), np.float32)
        if len(clips):
            for index, stages in stage_outputs(self.backbone, clips, self.compute):
                values = pool(stages[self.stage])[self.choice.pooling]
                if not values.isfinite().all():
                    raise TrainerError(f"stage {self.stage} has non-finite values: the weights are damaged")
                vectors[index] = values.cpu().numpy()
        return vectors.reshape(-1, self.width), False


def stored_frames(frames: dict) -> dict:
    """The part of a configuration of frames that affects features."""
    return {name: frames[name] for name in _STORED if name in frames}


def video_means(vectors: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The mean vector of each video, of length 1, float32 [videos, d], from those of its clips [clips, d]. owner: int64
    [clips]."""
    return Features({("", ""): vectors}, owner).video_means(("", ""))


def embed(
    extract: Extractor,
    source: VideoSource,
    out: Path,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Table:
    """Write the table of features of all videos of a source. An existing table of the same rows is kept. In a table
    of the same network and settings, rows of unchanged files are kept, and rows of others are removed.

    Finished parts are kept in `OUT.parts/` until the table is complete; the same call resumes from them.

    Parameters
    ----------
    extract : Extractor
        See `trainer.embeddings.chosen.extractor`.
    source : VideoSource
        Such as `ShardVideos`.
    out : Path
        The `.parquet` file.
    progress : callable
        Called with the number of videos done and of all.
    say : callable
        Called with lines of text for the user.

    Returns
    -------
    Table
        `about["failures"]` lists unreadable and truncated videos.

    Raises
    ------
    TrainerError
        If there is a table of another network or settings, or if another process is writing it.

    Examples
    --------
    >>> from pathlib import Path
    >>> from labelgen.flow import flow
    >>> from trainer.checkpoint import load
    >>> from trainer.embeddings.chosen import extractor
    >>> from trainer.embeddings.extract import Choice, ShardVideos, embed
    >>> from trainer.evaluate.features import Compute
    >>> source = ShardVideos("out/demo")
    >>> saved = load("runs/pace-r3d10-1")
    >>> extract = extractor(saved, Choice(level="video"), source.config, Compute(device="cpu"), flow)
    >>> table = embed(extract, source, Path("videos.parquet"))
    >>> table.rows, table.width == extract.width
    (13, True)
    """
    key = json_sha256([extract.settings, [source.stamp(part) for part in source.parts]])
    files = source.files()
    folder = out.with_name(f"{out.name}.parts")
    old: Table | None = None
    kept: dict[str, str] = {}
    if out.exists():
        old = Table(out)
        if old.about.get("key") == key:
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed after the last step
            say(f"{out}: up to date (same videos, network, settings)")
            return old
        there = old.about.get("settings")
        if there is None or json_sha256(there) != json_sha256(extract.settings) or "files" not in old.about:
            raise TrainerError(
                f"{out}: holds features of {_difference(old.about, extract.settings)}; delete it, or choose another"
            )
        kept = {id: stamp for id, stamp in old.about["files"].items() if files.get(id) == stamp}
        say(f"{out}: {len(kept):,} videos are unchanged, {len(old.about['files']) - len(kept):,} deleted or changed")
    everything, source = source, source.only(files.keys() - kept.keys()) if kept else source
    keys = [json_sha256([extract.settings, source.stamp(part)]) for part in source.parts]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, TrainerError(f"{folder}: another process is writing here; wait for it"), say):
        if old is not None and Table(out).about.get("key") != old.about.get("key"):
            raise TrainerError(f"{out}: another process has written it just now; run the same command again")
        paths, done = [folder / f"{name}.parquet" for name in keys], 0
        if here := sum(path.exists() for path in paths):
            say(f"{folder}: {here} of {counted(len(paths), 'part exists', 'parts exist')}")
        failures = [failure for failure in old.about["failures"] if failure["id"] in kept] if old else []
        progress(0, source.count)
        for left in folder.glob("*.tmp"):  # left by a killed process
            shutil.rmtree(left, ignore_errors=True)
        for path, part in zip(paths, source.parts, strict=True):
            if not path.exists():
                with source.open(part, folder) as piece:
                    lost = sum(not failure["kept"] for failure in piece.failures)
                    if len(piece.fields) + lost != source.size(part):
                        raise AssertionError(f"{len(piece.fields)} read, {lost} failed of {source.size(part)} videos")
                    vectors, columns = extract(piece)
                    write_part(path, {"failures": piece.failures}, vectors, columns)
                    detail(f"{path}: {counted(len(piece.fields), 'video')}, {counted(len(vectors), 'row')}")
            failures += Table(path).about["failures"]
            done += source.size(part)
            progress(done, source.count)
        order = {id: place for place, id in enumerate(files)}
        failures.sort(key=lambda failure: order[failure["id"]])
        about = {"key": key, "settings": extract.settings, **extract.about, "source": everything.about}
        about |= {"videos": everything.count, "files": files, "failures": failures}
        join(out, about, extract.width, paths, None if old is None else out, kept, order)
        shutil.rmtree(folder)
    return Table(out)


def _difference(about: dict, settings: dict) -> str:
    stored = about.get("settings", {})
    differ = [name for name in {**settings, "crops": 1} if stored.get(name) != settings.get(name)]
    words = [f"{name} {stored.get(name, 1)}, not {settings.get(name, 1)}" for name in differ]
    return "; ".join(words) or f"{about.get('videos')} videos, which are not exactly these"
