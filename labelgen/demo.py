"""The demo data set: real video files of six classes that differ only in motion.

A textured object on a textured background has six clocks, one per motion, each started at a random phase. In a video of
a class only the clock of that motion runs. So every frame has the same distribution in every class, and only motion
distinguishes the classes. Each motion has its period (`PERIODS`), so that the pace of playback can be recognized, too;
and no class is the mirror image of another one, because clocks run forwards or backwards at random.

The camera is still, or it pans, shakes, turns or zooms along a random path with the same distribution in every class. A moving
camera moves the whole picture: flow then says less about the class, while motion boundaries still surround the object.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from labelgen.errors import ConfigError
from labelgen.labels.sampling import generator
from labelgen.reading import read_text

# frames per turn of a motion's clock
PERIODS = {"bounce": 24, "orbit": 32, "pulse": 24, "rock": 22, "spin": 45, "swing": 26}
CLASSES = tuple(PERIODS)
FPS = 30
SIDE = 96  # pixels; the pictures are square
# largest movement of the picture by a camera: x, y (pixels), log scale, angle (radians); `shake` is drawn for each frame
CAMERAS = {
    "still": (0.0, 0.0, 0.0, 0.0),
    "pan": (9.0, 9.0, 0.0, 0.0),
    "shake": (0.25, 0.25, 0.0, 0.0),
    "turn": (0.0, 0.0, 0.0, np.radians(6)),
    "zoom": (0.0, 0.0, np.log(1.06), 0.0),
}
_MARGIN = 24  # pixels of background around the picture of a still camera
_VERSION = 2  # of the pictures: counts up with every change of what is drawn
_JITTER = 0.12  # of a period; below 1/7, or pace 3 of one video could look like pace 4 of another
_SPRITE = (
    20  # root-mean-square radius in pixels at which the object is drawn; it is shown larger, with a coarse texture
)
_BACKGROUND = 0.3  # share of its contrast that is kept, so that a small network finds the motion in few clips


def trajectory(motion: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """The object's pose in n frames while only the clock of `motion` runs.

    Returns float64 [n, 4]: x, y (pixels from the centre of the picture), log scale, angle (radians).
    """
    phase = np.repeat(rng.random((len(CLASSES), 1)), n, axis=1)
    speed = rng.choice([-1, 1]) / (PERIODS[motion] * rng.uniform(1 - _JITTER, 1 + _JITTER))
    phase[CLASSES.index(motion)] += speed * np.arange(n)
    bounce, orbit, pulse, rock, spin, swing = 2 * np.pi * phase
    x = rng.uniform(-7, 7) + 14 * np.cos(orbit) + 18 * np.sin(swing)
    y = rng.uniform(-5, 5) + 14 * np.sin(orbit) + 28 * (bounce / np.pi % 2 - 1) ** 2 - 14
    return np.stack([x, y, 0.35 * np.sin(pulse), spin + 0.55 * np.sin(rock)], axis=1)


def camera_path(camera: Sequence[str], n: int, rng: np.random.Generator) -> np.ndarray:
    """The movement of the picture by a camera in n frames, float64 [n, 4]: x, y (pixels), log scale, angle (radians).

    camera: names of CAMERAS, whose movements add up. Smooth movements are means of three sines of random phase, with
    periods of 20 to 80 frames, and values up to those of CAMERAS. `shake` is normal with those as standard deviations.
    """
    periods, phases = np.exp(rng.uniform(np.log(20), np.log(80), (3, 4))), rng.uniform(0, 2 * np.pi, (3, 4))
    smooth = np.sin(2 * np.pi * np.arange(n)[:, None, None] / periods + phases).mean(1)
    noise = rng.standard_normal((n, 4))
    return np.sum([np.array(CAMERAS[name]) * (noise if name == "shake" else smooth) for name in camera], axis=0)


def render(
    root: Path,
    train: int = 120,
    test: int = 20,
    seed: int = 0,
    camera: Sequence[str] = ("still",),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render `train` and `test` videos of each class as root/{train,test}/{class}/{000...}.mp4.

    A video has 64 to 96 frames of 96 x 96 pixels, 30 per second. The same arguments give the same bytes. The videos are
    rendered beside `root` and renamed together: if `root` exists, it is complete, and rendering it again returns at
    once. camera: names of CAMERAS, such as ("pan", "shake"). `progress(done, total)` is called after each video.

    Raises ConfigError if `camera` has an unknown name or combines "still" with another, or if `root` holds something
    else: other numbers of videos, another seed or camera, or files are missing.
    """
    camera = sorted(set(camera))
    if not camera or not set(camera) <= set(CAMERAS) or ("still" in camera and len(camera) > 1):
        movements = ", ".join(name for name in CAMERAS if name != "still")
        raise ConfigError(f"camera is {', '.join(camera) or 'empty'}, expected still, or one or more of {movements}")
    root = Path(root)
    names = [
        f"{split}/{motion}/{index:03}"
        for split, count in (("train", train), ("test", test))
        for motion in CLASSES
        for index in range(count)
    ]
    settings = json.dumps({"version": _VERSION, "train": train, "test": test, "seed": seed, "camera": camera})
    if root.exists() and any(root.iterdir()):
        _check(root, names, settings)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        for done, name in enumerate(names, start=1):
            path = folder / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            split, motion, _ = name.split("/")
            draws = (generator(seed, purpose, name) for purpose in ("demo", "demo camera"))
            _encode(path, _frames(split, motion, camera, *draws))
            if progress:
                progress(done, len(names))
        (folder / "demo.json").write_text(settings)
        os.replace(folder, root)


