"""SimCLR on videos: clips of one video are alike, those of other videos in the batch are not. [T. Chen et al., ICML 2020;
R. Qian et al., CVRL, CVPR 2021; C. Feichtenhofer et al., CVPR 2021]"""

from __future__ import annotations

from torch import Tensor

from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Shards
from trainer.methods.contrast import (
    COMPARED,
    SeveralClips,
    check_several,
    contrastive,
    encoded,
    head_options,
    nearest,
    projection,
)
from trainer.methods.parts import NORMALISED
from trainer.options import POSITIVE, Option


class SimCLR(SeveralClips):
    """Distinguish the other clips of a clip's video from all clips of the other videos in the batch, over all processes:
    NT-Xent, with every clip as a query. If the batch holds a video twice, its clips are not negatives of each other.

    It needs large batches, since the negatives of a clip are the batch's clips of other videos.
    """

    task = "clips of a video are alike, those of the batch's other videos are not"
    source = "T. Chen et al., ICML 2020; R. Qian et al., CVPR 2021"
    defaults = {  # on Kinetics-400 the optimiser of the papers is LARS, see the recipes
        "epochs": 200,  # of PySlowFast
        "batch_size": 64,  # of PySlowFast
        "lr": 0.1,  # assumed
        "momentum": 0.9,  # of PySlowFast
        "weight_decay": 1e-4,  # assumed
        "schedule": "cosine",  # of PySlowFast
        "drop_every": 100,  # assumed, for another schedule
        "jitter": "contrast",
        "sync_bn": True,  # of PySlowFast
    }
    options = SeveralClips.options | {
        **head_options(3, 2048, 128, True),  # of CVRL; PySlowFast has no batch normalisation here
        "temperature": Option(0.1, "temperature of the similarities", POSITIVE),  # of PySlowFast and CVRL
    }
    scored = False  # a sample by itself has no negatives

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        check_several("simclr", shards, len(self.samples(shards, options)[0]))
        self.clips, self.temperature = options["clips"], options["temperature"]
        self.projection = projection(backbone.features, options)

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return NORMALISED if options["batch_norm"] else COMPARED

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """accuracy: how often the most similar other clip in the batch is of the same video."""
        z = encoded(backbone, self.projection, batch.clips.unflatten(0, (-1, self.clips))).flatten(0, 1)
        video = batch.video.repeat_interleave(self.clips)
        hit, chance = nearest(z, video)
        return {
            "loss": contrastive(z, video, self.temperature),
            "accuracy": distributed.mean(hit),
            "chance": distributed.mean(chance),
        }
