"""`product_bound` against enumerated constants, products by hand, and certificates that prove too much."""

import copy
import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook import Ball, Bound, CertificateError
from lipbook.bounds import product_bound
from lipbook.contracts import affine, lipschitz, output_shape
from lipbook.layers import MaxMin, Normalize, Residual
from tests.oracles import largest_norm, random_networks, regions

NORMS = (2, math.inf)
NETWORKS = random_networks(MaxMin)


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build()


MODEL = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), MaxMin(), nn.Linear(4, 3)))
OUTPUTS = [None, 0, 2, (0, 1), (2, 0)]


def row_length(row, norm):
    """The norm of a linear map to one number: |w'x| <= |w|_2 |x|_2, and |w|_1 |x|_inf."""
    return math.hypot(*row.tolist()) if norm == 2 else row.abs().sum().item()


def by_hand(model, norm, output):
    weights = [layer.weight.detach().double() for layer in model if isinstance(layer, nn.Linear)]
    product = math.prod(torch.linalg.matrix_norm(weight, norm).item() for weight in weights[:-1])
    if output is None:
        return product * torch.linalg.matrix_norm(weights[-1], norm).item()
    i, j = output if isinstance(output, tuple) else (output, None)
    return product * row_length(weights[-1][i] - (0 if j is None else weights[-1][j]), norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_it_is_the_product_of_the_norms_rounded_up(norm, output):
    bound = product_bound(MODEL, norm, logits=output)
    assert (bound.kind, bound.norm, bound.region, bound.output) == ("upper", norm, None, output)
    assert bound.verify(MODEL) is bound
    expected = by_hand(MODEL, norm, output)
    assert expected * (1 - 1e-14) <= bound.value <= expected * (1 + 1e-9)
    assert product_bound(MODEL, norm, logits=output, input_shape=(5,)).value == bound.value


def test_it_is_never_below_the_enumerated_truth():
    for model in NETWORKS[::3]:
        found, last = regions(model), model[-1].out_features - 1
        for output in [None, 0, *([(0, last), (last, 0)] if last else [])]:
            for norm in NORMS:
                truth = largest_norm(found, norm, output)
                assert product_bound(model, norm, logits=output).value >= truth * (1 - 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_difference_takes_at_most_the_sum_of_its_logits_and_of_its_opposite_the_same(norm):
    one, two = (product_bound(MODEL, norm, logits=k).value for k in (0, 1))
    difference = product_bound(MODEL, norm, logits=(0, 1)).value
    assert difference <= (one + two) * (1 + 1e-12)
    assert difference == product_bound(MODEL, norm, logits=(1, 0)).value
    vector = product_bound(MODEL, norm).value
    assert max(one, two) <= vector * (1 + 1e-9)
    assert difference <= (math.sqrt(2) if norm == 2 else 2) * vector * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_pairs_are_all_the_pairs_and_each_verifies(norm):
    bounds = product_bound(MODEL, norm, logits="pairs")
    assert list(bounds) == [(0, 1), (0, 2), (1, 2)]
    for pair, bound in bounds.items():
        assert bound.verify(MODEL).output == pair
        assert bound.value == product_bound(MODEL, norm, logits=pair).value


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("last", [nn.ReLU(), MaxMin(), nn.Sigmoid()], ids=repr)
def test_without_a_last_linear_map_a_logit_is_an_entry_and_a_difference_costs_sqrt_2_or_2(norm, last):
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), last))
    vector = product_bound(model, norm).value
    one = product_bound(model, norm, logits=1, input_shape=(3,)).verify(model)
    difference = product_bound(model, norm, logits=(1, 3), input_shape=(3,)).verify(model)
    factor = math.sqrt(2) if norm == 2 else 2
    assert vector <= one.value <= vector * (1 + 1e-9)
    assert factor * vector <= difference.value <= factor * vector * (1 + 1e-9)


def test_permuting_neurons_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(NETWORKS[0])
    order = torch.randperm(model[0].out_features, generator=generator)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    for norm in NORMS:
        for output in (None, 0):
            one, two = (product_bound(m, norm, logits=output).value for m in (model, other))
            assert math.isclose(one, two, rel_tol=1e-9)


def test_nests_flattening_and_moving_layers_cost_nothing():
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(*MODEL[:2], nn.Identity()), nn.Sequential(MODEL[2:]))
    for norm in NORMS:
        for output in OUTPUTS:
            expected = product_bound(MODEL, norm, logits=output).value
            bound = product_bound(nested, norm, logits=output, input_shape=(5, 1)).verify(nested)
            assert math.isclose(bound.value, expected, rel_tol=1e-12)


