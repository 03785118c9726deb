"""The closed form against the recursion of its paper, and against the optimum that it does not look for."""

import pytest
import torch
from torch import nn

from lipbook.layers import Residual
from lipbook.sdp import eclipse_fast, interior_point, lipsdp, reference
from tests.increments import PIECEWISE, SMOOTH, drawn


def closed_form(model, rows=None):
    """ECLipsE-Fast for slopes in [0, 1], as the paper writes it: a recursion over the layers."""
    weights = [layer.weight.detach().double() for layer in model if isinstance(layer, nn.Linear)]
    if rows is not None:
        weights[-1] = rows @ weights[-1]
    X = torch.eye(weights[0].shape[1]).double()
    for weight in weights[:-1]:
        K = weight @ torch.linalg.solve(X, weight.T)
        step = 1 / torch.linalg.matrix_norm(K, 2)
        X = 2 * step * torch.eye(len(weight)).double() - step**2 * K
    return torch.linalg.matrix_norm(weights[-1] @ torch.linalg.solve(X, weights[-1].T), 2).sqrt().item()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Softplus])
@pytest.mark.parametrize("sizes", [(3, 6, 2), (3, 8, 6, 2), (9, 4, 7, 5, 1)])
def test_it_is_the_formula_of_the_paper_for_slopes_in_0_1(activation, sizes):
    model, _ = drawn(lambda width: activation(), 1, sizes)
    assert eclipse_fast(model).value == pytest.approx(closed_form(model), rel=1e-8)
    if sizes[-1] > 1:
        bounds = eclipse_fast(model, "pairs")
        assert set(bounds) == {(0, 1)} and bounds[0, 1].output == (0, 1)
        row = torch.tensor([[1.0, -1.0]]).double()
        assert bounds[0, 1].value == pytest.approx(closed_form(model, row), rel=1e-8)


@pytest.mark.parametrize("activation", [*PIECEWISE, *SMOOTH])
def test_it_verifies_and_is_above_the_optimum(activation):
    make = PIECEWISE.get(activation) or (lambda width: SMOOTH[activation]())
    for seed in range(2):
        model, _ = drawn(make, seed)
        bound = eclipse_fast(model).verify(model)
        best = lipsdp(model)
        assert bound.value >= best.certificate.dual_value and bound.value >= best.value * (1 - 1e-5)
        assert (bound.kind, bound.norm, bound.output, bound.region) == ("upper", 2, None, None)
        assert bound.method == "eclipse-fast"


def test_its_certificate_says_what_was_not_computed():
    certificate = eclipse_fast(drawn(PIECEWISE["ReLU"], 1, (3, 8, 4, 2))[0]).certificate
    assert (certificate.dual_value, certificate.gap, certificate.iterations) == (None, None, None)
    assert certificate.multipliers.shape == (12,) and certificate.multipliers.dtype == torch.float64
    assert [len(part.unique()) for part in certificate.multipliers.split([8, 4])] == [1, 1]


def test_it_asks_no_solver(monkeypatch):
    model, _ = drawn(PIECEWISE["MaxMin"], 1)
    for module in (interior_point, reference):
        monkeypatch.setattr(module, "propose", None)
    assert eclipse_fast(model).verify(model)


def test_residual_blocks_and_images_have_a_closed_form():
    inner, _ = drawn(PIECEWISE["ReLU"], 3, (4, 4, 4))
    model, _ = drawn(PIECEWISE["ReLU"], 1, (3, 4, 4, 2))
    model = nn.Sequential(*model[:2], Residual(inner), *model[2:]).eval()
    assert eclipse_fast(model).verify(model).value >= lipsdp(model).certificate.dual_value
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    bound = eclipse_fast(image, input_shape=(1, 5, 5)).verify(image)
    assert bound.value >= lipsdp(image, input_shape=(1, 5, 5)).certificate.dual_value
