"""Sensitivities: by hand, against autograd, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts import check, loss_gradient_norm
from lipbook.layers import MaxMin, OrthogonalLinear, ToBall, ToSphere
from lipbook.privacy import ClippedGradient, gradient_norms, sensitivity
from lipbook.training import OffsetCrossEntropy

CE = nn.CrossEntropyLoss()


def orthogonal(*sizes):
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs, bias=False), MaxMin()]
        nn.init.orthogonal_(layers[-2].weight)
    return nn.Sequential(*layers[:-1]).double()


def total_norms(model, loss, x, y):
    """The norm of each sample's gradient of everything, one sample at a time."""
    sizes = []
    for sample, label in zip(x, y):
        value = loss(model(sample[None]), label[None])
        gradients = torch.autograd.grad(value, [w for w in model.parameters() if w.requires_grad])
        sizes.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    return torch.stack(sizes)


def test_orthogonal_layers_share_the_bound_equally():
    told = sensitivity(orthogonal(6, 6, 6, 4), CE, 2.0)
    assert list(told.per_parameter.values()) == pytest.approx([2 * math.sqrt(2)] * 3)
    assert told.total == pytest.approx(2 * math.sqrt(2) * math.sqrt(3)) == float(told)
    assert told.loss == math.nextafter(math.sqrt(2), 2)
    assert [(name, X) for name, X, _ in told.recursion] == [(str(k), pytest.approx(2.0)) for k in range(5)]


def test_norms_multiply_over_all_the_other_layers():
    model = orthogonal(4, 4, 4)
    model[0].weight.data *= 3
    model[2].weight.data *= 5
    told = sensitivity(model, CE, 1.0).per_parameter
    root = math.sqrt(2)
    assert told == {"0.weight": pytest.approx(5 * root), "2.weight": pytest.approx(3 * root)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_sample_of_a_convolutional_network_exceeds_the_bound(bias, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        ToBall(1.5),
        nn.Conv2d(1, 4, 3, padding=1, bias=bias),
        nn.Sequential(MaxMin(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(36, 5, bias=bias),
    ).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    told = sensitivity(model, CE, math.inf, (1, 6, 6))
    x, y = 3 * torch.randn(30, 1, 6, 6, dtype=torch.float64), torch.randint(5, (30,))
    x[:5] = 1.0
    sizes = total_norms(model, CE, x, y)
    assert told.total / 50 < sizes.max() <= told.total
    assert told.per_parameter.keys() == dict(model.named_parameters()).keys()


def test_the_bound_is_reached_by_a_sample_of_one_wrong_class():
    """Everything at once: a long input along the weights, and all the probability on another class."""
    model = orthogonal(6, 6, 6)
    x = torch.eye(6, dtype=torch.float64) + 0.0
    found = total_norms(model, OffsetCrossEntropy(0.0, 1e-3), torch.cat([x, -x]), torch.arange(12) % 6)
    assert found.max() == pytest.approx(
        sensitivity(model, OffsetCrossEntropy(0.0, 1e-3), 1.0).total, rel=0.01
    )


def test_given_norms_are_used_and_others_computed():
    model = orthogonal(4, 4, 4, 3)
    told = sensitivity(model, CE, 1.0, norms={"2": 2.0}).per_parameter
    assert told["0.weight"] == pytest.approx(2 * math.sqrt(2)) == told["4.weight"]
    assert told["2.weight"] == pytest.approx(math.sqrt(2))
    for norms, message in (
        ({"1": 1.0}, "no nn.Linear"),
        ({"0": -1.0}, "at least 0"),
        ({"0": math.nan}, "least"),
    ):
        with pytest.raises(ValueError, match=message):
            sensitivity(model, CE, 1.0, norms=norms)


def test_frozen_parameters_are_left_out_and_reading_changes_nothing():
    model = orthogonal(4, 4, 3)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    assert sensitivity(model, CE, 1.0).per_parameter.keys() == {"2.weight"}
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    "model, loss, norm, shape, error, message",
    [
        (nn.Linear(2, 2), CE, 1.0, None, TypeError, "must be an nn.Sequential"),
        (nn.Sequential(OrthogonalLinear(4, 4)), CE, 1.0, None, ValueError, "pass input_shape"),
        (nn.Sequential(OrthogonalLinear(4, 4)), CE, 1.0, (4,), UnsupportedLayerError, "computes? its weight"),
        (nn.Sequential(nn.Linear(2, 2)), nn.MSELoss(), 1.0, None, UnsupportedLayerError, "no loss_gradient"),
        (nn.Sequential(nn.Linear(2, 2)), CE, math.inf, None, ValueError, "unbounded"),
        (nn.Sequential(nn.Linear(2, 2)), CE, 0.0, None, ValueError, "must be positive"),
        (nn.Sequential(nn.Linear(2, 2)), CE, math.nan, None, ValueError, "at least 0"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), CE, 1.0, None, UnsupportedLayerError, "eval"),
        (nn.Sequential(nn.Linear(2, 2), ToSphere(1.0), nn.Linear(2, 2)), CE, 1.0, None, TypeError, "ToBall"),
        (
            nn.Sequential(nn.Linear(2, 2).requires_grad_(False)),
            CE,
            1.0,
            None,
            ValueError,
            "nothing is trained",
        ),
        (nn.Sequential(nn.Linear(2, 2)), CE, 1.0, (3,), ValueError, "takes 2 numbers"),
    ],
    ids=lambda part: str(part)[:24],
)
def test_what_has_no_sensitivity_is_refused(model, loss, norm, shape, error, message):
    with pytest.raises(error, match=message):
        sensitivity(model, loss, norm, shape)


def test_a_hook_that_changes_gradients_is_refused():
    everywhere = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(UnsupportedLayerError, match="backward hook"):
            sensitivity(orthogonal(4, 3), CE, 1.0)
    finally:
        everywhere.remove()
    model = orthogonal(4, 4, 3)
    model[1].register_full_backward_hook(lambda layer, inner, outer: tuple(100 * g for g in inner))
    for read in (
        lambda: sensitivity(model, CE, 1.0),
        lambda: gradient_norms(model, CE, torch.zeros(1, 4).double(), torch.zeros(1).long()),
    ):
        with pytest.raises(UnsupportedLayerError, match="backward hook"):
            read()


def test_an_empty_shape_is_no_shape_of_a_sample():
    with pytest.raises(ValueError, match="positive integers"):
        sensitivity(orthogonal(4, 3), CE, 1.0, ())


def test_nan_weights_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        sensitivity(model, CE, 1.0)


# The clipped gradient of a loss.


@pytest.mark.parametrize("bound", [0.3, 1.0, 5.0])
def test_clipping_at_the_logits_shortens_each_sample_alone_and_keeps_value_and_direction(bound):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(40, 7, dtype=torch.float64), torch.randint(7, (40,))
    clipped = ClippedGradient(CE, bound)
    rows = []
    for loss in (CE, clipped):
        z = logits.clone().requires_grad_()
        value = loss(z, labels)
        assert value == CE(logits, labels)
        rows.append(40 * torch.autograd.grad(value, z)[0])
    plain, short = rows
    expected = plain * (bound / plain.norm(dim=1, keepdim=True)).clamp(max=1)
    assert torch.allclose(short, expected)
    assert loss_gradient_norm(clipped) == min(bound, loss_gradient_norm(CE))


def test_the_clipped_loss_survives_the_attacks():
    assert check(ClippedGradient(CE, 0.7), (5,))["loss_gradient_norm"] < 1e-9


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan, "1"])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises((ValueError, TypeError), match="bound must be"):
        ClippedGradient(CE, bound)