def test_a_layer_used_twice_counts_twice():
    layer = nn.Linear(3, 3)
    once, twice = nn.Sequential(layer, nn.Linear(3, 2)), nn.Sequential(layer, layer, nn.Linear(3, 2))
    twice[2].load_state_dict(once[1].state_dict())
    for output in (None, 0, (0, 1)):
        ratio = product_bound(twice, logits=output).value / product_bound(once, logits=output).value
        assert math.isclose(ratio, lipschitz(layer).value, rel_tol=1e-9)


def test_a_normalisation_and_a_residual_are_counted():
    model = nn.Sequential(Normalize(0.5, 0.25), Residual(nn.Linear(5, 5)), *MODEL)
    inner = lipschitz(model[1]).value
    ratio = product_bound(model, logits=(0, 1)).value / product_bound(MODEL, logits=(0, 1)).value
    assert math.isclose(ratio, 4 * inner, rel_tol=1e-9)


def test_rows_of_features_are_bounded_where_the_shape_tells_of_them():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    here = product_bound(model, logits=(0, 1), input_shape=(3,)).value
    assert product_bound(model, logits=(6, 7), input_shape=(5, 3)).value == pytest.approx(here, rel=1e-9)
    apart = product_bound(model, logits=(0, 7), input_shape=(5, 3)).verify(model).value
    rows = model[2].weight.detach().double()
    expected = lipschitz(model[0]).value * math.hypot(*rows.flatten().tolist())
    assert apart == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="from 0 to 1"):
        product_bound(model, logits=(0, 7))


# Rounding.


@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS))
def test_a_logit_of_a_linear_map_is_not_below_its_exact_norm(seed, norm):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 2)).double()
    model[0].weight.data = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    model[0].weight.data[1] -= (1 - 1e-8) * (model[0].weight.data[1] - model[0].weight.data[0])
    rows = [list(map(Fraction, row)) for row in model[0].weight.tolist()]
    for output, row in ((0, rows[0]), ((0, 1), [a - b for a, b in zip(*rows)])):
        value = Fraction(product_bound(model, norm, logits=output).verify(model).value)
        if norm == 2:
            assert value**2 >= sum(entry**2 for entry in row)
        else:
            assert value >= sum(map(abs, row))
        assert value <= Fraction(1.00001) * max(sum(map(abs, row)), Fraction(10) ** -12)


class Shortcut(nn.Module):
    """x + Wx with the rows (1 + 2^-60, 0) and (1, 0): their difference is 2^-60, and rounds to 0."""

    in_features = 2

    def forward(self, x):
        return x + x @ torch.tensor([[2.0**-60, 0.0], [1.0, -1.0]], dtype=x.dtype).T


lipschitz.register(Shortcut, lambda layer, norm, shape: Bound(3.0, "upper", norm=norm))
affine.register(Shortcut, lambda layer, shape: (ROUNDED, torch.zeros(2, dtype=torch.float64)))
output_shape.register(Shortcut, lambda layer, shape: shape)
ROUNDED = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)


def cancelling():
    return nn.Sequential(Shortcut())


@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_cancel_after_they_were_rounded_are_not_told_to_be_equal(norm):
    model = cancelling()
    bound = product_bound(model, norm, logits=(0, 1), input_shape=(2,)).verify(model)
    assert 2.0**-60 <= bound.value <= 1e-12
    for value in (0.0, 2.0**-60):
        row = dataclasses.replace(bound.certificate.row, value=value)
        certificate = dataclasses.replace(bound.certificate, row=row)
        with pytest.raises(CertificateError, match="its row is rounded"):
            dataclasses.replace(bound, value=value, certificate=certificate).verify(model)


def test_a_batch_norm_at_the_end_whose_scale_underflows_is_no_head():
    """1e300 x, then gamma / sqrt(var) = 2.3e-324, which no float holds: the true slope is 2.3e-24."""
    linear, norm = nn.Linear(2, 2).double(), nn.BatchNorm1d(2, eps=0.0).double().eval()
    linear.weight.data, linear.bias.data = 1e300 * torch.eye(2).double(), torch.zeros(2).double()
    norm.weight.data, norm.running_var = (torch.full((2,), x, dtype=torch.float64) for x in (5e-324, 4.5))
    bound = product_bound(nn.Sequential(linear, norm), logits=0, input_shape=(2,))
    assert bound.value > 2.3e-24


