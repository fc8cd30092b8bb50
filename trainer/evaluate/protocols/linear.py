"""Linear probe: logistic regression on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.evaluate.protocol import FeatureProtocol
from trainer.evaluate.protocols import data, features, np, splits

ITERATIONS = 2000  # limit for Newton's method
STRENGTHS = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4)  # values of C, for features whose rows have a length of about 1


class Linear(FeatureProtocol):
    """Train logistic regression on frozen features."""

    title = "Linear probe"
    of_features = True
    question = "Can a linear classifier distinguish the classes from frozen features?"
    items = (
        "Each video, as the mean of its 10 spread clips. Without a test part, one group (such as an actor) is left out at a time "
        "if there are 2 to 30 groups, else there are 5 stratified folds that keep groups together. `--split all` uses each "
        "official split in turn: if they test every video once, the predictions are pooled, else the mean is given."
    )
    classifier = (
        "Multinomial logistic regression (scikit-learn, L2) on features standardised on the training part and divided by "
        "the square root of their number; C (.1 to 1e4) is chosen by 5-fold cross-validation of the training part that keeps "
        "source groups whole, the smallest one in a tie."
    )
    left_out = "Videos without a label. Test videos whose class has no training video count as wrong."
    source = "Ours."
    index = ("network", "stage", "pooling", "C")
    steps = 6  # 5 folds within the training part, and the final fit

    def choose(self, *args: Any, **options: Any) -> data.Shards:
        self.unfinished = 0  # fits that did not converge
        source = super().choose(*args, **options)
        self.groups, self.ids = source.groups, np.array(source.text("videos/id"))
        return source

    def rows(self) -> Iterator[dict]:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always", ConvergenceWarning)
            rows = [*super().rows()]
        for warning in met:
            if warning.category is ConvergenceWarning:
                self.unfinished += 1
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        yield from rows

    def accuracies(self, *items: Any) -> Iterator[dict]:
        self.chosen: list[
            tuple[str | None, float, float, int]
        ] = []  # for each fit: split, C, its accuracy, number of videos
        rows = [*super().accuracies(*items)]
        splits_of, strengths, values, sizes = zip(*self.chosen, strict=True)
        self.validated = float(np.average(values, weights=sizes))
        for row in rows:
            alone = [c for split, c in zip(splits_of, strengths, strict=True) if split == row.get("split", split)]
            least, most = (end(alone or strengths) for end in (min, max))
            yield {**row, "C": f"{least:g}" if least == most else f"{least:g} to {most:g}"}

    def predict(self, train: features.Vectors, test: features.Vectors, level: str) -> dict[str, np.ndarray]:
        order = np.argsort(self.ids[train.video])  # so that the order of the shards has no effect
        x, videos = train.x[order], train.video[order]
        targets, groups = self.shards.targets[videos], self.groups[videos]
        predicted, strength, validated = probe(x, targets, groups, test.x, self.bar.step, self.paired, self.fit)
        self.chosen.append((self.split, strength, validated, len(x)))
        return {"accuracy": predicted}

    def fit(
        self, x: np.ndarray, targets: np.ndarray, test: np.ndarray, strengths: Sequence[float], balanced: bool
    ) -> np.ndarray:
        """See `predictions`; a subclass may fit another classifier."""
        return predictions(x, targets, test, strengths, balanced)

    def remarks(self) -> list[str]:
        notes = []
        alone = sum(len(np.unique(self.groups[train])) == 1 for _, train in self.folds.parts)
        if alone:
            notes.append(
                f"in {alone} folds all training videos are in one group: C was chosen by cross-validation over single videos"
            )
        if self.unfinished:
            fits = f"{self.unfinished} fits, including those that choose C"
            notes.append(f"{fits}, did not converge in {ITERATIONS} iterations")
        return notes

    def conditions(self) -> dict[str, Any]:
        classifier = "logistic regression, L2, standardised"
        views = f"10 clips of {self.clip}, averaged"
        return {**super().conditions(), "views": views, "classifier": classifier}


def probe(
    x: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    test: np.ndarray,
    step: Callable = lambda units=1: None,
    balanced: bool = False,
    fit: Callable | None = None,
) -> tuple[np.ndarray, float, float]:
    """The class predicted for each row of test (float32 [m, d]), int64 [m]; the C chosen on the training part (x float32 [n, d],
    targets int64 [n], groups [n]); and its accuracy in that cross-validation, in per cent, 0 without folds. step: called with the
    number of finished units of work, FOLDS in total. balanced: whether all classes have the same weight, however many videos
    they have; fit: used instead of `predictions`."""
    fit = fit or predictions
    right = np.zeros(len(STRENGTHS), np.int64)
    if len(np.unique(groups)) == 1:
        groups = np.arange(len(targets))
    folds = splits.grouped_folds(targets, groups)
    for held_out in folds:
        kept = np.setdiff1d(np.arange(len(targets)), held_out)
        predicted = fit(x[kept], targets[kept], x[held_out], STRENGTHS, balanced)
        right += (predicted == targets[held_out]).sum(1)
        step()
    strength = STRENGTHS[right.argmax()]
    step(splits.FOLDS - len(folds))
    predicted = fit(x, targets, test, [strength], balanced)[0]
    return predicted, strength, 100 * float(right.max()) / len(targets)


def predictions(
    x: np.ndarray, targets: np.ndarray, test: np.ndarray, strengths: Sequence[float], balanced: bool = False
) -> np.ndarray:
    """The class predicted for each row of test by logistic regression with each C, int64 [strengths, m]. C must increase, because
    each fit starts from the one before; balanced: see `probe`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if (targets == targets[0]).all():
        return np.full((len(strengths), len(test)), targets[0])
    scaler = StandardScaler().fit(x.astype(np.float64))
    x, test = (scaler.transform(part.astype(np.float64)) / np.sqrt(x.shape[1]) for part in (x, test))
    if len(x) < x.shape[1] and x.any():  # weights lie in the span of the rows of x: the same fit in fewer coordinates
        x, test = gram_coordinates(x, test)
    # Newton needs few steps; L-BFGS needs hundreds for a weak penalty and still ends farther from the minimum
    weights = "balanced" if balanced else None
    model = LogisticRegression(solver="newton-cg", tol=1e-5, max_iter=ITERATIONS, warm_start=True, class_weight=weights)
    predicted = []
    for c in strengths:
        predicted.append(model.set_params(C=c).fit(x, targets).predict(test))
    return np.stack(predicted)


def gram_coordinates(x: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of x [n, d] and test [m, d] (float64) in orthogonal coordinates of the span of x, computed from its n x n inner
    products, which is much faster than a singular value decomposition."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > 1e-12 * values[-1]
    lengths, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return vectors * lengths, test @ (x.T @ (vectors / lengths))
