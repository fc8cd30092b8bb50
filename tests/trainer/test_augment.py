import colorsys
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from tests.trainer.synthetic import GRID
from trainer import augment, data
from trainer.inputs import OURS
from trainer.methods.ascnet import ASCNet


def numbered(clips=3, frames=4, height=9, width=11):
    """Clips whose every value says where it stands."""
    return torch.arange(clips * frames * height * width * 3).reshape(clips, frames, height, width, 3)


def test_all_frames_of_a_clip_share_the_mirror():
    still = torch.randint(0, 256, (6, 1, 32, 32, 3), dtype=torch.uint8).expand(-1, 16, -1, -1, -1)
    views = [augment.draw(np.random.default_rng(i), GRID, 16, "none") for i in range(6)]
    assert len({(view["crop"], view["mirror"]) for view in views}) > 2 and "jitter" not in views[0]
    out = augment.augment(still, torch.utils.data.default_collate(views), OURS, 32)
    assert out.shape == (6, 3, 16, 32, 32) and out.dtype == torch.float32
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    for clip, view in enumerate(views):
        expected = still[clip, 0].flip(1) if view["mirror"] else still[clip, 0]
        assert torch.allclose(out[clip, :, 0].permute(1, 2, 0) * 0.225 + 0.45, expected / 255, atol=1e-6)


def test_jitter_is_drawn_per_frame_or_per_clip():
    frame = augment.draw(np.random.default_rng(0), GRID, 16, "frame")["jitter"]
    clip = augment.draw(np.random.default_rng(0), GRID, 16, "clip")["jitter"]
    assert frame.shape == clip.shape == (16, 4) and frame.dtype == np.float32
    assert len(np.unique(clip, axis=0)) == 1 and len(np.unique(frame, axis=0)) > 8
    many = np.concatenate([augment.draw(np.random.default_rng(i), GRID, 16, "frame")["jitter"] for i in range(200)])
    untouched = (many == (1, 1, 1, 0)).all(1)
    assert untouched.mean() == pytest.approx(0.2, abs=0.03)
    low, high = many[~untouched].min(0), many[~untouched].max(0)
    assert np.allclose(low, (0.2, 0.2, 0.2, -0.2), atol=0.01) and np.allclose(high, (1.8, 1.8, 1.8, 0.2), atol=0.01)


def test_crops_and_mirror_are_uniform():
    views = [augment.draw(np.random.default_rng(i), GRID, 16, "none") for i in range(1800)]
    counts = np.bincount([view["crop"] for view in views], minlength=len(GRID))
    assert (np.abs(counts - 200) < 60).all()
    assert np.mean([view["mirror"] for view in views]) == pytest.approx(0.5, abs=0.05)


def slow_jitter(frame, brightness, contrast, saturation, hue):
    """One frame, pixel by pixel, in Python's own colour system."""

    def luma(pixel):
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    frame = np.clip(frame * brightness, 0, 1)
    mean = np.mean([luma(pixel) for pixel in frame.reshape(-1, 3)])
    frame = np.clip(contrast * frame + (1 - contrast) * mean, 0, 1)
    out = np.empty_like(frame)
    for place in np.ndindex(frame.shape[:2]):
        pixel = np.clip(saturation * frame[place] + (1 - saturation) * luma(frame[place]), 0, 1)
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        out[place] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
    return out


def test_color_jitter_equals_slow_reference():
    rng = np.random.default_rng(0)
    clips = rng.random((2, 3, 5, 4, 3))
    clips[0, 0, 0] = 0.5  # grey: no hue
    clips[0, 0, 1] = 0
    factors = np.array([1, 1, 1, 0]) + rng.uniform(-1, 1, (2, 3, 4)) * (0.8, 0.8, 0.8, 0.2)
    fast = augment.color_jitter(torch.tensor(clips), torch.tensor(factors)).numpy()
    for clip, frame in np.ndindex(2, 3):
        assert np.allclose(fast[clip, frame], slow_jitter(clips[clip, frame], *factors[clip, frame]), atol=1e-6)


def test_color_jitter_hand_worked():
    red = torch.tensor([1.0, 0, 0]).expand(1, 1, 2, 2, 3)

    def jitter(*factors):
        return augment.color_jitter(red, torch.tensor(factors).expand(1, 1, 4))[0, 0, 0, 0].tolist()

    assert jitter(1.0, 1.0, 1.0, 0.0) == pytest.approx([1, 0, 0])
    assert jitter(1.0, 1.0, 1.0, 1 / 3) == pytest.approx([0, 1, 0], abs=1e-6)
    assert jitter(1.0, 1.0, 1.0, -1 / 6) == pytest.approx([1, 0, 1], abs=1e-6)
    assert jitter(0.5, 1.0, 1.0, 0.0) == pytest.approx([0.5, 0, 0])
    assert jitter(1.0, 1.0, 0.0, 0.0) == pytest.approx([0.299] * 3)
    assert jitter(1.0, 0.5, 1.0, 0.0) == pytest.approx([0.5 + 0.1495, 0.1495, 0.1495])


