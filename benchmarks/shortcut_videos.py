"""Videos whose pretext tasks can only be solved by a shortcut, for benchmarks/studies/shortcuts.yaml.

python benchmarks/shortcut_videos.py --videos $VSSL_DATA/grid/videos --out $VSSL_DATA/shortcuts

noise           each frame is different random noise, stored losslessly: only the pipeline itself can be learnt
noise-h264      the same, compressed: shows what the codec adds
static-h264     one frame of a real video throughout, compressed
drift           a random texture that moves at a random speed for each video, from 1/16 pixel to 4 pixels per frame: the visible
                speed says little about the pace
drift-short     the same, 40 frames long: clips of the wide paces continue from the first frame (allow_wrap), with a seam
recompressed    the real videos, strongly compressed: what is learnt from the codec does not transfer
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import click
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from labelgen import decode  # noqa: E402

# Pixels as studies/shortcuts.yaml stores them: resized cells would not be square, which reveals their rotation.
HEIGHT, WIDTH = 48, 60
FRAMES, SHORT = 80, 40  # long enough and too short for pace 4


def write(path: Path, frames: Iterable[np.ndarray], codec: str, **options: str) -> None:
    """Encode RGB uint8 frames [H, W, 3] at 25 frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = iter(frames)
    first = next(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.thread_count = 1
        for frame in itertools.chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def noise(rng: np.random.Generator) -> np.ndarray:
    """uint8 [FRAMES, HEIGHT, WIDTH, 3], coarse enough to survive JPEG: cells of 4 pixels, at a different offset in each frame.

    With a fixed offset the cells would have the same offsets in every crop, different vertically and horizontally, which
    reveals the rotation.
    """
    cells = rng.integers(0, 256, (FRAMES, HEIGHT // 4 + 1, WIDTH // 4 + 1, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    corners = rng.integers(0, 4, (FRAMES, 2))
    return np.stack([frame[y : y + HEIGHT, x : x + WIDTH] for frame, (y, x) in zip(cells, corners, strict=True)])


def drift(rng: np.random.Generator, frames: int) -> Iterator[np.ndarray]:
    """A moving texture, smooth over a few pixels and periodic."""
    side = 512
    cells = rng.integers(0, 256, (side, side, 3)).astype(np.float32)
    padded = np.pad(cells, ((16, 16), (16, 16), (0, 0)), mode="wrap")
    texture = cv2.GaussianBlur(padded, (0, 0), 3)[16:-16, 16:-16]
    texture = np.clip((texture - 127.5) * 8 + 127.5, 0, 255).astype(np.uint8)
    speed, angle = 2 ** rng.uniform(-4, 2), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for t in range(frames):
        at_x, at_y = (x + np.cos(angle) * speed * t) % side, (y + np.sin(angle) * speed * t) % side
        yield cv2.remap(
            texture, at_x.astype(np.float32), at_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )


@click.command()
@click.option(
    "--videos", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Real videos."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for each kind is written there.")
@click.option("--count", default=160, help="Videos of each kind except the last.")
def main(videos: Path, out: Path, count: int) -> None:
    real = sorted(path for path in videos.iterdir() if path.is_file())
    for path in real:  # all, so that the same videos are tested
        write(out / "recompressed" / f"{path.stem}.mp4", decode.frames(path), "libx264", crf="36", g="8")
    for i, path in enumerate(real[:count]):
        name, seeds = f"{i:04d}", [np.random.default_rng((kind, i)) for kind in range(3)]
        own = noise(seeds[0])
        write(out / "noise" / f"{name}.mkv", own, "ffv1")
        write(out / "noise-h264" / f"{name}.mp4", own, "libx264")
        still = next(decode.frames(path, HEIGHT, WIDTH))
        write(out / "static-h264" / f"{name}.mp4", [still] * FRAMES, "libx264")
        write(out / "drift" / f"{name}.mkv", drift(seeds[1], FRAMES), "ffv1")
        write(out / "drift-short" / f"{name}.mkv", drift(seeds[2], SHORT), "ffv1")
    click.echo(f"{len(real)} recompressed, {len(real[:count])} videos of each other kind -> {out}")


if __name__ == "__main__":
    main()
