"""Scores of every test video, from frozen features, a finetuned network or a histogram of flow.

The only place of the study that calls the protocols of trainer.evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np

from trainer import checkpoint, data, distributed
from trainer.errors import TrainerError
from trainer.evaluate import predictions, task
from trainer.evaluate.bench import Bench
from trainer.evaluate.classifiers import probe
from trainer.evaluate.features import Compute, Features, features, networks, normalised
from trainer.evaluate.folds import groups_of
from trainer.evaluate.knn import TEMPERATURE
from trainer.evaluate.neighbours import nearest, votes
from trainer.network import build_backbone
from trainer.settings import Settings, resolve
from trainer.study.file import LAST, VIEWS, Measure
from trainer.study.sources import Source, drawn

_CELLS, _DIRECTIONS = 4, 8  # of the histogram: per side, and bins
_SEGMENTS = (1, 2, 4, 8)  # equal parts of a video, each with a histogram of its own

Scores = dict[str, float]  # 0 to 1 by the id of a test video


def backbone_features(
    run: Path | None, settings: dict, shards: data.Shards, folder: Path, compute: Compute
) -> Features:
    """Features of the 10 clips of every video, of a run's backbone, or of the initial weights of `settings`; kept in folder."""
    saved = checkpoint.Checkpoint(folder, folder, {}, {})
    trained = networks(checkpoint.load(run))["pretrained"] if run else None
    backbone = trained or build_backbone(resolve(Settings(**settings)))
    return features(saved, "study", backbone, shards, shards.videos, "spread", compute)


