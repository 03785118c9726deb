"""Norms of outputs and of gradients: attacked, reached, and read against autograd."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import check, lipschitz, loss_gradient_norm, output_norm, parameter_gradient_norm
from lipbook.layers import Householder, MaxMin, Normalize, OrthogonalLinear, Residual, SLLLinear
from lipbook.training import EMMALoss, OffsetCrossEntropy

ROUNDING = 1e-12
CIRCLE = {"padding_mode": "circular"}
ATTAINED = {  # (layer, the shape of a sample): single layers whose bound some sample reaches
    "vector": (lambda: nn.Linear(4, 3), (4,)),
    "tokens": (lambda: nn.Linear(4, 3), (5, 4)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, **CIRCLE), (2, 4, 4)),
    "stride and dilation": (lambda: nn.Conv2d(1, 2, 3, stride=2, dilation=2, padding=2, **CIRCLE), (1, 8, 8)),
    "groups": (lambda: nn.Conv2d(2, 2, 2, stride=2, groups=2), (2, 4, 4)),
    "transpose": (lambda: nn.ConvTranspose2d(1, 1, 2, stride=2), (1, 3, 3)),
}


def autograd_norms(layer, x, g):
    """The norms of one sample's gradients for the cotangent g, in float64."""
    image = layer(x[None])
    weights = dict(layer.named_parameters())
    gradients = torch.autograd.grad((image * g).sum(), weights.values(), allow_unused=True)
    return {
        name: 0.0 if gradient is None else gradient.norm().item()
        for name, gradient in zip(weights, gradients)
    }


@pytest.mark.parametrize("name", ATTAINED)
def test_the_gradient_bounds_of_single_layers_are_reached(name):
    build, shape = ATTAINED[name]
    torch.manual_seed(0)
    layer = build().double()
    told = parameter_gradient_norm(layer, 2.0, 3.0, shape)
    outputs = tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    largest = dict.fromkeys(told, 0.0)
    for x, g in itertools.product(alternatives(shape), alternatives(outputs)):
        for key, size in autograd_norms(layer, 2 * x, 3 * g).items():
            largest[key] = max(largest[key], size)
    for key, bound in told.items():
        assert bound * 0.99 <= largest[key] <= bound * (1 + ROUNDING)


def alternatives(shape):
    """Unit samples: constant, constant in one channel, every other pixel of it, and every single entry."""
    ones, first, even = torch.ones(shape).double(), torch.zeros(shape).double(), torch.zeros(shape).double()
    first[0] = 1
    even[(0, *[slice(None, None, 2)] * (len(shape) - 1))] = 1
    entries = torch.eye(ones.numel(), dtype=torch.float64).reshape(-1, *shape)
    return [sample / sample.norm() for sample in (ones, first, even, *entries)]


@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 4),
    size=st.integers(3, 12),
    mode=st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
)
def test_the_reads_of_a_pixel_are_those_that_unfolding_counts(kernel, stride, dilation, padding, size, mode):
    """The factor of a convolution's weight, against the gradient of a sum of all windows."""
    layer = nn.Conv1d(1, 1, kernel, stride, padding, dilation, padding_mode=mode, bias=False).double()
    x = torch.ones(1, 1, size, dtype=torch.float64, requires_grad=True)
    nn.init.ones_(layer.weight)
    try:
        (counts,) = torch.autograd.grad(layer(x).sum(), x)
    except RuntimeError:
        return  # torch does not run this layer
    told = parameter_gradient_norm(layer, 1.0, 1.0, (1, size))["weight"]
    assert told**2 == pytest.approx(counts.max().item())
    if mode == "zeros":
        assert parameter_gradient_norm(layer, 1.0, 1.0)["weight"] >= told * (1 - ROUNDING)


@pytest.mark.parametrize("positions", [(), (5,), (2, 3)])
def test_a_bias_that_is_broadcast_pays_for_every_position(positions):
    layer = nn.Linear(4, 3)
    told = parameter_gradient_norm(layer, 1.0, 2.0, (*positions, 4))["bias"]
    assert told == pytest.approx(2 * math.sqrt(math.prod(positions)))


