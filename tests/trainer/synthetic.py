"""Small shards made of moving textures, with hand-made labels."""

import io
from pathlib import Path

import cv2
import numpy as np

from labelgen import shards
from labelgen.config import Config
from labelgen.labels import kinds
from labelgen.labels.sampling import clip_starts
from labelgen.shards.schema import sizes

CONFIG = {
    **{"height": 40, "width": 48, "crop": 32, "clip_length": 16},
    **{"paces": ["1", "2", "3", "4"], "rows": 4, "order_clips": 3, "clips": None, "seed": 0},
    **{"allow_wrap": False, "flow": {"backend": "tvl1"}},
}
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


def extent(reader, video: int) -> tuple[int, int]:
    """The first frame of a video in its shard, and how many it has."""
    return tuple(int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))


def write_shard(
    path: Path,
    lengths,
    split=None,
    labels=None,
    names=None,
    config=CONFIG,
    splits=("split1",),
    frames=video_frames,
    grid=GRID,
    groups=None,
) -> None:
    """One shard with a video per length; split uint8 [videos, splits], default all train; frames: (seed, n) -> RGB."""
    rng = np.random.default_rng(len(lengths))
    names = names or [f"{path.stem}_{i}" for i in range(len(lengths))]
    numbers = {name: config[name] for name in ("height", "width", "crop", "clip_length", "rows", "order_clips")}
    wraps = {name: config.get(name, False) for name in ("allow_wrap", "wrap_any")}
    settings = Config(**numbers, paces=tuple(config["paces"]), **wraps)
    buffer, offsets = io.BytesIO(), [0]
    clips, drawn = [], []
    for video, n in enumerate(lengths):
        for frame in frames(int(path.stem) * 100 + video, n):
            jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            offsets.append(buffer.write(jpeg.tobytes()) + offsets[-1])
        clips += [(video, start) for start in clip_starts(n, config["clips"], config["clip_length"], rng)]
        drawn.append({})
        for kind in kinds():
            if kind.of_video is not None:
                drawn[-1] |= kind.of_video(n, settings, rng) or {}
    n = len(lengths)
    arrays = {
        "frames/offset": offsets,
        "frames/time": np.concatenate([np.arange(n) / 25 for n in lengths]),
        "frames/damage": np.zeros(sum(lengths)),
        "videos/id": names,
        "videos/path": names,
        "videos/label": labels or ["swim", "walk"] * (n // 2) + ["swim"] * (n % 2),
        "videos/group": groups or [""] * n,
        "videos/split": np.ones((n, len(splits))) if split is None else np.array(split).reshape(n, len(splits)),
        "videos/first_frame": np.cumsum([0, *lengths[:-1]]),
        "videos/n_frames": lengths,
        "videos/fps": [25.0] * n,
        "videos/width": [48] * n,
        "videos/height": [40] * n,
        "clips/video": [video for video, _ in clips],
        "clips/start": [start for _, start in clips],
        **{f"failures/{name}": [] for name in ("id", "path", "stage", "reason")},
    }
    length = sizes(arrays, config, len(grid), len(splits))
    for kind in kinds():
        for field in kind.fields:
            shape = field.shape(length)
            if kind.of_video is not None:
                arrays[field.name] = np.stack(
                    [np.broadcast_to(rows.get(field.name, field.missing), shape[1:]) for rows in drawn]
                )
            else:
                arrays[field.name] = rng.integers(0, field.limit(config), shape) if field.limit else np.ones(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    shards.write(path, arrays, buffer, {"dataset": path.parent.name, **config}, grid, splits)
