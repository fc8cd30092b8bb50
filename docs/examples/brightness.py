"""Brightness of each frame of a clip, and still frames of each video."""

import numpy as np

from labelgen.labels.kind import Field, Kind


def of_clip(clip, config):
    return {"brightness/mean": clip.frames.mean((1, 2))}


def faults(arrays, config):
    yield "brightness/mean", bool((arrays["brightness/mean"] > 255).any())


def lines(arrays, config):
    yield f"brightness {arrays['brightness/mean'].mean():.1f}"


def of_video(n_frames, config, rng, damage):
    return {"still/frame": rng.integers(n_frames, size=config.rows)} if n_frames >= 20 else None


BRIGHTNESS = Kind(
    name="brightness",
    version=3,
    constants={"weights": "equal"},
    fields=(Field("brightness/mean", np.float32, ("clips", "clip_length", 3), "mean of red, green, blue per frame"),),
    of_clip=of_clip,
    faults=faults,
    lines=lines,
    counts=lambda arrays: {"clips_in_the_dark": int((arrays["brightness/mean"].mean((1, 2)) < 50).sum())},
)
STILL = Kind(
    name="still",
    version=1,
    fields=(Field("still/frame", np.int32, ("videos", "rows"), "frame that is shown", missing=-1),),
    of_video=of_video,
)