def _check(root: Path, names: list[str], settings: str) -> None:
    marker = root / "demo.json"
    found = read_text(marker) if marker.exists() else "no demo.json"
    missing = sum(not (root / f"{name}.mp4").exists() for name in names)
    if found != settings or missing:
        raise ConfigError(
            f"{root} holds {found} with {missing} of {len(names)} videos missing, expected {settings}: "
            "remove that folder or choose another root"
        )


def _frames(
    split: str, motion: str, camera: Sequence[str], rng: np.random.Generator, camera_rng: np.random.Generator
) -> np.ndarray:
    """The pictures of one video, RGB uint8 [n, SIDE, SIDE, 3]."""
    n = int(rng.integers(64, 97))
    poses = trajectory(motion, n, rng)
    views = camera_path(camera, n, camera_rng)
    size = rng.uniform(24, 28) / _SPRITE
    brightness = rng.uniform(0.95, 1.05)
    margin = 0 if "still" in camera else _MARGIN
    background = cv2.GaussianBlur(_texture(split, SIDE + 2 * margin, SIDE + 2 * margin, rng), (0, 0), 2)
    background += (1 - _BACKGROUND) * (background.mean((0, 1)) - background)
    sprite = _sprite(split, rng)
    video = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for picture, (x, y, log_scale, angle), (right, down, zoom, turn) in zip(video, poses, views, strict=True):
        view = _similarity((right, down), np.exp(zoom), turn)  # of the scene; 0, 0 is the centre of scene and picture
        scene = background if margin == 0 else _warped(background, view)
        pasted = _warped(sprite, view @ _similarity((x, y), size * np.exp(log_scale), angle))
        cv2.convertScaleAbs(scene * (1 - pasted[..., 3:]) + pasted[..., :3], picture, brightness)
    return video


def _similarity(shift: tuple[float, float], scale: float, angle: float) -> np.ndarray:
    """float64 [3, 3]: rotates (x, y, 1) by the angle, scales and shifts it."""
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]], [0, 0, 1]])


