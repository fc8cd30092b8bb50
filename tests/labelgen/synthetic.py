"""Small video files made of moving textures."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np


def write_video(path: Path, n_frames: int, seed: int = 0, step: int = 2, rate: int = 25) -> Path:
    """A texture of 128 x 96 pixels that moves by `step` pixels a frame, to the right where positive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = cv2.resize(np.random.default_rng(seed).integers(0, 256, (16, 80, 3), np.uint8), (400, 96))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(rate), options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for t in range(n_frames):
            picture = np.ascontiguousarray(np.roll(texture, step * t, 1)[:, :128])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
