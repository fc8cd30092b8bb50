"""Random draws that depend only on their seed, and the choice of the labelled clips of a video."""

from __future__ import annotations

import hashlib

import numpy as np

from labelgen.labels.kind import Arrays

VERSION = 1  # counts up with every change that may give another draw or another clip


def generator(seed: int, purpose: str, video_id: str) -> np.random.Generator:
    """A generator that depends only on its arguments, never on worker, order or restart."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{video_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.frombuffer(digest, np.uint32)))


def clip_starts(
    n_frames: int, clips: int | None, length: int, rng: np.random.Generator, damage: np.ndarray | None = None
) -> np.ndarray:
    """First frames of the labelled clips of `length` frames, sorted int32 [n]: all clips without overlap (`clips`
    None), or `clips` different random starts. damage: see `sound_starts`."""
    fitting = sound_starts(n_frames, length - 1, damage)
    if clips is not None:
        return np.sort(rng.choice(fitting, min(clips, len(fitting)), replace=False)).astype(np.int32)
    starts, free = [], 0
    while (at := int(np.searchsorted(fitting, free))) < len(fitting):
        starts.append(int(fitting[at]))
        free = starts[-1] + length
    return np.array(starts, np.int32)


def sound_starts(n_frames: int, span: int, damage: np.ndarray | None = None) -> np.ndarray:
    """All frames of a video that are followed by `span` more, with no damaged frame or loss among them, int64 [n], sorted.

    damage: uint8 [n_frames], as in the data set frames/damage; None for a video without"""
    starts = np.arange(max(0, n_frames - span))
    return starts if damage is None else starts[~_broken(damage, starts, starts + span)]


def crossed(arrays: Arrays, video: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Whether a damaged frame or a loss is among the frames `first` to `last` of a video, bool [n].

    arrays: the data sets of a shard; video, first, last: int [n], frames counted from the video's first"""
    begin = arrays["videos/first_frame"][video]
    return _broken(arrays["frames/damage"], begin + first, begin + last)


def _broken(damage: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    if not damage.any():
        return np.zeros(len(first), bool)
    damaged, lost = (np.cumsum([0, *(damage & bit > 0)]) for bit in (1, 2))
    return (damaged[last + 1] > damaged[first]) | (lost[last + 1] > lost[first + 1])
