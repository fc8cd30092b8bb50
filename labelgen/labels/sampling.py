"""Random draws that depend on nothing but their seed, and which clips of a video are labelled."""

from __future__ import annotations

import hashlib

import numpy as np

VERSION = 1  # counts up with every change that may give another draw or another clip


def generator(seed: int, purpose: str, video_id: str) -> np.random.Generator:
    """A generator that depends on its arguments alone, never on worker, order or restart."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{video_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.frombuffer(digest, np.uint32)))


def clip_starts(n_frames: int, clips: int | None, length: int, rng: np.random.Generator) -> np.ndarray:
    """First frames of the labelled clips of `length` frames, sorted int32 [n]: every one that does not overlap the one
    before (`clips` None), or `clips` different random starts."""
    if clips is None:
        return np.arange(0, n_frames - length + 1, length, dtype=np.int32)
    fitting = max(0, n_frames - length + 1)
    return np.sort(rng.choice(fitting, min(clips, fitting), replace=False)).astype(np.int32)
