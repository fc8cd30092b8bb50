"""Attention maps: where a stage of the network is active, compared with where the clip moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer.errors import SettingError
from trainer.evaluate.protocol import Protocol, ProtocolOption
from trainer.evaluate.protocols import cv2, data, features, files, np, results, shards, sheets, torch

# frames uint8 [T, H, W, 3], configuration of the shards -> magnitudes of M_u and M_v, float32 [2, H, W]
Boundaries = Callable[["np.ndarray", dict], "np.ndarray"]
_TILE = 224  # pixels to which crops are enlarged


class Attention(Protocol):
    """Draw where the network is active next to the motion boundaries of the clip, as PNG files."""

    title = "Attention"
    question = "Is the network active where the clip moves?"
    items = (
        "The middle clip of a few videos: those given by `--video`, else random ones of the split's test part, or of all "
        "videos if it has none. `--pace N` takes every N-th frame around the same middle."
    )
    classifier = (
        "None: absolute activations of a stage, summed over channels, squared and averaged over time, are drawn over the frame "
        "next to the motion boundaries of the clip; 100 x the Pearson correlation of the map's cells with the mean of "
        "|M_u| + |M_v| in each cell."
    )
    left_out = "Correlations for constant maps or boundaries; a note counts them."
    source = "Zagoruyko and Komodakis, ICLR 2017; thesis 2.5, 3.6.1, 4.5, fig. 2.8, 2.9, 3.7, 4.8."
    options = (
        ProtocolOption("stage", str, "Stage, such as conv4.  [default: the last]"),
        ProtocolOption(
            "video",
            str,
            "Id of a video or the end of an id, with or without extension; repeatable.  [default: random videos]",
            argument="videos",
        ),
        ProtocolOption("pace", int, "Take every N-th frame.", default=1, least=1),
        ProtocolOption("count", int, "Number of random videos if no --video is given.", default=4, least=1),
        ProtocolOption("seed", int, "Random seed for the choice of videos.", default=0),
    )
    index = ("video",)
    columns = ("network",)
    published = ()
    needs = ("boundaries",)
    about_sheets = (
        "Where the network is active, drawn over the frame in grey; each map is relative to its maximum. The motion "
        "boundaries show where the clip moves. The numbers are 100 x the correlation of the two over the map's cells."
    )
    scale = ("not active", "most active")

    def choose(
        self,
        stage: str | None = None,
        videos: Sequence[str] = (),
        pace: int = 1,
        count: int = 4,
        seed: int = 0,
        boundaries: Boundaries | None = None,
    ) -> data.Shards:
        """stage: default the last. videos: ids or their ends; default `count` random ones, drawn from `seed`. pace: step between
        the frames of the clip. boundaries: if given, M_u and M_v are drawn next to the maps, and the rows hold the
        `correlation` of each map with them."""
        source = self.evaluator.source()
        self.stage, self.boundaries, self.pace = stage, boundaries, pace
        self.videos = choose_videos(source, videos, count, seed)
        self.clips = data.VideoViews(source, source.videos[self.videos], partial(middle_clip, pace=pace))
        self.constant = 0  # number of maps without a correlation
        return source

    def rows(self) -> Iterator[dict]:
        """Draw a sheet for every video, and yield the correlations of its maps with its motion boundaries."""
        maps: dict[str, np.ndarray] = {}
        for network, backbone in self.evaluator.networks().items():
            self.stage, maps[network] = stage_maps(backbone, self.clips, self.evaluator.compute, self.stage)
        source, middle, folder = self.shards, self.clips.frames.shape[1] // 2, sheet_folder(self, "attention")
        ids, labels, size = source.text("videos/id"), source.text("videos/label"), source.config["crop"]
        for i, video in enumerate(self.videos):
            frames, shown_frames = self.clips.batch([i])["clips"][0].numpy(), self.clips.frames[i]
            drawn = crop(frames[middle], size)
            tiles = {f"frame {shown_frames[middle]}": drawn}
            tiles |= {f"{network} {self.stage}": overlay(drawn, of_network[i]) for network, of_network in maps.items()}
            if self.boundaries is not None:
                moving = [crop(magnitude, size) for magnitude in self.boundaries(frames, source.config)]
                tiles |= {f"motion boundary of {name}": sheets.grey(m) for name, m in zip("uv", moving, strict=True)}
                for network, of_network in maps.items():
                    value = correlation(of_network[i], moving[0] + moving[1])
                    row = {"network": network, "stage": self.stage, "video": ids[video], "metric": "correlation"}
                    if value is None:
                        self.constant += 1
                    else:
                        yield {**row, "value": value}
            name = "-".join(filter(None, (source.dataset, source.split, self.stage, self._at_pace(), ids[video])))
            at = f"{len(shown_frames)} frames from {shown_frames[0]}{self._at_pace(', ')}"
            label = f" ({labels[video]})" if labels[video] else ""
            file = write_sheet(folder, name, f"{ids[video]}{label}, {at}", tiles)
            shown = {"video": ids[video], "label": labels[video], "shown": [*tiles]}
            self.extra["sheets"].append({**shown, "file": file})

    def remarks(self) -> list[str]:
        if not self.constant:
            return []
        return [
            f"{self.constant} maps have no correlation because they or the motion boundaries of the clip are constant"
        ]

    def conditions(self) -> dict[str, Any]:
        return {
            "mode": f"(sum of absolute activations)^2 of {self.stage}, mean over time",
            "views": f"the middle clip of {self.shards.clip_length} frames{self._at_pace(', ')}",
            "items": f"{len(self.videos)} videos",
        }

    def _at_pace(self, before: str = "") -> str:
        return f"{before}pace {self.pace}" if self.pace > 1 else ""

    def file_name(self, name: str) -> str:
        return "-".join(filter(None, (name, self._at_pace().replace(" ", ""))))

    @classmethod
    def table(cls, result: dict) -> list[str]:
        lines = []
        if result["rows"]:
            lines += ["100 x correlation of a map's cells with the motion boundaries in them"]
            lines += [*results.table(result["rows"], cls.index, cls.columns), ""]
        return lines + drawn_files(result)


def choose_videos(source: data.Shards, names: Sequence[str], count: int, seed: int) -> list[int]:
    """Rows of the videos with these names (see VideoNames); without names, of `count` random videos of the split's test part,
    or of all videos if it has none. Raises ShardError for a name that matches no video or several."""
    ids = source.text("videos/id")
    if names:
        return shards.VideoNames(ids).rows(names, source.dataset)
    test = np.flatnonzero(source.part == data.TEST)
    rows = test.tolist() if len(test) else range(len(ids))
    return sorted(random.Random(seed).sample(sorted(rows, key=ids.__getitem__), min(count, len(rows))))


def middle_clip(n_frames: int, length: int, pace: int = 1) -> np.ndarray:
    """Frame numbers of the clip in the middle of a video, `pace` apart, int64 [1, length]; a shorter video is played in a
    loop."""
    span = pace * (length - 1) + 1
    return (max(0, n_frames - span) // 2 + pace * np.arange(length))[None] % n_frames


def stage_maps(
    backbone: torch.nn.Module, clips: data.VideoViews, compute: features.Compute, stage: str | None
) -> tuple[str, np.ndarray]:
    """The name of the stage (the last one for None) and its attention map for every clip, float32 [clips, h, w]. Raises
    SettingError for a stage that the backbone does not have."""
    maps: dict[int, np.ndarray] = {}
    name = stage or ""
    for index, stages in features.stage_outputs(backbone, clips, compute):
        name = name or [*stages][-1]
        if name not in stages:
            raise SettingError(f"stage is {name!r}, expected one of: {', '.join(stages)}")
        maps |= dict(zip(index.tolist(), attention_map(stages[name]).cpu().numpy(), strict=True))
    return name, np.stack([maps[i] for i in range(len(clips))])


def attention_map(stage: torch.Tensor) -> torch.Tensor:
    """Features [B, C, T, H, W] -> float32 [B, H, W]: the squared sum of absolute activations over channels, averaged over time
    and divided by the maximum of each map [Zagoruyko and Komodakis, ICLR 2017, activation-based attention]."""
    maps = stage.float().abs().sum(1).square().mean(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)


def correlation(attention: np.ndarray, moving: np.ndarray) -> float | None:
    """100 x Pearson correlation of a map's cells [h, w] with the mean of |M_u| + |M_v| (`moving` [H, W]) over the part of the
    crop that each cell covers; None if either is constant."""
    height, width = attention.shape
    cells = cv2.resize(moving.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    if attention.std() == 0 or cells.std() == 0:
        return None
    return 100 * float(np.corrcoef(attention.ravel(), cells.ravel())[0, 1])


def overlay(frame: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The map (float32 [h, w], 0 to 1), enlarged bilinearly, in colour over the grey frame; frame and result uint8 [H, W, 3]."""
    height, width = frame.shape[:2]
    enlarged = cv2.resize(attention, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    color = cv2.applyColorMap((255 * enlarged).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    return np.clip(0.45 * grey + 0.75 * color, 0, 255).astype(np.uint8)


def crop(picture: np.ndarray, size: int) -> np.ndarray:
    """The centre crop [size, size, ...] of a picture [H, W, ...]."""
    y, x = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[y : y + size, x : x + size]


def tiles_of(sheet: np.ndarray, count: int) -> list[np.ndarray]:
    """The `count` tiles of a sheet (see `write_sheet`), uint8 [_TILE, _TILE, 3] each; empty if the picture has another size."""
    top, step = 2 * sheets.LINE, _TILE + sheets.GAP
    if sheet.shape[:2] != (top + _TILE, count * step - sheets.GAP):
        return []
    return [sheet[top:, i * step :][:, :_TILE] for i in range(count)]


def sheet_folder(protocol: Protocol, name: str) -> Path:
    """Create the folder of a protocol's sheets, and add an empty list "sheets" to its result."""
    folder = protocol.evaluator.saved.run / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    protocol.extra |= {"folder": str(folder.parent), "sheets": []}
    return folder


def write_sheet(folder: Path, name: str, title: str, tiles: dict[str, np.ndarray]) -> str:
    """Write tiles uint8 [size, size, 3] side by side, each under its title, as a sheet. Returns its path relative to the
    folder of results."""
    path = folder / files.path_name(name.replace("/", "_"), ".png")
    shown = [
        (cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC), [caption]) for caption, tile in tiles.items()
    ]
    files.write_png(path, sheets.contact_sheet(title, shown, len(shown)))
    return f"{folder.name}/{path.name}"


def drawn_files(result: dict) -> list[str]:
    """The paths of the sheets of a result."""
    return [str(Path(result["folder"]) / drawn["file"]) for drawn in result["sheets"]]
