import colorsys

import numpy as np
import pytest
import torch

from tests.trainer.synthetic import GRID
from trainer import augment
from trainer.inputs import OURS


def numbered(clips=3, frames=4, height=9, width=11):
    """Clips whose every value says where it stands."""
    return torch.arange(clips * frames * height * width * 3).reshape(clips, frames, height, width, 3)


def test_all_frames_of_a_clip_share_the_mirror():
    still = torch.randint(0, 256, (6, 1, 32, 32, 3), dtype=torch.uint8).expand(-1, 16, -1, -1, -1)
    views = [augment.draw(np.random.default_rng(i), GRID, 16, "none") for i in range(6)]
    assert len({(view["crop"], view["mirror"]) for view in views}) > 2 and "jitter" not in views[0]
    out = augment.augment(still, torch.utils.data.default_collate(views), OURS)
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
