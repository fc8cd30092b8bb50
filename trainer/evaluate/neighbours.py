"""Nearest neighbours by cosine similarity, and their votes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from labelgen.progress import ProgressBar
from trainer.evaluate.features import Vectors, normalised

_CHUNK = 512  # queries, and gallery items, compared at a time
_VOTERS = 256  # queries whose neighbours' vectors are in memory at a time
_PLACES = 2**30 - 1  # the last position in a gallery that a sort key holds


def nearest(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    device: torch.device,
    chunk: int = _CHUNK,
) -> np.ndarray:
    """The gallery items with the largest cosine to each query, best first; ties go to the item that comes first.

    A query never finds an item of its video (or group). Returns indices into the gallery, int64 [queries, k], with fewer
    columns if a query has fewer candidates. Cosines are computed in float64 and rounded to 2**-32, so that rounding errors
    break no ties. `chunk` bounds the memory.
    """
    items_of_video = np.bincount(
        gallery.video, minlength=max(queries.video.max(initial=0), gallery.video.max(initial=0)) + 1
    )
    k = min(k, len(gallery.video) - int(items_of_video[queries.video].max()))
    found = np.empty((len(queries.video), k), np.int64)
    with ProgressBar("nearest neighbours", "item", len(queries.video)) as bar:
        for start in range(0, len(queries.video), chunk):
            query, query_video = _chunk(queries, start, chunk, device)
            best = torch.empty(len(query), 0, dtype=torch.int64, device=device)
            for begin in range(0, len(gallery.video), chunk):
                item, item_video = _chunk(gallery, begin, chunk, device)
                keys = _sort_keys(query @ item.T, begin)
                keys[query_video[:, None] == item_video] = torch.iinfo(torch.int64).min
                best = torch.cat([best, keys], 1)
                best = best.topk(min(k, best.shape[1])).values
            found[start : start + chunk] = (-best & _PLACES).cpu().numpy()
            bar.step(len(query))
    return found


def _chunk(items: Vectors, begin: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    vectors, video = (torch.from_numpy(np.array(array[begin : begin + size])).to(device) for array in items)
    vectors = vectors.double()
    vectors /= vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return vectors, video


def _sort_keys(cosine: torch.Tensor, first: int) -> torch.Tensor:
    """float64 [q, g] -> int64 keys that sort by cosine, to 32 bits, then by position in the gallery, lowest first, because
    topk does not define the order of equal values."""
    position = first + torch.arange(cosine.shape[1], device=cosine.device)
    return (cosine * 2**32).round().long() * (_PLACES + 1) - position


def votes(
    queries: np.ndarray,
    gallery: np.ndarray,
    found: np.ndarray,
    classes: np.ndarray,
    ks: Sequence[int],
    temperature: float,
) -> np.ndarray:
    """Class with the largest sum of exp(cosine / temperature) among the k nearest, int64 [ks, queries]; ties go to the first.

    queries, gallery: float32 [n, d]; found: int64 [queries, most], rows of the gallery, best first; classes: int64 of each
    gallery row.
    """
    predicted = np.empty((len(ks), len(queries)), np.int64)
    for start in range(0, len(queries), _VOTERS):
        part = slice(start, start + _VOTERS)
        cosine = np.einsum("qd,qkd->qk", normalised(queries[part]), normalised(gallery[found[part]]), dtype=np.float64)
        weights, query = np.exp(cosine / temperature), np.arange(len(cosine))[:, None]
        for place, k in enumerate(ks):
            sums = np.zeros((len(cosine), classes.max() + 1))
            np.add.at(sums, (query, classes[found[part, :k]]), weights[:, :k])
            predicted[place, part] = sums.argmax(1)
    return predicted