def test_the_bounds_of_a_chain_hold_for_every_sample_and_multiply_the_norms_of_the_others():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 4), nn.Tanh(), Residual(nn.Linear(4, 4)), MaxMin(), nn.Linear(4, 2)
    ).double()
    told = parameter_gradient_norm(model, 2.0, 1.5, (6,))
    assert told.keys() == dict(model.named_parameters()).keys()
    for _ in range(50):
        x, g = torch.randn(6, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
        found = autograd_norms(model, 2 * x / x.norm(), 1.5 * g / g.norm())
        assert all(found[name] <= told[name] * (1 + ROUNDING) for name in told)
    above = lipschitz(model[4], 2).value * lipschitz(model[2], 2, (4,)).value
    assert told["0.weight"] == pytest.approx(2.0 * 1.5 * above)


def test_a_tensor_used_twice_has_the_sum_of_two_gradients():
    layer = nn.Linear(3, 3, bias=False).double()
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    apart = nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 3, bias=False).double())
    apart[2].weight.data.copy_(layer.weight)
    told, parts = (parameter_gradient_norm(model, 1.0, 1.0) for model in (twice, apart))
    assert told.keys() == {"0.weight"}
    assert told["0.weight"] == pytest.approx(sum(parts.values()))
    for x, g in itertools.product(alternatives((3,)), alternatives((3,))):
        assert autograd_norms(twice, x, g)["0.weight"] <= told["0.weight"] * (1 + ROUNDING)


def test_a_frozen_layer_has_no_gradient_to_bound_and_passes_the_norms_on():
    model = nn.Sequential(
        OrthogonalLinear(4, 4, bias=False).requires_grad_(False), nn.Linear(4, 2, bias=False)
    )
    told = parameter_gradient_norm(model, 3.0, 1.0, (4,))
    assert told == {"1.weight": pytest.approx(3.0, rel=1e-5)}


@pytest.mark.parametrize(
    "layer",
    [
        OrthogonalLinear(4, 4),
        SLLLinear(4, 4),
        Householder(4),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_weight_that_is_computed_from_parameters_is_refused(layer):
    with pytest.raises(UnsupportedLayerError, match="freeze"):
        parameter_gradient_norm(layer.eval(), 1.0, 1.0, (4,))


def _times_ten(gradient):
    return 10 * gradient


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.register_full_backward_hook(lambda layer, into, out: (10 * into[0],)),
        lambda model: model[1].register_full_backward_pre_hook(lambda layer, out: (10 * out[0],)),
        lambda model: model[0].weight.register_hook(_times_ten),
        lambda model: model[0].weight.register_post_accumulate_grad_hook(lambda weight: weight.grad.mul_(10)),
    ],
    ids=["layer", "layer before", "weight", "weight after"],
)
def test_a_hook_that_changes_gradients_is_refused(hook):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    handle = hook(model)
    with pytest.raises(UnsupportedLayerError, match="backward hook"):
        parameter_gradient_norm(model, 1.0, 1.0, (3,))
    handle.remove()
    assert parameter_gradient_norm(model, 1.0, 1.0, (3,))


def test_a_loss_whose_gradient_a_hook_changes_is_refused():
    loss = nn.CrossEntropyLoss()
    loss.register_full_backward_hook(lambda layer, into, out: (10 * into[0], None))
    with pytest.raises(UnsupportedLayerError, match="backward hook"):
        loss_gradient_norm(loss)


