"""Action recognition with labels: finetuning, a linear probe, or training from scratch. [thesis 3.4, vcop 4.3]"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labelgen.shards import ShardReader
from trainer.backbones.layers import Stages
from trainer.data import Batch, Draw, Shards
from trainer.errors import TrainerError
from trainer.methods.method import Method, Shown
from trainer.methods.parts import branch, classification, last_stage, pooled_cells
from trainer.options import SHARE, Option, between


class Recognition(Method):
    """Classify the action; one clip per video and epoch, with a uniform start; short videos are looped.

    The classifier is a linear layer on the mean of the last stage over its cells; with options.hidden it has fc 6 and fc 7
    of light C3D, see parts.branch. These layers start from random weights, as in the thesis, which transfers only the
    convolutions [2.3.2].
    """

    task = "which class is it, with labels (`vssl finetune`)"
    sample = "a labelled video: one clip, in a loop if it is short"
    source = ""
    defaults = {
        "epochs": 150,
        "batch_size": 16,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "drop_every": 60,  # not stated in the paper
        "jitter": "none",
        "holdout": 0.1,
    }
    options = {
        "freeze": Option(False, "train only the classifier, on features of the backbone in evaluation mode"),
        # assumed: the thesis mentions none; the authors' code has dropout of .5 after fc 6 and fc 7
        "dropout": Option(0.5, "dropout before the last layer, or after each hidden layer", SHARE),
        "hidden": Option(0, "width of two hidden layers, fc 6 and fc 7: 2048 in light C3D; 0: none", between(0, 65536)),
        "mirror": Option(True, "mirror a random half of the clips, as the thesis does [3.4.2]; [vcop] does not"),
    }
    supervised = True

    def __init__(self, backbone: Stages, options: dict, shards: Shards):
        super().__init__()
        self.freeze = options["freeze"]
        if self.freeze:
            backbone.requires_grad_(False)
        self.hidden, self.dropout = options["hidden"], nn.Dropout(options["dropout"])
        if self.hidden:
            cells = pooled_cells(backbone, shards.config["crop"], shards.config["clip_length"])
            self.head: nn.Module = branch(cells, self.hidden, len(shards.classes), options["dropout"])
        else:
            self.head = nn.Linear(backbone.features, len(shards.classes))
        self.targets: Tensor
        self.register_buffer("targets", torch.from_numpy(shards.targets), persistent=False)

    @staticmethod
    def samples(shards: Shards, options: dict) -> tuple[np.ndarray, int, str]:
        """The videos that have a label. Raises TrainerError for several data sets and for fewer than two classes."""
        if len(shards.splits) > 1:
            raise TrainerError(f"recognition learns the labels of one data set, not of {', '.join(shards.splits)}")
        if len(shards.classes) < 2:
            raise TrainerError(f"{shards.dataset} has {len(shards.classes)} classes, recognition needs two or more")
        labelled = shards.targets >= 0
        return (
            shards.videos[shards.train_mask & labelled],
            int((shards.train_mask & ~labelled).sum()),
            "without a label",
        )

    @staticmethod
    def read(reader: ShardReader, video: int, draw: Draw) -> tuple[np.ndarray, dict]:
        """Frames of the clip; without options.mirror its view does not stay mirrored."""
        if not draw.options["mirror"]:
            for view in draw.views:
                view["mirror"] = 0
        n, length = int(reader.arrays["videos/n_frames"][video]), reader.clip_length
        frames = (draw.rng.integers(max(1, n - length + 1)) + np.arange(length)) % n
        return reader.arrays["videos/first_frame"][video] + frames[None], {}

    @staticmethod
    def shown(batch: Batch, shards: Shards, options: dict) -> Shown:
        return [f"class {shards.classes[shards.targets[batch.video[0]]]}"], [("clip", batch.clips[0])]

    def forward(self, backbone: Stages, batch: Batch) -> dict[str, Tensor]:
        logits, target = self.logits(backbone, batch.clips), self.targets[batch.video]
        return classification(logits, target)

    def logits(self, backbone: Stages, clips: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> float32 [B, classes]."""
        if self.freeze:
            backbone.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            last = last_stage(backbone, clips)
        if self.hidden:
            return self.head(last).float()
        return self.head(self.dropout(last.mean((2, 3, 4)))).float()


def trained_classifier(weights: dict[str, Tensor], options: dict, classes: int) -> nn.Module:
    """The classifier of a run in evaluation mode and float64, with averaged weights if the run has them: last stage [B, C, T,
    H, W] with options.hidden, else its mean over the cells [B, C] -> logits [B, classes].

    weights: of the whole network, see trainer.network.Network; options: of the method
    """
    prefix = "methods.recognition.head."
    if any(name.startswith(f"ema.{prefix}") for name in weights):
        prefix = f"ema.{prefix}"
    trained = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    if options.get("hidden"):
        head: nn.Module = branch(trained["2.weight"].shape[1], options["hidden"], classes, options["dropout"])
    else:
        head = nn.Linear(trained["weight"].shape[1], classes)
    head.load_state_dict(trained)
    return head.double().eval().requires_grad_(False)
