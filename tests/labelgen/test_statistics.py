"""Patterns, boundaries, motion and appearance statistics, curriculum: against hand-worked numbers and plain NumPy."""

import math

import numpy as np
import pytest

from labelgen.labels.appearance import appearance_statistics
from labelgen.labels.boundaries import motion_boundaries
from labelgen.labels.curriculum import curriculum_score
from labelgen.labels.motion import motion_statistics, sector
from labelgen.labels.patterns import areas, centre_crop, crop_grid, mirrored_blocks, patterns
from tests.labelgen import reference

CROP = 112
ONE_CROP = crop_grid(CROP, CROP, CROP)  # [[0, 0]], of the type that the kernels are compiled for


def smooth(rng, *shape):
    """Random values that vary slowly along the last two axes, so that no label hangs on a rounding error."""
    field = rng.standard_normal(shape)
    for _ in range(12):
        field = (field + np.roll(field, 1, -1) + np.roll(field, 1, -2) + np.roll(field, -1, -1)) / 4
    return (field / field.std()).astype(np.float32)


# --- patterns


def test_patterns_are_partitions_of_the_documented_shapes():
    grid, rings, triangles = patterns(CROP)
    assert (areas(CROP)[0] == 784).all()
    assert areas(CROP)[1][:4].tolist() == [784, 2352, 3920, 5488]
    assert areas(CROP)[2][:8].sum() == CROP**2
    assert grid[0, 0] == 0 and grid[0, 111] == 3 and grid[27, 28] == 1 and grid[28, 0] == 4 and grid[111, 111] == 15
    assert rings[56, 56] == rings[42, 42] == 0 and rings[41, 56] == 1 and rings[14, 14] == 2 and rings[0, 50] == 3
    spots = {(30, 5): 0, (5, 30): 1, (5, 80): 2, (30, 106): 3, (80, 5): 4, (106, 30): 5, (106, 80): 6, (80, 106): 7}
    assert {spot: triangles[spot] for spot in spots} == spots


@pytest.mark.parametrize("crop", [16, 56, 112, 224])
def test_patterns_equal_the_definition_pixel_by_pixel(crop):
    for ids, blocks in zip(patterns(crop), reference.partitions(crop), strict=True):
        for block, pixels in enumerate(blocks):
            assert (np.flatnonzero(ids == block) == pixels).all()


@pytest.mark.parametrize("crop", [16, 56, 112, 224])
def test_patterns_scale_and_equal_their_mirror_image(crop):
    ids = patterns(crop)
    for pattern in range(3):
        assert (mirrored_blocks()[pattern][ids[pattern]] == ids[pattern][:, ::-1]).all()
        assert (mirrored_blocks()[pattern][mirrored_blocks()[pattern]][ids[pattern]] == ids[pattern]).all()
    assert (areas(crop) * (112 / crop) ** 2)[:2] == pytest.approx(areas(112)[:2])


def test_crop_must_be_cut_evenly():
    with pytest.raises(ValueError, match="crop is 100"):
        patterns(100)
    with pytest.raises(ValueError, match="200 pixels does not fit into frames of 128 x 171"):
        crop_grid(128, 171, 200)


def test_crop_grid_holds_the_centre():
    grid = crop_grid(128, 171, 112)
    assert sorted(set(grid[:, 0])) == [0, 8, 16] and sorted(set(grid[:, 1])) == [5, 13, 21, 29, 37, 45, 53]
    assert grid[centre_crop(128, 171, 112)].tolist() == [8, 29] and len(grid) == 21
    assert crop_grid(112, 112, 112).tolist() == [[0, 0]]


# --- boundaries


def test_ramp_gives_one():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert (
        motion_boundaries(np.dstack([x, 0 * x]))[inner].tolist()
        == np.array([1, 0, 0, 0])[:, None, None].repeat(18, 1).repeat(28, 2).tolist()
    )
    assert motion_boundaries(np.dstack([y, 0 * x]))[1, 5, 5] == 1
    assert motion_boundaries(np.dstack([0 * x, -2 * x]))[2, 5, 5] == -2
    assert motion_boundaries(np.dstack([0 * x, y]))[3, 5, 5] == 1
    assert motion_boundaries(np.dstack([x, 0 * x]))[0, 5, 0] == 0.5  # the border is replicated


