"""Later frames: how similar are a context and the frames after it for a run of skip_clip?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.errors import ProtocolError
from trainer.evaluate.protocol import Protocol, ProtocolOption
from trainer.evaluate.protocols import attention, data, inputs, np, pretext, torch


class Future(Protocol):
    """Measure how similar a context and each later frame are for a run of skip_clip, and draw it cell by cell."""

    title = "Later frames"
    question = "How similar are a context clip and each later frame, by the number of frames between them?"
    items = (
        "The videos as for `pretext`, for a run of `skip_clip`; `--draws` random contexts of each and the frames that the method "
        "ranks: `targets` frames, `spacing` apart."
    )
    classifier = (
        "None: 100 x Gamma, the mean over cells of the cosine of context and frame, by the distance from the context's last "
        "frame. The cosine of each cell is drawn over a few frames, from the lowest of the sheet (dark) to the highest (bright)."
    )
    left_out = "Videos too short for the context and its frames; runs of other methods."
    source = "El-Nouby et al., 2019, figure of the similarity per aligned cell."
    options = (
        ProtocolOption("draws", int, "Number of contexts of every video.", default=1, least=1),
        ProtocolOption("count", int, "Number of videos to draw.", default=2, least=0),
    )
    index = ("network",)
    columns = ("distance",)
    published = ()
    about_sheets = (
        "The last frame of a context, and later frames; a brighter cell of a frame is more similar to that of the context. The "
        "numbers are 100 x the mean cosine of the cells, for this network and for random weights."
    )
    scale = ("least similar of the sheet", "most similar")

    def choose(self, draws: int = 1, count: int = 2) -> data.Shards:
        if "skip_clip" not in self.evaluator.saved.meta["settings"]["method"].split("+"):
            raise ProtocolError(
                f"{self.evaluator.saved.file}: not a run of skip_clip, the only method that compares a context with later frames",
                "vssl train --method skip_clip",
            )
        source, videos, self.mode = pretext.unseen(self.evaluator)
        self.draws, self.count = draws, count
        self.clips, note = pretext.samples(self.evaluator, source, videos, "skip_clip")
        self.notes += [note] if note else []
        return source

    def rows(self) -> Iterator[dict]:
        self.folder = attention.sheet_folder(self, "future")
        for network in ("pretrained", "random"):
            backbone, method = pretext.trained(self.evaluator, self.shards, "skip_clip", network == "pretrained")
            yield from ({"network": network, **row} for row in self._by_distance(network, backbone, method))

    def _by_distance(self, network: str, backbone: Any, method: Any) -> Iterator[dict]:
        """Yield Gamma by distance, averaged over contexts; draw a few contexts of the pretrained network."""
        from trainer.methods.parts import last_stage

        values, number = [], len(self.clips.samples)
        drawn = np.unique(np.linspace(0, number - 1, min(self.count, number)).astype(int)).tolist()
        batches = pretext.batches(self.evaluator, self.clips, self.draws, f"later frames, {network}")
        for i, (batch, video) in enumerate(batches):
            context, targets = batch.clips.tensor_split([self.shards.clip_length], 2)
            h = last_stage(backbone, context).mean(2)  # [1, C, H, W]
            z = method.encode(
                targets.transpose(1, 2).flatten(0, 1)[:, :, None], (h.shape[2], h.shape[3])
            )  # [M, C, H, W]
            cells = torch.nn.functional.cosine_similarity(h.float(), z.float(), dim=1).cpu().numpy()  # [M, H, W]
            values.append(cells.mean((1, 2), dtype=np.float64))
            if network == "pretrained" and i in drawn:
                self._draw(video, context[0, :, -1].cpu().numpy(), targets[0].cpu().numpy(), cells)
        spacing = self.clips.options["spacing"]
        for place, value in enumerate(np.mean(values, axis=0), 1):
            yield {"metric": "cosine", "distance": place * spacing, "value": 100 * float(value)}

    def _draw(self, video: int, last: np.ndarray, targets: np.ndarray, cells: np.ndarray) -> None:
        """Draw the sheet of a context: its last frame float32 [3, S, S], later frames [3, M, S, S], their cosines [M, h, w]."""

        def picture(frame: np.ndarray) -> np.ndarray:
            return expected.pixels(frame.transpose(1, 2, 0))

        expected = inputs.of_run(self.evaluator.saved.meta)
        low, spacing = cells.min(), self.clips.options["spacing"]
        shades = ((cells - low) / max(cells.max() - low, 1e-12)).astype(np.float32)
        tiles = {"end of the context": picture(last)}
        for i in np.unique(np.linspace(0, len(cells) - 1, 4).astype(int)):
            title = f"{(i + 1) * spacing} frames later: {100 * cells[i].mean():.0f}"
            tiles[title] = attention.overlay(picture(targets[:, i]), shades[i])
        name, label = (self.shards.text(f"videos/{key}")[video] for key in ("id", "label"))
        file_name = "-".join(filter(None, (self.shards.dataset, self.shards.split, name)))
        file = attention.write_sheet(self.folder, file_name, name, tiles)
        self.extra["sheets"].append({"video": name, "label": label, "shown": [*tiles], "file": file})

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
        return [*super().table(result), "", *attention.drawn_files(result)]
