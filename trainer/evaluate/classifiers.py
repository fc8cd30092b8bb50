"""Linear classifiers on frozen features, by scikit-learn: logistic regression and support vector machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from trainer.evaluate.folds import FOLDS, grouped_folds
from trainer.evaluate.progress import Progress

ITERATIONS = 2000  # of Newton's method, at most
STRENGTHS = 10.0 ** np.arange(-1, 5)  # C, of features whose rows have about length 1


PROBE_STEPS = FOLDS + 1  # that `probe` takes


def probe(
    x: np.ndarray, targets: np.ndarray, groups: np.ndarray, test: np.ndarray, step: Callable = lambda units=1: None
) -> tuple[np.ndarray, float]:
    """Class predicted for each row of test (float32 [m, d]), int64 [m], and the C that was chosen on the training part
    (x float32 [n, d], targets int64 [n], groups [n]). step: is told of the units of work that are done, PROBE_STEPS in all."""
    right = np.zeros(len(STRENGTHS), np.int64)
    if len(np.unique(groups)) == 1:
        groups = np.arange(len(targets))
    folds = grouped_folds(targets, groups)
    for held in folds:
        kept = np.setdiff1d(np.arange(len(targets)), held)
        predicted = predictions(x[kept], targets[kept], x[held], STRENGTHS)
        right += (predicted == targets[held]).sum(1)
        step()
    strength = STRENGTHS[right.argmax()]
    predicted = predictions(x, targets, test, [strength])[0]
    step(PROBE_STEPS - len(folds))
    return predicted, float(strength)


def predictions(x: np.ndarray, targets: np.ndarray, test: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """Class predicted for each row of test by a logistic regression with each C (rising ones: each fit starts from the one
    before), int64 [strengths, m]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if (targets == targets[0]).all():
        return np.full((len(strengths), len(test)), targets[0])
    scaler = StandardScaler().fit(x.astype(np.float64))
    x, test = (scaler.transform(part.astype(np.float64)) / np.sqrt(x.shape[1]) for part in (x, test))
    if len(x) < x.shape[1] and x.any():  # weights lie in the span of the rows of x: the same fit in fewer coordinates
        x, test = gram_coordinates(x, test)
    # a few steps, where L-BFGS needs hundreds for a weak penalty and still ends farther from the minimum
    model = LogisticRegression(solver="newton-cg", tol=1e-5, max_iter=ITERATIONS, warm_start=True)
    predicted = []
    for c in strengths:
        predicted.append(model.set_params(C=c).fit(x, targets).predict(test))
    return np.stack(predicted)


def gram_coordinates(x: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of x [n, d] and test [m, d] (float64) in orthogonal coordinates of the span of x, from its n x n inner products,
    which takes a fraction of the time of a singular value decomposition."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > 1e-12 * values[-1]
    lengths, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return vectors * lengths, test @ (x.T @ (vectors / lengths))


def leave_one_out(x: np.ndarray, targets: np.ndarray, what: str = "video") -> np.ndarray:
    """Class predicted for each row of x (float32 [n, d]) by a linear SVM trained on all other rows, int64 [n]. what: is
    classified, in words."""
    from sklearn.svm import LinearSVC

    # an SVM depends on inner products alone: n coordinates hold them all, and fewer are faster to train on
    u, s, _ = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    x = u * s
    predicted = np.empty(len(x), np.int64)
    with Progress(f"leave one out, {what}", len(x), "video") as step:
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            if len(np.unique(targets[others])) == 1:
                predicted[i] = targets[others][0]
            else:
                predicted[i] = LinearSVC(random_state=0).fit(x[others], targets[others]).predict(x[i : i + 1])[0]
            step()
    return predicted


def cross_validated(x: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Decision value of each row of x (float64 [n, d]) by an SVM trained on the other folds, float64 [n]; above 0: same."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    score, numbers = np.full(len(x), np.nan), np.unique(fold)
    with Progress("same or not", len(numbers), "fold") as step:
        for number in numbers:
            held = fold == number
            machine = make_pipeline(StandardScaler(), LinearSVC(random_state=0, max_iter=10_000))
            score[held] = machine.fit(x[~held], same[~held]).decision_function(x[held])
            step()
    if np.isnan(score).any():
        raise AssertionError(f"{np.isnan(score).sum()} of {len(score)} pairs were not scored")
    return score


def area_under_curve(score: np.ndarray, same: np.ndarray) -> float:
    """Probability that a same pair scores above a different one, ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(same, score))
