"""Pace prediction: at which speed is the clip played? [thesis 4.2; J. Wang, J. Jiao, Y.-H. Liu, ECCV 2020]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.shards import ShardReader
from trainer import distributed
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.errors import SettingError, TrainerError
from trainer.methods.contrast import COMPARED, belonging, contrastive
from trainer.methods.method import Method, Shown
from trainer.methods.parts import classification, embedding, float32, projection_head, unit
from trainer.options import POSITIVE, Option, at_least

CONTRASTS = ("none", "same-context", "same-pace")


class Pace(Method):
    """Classify the pace of a clip; with options.contrast also distinguish clips that belong together from others.

    One sample per video and epoch, of row = epoch modulo rows; with "same-context" the video gives two clips of different paces
    [thesis 4.2.3]: row 2 epoch and the next row with another pace.
    The contrastive loss uses projections of the features, C-C-128 with a ReLU, unless it is literal. They have 328,320
    parameters for 512 features; [thesis table 4.6] implies about 4 thousand for its layer without giving sizes.
    """

    task = "at which speed is the clip played"
    sample = "a video: the row `epoch mod rows` of its stored draws, or two rows of different paces"
    source = "J. Wang et al., ECCV 2020"
    defaults = {
        "epochs": 20,
        "batch_size": 30,
        "lr": 1e-3,
        "momentum": 0.9,  # of the authors' code
        "weight_decay": 5e-3,  # of the authors' code
        "schedule": "step",
        "drop_every": 6,
        "jitter": "frame",  # the same jitter for all frames would not prevent the shortcut
    }
    options = {
        "contrast": Option("none", "which clips belong together: those of one video or of one pace", choices=CONTRASTS),
        "contrast_weight": Option(0.1, "weight of the contrastive loss", at_least(0)),
        "pace_weight": Option(1.0, "weight of the classification; 0: learn only the contrast", at_least(0)),
        "temperature": Option(0.1, "temperature of the contrastive loss", POSITIVE),  # not stated in the thesis
        "literal": Option(
            False,
            "the contrastive loss as the thesis writes it: dot products of features, over all pairs of the batch, summed over a "
            "clip's positives, no projection, no temperature",
        ),
        "random_backwards": Option(False, "play a random half of the clips backwards; the class is only the pace"),
    }
    answers_depend_on = ("paces",)

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.contrast, self.contrast_weight = options["contrast"], options["contrast_weight"]
        self.temperature, self.literal = options["temperature"], options["literal"]
        self.pace_weight = options["pace_weight"]
        classes = len(shards.config["paces"])
        self.head: nn.Module = nn.Linear(backbone.features, classes) if self.pace_weight else nn.Identity()
        self.projection: nn.Module = nn.Identity()
        if self.contrast != "none" and not self.literal:
            self.projection = projection_head(backbone.features, backbone.features, 128)

    @staticmethod
    def check(options: dict) -> None:
        if not options["pace_weight"] and (options["contrast"] == "none" or not options["contrast_weight"]):
            raise SettingError("pace_weight is 0 and contrast is none, so nothing is learnt; set contrast, or a weight")

    @staticmethod
    def needs_two(options: dict) -> tuple[str, bool]:
        return COMPARED if options["contrast"] != "none" and options["contrast_weight"] else ("", False)

    @staticmethod
    def shape(config: dict, options: dict) -> tuple[int, int]:
        return (2 if options["contrast"] == "same-context" else 1), config["clip_length"]

    @classmethod
    def stored_draws(cls, config: dict, options: dict) -> tuple[str, int]:
        return "rows", cls.shape(config, options)[0]

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that are long enough for every pace and, with "same-context", have rows of two different paces. Raises
        TrainerError if the shards have too few rows, and for random_backwards if they already have backward paces."""
        two = options["contrast"] == "same-context"
        if two and shards.config["rows"] < 2:
            raise TrainerError("same-context needs two pace rows per video, the shards have 1; label two rows or more")
        backwards = [pace for pace in shards.config["paces"] if pace.startswith("-")]
        if options["random_backwards"] and backwards:
            raise TrainerError(
                f"random_backwards makes one class of a pace and its reverse, and the shards have {', '.join(backwards)} as "
                "separate classes; label other paces, or leave it out"
            )
        return shards.with_rows("pace/pace", different=two)

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        paces = reader.arrays["pace/pace"][video]
        n = len(draw.views)
        first = n * draw.epoch % len(paces)
        rows = [first]
        if n == 2:
            following = np.roll(paces, -first)
            rows.append((first + int((following != following[0]).argmax())) % len(paces))
        frames = np.stack([reader.pace_frames(video, row) for row in rows])
        if draw.options["random_backwards"]:  # [thesis 4.4.1, table 4.4: four classes]
            backwards = draw.rng.random(n) < 0.5
            frames[backwards] = frames[backwards, ::-1]
        return frames, {"pace": paces[rows].astype(np.int64)}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        paces = [shards.config["paces"][pace] for pace in batch.labels["pace"][0].tolist()]
        lines = [f"pace {' and '.join(paces)}"] if options["pace_weight"] else []
        if options["contrast"] != "none":
            lines.append(f"clips of the {options['contrast'].replace('-', ' ')} belong together")
        if options["random_backwards"]:
            lines.append("forwards or backwards, which is not part of the target")
        return lines, [(f"pace {pace}", clip) for pace, clip in zip(paces, batch.clips, strict=True)]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        """labels: pace int64 [B, n]."""
        pace = batch.labels["pace"]
        return self.metrics(
            embedding(backbone, batch.clips), pace.flatten(), batch.video.repeat_interleave(pace.shape[1])
        )

    def metrics(self, pooled: Tensor, pace: Tensor, video: Tensor) -> dict[str, Tensor]:
        """Losses for features float32 [N, C] of clips, and the pace and video of each, int64 [N]. contrast: the contrastive
        loss without its weight."""
        metrics = {"loss": pooled.new_zeros(())}
        if self.pace_weight:
            metrics = classification(self.head(pooled).float(), pace)
            metrics["loss"] = self.pace_weight * metrics["loss"]
        if self.contrast != "none":
            group = pace if self.contrast == "same-pace" else video
            if self.literal:
                contrast = literal(pooled, group)
            else:
                contrast = contrastive(unit(self.projection(pooled)), group, self.temperature)
            metrics |= {"loss": metrics["loss"] + self.contrast_weight * contrast, "contrast": contrast}
        return metrics


@float32
def literal(z: Tensor, group: Tensor) -> Tensor:
    """1/N sum of -log(e^s(i,j) / sum over k != l of e^s(k,l)), s = z_i z_j, over all ordered pairs i, j of the same group, with
    N the number of clips. A clip's weight is its number of positives, and the denominator is the sum over the whole similarity
    map, that is over all pairs of clips. [thesis eq. 4.3, 4.4, fig. 4.4, alg. 3 and 4]

    z: float32 [N, d]; group: int64 [N]; both are joined over all processes.
    """
    everything, begin = distributed.gather(z)
    similarity = everything @ everything.T  # [all, all]
    diagonal = torch.eye(len(everything), dtype=torch.bool, device=z.device)
    whole = similarity.masked_fill(diagonal, -torch.inf).logsumexp((0, 1))
    _, positive = belonging(group)
    terms = whole - similarity[begin : begin + len(z)]
    return distributed.mean(terms.masked_fill(~positive, 0).sum(1))