@pytest.mark.parametrize("block", [nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 3)], ids=repr)
def test_a_residual_block_at_the_end_costs_the_root_of_two_for_a_pair(block):
    model = nn.Sequential(nn.Linear(4, 3), Residual(block))
    whole = product_bound(model, input_shape=(4,)).value
    pair = product_bound(model, logits=(0, 2), input_shape=(4,)).verify(model).value
    assert math.isclose(pair, math.sqrt(2) * whole, rel_tol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_norm_at_the_end_is_not_below_its_true_scale(norm):
    layer = nn.BatchNorm1d(40, affine=False).double().eval()
    layer.running_var = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(layer)
    for k, variance in enumerate(layer.running_var.tolist()):
        bound = product_bound(model, norm, logits=k, input_shape=(40,)).verify(model)
        assert Fraction(bound.value) ** 2 * (Fraction(variance) + Fraction(layer.eps)) >= 1
        least = dataclasses.replace(bound.certificate.row, value=bound.value * (1 - 2.0**-48))
        lowered = dataclasses.replace(bound.certificate, row=least)
        try:
            found = dataclasses.replace(bound, value=least.value, certificate=lowered).verify(model)
        except CertificateError:
            continue
        assert Fraction(found.value) ** 2 * (Fraction(variance) + Fraction(layer.eps)) >= 1


def test_equal_rows_have_a_difference_of_almost_zero_and_zero_rows_of_zero():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0]
        model[2].weight[2] = 0
    assert product_bound(model, logits=(0, 1)).verify(model).value < 1e-13
    assert product_bound(model, logits=2).verify(model).value == 0
    with torch.no_grad():
        model[2].weight.zero_()
    for output in (0, (0, 1)):
        assert product_bound(model, logits=output).verify(model).value == 0


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e150, 1e300])
@pytest.mark.parametrize("norm", NORMS)
def test_weights_of_any_size_are_bounded(size, norm):
    model = copy.deepcopy(MODEL).double()
    with torch.no_grad():
        model[4].weight.mul_(size)
    for output in OUTPUTS:
        bound = product_bound(model, norm, logits=output).verify(model)
        assert bound.value >= by_hand(model, norm, output) * (1 - 1e-9) or size < 1e-100
        assert bound.value > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_read_exactly(dtype):
    model = copy.deepcopy(MODEL).to(dtype)
    bound = product_bound(model, logits=(0, 1)).verify(model)
    expected = by_hand(model, 2, (0, 1))
    assert expected * (1 - 1e-14) <= bound.value <= expected * (1 + 1e-9)


# The certificate: what it refuses.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_a_lower_value_is_refused_and_a_higher_one_proved(norm, output):
    bound = product_bound(MODEL, norm, logits=output)
    for factor in (0.99, 1 - 1e-8):
        with pytest.raises(CertificateError, match="the factors multiply to"):
            dataclasses.replace(bound, value=bound.value * factor).verify(MODEL)
    dataclasses.replace(bound, value=2 * bound.value).verify(MODEL)
    dataclasses.replace(bound, value=math.inf).verify(MODEL)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_a_layer_enlarged_by_one_percent_is_noticed(norm, output):
    bound = product_bound(MODEL, norm, logits=output)
    for position in (0, 2, 4):
        other = copy.deepcopy(MODEL)
        other[position].weight.data *= 1.01
        with pytest.raises(CertificateError):
            bound.verify(other)


@pytest.mark.parametrize("norm", NORMS)
def test_one_weight_changed_by_one_percent_is_noticed_or_the_bound_still_holds(norm):
    bound, noticed = product_bound(MODEL, norm, logits=(0, 1)), 0
    for position in (0, 2, 4):
        for entry in range(MODEL[position].weight.numel()):
            other = copy.deepcopy(MODEL)
            other[position].weight.data.view(-1)[entry] *= 1.01
            try:
                bound.verify(other)
            except CertificateError:
                noticed += 1
            else:
                assert by_hand(other, norm, (0, 1)) <= bound.value
    assert noticed > 10


@pytest.mark.parametrize("norm", NORMS)
def test_a_bound_on_a_logit_proves_another_only_where_its_row_is_shorter(norm):
    bounds = {output: product_bound(MODEL, norm, logits=output) for output in OUTPUTS[1:]}
    for output, bound in bounds.items():
        for other, least in bounds.items():
            moved = dataclasses.replace(bound, output=other)
            if least.value * (1 - 1e-9) <= bound.value:
                moved.verify(MODEL)
            else:
                with pytest.raises(CertificateError):
                    moved.verify(MODEL)
    assert len({bound.value for bound in bounds.values()}) == 4


@pytest.mark.parametrize(
    "changes", [{"output": None}, {"output": (0, 3)}, {"norm": math.inf}, {"kind": "lower"}], ids=str
)
def test_a_bound_on_something_else_is_refused(changes):
    bound = product_bound(MODEL, logits=(0, 1))
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, **({"value": 1e9} | changes)).verify(MODEL)


