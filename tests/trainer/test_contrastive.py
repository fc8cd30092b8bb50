"""`simclr`, `moco` and `byol` against their definitions, written as loops."""

import math

import pytest
import torch
from torch import nn

from tests.trainer.plain import Colour, dot, slow_features, slow_mlp, slow_unit
from tests.trainer.runs import SMALL as RUN
from tests.trainer.synthetic import write_shard
from trainer.data import Batch, Shards
from trainer.errors import TrainerError
from trainer.methods import method_class
from trainer.settings import Settings
from trainer.training import train

SMALL = {"hidden": 6, "outputs": 4}


@pytest.fixture
def make(demo):
    """A backbone and a method on it, with heads small enough for loops and, if it has one, another averaged network."""

    def build(name, **options):
        torch.manual_seed(0)
        backbone, of = Colour(), method_class(name)
        method = of(backbone, of.option_values(SMALL | options), Shards(demo))
        for weight in method.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
        return backbone, method

    return build


def batch(samples, n=2, video=None, seed=0):
    clips = torch.randn(samples * n, 3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return Batch(clips, {}, torch.arange(samples) if video is None else torch.tensor(video), 0.0)


def vectors(backbone, head, clips, n):
    """Unit vectors of n clips of each sample: lists [B][n][d]."""
    rows = slow_unit(slow_mlp(head, slow_features(backbone, clips)))
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def slow_ntxent(z, video, temperature):
    """-log of the share of e^(similarity / temperature) that one other clip of the video has beside those of other videos."""
    clips = [(own, vector) for own, each in zip(video, z, strict=True) for vector in each]
    terms = []
    for i, (own, query) in enumerate(clips):
        others = sum(math.exp(dot(query, key) / temperature) for of, key in clips if of != own)
        positives = [key for j, (of, key) in enumerate(clips) if of == own and j != i]
        e = [math.exp(dot(query, key) / temperature) for key in positives]
        terms.append(sum(-math.log(x / (x + others)) for x in e) / len(e))
    return sum(terms) / len(terms)


def slow_hits(z):
    """The share of the clips whose nearest other clip is of the same sample."""
    clips = [(i, vector) for i, each in enumerate(z) for vector in each]
    hits = 0
    for a, (own, query) in enumerate(clips):
        products = [(dot(query, key), of) for b, (of, key) in enumerate(clips) if b != a]
        hits += max(products)[1] == own
    return hits / len(clips)


@pytest.mark.parametrize(("samples", "n", "temperature"), [(4, 2, 0.1), (3, 3, 0.5), (2, 2, 5.0)])
@pytest.mark.parametrize("norm", [True, False])
def test_simclr_equals_nt_xent_in_a_loop(make, samples, n, temperature, norm):
    backbone, method = make("simclr", clips=n, temperature=temperature, batch_norm=norm)
    given = batch(samples, n)
    found = method(backbone, given)
    z = vectors(backbone, method.projection, given.clips, n)
    assert len(method.projection) == (7 if norm else 5)
    assert found["loss"].item() == pytest.approx(slow_ntxent(z, range(samples), temperature), rel=1e-4)
    assert found["accuracy"].item() == pytest.approx(slow_hits(z))
    assert found["chance"].item() == pytest.approx((n - 1) / (samples * n - 1))


def test_simclr_does_not_tell_clips_of_a_video_that_is_there_twice_apart(make):
    backbone, method = make("simclr", batch_norm=False)
    given = batch(3, video=[4, 2, 4])
    z = vectors(backbone, method.projection, given.clips, 2)
    found = method(backbone, given)
    assert found["loss"].item() == pytest.approx(slow_ntxent(z, [4, 2, 4], 0.1), rel=1e-4)
    assert found["chance"].item() == pytest.approx((4 * 3 + 2 * 1) / 6 / 5)


def shuffled(given, n, order):
    """The batch with its samples in another order and the clips of each turned round."""
    clips = given.clips.unflatten(0, (-1, n))[order].flip(1).flatten(0, 1)
    return Batch(clips, {}, given.video[order], 0.0)


@pytest.mark.parametrize("name", ["simclr", "moco", "byol"])
def test_the_order_of_samples_and_clips_does_not_matter(make, name):
    backbone, method = make(name, clips=3)
    given = batch(4, 3)
    method(backbone, batch(4, 3, video=[5, 6, 7, 5], seed=1))  # something in the queue
    state = {key: value.clone() for key, value in method.state_dict().items()}
    one = method(backbone, given)
    method.load_state_dict(state)
    other = method(backbone, shuffled(given, 3, torch.tensor([2, 0, 3, 1])))
    for key, value in one.items():
        assert other[key].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("samples", [2, 5])
def test_without_knowledge_the_loss_is_the_logarithm_of_the_number_of_answers(make, samples):
    """All vectors equal, or a temperature that makes all similarities alike."""
    for options in ({"temperature": 0.1}, {"temperature": 1e5}):
        backbone, method = make("simclr", **options)
        if options["temperature"] == 0.1:
            nn.init.zeros_(method.projection[-1].weight)
        found = method(backbone, batch(samples))
        assert found["loss"].item() == pytest.approx(math.log(2 * samples - 1), rel=1e-3)
        backbone, method = make("moco", **options)
        for head in (method.projection, method.target["projection"]) if options["temperature"] == 0.1 else ():
            nn.init.zeros_(head[-1].weight)
            head[-1].bias.data = torch.ones(4)
        for step in range(3):  # the queue grows by two clips of each sample
            found = method(backbone, batch(samples, video=[*range(step * samples, (step + 1) * samples)]))
            known = min(2 * samples * step, len(method.queue.video))
            assert found["loss"].item() == pytest.approx(math.log(1 + known), rel=1e-3, abs=1e-6)
            assert found["chance"].item() == pytest.approx(1 / (1 + known))


@pytest.mark.parametrize(
    "options",
    [{}, {"clips": 3, "queue": 7}, {"symmetric": False}, {"symmetric": False, "clips": 3, "batch_norm": True}],
)
def test_moco_equals_a_loop_over_steps_with_a_list_for_its_queue(make, options):
    backbone, method = make("moco", temperature=0.3, **options)
    n, size = options.get("clips", 2), options.get("queue", 13)  # as many as there are videos
    assert len(method.queue.video) == size and bool(method.notes) == ("queue" not in options)
    queue = []
    for step, video in enumerate([[0, 1, 2], [3, 1, 4], [0, 5, 2], [1, 0, 3]]):
        given = batch(3, n, video, seed=step)
        clips = given.clips.unflatten(0, (-1, n))
        symmetric = options.get("symmetric", True)
        asking, answering = (clips, clips) if symmetric else (clips[:, :1], clips[:, 1:])
        queries = vectors(backbone, method.projection, asking.flatten(0, 1), asking.shape[1])
        keys = vectors(
            method.target["backbone"], method.target["projection"], answering.flatten(0, 1), answering.shape[1]
        )
        losses, hits, chances = [], [], []
        for own, asked, answers in zip(video, queries, keys, strict=True):
            for i, query in enumerate(asked):
                for j, key in enumerate(answers):
                    if symmetric and i == j:
                        continue
                    right = dot(query, key)
                    wrong = [dot(query, other) for of, other in queue if of != own]
                    e = [math.exp(x / 0.3) for x in [right, *wrong]]
                    losses.append(-math.log(e[0] / sum(e)))
                    hits.append(all(right >= x for x in wrong))
                    chances.append(1 / len(e))
        found = method(backbone, given)
        for name, values in (("loss", losses), ("accuracy", hits), ("chance", chances)):
            assert found[name].item() == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-6), name
        queue += [(own, key) for own, answers in zip(video, keys, strict=True) for key in answers]
        queue = queue[-size:]
        filled = method.queue.video >= 0
        assert method.queue.video[filled].tolist() == [own for own, _ in queue]
        assert torch.allclose(method.queue.keys[filled], torch.tensor([key for _, key in queue]), atol=1e-5)
        for weight in [*backbone.parameters(), *method.projection.parameters()]:
            weight.data += 0.2 * torch.randn_like(weight)
        method.after_step(backbone, step / 4)


