"""Attentive probe: a logistic regression on the cells of the last stage, averaged by the attention of a learnt query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from trainer.errors import ProtocolError
from trainer.evaluate.protocol import ProtocolOption
from trainer.evaluate.protocols import data, features, inputs, np, torch
from trainer.evaluate.protocols.linear import Linear

MOST_BYTES = 8 * 2**30  # limit for the cells of all videos, which are stored in the run
EPOCHS, LEAST_STEPS, BATCH = 30, 300, 64  # of a fit; BATCH in videos
RATE = 0.03  # learning rate of Adam, for cells whose channels have standard deviation 1


class Attentive(Linear):
    """Train a query that attends to cells of the last stage, and a logistic regression on their weighted mean."""

    title = "Attentive probe"
    poolings = ("cells",)
    question = "Can a classifier that attends to cells of the last stage distinguish the classes?"
    items = (
        "Each video: the cells x_i of the last stage, at all places and times, of its `--clips` spread clips (default 10), "
        "stored as float16. Folds, `--time`, `--opposites` and `--labels` are as for `linear`."
    )
    classifier = (
        "One cross-attention query of one head: p = softmax(W sum_i a_i x_i + b), a = softmax_i(u . x_i), the channels of x "
        "standardised on the training part and divided by the square root of their number d. With a query q, keys K x and "
        "values V x it would be a = softmax_i(q . K x_i) before W V; for one query and one head only the products matter: K^T "
        "q, a vector u, and W V, a matrix W. The loss is cross entropy + (|W|^2 + |u|^2) / (2 C n), minimised by Adam from u = "
        "0 (the mean over cells) and W = 0 (learning rate .03, cosine decay to 0; 30 passes, at least 300 steps, of 64 videos "
        "drawn from `--seed`); C as for `linear`."
    )
    left_out = f"As for `linear`. More than {MOST_BYTES >> 30} GiB of cells is an error; use fewer `--clips`."
    source = "Attentive probe of V-JEPA (Bardes et al., 2024), without its MLP and with one head; C by cross-validation is ours."
    options = (
        *Linear.options,
        ProtocolOption("clips", int, "Number of spread clips of each video.", default=10, least=1),
    )

    def choose(self, *args: Any, clips: int = 10, seed: int = 0, **options: Any) -> data.Shards:
        """clips: number of clips of each video; the other options are those of FeatureProtocol."""
        self.views, self.seed = clips, seed
        self.maps: list[np.ndarray] = []  # float16 [videos, cells, d] of each kind of features
        source = super().choose(*args, seed=seed, **options)
        self._check_size(source)
        return source

    def _check_size(self, source: data.Shards) -> None:
        if (selection := self.evaluator.selection) and selection.features:
            found: dict[tuple[str, str], Any] = {
                key: selection.features.arrays[key][:1] for key in self.evaluator.kinds(selection.features)
            }
        else:
            backbone = self.evaluator.networks()["pretrained"]
            one = data.VideoViews(source, source.videos[:1], partial(data.spread_frames, views=1), inputs.of(backbone))
            compute = features.Compute(1, 0, self.evaluator.compute.device)
            found = features.cells(backbone, next(iter(features.stage_outputs(backbone, one, compute)))[1])
        ((stage, _), of_clip), *_ = found.items()
        tested, learnt = (len(np.unique(np.concatenate(rows))) for rows in zip(*self.folds.parts, strict=True))
        videos = len(self.times) * tested + learnt
        of_one = videos * of_clip[0].nbytes  # with one clip each
        if (size := of_one * int(self.views)) > MOST_BYTES:
            fewer = f"--clips {MOST_BYTES // of_one}, or " if of_one <= MOST_BYTES else ""
            raise ProtocolError(
                f"the cells of {stage} take {size / 2**30:,.1f} GiB ({of_clip.shape[1]} cells of {of_clip.shape[2]} numbers, "
                f"{self.views} clips, {videos:,} videos), expected at most {MOST_BYTES >> 30} GiB",
                f"use {fewer}`vssl eval linear`",
            )

    @property
    def made(self) -> dict[str, Any]:
        return {"made": features.cells}

    def items_of(
        self, found: features.Features, key: tuple[str, str], level: str, videos: np.ndarray
    ) -> features.Vectors:
        """Where the cells of each video are, int64 [videos, 2]: the index into `maps`, and the row there."""
        cells = found.arrays[key]
        self.maps.append(cells.reshape(len(videos), -1, cells.shape[-1]))
        return features.Vectors(np.stack([np.full(len(videos), len(self.maps) - 1), np.arange(len(videos))], 1), videos)

    def accuracies(self, *items: Any) -> Iterator[dict]:
        yield from ({**row, "dimensions": self.maps[-1].shape[-1]} for row in super().accuracies(*items))
        self.maps.clear()

    def cells(self, places: np.ndarray) -> torch.Tensor:
        """The cells of some videos, float32 [n, cells, d], on the device; places: int64 [n, 2], see `items_of`."""
        found = np.stack([self.maps[of][row] for of, row in places])
        return torch.from_numpy(found).to(self.evaluator.device).float()

    def fit(
        self, x: np.ndarray, targets: np.ndarray, test: np.ndarray, strengths: Sequence[float], balanced: bool
    ) -> np.ndarray:
        return attend(self.cells, x, targets, test, strengths, balanced, self.seed)

    def conditions(self) -> dict[str, Any]:
        about = {"views": f"{self.views} clips of {self.clip}", "classifier": "attentive probe, one query"}
        return {**super().conditions(), **about}


def attend(
    cells: Callable[[np.ndarray], torch.Tensor],
    x: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    strengths: Sequence[float],
    balanced: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """The class predicted for each test video by the probe with each C, int64 [strengths, m]; all C are fitted in parallel.

    cells: places of videos (rows of x or test) -> their cells, float32 [n, cells, d]; targets: int64 [n], classes of x
    balanced: whether all classes have the same weight, however many videos they have
    """
    names, index, counts = np.unique(targets, return_inverse=True, return_counts=True)
    if len(names) == 1:
        return np.full((len(strengths), len(test)), names[0])
    n, mean, square = 0, torch.tensor(0.0), torch.tensor(0.0)
    for begin in range(0, len(x), BATCH):
        part = cells(x[begin : begin + BATCH]).flatten(0, 1).double()
        n, mean, square = n + len(part), mean + part.sum(0), square + part.square().sum(0)
    mean, deviation = mean / n, (square / n - (mean / n).square()).clamp_min(0).sqrt()
    scale = torch.where(deviation > 1e-6 * mean.abs(), deviation, 1)
    device, d = mean.device, len(mean)

    def logits(places: np.ndarray) -> torch.Tensor:
        """Logits for each C, [n, strengths, classes]."""
        z = (cells(places) - mean.float()) / scale.float()
        attention = torch.softmax(z @ query.T, 1)
        return torch.einsum("bsd,scd->bsc", attention.transpose(1, 2) @ z, weight) + bias

    query = torch.zeros(len(strengths), d, device=device, requires_grad=True)
    weight = torch.zeros(len(strengths), len(names), d, device=device, requires_grad=True)
    bias = torch.zeros(len(strengths), len(names), device=device, requires_grad=True)
    of_class = len(x) / (len(names) * counts) if balanced else np.ones(len(names))
    shares = torch.tensor(of_class[index], dtype=torch.float32, device=device)
    wanted = torch.from_numpy(index).to(device)
    penalty = d / (2 * len(x) * torch.tensor(strengths, device=device))  # the weights are for cells divided by sqrt(d)
    optimizer = torch.optim.Adam([query, weight, bias], RATE)
    batches = -(-len(x) // BATCH)
    steps = batches * max(EPOCHS, -(-LEAST_STEPS // batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps // batches):
        for rows in np.array_split(rng.permutation(len(x)), batches):
            of_each = wanted[rows, None].expand(-1, len(strengths))
            losses = torch.nn.functional.cross_entropy(logits(x[rows]).transpose(1, 2), of_each, reduction="none")
            norms = query.square().sum(1) + weight.square().sum((1, 2))
            loss = (shares[rows, None] * losses).mean(0) + penalty * norms
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found = [logits(test[begin : begin + BATCH]).argmax(2) for begin in range(0, len(test), BATCH)]
    return names[torch.cat(found).T.cpu().numpy()]
