import math
from itertools import combinations

import cv2
import numpy as np
import pytest

from labelgen import decode, demo
from labelgen.errors import ConfigError
from labelgen.labels.sampling import generator


def poses(motion, videos, n=64, seed=0):
    """[videos, n, 4], independent of those of the other classes."""
    rng = np.random.default_rng([seed, demo.CLASSES.index(motion)])
    return np.stack([demo.trajectory(motion, n, rng) for _ in range(videos)])


def frames(split, motion, seed, camera=("still",)):
    """The pictures of one video, as `render` draws them if `seed` is its name."""
    return demo._frames(split, motion, camera, *(generator(0, purpose, seed) for purpose in ("demo", "demo camera")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "new" / "demo"
    demo.render(root, train=2, test=1)
    return root


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_class_has_its_videos_and_they_decode(root):
    videos = sorted(root.rglob("*.mp4"))
    names = [
        f"{split}/{motion}/{index}"
        for split, indices in (("test", ["000"]), ("train", ["000", "001"]))
        for motion in demo.CLASSES
        for index in indices
    ]
    assert [video.relative_to(root).with_suffix("").as_posix() for video in videos] == names
    for video, name in zip(videos, names, strict=True):
        drawn = frames(*name.split("/")[:2], name)
        stream = decode.frames(video)
        decoded = np.stack(list(stream))
        assert stream.fps == demo.FPS and decoded.shape == drawn.shape and 64 <= len(drawn) <= 96
        assert np.abs(decoded.mean(3) - drawn.mean(3)).mean() < 8  # what is left is colour at half resolution


def test_same_seed_same_bytes(root, tmp_path):
    done = []
    demo.render(tmp_path / "demo", train=2, test=1, progress=lambda *count: done.append(count))
    assert contents(tmp_path / "demo") == contents(root)
    assert done == [(video, 18) for video in range(1, 19)]
    demo.render(tmp_path / "other", train=1, test=0, seed=1)
    other = contents(tmp_path / "other")
    assert all(contents(root)[name] != data for name, data in other.items())
    assert len(set(other.values())) == len(other)


def test_complete_folder_is_left_alone(root):
    before = contents(root)
    demo.render(root, train=2, test=1, progress=pytest.fail)
    assert contents(root) == before


@pytest.mark.parametrize("change", [{"train": 3}, {"seed": 1}, {"camera": ("pan",)}])
def test_other_settings_are_never_mixed(root, change):
    with pytest.raises(ConfigError, match="remove that folder"):
        demo.render(root, **{"train": 2, "test": 1} | change)


def test_missing_video_is_reported(tmp_path):
    demo.render(tmp_path / "demo", train=1, test=0)
    (tmp_path / "demo/train/spin/000.mp4").unlink()
    with pytest.raises(ConfigError, match="1 of 6 videos missing"):
        demo.render(tmp_path / "demo", train=1, test=0)


def test_interrupted_rendering_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.render(tmp_path / "demo", train=1, test=0, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("camera", [("still",), ("pan", "shake", "turn", "zoom")], ids="+".join)
def test_classes_differ_by_motion_alone(camera):
    """From the same random numbers, all classes start with the very same picture and then part."""
    videos = [frames("train", motion, "5", camera) for motion in demo.CLASSES]
    for first, second in combinations(videos, 2):
        assert np.array_equal(first[0], second[0]) and first.shape == second.shape
        assert not np.array_equal(first[8], second[8])


@pytest.mark.parametrize("camera", [("pan",), ("shake",), ("turn",), ("zoom",)], ids="".join)
def test_a_camera_moves_the_background_as_its_path_says(camera):
    """Moved back along the path, each picture has the background of the first one."""
    video = frames("train", "spin", "7", camera)
    path = demo.camera_path(camera, len(video), generator(0, "demo camera", "7"))
    middle, differences = (demo.SIDE - 1) / 2, []

    def matrix(x, y, log_scale, angle):  # what is where in the world -> where it is in the picture
        turn = np.exp(log_scale + 1j * angle)
        to_picture = np.array([[turn.real, -turn.imag, x], [turn.imag, turn.real, y], [0, 0, 1]])
        return np.array([[1, 0, middle], [0, 1, middle], [0, 0, 1]]) @ to_picture

    for shown in (20, 45, 63):
        back = matrix(*path[0]) @ np.linalg.inv(matrix(*path[shown]))
        restored = cv2.warpAffine(video[shown], back[:2], (demo.SIDE, demo.SIDE))
        near, far = slice(14, 24), slice(-24, -14)
        corners = [(near, near), (near, far), (far, near), (far, far)]  # the object covers one of them at most
        moved, unmoved = (
            sum(sorted(np.abs(picture[corner].astype(float) - video[0][corner]).mean() for corner in corners)[:3])
            for picture in (restored, video[shown])
        )
        differences.append((moved, unmoved))
    moved, unmoved = np.max(differences, axis=0)
    assert moved < 3 and moved < unmoved / 2


def test_camera_path_by_hand():
    """Three sines of the same draws; the reach is that of the table; what does not move is 0."""
    n, rng = 50, np.random.default_rng(3)
    periods, phases = 20 * 4 ** rng.random((3, 4)), 2 * np.pi * rng.random((3, 4))
    path = demo.camera_path(["pan", "turn"], n, np.random.default_rng(3))
    for frame, column in ((0, 0), (31, 1), (49, 3)):
        sines = [math.sin(2 * math.pi * frame / periods[i, column] + phases[i, column]) for i in range(3)]
        assert path[frame, column] == pytest.approx((9, 9, 0, math.radians(6))[column] * sum(sines) / 3)
    assert not path[:, 2].any()
    shake = demo.camera_path(["shake"], 5000, rng)
    assert shake[:, :2].std() == pytest.approx(0.25, rel=0.05) and not shake[:, 2:].any()


@pytest.mark.parametrize("camera", [("still", "pan"), ("tilt",), ()])
def test_unknown_cameras_are_refused(tmp_path, camera):
    with pytest.raises(ConfigError, match="expected still, or one or more of pan, shake, turn, zoom"):
        demo.render(tmp_path / "demo", camera=camera)


@pytest.mark.parametrize("frame", [0, 11, 63])
def test_single_frame_does_not_tell_the_class(frame):
    """Position, size and angle have the same distribution in any frame of any class."""
    drawn = {motion: poses(motion, 500)[:, frame] for motion in demo.CLASSES}
    for pose in drawn.values():
        pose[:, 3] %= 2 * np.pi
    for first, second in combinations(drawn.values(), 2):
        values = np.sort(np.concatenate([first, second]), axis=0)
        below = [(pose[:, None] <= values).mean(axis=0) for pose in (first, second)]
        assert np.abs(below[0] - below[1]).max() < 0.16  # Kolmogorov-Smirnov, 500 and 500 values: p = 5e-6


@pytest.mark.parametrize("motion", demo.CLASSES)
def test_motion_shows_in_every_clip_and_stays_in_the_picture(motion):
    x, y, log_scale, angle = np.moveaxis(poses(motion, 100), 2, 0)
    assert max(np.abs(x).max(), np.abs(y).max()) < demo.SIDE / 2 - 8  # most of the object stays in the picture
    edge = 16 * np.exp(log_scale) * np.exp(1j * angle)  # the path of a point on the outline, in pixels
    path = x + 1j * y + edge
    clips = np.lib.stride_tricks.sliding_window_view(path, 16, axis=1)
    assert np.abs(clips - clips[..., :1]).max(axis=2).min() > 4
    assert np.abs(np.diff(path)).max() < 6


@pytest.mark.parametrize("motion", demo.CLASSES)
def test_time_scale_is_the_class_own(motion):
    """The strongest frequency is one per period, within a jitter that keeps pace 3 and pace 4 apart."""
    x, y, log_scale, angle = np.moveaxis(poses(motion, 20, n=2048), 2, 0)
    path = x + 1j * y + 20 * log_scale + 20 * np.exp(1j * angle)
    spectrum = np.abs(np.fft.fft(path - path.mean(axis=1, keepdims=True)))
    periods = 1 / np.abs(np.fft.fftfreq(2048)[spectrum.argmax(axis=1)])
    assert np.abs(periods / demo.PERIODS[motion] - 1).max() < demo._JITTER + 0.02
    assert 3 * (1 + demo._JITTER) < 4 * (1 - demo._JITTER)


def test_turning_objects_turn_both_ways():
    """So a mirrored clip stays in its class."""
    orbit = poses("orbit", 40)[..., :2]
    centre = (orbit.max(axis=1, keepdims=True) + orbit.min(axis=1, keepdims=True)) / 2
    x, y = np.moveaxis(orbit - centre, 2, 0)
    for angle in (poses("spin", 40)[..., 3], np.unwrap(np.arctan2(y, x))):
        assert set(np.sign(angle[:, -1] - angle[:, 0])) == {-1, 1}


def test_objects_fall_downwards():
    y = poses("bounce", 20)[..., 1]
    acceleration = np.diff(y, 2, axis=1)
    assert np.median(acceleration) == pytest.approx(8 * 24 / 24**2, rel=0.3)
    assert (acceleration > 0).mean() > 0.85


def test_train_and_test_share_no_texture():
    assert not set(demo._PATTERNS["train"]) & set(demo._PATTERNS["test"])
    train, test = (demo._texture(split, 96, 128, np.random.default_rng(3)) for split in ("train", "test"))
    assert abs(np.corrcoef(train[..., 0].ravel(), test[..., 0].ravel())[0, 1]) < 0.2
