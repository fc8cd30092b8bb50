"""Attention maps: where a stage of the network is active, beside where the clip moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.evaluate import tables
from trainer.evaluate.protocol import Option, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from trainer.data import Shards

    # frames uint8 [T, H, W, 3], configuration of the shards -> magnitudes of M_u and M_v, float32 [2, H, W]
    Boundaries = Callable[[np.ndarray, dict], np.ndarray]


class Attention(Protocol):
    """Draw where the network is active, beside the motion boundaries of the clip, as PNG files."""

    title = "Attention"
    question = "Is the network active where the clip moves?"
    items = (
        "The middle clip of a few videos of the split's test part, or of all: those named by `--video`, else random ones. "
        "`--pace 2` takes every second frame, and so on, around the same middle."
    )
    classifier = (
        "None: absolute activations of a stage summed over channels and squared, mean over time, drawn over the frame "
        "beside the motion boundaries of the clip; 100 x the Pearson correlation of the map's cells with the mean of "
        "|M_u| + |M_v| over each."
    )
    left_out = "Correlations of maps or boundaries that are constant; they are counted."
    source = "Zagoruyko and Komodakis, ICLR 2017; thesis 2.5, 3.6.1, 4.5, fig. 2.8, 2.9, 3.7, 4.8."
    options = (
        Option("stage", str, "Such as conv4.  [default: the last]"),
        Option(
            "video",
            str,
            "Id of a video, or its end, also without the extension; repeatable.  [default: a random few]",
            argument="videos",
        ),
        Option("pace", int, "Every so manieth frame makes the clip.", default=1, least=1),
        Option("count", int, "Random videos, where none is named.", default=4, least=1),
        Option("seed", int, "Seed of the random choice.", default=0),
    )
    index = ("video",)
    columns = ("network",)
    published = ()
    needs_boundaries = True
    about_sheets = (
        "Where the network is active, over the frame in grey; each map relative to its own most active place. The motion "
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
    ) -> Shards:
        """stage: default the last. videos: ids or their ends; default `count` random ones, drawn from `seed`. pace: frames from
        one of the clip to the next. boundaries:
        where given, M_u and M_v stand beside the maps, and the rows hold how far each map follows them, see maps.correlation."""
        from functools import partial

        from trainer import data
        from trainer.evaluate.maps import choose_videos, middle_clip

        source = self.bench.source()
        self.stage, self.boundaries, self.pace = stage, boundaries, pace
        self.videos = choose_videos(source, videos, count, seed)
        self.clips = data.VideoViews(source, source.videos[self.videos], partial(middle_clip, pace=pace))
        self.maps: dict[str, np.ndarray] = {}
        self.constant = 0  # maps without a correlation
        return source

    def rows_of(self, network: str, backbone: nn.Module) -> Iterator[dict]:
        from trainer.evaluate.maps import stage_maps

        self.stage, self.maps[network] = stage_maps(backbone, self.clips, self.bench.compute, self.stage)
        return iter(())

    def rows_beside(self, rows: list[dict]) -> Iterator[dict]:
        """Draw a sheet of every video; how far the maps follow its boundaries."""
        from labelgen.files import path_name, write_png
        from trainer.evaluate.maps import correlation, crop, grey, overlay, sheet

        folder = self.bench.saved.run / "results" / "attention"
        folder.mkdir(parents=True, exist_ok=True)
        source, middle = self.shards, self.clips.frames.shape[1] // 2
        ids, labels, size = source.text("videos/id"), source.text("videos/label"), source.config["crop"]
        self.extra |= {"folder": str(folder.parent), "sheets": []}
        for i, video in enumerate(self.videos):
            frames, shown_frames = self.clips.batch([i])["clips"][0].numpy(), self.clips.frames[i]
            drawn = crop(frames[middle], size)
            tiles = {f"frame {shown_frames[middle]}": drawn}
            tiles |= {f"{network} {self.stage}": overlay(drawn, maps[i]) for network, maps in self.maps.items()}
            if self.boundaries is not None:
                moving = [crop(magnitude, size) for magnitude in self.boundaries(frames, source.config)]
                tiles |= {f"motion boundary of {name}": grey(m) for name, m in zip("uv", moving, strict=True)}
                for network, maps in self.maps.items():
                    value = correlation(maps[i], sum(moving))
                    row = {"network": network, "stage": self.stage, "video": ids[video], "metric": "correlation"}
                    if value is None:
                        self.constant += 1
                    else:
                        yield {**row, "value": value}
            named = "-".join(filter(None, (source.dataset, source.split, self.stage, self.at_pace(), ids[video])))
            path = folder / path_name(named.replace("/", "_"), ".png")
            label = f" ({labels[video]})" if labels[video] else ""
            at = f"{len(shown_frames)} frames from {shown_frames[0]}{self.at_pace(', ')}"
            write_png(path, sheet(f"{ids[video]}{label}, {at}", tiles))
            shown = {"video": ids[video], "label": labels[video], "shown": list(tiles)}
            self.extra["sheets"].append({**shown, "file": f"attention/{path.name}"})

    def remarks(self) -> list[str]:
        if not self.constant:
            return []
        return [f"{self.constant} maps have no correlation: they, or the clip's boundaries, are constant"]

    def conditions(self) -> dict[str, Any]:
        return {
            "mode": f"(sum of absolute activations)^2 of {self.stage}, mean over time",
            "views": f"the middle clip of {self.shards.clip_length} frames{self.at_pace(', ')}",
            "items": f"{len(self.videos)} videos",
        }

    def at_pace(self, before: str = "") -> str:
        return f"{before}pace {self.pace}" if self.pace > 1 else ""

    def file_name(self, name: str) -> str:
        return "-".join(filter(None, (name, self.at_pace().replace(" ", ""))))

    @classmethod
    def table(cls, result: dict) -> list[str]:
        lines = []
        if result["rows"]:
            lines += ["100 x correlation of a map's cells with the motion boundaries in them"]
            lines += [*tables.table(result["rows"], cls.index, cls.columns), ""]
        return lines + [str(Path(result["folder"]) / sheet["file"]) for sheet in result["sheets"]]
