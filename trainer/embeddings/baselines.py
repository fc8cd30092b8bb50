"""Features without training, which a network must beat: random weights, and histograms of motion and colours."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from trainer import data, histograms
from trainer.backbones import BACKBONES
from trainer.checkpoint import RUNS, Checkpoint, versions
from trainer.embeddings.extract import Choice, Extractor, Piece
from trainer.errors import SettingError
from trainer.evaluate.features import Compute
from trainer.inputs import OURS
from trainer.network import build_backbone
from trainer.settings import DEFAULT_BACKBONE, Settings, resolve

RANDOM = "random"
HISTOGRAMS = {f"{kind}-histogram": kind for kind in histograms.KINDS}


def is_baseline(name: str | Path) -> bool:
    """Whether a name is that of a baseline: "random", "random:BACKBONE" or one of HISTOGRAMS, but not of a run."""
    return str(name) in HISTOGRAMS or str(name).partition(":")[0] == RANDOM


def baseline(name: str, frames: dict) -> Checkpoint:
    """A baseline in the form of a checkpoint. frames: configuration of the frames to use it for. Raises SettingError
    for an unknown backbone."""
    backbone = name.partition(":")[2] or DEFAULT_BACKBONE
    if backbone not in BACKBONES:
        raise SettingError(f"{name}: unknown backbone {backbone!r}, expected one of: {', '.join(BACKBONES)}")
    settings = resolve(Settings(backbone=backbone))
    weights = {} if name in HISTOGRAMS else build_backbone(settings).state_dict()
    meta = {"settings": asdict(settings) | {"method": name, "options": {}}, "config": frames, "baseline": name}
    return Checkpoint(Path(name), RUNS / name, meta, {f"backbone.{key}": value for key, value in weights.items()})


class HistogramExtractor(Extractor):
    """Histograms of a clip, or of a whole video, instead of the features of a network. flow: see histograms.Flow."""

    def __init__(self, name: str, choice: Choice, frames: dict, compute: Compute, flow: histograms.Flow):
        kind = self.kind = HISTOGRAMS[name]
        self.compute, self.flow = compute, flow
        self.input = OURS
        if choice.crops > 1:
            raise SettingError(f"crops is {choice.crops}, but a {name} covers whole frames; leave the crops out")
        self._choose(choice, [kind])
        self.width = histograms.values(kind)
        self.settings = self.settings_of(f"{name}-{histograms.VERSION}", frames)
        self.about = {
            "checkpoint": name,
            "backbone": name,
            "network_width": 1.0,
            "method": name,
            "versions": versions(),
        }

    def vectors(self, piece: Piece, clips: data.VideoViews) -> tuple[np.ndarray, bool]:
        whole = self.choice.level == "video"
        found = []
        for own, (number, video) in enumerate(piece.videos):
            reader = piece.frames.readers[number]
            first, n = (int(reader.arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
            frames = reader.frames(np.arange(first, first + n))
            times = histograms.of_times(frames, [self.kind], self.flow, self.compute.workers)[self.kind]
            if whole:
                found.append(histograms.summary(times, self.kind))
            else:
                found += [
                    histograms.summary(times[self._times(shown, len(times))], self.kind)
                    for shown in clips.frames[clips.owner == own]
                ]
        return np.array(found, np.float32).reshape(-1, self.width), whole

    def _times(self, shown: np.ndarray, n: int) -> np.ndarray:
        """Rows of the times of a clip with these frames, int64; where a short video restarts, nothing moves."""
        if self.kind in histograms.OF_FRAMES:
            return shown
        return shown[:-1][np.diff(shown) == 1]
