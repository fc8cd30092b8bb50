"""Self-evaluation: what a network distinguishes in unlabelled videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.evaluate.protocol import Protocol, ProtocolOption
from trainer.evaluate.protocols import checkpoint, data, features, histograms, metrics, np, results

HALF, NEXT, OWN = "half", "next", "own"  # the three questions
_BY = ("top-1", "MRR")
_CHUNK = 512  # queries compared at a time
_EASY = 95.0  # per cent; halves on which random weights or single pictures reach this are too easy
_OF_PICTURES = ("colour histogram", "still histogram")  # which do not see motion


class SelfEvaluation(Protocol):
    """Measure without labels whether a network distinguishes videos, and the moments of each."""

    title = "Self-evaluation"
    of_features, labelled = True, False
    question = "Does the network distinguish unlabelled videos, and the moments of each?"
    items = (
        "Of a video's 10 spread clips, those that share no frame: the first, and each that begins after the previous one has "
        "ended. At most 200 videos (`--most`), evenly spread over the split's test part, else over all videos. A clip is the "
        "mean over the cells of a stage, as in `vssl embed`; a half of a video is the mean of half of its clips."
    )
    classifier = (
        "None; similarity is the cosine. *half*: is a video's first half most similar to its second half, among the second "
        "halves of all videos, and the other way round? *next*: is a clip most similar to the next clip of its video, among "
        "that clip and all clips of other videos? *own*: the same, among that clip and the clips of its video that are not "
        "adjacent to it. (For the last clip, the previous one is the answer.) *top-1* is the share of questions whose answer "
        "ranks first, *MRR* the mean of 1 / rank; ties count as the mean over their orders. *Effective rank*: exp of the "
        "entropy of the singular values, divided by their sum, of all clips minus their mean, which is about the number of "
        "directions in which the features differ (not a percentage). The network is compared with random weights, with "
        "histograms of optical flow, motion boundaries, colour and the edges of one frame of the same clips (as in `vssl embed "
        "--weights flow-histogram`), and with other runs (`--beside`). The differences are paired and for the last stage."
    )
    left_out = "Videos shorter than two clips; for *own*, clips with only one candidate."
    source = "Ours; the effective rank: Roy and Vetterli, EUSIPCO 2007."
    options = (
        ProtocolOption(
            "most", int, "Largest number of videos; of more, evenly spread ones are used.", default=200, least=2
        ),
        ProtocolOption("beside", Path, "Another run to compare with; repeatable.", argument="others"),
    )
    index = ("network", "stage")
    published = ()
    needs = ("flow",)
    scores: metrics.ItemScores

    def choose(self, most: int = 200, others: Sequence[Path] = (), flow: Callable | None = None) -> data.Shards:
        """most: largest number of videos; others: runs to compare with; flow: see histograms.Flow, without it there are no
        histograms. Raises TrainerError if fewer than two videos are long enough."""
        source = self.evaluator.source()
        self.scores, self.flow = metrics.ItemScores.of(source), flow
        self.others = [(str(path), checkpoint.load(path, best=True)) for path in others]
        selection, test = self.evaluator.selection, np.flatnonzero(source.part == data.TEST)
        rows = test if len(test) else np.arange(len(source.videos))
        if selection and selection.test is not None:
            rows = selection.test
        else:
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
        self.asked = rows
        clips = data.VideoViews(source, source.videos[rows], data.spread_frames)
        self.chosen = apart(clips.frames, clips.owner)
        two = np.bincount(clips.owner[self.chosen], minlength=len(rows)) > 1
        self.chosen &= two[clips.owner]
        self.videos, self.owner = rows[two], (np.cumsum(two) - 1)[clips.owner[self.chosen]]
        if len(self.videos) < 2:
            raise TrainerError(
                f"{source.dataset}: {len(self.videos)} of {len(rows)} videos are as long as two clips ({2 * source.clip_length} "
                "frames), expected at least two; use longer videos"
            )
        if short := len(rows) - len(self.videos):
            self.notes.append(f"{short} videos shorter than two clips left out")
        starts = clips.frames[self.chosen, 0]
        self.spacing = int(np.median(np.diff(starts)[np.diff(self.owner) == 0]))
        self.places: dict[tuple[str, str], tuple[int, dict]] = {}  # network, metric -> number and row of the last stage
        return source

    def rows(self) -> Iterator[dict]:
        for number, row in enumerate(self._rows()):
            self.places[row["network"], row["metric"]] = number, row  # a later stage replaces an earlier one
            yield row

    def _rows(self) -> Iterator[dict]:
        chance: dict[str, float] = {}
        for network, found in self._found():
            kinds = self.evaluator.kinds(found)
            for stage, pooling in kinds if self.evaluator.selection else [kind for kind in kinds if kind[1] == "mean"]:
                x = np.asarray(found.arrays[stage, pooling][self.chosen])
                row = {"network": network, "stage": stage}
                for what, values, owner in answers(x, self.owner):
                    for by, right, by_chance in zip(_BY, values[:2], values[2:], strict=True):
                        score = self.scores.accuracy(right, self.videos[owner], chance=by_chance)
                        chance[f"{what} {by}"] = 100 * float(by_chance.mean())
                        yield {**row, "metric": f"{what} {by}", **score, "dimensions": x.shape[1]}
                yield {**row, "metric": "effective rank", "value": effective_rank(x), "dimensions": x.shape[1]}
        yield from ({"network": "chance", "metric": metric, "value": value} for metric, value in chance.items())

    def _found(self) -> Iterator[tuple[str, features.Features]]:
        """Yield the name and the features of the spread clips for each network, histogram and other run."""
        evaluator, source = self.evaluator, self.shards
        for network in evaluator.network_names:
            yield network, evaluator.features(network, source, self.asked, "spread")
        if evaluator.selection:
            return
        videos = source.videos[self.asked]
        for name, histogram in histograms.histograms(self.flow) if self.flow else ():
            yield name, features.features(evaluator.saved, name, histogram, source, videos, "spread", evaluator.compute)
        for name, saved in self.others:
            yield name, evaluator.features("pretrained", source, self.asked, "spread", saved)

    def conditions(self) -> dict[str, Any]:
        return {
            "mode": "halves and clips of a video that find one another by cosine, and the effective rank of all clips",
            "views": f"clips of {self.shards.clip_length} frames that share none; to the next one {self.spacing} frames (median)",
            "items": f"{len(self.videos)} videos, {len(self.owner)} clips",
            "intervals": self.scores.describe_units(self.videos),
        }

    def remarks(self) -> list[str]:
        """The paired differences, and the verdict in one sentence."""
        own = ("pretrained", f"{OWN} top-1") in self.places
        lines = [] if own else [f"{OWN}: no video has three clips that share no frame"]
        others = [network for network, metric in self.places if metric == f"{HALF} top-1"]
        others = [network for network in others if network not in ("pretrained", "chance")]
        found = {what: {n: self._difference(n, what) for n in others} for what in (HALF, OWN)[: 1 + own]}
        for what, of in found.items():
            if of:
                each = (f"{words(n)} {results.shown(d, '+')}" for n, d in of.items())
                lines.append(f"{what} top-1, points above: {'; '.join(each)}")
        if len(self.videos) < metrics.GROUPS:
            lines.append(f"{len(self.videos)} videos are too few to distinguish networks")
        meta = self.evaluator.saved.meta
        trained_on = "them" if self.shards.dataset in checkpoint.trained_splits(meta) else meta["dataset"]
        values = {n: self.places[n, f"{HALF} top-1"][1]["value"] for n in ("pretrained", "chance", *others)}
        return [*lines, verdict(values, found[HALF], found.get(OWN, {}).get("random"), trained_on)]

    def _difference(self, network: str, what: str) -> dict[str, float]:
        """How far the network lies above another network or a histogram, in points (see metrics.paired)."""
        other, own = (self.places[name, f"{what} top-1"][0] for name in (network, "pretrained"))
        found = metrics.paired(self.scores, self.scores, other, own)
        assert found is not None  # all are asked about the same clips
        return found


def words(network: str) -> str:
    """The name of a network or histogram for a sentence."""
    return {"random": "random weights"}.get(network, f"a {network}" if network.endswith("histogram") else network)


def _listed(networks: list[str], last: str = "and") -> str:
    """Names for a sentence: a, b and c."""
    *most, end = map(words, networks)
    return f"{', '.join(most)} {last} {end}" if most else end


def verdict(
    values: dict[str, float], half: dict[str, dict[str, float]], own: dict[str, float] | None, trained_on: str
) -> str:
    """What the numbers mean and what to do, in one sentence.

    values: per cent of the halves that find each other, by network; half: how far the network lies above each other one, with
    its interval; own: how far it lies above random weights for the clips of one video; trained_on: data set, or "them"
    """
    better = [name for name, d in half.items() if d["low"] > 0]
    worse = [name for name, d in half.items() if d["high"] < 0]
    equal = [name for name in half if name not in (*better, *worse)]
    told = [
        f"{how} {_listed(names)}"
        for how, names in (("better than", better), ("no better than", equal), ("worse than", worse))
        if names
    ]
    of = f"{values['pretrained']:.1f} % of the halves find the other one, {values['chance']:.1f} % by chance"
    first = f"your network tells your videos apart {', '.join(told)} ({of})" if told else of
    if own is not None:
        than = "better than" if own["low"] > 0 else "worse than" if own["high"] < 0 else "no better than"
        first += f", and the moments of one video {than} random weights"
    simple = [name for name in (*equal, *worse) if name.endswith("histogram")]
    other = [name for name in worse if name not in ("random", *simple)]
    if "random" in half and "random" not in better:
        easy = [name for name in ("random", *_OF_PICTURES) if values.get(name, 0.0) >= _EASY]
        if easy and "random" not in worse:
            tell = "tells" if len(easy) == 1 and easy != ["random"] else "tell"
            return (
                f"{first}: {_listed(easy)} already {tell} them apart, which says nothing about pretraining on {trained_on}; "
                "measure on videos that look more alike, or with labels"
            )
        did = "was worse than" if "random" in worse else "did not help beyond"
        return f"{first}: pretraining on {trained_on} {did} random weights; train longer, on more videos or with another method"
    if simple:
        does = "does better" if set(simple) & set(worse) else "does as well"
        return (
            f"{first}: pretraining on {trained_on} helped beyond random weights, and {_listed(simple, 'or')} {does}; "
            "use that, or train longer or with another method"
        )
    if other:
        return f"{first}: pretraining on {trained_on} helped, and {_listed(other)} is the better one to use"
    return f"{first}: pretraining on {trained_on} helped; use its features" if "random" in half else first


def apart(frames: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Which clips to take so that no two clips of a video share a frame, bool [clips]: the first of each video, and each that
    begins after the last taken one has ended. frames: int64 [clips, T], in the order of time for each video; owner: int64
    [clips]."""
    taken, ends, of = np.zeros(len(owner), bool), -1, -1
    for i, (first, last, video) in enumerate(zip(frames.min(1), frames.max(1), owner, strict=True)):
        if video != of or first > ends:
            taken[i], ends, of = True, last, video
    return taken