def test_what_holds_everywhere_holds_in_a_region():
    bound = product_bound(MODEL, logits=(0, 1))
    dataclasses.replace(bound, region=Ball(torch.zeros(5), 1.0)).verify(MODEL)


def altered(position, layer):
    layers = list(MODEL)
    layers[position] = layer
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "subject",
    [
        nn.Sequential(),
        MODEL[:-1],
        nn.Sequential(*MODEL, nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(5, 5), *MODEL),
        altered(1, nn.LeakyReLU(2.0)),
        altered(3, nn.ELU(3.0)),
        altered(4, nn.Linear(4, 1)),
        altered(1, nn.Dropout(0.5)),
        None,
        torch.eye(5),
        nn.LSTM(5, 3),
    ],
    ids=lambda subject: type(subject).__name__,
)
def test_another_architecture_is_refused(subject):
    for shape in (None, (5,)):
        with pytest.raises(CertificateError):
            product_bound(MODEL, logits=(0, 1), input_shape=shape).verify(subject)


def test_factors_that_were_swapped_or_taken_from_elsewhere_are_refused():
    bound = product_bound(MODEL, logits=0)
    first, *others = bound.certificate.factors
    lowered = dataclasses.replace(first, value=0.5 * first.value)
    foreign = lipschitz(nn.Linear(5, 6, bias=False).requires_grad_(False))
    local = dataclasses.replace(lowered, region=Ball(torch.zeros(5), 1e-9))
    below = dataclasses.replace(first, kind="lower", value=0.0)
    unproved = Bound(0.0, "upper", method="typed")
    for factor in (lowered, local, below, unproved, dataclasses.replace(foreign, value=1e-9)):
        certificate = dataclasses.replace(bound.certificate, factors=(factor, *others))
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=1e-9, certificate=certificate).verify(MODEL)
    certificate = dataclasses.replace(bound.certificate, factors=tuple(others))
    with pytest.raises(CertificateError, match="3 factors, and the model 4 layers: it belongs to another"):
        dataclasses.replace(bound, certificate=certificate).verify(MODEL)


class Total(nn.Module):
    """The sum of all entries: its constant in norm 2 is the square root of their number."""

    def forward(self, x):
        return x.sum(1, keepdim=True)


class SizedCertificate:
    def __init__(self, size):
        self.size = size

    def verify(self, bound, subject):
        if bound.value < math.sqrt(self.size):
            raise CertificateError("too small")


@lipschitz.register(Total)
def _(layer, norm, shape):
    if shape is None:
        raise ValueError("the bound depends on the size: give input_shape.")
    value = math.nextafter(math.sqrt(shape[0]), math.inf)
    return Bound(value, "upper", norm=norm, method="size", certificate=SizedCertificate(shape[0]))


@affine.register(Total)
def _(layer, shape):
    return torch.ones(1, shape[0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


output_shape.register(Total, lambda layer, shape: (1,))


def test_factors_of_another_size_prove_nothing():
    def of_size(size):
        model = nn.Sequential(nn.Linear(1, size, bias=False), Total(), nn.Linear(1, 2))
        model[0].weight.data.fill_(1 / math.sqrt(size))
        torch.nn.init.ones_(model[2].weight)
        return model

    bound = product_bound(of_size(4), logits=0, input_shape=(1,)).verify(of_size(4))
    assert math.isclose(bound.value, 2, rel_tol=1e-6)
    with pytest.raises(CertificateError, match="sizes"):
        bound.verify(of_size(100))  # whose constant is 10


def test_the_model_and_the_random_state_stay_as_they_are():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).eval()
    model[0].weight.grad = torch.ones(3, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    for bound in product_bound(model, logits="pairs").values():
        bound.verify(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state) and not model.training
    assert model[0].weight.requires_grad and torch.equal(model[0].weight.grad, torch.ones(3, 3))


@pytest.mark.parametrize("output", [0, (0, 3), "pairs"])
def test_a_model_of_unknown_size_asks_for_the_shape(output):
    for model in (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(3, 4), nn.Flatten())):
        with pytest.raises(ValueError, match="pass input_shape"):
            product_bound(model, logits=output)
        product_bound(model, logits=output, input_shape=(3,))


def test_the_default_device_does_not_matter():
    model = nn.Sequential(*MODEL, nn.ReLU())
    expected = product_bound(model, logits=(0, 1), input_shape=(5,))
    with torch.device("meta"):
        assert product_bound(model, logits=(0, 1), input_shape=(5,)).verify(model) == expected
