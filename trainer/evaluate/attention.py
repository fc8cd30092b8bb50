"""Attention maps: where a stage of the network is active, beside where the clip moves. [thesis fig. 2.8, 3.7]"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, nn

from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, networks, stage_outputs

_TILE = 224  # pixels: crops are enlarged to this width
_GAP = 6
_SHOWN = data.CLIP_LENGTH // 2  # frame of the clip that is drawn

# frames uint8 [16, H, W, 3], configuration of the shards -> magnitudes of M_u and M_v, float32 [2, H, W]
Boundaries = Callable[[np.ndarray, dict], np.ndarray]


def attention(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
    stage: str | None = None,
    videos: Sequence[str] = (),
    count: int = 4,
    seed: int = 0,
    boundaries: Boundaries | None = None,
) -> dict:
    """Draw the attention maps of the middle clip of a few videos, of the pretrained and the random network, into
    <run>/results/attention/, one PNG sheet per video; the result lists them under "sheets".

    stage: default the last. videos: ids or ends of ids; default `count` random ones, drawn from `seed`, of the split's test
    part, or of all where it has none. boundaries: where given, M_u and M_v stand beside the maps, and the rows hold how
    far each map follows them, see `correlation`.

    Raises TrainerError for a stage or video that is not there, ShardError, and what checkpoint.load raises.
    """
    saved = protocol.open_checkpoint(checkpoint)
    source = protocol.open_shards(saved, shards, split)
    chosen = _chosen(source, videos, count, seed)
    clips = data.VideoViews(source, source.videos[chosen], middle_clip)
    maps = {}
    for network, backbone in networks(saved).items():
        stage, maps[network] = _maps(backbone, clips, compute, stage)
    rows, sheets, ids, labels = [], [], source.text("videos/id"), source.text("videos/label")
    folder = saved.run / "results" / "attention"
    folder.mkdir(parents=True, exist_ok=True)
    for i, video in enumerate(chosen):
        frames = clips.__getitems__([i])["clips"][0].numpy()
        shown = _crop(frames[_SHOWN], source.config["crop"])
        tiles = {f"frame {clips.frames[i, _SHOWN]}": shown}
        tiles |= {f"{network} {stage}": overlay(shown, own[i]) for network, own in maps.items()}
        if boundaries is not None:
            moving = [_crop(magnitude, source.config["crop"]) for magnitude in boundaries(frames, source.config)]
            tiles |= {f"motion boundary of {name}": _grey(m) for name, m in zip("uv", moving, strict=True)}
            row = {"stage": stage, "video": ids[video], "metric": "correlation"}
            values = {network: correlation(own[i], sum(moving)) for network, own in maps.items()}
            rows += [
                {"network": network, **row, "value": value} for network, value in values.items() if value is not None
            ]
        name = "-".join((source.dataset, *([source.split] if source.split else []), stage, ids[video]))
        path = folder / f"{name.replace('/', '_')}.png"
        title = f"{ids[video]}{f' ({labels[video]})' * bool(labels[video])}, 16 frames from {clips.frames[i, 0]}"
        _write(path, _sheet(title, tiles))
        sheets.append(
            {"video": ids[video], "label": labels[video], "shown": list(tiles), "file": f"attention/{path.name}"}
        )
    told = protocol.describe(
        saved,
        source,
        backbone,
        mode=f"(sum of absolute activations)^2 of {stage}, mean over time",
        views="the middle clip of 16 frames",
        items=f"{len(chosen)} videos",
    )
    still = len(maps) * len(chosen) - len(rows)
    notes = (
        []
        if boundaries is None or not still
        else [f"{still} maps have no correlation: they, or the clip's boundaries, are constant"]
    )
    result = {"protocol": told, "rows": rows, "notes": notes, "folder": str(folder.parent), "sheets": sheets}
    protocol.write(result, saved.run, "attention")
    return result


def _chosen(source: data.Shards, names: Sequence[str], count: int, seed: int) -> list[int]:
    ids = source.text("videos/id")
    for end in names:
        if not any(name.endswith(end) for name in ids):
            raise TrainerError(f"{source.dataset}: no video is called {end!r}; ids look like {ids[0]!r}")
    if names:
        return [row for row, name in enumerate(ids) if name.endswith(tuple(names))]
    test = np.flatnonzero(source.part == data.TEST)
    rows = test.tolist() if len(test) else range(len(ids))
    return sorted(random.Random(seed).sample(sorted(rows, key=ids.__getitem__), min(count, len(rows))))


def middle_clip(n_frames: int) -> np.ndarray:
    """Frames of the clip in the middle of a video, int64 [1, 16]; a video shorter than that is played in a loop."""
    return (max(0, n_frames - data.CLIP_LENGTH) // 2 + np.arange(data.CLIP_LENGTH))[None] % n_frames


def _maps(backbone: nn.Module, clips: data.VideoViews, compute: Compute, stage: str | None) -> tuple[str, np.ndarray]:
    maps: list = [None] * len(clips)
    for index, stages in stage_outputs(backbone, clips, compute):
        stage = stage or [*stages][-1]
        if stage not in stages:
            raise TrainerError(f"no stage {stage!r}: this backbone has {', '.join(stages)}")
        for i, own in zip(index, attention_map(stages[stage]).cpu().numpy(), strict=True):
            maps[i] = own
    return stage, np.stack(maps)


def attention_map(stage: Tensor) -> Tensor:
    """Features [B, C, T, H, W] -> float32 [B, H, W]: the squared sum of absolute activations over channels, mean over time,
    relative to the largest of each map [Zagoruyko and Komodakis, ICLR 2017, activation-based attention]."""
    maps = stage.float().abs().sum(1).square().mean(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)


def correlation(attention: np.ndarray, moving: np.ndarray) -> float | None:
    """100 x Pearson correlation of a map's cells [h, w] with the mean of |M_u| + |M_v| (`moving` [H, W]) over each cell's
    part of the crop; None where one of them is constant."""
    height, width = attention.shape
    cells = cv2.resize(moving.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    if attention.std() == 0 or cells.std() == 0:
        return None
    return 100 * float(np.corrcoef(attention.ravel(), cells.ravel())[0, 1])


def overlay(frame: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The map (float32 [h, w], 0 to 1), enlarged bilinearly, in colour over the grey frame uint8 [H, W, 3]."""
    height, width = frame.shape[:2]
    enlarged = cv2.resize(attention, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    color = cv2.applyColorMap((255 * enlarged).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    return np.clip(0.45 * grey + 0.75 * color, 0, 255).astype(np.uint8)


def _crop(picture: np.ndarray, size: int) -> np.ndarray:
    y, x = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[y : y + size, x : x + size]


def _grey(magnitude: np.ndarray) -> np.ndarray:
    scaled = np.clip(magnitude / max(float(np.percentile(magnitude, 99.5)), 1e-3) * 255, 0, 255)
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, -1)


def _sheet(title: str, tiles: dict[str, np.ndarray]) -> np.ndarray:
    """Tiles uint8 [size, size, 3] side by side under their titles, RGB uint8."""
    page = np.full((2 * 20 + _TILE, len(tiles) * (_TILE + _GAP) - _GAP, 3), 255, np.uint8)
    _text(page, title, 2, 14)
    for i, (name, tile) in enumerate(tiles.items()):
        x = i * (_TILE + _GAP)
        page[40:, x : x + _TILE] = cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
        _text(page, name, x + 2, 34)
    return page


def _text(page: np.ndarray, text: str, x: int, y: int) -> None:
    shown = text.encode("ascii", "replace").decode()  # OpenCV's font has no other characters
    cv2.putText(page, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)


def _write(path: Path, picture: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1])
    os.replace(temporary, path)


def format_table(result: dict) -> str:
    """The result of `attention` for the screen: how far the maps follow the motion, and the sheets."""
    lines = protocol.header(result, "attention")
    if result["rows"]:
        lines += ["100 x correlation of a map's cells with the motion boundaries in them"]
        lines += [*protocol.table(result["rows"], ("video",), ("network",)), ""]
    lines += [str(Path(result["folder"]) / sheet["file"]) for sheet in result["sheets"]]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
