"""SCOP."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import randomize_norms, run
from scoring import batches, build_mixed, make, scores_of, step
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.scop import Scop, control_score, mixed, permuted


def test_the_numbers_of_the_specification() -> None:
    # methods.md 3.24
    found = control_score(torch.tensor([-0.5]), torch.tensor([0.8]))
    torch.testing.assert_close(found, torch.tensor([0.3]))
    halves = mixed(torch.tensor([[2.0], [1.0]]), torch.tensor([0.8]))
    torch.testing.assert_close(halves, torch.tensor([[1.8], [1.0]]))


def test_features_are_mixed_channel_by_channel() -> None:
    features = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    share = torch.rand(3, dtype=torch.float64)
    found = mixed(features, share)
    for image in range(3):
        for channel in range(3):
            s = share[channel]
            want = s * features[image, channel] + (1 - s) * features[image + 3, channel]
            torch.testing.assert_close(found[image, channel], want)
    assert torch.equal(found[3:], features[3:])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_image_is_its_own_knockoff(count: int) -> None:
    images = torch.arange(count)[:, None]
    for _ in range(20):
        other = permuted(images)
        assert (other != images).all()
        assert sorted(other.flatten().tolist()) == list(range(count))


def attached(graph: Graph, **options: object) -> Scop:
    method = make("scop", **options)
    assert isinstance(method, Scop)
    method.attach(graph)
    return method


def train(method: Scop, model: nn.Module, steps: int = 4) -> None:
    model.train()
    for number in range(1, steps + 1):
        (images,) = batches(8, 8)
        output = model(images)
        loss = nn.functional.cross_entropy(output, torch.arange(8) % 4)
        loss = method.whole_loss(loss, images, output)
        loss.backward()
        method.after_step(step(number=number, total=steps))


def test_the_network_is_the_same_before_while_and_after(mixed: Graph) -> None:
    model = mixed.model
    before, state = run(model, batches(4, 4)[0]), copy.deepcopy(model.state_dict())
    method = attached(mixed)
    assert torch.equal(run(model, batches(4, 4)[0]), before)
    train(method, model)
    assert torch.equal(run(model, batches(4, 4)[0]), before)
    assert all((s != 0.5).any() for s in method.own_parameters())
    method.detach()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.get_submodule("norm1").momentum == 0.1


def test_the_answer_is_that_of_the_real_half() -> None:
    """By hand: joined, mixed in front of the norm, and cut in two again."""
    torch.manual_seed(0)
    convolution, norm, last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
    model = randomize_norms(nn.Sequential(convolution, norm, nn.ReLU(), last))
    method = attached(trace(model, torch.randn(2, 3, 8, 8)))
    (share,) = method.own_parameters()
    with torch.no_grad():
        share.copy_(torch.rand(6))
    (images,) = batches(2, 2)  # of two images each is the other's knockoff
    model.train()
    found = model(images)
    maps = convolution(torch.cat([images, images.flip(0)]))
    s = share.detach()[:, None, None]
    maps = torch.cat([s * maps[:2] + (1 - s) * maps[2:], maps[2:]])
    normal = nn.functional.batch_norm(maps, None, None, norm.weight, norm.bias, True)
    want = last(normal.relu())[:2]
    torch.testing.assert_close(found, want)


def test_only_s_is_moved_and_stays_between_0_and_1(mixed: Graph) -> None:
    method = attached(mixed, rate=10.0)
    trained = [p for p in mixed.model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(s) for s in method.own_parameters()}
    assert [len(s) for s in method.own_parameters()] == [10, 10, 10, 6, 8]
    train(method, mixed.model, 1)
    for share in method.own_parameters():
        assert set(share.tolist()) <= {0.0, 1.0, 0.5}
        assert len(set(share.tolist())) > 1
        assert share.grad is None


def test_channels_that_carry_the_label_beat_those_that_carry_noise() -> None:
    torch.manual_seed(0)
    convolution, norm, last = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(2)[..., None, None])
        last.weight.copy_(torch.tensor([[1.0, 0.3], [-1.0, -0.3]])[..., None, None])
    model = nn.Sequential(convolution, norm, nn.Tanh(), last)
    graph = trace(model, torch.randn(2, 2, 1, 1))
    method = attached(graph, rate=0.05)
    model.train()
    for number in range(1, 41):
        images = torch.randn(64, 2, 1, 1)
        labels = (images[:, 0, 0, 0] < 0).long()
        nn.functional.cross_entropy(model(images).flatten(1), labels).backward()
        method.after_step(step(number=number, total=40))
    method.detach()
    (scores,) = method.score(Context(graph))
    assert scores is not None
    assert scores[0] > 0.5
    assert scores[1] < 0.25


def test_scores_are_the_mean_over_the_norms_of_a_group(mixed: Graph) -> None:
    method = attached(mixed)
    random = torch.Generator().manual_seed(0)
    shares = []
    with torch.no_grad():
        for share in method.own_parameters():
            share.copy_(torch.rand(share.shape, generator=random))
            shares.append(share.detach().clone())
    method.detach()
    found = method.score(Context(mixed))
    gammas = [mixed.model.get_parameter(f"norm{n}.weight").detach() for n in (1, 2, 3, 4, 5)]
    parts = [g.abs() * (2 * s - 1) for g, s in zip(gammas, shares, strict=True)]
    for score, want in zip(found, [sum(parts[:3]) / 3, parts[3], parts[4]], strict=True):
        torch.testing.assert_close(score, want)


def test_without_training_the_score_is_the_scale(mixed: Graph) -> None:
    found = scores_of("scop", mixed)[1]
    torch.testing.assert_close(found, mixed.model.get_parameter("norm4.weight").detach().abs())


def test_after_a_cut_it_must_be_trained_again(mixed: Graph) -> None:
    method = attached(mixed)
    method.detach()
    with torch.no_grad():
        other = build_mixed()
        other.side = nn.Conv2d(10, 5, 1)
        other.norm4 = nn.BatchNorm2d(5)
        other.hidden = nn.Linear(15 * 4, 8)
    with pytest.raises(MethodError, match=r"norm4\.weight' has 5 and 6 were learned"):
        method.score(Context(trace(other, torch.randn(2, 3, 8, 8))))


def test_the_generator_learns_first_and_then_s(mixed: Graph) -> None:
    torch.manual_seed(0)
    method = attached(mixed, knockoff="generator", learn=0.5)
    train(method, mixed.model, 1)  # ends the turn of the generator
    assert all((s == 0.5).all() for s in method.own_parameters())
    train(method, mixed.model, 4)
    assert all((s != 0.5).any() for s in method.own_parameters())


def test_the_generator_makes_images_of_the_range_and_place_of_the_real_ones() -> None:
    torch.manual_seed(0)
    model = build_mixed()
    method = attached(trace(model, torch.randn(2, 3, 8, 8)), knockoff="generator", learn=0.9)
    generator = method._generator
    assert generator is not None

    def images() -> Tensor:
        # Dark on the left and bright on the right.
        ramp = torch.linspace(-2, 3, 10).expand(16, 3, 7, 10)
        return (ramp + 0.1 * torch.randn(16, 3, 7, 10)).clamp(-2, 3)

    made = generator.like(images())
    assert made.shape == (16, 3, 7, 10)
    assert made.min() >= -2.001
    assert made.max() <= 3.001
    start = float((made.mean((0, 1, 2)) - images().mean((0, 1, 2))).abs().mean())
    for _ in range(200):
        generator.learn(images())
    found = generator.like(images()).mean((0, 1, 2))
    assert float((found - images().mean((0, 1, 2))).abs().mean()) < start / 2


def test_a_model_without_norms_is_refused() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8))
    with pytest.raises(MethodError, match=r"no channel that can go has one.*l1"):
        make("scop").attach(graph)


def test_a_model_that_takes_more_than_images_is_refused(mixed: Graph) -> None:
    attached(mixed)
    mixed.model.train()
    with pytest.raises(MethodError, match="one tensor of images"):
        mixed.model([batches(2, 2)[0]])


def test_a_failed_forward_pass_leaves_no_trace(mixed: Graph) -> None:
    method = attached(mixed)
    mixed.model.train()
    with pytest.raises(RuntimeError):
        mixed.model(torch.randn(2, 4, 8, 8))
    before = run(mixed.model, batches(4, 4)[0])
    method.detach()
    assert torch.equal(run(mixed.model, batches(4, 4)[0]), before)
