"""The classifier of `recognition` with hidden layers, and clips that are not mirrored."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.synthetic import CONFIG, write_shard
from trainer import checkpoint, data
from trainer.backbones import create
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import Evaluator
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols.recognition import predictions
from trainer.methods.recognition import Recognition
from trainer.settings import Settings
from trainer.training import train

ONE = Compute(8, 0, "cpu")
TINY = Settings(method="recognition", backbone="c3d_light", width=0.06, epochs=1, workers=0, lr=0.02, batch_size=4)


def test_light_c3d_has_fc_6_and_fc_7_of_the_published_sizes():
    """Table 2.1: 4096 cells of pool 5, 2048, 2048, classes."""
    with torch.device("meta"):
        backbone = create("c3d_light")
    shards = SimpleNamespace(
        config={"clip_length": 16, "crop": 112}, classes=["a", "b", "c"], targets=np.zeros(4, np.int64)
    )
    head = Recognition(backbone, Recognition.option_values({"hidden": 2048}), shards).head
    assert [layer.weight.shape for layer in head if isinstance(layer, nn.Linear)] == [
        (2048, 4096),
        (2048, 2048),
        (3, 2048),
    ]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.5, 0.5]  # after fc 6 and after fc 7
    assert isinstance(head[3], nn.ReLU) and isinstance(head[4], nn.Dropout) and isinstance(head[7], nn.Dropout)


@pytest.mark.parametrize("mirror", [True, False])
def test_clips_are_mirrored_or_not(demo, mirror):
    shards, options = data.Shards(demo), Recognition.option_values({"mirror": mirror})
    samples = Recognition.samples(shards, options)[0]
    clips = data.TrainingClips(shards, samples, Recognition, options, seed=0, jitter="none")
    raw = clips.batch(np.array([(epoch, i) for epoch in range(4) for i in range(len(samples))]))
    assert set(raw["view"]["mirror"].flatten().tolist()) == ({0, 1} if mirror else {0})
    assert len(raw["view"]["crop"].unique()) > 4


@pytest.mark.parametrize(("name", "fits", "other"), [("crop", 32, 24), ("clip_length", 16, 24)])
def test_hidden_layers_fit_clips_of_one_size(demo, here, tmp_path, name, fits, other):
    run = train(replace(TINY, options={"recognition": {"hidden": 6}}), demo)
    write_shard(tmp_path / "demo" / "00000.h5", [20, 30], [3, 1], config=CONFIG | {name: other})
    bench = Evaluator(tmp_path / "demo", run, compute=ONE)
    with pytest.raises(TrainerError, match=f"the hidden layers of its classifier need {name} {fits}, .* has {other}"):
        predictions(bench, bench.saved)


def test_a_pretrained_branch_is_not_taken_over(demo, here):
    """Section 2.3.2: the weights of the convolutions are kept, the fully connected layers begin anew."""
    settings = replace(TINY, method="statistics", options={"statistics": {"hidden": 6}})
    pretrained = checkpoint.load(train(settings, demo, "first")).weights
    frozen = {"hidden": 6, "freeze": True}
    weights = checkpoint.load(
        train(replace(TINY, lr=1e-9, options={"recognition": frozen}), demo, "second", initial="first")
    ).weights
    assert all(torch.equal(weights[name], pretrained[name]) for name in weights if name.startswith("backbone."))
    old, new = (
        pretrained["methods.statistics.heads.motion.4.weight"],
        weights["methods.recognition.head.5.weight"],
    )
    assert old.shape == new.shape and not torch.allclose(old, new)


def test_hidden_layers_are_not_changed_on_resume(demo, here):
    run = train(replace(TINY, options={"recognition": {"hidden": 6, "mirror": False}}), demo)
    with pytest.raises(TrainerError, match="hidden is 8, but the run has 6"):
        train(Settings(options={"recognition": {"hidden": 8}}), demo, resume=run)
