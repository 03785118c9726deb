"""Semidefinite bounds of networks of blocks, between enumerated patterns of slopes and the product bound."""

import itertools
import math

import pytest
import torch
from torch import nn

from lipbook import Ball
from lipbook.bounds import gradient_lower_bound, local_bound, product_bound
from lipbook.contracts import affine, expand, residual
from lipbook.layers import LipschitzResidual, Residual, SandwichLinear, SLLConv2d, SLLLinear
from lipbook.sdp import eclipse_fast, lipsdp

NEAR = 1e-5
DOUBLE = torch.float64
MODELS = {
    "SLL": (lambda: (SLLLinear(3, 4), SLLLinear(3, 2), nn.Linear(3, 2)), (3,)),
    "SLL convolutions": (lambda: (SLLConv2d(1, 3, 1), SLLConv2d(1, 3, 1, "zeros"), nn.Flatten()), (1, 2, 2)),
    "Sandwich": (lambda: (SandwichLinear(3, 4), SandwichLinear(4, 3), nn.Linear(3, 2)), (3,)),
    "blocks": (lambda: (LipschitzResidual(2, 3, 3), LipschitzResidual(3, 3, 2, 2.0)), (2,)),
    "mixed": (
        lambda: (
            nn.Linear(3, 3),
            Residual(SandwichLinear(3, 3)),
            SLLLinear(3, 2),
            LipschitzResidual(3, 2, 1),
        ),
        (3,),
    ),
}


def drawn(name, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(*MODELS[name][0]())
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.add_(0.5 * torch.randn_like(parameter) / math.sqrt(inputs))
    return model, MODELS[name][1]


def jacobians(layer, shape):
    """The Jacobian of a layer for every pattern of slopes 0 and 1 of the units in it, (patterns, out, in)."""
    parts = expand(layer)
    if parts != (layer,):
        return chain(parts, shape)
    try:
        skip, inside = residual(layer)
    except TypeError:
        if isinstance(layer, nn.ReLU):
            patterns = itertools.product((0.0, 1.0), repeat=math.prod(shape))
            return torch.diag_embed(torch.tensor(list(patterns), dtype=DOUBLE))
        return affine(layer, shape)[0][None]
    return affine(skip, shape)[0] + chain(expand(inside), shape)


def chain(layers, shape):
    total = torch.eye(math.prod(shape), dtype=DOUBLE)[None]
    for layer in layers:
        found = jacobians(layer, shape)
        total = torch.einsum("aij,bjk->abik", found, total).flatten(0, 1)
        shape = tuple(layer(torch.zeros(1, *shape)).shape[1:])
    return total


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MODELS)
def test_every_bound_is_above_all_patterns_and_the_sdp_is_the_smallest(name, seed):
    model, shape = drawn(name, seed)
    patterns = chain(model, shape)
    truth = torch.linalg.matrix_norm(patterns, ord=2).max().item()
    product = product_bound(model, input_shape=shape).verify(model).value
    neuron = lipsdp(model, input_shape=shape).verify(model).value
    layer = lipsdp(model, input_shape=shape, multipliers="layer").verify(model).value
    closed = eclipse_fast(model, input_shape=shape).verify(model).value
    assert truth <= neuron * (1 + 1e-9)
    assert neuron <= layer * (1 + NEAR) and layer <= closed * (1 + NEAR)
    assert neuron <= product * (1 + NEAR)
    assert gradient_lower_bound(model, torch.randn(8, *shape)).verify(model).value <= truth * (1 + 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_the_sdp_of_one_logit_is_above_all_patterns(name):
    model, shape = drawn(name, 3)
    truth = torch.linalg.vector_norm(chain(model, shape)[:, 0], dim=-1).max().item()
    assert truth <= lipsdp(model, 0, input_shape=shape).verify(model).value * (1 + 1e-9)
    assert truth <= product_bound(model, logits=0, input_shape=shape).verify(model).value * (1 + 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_in_a_ball_every_bound_is_above_the_steepest_pair(name):
    model, shape = drawn(name, 4)
    center = torch.randn(shape, dtype=DOUBLE)
    region = Ball(center, 0.2)
    steepest = gradient_lower_bound(model, center[None], region=region).verify(model).value
    assert steepest <= lipsdp(model, region=region).verify(model).value
    linear, interval = (
        local_bound(model, center, 0.2, norm=2, method=method).verify(model).value
        for method in ("linear", "interval")
    )
    assert steepest <= linear <= interval * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "SLL convolutions"])
def test_dense_blocks_tell_the_shape_of_their_input(name):
    model, shape = drawn(name, 5)
    assert lipsdp(model).value == lipsdp(model, input_shape=shape).value


def test_the_sdp_of_one_certified_block_is_at_most_its_constant():
    """The block holds a solution of its own program: its multiplier, and the square of its constant."""
    torch.manual_seed(0)
    layers = LipschitzResidual(3, 4, 3), SLLLinear(4, 6), SandwichLinear(4, 5)
    for layer in layers:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_()
        assert lipsdp(nn.Sequential(layer)).value <= 1 + NEAR
