"""Small video files made of moving textures."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np


def texture(seed: int) -> np.ndarray:
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (16, 80, 3), np.uint8), (400, 96))


def write_images(
    folder: Path, n_frames: int, seed: int = 0, step: int = 2, name: str = "img_{:05d}.png", first: int = 1
) -> Path:
    """The frames of `write_video` as a folder of images; name: that of an image, with its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(n_frames):
        picture = np.roll(texture(seed), step * t, 1)[:, :128, ::-1]
        cv2.imwrite(str(folder / name.format(first + t)), picture)
    return folder


def write_video(
    path: Path,
    n_frames: int,
    seed: int = 0,
    step: int = 2,
    rate: int = 25,
    codec="mpeg4",
    sound: float = 0,
    muxer=None,
    **options,
) -> Path:
    """A texture of 128 x 96 pixels that moves by `step` pixels a frame, to the right where positive.

    sound: seconds of silence beside it; muxer: options of the container; options: those of the codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    moving = texture(seed)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options={"qscale": "2"} | options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        audio = container.add_stream("mp3", rate=16000) if sound else None
        for t in range(n_frames):
            picture = np.ascontiguousarray(np.roll(moving, step * t, 1)[:, :128])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if audio:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, int(16000 * sound / n_frames)), np.int16), "s16", "mono"
                )
                silence.sample_rate = 16000
                container.mux(audio.encode(silence))
        container.mux(stream.encode())
        if audio:
            container.mux(audio.encode())
    return path