def answers(x: np.ndarray, owner: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield for HALF, NEXT and OWN (omitted if no video has three clips): its name, the output of `ranked` for each question,
    float64 [4, n], and the video of each, int64 [n]. x: float32 [clips, d], at least two clips of each video, adjacent and in
    the order of time; owner: int64 [clips], from 0."""
    halves = features.Features({("", ""): x}, owner).video_means(("", ""), 2).reshape(owner[-1] + 1, 2, -1)
    at = np.arange(len(halves))
    both = [
        ranked(halves[:, i], halves[:, 1 - i], at, lambda rows: np.ones((len(rows), len(at)), bool)) for i in (0, 1)
    ]
    yield HALF, np.mean(both, axis=0), at
    at = np.arange(len(x))
    following = at + np.where(np.append(owner[1:] != owner[:-1], True), -1, 1)

    def of_others(rows: np.ndarray) -> np.ndarray:
        return owner[rows, None] != owner

    def of_own(rows: np.ndarray) -> np.ndarray:
        return (owner[rows, None] == owner) & (np.abs(rows[:, None] - at) > 1)

    yield NEXT, ranked(x, x, following, of_others), owner
    values = ranked(x, x, following, of_own)
    if (asked := values[2] < 1).any():
        yield OWN, values[:, asked], owner[asked]


def ranked(
    queries: np.ndarray, gallery: np.ndarray, answer: np.ndarray, others: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """For each query: whether its answer is the most similar candidate, 1 / the rank of the answer among the candidates by
    cosine, and the expectation of both for a random order, float64 [4, queries].

    Ties count as the mean over all orders of the tied candidates. queries, gallery: float32 [q, d], [g, d]; answer: int64 [q],
    rows of the gallery; others: rows of queries int64 [k] -> bool [k, g], the candidates besides the answer. Cosines are computed
    in float64 and rounded to 2**-32, so that rounding errors break no ties.
    """
    out = np.empty((4, len(queries)))
    sums = np.append(0, np.cumsum(1 / np.arange(1, len(gallery) + 1)))  # cumulative sums of 1 / rank
    unit = features.normalised(gallery.astype(np.float64)).T
    for begin in range(0, len(queries), _CHUNK):
        rows = np.arange(begin, min(begin + _CHUNK, len(queries)))
        cosine = np.rint(features.normalised(queries[rows].astype(np.float64)) @ unit * 2**32)
        right = np.take_along_axis(cosine, answer[rows, None], 1)
        candidates = others(rows)
        np.put_along_axis(candidates, answer[rows, None], True, 1)
        above, tied, n = ((candidates & which).sum(1) for which in (cosine > right, cosine == right, True))
        out[:, rows] = np.where(above, 0, 1 / tied), (sums[above + tied] - sums[above]) / tied, 1 / n, sums[n] / n
    return out


def effective_rank(x: np.ndarray) -> float:
    """exp(-sum of p log p) of the singular values, divided by their sum, of x (float32 [n, d]) minus its mean row; 0 if all
    rows are equal [Roy and Vetterli, EUSIPCO 2007]."""
    centred = x - x.mean(0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    if values.sum() <= 1e-6 * np.abs(x).sum():
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