def test_boundaries_equal_the_plain_sum():
    flow = np.random.default_rng(0).normal(0, 3, (23, 31, 2)).astype(np.float32)
    np.testing.assert_allclose(motion_boundaries(flow), reference.boundaries(flow[None])[0], atol=1e-5)


def test_constant_flow_has_no_boundary():
    assert not motion_boundaries(np.full((16, 16, 2), 7.25, np.float32)).any()


def test_mirrored_flow_gives_the_mirrored_boundaries_exactly():
    flow = np.random.default_rng(1).normal(0, 3, (23, 31, 2)).astype(np.float32)
    expected = motion_boundaries(flow)[..., ::-1] * np.array([1, -1, -1, 1], np.float32)[:, None, None]
    assert (motion_boundaries(reference.mirror_flow(flow)) == expected).all()


# --- motion statistics


def test_sectors():
    assert sector(-2, 1) == 4  # lower-left
    assert [
        sector(math.cos(math.radians(22.5 + 45 * k)), -math.sin(math.radians(22.5 + 45 * k))) for k in range(8)
    ] == list(range(8))
    # each sector begins with its lower edge
    edges = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)]
    assert [sector(x, y) for x, y in edges] == list(range(8))


def test_one_moving_block_is_found_in_every_pattern():
    boundaries = np.zeros((15, 4, CROP, CROP), np.float32)
    boundaries[:, 0, 30:50, 60:80] = 0.1  # u grows to the right: grid block 6
    boundaries[9, 0, 30:50, 60:80] = 0.2
    labels, valid = motion_statistics(boundaries, ONE_CROP, CROP)
    p_u, o_u = labels[0, 0, [0, 4, 8]], labels[0, 0, [1, 5, 9]]
    assert p_u.tolist() == [6, 1, 2] and o_u.tolist() == [0, 0, 0] and labels[0, 0, 12] == 9
    assert labels[0, 1, [0, 4, 8]].tolist() == [5, 1, 1]
    assert valid[0, 0].tolist() == [1, 1, 0, 0] * 3 + [1, 0]


def test_equal_blocks_give_the_lowest_id_and_a_still_clip_no_label():
    boundaries = np.full((15, 4, CROP, CROP), 0.5, np.float32)
    labels, valid = motion_statistics(boundaries, ONE_CROP, CROP)
    assert labels[0, :, [0, 2, 4, 6, 8, 10, 12, 13]].max() == 0 and valid.all()
    assert (
        labels[0, 0, 1] == 7 and labels[0, 1, 1] == 1
    )  # (1, 1) points to the lower right, mirrored u to the upper right
    assert not motion_statistics(boundaries * 0, ONE_CROP, CROP)[1].any()
    # the rings' means are equal too, though their areas are not
    assert labels[0, 0, 4] == 0


@pytest.mark.parametrize("seed", range(3))
def test_motion_statistics_equal_the_reference_for_every_crop_and_mirror(seed):
    rng = np.random.default_rng(seed)
    flows = np.moveaxis(smooth(rng, 5, 2, 72, 91), 1, -1)
    plain, mirrored = reference.boundaries(flows), reference.boundaries(reference.mirror_flow(flows))
    corners = crop_grid(72, 91, 56)
    labels, valid = motion_statistics(np.stack([motion_boundaries(flow) for flow in flows]), corners, 56)
    for c, (y, x) in enumerate(corners):
        for m, (derivatives, left) in enumerate(((plain, x), (mirrored, 91 - 56 - x))):
            expected, moves, _ = reference.motion(derivatives, y, left, 56)
            assert (labels[c, m] == expected).all() and (valid[c, m] == moves).all() and moves.all()


