"""`trained_norm`: close to the contract's constant, with the gradient of the exact norm, and no effect."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts import lipschitz
from lipbook.contracts.trained import stretch, trained_norm
from lipbook.contracts.variants import changed_between, snapshot
from lipbook.layers import (
    Abs,
    AOLConv2d,
    AOLLinear,
    GroupSort,
    Householder,
    LipschitzResidual,
    MaxMin,
    Normalize,
    OrthogonalConv2d,
    OrthogonalLinear,
    Residual,
    SandwichLinear,
    SLLConv2d,
    SLLLinear,
)

IMAGE = (4, 6, 6)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def with_gap(linear, norms=(3.0, 1.5, 0.5, 0.1)):
    """The layer with these singular values."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(4, 4, generator=generator))[0] for _ in range(2))
    with torch.no_grad():
        linear.weight.copy_(u @ torch.diag(torch.tensor(norms)) @ v)
    return linear


FREE = {  # layers whose norm is searched, and the shape of a sample
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear, orthogonal by torch": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), (4,)),
    "convolution": (lambda: nn.Conv2d(4, 3, 3, padding=1), IMAGE),
    "convolution with a stride": (lambda: nn.Conv2d(4, 3, 2, stride=2, padding_mode="circular"), IMAGE),
    "batch norm": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "residual of a linear": (lambda: Residual(nn.Linear(5, 5)), (5,)),
    "residual of a chain of one": (lambda: Residual(nn.Sequential(nn.Sequential(nn.Linear(5, 5)))), (5,)),
    "residual of a convolution": (lambda: Residual(nn.Conv2d(4, 4, 3, padding=1)), IMAGE),
    "residual of two linears": (lambda: Residual(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 5))), (5,)),
    "residual of a network": (
        lambda: Residual(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5))),
        (5,),
    ),
    "residual of a residual": (
        lambda: Residual(nn.Sequential(Residual(nn.Linear(5, 5)), Abs(), nn.ReLU())),
        (5,),
    ),
    "chain": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6)), (5,)),
}
KNOWN = {  # layers whose constant is a number
    "orthogonal": (lambda: OrthogonalLinear(5, 3), (5,)),
    "orthogonal convolution": (lambda: OrthogonalConv2d(4, 4, 3), IMAGE),
    "AOL": (lambda: AOLLinear(5, 3), (5,)),
    "AOL convolution": (lambda: AOLConv2d(4, 4, 3), IMAGE),
    "SLL": (lambda: SLLLinear(5, 5), (5,)),
    "SLL convolution": (lambda: SLLConv2d(4, 3), IMAGE),
    "sandwich": (lambda: SandwichLinear(5, 3), (5,)),
    "Lipschitz residual": (lambda: LipschitzResidual(5, 4, 3, lipschitz=2.5), (5,)),
    "normalize": (lambda: Normalize(0.5, 0.25), (5,)),
    "MaxMin": (MaxMin, IMAGE),
    "GroupSort": (lambda: GroupSort(4), (8,)),
    "Householder": (lambda: Householder(4), (4,)),
    "Abs": (Abs, (5,)),
    "ReLU": (nn.ReLU, (5,)),
    "frozen linear": (lambda: nn.Linear(5, 3).requires_grad_(False), (5,)),
    "frozen residual": (lambda: Residual(nn.Linear(5, 5)).requires_grad_(False), (5,)),
    "residual of nothing": (lambda: Residual(nn.Identity()), (5,)),
    "residual of an empty chain": (lambda: Residual(nn.Sequential()), (5,)),
    "average pooling": (lambda: nn.AvgPool2d(2), IMAGE),
    "flatten": (nn.Flatten, IMAGE),
}


