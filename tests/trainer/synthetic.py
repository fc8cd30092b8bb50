"""Small shards made of moving textures, with hand-made labels."""

import io
from pathlib import Path

import cv2
import numpy as np

from labelgen import sampling, shards

CONFIG = {"height": 40, "width": 48, "crop": 32, "paces": ["1", "2", "3", "4"], "rows": 4, "order_clips": 3, "seed": 0}
GRID = np.array([(y, x) for y in (0, 4, 8) for x in (0, 8, 16)], np.int16)


def video_frames(seed: int, n: int) -> np.ndarray:
    """A random texture that moves to the right, RGB uint8 [n, 40, 48, 3]."""
    rng = np.random.default_rng(seed)
    texture = cv2.resize(rng.integers(0, 256, (6, 12, 3), dtype=np.uint8), (96, 40))
    speed = 1 + seed % 3
    return np.stack([np.roll(texture, t * speed, axis=1)[:, :48] for t in range(n)])


def cropped(frames: np.ndarray, corner) -> np.ndarray:
    """The crop of frames [..., 40, 48, 3] at a corner (y, x), [..., 32, 32, 3]."""
    y, x = corner
    return frames[..., y : y + 32, x : x + 32, :]


def write_shard(
    path: Path, lengths, split=None, labels=None, names=None, config=CONFIG, splits=("split1",), frames=video_frames
) -> None:
    """One shard with a video per length; split uint8 [videos, splits], default all train; frames: (seed, n) -> RGB."""
    rng = np.random.default_rng(len(lengths))
    paces = tuple(map(shards.Fraction, config["paces"]))
    names = names or [f"{path.stem}_{i}" for i in range(len(lengths))]
    buffer, offsets = io.BytesIO(), [0]
    clips, pace, order = [], [], []
    for video, n in enumerate(lengths):
        for frame in frames(int(path.stem) * 100 + video, n):
            jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            offsets.append(buffer.write(jpeg.tobytes()) + offsets[-1])
        clips += [(video, start) for start in sampling.clip_starts(n, None, rng)]
        rows = config["rows"]
        none = np.zeros(rows, np.int32), np.full(rows, 255, np.uint8), np.zeros(rows, np.uint8)
        pace.append(sampling.pace_rows(n, paces, rows, rng) or none)
        order.append(sampling.order_rows(n, 3, rows, rng) or (np.zeros((rows, 3)), np.full(rows, 255)))
    n = len(lengths)
    common = (16, 8) * 2 + (4, 8) * 2 + (8, 8) * 2
    sizes = {"motion": (*common, 15, 15), "appearance": (*common, 8)}
    shape = len(clips), len(GRID), 2
    statistics = {name: rng.integers(0, size, (*shape, len(size))) for name, size in sizes.items()}
    arrays = {
        "frames/offset": offsets,
        "videos/id": names,
        "videos/path": names,
        "videos/label": labels or ["swim", "walk"] * (n // 2) + ["swim"] * (n % 2),
        "videos/group": [""] * n,
        "videos/split": np.ones((n, len(splits))) if split is None else np.array(split).reshape(n, len(splits)),
        "videos/first_frame": np.cumsum([0, *lengths[:-1]]),
        "videos/n_frames": lengths,
        "videos/fps": [25.0] * n,
        "videos/width": [48] * n,
        "videos/height": [40] * n,
        "clips/video": [video for video, _ in clips],
        "clips/start": [start for _, start in clips],
        "statistics/motion": statistics["motion"],
        "statistics/appearance": statistics["appearance"],
        "statistics/valid": rng.random((*shape, 14)) < 0.8,
        "curriculum/score": np.zeros(len(clips)),
        "pace/start": [start for start, _, _ in pace],
        "pace/pace": [label for _, label, _ in pace],
        "pace/wrapped": [wrapped for _, _, wrapped in pace],
        "order/start": [start for start, _ in order],
        "order/permutation": [permutation for _, permutation in order],
        **{f"failures/{name}": [] for name in ("id", "path", "stage", "reason")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    shards.write(path, arrays, buffer, {"dataset": path.parent.name, **config}, GRID, splits)
