"""Later frames: how alike are a context and the frames after it, in a run of skip_clip?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.evaluate.protocol import Option, Protocol, ProtocolError

if TYPE_CHECKING:
    from trainer.data import Shards


class Future(Protocol):
    """Measure how alike a context and each later frame are, of a run of skip_clip, and draw where."""

    title = "Later frames"
    question = "How alike are a context clip and each later frame, by the frames between them?"
    items = (
        "Videos of a `skip_clip` run as of `pretext`; `--draws` random contexts of each and the frames that the method ranks: "
        "`targets` of them, `spacing` apart."
    )
    classifier = (
        "None: 100 x Gamma, the mean over the cells of the cosine of context and frame, by the distance from the context's last "
        "frame. Drawn over a few frames: the cosine of each cell, from the lowest of the sheet (dark) to the highest (bright)."
    )
    left_out = "Videos too short for context and frames; runs of other methods."
    source = "El-Nouby et al., 2019, its figure of the similarity per aligned cell."
    options = (
        Option("draws", int, "Contexts of every video.", default=1, least=1),
        Option("count", int, "Videos that are drawn.", default=2, least=0),
    )
    index = ("network",)
    columns = ("distance",)
    published = ()
    about_sheets = (
        "The last frame of a context, and later frames; brighter: the frame's cell is more like the context's. The numbers are "
        "100 x the mean cosine of the cells, with random weights beside those of this network."
    )
    scale = ("least like it of the sheet", "most like it")

    def choose(self, draws: int = 1, count: int = 2) -> Shards:
        from trainer.evaluate.task import samples, unseen

        if "skip_clip" not in self.bench.saved.meta["settings"]["method"].split("+"):
            raise ProtocolError(
                f"{self.bench.saved.file}: not a run of skip_clip, which alone compares a context with frames",
                "vssl train --method skip_clip",
            )
        source, videos, self.mode = unseen(self.bench)
        self.draws, self.count = draws, count
        self.clips, note = samples(self.bench, source, videos, "skip_clip")
        self.notes += [note] if note else []
        return source

    def rows(self) -> list[dict]:
        from trainer.evaluate.task import network

        rows = []
        for name in ("pretrained", "random"):
            backbone, methods = network(self.bench.saved, self.shards, name == "pretrained")
            rows += [{"network": name, **row} for row in self.by_distance(name, backbone, methods["skip_clip"])]
        return rows

    def by_distance(self, name: str, backbone, method) -> Iterator[dict]:
        """Gamma by distance, mean over contexts; of the pretrained network a few are drawn."""
        import numpy as np
        from torch.nn.functional import cosine_similarity

        from trainer.evaluate.task import batches
        from trainer.methods.parts import last_stage

        backbone, method, values = backbone.to(self.bench.device), method.to(self.bench.device), []
        number = len(self.clips.samples)
        drawn = {*np.unique(np.linspace(0, number - 1, min(self.count, number)).astype(int)).tolist()}
        drawn = drawn if name == "pretrained" else set()
        self.extra.setdefault("folder", str(self.bench.saved.run / "results"))
        self.extra.setdefault("sheets", [])
        for i, (batch, video) in enumerate(batches(self.bench, self.clips, self.draws, f"later frames, {name}")):
            context, targets = batch.clips[:, 0].tensor_split([self.shards.clip_length], 2)
            h = last_stage(backbone, context).mean(2)  # [1, C, H, W]
            z = method.encode(targets.transpose(1, 2).flatten(0, 1)[:, :, None], h.shape[2:])  # [M, C, H, W]
            cells = cosine_similarity(h.float(), z.float(), dim=1).cpu().numpy()  # [M, H, W]
            values.append(cells.mean((1, 2), dtype=np.float64))
            if i in drawn:
                self.draw(video, context[0, :, -1].cpu().numpy(), targets[0].cpu().numpy(), cells)
        spacing = self.clips.options["spacing"]
        for place, value in enumerate(np.mean(values, axis=0), 1):
            yield {"metric": "cosine", "distance": place * spacing, "value": 100 * float(value)}

    def draw(self, video: int, last, targets, cells) -> None:
        """The sheet of one context: its last frame float32 [3, S, S], later frames [3, M, S, S], their cells [M, h, w]."""
        import numpy as np

        from labelgen.files import path_name, write_png
        from trainer.augment import MEAN, STD
        from trainer.evaluate.maps import overlay, sheet

        def picture(frame):
            return np.clip(255 * (frame.transpose(1, 2, 0) * STD + MEAN), 0, 255).astype(np.uint8)

        folder = self.bench.saved.run / "results" / "future"
        folder.mkdir(parents=True, exist_ok=True)
        low, spacing = cells.min(), self.clips.options["spacing"]
        shades = ((cells - low) / max(cells.max() - low, 1e-12)).astype(np.float32)
        tiles = {"end of the context": picture(last)}
        for i in np.unique(np.linspace(0, len(cells) - 1, 4).astype(int)):
            name = f"{(i + 1) * spacing} frames later: {100 * cells[i].mean():.0f}"
            tiles[name] = overlay(picture(targets[:, i]), shades[i])
        name, label = (self.shards.text(f"videos/{key}")[video] for key in ("id", "label"))
        named = "-".join(filter(None, (self.shards.dataset, self.shards.split, name)))
        path = folder / path_name(named.replace("/", "_"), ".png")
        write_png(path, sheet(name, tiles))
        self.extra["sheets"].append({"video": name, "label": label, "shown": [*tiles], "file": f"future/{path.name}"})

    def conditions(self) -> dict[str, Any]:
        options, length = self.clips.options, self.shards.clip_length
        return {
            "mode": f"100 x Gamma of a context and each later frame, {self.mode}, seed of the draws 0",
            "views": f"{self.draws} contexts of {length} frames, {options['targets']} frames {options['spacing']} apart, "
            "centre crop",
            "items": f"{len(self.clips.samples)} videos",
        }

    @classmethod
    def table(cls, result: dict) -> list[str]:
        from pathlib import Path

        return super().table(result) + [
            "",
            *(str(Path(result["folder"]) / sheet["file"]) for sheet in result["sheets"]),
        ]
