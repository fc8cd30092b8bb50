import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.trainer.plain import dot, slow_cross_entropy, slow_linear, slow_means, slow_mlp, slow_unit
from tests.trainer.runs import SMALL, rows
from tests.trainer.synthetic import write_shard
from trainer import checkpoint
from trainer.backbones import BACKBONES, create
from trainer.data import Batch, Draw, Shards, TrainingClips
from trainer.errors import TrainerError
from trainer.methods.parts import rotated
from trainer.methods.tce import (
    EMBEDDING,
    PRIME,
    TCE,
)
from trainer.settings import Settings, resolve
from trainer.training import train


class Colour(nn.Module):
    """A backbone of four features with weights, and without batch normalisation."""

    features = 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 2, 3), stride=(1, 2, 3))  # tells a frame from its rotations

    def forward(self, x):
        return {"conv1": self.conv(x).relu()}


def make(demo, **options):
    """negatives are 8192 at most, so that all that are filled in count where nothing else is said."""
    torch.manual_seed(0)
    backbone = Colour()
    return backbone, TCE(backbone, TCE.option_values({"negatives": 8192, **options}), Shards(demo))


def batch(n, video=None, progress=0.0):
    generator = torch.Generator().manual_seed(n)
    labels = {"turns": torch.arange(n) % 4, "draws": torch.randint(1, PRIME, (n, 2), generator=generator)}
    clips = torch.randn(n, 2, 3, 1, 6, 6, generator=generator)
    return Batch(clips.flatten(0, 1), labels, torch.arange(n) if video is None else video, progress)


def fill(method, *rows):
    generator = torch.Generator().manual_seed(7)
    for row in rows:
        method.bank[row] = F.normalize(torch.randn(EMBEDDING, generator=generator), dim=0)


def slow_vectors(backbone, method, clips):
    """Unit vectors of clips [N, 3, 1, S, S], one by one."""
    stages = [backbone(clip[None])["conv1"][0] for clip in clips]
    return slow_unit([slow_linear(method.projection, slow_means(stage)) for stage in stages])


def slow_rotation(backbone, method, clips, turns):
    """Mean cross entropy of the authors' head, 200-200-4 with batch normalisation after each ReLU, on the clips, each after
    so many quarter turns."""
    rows = []
    for clip, turn in zip(clips, turns, strict=True):
        image = torch.from_numpy(np.rot90(clip.numpy(), turn, (2, 3)).copy())
        rows.append(slow_means(backbone(image[None])["conv1"][0]))
    hidden = [200, nn.ReLU, nn.BatchNorm1d]
    assert [getattr(layer, "out_features", type(layer)) for layer in method.head] == [*hidden, *hidden, 4]
    terms = map(slow_cross_entropy, slow_mlp(method.head, rows), turns)
    return sum(terms) / len(turns)


def slow_infonce(positive, negatives, temperature):
    terms = [math.exp(s / temperature) for s in [positive, *negatives]]
    return -math.log(terms[0] / sum(terms))


def slow_nce(positive, negatives, temperature):
    """Is it data or one of K samples of noise? P = e^(s/T) / Z with Z = n c of n videos, noise 1 / n."""
    n, k = 1000, len(negatives)
    z = n * math.exp(1 / (2 * EMBEDDING * temperature**2))
    data = [math.exp(s / temperature) / z for s in [positive, *negatives]]
    h = [p / (p + k / n) for p in data]
    return -math.log(h[0]) - sum(math.log(1 - x) for x in h[1:])


@pytest.mark.parametrize("loss", ["infonce", "nce"])
@pytest.mark.parametrize(("n", "filled"), [(2, (3,)), (3, (0, 1, 2, 5, 9)), (5, range(13))])
def test_loss_equals_slow_loop(demo, loss, n, filled):
    """Fails for a bank that is viewed instead of transposed, and for the own or an unvisited slot as a negative."""
    backbone, method = make(demo, loss=loss, temperature=0.2, rotation_weight=0.5)
    fill(method, *filled)
    data, bank = batch(n), method.bank.tolist()
    anchors, positives = (slow_vectors(backbone, method, data.clips[i::2]) for i in range(2))
    slow = {"infonce": slow_infonce, "nce": slow_nce}[loss]
    contrast = right = chance = 0.0
    rotation = slow_rotation(backbone, method, data.clips[::2], [i % 4 for i in range(n)])
    hardness = []
    for i in range(n):
        negatives = [dot(anchors[i], bank[j]) for j in filled if j != i]
        positive = dot(anchors[i], positives[i])
        contrast += slow(positive, negatives, 0.2) / n
        right += (positive > max(negatives)) / n
        chance += 1 / (1 + len(negatives)) / n
        hardness += negatives
    out = method(backbone, data)
    assert out["contrast"].item() == pytest.approx(contrast, rel=1e-4)
    assert out["rotation"].item() == pytest.approx(rotation, rel=1e-4)
    assert out["loss"].item() == pytest.approx(contrast + 0.5 * rotation, rel=1e-4)
    assert out["accuracy"].item() == pytest.approx(right) and out["chance"].item() == pytest.approx(chance)
    assert out["hardness"].item() == pytest.approx(sum(hardness) / len(hardness), abs=1e-5)