def test_a_kernel_that_reads_padding_only_has_no_gradient():
    layer = nn.Conv1d(1, 1, 1, stride=3, padding=1).double()
    x, g = torch.randn(1, 2, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    assert autograd_norms(layer, x, g)["weight"] == 0
    assert parameter_gradient_norm(layer, 1.0, 1.0, (1, 2))["weight"] == 0


def test_the_naive_bound_of_a_cayley_layer_would_be_exceeded():
    """Why it is refused: the gradient with respect to its parameters is not that of its weight."""
    torch.manual_seed(0)
    layer = OrthogonalLinear(6, 6, bias=False).double()
    largest = 0.0
    for _ in range(50):
        x, g = torch.randn(2, 6, dtype=torch.float64)
        largest = max(largest, *autograd_norms(layer, x / x.norm(), g / g.norm()).values())
    assert largest > 1.2


@pytest.mark.parametrize("shape", [(3, 4, 4), (3,)])
def test_output_norms_count_what_a_layer_adds(shape):
    offset = Normalize([0.5, 0.0, -1.0], [0.5, 1.0, 2.0])
    positions = math.prod(shape[1:])
    expected = 2.0 / 0.5 + math.sqrt(positions * (1 + 0.25))
    assert output_norm(offset, 2.0, shape) == pytest.approx(expected)
    sigmoid = output_norm(nn.Sigmoid(), 2.0, shape)
    assert sigmoid == pytest.approx(0.25 * 2 + 0.5 * math.sqrt(math.prod(shape)))


def test_an_output_norm_without_a_shape_is_refused_where_the_shape_matters():
    assert output_norm(nn.Linear(3, 3, bias=False), 1.0) > 0
    assert output_norm(MaxMin(), 1.0) == output_norm(nn.Flatten(), 1.0) == output_norm(nn.Tanh(), 1.0) == 1.0
    for layer in (nn.Linear(3, 3), nn.Sigmoid(), Normalize(0.5, 0.5)):
        with pytest.raises(ValueError, match="pass input_shape"):
            output_norm(layer, 1.0)


def test_an_infinite_input_norm_gives_infinite_bounds_or_the_truth():
    assert output_norm(nn.Linear(3, 3), math.inf, (3,)) == math.inf
    assert parameter_gradient_norm(nn.Linear(3, 3), math.inf, 1.0, (3,)) == {"weight": math.inf, "bias": 1.0}


class OfHalfTheBias(nn.Conv2d):
    """A convolution whose contract forgets that its bias is broadcast."""


class OfSmallOutput(nn.Linear):
    """A linear map whose output norm forgets the bias."""


class OfPopularReads(nn.Conv2d):
    """A convolution whose contract forgets that a pixel is read by several windows."""


@parameter_gradient_norm.register(OfHalfTheBias)
def _naive_bias(layer, input_norm, cotangent_norm, input_shape):
    return {"weight": 9.0 * input_norm * cotangent_norm, "bias": cotangent_norm}


@parameter_gradient_norm.register(OfPopularReads)
def _naive_reads(layer, input_norm, cotangent_norm, input_shape):
    return {"weight": input_norm * cotangent_norm}


@output_norm.register(OfSmallOutput)
def _naive_output(layer, input_norm, input_shape):
    return torch.linalg.matrix_norm(layer.weight.double(), 2).item() * input_norm


PLANTED = {
    "a bias broadcast over pixels": (lambda: OfHalfTheBias(1, 2, 2), (1, 4, 4), "parameter_gradient_norm"),
    "windows that overlap": (
        lambda: OfPopularReads(1, 2, 3, bias=False),
        (1, 7, 7),
        "parameter_gradient_norm",
    ),
    "an output without its bias": (lambda: OfSmallOutput(3, 3), (3,), "output_norm"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_contracts_are_caught(name):
    build, shape, contract = PLANTED[name]
    torch.manual_seed(0)
    with pytest.raises(CertificateError, match=f"the {contract} contract of .* is wrong"):
        check(build(), shape)


# Losses.


class Weighted(nn.Module):
    """Cross-entropy in which a sample counts by how rare its class is in the batch."""

    def forward(self, logits, labels):
        counts = torch.bincount(labels, minlength=logits.shape[1])[labels]
        return (nn.functional.cross_entropy(logits, labels, reduction="none") / counts).sum()


class Doubled(nn.CrossEntropyLoss):
    """Twice the cross-entropy, with the contract of one."""

    def forward(self, logits, labels):
        return 2 * super().forward(logits, labels)


for _kind in (Weighted, Doubled):
    loss_gradient_norm.register(_kind, lambda loss: math.sqrt(2) * (1 + 1e-12))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        OffsetCrossEntropy(2.0, 0.02),
        nn.MultiMarginLoss(),
    ],
    ids=str,
)
def test_the_gradient_of_a_loss_survives_the_attacks_and_comes_near_its_bound(loss):
    assert check(loss, (10,))["loss_gradient_norm"] < 0.06


@pytest.mark.parametrize("loss", [Weighted(), Doubled()], ids=lambda loss: type(loss).__name__)
def test_a_loss_with_a_wrong_contract_is_caught(loss):
    with pytest.raises(CertificateError, match="wrong|not the mean"):
        check(loss, (4,))


@pytest.mark.parametrize(
    "loss, message",
    [
        (nn.CrossEntropyLoss(reduction="sum"), "mean over the batch"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "leave weight out"),
        (nn.CrossEntropyLoss(ignore_index=2), "ignore_index"),
        (nn.MultiMarginLoss(p=2), "use p=1"),
        (nn.MSELoss(), "no loss_gradient_norm contract"),
        (EMMALoss(0.5), "no loss_gradient_norm contract"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_a_loss_that_is_no_mean_of_bounded_gradients_is_refused(loss, message):
    with pytest.raises(UnsupportedLayerError, match=message):
        loss_gradient_norm(loss)
