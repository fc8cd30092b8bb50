"""Linear probe: a logistic regression on frozen features."""

from __future__ import annotations

import os
import warnings

import numpy as np

from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, networks
from trainer.evaluate.folds import Plan, grouped_folds, groups_of, of_videos, overall, plan, seen

ITERATIONS = 2000  # of L-BFGS, at most
STRENGTHS = 10.0 ** np.arange(-1, 5)  # C, of features whose rows have about length 1


def linear(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
) -> dict:
    """Video accuracy of a multinomial logistic regression (scikit-learn, L2) on a checkpoint's frozen features, for every
    stage and pooling; written into the run's folder, too.

    A video is the mean of its 10 clips, L2-normalised. Features are standardised on the training part and divided by the
    root of their number, so that one set of C suits all stages; C is the one of STRENGTHS with the most videos right in a
    cross-validation of the training part that keeps source groups whole, the smallest of equals.
    Which videos are tested: see folds.plan. Raises what it and protocol.open_checkpoint raise.
    """
    from sklearn.exceptions import ConvergenceWarning

    saved = protocol.open_checkpoint(checkpoint)
    folds = plan(shards, split, saved)
    rows, unfinished = [], 0
    for network, backbone in networks(saved).items():
        extracted = folds.features(saved, network, backbone, compute)
        for stage, pooling in extracted[0].found.arrays:
            row = {"network": network, "stage": stage, "pooling": pooling, "level": "video", "metric": "accuracy"}
            items = [own.items((stage, pooling), "video") for own in extracted]
            with warnings.catch_warnings(record=True) as met:
                warnings.simplefilter("always", ConvergenceWarning)
                rows += [{**row, **score} for score in _scores(folds, items)]
            for warning in met:
                if warning.category is ConvergenceWarning:
                    unfinished += 1
                else:
                    warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    groups = groups_of(folds.source)
    alone = sum(len(np.unique(groups[train])) == 1 for _, train in folds.parts)
    notes = [f"in {alone} folds all training videos are one group: C was chosen by single videos"] if alone else []
    if unfinished:
        notes.append(
            f"{unfinished} fits, those that choose C included, ended unconverged after {ITERATIONS} iterations"
        )
    told = folds.describe(
        saved, backbone, views="10 clips of 16 frames, averaged", classifier="logistic regression, L2, standardised"
    )
    notes = [*folds.notes, *notes, *seen(saved, shards, folds.source, folds.tested)]
    result = {"protocol": told, "rows": rows, "notes": notes}
    protocol.write(result, saved.run, "linear")
    return result


def _scores(folds: Plan, items: list[tuple[np.ndarray, np.ndarray]]) -> list[dict]:
    """Accuracies on one kind of features, with their dimensions and the C that was chosen."""
    source, hits, chosen = folds.source, [], []
    groups, ids = groups_of(source), np.array(source.text("videos/id"))
    for test, train in folds.parts:
        x, videos = of_videos(items, train)
        order = np.argsort(ids[videos])  # so that the order of the shards has no effect
        x, videos = x[order], videos[order]
        predicted, strength = probe(x, source.targets[videos], groups[videos], of_videos(items, test)[0])
        hits.append(predicted == source.targets[test])
        chosen.append(strength)
    alone = [f"{strength:g}" for strength in chosen] if folds.splits else []
    together = f"{min(chosen):g}" if len(set(chosen)) == 1 else f"{min(chosen):g} to {max(chosen):g}"
    scores = folds.scores(hits, [test for test, _ in folds.parts])
    return [{**score, "dimensions": x.shape[1], "C": c} for score, c in zip(scores, [*alone, together], strict=True)]


def probe(x: np.ndarray, targets: np.ndarray, groups: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """Class predicted for each row of test (float32 [m, d]), int64 [m], and the C that was chosen on the training part
    (x float32 [n, d], targets int64 [n], groups [n])."""
    right = np.zeros(len(STRENGTHS), np.int64)
    if len(np.unique(groups)) == 1:
        groups = np.arange(len(targets))
    for held in grouped_folds(targets, groups):
        kept = np.setdiff1d(np.arange(len(targets)), held)
        predicted = predictions(x[kept], targets[kept], x[held], STRENGTHS)
        right += (predicted == targets[held]).sum(1)
    strength = STRENGTHS[right.argmax()]
    return predictions(x, targets, test, [strength])[0], float(strength)


def predictions(x: np.ndarray, targets: np.ndarray, test: np.ndarray, strengths) -> np.ndarray:
    """Class predicted for each row of test by a logistic regression with each C, int64 [strengths, m]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if (targets == targets[0]).all():
        return np.full((len(strengths), len(test)), targets[0])
    scaler = StandardScaler().fit(x.astype(np.float64))
    x, test = (scaler.transform(part.astype(np.float64)) / np.sqrt(x.shape[1]) for part in (x, test))
    if len(x) < x.shape[1]:  # the weights lie in the span of the rows of x: the same fit in fewer coordinates
        basis = np.linalg.svd(x, full_matrices=False)[2].T
        x, test = x @ basis, test @ basis
    models = [LogisticRegression(C=c, tol=1e-5, max_iter=ITERATIONS).fit(x, targets) for c in strengths]
    return np.stack([model.predict(test) for model in models])


def format_table(result: dict) -> str:
    """The result of `linear` for the screen."""
    lines = protocol.header(result, "linear probe")
    lines += protocol.table(overall(result), ("network", "stage", "pooling", "C"), ("metric",))
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
