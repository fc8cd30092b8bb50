"""What the methods that compare clips of videos share: samples, the queue, the spread. The losses: test_pace, test_tce_parts."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tests.trainer.plain import dot
from tests.trainer.synthetic import write_shard
from trainer.data import Draw, Shards
from trainer.methods.contrast import Queue, SeveralClips, random_clip, spread
from trainer.methods.parts import unit


def test_clips_of_a_video_start_independently_and_far_ones_are_rarer(tmp_path):
    """17 starts: the distance d > 0 has the probability 2 (17 - d) / 17^2, which falls linearly."""
    write_shard(tmp_path / "short" / "00000.h5", [40, 47])
    reader = Shards(tmp_path / "short").readers[0]
    options = {"clips": 2, "stride": 2}
    starts = []
    for epoch in range(4000):
        frames, labels = SeveralClips.read(reader, 1, Draw(epoch, np.random.default_rng(epoch), [], options))
        assert not labels and frames.shape == (2, 16) and (np.diff(frames) == 2).all()
        starts.append(frames[:, 0] - 40)
    starts = np.array(starts)
    assert {*starts.flat} == {*range(17)}
    assert np.bincount(starts.flat) / starts.size == pytest.approx(np.full(17, 1 / 17), abs=0.01)
    shares = np.bincount(np.abs(starts[:, 0] - starts[:, 1]), minlength=17) / len(starts)
    assert shares == pytest.approx([1 / 17, *(2 * (17 - d) / 289 for d in range(1, 17))], abs=0.02)
    assert random_clip(reader, 1, 1, np.random.default_rng(0)).dtype == np.int64


def test_samples_are_long_enough_for_the_stride(demo):
    for stride, left in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 8)):
        samples, left_out, why = SeveralClips.samples(Shards(demo), {"clips": 3, "stride": stride})
        assert (len(samples), left_out, why) == (8 - left, left, f"shorter than {15 * stride + 1} frames")
    assert SeveralClips.shape({"clip_length": 16}, {"clips": 3}) == (3, 16)


def slow_products(queue, queries, positives, video):
    """queue: list of (key, video), newest last."""
    rows = []
    for query, positive, own in zip(queries, positives, video, strict=True):
        products = [dot(query, positive)]
        products += [dot(query, key) for key, other in queue if other != own]
        rows.append(Counter(round(product, 4) for product in products[1:]) | {"positive": round(products[0], 4)})
    return rows


@pytest.mark.parametrize("sizes", [[3, 2, 4, 4], [7, 7], [9, 1], [1] * 9])
def test_the_queue_equals_a_list_that_forgets_its_oldest(sizes):
    torch.manual_seed(len(sizes))
    queue, slow = Queue(7, 3), []
    for size in sizes:
        queries, positives, video = unit(torch.randn(size, 3)), unit(torch.randn(size, 3)), torch.randint(4, (size,))
        found = queue.products(queries, positives, video)
        expected = slow_products(slow, queries.tolist(), positives.tolist(), video.tolist())
        for row, want in zip(found.tolist(), expected, strict=True):
            others = Counter(round(product, 4) for product in row[1:] if product > -math.inf)
            assert others | {"positive": round(row[0], 4)} == want
        before = queue.keys
        queue.append(positives, video)
        assert queue.keys is not before  # gradients may need it
        slow = (slow + [*zip(positives.tolist(), video.tolist(), strict=True)])[-7:]
        filled = queue.video >= 0
        assert queue.video[filled].tolist() == [own for _, own in slow] and len(queue.keys) == 7
        assert queue.keys[filled].tolist() == [key for key, _ in slow] and not filled[: 7 - len(slow)].any()


def test_a_queue_is_saved_and_keeps_no_gradients():
    queue = Queue(4, 2)
    queue.append(torch.ones(2, 2, requires_grad=True) * 2, torch.tensor([5, 6]))
    assert queue.state_dict()["video"].tolist() == [-1, -1, 5, 6] and not queue.keys.requires_grad
    with torch.autocast("cpu", torch.bfloat16):  # which keeps 8 bits: 1 and 1.001 are one
        queue.append(torch.tensor([[1.0, 0.001]]), torch.tensor([7]))
        found = queue.products(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([5]))
    assert found.tolist() == [[0, -math.inf, -math.inf, 4, pytest.approx(1.001)]]


def test_spread_by_hand():
    one = torch.tensor([[1.0, 0, 0, 0]])
    for vectors, deviation, mean in (
        (one.repeat(5, 1), 0, 1),
        (torch.full((4, 4), 0.5) * torch.tensor([[1.0], [-1], [1], [-1]]), 1, 0),
        (torch.cat([one, -one]), 1 / 2, 0),  # 1 in one of four dimensions
    ):
        assert [x.item() for x in spread(vectors)] == pytest.approx([deviation, mean], abs=1e-6)
