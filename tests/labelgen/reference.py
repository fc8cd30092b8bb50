"""Motion and appearance statistics of one crop, slowly: loops and double precision, written from the definitions alone.

Every label comes with its margin, by how much the winner beats the second in proportion: 0 is a tie.
"""

import functools

import numpy as np

MIN_MOTION = 1e-3


def mirror_flow(flow):
    """The flow [..., W, 2] of the mirrored frames: columns reversed and u negated."""
    return flow[..., ::-1, :] * np.array([-1, 1], flow.dtype)


@functools.cache
def partitions(crop):
    """For each pattern the pixels of each block, as indices into the flattened crop."""
    centre = (crop - 1) / 2
    # (upper half, left half, nearer to the left or right side than to top or bottom)
    triangle = {
        (1, 1, 1): 0, (1, 1, 0): 1, (1, 0, 0): 2, (1, 0, 1): 3, (0, 1, 1): 4, (0, 1, 0): 5, (0, 0, 0): 6, (0, 0, 1): 7,
    }  # fmt: skip
    blocks = [[[] for _ in range(n)] for n in (16, 4, 8)]
    for y in range(crop):
        for x in range(crop):
            away_y, away_x = abs(y - centre), abs(x - centre)
            ring = int(max(away_y, away_x) / (crop / 8))
            pixel = y * crop + x
            blocks[0][4 * (y // (crop // 4)) + x // (crop // 4)].append(pixel)
            blocks[1][ring].append(pixel)
            blocks[2][triangle[y < centre, x < centre, away_x >= away_y]].append(pixel)
    return [[np.array(pixels) for pixels in pattern] for pattern in blocks]


def best(scores):
    """The lowest index of the largest score, and its margin."""
    winner = int(np.argmax(scores))
    second = max(score for index, score in enumerate(scores) if index != winner)
    return winner, (scores[winner] - second) / scores[winner] if scores[winner] else 0.0


def boundaries(flows):
    """u_x, u_y, v_x, v_y of flows [T, H, W, 2], float64 [T, 4, H, W]: 3 x 3 Prewitt / 6, replicated border."""
    padded = np.pad(flows.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    length, height, width = flows.shape[:3]
    out = np.zeros((length, 4, height, width))
    for component in range(2):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                part = padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width, component]
                out[:, 2 * component] += dx * part / 6
                out[:, 2 * component + 1] += dy * part / 6
    return out


def motion(derivatives, y, x, crop):
    """Labels, validity and margins [14] of the crop at (y, x); derivatives: `boundaries` of the whole frames."""
    inside = derivatives[:, :, y : y + crop, x : x + crop]
    summed = inside.sum(0)
    labels, valid, margins = [], [], []
    moves = [0, 0]
    for blocks in partitions(crop):
        for component in range(2):
            dx, dy = summed[2 * component].ravel(), summed[2 * component + 1].ravel()
            magnitude = np.hypot(dx, dy)
            means = [magnitude[pixels].mean() for pixels in blocks]
            block, block_margin = best(means)
            pixels = blocks[block]
            sector = np.degrees(np.arctan2(-dy, dx)) % 360 // 45
            votes = [magnitude[pixels][sector[pixels] == k].sum() for k in range(8)]
            orientation, orientation_margin = best(votes)
            labels += [block, orientation]
            margins += [block_margin, min(block_margin, orientation_margin)]
            valid += [int(means[block] >= MIN_MOTION)] * 2
            moves[component] |= valid[-1]
    for component in range(2):
        flow, margin = best(np.hypot(inside[:, 2 * component], inside[:, 2 * component + 1]).sum((1, 2)))
        labels.append(flow)
        margins.append(margin)
    return np.array(labels), np.array(valid + moves), np.array(margins)


def appearance(frames):
    """Labels and margins [13] of a cropped clip, uint8 [T, crop, crop, 3]."""
    crop = frames.shape[1]
    frames = frames.reshape(len(frames), -1, 3)

    def dominant(pixels):
        red, green, blue = np.moveaxis(pixels.reshape(-1, 3) >= 128, -1, 0)
        return best(np.bincount(4 * red + 2 * green + blue, minlength=8))

    labels, margins = [], []
    for blocks in partitions(crop):
        scores = []
        for pixels in blocks:
            overlap = 0
            for channel in range(3):
                histograms = np.stack([np.bincount(frame[pixels, channel], minlength=256) for frame in frames])
                overlap += histograms.min(0).sum() / histograms.max(0).sum()
            scores.append(overlap)
        for block, margin in (best([3 - score for score in scores]), best(scores)):
            colour, colour_margin = dominant(frames[:, blocks[block]])
            labels += [block, colour]
            margins += [margin, min(margin, colour_margin)]
    colour, margin = dominant(frames)
    return np.array([*labels, colour]), np.array([*margins, margin])