def test_no_key_tells_of_its_batch(make):
    """Keys are normalised by averages of the running statistics of the network that asks, which follow after a step."""
    backbone, method = make("moco", batch_norm=True, decay=0.75, rising=False)
    method.train()
    method(backbone, batch(4)), method.after_step(backbone, 0.5)
    norm, averaged = method.projection[1], method.target["projection"][1]
    assert norm.running_mean.any() and torch.allclose(averaged.running_mean, 0.25 * norm.running_mean)  # from 0
    assert torch.allclose(averaged.running_var, 0.75 + 0.25 * norm.running_var)  # from 1
    one, other = batch(4, seed=1), batch(4, seed=2)
    other.clips[:2] = one.clips[:2]  # the clips of the first sample
    keys = []
    for given in (one, other):
        method(backbone, given)
        keys.append(method.queue.keys[-8:])
    assert torch.allclose(keys[0][:2], keys[1][:2], atol=1e-6) and not torch.allclose(
        keys[0][2:], keys[1][2:], atol=0.1
    )


@pytest.mark.parametrize(("samples", "n", "temperature"), [(4, 2, 0.5), (3, 4, 0.2)])
def test_byol_equals_a_loop_over_pairs_of_clips(make, samples, n, temperature):
    backbone, method = make("byol", clips=n, temperature=temperature)
    given = batch(samples, n)
    found = method(backbone, given)
    predicted = vectors(backbone, [*method.projection, *method.predictor], given.clips, n)
    targets = vectors(method.target["backbone"], method.target["projection"], given.clips, n)
    cosines = [
        dot(one, other)
        for ones, others in zip(predicted, targets, strict=True)
        for i, one in enumerate(ones)
        for j, other in enumerate(others)
        if i != j
    ]
    cosine = sum(cosines) / len(cosines)
    assert len(cosines) == samples * n * (n - 1)
    assert found["loss"].item() == pytest.approx(-cosine / temperature, rel=1e-4)
    assert found["distance"].item() == pytest.approx(1 - cosine, rel=1e-4)
    every = [vector for each in targets for vector in each]
    mean = [sum(values) / len(every) for values in zip(*every, strict=True)]
    assert found["constant"].item() == pytest.approx(1 - math.sqrt(dot(mean, mean)), rel=1e-4)


