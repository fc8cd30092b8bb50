import math

import numpy as np
import pytest
import torch
from torch import nn

from trainer.backbones import create
from trainer.data import Batch, Shards, TrainingClips
from trainer.methods.arrow import Arrow


def test_clips_are_reversed_where_the_label_says_so(demo):
    shards = Shards(demo)
    options = Arrow.option_values()
    samples, _, _ = Arrow.samples(shards, options)
    clips = TrainingClips(shards, samples, Arrow, options, seed=0, jitter="none")
    batch = clips.batch(np.array([(0, sample) for sample in range(len(samples))]))
    corners, backwards = batch["view"]["corner"], batch["labels"]["backwards"]
    for i, (shard, clip) in enumerate(samples):
        reader, shown = shards.readers[shard], batch["clips"][i, 0].numpy()  # uint8 [16, S, S, 3]
        forwards = reader.frames(reader.clip_frames(clip), np.empty_like(shown), corners[i, 0])
        assert np.array_equal(shown, forwards[::-1] if backwards[i] else forwards)
        assert not np.array_equal(forwards, forwards[::-1])
    assert 0 < batch["labels"]["backwards"].sum() < len(samples)


def test_a_head_that_knows_nothing_has_the_loss_log_2(demo):
    backbone = create("r3d10", 0.06)
    arrow = Arrow(backbone, Arrow.option_values(), Shards(demo))
    nn.init.zeros_(arrow.head.weight), nn.init.zeros_(arrow.head.bias)
    labels = {"backwards": torch.tensor([0, 1, 1, 1])}
    metrics = arrow(backbone, Batch(torch.randn(4, 3, 16, 32, 32), labels, torch.arange(4), 0.0))
    assert metrics["loss"].item() == pytest.approx(math.log(2))
    assert metrics["accuracy"].item() == 0.25  # of equal logits the first wins