def test_mining_acts(demo):
    """The negatives of an anchor get harder, up to the hardest; without a rising threshold they stay as they are."""
    backbone, method = make(demo, negatives=3)
    _, random = make(demo, negatives=3, hi=-1.0)
    fill(method, *range(13)), fill(random, *range(13))
    data = batch(8)
    levels = [replace(data, progress=p) for p in (0.0, 0.14, 1.0)]
    hardness = [method.eval()(backbone, level)["hardness"].item() for level in levels]
    assert hardness[0] < hardness[1] < hardness[2]
    anchors = F.normalize(method.projection(backbone(data.clips[::2])["conv1"].mean((2, 3, 4))), dim=1)
    others = (anchors @ method.bank.T).scatter(1, data.video[:, None], -2)
    assert hardness[2] == pytest.approx(others.topk(3).values.mean().item(), abs=1e-5)
    assert len({random.eval()(backbone, level)["hardness"].item() for level in levels}) == 1


def test_random_negatives_are_all_others_alike(demo):
    """Each of 12 other videos is one of 4 negatives in a third of the draws; slots in any two, as often as they should."""
    _, method = make(demo, negatives=4, hi=-1.0)
    fill(method, *range(13))
    n = 4000
    draws = torch.from_numpy(np.random.default_rng(0).integers(1, PRIME, (n, 2)))
    vector = method.bank[:1].expand(n, -1)
    similarity, known = method.similarity(vector, vector, torch.full((n,), 5), draws, -1.0)
    assert known.all()
    drawn = (similarity[:, 1:, None] - method.bank @ method.bank[0]).abs().argmin(2)
    seen = F.one_hot(drawn, 13).sum(1).double()
    together = (seen.T @ seen / n).numpy()
    expected = np.full((13, 13), 4 / 12 * 3 / 11)
    np.fill_diagonal(expected, 4 / 12)
    expected[5] = expected[:, 5] = 0
    assert together == pytest.approx(expected, abs=0.04)


