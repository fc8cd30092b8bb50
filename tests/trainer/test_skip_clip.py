import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.plain import dot, slow_cross_entropy, slow_linear, slow_means
from tests.trainer.runs import SMALL, rows
from tests.trainer.synthetic import CONFIG
from trainer.backbones import BACKBONES, create
from trainer.data import Batch, Draw, Shards, TrainingClips
from trainer.methods.parts import rotated
from trainer.methods.skip_clip import SkipClip, gamma, negatives, ranking
from trainer.settings import Settings, resolve
from trainer.training import train

SHARDS = SimpleNamespace(config=CONFIG)


class Patches(nn.Module):
    """A backbone of so many features, one convolution without batch normalisation, so that each frame is by itself."""

    def __init__(self, features, frames, size):
        super().__init__()
        self.features = features
        self.conv = nn.Conv3d(3, features, (frames, size, size), (frames, size, size))

    def forward(self, x):
        return {"conv1": self.conv(x)}


def make(**options):
    """Backbone and method; its encoder of frames, here of one convolution, has twice the backbone's cells."""
    torch.manual_seed(0)
    backbone = Patches(5, 4, 8)
    method = SkipClip(backbone, SkipClip.option_values(options), SHARDS)
    method.encoder, method.match = Patches(6, 1, 4), nn.Conv3d(6, 5, 1)
    return backbone, method


def batch(n, targets=8, size=16, video=None):
    generator = torch.Generator().manual_seed(n)
    labels = {
        "turns": torch.randint(4, (n, targets), generator=generator),
        "negatives": torch.randint(2**31, (n, targets), generator=generator),
    }
    clips = torch.randn(n, 3, 16 + targets, size, size, generator=generator)
    return Batch(clips, labels, torch.arange(n) if video is None else video, 0.0)


def slow_cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def slow_gamma(h, z):
    """h, z: [C, H, W]."""
    cells = [(m, n) for m in range(h.shape[1]) for n in range(h.shape[2])]
    return sum(slow_cosine(h[:, m, n].tolist(), z[:, m, n].tolist()) for m, n in cells) / len(cells)


def slow_context(backbone, clip):
    """The feature map of 16 frames, averaged over time."""
    last = backbone(clip[None, :, :16])["conv1"][0]
    return sum(last[:, t] for t in range(last.shape[1])) / last.shape[1]


def slow_encode(method, image, cells=(2, 2)):
    """f of one image [3, S, S] -> [C, H, W]."""
    return method.encode(image[None, :, None], cells)[0]


def slow_parts(backbone, method, data):
    """rank, negative, rotation and the two accuracies, by the sums of the paper."""
    n, targets = data.labels["turns"].shape
    z = [[slow_encode(method, clip[:, 16 + i]) for i in range(targets)] for clip in data.clips]
    rank, against, rotation, right, straight = [], [], [], [], []
    for b in range(n):
        h = slow_context(backbone, data.clips[b])
        scores = [slow_gamma(h, frame) for frame in z[b]]
        for i in range(targets):
            for j in range(i + 1, targets):
                rank.append(max(0.0, -scores[i] + scores[j] + method.rank_margin))
                right.append(scores[i] > scores[j])
        others = [frame for c in range(n) if data.video[c] != data.video[b] for frame in z[c]]
        if others:
            chosen = [others[int(draw) % len(others)] for draw in data.labels["negatives"][b]]
            mean = sum(slow_gamma(h, frame) for frame in chosen) / targets
            against.append(sum(max(0.0, -score + mean + method.negative_margin) for score in scores) / targets)
        for i, turns in enumerate(data.labels["turns"][b].tolist()):
            image = torch.from_numpy(np.rot90(data.clips[b, :, 16 + i].numpy(), turns, (1, 2)).copy())
            logits = slow_linear(method.head, slow_means(slow_encode(method, image)))
            rotation.append(slow_cross_entropy(logits, turns))
            straight.append(logits.index(max(logits)) == turns)
    return [sum(terms) / max(1, len(terms)) for terms in (rank, against, rotation, right, straight)]


