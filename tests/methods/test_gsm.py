from __future__ import annotations

import pytest
import torch
from scoring import batches, make
from test_weights import loss_of, network, train
from torch import nn

from prune2deploy.errors import MethodError
from prune2deploy.methods.common.weights import Weights, prunable
from prune2deploy.methods.gsm import Gsm, active


def gsm() -> Gsm:
    method = make("gsm")
    assert isinstance(method, Gsm)
    return method


def test_the_example_of_the_specification() -> None:
    """methods.md 3.7: one weight of three is active, the others only decay."""
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    method = gsm()
    method.begin(Weights(model, ("weight",), 1 / 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    model.weight.grad = torch.tensor([[0.1, 0.02, -0.5]])
    method.after_backward()
    assert model.weight.grad.tolist() == [[0.0, 0.0, -0.5]]
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.999, -1.998, 0.5495]]))


def test_ties_with_the_last_active_weight_are_active() -> None:
    weights = torch.tensor([1.0, 2.0, 4.0, 1.0])
    gradients = torch.tensor([4.0, -2.0, 2.0, 0.1])
    assert active(weights, gradients, 1).tolist() == [False, False, True, False]
    assert active(weights, gradients, 2).tolist() == [True, True, True, False]


def test_the_active_weights_are_those_of_all_layers_together() -> None:
    model = network().train()
    weights = Weights(model, prunable(model), 0.2)
    method = gsm()
    method.begin(weights)
    loss_of(model, batches(8, 8)[0]).backward()
    metric, whole = {}, {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        whole[name] = parameter.grad.clone()
        metric[name] = (parameter.detach().double() * parameter.grad.double()).abs()
    method.after_backward()
    everything = sorted(
        (float(m) for n in weights.names for m in metric[n].flatten()), reverse=True
    )
    limit = everything[int(0.2 * len(everything)) - 1]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        stays = metric[name] >= limit * (1 - 1e-6)
        if name not in weights.names:
            stays = torch.ones_like(stays)  # biases and norms learn as usual
        assert torch.equal(parameter.grad, whole[name].masked_fill(~stays, 0.0)), name


def test_passive_weights_fade() -> None:
    """With the hook, training leaves more weights near zero than without."""

    class Nothing:
        def after_backward(self) -> None:
            pass

        def after_step(self, step: object) -> None:
            pass

    small = []
    for hooks in (gsm(), Nothing()):
        model = network()
        if isinstance(hooks, Gsm):
            hooks.begin(Weights(model, prunable(model), 0.05))
        train(model, hooks, epochs=30, weight_decay=0.02)
        weights = torch.cat([model.get_parameter(n).detach().flatten() for n in prunable(model)])
        magnitude = weights.abs()
        small.append(float((magnitude < 0.01 * magnitude.max()).float().mean()))
    assert small[0] > 2 * small[1]


def test_a_layer_without_a_gradient_is_left_out() -> None:
    model = network()
    method = gsm()
    method.begin(Weights(model, prunable(model), 0.5))
    parameter = model.get_parameter("6.weight")
    parameter.grad = torch.ones_like(parameter)
    method.after_backward()
    assert model.get_parameter("0.weight").grad is None
    assert parameter.grad.any()


def test_hooks_before_a_beginning_are_refused() -> None:
    with pytest.raises(MethodError, match="without begin"):
        gsm().after_backward()