def test_similarities_are_float32_under_autocast(demo):
    _, method = make(demo)
    fill(method, *range(13))
    data, (anchor, positive) = batch(3), F.normalize(torch.randn(2, 3, EMBEDDING), dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        similarity, _ = method.similarity(anchor, positive, data.video, data.labels["draws"], -1.0)
    assert torch.equal(similarity, method.similarity(anchor, positive, data.video, data.labels["draws"], -1.0)[0])


def test_the_bank_holds_vectors_not_graphs(demo):
    backbone, method = make(demo)
    slots = []
    for video in ([4, 0, 2], [1, 4, 12]):
        data = batch(3, torch.tensor(video))
        with torch.no_grad():
            expected = F.normalize(method.projection(backbone(data.clips[::2])["conv1"].mean((2, 3, 4))), dim=1)
        method(backbone, data)["loss"].backward()
        assert not method.bank.requires_grad and method.bank.grad_fn is None
        assert torch.allclose(method.bank[video], expected)
        slots += video
        assert method.bank.any(1).nonzero().flatten().tolist() == sorted(set(slots))
    assert not any(parameter is method.bank for parameter in method.parameters())
    assert "bank" in method.state_dict()


def test_validation_changes_nothing(demo):
    backbone, method = make(demo)
    fill(method, 1, 2, 3)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.no_grad():
        metrics = method.eval()(backbone, batch(3, torch.tensor([5, 6, 7])))
    assert metrics["chance"] == 0.25
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("frames", [1, 16])
def test_the_positive_follows_the_anchor(demo, frames):
    """Never one frame twice, all of the video's frames, each as often as the next one."""
    firsts, turns, reader = [], [], Shards(demo).readers[0]
    for seed in range(400):
        views = [{"crop": 0, "corner": None, "mirror": 0} for _ in range(2)]
        draw = Draw(0, np.random.default_rng(seed), views, TCE.option_values({"frames": frames}))
        clips, labels = TCE.read(reader, 1, draw)
        start = int(clips[0, 0]) - 64  # video 0 has 64 frames, video 1 has 70
        assert clips.tolist() == [
            [64 + start + i for i in range(frames)],
            [64 + start + frames + i for i in range(frames)],
        ]
        firsts.append(start), turns.append(int(labels["turns"]))
        assert labels["draws"].shape == (2,) and 0 < labels["draws"].min() <= labels["draws"].max() < PRIME
    assert set(firsts) == set(range(70 - 2 * frames + 1)) and set(turns) == {0, 1, 2, 3}
    assert all(turns.count(turn) > 60 for turn in range(4))


def test_anchor_and_positive_have_one_crop_and_mirror(demo):
    """As in the authors' code: mirrored one by one, they would differ by more than the time between them."""
    shards = Shards(demo)
    samples, left_out, _ = TCE.samples(shards, TCE.option_values())
    assert len(samples) == 8 and left_out == 0
    clips = TrainingClips(shards, samples, TCE, TCE.option_values(), 0, "clip")
    raw = clips.batch(np.array([(0, i) for i in range(8)]))
    assert raw["clips"].shape == (8, 2, 1, 32, 32, 3) and raw["labels"]["turns"].shape == (8,)
    for name in ("crop", "corner", "mirror"):
        first, second = raw["view"][name].unbind(1)
        assert torch.equal(first, second) and len(first.unique(dim=0)) > 1
    assert (raw["view"]["jitter"][:, 0] != raw["view"]["jitter"][:, 1]).any()
    assert (raw["clips"][:, 0] != raw["clips"][:, 1]).flatten(1).any(1).all()  # the texture moves
    assert raw["video"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]


def test_short_videos_are_left_out(demo):
    samples, left_out, reason = TCE.samples(Shards(demo), TCE.option_values({"frames": 16}))
    assert (len(samples), left_out, reason) == (7, 1, "shorter than 32 frames")


def test_the_thresholds_of_negatives_are_in_order():
    with pytest.raises(TrainerError, match="lo is 0.5, expected -1 to hi, which is 0.2"):
        TCE.option_values({"lo": 0.5, "hi": 0.2})


@pytest.mark.parametrize("name", BACKBONES)
def test_one_frame_is_for_2d_backbones(demo, name):
    torch.manual_seed(0)
    backbone, shards = create(name, 0.06), Shards(demo)
    if name.startswith("resnet") and "3d" not in name:
        assert TCE(backbone, TCE.option_values(), shards)(backbone, batch(3))["loss"].isfinite()
        return
    with pytest.raises(TrainerError, match="frames is 1, .* 3D backbone .*; set frames to 16, or choose the backbone"):
        TCE(backbone, TCE.option_values(), shards)
    TCE(backbone, TCE.option_values({"frames": 16}), shards)


def test_one_video_cannot_be_told_apart(tmp_path, here):
    write_shard(tmp_path / "one" / "00000.h5", [64])
    with pytest.raises(
        TrainerError, match="tce needs 2 samples at a time, .* 1 video to train on; train on more videos"
    ):
        train(Settings(**SMALL, method="tce", epochs=1), tmp_path / "one")


def test_defaults_are_the_papers():
    settings = resolve(Settings(method="tce"))
    assert (settings.backbone, settings.lr, settings.batch_size, settings.epochs) == ("resnet18", 0.03, 100, 50)
    assert (settings.schedule, settings.drop_every) == ("step", 25)
    assert (TCE.options["negatives"].default, TCE.options["temperature"].default, EMBEDDING) == (0, 0.07, 128)


def test_the_number_of_negatives_is_told_and_leaves_mining_a_choice(demo, here, capsys):
    """Of 8 training videos each anchor has 2 negatives: with hard ones they are those two that are most alike."""
    backbone, method = make(demo, negatives=0)
    fill(method, *range(13))
    data, (anchor, positive) = batch(3), F.normalize(torch.randn(2, 3, EMBEDDING), dim=2)
    similarity, known = method.similarity(anchor, positive, data.video, data.labels["draws"], 1.0)
    assert method.negatives == 2 and similarity.shape == (3, 3) and known.all()
    train(Settings(**SMALL, method="tce", epochs=1), demo)
    assert "tce draws 2 negatives per anchor, of 7 other videos" in capsys.readouterr().out
    assert not make(demo, negatives=3)[1].notes


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_rotation_only_upright_frames_are_encoded(demo, weight):
    """Copies would change the batch normalisation of the others, and cost half as much again."""
    backbone, method = make(demo, rotation_weight=weight)
    fill(method, 5, 6)
    data, seen = batch(4), []
    backbone.register_forward_pre_hook(lambda _, clips: seen.append(clips[0]))
    out = method(backbone, data)
    upright, turns = torch.cat([data.clips[::2], data.clips[1::2]]), data.labels["turns"]
    expected = torch.cat([upright, rotated(data.clips[::2], turns)]) if weight else upright
    assert len(seen) == 1 and torch.equal(seen[0], expected)
    assert ("rotation" in out, "rotation_accuracy" in out, bool([*method.head.parameters()])) == (weight > 0,) * 3
    out["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())  # or several processes would wait
    if not weight:
        assert out["loss"] == out["contrast"]


def test_the_bank_holds_a_unit_vector_of_each_video_that_was_seen(demo, here):
    whole = train(Settings(**SMALL, method="tce", epochs=3, holdout=0.2), demo)
    assert "hardness" in rows(whole)[0]
    bank = checkpoint.load(whole).weights["methods.tce.bank"]
    visited = bank.any(1)
    assert bank[visited].norm(dim=1) == pytest.approx(torch.ones(int(visited.sum())).numpy(), abs=1e-5)
    assert 0 < visited.sum() == checkpoint.load(whole).meta["samples"]["tce"] < 8
