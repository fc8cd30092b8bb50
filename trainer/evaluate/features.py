"""Features of videos, from every stage of a backbone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from trainer import data
from trainer.augment import centre
from trainer.checkpoint import Checkpoint, backbone_weights
from trainer.methods import build_backbone
from trainer.settings import Settings

VIEWS = 10


def backbones(saved: Checkpoint) -> dict[str, nn.Module]:
    """The backbone of a checkpoint, and the same one with the weights that its training began with."""
    settings = Settings(**saved.meta["settings"])
    pretrained, random = (build_backbone(settings) for _ in range(2))
    pretrained.load_state_dict(backbone_weights(saved))
    return {"pretrained": pretrained, "random": random}


def pool(stage: Tensor) -> dict[str, Tensor]:
    """[B, C, T, H, W] -> L2-normalised float32: `max` over 2 x 3 x 3 cells [B, 18 C], `mean` over all [B, C]."""
    pooled = {"max": F.adaptive_max_pool3d(stage, (2, 3, 3)).flatten(1), "mean": stage.mean((2, 3, 4))}
    return {name: F.normalize(features.float(), dim=1) for name, features in pooled.items()}


def extract(
    backbone: nn.Module,
    shards: data.Shards,
    videos: np.ndarray,
    folder: Path,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> dict[tuple[str, str], np.ndarray]:
    """Features of 10 evenly spread clips of each video, centre crop, batch norm in evaluation mode.

    videos: int64 [n, 2] (shard, video). Returns float32 [n, 10, d] by (stage, pooling), L2-normalised, as memory maps
    of files written to `folder`: for a large data set they are larger than memory.
    """
    backbone.eval().to(device, memory_format=torch.channels_last_3d)
    views = data.VideoViews(shards, videos, VIEWS)
    features: dict[tuple[str, str], np.ndarray] = {}
    seen = np.zeros(len(views), np.int64)
    batches = data.loader(views, workers, device, batch_size=batch_size)
    for batch in tqdm(batches, "features", unit="batch", leave=False, disable=not sys.stderr.isatty()):
        index = batch["index"].numpy()
        # TF32 would make features depend on the batch size, through the choice of algorithm
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            stages = backbone(centre(batch["clips"].to(device, non_blocking=True), shards.config["crop"]))
            for stage, output in stages.items():
                for pooling, values in pool(output).items():
                    key = stage, pooling
                    if key not in features:
                        file, shape = folder / f"{stage}-{pooling}.npy", (len(views), values.shape[1])
                        features[key] = np.lib.format.open_memmap(file, "w+", np.float32, shape)
                    features[key][index] = values.cpu().numpy()
        seen[index] += 1
    if not (seen == 1).all():
        raise AssertionError(f"{np.count_nonzero(seen != 1)} of {len(seen)} clips were not scored exactly once")
    return {key: values.reshape(len(videos), VIEWS, -1) for key, values in features.items()}
