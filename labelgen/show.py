"""Pictures of the labels: those of one clip, and clips from easy to hard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from labelgen.labels.clip import clip_of_frames
from labelgen.labels.patterns import centre_crop, patterns
from labelgen.labels.statistics import PATTERNS
from labelgen.shards import ShardReader
from labelgen.sheets import contact_sheet, grey
from labelgen.texts import draw

_TILE, _FILM = 340, 160  # pixels: frames of a sheet, of a film are enlarged to about this width
_WHEEL = 40  # radius of the colour wheel, pixels
_U, _V, _DIVERSE, _STABLE = (255, 60, 40), (40, 200, 60), (255, 200, 0), (60, 130, 255)

Color = tuple[int, int, int]
Mark = tuple[np.ndarray, Color, int | Color | str]  # a block, its outline, and its sector, colour or ""


def flow_colors(field: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Flow [H, W, 2] as RGB uint8 [H, W, 3]: hue is the direction (red is to the right, then counter-clockwise),
    saturation the length relative to `largest` (pixels per frame; default: the 99th percentile)."""
    length = np.hypot(field[..., 0], field[..., 1])
    largest = largest or max(float(np.percentile(length, 99)), 1e-3)
    hue = np.degrees(np.arctan2(-field[..., 1], field[..., 0])) % 360 / 2
    saturation = np.clip(length / largest * 255, 0, 255)
    hsv = np.stack([hue, saturation, np.full_like(hue, 255)], -1).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def label_sheet(shard: ShardReader, clip: int) -> np.ndarray:
    """All labels of one clip, centre crop, as one picture, RGB uint8.

    It shows frames; flow (recomputed from the stored frames) and motion boundaries M_u, M_v; for each pattern the blocks of
    largest motion with its direction, and the most diverse and most stable blocks with their dominant colours.
    """
    arrays = shard.arrays
    video, start = int(arrays["clips/video"][clip]), int(arrays["clips/start"][clip])
    seen = clip_of_frames(shard.frames(shard.clip_frames(clip)), shard.config["flow"]["backend"])
    frames, fields, summed = seen.frames, seen.flows, seen.boundaries.sum(0)
    middle = frames[len(frames) // 2]
    height, width = shard.frame_size
    size = shard.config["crop"]
    centre = centre_crop(height, width, size)
    motion, valid = arrays["statistics/motion"][clip, centre, 0], arrays["statistics/valid"][clip, centre, 0]
    appearance = arrays["statistics/appearance"][clip, centre, 0]
    corner = shard.crop_grid[centre]

    tiles = [(_tile(frames[t]), f"frame {start + t}") for t in np.linspace(0, len(frames) - 1, 4, dtype=int)]
    largest = [int(motion[label]) if valid[label] else len(fields) // 2 for label in (12, 13)]
    tiles += [
        (_tile(flow_colors(fields[t])), f"flow {t}, largest {name}") for t, name in zip(largest, "uv", strict=True)
    ]
    tiles += [(_tile(grey(np.hypot(*summed[i : i + 2]))), f"boundary of {name}") for i, name in ((0, "u"), (2, "v"))]
    blocks = [(_tile(middle, [(patterns(size)[0] >= 0, (255, 255, 255), "")], corner), "centre crop")]
    colours = [(_legend(frames[0].shape, arrays["curriculum/score"][clip], motion, valid, appearance[12]), "")]
    for pattern in range(3):
        p_u, o_u, p_v, o_v = motion[4 * pattern : 4 * pattern + 4]
        p_l, c_l, p_s, c_s = appearance[4 * pattern : 4 * pattern + 4]
        of_motion, of_colours = _marks(pattern, size, motion, valid, appearance)
        blocks.append((_tile(middle, of_motion, corner), f"{PATTERNS[pattern]}: u {p_u}/{o_u}, v {p_v}/{o_v}"))
        text = f"{PATTERNS[pattern]}: diverse {p_l}/{c_l}, stable {p_s}/{c_s}"
        colours.append((_tile(middle, of_colours, corner), text))
    label = arrays["videos/label"][video]
    title = f"{arrays['videos/id'][video]}{f' ({label})' if label else ''}, frames {start} to {start + len(frames) - 1}"
    return contact_sheet(title, [(tile, [text]) for tile, text in (*tiles, *blocks, *colours)], 4)


def label_films(shard: ShardReader, clip: int) -> dict[str, np.ndarray]:
    """A labelled clip of T frames and what its labels are made of, centre crop, as films of the same times, each RGB uint8
    [T - 1, h, w, 3]: the frames; flow (recomputed from the stored frames); motion boundaries, the larger of M_u and M_v; and the
    blocks of the grid with the largest motion, and with the most diverse and the most stable colours.
    """
    arrays = shard.arrays
    seen = clip_of_frames(shard.frames(shard.clip_frames(clip)), shard.config["flow"]["backend"])
    frames, size = seen.frames[:-1], shard.config["crop"]
    centre = centre_crop(*shard.frame_size, size)
    motion, valid, appearance = (
        arrays[f"statistics/{name}"][clip, centre, 0] for name in ("motion", "valid", "appearance")
    )
    marks, corner = _marks(0, size, motion, valid, appearance), shard.crop_grid[centre]
    longest = max(float(np.percentile(np.hypot(*np.moveaxis(np.stack(seen.flows), 3, 0)), 99)), 1e-3)
    boundaries = np.hypot(seen.boundaries[:, 0::2], seen.boundaries[:, 1::2]).max(1)
    of_motion, of_colours = (np.stack([_tile(frame, own, corner, _FILM) for frame in frames]) for own in marks)
    return {
        "video": frames,
        "flow": np.stack([flow_colors(field, longest) for field in seen.flows]),
        "motion boundaries": grey(np.vstack(boundaries)).reshape(*boundaries.shape, 3),
        "blocks of most motion": of_motion,
        "most diverse, most stable colours": of_colours,
    }


@dataclass(frozen=True)
class Example:
    """An example of the curriculum.

    place: easy, middle or hard; score: share of the clip's motion in one block; video: its id; frame, boundaries: the
    middle frame and the magnitude of the motion boundaries, both RGB uint8 [H, W, 3]
    """

    place: str
    score: float
    video: str
    frame: np.ndarray
    boundaries: np.ndarray


def curriculum_sheet(shards: Sequence[ShardReader], columns: int = 6) -> np.ndarray:
    """The easiest, middle and hardest clips with their motion boundaries, as one picture, RGB uint8.

    Raises ValueError if no clip moves.
    """
    clips = curriculum(shards, columns)
    tiles = []
    for place in dict.fromkeys(clip.place for clip in clips):
        of_place = [clip for clip in clips if clip.place == place]
        tiles += [(_tile(clip.frame), [f"{place}: {clip.score:.3f}"]) for clip in of_place]
        tiles += [(_tile(clip.boundaries), [clip.video]) for clip in of_place]
    scores = np.concatenate([shard.arrays["curriculum/score"][:] for shard in shards])
    title = f"{np.count_nonzero(~np.isnan(scores))} clips by the share of motion in one block"
    return contact_sheet(title, tiles, len(of_place))


def curriculum(shards: Sequence[ShardReader], count: int = 6) -> list[Example]:
    """The `count` easiest, middle and hardest clips. Raises ValueError if no clip moves."""
    clips = [(shard, clip) for shard in shards for clip in range(shard.n_clips)]
    score = np.array([shard.arrays["curriculum/score"][clip] for shard, clip in clips])
    order = np.argsort(-score, kind="stable")[: np.count_nonzero(~np.isnan(score))]
    if not len(order):
        raise ValueError("no clip has a difficulty: there are no clips, or none of them moves")
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    found = []
    for place, chosen in (("easy", order[:count]), ("middle", order[middle:][:count]), ("hard", order[-count:])):
        for index in chosen:
            shard, clip = clips[index]
            moving = clip_of_frames(shard.frames(shard.clip_frames(clip)), shard.config["flow"]["backend"])
            summed = moving.boundaries.sum(0)
            larger = np.maximum(np.hypot(summed[0], summed[1]), np.hypot(summed[2], summed[3]))
            video = shard.arrays["videos/id"][shard.arrays["clips/video"][clip]]
            frame = moving.frames[len(moving.frames) // 2]
            found.append(Example(place, float(score[index]), video, frame, grey(larger)))
    return found


def _marks(
    pattern: int, size: int, motion: np.ndarray, valid: np.ndarray, appearance: np.ndarray
) -> tuple[list[Mark], list[Mark]]:
    """The blocks of a pattern that labels of a crop name: of largest motion in u and v, of most diverse and stable colours."""
    ids, first = patterns(size)[pattern], 4 * pattern
    p_u, o_u, p_v, o_v = motion[first : first + 4]
    of_motion: list[Mark] = []
    if valid[first]:
        of_motion.append((ids == p_u, _U, int(o_u)))
    if valid[first + 2]:
        of_motion.append((ids == p_v, _V, int(o_v)))
    p_l, c_l, p_s, c_s = appearance[first : first + 4]
    return of_motion, [(ids == p_l, _DIVERSE, _color(c_l)), (ids == p_s, _STABLE, _color(c_s))]


def _zoom(width: int, most: int = _TILE) -> int:
    return max(1, round(most / width))


def _color(index: int) -> Color:
    red, green, blue = (255 if index & bit else 0 for bit in (4, 2, 1))
    return red, green, blue


def _tile(
    picture: np.ndarray, marks: Sequence[Mark] = (), corner: Sequence[int] = (0, 0), width: int = _TILE
) -> np.ndarray:
    """The picture, enlarged, with outlined blocks, each with an arrow (sector) or a swatch (colour) at its centre."""
    zoom = _zoom(picture.shape[1], width)
    tile = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    offset = (int(corner[1]) * zoom - 1, int(corner[0]) * zoom - 1)
    for index, (block, color, sign) in enumerate(marks):
        inset = sum(np.array_equal(block, other[0]) for other in marks[:index])  # draw the second one inside the first
        mask = cv2.resize(block.astype(np.uint8), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)
        outline = (depth > 4 * inset).astype(np.uint8)
        contours, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, color, 2, offset=offset)
        y, x = (
            int(at) + shift
            for at, shift in zip(np.unravel_index(depth.argmax(), depth.shape), offset[::-1], strict=True)
        )
        x += 12 * inset
        if isinstance(sign, tuple):
            cv2.rectangle(tile, (x - 6, y - 6), (x + 6, y + 6), sign, -1)
            cv2.rectangle(tile, (x - 6, y - 6), (x + 6, y + 6), color, 1)
        elif isinstance(sign, int):
            angle = math.radians(45 * sign + 22.5)
            tip = (round(x + 16 * math.cos(angle)), round(y - 16 * math.sin(angle)))
            cv2.arrowedLine(tile, (2 * x - tip[0], 2 * y - tip[1]), tip, color, 2, tipLength=0.4)
    return tile


def _legend(shape: Sequence[int], score: float, motion: np.ndarray, valid: np.ndarray, color: int) -> np.ndarray:
    width = shape[1] * _zoom(shape[1])
    lines = [
        f"share of motion in one block: {score:.3f}",
        f"largest flow of u: {motion[12] if valid[12] else 'none'}, of v: {motion[13] if valid[13] else 'none'}",
        f"colour of the crop: {color}",
        "",
        "red, green: most motion of u, v (block/direction)",
        "yellow, blue: most diverse, most stable (block/colour)",
        "flow: colour by direction, paler where shorter",
    ]
    box = np.full((max(shape[0] * _zoom(shape[1]), 18 * len(lines) + 2 * _WHEEL + 1), width, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        draw(box, line, 2, 13 + 18 * number, 0.42)
    y, x = np.mgrid[-_WHEEL : _WHEEL + 1, -_WHEEL : _WHEEL + 1].astype(np.float32)
    wheel = np.where((np.hypot(x, y) > _WHEEL)[..., None], 255, flow_colors(np.dstack([x, y]), _WHEEL))
    box[18 * len(lines) :][: len(wheel), : len(x)] = wheel
    return box[: shape[0] * _zoom(shape[1])]