@pytest.mark.parametrize("name", FREE)
def test_a_norm_that_is_searched_is_a_little_below_the_contracts_and_has_gradients(name):
    build, shape = FREE[name]
    layer = seeded(build)
    if name == "batch norm":
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.2, -3.0, 1.0, 0.5]))
    value, upper = trained_norm(layer, shape), lipschitz(layer, 2, shape).value
    assert value.dtype == torch.float32 and value.ndim == 0
    assert 0.85 * upper <= value.item() <= upper * (1 + 1e-5)
    gradients = torch.autograd.grad(value, list(layer.parameters()), allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", KNOWN)
def test_a_constant_that_is_known_is_a_number(name):
    build, shape = KNOWN[name]
    layer = seeded(build)
    value = trained_norm(layer, shape)
    assert isinstance(value, float)
    exact = lipschitz(layer, 2, shape).value
    assert exact * (1 - 1e-4) <= value <= exact * (1.1 if name == "AOL convolution" else 1 + 1e-4)


@pytest.mark.parametrize("name", [*FREE, *KNOWN])
def test_reading_it_changes_nothing(name):
    build, shape = (FREE | KNOWN)[name]
    layer = seeded(build)
    if name != "batch norm":
        layer.train()
    before = snapshot(layer)
    with torch.no_grad():
        trained_norm(layer, shape)
    assert changed_between(before, snapshot(layer)) is None


def test_batch_norm_in_train_mode_inside_a_residual_is_refused_and_keeps_its_statistics():
    for inside in (nn.BatchNorm1d(5), nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))):
        layer = Residual(inside).train()
        before = snapshot(layer)
        with pytest.raises(UnsupportedLayerError, match="train mode"):
            trained_norm(layer, (5,))
        assert changed_between(before, snapshot(layer)) is None


def test_a_residual_too_large_to_write_out_counts_as_its_contract_does():
    layer, shape = seeded(lambda: Residual(nn.Conv2d(1, 1, 3, padding=1))), (1, 65, 65)
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = -0.5  # the norm of I + W is 1/2, and 1 + that of W is 3/2
    with torch.no_grad():
        layer.module.weight.copy_(kernel)
    assert trained_norm(layer, shape).item() == pytest.approx(lipschitz(layer, 2, shape).value, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_weights_of_any_size_have_their_norm(scale):
    layer = with_gap(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        layer.weight.mul_(scale)
    value = trained_norm(layer, (4,))
    assert value.item() == pytest.approx(3 * scale, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, [layer.weight])
    assert gradient.norm().item() == pytest.approx(1, rel=1e-5)  # u v'


def test_a_weight_of_zeros_has_the_norm_0_and_a_finite_gradient():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    value = trained_norm(layer, (4,))
    assert value.item() == 0
    assert torch.isfinite(torch.autograd.grad(value, [layer.weight])[0]).all()


@pytest.mark.parametrize("shortcut", [False, True])
def test_its_gradient_is_that_of_the_exact_norm(shortcut):
    linear = with_gap(nn.Linear(4, 4)).double()
    layer = Residual(linear) if shortcut else linear
    (gradient,) = torch.autograd.grad(trained_norm(layer, (4,)), [linear.weight])
    kept = np.eye(4) if shortcut else np.zeros((4, 4))
    weight = linear.weight.detach().numpy()
    differences = np.zeros((4, 4))
    for where in np.ndindex(4, 4):
        move = np.zeros((4, 4))
        move[where] = 1e-5
        ends = (np.linalg.norm(kept + weight + sign * move, 2) for sign in (1, -1))
        differences[where] = (next(ends) - next(ends)) / 2e-5
    np.testing.assert_allclose(gradient.numpy(), differences, rtol=0, atol=1e-4 if shortcut else 1e-7)


def test_a_direction_hidden_from_one_start_is_found_from_that_of_these_weights():
    for seed in range(3):
        start = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed))
        hidden = torch.eye(20)[seed] - start[0, seed] * start[0] / (start @ start.T)[0]
        layer = nn.Linear(20, 20, bias=False)
        with torch.no_grad():  # I + 0.3 u u', with u at a right angle to the start
            layer.weight.copy_(torch.eye(20) + 0.3 * torch.outer(hidden, hidden) / hidden.square().sum())
        assert trained_norm(layer, (20,)).item() == pytest.approx(1.3, rel=1e-3)


def test_the_value_is_the_same_each_time_and_in_every_mode():
    layer = nn.Linear(30, 30)
    value = trained_norm(layer, None).item()
    torch.rand(3)
    with torch.no_grad():
        assert trained_norm(layer.train(), (30,)).item() == value
    with torch.inference_mode():
        assert trained_norm(layer.eval(), (30,)).item() == value


def test_without_the_shape_it_needs_it_says_so():
    with pytest.raises(ValueError, match="Conv2d"):
        stretch(nn.Conv2d(1, 2, 3), None)
    assert trained_norm(Residual(nn.Linear(3, 3)), None).item() > 0
    assert math.isclose(trained_norm(Residual(OrthogonalLinear(3, 3)), None), 2)
