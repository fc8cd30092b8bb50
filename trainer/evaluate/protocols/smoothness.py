"""Smoothness: how does the similarity of moments of a video decrease with their distance?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from trainer.errors import TrainerError
from trainer.evaluate.protocol import Protocol
from trainer.evaluate.protocols import data, features, metrics, np, results, torch

FARTHEST = 128  # frames
MOST_VIDEOS = 200  # from more videos, evenly spread ones are used


class Smoothness(Protocol):
    """Measure whether moments of a video are less similar if they are further apart."""

    title = "Smoothness"
    of_features, labelled = True, False
    question = "How similar are two moments of a video, by the number of frames between them?"
    items = (
        "*Ordered triples*: 10 spread clips of every video of the split's test part, else of all videos, with one vector per "
        "clip and stage. *Cosines*: moments of at most 200 of these videos. A moment is the last stage, averaged over space "
        "and scaled to length 1: of a frame for a 2D network; of a clip, also averaged over time, for a 3D network, which does "
        "not process single frames. Successive clips are half a clip apart."
    )
    classifier = (
        "None. *Ordered triples*, the main number: the share of all triples of a video's clips, in the order of time, "
        "whose first clip is more similar (by cosine) to the second than to the third; ties count half, chance is 50 %. "
        "*Cosines*: 100 x the mean cosine of moments, by the distance of their first frames; `other video` is the mean over "
        "moments of different videos."
    )
    left_out = "For the cosines, videos shorter than a clip and distances of more than 128 frames."
    source = "Knights et al. (TCE), ICPR 2020, fig. 3; the triples are ours."
    published = ()
    scores: metrics.ItemScores

    def choose(self) -> data.Shards:
        source = self.evaluator.source()
        self.scores = metrics.ItemScores.of(source)
        test = np.flatnonzero(source.part == data.TEST)
        self.videos = test if len(test) else np.arange(len(source.videos))
        if (selection := self.evaluator.selection) and selection.test is not None:
            self.videos = selection.test
        else:
            self.long = self._long_videos(source)
        return source

    def rows(self) -> Iterator[dict]:
        yield from self.of_networks(self._of_network)
        yield {"network": "chance", "metric": "ordered triples", "value": 50.0}

    def _of_network(self, network: str) -> Iterator[dict]:
        found = self.evaluator.features(network, self.shards, self.videos, "spread")
        for stage, pooling in self.evaluator.kinds(found):
            x = found.arrays[stage, pooling]
            ordered = np.array([ordered_triples(x[found.owner == i]) for i in range(len(self.videos))])
            score = self.scores.accuracy(ordered, self.videos)
            yield {"stage": stage, "pooling": pooling, "metric": "ordered triples", **score}
        yield from self._cosines(self.evaluator.networks()[network])

    def _cosines(self, backbone: torch.nn.Module) -> Iterator[dict]:
        """The mean cosine of moments, by their distance in frames."""
        videos = self.shards.videos[self.long]
        moments = last_stage_moments(backbone, self.shards, videos, self.evaluator.compute)
        self.stage, self.spacing, vectors, owner = moments
        self.moments = f"{len(vectors)} moments of {len(videos)} videos"
        inside, outside = by_distance(vectors, owner)
        row = {"stage": self.stage, "metric": "cosine"}
        for step in range(1, len(inside)):
            if step * self.spacing <= FARTHEST and np.isfinite(inside[step]):
                yield {**row, "distance": step * self.spacing, "value": 100 * float(inside[step])}
        if np.isfinite(outside):
            yield {**row, "distance": results.OTHER_VIDEO, "value": 100 * float(outside)}

    def _long_videos(self, source: data.Shards) -> np.ndarray:
        """Evenly spread videos that are at least as long as a clip, at most MOST_VIDEOS, int64 rows."""
        lengths = source.readers.numbers("videos/n_frames")
        long = np.flatnonzero((lengths >= source.clip_length) & np.isin(np.arange(len(lengths)), self.videos))
        if not len(long):
            raise TrainerError(
                f"{source.dataset}: no video has {source.clip_length} frames, the length of a clip; use longer videos"
            )
        return long[np.unique(np.linspace(0, len(long) - 1, MOST_VIDEOS).astype(int))]

    def conditions(self) -> dict[str, Any]:
        over, moment = "space and time", f"a clip of {self.shards.clip_length} frames, one every {self.spacing} frames"
        if self.spacing == 1:
            over, moment = "space", "a frame"
        return {
            "mode": "share of the triples of a video's clips whose first is more alike to the second than to the third; 100 x "
            "mean cosine of two moments of a video by the frames from the first of one to the first of the other",
            "views": f"10 clips of {self.shards.clip_length} frames; a moment is {self.stage}, mean over {over}, of {moment}",
            "items": f"{len(self.videos)} videos, {self.moments}",
            "intervals": self.scores.describe_units(self.videos),
        }

    @classmethod
    def table(cls, result: dict) -> list[str]:
        cosines = [row for row in result["rows"] if "distance" in row]
        others = [row for row in result["rows"] if "distance" not in row]  # results of older versions have none
        lines = [*results.table(others, cls.index, cls.columns), ""] if others else []
        return [*lines, *results.table(cosines, ("network", "stage"), ("distance",))]


def ordered_triples(x: np.ndarray) -> float:
    """The share of all triples of a video's clips (float32 [n, d], in the order of time) whose first clip is more similar to the
    second than to the third; ties count half."""
    clips = features.normalised(x)
    cosine = (clips @ clips.T).astype(np.float64)
    if len(clips) < 3:
        return 0.5
    first, second, third = np.array([*combinations(range(len(clips)), 3)]).T
    return 0.5 + float(np.sign(cosine[first, second] - cosine[first, third]).mean()) / 2


def last_stage_moments(
    backbone: torch.nn.Module, source: data.Shards, videos: np.ndarray, compute: features.Compute
) -> tuple[str, int, np.ndarray, np.ndarray]:
    """The name of the last stage, the number of frames from one moment to the next, the moments, L2-normalised float32 [n, d],
    those of a video adjacent and in order, and the video of each, int64 [n]."""
    one = data.VideoViews(source, videos[:1], lambda *lengths: whole_clips(*lengths)[:1])
    _, stages = next(iter(features.stage_outputs(backbone, one, features.Compute(1, 0, compute.device))))
    stage, last = list(stages.items())[-1]
    frames = last.shape[2] == source.clip_length
    clips = data.VideoViews(source, videos, whole_clips if frames else data.sliding_frames)
    moments = np.empty((len(clips), last.shape[2] if frames else 1, last.shape[1]), np.float32)
    for index, stages in features.stage_outputs(backbone, clips, compute):
        x = stages[stage].float().mean((3, 4))  # [B, C, T']
        moments[index] = (
            torch.nn.functional.normalize(x if frames else x.mean(2, keepdim=True), dim=1).transpose(1, 2).cpu().numpy()
        )
    owner = np.repeat(clips.owner, moments.shape[1])
    return stage, 1 if frames else source.clip_length // 2, moments.reshape(len(owner), -1), owner


def whole_clips(n_frames: int, length: int) -> np.ndarray:
    """Frame numbers of consecutive clips, int64 [clips, length]; no clip if the video is shorter."""
    starts = np.arange(0, n_frames - length + 1, length)
    return starts[:, None] + np.arange(length)


def by_distance(moments: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean cosine of moments of one video by the number of steps between them, float64 [longest], NaN without a pair; and
    the mean cosine of moments of different videos. moments: L2-normalised float32 [n, d], those of a video adjacent and in
    order; owner: int64 [n], the video of each."""
    videos = np.split(moments, np.flatnonzero(np.diff(owner)) + 1)
    longest = max(map(len, videos))
    sums, counts = np.zeros(longest), np.zeros(longest)
    for video in videos:
        products = (video @ video.T).astype(np.float64)
        for step in range(len(video)):
            sums[step] += np.trace(products, step)
            counts[step] += len(video) - step
    total = moments.sum(0, dtype=np.float64)
    inner = sum(float(video.sum(0, dtype=np.float64) @ video.sum(0, dtype=np.float64)) for video in videos)
    pairs = len(moments) ** 2 - sum(len(video) ** 2 for video in videos)
    outside = (float(total @ total) - inner) / pairs if pairs else np.nan
    return np.divide(sums, counts, out=np.full(longest, np.nan), where=counts > 0), outside