def test_centre_crop():
    clips = numbered(1, 1, 40, 48).to(torch.uint8)
    out = augment.centre(clips, 32, OURS)
    expected = (clips[0, 0, 4:36, 8:40].float() / 255 - 0.45) / 0.225
    assert torch.allclose(out[0, :, 0].permute(1, 2, 0), expected)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


def contrast(seed, frames=16, size=(128, 171), **named):
    return augment.draw(np.random.default_rng(seed), GRID, frames, "contrast", size, **named)


def test_contrast_draws_each_of_its_parts_as_often_as_it_says():
    views = [contrast(i) for i in range(2000)]
    boxes = np.array([view["box"] for view in views])
    assert boxes.dtype == np.float32 and (boxes == boxes.round()).all() and (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (128, 171)).all() and set(views[0]) == {"box", "mirror", "sigma", "jitter"}
    share, ratio = boxes[:, 2:].prod(1) / (128 * 171), boxes[:, 3] / boxes[:, 2]
    assert share.min() < 0.22 and share.max() > 0.95 and 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.35
    small = np.array([contrast(i, area=(0.2, 0.3))["box"] for i in range(2000)])  # all of these fit
    assert np.mean(small[:, 2:].prod(1) < 0.25 * 128 * 171) == pytest.approx(0.5, abs=0.03)
    assert np.mean(small[:, 3] > small[:, 2]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([view["mirror"] for view in views]) == pytest.approx(0.5, abs=0.03)
    sigma = np.array([view["sigma"] for view in views])
    assert np.mean(sigma == 0) == pytest.approx(0.5, abs=0.03) and 0.1 <= sigma[sigma > 0].min() < sigma.max() <= 2
    factors = np.array([view["jitter"] for view in views])
    assert (factors == factors[:, :1]).all() and np.mean(factors[:, 0, 2] == 0) == pytest.approx(0.2, abs=0.03)
    assert np.mean(factors[:, 0, 3] == 0) == pytest.approx(0.2, abs=0.03)
    weak = np.array([contrast(i, strength=0.5)["jitter"][0] for i in range(300)])
    assert 0.35 < np.abs(weak[:, 0] - 1).max() <= 0.4 and 0.08 < np.abs(weak[:, 3]).max() <= 0.1


@pytest.mark.parametrize(
    ("size", "area", "box"),
    [
        ((128, 171), (1, 1), (0, 0, 128, 171)),  # of an allowed ratio: all of it
        ((100, 400), (1, 1), (0, 133, 100, 133)),  # too wide: 4/3
        ((300, 60), (1, 1), (110, 0, 80, 60)),  # too high: 3/4
    ],
)
def test_a_box_that_never_fits_is_the_largest_one_in_the_middle(size, area, box):
    assert augment.random_box(np.random.default_rng(0), *size, area).tolist() == [*box]


def test_boxes_fill_the_frame_evenly():
    seen = np.zeros((20, 20))
    for seed in range(4000):
        y, x, h, w = augment.random_box(np.random.default_rng(seed), 20, 20, (0.0025, 0.0025)).astype(int)
        assert (h, w) == (1, 1)
        seen[y, x] += 1
    assert seen.min() > 0 and seen.max() < 30


def slow_place(frame, box, mirror, sigma, size):
    """One frame, box by box: OpenCV resizes and blurs it."""
    y, x, h, w = map(int, box)
    frame = frame[y : y + h, x : x + w]
    rows, columns = (slow_lines(length, size) for length in (h, w))
    frame = np.einsum("ij,jkc->ikc", rows, np.einsum("ij,kjc->kic", columns, frame))
    if mirror:
        frame = frame[:, ::-1]
    if sigma:
        kernel, whole = cv2.getGaussianKernel(2 * size + 1, sigma), np.ones_like(frame)
        blurred, weight = (
            cv2.sepFilter2D(picture, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT) for picture in (frame, whole)
        )
        frame = blurred / weight
    return frame / 255


def slow_lines(length, size):
    """What PyTorch's antialiased interpolation makes of each pixel of a line."""
    eye = torch.eye(length, dtype=torch.float64)[None, :, None]
    return torch.nn.functional.interpolate(eye, (1, size), mode="bilinear", antialias=True)[0, :, 0].T.numpy()


def test_the_box_equals_a_slow_reference():
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (7, 2, 40, 48, 3), dtype=np.uint8)
    box = np.array(
        [(0, 0, 40, 48), (3, 5, 20, 17), (30, 1, 9, 40), (8, 9, 32, 32), (0, 0, 1, 1), (2, 0, 37, 5), (1, 1, 12, 16)]
    )
    mirror, sigma = np.array([0, 1, 0, 1, 1, 0, 1]), np.array([0, 0.1, 2, 0.7, 1, 1.3, 0])
    for size in (32, 11):
        fast = augment.resampled(
            *map(torch.from_numpy, (clips, box.astype(np.float32), mirror, sigma.astype(np.float32))), size
        ).numpy()
        for clip, frame in np.ndindex(7, 2):
            slow = slow_place(clips[clip, frame].astype(float), box[clip], mirror[clip], sigma[clip], size)
            assert np.allclose(fast[clip, frame], slow, atol=1e-5)