def test_a_constant_flow_added_changes_no_motion_label():
    flows = np.moveaxis(smooth(np.random.default_rng(4), 5, 2, 72, 91), 1, -1)
    corners = crop_grid(72, 91, 56)
    before, after = (
        motion_statistics(np.stack([motion_boundaries(flow) for flow in moved]), corners, 56)[0]
        for moved in (flows, flows + np.array([3.5, -1.25], np.float32))
    )
    assert (before == after).all()


def test_statistics_of_a_large_crop_equal_the_reference():
    """More pixels than 16 bits count, and sums of large motions."""
    rng, crop = np.random.default_rng(0), 392
    flows = 20 * np.moveaxis(smooth(rng, 2, 2, crop, crop), 1, -1)
    labels, valid = motion_statistics(np.stack([motion_boundaries(flow) for flow in flows]), ONE_CROP, crop)
    expected, moves, _ = reference.motion(reference.boundaries(flows), 0, 0, crop)
    assert (labels[0, 0] == expected).all() and (valid[0, 0] == moves).all()
    frames = (rng.integers(0, 2, (3, crop, crop, 3)) * rng.integers(0, 256, crop)[:, None]).astype(np.uint8)
    assert (appearance_statistics(frames, ONE_CROP, crop)[0, 0] == reference.appearance(frames)[0]).all()


def test_flows_of_a_long_clip_are_told_apart():
    boundaries = np.zeros((255, 4, 16, 16), np.float32)
    boundaries[254, 0], boundaries[200, 2] = 1, 1
    labels, valid = motion_statistics(boundaries, ONE_CROP, 16)
    assert (labels[0, :, 12:] == [254, 200]).all() and valid[..., 12:].all()


# --- appearance statistics


@pytest.mark.parametrize("seed", range(2))
def test_appearance_statistics_equal_the_reference_for_every_crop_and_mirror(seed):
    rng = np.random.default_rng(seed)
    frames = np.moveaxis(smooth(rng, 6, 3, 40, 59), 1, -1) * 40 + 128 + rng.normal(0, 5, (6, 40, 59, 3))
    frames = frames.clip(0, 255).astype(np.uint8)
    corners = crop_grid(40, 59, 32)
    labels = appearance_statistics(frames, corners, 32)
    for (y, x), (plain, flipped) in zip(corners, labels, strict=True):
        crop = frames[:, y : y + 32, x : x + 32]
        assert (plain == reference.appearance(crop)[0]).all()
        assert (flipped == reference.appearance(crop[:, :, ::-1])[0]).all()


def test_dominant_colour_is_of_the_fullest_of_8_bins_not_of_the_commonest_colour():
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[..., 0] = np.arange(128, 144)  # sixteen different reds, each rarer than black
    frames[:, :, :5] = 0
    assert appearance_statistics(frames, ONE_CROP, 16)[0, 0, 12] == 4
    assert (
        appearance_statistics(np.full((2, 16, 16, 3), 255, np.uint8), ONE_CROP, 16)[0].tolist()
        == [[0, 7] * 6 + [7]] * 2
    )


def test_changing_block_is_diverse():
    frames = np.full((4, 112, 112, 3), 10, np.uint8)
    frames[::2, :28, 84:] = 200  # grid block 3 flickers
    labels = appearance_statistics(frames, ONE_CROP, CROP)[0]
    assert labels[0, [0, 2]].tolist() == [3, 0] and labels[1, [0, 2]].tolist() == [0, 1]


# --- curriculum


def test_curriculum_score_is_the_share_of_the_block_that_moves_most():
    boundary = np.zeros((4, CROP, CROP), np.float32)
    boundary[0] = 1
    assert curriculum_score(boundary) == pytest.approx(1 / 16)
    boundary[0, :28, :28] = 16
    assert curriculum_score(boundary) == pytest.approx(16 / 31)
    boundary[2, 56:84, 56:84], boundary[3, 56:84, 56:84] = 3, 4  # v moves in one block only
    assert curriculum_score(boundary) == 1


def test_curriculum_score_of_a_still_clip_is_nan():
    assert math.isnan(curriculum_score(np.full((4, CROP, CROP), 1e-5, np.float32)))
