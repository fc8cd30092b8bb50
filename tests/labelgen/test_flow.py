"""TV-L1 against a plain NumPy version of itself, made-up and measured true flows, and the door of `flow`."""

import doctest
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from benchmarks.flow import PAIRS, end_point_error, read_pair, shrink_pair
from labelgen import flow as flow_package
from labelgen.errors import ConfigError
from labelgen.flow import BACKENDS, flow, opencv, tv_l1, tvl1
from labelgen.flow.opencv import opencv_tvl1
from labelgen.flow.texture import texture as texture_of
from labelgen.labels import boundaries
from tests.command import ROOT


def test_the_examples_run():
    for module in (flow_package, tv_l1, opencv, boundaries):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed, module.__name__


MIDDLEBURY = ROOT.parent / "shared/data/flow"


def texture(height, width, seed=0):
    """Blurred noise, float32 0..255."""
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return (blurred - blurred.min()) / np.ptp(blurred) * 255


def shifted(height, width, dx, dy):
    """Two uint8 windows into one texture: what is at (y, x) in the first is at (y + dy, x + dx) in the second."""
    margin = max(abs(dx), abs(dy))
    whole = texture(height + 2 * margin, width + 2 * margin).astype(np.uint8)
    y, x = margin - dy, margin - dx
    return whole[margin:, margin:][:height, :width], whole[y:, x:][:height, :width]