def test_the_box_hand_worked():
    line = torch.tensor([0, 60, 120, 240], dtype=torch.uint8).expand(1, 1, 4, 4)[..., None].expand(-1, -1, -1, -1, 3)

    def shown(box, size, mirror=0, sigma=0.0):
        view = torch.tensor([box], dtype=torch.float32), torch.tensor([mirror]), torch.tensor([sigma])
        return (255 * augment.resampled(line, *view, size)[0, 0, 0, :, 1]).tolist()

    assert shown((0, 0, 4, 4), 4) == pytest.approx([0, 60, 120, 240])
    assert shown((0, 0, 4, 4), 4, mirror=1) == pytest.approx([240, 120, 60, 0])
    assert shown((1, 1, 2, 2), 4) == pytest.approx([60, 75, 105, 120])
    # two pixels to a place: weights 1 3 3 1, of which the first or last stands outside
    assert shown((0, 0, 4, 4), 2) == pytest.approx([(3 * 60 + 120) / 7, (60 + 3 * 120 + 3 * 240) / 7])
    side = np.exp(-1 / 2)
    assert shown((0, 2, 2, 2), 2, sigma=1.0) == pytest.approx(
        [(120 + side * 240) / (1 + side), (side * 120 + 240) / (1 + side)]
    )


def test_a_still_clip_stays_still_and_grey_is_grey():
    still = torch.randint(0, 256, (40, 1, 40, 48, 3), dtype=torch.uint8).expand(-1, 4, -1, -1, -1)
    views = [contrast(i, 4, (40, 48)) for i in range(40)]
    view = torch.utils.data.default_collate(views)
    out = augment.augment(still, view, OURS, 32)
    assert out.shape == (40, 3, 4, 32, 32) and out.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    grey = view["jitter"][:, 0, 2] == 0
    assert 3 < grey.sum() < 20
    assert all(torch.equal(one, other) for one, other in pairwise(out[grey].unbind(1)))
    assert not any(torch.equal(clip[0], clip[1]) for clip in out[~grey])


def test_contrast_without_changes_is_the_crop():
    clips = torch.randint(0, 256, (3, 2, 40, 48, 3), dtype=torch.uint8)
    unchanged = torch.tensor([1.0, 1, 1, 0]).expand(3, 2, 4)
    box = torch.tensor([(0, 0, 32, 32), (8, 16, 32, 32), (3, 9, 32, 32)], dtype=torch.float32)
    mirror = torch.tensor([0, 1, 1])
    own = {"box": box, "mirror": mirror, "sigma": torch.zeros(3), "jitter": unchanged}
    crops = torch.stack([clip[:, y : y + 32, x : x + 32] for clip, (y, x) in zip(clips, box[:, :2].int(), strict=True)])
    plain = augment.augment(crops, {"mirror": mirror, "jitter": unchanged}, OURS, 32)
    assert torch.allclose(augment.augment(clips, own, OURS, 32), plain, atol=1e-5)


def test_contrast_is_a_function_of_seed_epoch_and_sample(demo):
    def read(reader, video, labels, draw):
        return reader.arrays["videos/first_frame"][video] + np.arange(16)

    source, options = data.Shards(demo), ASCNet.option_values()
    samples = ASCNet.samples(source, options)[0]
    one, other = (data.TrainingClips(source, samples, ASCNet, options, 3, "contrast") for _ in range(2))
    batch, alone = one.batch([(0, 1), (2, 4)]), other.batch([(2, 4)])
    assert batch["clips"].shape == (2, 2, 16, 40, 48, 3) and torch.equal(batch["clips"][1], alone["clips"][0])
    assert {*alone["view"]} == {"box", "mirror", "sigma", "jitter"} and alone["view"]["sigma"].shape == (1, 2)
    assert all(torch.equal(values[1], alone["view"][name][0]) for name, values in batch["view"].items())
    assert (alone["view"]["box"][0, 0] != alone["view"]["box"][0, 1]).any()  # each clip of a sample has its own
    found = one.of_videos(batch, np.array([0, 1]), read)
    assert found["clips"].shape == (2, 1, 16, 40, 48, 3) and found["view"]["box"].shape == (2, 1, 4)
    narrow = data.TrainingClips(source, samples, ASCNet, options, 3, "contrast", crop_area=(0.9, 1.0))
    box = narrow.batch([(epoch, 1) for epoch in range(20)])["view"]["box"]
    assert (box[..., 2:].prod(-1) > 0.85 * 40 * 48).all()