@pytest.mark.parametrize(("predicted", "cosine"), [((2.0, 0, 0, 0), 1), ((0.0, 3, 0, 0), 0), ((-1.0, 0, 0, 0), -1)])
def test_byol_by_hand(make, predicted, cosine):
    backbone, method = make("byol")
    for head, vector in ((method.predictor, predicted), (method.target["projection"], (5.0, 0, 0, 0))):
        nn.init.zeros_(head[-1].weight)
        head[-1].bias.data = torch.tensor(vector)
    found = method(backbone, batch(3))
    expected = {"loss": -cosine / 0.5, "distance": 1 - cosine, "spread": 0, "constant": 0}
    assert {key: value.item() for key, value in found.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_gradients_reach_the_online_network_and_the_average_follows_it(make, name):
    backbone, method = make(name)
    for seed in range(2):  # the second time with a queue
        for weight in (*backbone.parameters(), *method.parameters()):
            weight.grad = None
        method(backbone, batch(4, seed=seed))["loss"].backward()
    online = [
        *backbone.parameters(),
        *method.projection.parameters(),
        *getattr(method, "predictor", nn.Identity()).parameters(),
    ]
    assert all(weight.grad.abs().sum() > 0 for weight in online)
    assert all(weight.grad is None and not weight.requires_grad for weight in method.target.parameters())
    before = method.target["backbone"].conv.weight.clone()
    method.decay = 0.75
    method.after_step(backbone, 0.5)  # 1 - (1 - .75) / 2
    expected = 0.875 * before + 0.125 * backbone.conv.weight
    assert torch.allclose(method.target["backbone"].conv.weight, expected, atol=1e-6)


def test_the_decay_of_moco_may_be_constant(make):
    backbone, method = make("moco", decay=0.75, rising=False)
    before = method.target["backbone"].conv.weight.clone()
    method.after_step(backbone, 1.0)
    expected = 0.75 * before + 0.25 * backbone.conv.weight
    assert torch.allclose(method.target["backbone"].conv.weight, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["simclr", "moco", "byol"])
def test_held_out_samples_change_nothing(make, name):
    backbone, method = make(name)
    method(backbone, batch(4))
    method.eval(), backbone.eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        method(backbone, batch(1, seed=3))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("simclr", {"batch_norm": False}, "to compare them with each other"),
        ("pace", {"contrast": "same-context"}, "to compare them with each other"),
        ("skip_clip", {"targets": 2, "spacing": 2}, "to compare them with each other"),
        ("lejepa", {}, "to compare them with each other"),
        ("simclr", {}, "for its batch normalisation"),
        ("moco", {"batch_norm": True}, "for its batch normalisation"),
        ("byol", {}, "for its batch normalisation"),
        ("ascnet", {}, "for its batch normalisation"),
        ("tce", {}, "for its batch normalisation"),
    ],
)
def test_one_sample_at_a_time_is_refused_at_the_start(demo, here, method, options, why, accumulate):
    settings = Settings(
        **(RUN | {"batch_size": 2 * accumulate - 1}),
        method=method,
        accumulate=accumulate,
        epochs=1,
        options={method: options},
    )
    parts = f"step has {'1 sample' if accumulate == 1 else '[23] samples in 2 parts'}, with [678] videos"
    with pytest.raises(
        TrainerError, match=f"{method} needs 2 samples at a time, {why}, but a {parts}.*raise the batch size"
    ):
        train(settings, demo)
    assert not (here / "runs").exists()


def test_of_one_video_more_are_needed_rather_than_a_larger_batch(here):
    write_shard(here / "one" / "00000.h5", [64, 9])
    for method, accumulate, told in (
        ("byol", 1, "a step has 1 sample, with 1 video to train on; train on more videos, at least 2$"),
        (
            "pace",
            2,
            "a batch of 1 sample cannot be shared among 1 process and 2 accumulated parts; train on more videos, at",
        ),
    ):
        with pytest.raises(TrainerError, match=told):
            train(Settings(**RUN, method=method, accumulate=accumulate, epochs=1), here / "one")


def test_what_cannot_be_trained(make, tmp_path):
    write_shard(tmp_path / "one" / "00000.h5", [64, 9])
    for name in ("simclr", "moco", "rspnet"):
        of = method_class(name)
        with pytest.raises(
            TrainerError, match=f"{name} compares videos, and one has 1 that it can train on; it needs 2"
        ):
            of(Colour(), of.option_values(), Shards(tmp_path / "one"))
    for options, told in (
        ({"clips": 1}, "clips is 1, expected 2 or more"),
        ({"stride": 0}, "stride is 0, expected 1 or"),
    ):
        with pytest.raises(TrainerError, match=told):
            method_class("byol").option_values(options)