def sinusoid(height, width):
    """A pair of float32 images and its flow, up to one pixel, one period across the image."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u = np.sin(2 * np.pi * y / height) * np.cos(2 * np.pi * x / width)
    v = 0.6 * np.cos(2 * np.pi * x / width)
    whole = texture(height + 20, width + 20)
    first = cv2.remap(whole, x + 10 + u, y + 10 + v, cv2.INTER_CUBIC)
    return first, whole[10 : 10 + height, 10 : 10 + width], np.stack([u, v], -1)


# --- the algorithm, plainly


def resampling(size, to_size, weight):
    """Matrix [to_size, size]: pixel i of the target weighs source pixel k by weight(k - centre of i), in all 1."""
    matrix = np.zeros((to_size, size))
    for i in range(to_size):
        centre = (i + 0.5) * size / to_size - 0.5
        taps = np.floor(centre) + np.arange(-1, 3)
        weights = weight(taps - centre)
        np.add.at(matrix[i], np.clip(taps, 0, size - 1).astype(int), weights / weights.sum())
    return matrix


def doubling(size):
    """Matrix [2 size, size]: every pixel, and after it the bicubic value half a pixel further."""
    matrix = np.zeros((2 * size, size))
    for i in range(size):
        matrix[2 * i, i] = 1
        np.add.at(matrix[2 * i + 1], np.clip(np.arange(i - 1, i + 3), 0, size - 1), np.array([-1, 9, 9, -1]) / 16)
    return matrix


def derivative(image, axis):
    padded = np.pad(image, 2, mode="edge")
    return sum(
        factor / 12 * np.roll(padded, -offset, axis)[2:-2, 2:-2]
        for offset, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1))
    )


def median(image):
    height, width = image.shape
    padded = np.pad(image, 2, mode="edge")
    return np.median([padded[y : y + height, x : x + width] for y in (0, 2, 4) for x in (0, 2, 4)], axis=0)


def sample(image, y, x):
    """Bilinear, inside the image."""
    y0, x0 = np.minimum(y.astype(int), image.shape[0] - 2), np.minimum(x.astype(int), image.shape[1] - 2)
    y, x = y - y0, x - x0
    above, below = (image[row, x0] * (1 - x) + image[row, x0 + 1] * x for row in (y0, y0 + 1))
    return above * (1 - y) + below * y


def plain_level(first, second, flow, attachment, tightness, step, warps, iterations):
    height, width = first.shape
    y, x = np.mgrid[:height, :width]
    doubled = doubling(height) @ second @ doubling(width).T
    grad = np.stack([derivative(first, 1), derivative(first, 0)])
    p = np.zeros((2, 2, height, width))  # [component, axis]
    for _ in range(warps):
        at_x, at_y = x + flow[0], y + flow[1]
        inside = (at_x >= 0) & (at_y >= 0) & (at_x <= width - 1) & (at_y <= height - 1)
        warped = sample(doubled, 2 * np.clip(at_y, 0, height - 1), 2 * np.clip(at_x, 0, width - 1))
        rest = warped - first - (grad * flow).sum(0)
        square = np.maximum((grad**2).sum(0), 1e-9)
        for _ in range(iterations):
            move = np.clip(-(rest + (grad * flow).sum(0)) / square, -attachment * tightness, attachment * tightness)
            divergence = np.diff(p[:, 0], axis=2, prepend=0) + np.diff(p[:, 1], axis=1, prepend=0)
            flow = flow + inside * move * grad + tightness * divergence
            p[:, 0] += step / tightness * np.diff(flow, axis=2, append=flow[:, :, -1:])
            p[:, 1] += step / tightness * np.diff(flow, axis=1, append=flow[:, -1:])
            p /= np.maximum(1, np.sqrt((p**2).sum((0, 1))))
        flow = np.stack([median(component) for component in flow])
    return flow


def plain_texture(image, share, theta, steps):
    u, p = image.astype(float), np.zeros((2, *image.shape))
    for _ in range(steps):
        p[0] += 0.25 / theta * np.diff(u, axis=1, append=u[:, -1:])
        p[1] += 0.25 / theta * np.diff(u, axis=0, append=u[-1:])
        p /= np.maximum(1, np.sqrt((p**2).sum(0)))
        u = image + theta * (np.diff(p[0], axis=1, prepend=0) + np.diff(p[1], axis=0, prepend=0))
    return image - share * u


def plain_tvl1(first, second, scale=0.8, structure=0.3, flatness=16, structure_steps=20, **parameters):
    (height, width), sigma = first.shape, 0.6 * np.sqrt(scale**-2 - 1)
    levels = [tuple(plain_texture(image, structure, flatness, structure_steps) for image in (first, second))]
    while min(levels[-1][0].shape) * scale >= 16:
        size = [round(side * scale ** len(levels)) for side in (height, width)]
        down, across = (
            resampling(side, to, lambda d: np.exp(-0.5 * (d / sigma) ** 2))
            for side, to in zip(levels[-1][0].shape, size, strict=True)
        )
        levels.append(tuple(down @ image @ across.T for image in levels[-1]))
    flow = np.zeros((2, *levels[-1][0].shape))
    for images in reversed(levels):
        down, across = (
            resampling(side, to, lambda d: np.maximum(0, 1 - abs(d)))
            for side, to in zip(flow.shape[1:], images[0].shape, strict=True)
        )
        growth = [len(across) / flow.shape[2], len(down) / flow.shape[1]]
        flow = np.stack([down @ component @ across.T * g for component, g in zip(flow, growth, strict=True)])
        flow = plain_level(*images, flow, **parameters)
    return flow.transpose(1, 2, 0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 53), (33, 90)])
def test_kernels_compute_what_the_plain_version_computes(height, width):
    first, second = shifted(height, width, 2, -1)
    parameters = dict(attachment=0.2, tightness=0.25, step=0.25, scale=0.75, warps=3, iterations=7)
    np.testing.assert_allclose(
        tvl1(first, second, **parameters), plain_tvl1(first, second, **parameters), rtol=0, atol=2e-3
    )


def test_bands_of_rows_do_not_show():
    """An image of several bands: the reference has none."""
    first, second = shifted(150, 200, 1, 1)
    parameters = dict(attachment=0.3, tightness=0.2, step=0.25, scale=0.1, warps=2, iterations=5)
    np.testing.assert_allclose(
        tvl1(first, second, **parameters), plain_tvl1(first, second, **parameters), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize(("height", "width"), [(1, 40), (33, 1), (40, 53), (150, 200)])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_texture_is_that_of_the_plain_version(height, width, steps):
    """Also of images of several bands, which shows if one is ahead of another."""
    image = texture(height, width)
    found = texture_of(image, 0.3, 16.0, steps)
    np.testing.assert_allclose(found, plain_texture(image, 0.3, 16.0, steps), rtol=0, atol=1e-3)
    assert found.dtype == np.float32


def test_textures_worked_by_hand():
    """An edge of 20 and one of 100, theta 10. The first step makes the dual variable .25 / 10 of the edge, 1 at most; it moves
    both sides by theta times as much: 0 and 20 become 5 and 15, then 7.5 and 12.5; 0 and 100 become 10 and 90, and stay."""
    for image, steps, u in (
        ([0, 20], 1, [5, 15]),
        ([0, 20], 2, [7.5, 12.5]),
        ([0, 100], 1, [10, 90]),
        ([0, 100], 9, [10, 90]),
        ([7, 7], 3, [7, 7]),
    ):
        for across in (np.float32([image]), np.float32([image]).T):
            wanted = across - 0.5 * np.float32(u).reshape(across.shape)
            np.testing.assert_allclose(texture_of(across, 0.5, 10.0, steps), wanted, atol=1e-5)


def test_light_changes_texture_less_than_the_image():
    """A brighter image has a brighter texture, by what is left of the structure; a share of all takes the light away."""
    image = texture(40, 50)
    for share in (0.3, 1.0):
        changed = texture_of(image + 15, share, 16.0, 20) - texture_of(image, share, 16.0, 20)
        np.testing.assert_allclose(changed, 15 * (1 - share), atol=1e-3)


def test_images_prepared_once_give_the_flow_of_both():
    first, second = shifted(64, 86, 2, 1)
    for name in BACKENDS:
        backend = flow_package.find(name)
        prepared = backend.of_prepared(backend.prepare(first), backend.prepare(second))
        np.testing.assert_array_equal(prepared, backend.function(first, second))
    with pytest.raises(
        ValueError, match=r"images differ in shape: first \(64, 86\), second \(64, 85\); expected the same"
    ):
        tv_l1.BACKEND.of_prepared(tv_l1.BACKEND.prepare(first), tv_l1.BACKEND.prepare(second[:, :-1]))


# --- known flows


OF_IMAGES = {"structure": 0.0, "attachment": 0.25}  # of the images as they are, which light does not change here


def test_sinusoidal_flow_is_met():
    first, second, true = sinusoid(128, 171)
    for parameters, most in (OF_IMAGES, 0.05), ({}, 0.052):
        assert np.linalg.norm(tvl1(first, second, **parameters) - true, axis=-1).mean() < most


def test_shift_by_20_pixels_is_found():
    for parameters, most in (OF_IMAGES, 0.01), ({}, 0.02):
        flow = tvl1(*shifted(480, 640, 20, 0), **parameters)
        np.testing.assert_allclose(flow[30:-30, 30:-30], np.broadcast_to([20, 0], (420, 580, 2)), atol=most)


@pytest.mark.parametrize("shape", [(16, 16), (17, 33), (16, 400), (300, 16), (129, 173)])
def test_any_size_from_16_on(shape):
    flow = tvl1(*shifted(*shape, 1, 0))
    assert flow.shape == (*shape, 2) and flow.dtype == np.float32 and flow.flags.c_contiguous
    assert np.median(np.abs(flow - [1, 0]), axis=(0, 1)).max() < 0.02


@pytest.mark.parametrize("shape", [(16, 16), (61, 77), (128, 171)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_no_motion_is_exactly_zero(shape, dtype):
    image = texture(*shape).astype(dtype)
    assert not tvl1(image, image.copy()).any()


def test_flat_images_and_noise_stay_finite():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 64, 80), np.uint8)
    assert np.isfinite(tvl1(first, second)).all()
    assert not tvl1(np.zeros((64, 80)), np.full((64, 80), 255)).any()


def test_mirrored_images_give_the_mirrored_flow():
    """Within the discretisation: forward differences are not symmetric, so edges of the flow may differ."""
    for pair, tolerance in ((shifted(128, 171, 5, 3), 1e-3), (sinusoid(128, 171)[:2], 0.01)):
        mirrored = tvl1(*(image[:, ::-1] for image in pair))[:, ::-1] * [-1, 1]
        assert np.abs(tvl1(*pair) - mirrored).mean() < tolerance


@pytest.mark.skipif(not MIDDLEBURY.is_dir(), reason=f"no Middlebury pairs in {MIDDLEBURY}")
def test_middlebury_pairs_are_met_as_well_as_by_opencv():
    """At full size against what benchmarks/flow.py prints for OpenCV, at 128 x 171 against OpenCV itself."""
    errors, ours, theirs = [], [], []
    for name in PAIRS:
        first, second, true = read_pair(MIDDLEBURY / name)
        errors.append(end_point_error(tvl1(first, second), true))
        first, second, true = shrink_pair(first, second, true)
        ours.append(end_point_error(tvl1(first, second), true))
        theirs.append(end_point_error(opencv_tvl1(first, second), true))
    assert np.mean(errors) < 0.175 and np.all(np.array(errors) < np.array([0.156, 0.180, 0.306, 0.157]))
    assert np.mean(ours) < np.mean(theirs)


# --- same input, same flow


def test_types_and_memory_layouts_agree():
    first, second = shifted(50, 70, 1, 2)
    expected = tvl1(first, second)
    for same in (np.float32, np.float64, np.int64):
        np.testing.assert_array_equal(tvl1(first.astype(same), second), expected)
    spread = np.zeros((2, 100, 140), np.uint8)[:, ::2, ::2]
    spread[:] = first, second
    np.testing.assert_array_equal(tvl1(*spread), expected)
    np.testing.assert_array_equal(tvl1(np.asfortranarray(first), second[::-1][::-1]), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flow_does_not_depend_on_what_came_before_or_on_threads(backend):
    pair = shifted(64, 86, 2, 1)
    expected = flow(*pair, backend=backend)
    assert expected.shape == (64, 86, 2) and expected.dtype == np.float32
    assert np.median(np.abs(expected - [2, 1])) < 0.1
    flow(*shifted(16, 40, 0, 0), backend=backend)
    np.testing.assert_array_equal(flow(*pair, backend=backend), expected)
    with ThreadPoolExecutor(2) as threads:
        for result in threads.map(lambda _: flow(*pair, backend=backend), range(4)):
            np.testing.assert_array_equal(result, expected)


def test_another_process_gives_the_same_flow():
    """This one may have compiled the kernels, that one loads them."""
    code = (
        "import hashlib, numpy as np; from labelgen.flow import tvl1; "
        "images = np.random.default_rng(0).integers(0, 256, (2, 97, 147), np.uint8); "
        "print(hashlib.sha256(tvl1(*images).tobytes()).hexdigest())"
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 97, 147), np.uint8)
    here = hashlib.sha256(tvl1(*images).tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


# --- the door


def test_unusable_images_are_refused():
    image = np.zeros((20, 30), np.uint8)
    for first, second, message in (
        (image, image[:, :-1], r"first \(20, 30\), second \(20, 29\)"),
        (image[:15], image[:15], r"first has shape \(15, 30\); expected luma \[H, W\] of at least 16 x 16"),
        (image, np.zeros((20, 30, 3), np.uint8), r"second has shape \(20, 30, 3\)"),
        (image, np.full((20, 30), np.nan), "second holds nan; expected finite"),
        (image > 0, image, "first has dtype bool"),
    ):
        with pytest.raises(ValueError, match=message):
            tvl1(first, second)


@pytest.mark.parametrize(
    "parameter",
    [{"scale": 1.0}, {"warps": 0}, {"iterations": 0}, {"tightness": 0}, {"structure": 1.5}, {"flatness": 0}],
)
def test_unusable_parameters_are_refused(parameter):
    image = np.zeros((20, 30), np.uint8)
    (name, value), *_ = parameter.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        tvl1(image, image, **parameter)


def test_unusable_backends_are_refused(monkeypatch):
    image = np.zeros((20, 30), np.uint8)
    with pytest.raises(ConfigError, match="flow backend is 'raft'; expected one of tvl1, opencv-tvl1, dis"):
        flow(image, image, backend="raft")
    with pytest.raises(ValueError, match="first has dtype float32; expected uint8"):
        flow(image.astype(np.float32), image, backend="dis")
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(ConfigError, match="install opencv-contrib-python-headless"):
        flow(image, image, backend="opencv-tvl1")