def _warped(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The square image, transformed by the matrix, in a picture of SIDE x SIDE; both have their origin in the centre."""
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    offset = shift + (SIDE - 1) / 2 - linear @ np.array([(len(image) - 1) / 2] * 2)
    return cv2.warpAffine(image, np.column_stack([linear, offset]), (SIDE, SIDE))


def _sprite(split: str, rng: np.random.Generator) -> np.ndarray:
    """A textured shape, float32 [side, side, 4]: R, G, B (0..255, times the coverage) and coverage (0..1)."""
    side = 4 * _SPRITE
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    turn = np.arctan2(y, x) / (2 * np.pi) % 1
    corners = rng.integers(3, 7)
    wedge = np.pi * (2 * (turn * corners % 1) - 1) / corners
    kind = rng.integers(4)
    if kind == 0:  # disc
        radius = np.ones_like(turn)
    elif kind == 1:  # polygon
        radius = 1 / np.cos(wedge)
    elif kind == 2:  # star
        radius = 1 + rng.uniform(0.6, 1.2) * np.abs(wedge) * corners / np.pi
    else:  # blob
        waves = np.arange(2, 6)[:, None, None]
        bumps = np.sin(2 * np.pi * (waves * turn + rng.random((4, 1, 1)))) / np.sqrt(waves)
        radius = 1 + 0.25 * bumps.sum(axis=0)
    radius *= _SPRITE / np.sqrt((radius**2).mean())
    coverage = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)[..., None]
    return np.concatenate([_texture(split, side, side, rng) * coverage, coverage], axis=2).astype(np.float32)


def _texture(split: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random pattern between a dark and a bright colour, float32 [height, width, 3], 0..255. Their luma is always the
    same, because pictures of very different contrast would hide the motion from a small network."""
    colors = rng.uniform(0, 255, (2, 3))
    colors += np.array([[70], [185]]) - colors @ np.array([[0.299], [0.587], [0.114]])
    dark, bright = np.clip(colors, 0, 255)
    patterns = _PATTERNS[split]
    pattern = patterns[rng.integers(len(patterns))](height, width, rng)
    pattern = np.clip(0.5 + 0.35 * (pattern - pattern.mean()) / pattern.std(), 0, 1)[..., None]
    return (dark + (bright - dark) * pattern).astype(np.float32)


def _clouds(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with the 1/f amplitudes of natural pictures."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    return np.fft.irfft2(spectrum * frequency ** -rng.uniform(1.0, 1.5), (height, width))


def _blobs(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), rng.uniform(2, 4))
    return np.tanh(2 * noise / noise.std())


def _wave(height: int, width: int, rng: np.random.Generator, angle: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    along = (x * np.cos(angle) + y * np.sin(angle)) / rng.uniform(9, 20)
    return np.tanh(2 * np.sin(2 * np.pi * (along + rng.random())))


def _stripes(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return _wave(height, width, rng, rng.uniform(0, np.pi))


def _checks(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    return _wave(height, width, rng, angle) * _wave(height, width, rng, angle + np.pi / 2)


def _grain(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of several scales on top of each other."""
    octaves = [rng.standard_normal((height // step + 2, width // step + 2)) for step in (3, 6, 12, 24)]
    weights = rng.uniform(0.3, 1, len(octaves))
    return sum(
        weight * cv2.resize(octave, (width, height), interpolation=cv2.INTER_CUBIC)
        for weight, octave in zip(weights, octaves, strict=True)
    )


def _cells(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Distance to the nearest of scattered points."""
    ground = (rng.random((height, width)) > rng.uniform(0.004, 0.012)).astype(np.uint8)
    return cv2.GaussianBlur(cv2.distanceTransform(ground, cv2.DIST_L2, 5), (0, 0), 1)


def _rings(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
    return np.tanh(2 * np.sin(2 * np.pi * (distance / rng.uniform(9, 20) + rng.random())))


def _weave(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Two gratings across each other, at any angle."""
    angle = rng.uniform(0, np.pi)
    return _wave(height, width, rng, angle) + _wave(height, width, rng, angle + rng.uniform(0.6, 1.2))


# no family of the training textures is among the test textures
_PATTERNS = {"train": (_clouds, _blobs, _stripes, _checks), "test": (_grain, _cells, _rings, _weave)}


def _encode(path: Path, video: np.ndarray) -> None:
    """Write RGB uint8 [n, height, width, 3] as H.264; the same pictures give the same bytes."""
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        options = {"crf": "10", "preset": "ultrafast", "threads": "1"}
        stream = container.add_stream("libx264", FPS, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
