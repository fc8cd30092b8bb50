import math
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labelgen.shards import ShardReader
from tests.trainer.plain import Pixels, slow_cross_entropy, slow_linear
from tests.trainer.synthetic import CONFIG, cropped, extent, video_frames, write_shard
from trainer import data
from trainer.backbones import create
from trainer.data import Batch
from trainer.errors import TrainerError
from trainer.methods.order import Order
from trainer.settings import Settings, resolve
from trainer.training import train

ORDERS = list(permutations(range(3)))  # lexicographic


@pytest.fixture(scope="module")
def source(demo):
    return data.Shards(demo)


@pytest.fixture(scope="module")
def clips(source):
    return data.TrainingClips(source, Order.samples(source, {})[0], Order, {}, 0, "none")


def method(clips):
    torch.manual_seed(0)
    return Order(Pixels(), {}, SimpleNamespace(config={"order_clips": clips}))


def batch(clips, order):
    return Batch(clips.flatten(0, 1), {"order": order}, torch.zeros(len(clips), dtype=torch.int64), 0.0)


def slow_logits(method, features):
    """h_k = ReLU(W1 (f_i || f_j) + b1) of the pairs i < j, a = W2 (h_1 || ... || h_N) + b2, written out."""
    joined = []
    for i, j in combinations(range(len(features)), 2):
        joined += [
            max(0.0, h) for h in slow_linear(method.pair, features[i] + features[j])
        ]  # lists: one after the other
    return slow_linear(method.head, joined)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_loss_equals_slow_loop(n):
    order = method(n).eval()
    assert list(order.state_dict()) == ["pair.weight", "pair.bias", "head.weight", "head.bias"]
    clips, labels = torch.randn(3, n, 3, 2, 4, 4), torch.randint(math.factorial(n), (3,))
    out = order(Pixels(), batch(clips, labels))
    loss, hits = 0.0, 0
    for sample, label in zip(clips, labels.tolist(), strict=True):
        logits = slow_logits(order, [[channel.mean().item() for channel in clip] for clip in sample])
        assert len(logits) == math.factorial(n)
        loss += slow_cross_entropy(logits, label)
        hits += logits.index(max(logits)) == label
    assert out["loss"].item() == pytest.approx(loss / 3, rel=1e-5)
    assert out["accuracy"].item() == pytest.approx(hits / 3)
    assert out["chance"].item() == pytest.approx(1 / math.factorial(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_uniform_logits_give_log_of_the_number_of_orders(n):
    order = method(n)
    nn.init.zeros_(order.head.weight), nn.init.zeros_(order.head.bias)
    out = order(Pixels(), batch(torch.randn(2, n, 3, 2, 4, 4), torch.tensor([0, 1])))
    assert out["loss"].item() == pytest.approx(math.log(math.factorial(n))) and out["accuracy"] == 0.5


def test_half_of_the_hidden_units_are_dropped_in_training_alone():
    order = method(3)
    for layer in (order.pair, order.head):
        nn.init.zeros_(layer.weight), nn.init.ones_(layer.bias)
    nn.init.ones_(order.head.weight)  # so that every logit is 1 + the sum of 3 * 512 hidden units, each 1
    features = torch.randn(4, 3, 3)
    kept = (order.logits(features)[:, 0] - 1) / 2  # those that stay are doubled
    assert ((kept == kept.round()) & (kept > 0.4 * 1536) & (kept < 0.6 * 1536)).all() and len(set(kept.tolist())) > 1
    assert (order.eval().logits(features) == 1537).all()


def test_a_sample_shows_the_clips_of_its_row_in_the_order_of_its_label(source, clips):
    """Trap: the inverse permutation, which differs for (1, 2, 0) and (2, 0, 1)."""
    seen = set()
    for epoch in range(5):
        items = clips.batch(np.array([(epoch, sample) for sample in range(6)]))
        for k, (shard, video) in enumerate(clips.samples):
            reader = source.readers[shard]
            row = epoch % CONFIG["rows"]
            starts, label = (reader.arrays[f"order/{name}"][video, row] for name in ("start", "permutation"))
            assert items["labels"]["order"][k] == label and items["id"][k] == reader.arrays["videos/id"][video]
            frames = video_frames(shard * 100 + video, reader.arrays["videos/n_frames"][video])
            shown = np.stack([frames[starts[original] : starts[original] + 16] for original in ORDERS[label]])
            for clip, whole, corner in zip(items["clips"][k], shown, items["view"]["corner"][k], strict=True):
                assert np.abs(clip.numpy().astype(int) - cropped(whole, corner)).mean() < 6  # JPEG
            seen.add(ORDERS[label])
    assert {(1, 2, 0), (2, 0, 1)} <= seen


def test_frames_by_hand(source, clips):
    reader = source.readers[0]
    for row, label in enumerate(reader.arrays["order/permutation"][1]):  # the second video, frames 64 to 133
        views = [{"mirror": 1}] * 3
        frames, labels = Order.read(reader, 1, data.Draw(row + 8, None, views, {}))
        first = 64 + int(reader.arrays["order/start"][1, row, 0])
        expected = [[first + 24 * original + i for i in range(16)] for original in ORDERS[label]]
        assert frames.tolist() == expected and labels == {"order": label} and labels["order"].dtype == np.int64


def test_clips_of_a_tuple_never_overlap(source):
    """Trap: a spacing of 11 instead of 16 + 8 frames from start to start."""
    samples, left_out, _ = Order.samples(source, {})
    assert len(samples) == 6 and left_out == 2  # 40 and 30 frames, 64 are needed
    for shard, video in samples:
        reader = source.readers[shard]
        first, n = extent(reader, video)
        for row in range(CONFIG["rows"]):
            draw = data.Draw(row, None, [{"mirror": 0}] * 3, {})
            frames = np.sort(Order.read(reader, video, draw)[0], 0).ravel()
            assert frames[0] >= first and frames[-1] < first + n
            assert np.diff(frames).tolist() == [*[1] * 15, 9] * 2 + [1] * 15


def test_each_clip_has_a_crop_of_its_own_that_its_frames_share_and_none_is_mirrored(clips, monkeypatch):
    def coordinates(reader, indices, out, corner):  # y and x in place of colours, cropped as the frames are
        y, x = corner[0] + np.arange(32)[:, None], corner[1] + np.arange(32)
        out[..., 0], out[..., 1] = y, x

    monkeypatch.setattr(ShardReader, "frames", coordinates)
    items = clips.batch(np.array([(epoch, sample) for epoch in range(4) for sample in range(6)]))
    view = items["view"]
    assert view["corner"].shape == (24, 3, 2) and (view["mirror"] == 0).all() and "jitter" not in view
    begin = items["clips"][:, :, :, 0, 0, :2]  # [24, 3, 16, 2]
    assert (begin == view["corner"][:, :, None]).all()
    of_clips = begin[:, :, 0].tolist()
    assert sum(len(set(map(tuple, corners))) > 1 for corners in of_clips) > 20  # 9 crops: all equal in 1 of 81 samples
    assert len({tuple(corner) for corners in of_clips for corner in corners}) == 9


def test_clips_that_grow_brighter_are_put_in_order():
    torch.manual_seed(0)
    backbone = create("r3d10", 0.06)
    order = Order(backbone, {}, SimpleNamespace(config={"order_clips": 3}))
    brightness = torch.tensor(ORDERS)[:, :, None, None, None, None] - 1.0
    tuples = batch(brightness.expand(6, 3, 3, 16, 32, 32), torch.arange(6))
    optimiser = torch.optim.SGD([*backbone.parameters(), *order.parameters()], 0.05, 0.9)
    for _ in range(10):
        optimiser.zero_grad()
        out = order(backbone, tuples)
        out["loss"].backward()
        optimiser.step()
    assert out["accuracy"] == 1


def test_nothing_to_train_on(tmp_path, here):
    write_shard(tmp_path / "short" / "00000.h5", [63, 12, 40])
    with pytest.raises(TrainerError, match="order has nothing to use: 3 videos too short for the order rows"):
        train(Settings(method="order", width=0.06, workers=0, device="cpu"), tmp_path / "short")


def test_defaults_are_the_papers():
    order = resolve(Settings(method="order"))
    assert (order.lr, order.schedule, order.momentum, order.weight_decay) == (1e-3, "constant", 0.9, 5e-4)
    assert (order.batch_size, order.epochs, order.jitter) == (8, 300, "none")