def flow_features(shards: data.Shards, flow: Callable) -> Features:
    """`flow_histogram` of every video, as features of one stage, "flow"."""
    rows = []
    for shard, video in shards.videos:
        reader = shards.readers[shard]
        first, n = (int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
        rows.append(flow_histogram(reader.frames(np.arange(first, first + n)), flow))
    x = np.stack(rows)
    return Features({("flow", pooling): x for pooling in ("max", "mean")}, np.arange(len(x)))


def flow_histogram(frames: np.ndarray, flow: Callable) -> np.ndarray:
    """What a user could do without a network: frames uint8 [T, H, W, 3] -> float32 [15 x 4 x 4 x 8].

    For the video, its halves, quarters and eighths, and each cell of a 4 x 4 grid over the frame: 8 directions of the flow,
    weighted by its magnitude; the root of each, relative to the whole part of the video (Hellinger). flow: luma uint8 [H, W]
    twice -> float32 [H, W, 2].
    """
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    height, width = luma[0].shape
    rows, columns = (np.arange(n) * _CELLS // n for n in (height, width))
    cell = (rows[:, None] * _CELLS + columns).ravel()
    out = np.zeros((_SEGMENTS[-1], _CELLS**2 * _DIRECTIONS))
    steps = max(1, len(luma) - 1)
    for t, (first, second) in enumerate(pairwise(luma)):
        u, v = flow(first, second).reshape(-1, 2).T
        magnitude, angle = np.hypot(u, v), np.arctan2(-v, u) % (2 * np.pi)
        direction = (angle * _DIRECTIONS / (2 * np.pi)).astype(int) % _DIRECTIONS
        out[t * len(out) // steps] += np.bincount(cell * _DIRECTIONS + direction, magnitude, out.shape[1])
    parts = np.concatenate([out.reshape(n, -1, out.shape[1]).sum(1) for n in _SEGMENTS])
    return normalised(np.sqrt(parts)).astype(np.float32).ravel()


def scores(
    found: Features,
    source: Source,
    splits: Sequence[str],
    target: str,
    measure: Measure,
    seed: int,
    device: str = "cpu",
) -> Scores:
    """Scores of the test videos of splits by a protocol on frozen features of all videos.

    Raises TrainerError for a stage that the features lack, and where a class has too few videos to learn from.
    """
    stages = [*dict.fromkeys(stage for stage, _ in found.arrays)]
    key = (stages[-1] if measure.stage == LAST or stages == ["flow"] else measure.stage), measure.pooling
    if key not in found.arrays:
        raise TrainerError(f"no stage {measure.stage!r}: there are {', '.join(stages)}")
    result: Scores = {}
    for split in splits:
        opened = source.opened(target, split)
        ids, labels = (np.array(opened.text(f"videos/{name}")) for name in ("id", "label"))
        test = np.flatnonzero((opened.part == data.TEST) & ((labels != "") | (measure.protocol == "smoothness")))
        if measure.protocol == "smoothness":
            clips = normalised(found.arrays[key])
            values = np.array([_ordered(clips[found.owner == row]) for row in test])
        else:
            values = _classified(found, key, opened, labels, test, measure, seed, device)
        result |= dict(zip(ids[test].tolist(), map(float, values), strict=True))
    return result


def _classified(found, key, opened: data.Shards, labels, test, measure: Measure, seed: int, device: str) -> np.ndarray:
    """Whether each test row is right, bool [tests]."""
    chosen = drawn(labels, opened.part == data.TRAIN, measure.labels, seed)
    if chosen is None or not len(test):
        raise TrainerError(
            f"{opened.dataset}: no test videos, or a class has fewer than {measure.labels} training videos"
        )
    train = np.flatnonzero(chosen)
    train = train[np.argsort(np.array(opened.text("videos/id"))[train])]  # the order of the shards has no effect
    if len(np.unique(labels[train])) < 2:
        raise TrainerError(f"{opened.dataset}: labelled training videos of two classes or more are needed")
    _, classes = np.unique(labels, return_inverse=True)
    x = found.video_means(key) if key[0] == "flow" else _in_parts(found, key, measure.parts)
    if measure.protocol == "linear":
        predicted, _ = probe(x[train], classes[train], groups_of(opened)[train], x[test])
        return predicted == classes[test]
    near = nearest((x[test], test), (x[train], train), measure.k, distributed.pick_device(device))
    if measure.protocol == "retrieval":
        return (classes[train][near] == classes[test][:, None]).any(1)
    return votes(x[test], x[train], near, classes[train], [measure.k], TEMPERATURE)[0] == classes[test]


def _in_parts(found: Features, key: tuple[str, str], parts: int) -> np.ndarray:
    """Means of the clips of each part of a video's time, of length 1, side by side, float32 [videos, parts x d]."""
    order = np.arange(len(found.owner)).reshape(-1, VIEWS)
    columns = np.array_split(order, parts, axis=1)
    return np.concatenate([normalised(found.arrays[key][rows].mean(1)) for rows in columns], axis=1)


def _ordered(clips: np.ndarray) -> float:
    """Share of all triples of a video's clips (unit float32 [n, d], in order) whose first is more alike to the second than to
    the third; ties count half."""
    cosine = (clips @ clips.T).astype(np.float64)
    signs = [np.sign(cosine[i, j] - cosine[i, k]) for i, j, k in combinations(range(len(clips)), 3)]
    return 0.5 + float(np.mean(signs)) / 2 if signs else 0.5


def finetuned_scores(run: Path, shards: Path, compute: Compute) -> Scores:
    """Whether the classifier of a finetuned run is right about each test video of its split: mean softmax of 10 clips."""
    bench = Bench(shards, run, compute=compute)
    scored = predictions.score(bench, bench.saved)
    hits, videos = scored.hits("video")
    ids = np.array(scored.source.text("videos/id"))
    return dict(zip(ids[videos].tolist(), map(float, hits), strict=True))


def pretext_scores(run: Path, shards: Path, split: str, draws: int, compute: Compute) -> tuple[Scores, Scores]:
    """How often a run's pretext task is solved on each test video of a split, and how often by guessing: the mean over
    `draws` of its samples. Of several methods the first one's. Raises TrainerError where the method has no accuracy."""
    bench = Bench(shards, run, split, compute)
    source, videos, _ = task.unseen(bench)
    name = bench.saved.meta["settings"]["method"].split("+")[0]
    clips, _ = task.samples(bench, source, videos, name)
    found, owner = task.answers(bench, source, clips, name, draws)
    ids = source.text("videos/id")
    right, guessed = (
        {ids[video]: float(found[key][owner == video].mean()) for video in np.unique(owner).tolist()}
        for key in ("accuracy", "chance")
    )
    return right, guessed
