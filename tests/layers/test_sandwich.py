"""Sandwich layers against the formula of their source."""

import math

import pytest
import torch
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.bounds import product_bound
from lipbook.contracts import expand, lipschitz
from lipbook.layers.sandwich import SandwichLinear
from lipbook.network import read

DOUBLE = torch.float64


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (2, 5), (6, 3)])
def test_it_is_the_formula_of_its_source_with_a_half_orthogonal_pair(inputs, outputs, activation):
    torch.manual_seed(0)
    layer = SandwichLinear(inputs, outputs, activation).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        G, W = layer.materialise()
        scale = layer.psi.exp()
        A, B = (G / (math.sqrt(2) * scale)).T, W * scale[:, None] / math.sqrt(2)
        torch.testing.assert_close(A @ A.T + B @ B.T, torch.eye(outputs, dtype=DOUBLE), rtol=0, atol=1e-12)
        x = torch.randn(9, inputs, dtype=DOUBLE)
        inside = getattr(torch, activation)(math.sqrt(2) * (x @ B.T) / scale + layer.bias)
        expected = math.sqrt(2) * (inside * scale) @ A
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_it_begins_as_an_orthogonal_map_and_its_activation():
    torch.manual_seed(0)
    layer = SandwichLinear(5, 5).double()
    with torch.no_grad():
        G, W = layer.materialise()
    torch.testing.assert_close(G, torch.eye(5, dtype=DOUBLE), rtol=0, atol=1e-6)
    torch.testing.assert_close(W @ W.T, torch.eye(5, dtype=DOUBLE), rtol=0, atol=1e-6)


def test_the_product_bound_takes_the_layer_whole_and_its_parts_multiply_to_more():
    torch.manual_seed(0)
    layer = SandwichLinear(6, 6)
    with torch.no_grad():
        layer.free.normal_()
    model = nn.Sequential(nn.Sequential(layer), nn.Linear(6, 2))
    head = lipschitz(model[1]).value
    assert [step.layer for step in read(model)] == [layer, model[1]]
    assert product_bound(model).verify(model).value <= head * (1 + 1e-5)
    assert product_bound(nn.Sequential(*expand(model))).value > 1.2 * head


def test_another_activation_is_refused():
    layer = SandwichLinear(3, 3)
    layer.activation = "gelu"
    with pytest.raises(UnsupportedLayerError, match="activation='gelu'"):
        lipschitz(layer)


def test_a_layer_without_bias_adds_none():
    layer = SandwichLinear(3, 3, bias=False)
    assert layer.bias is None and not layer(torch.zeros(1, 3)).any()
