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
from trainer.network import Network
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


@pytest.mark.parametrize("views", ["spread", "adjacent"])
def test_evaluation_passes_the_hidden_layers(demo, here, views):
    """The trained modules themselves, one clip at a time, for the averaged weights."""
    run = train(replace(TINY, ema=0.5, options={"recognition": {"hidden": 6}}), demo)
    source, saved = data.Shards(demo), checkpoint.load(run, best=True)
    network = Network(Settings(**saved.meta["settings"]), source)
    network.load_state_dict(saved.weights)
    averaged = network.ema.eval()
    scored = predictions(Evaluator(demo, run, compute=ONE), saved, views)
    lengths = [
        source.readers[shard].arrays["videos/n_frames"][video] for shard, video in source.videos[scored.videos].tolist()
    ]
    count = 50 if views == "spread" else sum(max(1, n // 16) for n in lengths)
    assert scored.clips.shape == (count, 2) and len(scored.videos) == 5
    for clip in range(0, count, 7):
        shard, video = source.videos[scored.videos[scored.owner[clip]]]
        arrays = source.readers[shard].arrays
        first, n = (int(arrays[f"videos/{name}"][video]) for name in ("first_frame", "n_frames"))
        own = clip - int(np.flatnonzero(scored.owner == scored.owner[clip])[0])  # which of the video's clips
        starts = np.linspace(0, max(0, n - 16), 10).round().astype(int) if views == "spread" else range(0, n - 15, 16)
        shown = first + (starts[own] + np.arange(16)) % n
        frames = source.readers[shard].frames(shown)[:, 4:36, 8:40]
        x = torch.tensor((frames / 255 - 0.45) / 0.225).float().permute(3, 0, 1, 2)[None]
        with torch.no_grad():
            logits = averaged["methods"]["recognition"].logits(averaged["backbone"], x)[0].double()
        assert scored.clips[clip] == pytest.approx(logits.softmax(0).numpy(), abs=1e-5)


@pytest.mark.parametrize(("name", "fits", "other"), [("crop", 32, 24), ("clip_length", 16, 24)])
def test_hidden_layers_fit_clips_of_one_size(demo, here, tmp_path, name, fits, other):
    run = train(replace(TINY, options={"recognition": {"hidden": 6}}), demo)
    write_shard(tmp_path / "demo" / "00000.h5", [20, 30], [3, 1], config=CONFIG | {name: other})
    bench = Evaluator(tmp_path / "demo", run, compute=ONE)
    with pytest.raises(TrainerError, match=f"the hidden layers of its classifier fit {name} {fits}, .* has {other}"):
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