@pytest.mark.parametrize(
    ("video", "targets", "size"),
    [([0], 8, 16), ([3, 5], 2, 16), ([4, 2, 9], 5, 17), ([4, 4, 2], 3, 16), ([1, 1], 3, 16)],
)
@torch.no_grad()
def test_loss_equals_slow_loop(video, targets, size):
    backbone, method = make(rank_margin=0.2, negative_margin=0.3, negative_weight=0.7, rotation_weight=0.4)
    data = batch(len(video), targets, size, torch.tensor(video))
    rank, against, rotation, right, straight = slow_parts(backbone, method, data)
    out = {name: value.item() for name, value in method(backbone, data).items()}
    expected = {"rank": rank, "negative": against, "rotation": rotation, "accuracy": right, "chance": 0.5}
    expected |= {"rotation_accuracy": straight, "loss": rank + 0.7 * against + 0.4 * rotation}
    assert out == pytest.approx(expected, rel=1e-4)
    assert (against == 0) == (len(set(video)) == 1)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_without_rotation_only_upright_frames_are_encoded(weight):
    """Copies would change the batch normalisation of the others, and double the cost."""
    backbone, method = make(rotation_weight=weight)
    data, seen = batch(3, targets=2), []
    method.encoder.register_forward_pre_hook(lambda _, frames: seen.append(frames[0]))
    out = method(backbone, data)
    upright = data.clips[:, :, 16:].transpose(1, 2).flatten(0, 1)[:, :, None]
    turned = rotated(upright, data.labels["turns"].flatten())
    assert len(seen) == 1 and torch.equal(seen[0], torch.cat([upright, turned]) if weight else upright)
    assert ("rotation" in out, "rotation_accuracy" in out, bool([*method.head.parameters()])) == (weight > 0,) * 3
    out["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())  # or several processes would wait
    if not weight:
        assert out["loss"].item() == pytest.approx((out["rank"] + out["negative"]).item())


@pytest.mark.parametrize(("channels", "height", "width", "targets"), [(1, 1, 1, 1), (3, 2, 1, 4), (4, 3, 5, 2)])
def test_gamma_equals_slow_loop(channels, height, width, targets):
    torch.manual_seed(0)
    h, z = torch.randn(2, channels, height, width), torch.randn(2, targets, channels, height, width)
    expected = [[slow_gamma(h[b], frame) for frame in z[b]] for b in range(2)]
    assert gamma(h, z).numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert gamma(h, 7 * h[:, None]).numpy() == pytest.approx(1, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gamma(h.bfloat16(), z), gamma(h.bfloat16().float(), z))


def test_gamma_by_hand():
    h = torch.tensor([[[[1.0, 1.0]], [[0.0, 1.0]]]])  # cells (1, 0) and (1, 1)
    z = torch.tensor([[[[[2.0, 3.0]], [[0.0, 3.0]]], [[[0.0, 1.0]], [[5.0, 0.0]]], [[[-1.0, 1.0]], [[0.0, -1.0]]]]])
    assert gamma(h, z).tolist()[0] == pytest.approx([1, (0 + math.sqrt(0.5)) / 2, (-1 + 0) / 2])


def test_a_cell_of_zeros_is_like_nothing():
    h = torch.zeros(1, 3, 1, 1, requires_grad=True)
    score = gamma(h.relu(), torch.ones(1, 2, 3, 1, 1))
    score.sum().backward()
    assert score.tolist() == [[0, 0]] and h.grad.isfinite().all()


def test_ranking_by_hand():
    terms, right = ranking(torch.tensor([[0.9, 0.5, 0.45]]), 0.1)
    assert terms.tolist()[0] == pytest.approx([0, 0, 0.05]) and right.tolist() == [[1, 1, 1]]
    terms, right = ranking(torch.tensor([[0.1, 0.3, 0.2]]), 0.1)
    assert terms.tolist()[0] == pytest.approx([0.3, 0.2, 0]) and right.tolist() == [[0, 0, 1]]
    terms, right = ranking(torch.full((2, 5), 0.3), 0.1)
    assert terms.shape == (2, 10) and terms.unique().tolist() == pytest.approx([0.1]) and not right.any()


@torch.no_grad()
def test_frames_that_are_all_alike_cost_the_margins():
    backbone, method = make(rank_margin=0.2, negative_margin=0.3)
    nn.init.zeros_(method.match.weight), nn.init.zeros_(method.head.weight), nn.init.zeros_(method.head.bias)
    out = method(backbone, batch(3))
    assert out["rank"].item() == pytest.approx(0.2) and out["negative"].item() == pytest.approx(0.3)
    assert out["rotation"].item() == pytest.approx(math.log(4)) and out["accuracy"] == 0


def test_negatives_are_frames_of_other_videos():
    """Each of them equally often."""
    video = torch.tensor([3, 8, 3, 5])
    frames = torch.arange(4 * 2).reshape(4, 2, 1, 1, 1)  # numbered through
    draws = torch.from_numpy(np.random.default_rng(0).integers(2**31, size=(4, 3000)))
    z = frames.expand(4, 2, 1, 1, 1)
    chosen, known = negatives(z, video, draws)
    assert chosen.shape == (4, 3000, 1, 1, 1) and known.all()
    for row, others in zip(
        chosen.flatten(1), ([2, 3, 6, 7], [0, 1, 4, 5, 6, 7], [2, 3, 6, 7], [0, 1, 2, 3, 4, 5]), strict=True
    ):
        values, counts = row.unique(return_counts=True)
        assert values.tolist() == others and (counts / 3000).numpy() == pytest.approx(1 / len(others), abs=0.04)
    _, known = negatives(z[:1], video[:1], draws[:1])
    assert not known.any()


def test_a_batch_of_one_video_learns_without_negatives():
    backbone, method = make()
    out = method(backbone, batch(1))
    out["loss"].backward()
    assert out["negative"] == 0
    assert all(weight.grad.isfinite().all() for weight in (*backbone.parameters(), *method.parameters()))


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_every_backbone_has_its_cells_matched(name):
    torch.manual_seed(0)
    backbone = create(name, 0.06).eval()
    method = SkipClip(backbone, SkipClip.option_values(), SHARDS).eval()
    data = batch(2, size=64)
    h = [*backbone(data.clips[:, :, :16]).values()][-1]
    assert method.encode(data.clips[:, :, 16:17], h.shape[3:]).shape == (2, backbone.features, *h.shape[3:])
    assert method(backbone, data)["loss"].isfinite()


def test_the_encoder_is_as_wide_as_the_backbone():
    full = create("resnet3d18", 1.0)
    encoder = SkipClip(full, SkipClip.option_values(), SHARDS).encoder
    assert sum(weight.numel() for weight in encoder.parameters()) == 11_176_512 and encoder.features == 512


def test_read_by_hand(demo):
    """16 frames, then 8 that are 4 apart, from every start that fits."""
    reader = Shards(demo).readers[0]
    starts, turns = set(), []
    for seed in range(200):
        clip, labels = SkipClip.read(reader, 1, Draw(0, np.random.default_rng(seed), [{}], SkipClip.option_values()))
        start = int(clip[0, 0]) - 64  # video 0 has 64 frames, video 1 has 70
        expected = [*range(16), 19, 23, 27, 31, 35, 39, 43, 47]
        assert clip.tolist() == [[64 + start + offset for offset in expected]]
        assert labels["negatives"].shape == (8,) and len(set(labels["negatives"].tolist())) > 1
        starts.add(start), turns.extend(labels["turns"].tolist())
    assert starts == set(range(70 - 48 + 1))
    assert [turns.count(turn) / len(turns) for turn in range(4)] == pytest.approx([0.25] * 4, abs=0.05)
    options = SkipClip.option_values({"targets": 2, "spacing": 1})
    clip, labels = SkipClip.read(reader, 3, Draw(0, np.random.default_rng(0), [{}], options))
    assert np.diff(clip).tolist() == [[1] * 17] and labels["turns"].shape == (2,)


def test_context_and_targets_share_a_view(demo):
    shards = Shards(demo)
    samples, left_out, reason = SkipClip.samples(shards, SkipClip.option_values())
    assert (len(samples), left_out, reason) == (6, 2, "shorter than 48 frames")
    assert len(SkipClip.samples(shards, SkipClip.option_values({"spacing": 3}))[0]) == 7  # 40 frames
    clips = TrainingClips(shards, samples, SkipClip, SkipClip.option_values(), 0, "none")
    raw = clips.batch(np.array([(0, 0), (0, 1)]))
    assert raw["clips"].shape == (2, 1, 24, 32, 32, 3)
    assert raw["view"]["corner"].shape == (2, 1, 2) and raw["view"]["mirror"].shape == (2, 1)


def test_the_backbone_is_the_papers():
    assert resolve(Settings(method="skip_clip")).backbone == "resnet3d18"


def test_each_part_of_the_loss_is_logged(demo, here):
    run = train(Settings(**SMALL, method="skip_clip", epochs=1), demo)
    assert {"rank", "negative", "rotation", "rotation_accuracy"} <= rows(run)[0].keys()
