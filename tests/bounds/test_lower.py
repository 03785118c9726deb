"""`gradient_lower_bound` against enumerated constants, rational arithmetic and false pairs."""

import copy
import dataclasses
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lipbook import Ball, CertificateError, UnsupportedLayerError
from lipbook.bounds import gradient_lower_bound, product_bound
from lipbook.bounds.lower import PairCertificate, _below, _least_rises, _root_below, proved_slope
from lipbook.layers import Abs, GroupSort, Householder, MaxMin, Normalize, Residual
from tests.oracles import exact_constant, exact_slope_squared, largest_norm, random_networks, regions

ORACLE = 1 + 1e-9  # what the enumeration itself may round
NORMS = (2, math.inf)
NETWORKS = random_networks(MaxMin)


def starts(model, seed=0, count=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, model[0].in_features, generator=generator)


@pytest.fixture(scope="module")
def enumerated():
    return [regions(model) for model in NETWORKS]


@pytest.mark.parametrize("norm", NORMS)
def test_it_reaches_99_percent_of_the_truth_on_19_of_20_networks_and_never_exceeds_it(norm, enumerated):
    reached = []
    for model, found in zip(NETWORKS, enumerated):
        truth = largest_norm(found, norm)
        bound = gradient_lower_bound(model, starts(model), norm).verify(model)
        assert (bound.kind, bound.norm, bound.region, bound.output) == ("lower", norm, None, None)
        assert bound.value <= truth * ORACLE <= product_bound(model, norm).value * ORACLE**2
        reached.append(bound.value >= 0.99 * truth)
    assert len(reached) == 20 and sum(reached) >= 19


@pytest.mark.parametrize("norm", NORMS)
def test_one_logit_or_a_difference_is_reached_as_well(norm, enumerated):
    several = [pair for pair in zip(NETWORKS, enumerated) if pair[0][-1].out_features > 1]
    reached = []
    for model, found in several[:6]:
        last = model[-1].out_features - 1
        for output in (0, last, (last, 0)):
            truth = largest_norm(found, norm, output)
            bound = gradient_lower_bound(model, starts(model), norm, logits=output).verify(model)
            assert bound.output == output and bound.value <= truth * ORACLE
            reached.append(bound.value >= 0.99 * truth)
    assert len(reached) == 18 and sum(reached) >= 17


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("radius", [0.3, 1.0])
def test_inside_a_box_it_reaches_the_truth_of_the_box(norm, radius):
    reached = []
    for model in NETWORKS[:8]:
        center = starts(model, seed=1, count=1)[0]
        truth = exact_constant(model, norm, None, center, radius)
        bound = gradient_lower_bound(model, starts(model), norm, region=Ball(center, radius)).verify(model)
        assert bound.region == Ball(center, radius) and bound.value <= truth * ORACLE
        reached.append(bound.value >= 0.99 * truth)
    assert sum(reached) >= 7


@pytest.mark.thorough
def test_random_networks_are_never_exceeded():
    for seed, model in enumerate(random_networks(MaxMin, range(100, 140))):
        found = regions(model)
        for norm in NORMS:
            assert gradient_lower_bound(model, starts(model), norm, seed=seed).value <= ORACLE * largest_norm(
                found, norm
            )


# What a pair proves, in rational arithmetic.


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-12, 1e-3, 1.0, 1e8]), norm=st.sampled_from(NORMS))
def test_a_proved_slope_is_below_the_true_slope_and_close(seed, size, norm):
    generator = torch.Generator().manual_seed(seed)
    model = NETWORKS[seed % 20]
    x = torch.randn(model[0].in_features, generator=generator, dtype=torch.float64)
    y = x + size * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    outputs = model[-1].out_features
    for output in [None, outputs - 1, *([(0, 1)] if outputs > 1 else [])]:
        proved = proved_slope(model, x, y, norm, output)
        true = exact_slope_squared(model, x, y, norm, output)
        assert Fraction(proved) ** 2 <= true
        assert proved >= math.sqrt(true) - 1e-10 * max(1, 1 / (x - y).norm().item())


@pytest.mark.parametrize("norm", NORMS)
def test_the_value_is_below_the_true_slope_of_its_own_pair(norm):
    for model in NETWORKS[:6]:
        bound = gradient_lower_bound(model, starts(model), norm)
        pair = bound.certificate
        assert Fraction(bound.value) ** 2 < exact_slope_squared(model, pair.x, pair.y, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_a_slope_that_floats_hold_is_proved_to_the_last_digits(norm):
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(3.0)
    x, y = torch.tensor([0.0]).double(), torch.tensor([1.0]).double()
    assert 3 * (1 - 1e-14) < proved_slope(model, x, y, norm) < 3


@given(exponent=st.integers(-500, 500), norm=st.sampled_from(NORMS))
def test_slopes_of_any_size_are_proved(exponent, norm):
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64) * 2.0**exponent
    x, y = torch.zeros(2).double(), torch.tensor([1.0, 0.0]).double()
    truth = Fraction(5 if norm == 2 else 4) * Fraction(2) ** exponent
    assert truth * (1 - Fraction(10) ** -12) < Fraction(proved_slope(model, x, y, norm)) < truth


def test_a_pair_of_equal_points_or_an_overflow_proves_nothing():
    model = NETWORKS[0]
    x = torch.ones(model[0].in_features).double()
    assert proved_slope(model, x, x.clone(), 2) == 0
    assert proved_slope(model, torch.zeros_like(x), -torch.zeros_like(x), 2) == 0
    assert proved_slope(copy.deepcopy(model).double(), 1.7e308 * x, -1.7e308 * x, 2) == 0


FRACTIONS = st.builds(
    lambda p, q, e: Fraction(p, q) * Fraction(2) ** e,
    st.integers(0, 10**30),
    st.integers(1, 10**30),
    st.sampled_from([-2300, -1080, -300, -1, 0, 1, 300, 960, 2000]),
)


@given(fraction=FRACTIONS)
def test_a_fraction_is_rounded_down_to_the_nearest_float(fraction):
    value = _below(fraction)
    above = math.nextafter(value, math.inf)
    assert Fraction(value) <= fraction and (math.isinf(above) or fraction < Fraction(above))


@given(fraction=FRACTIONS)
def test_a_root_is_rounded_down_by_a_unit_or_two(fraction):
    root = _root_below(fraction)
    above = math.nextafter(math.nextafter(root, math.inf), math.inf)
    assert Fraction(root) ** 2 <= fraction and (math.isinf(above) or fraction < Fraction(above) ** 2)


@given(seed=st.integers(0, 10**6), output=st.sampled_from([None, 0, 2, (0, 1), (2, 1)]))
def test_the_least_rise_is_the_least_over_all_that_the_values_may_be(seed, output):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    errors = 0.2 * torch.rand(2, 3, generator=generator, dtype=torch.float64)
    rises = []
    for signs in itertools.product((-1, 1), repeat=6):
        at_x, at_y = values + torch.tensor(signs).reshape(2, 3) * errors
        rise = at_x - at_y
        i, j = output if isinstance(output, tuple) else (output, None)
        rises.append(rise if i is None else rise[[i]] - (0 if j is None else rise[[j]]))
    corners = torch.stack(rises)
    crossed = corners.amin(0) * corners.amax(0) <= 0
    expected = torch.where(crossed, 0.0, corners.abs().amin(0))
    least = [float(rise) for rise in _least_rises(values, errors, output)]
    assert torch.allclose(torch.tensor(least).double(), expected, atol=1e-12)


# The certificate: what it refuses.

MODEL = NETWORKS[2]  # ReLU
X, Y = starts(MODEL, seed=5, count=2).double()


@pytest.fixture(scope="module")
def bound():
    return gradient_lower_bound(MODEL, starts(MODEL))


def holding(bound, x, y, **changes):
    return dataclasses.replace(bound, certificate=PairCertificate(x, y), **changes)


@pytest.mark.parametrize("norm", NORMS)
def test_no_more_than_the_pair_proves_is_verified(norm):
    bound = gradient_lower_bound(MODEL, starts(MODEL), norm)
    pair = bound.certificate
    proved = proved_slope(MODEL, pair.x, pair.y, norm)
    dataclasses.replace(bound, value=proved).verify(MODEL)
    dataclasses.replace(bound, value=0.5 * proved).verify(MODEL)
    for value in (math.nextafter(proved, math.inf), bound.value * (1 + 1e-9)):
        with pytest.raises(CertificateError, match="the pair has a slope of"):
            dataclasses.replace(bound, value=value).verify(MODEL)


def test_a_margin_is_left_for_another_order_of_summation(bound):
    pair = bound.certificate
    assert bound.value < proved_slope(MODEL, pair.x, pair.y, 2) <= bound.value * (1 + 1e-9)


def test_a_changed_weight_is_noticed_or_the_value_is_still_true(bound):
    noticed = 0
    for position, parameter in enumerate(MODEL.parameters()):
        for entry in range(parameter.numel()):
            for factor in (0.99, 1.01):
                other = copy.deepcopy(MODEL)
                list(other.parameters())[position].data.view(-1)[entry] *= factor
                try:
                    bound.verify(other)
                except CertificateError:
                    noticed += 1
                else:
                    pair = bound.certificate
                    assert exact_slope_squared(other, pair.x, pair.y) >= Fraction(bound.value) ** 2
    assert noticed > 0


def test_a_pair_of_another_model_proves_at_most_its_slope_here(bound):
    steeper = copy.deepcopy(MODEL)
    steeper[-1].weight.data *= 2
    found = gradient_lower_bound(steeper, starts(MODEL))
    with pytest.raises(CertificateError):
        found.verify(MODEL)
    with pytest.raises(CertificateError):
        dataclasses.replace(bound, value=found.value, certificate=found.certificate).verify(MODEL)
    dataclasses.replace(bound, value=0.5 * bound.value, certificate=found.certificate).verify(MODEL)


def test_a_model_that_takes_or_gives_other_numbers_is_refused(bound):
    inputs, outputs = MODEL[0].in_features, MODEL[-1].out_features
    with pytest.raises(CertificateError, match="not one that this certificate speaks of"):
        bound.verify(nn.Sequential(nn.Linear(inputs + 1, outputs)))
    for output in (outputs, (0, outputs), (outputs, 0)):
        with pytest.raises(CertificateError, match="logits must be different and from 0"):
            dataclasses.replace(bound, value=0.0, output=output).verify(MODEL)


@pytest.mark.parametrize("subject", [None, torch.ones(2), "model", nn.LSTM(3, 3), nn.Dropout(0.5)], ids=repr)
def test_what_cannot_be_read_is_refused(bound, subject):
    with pytest.raises(CertificateError):
        bound.verify(subject)


@pytest.mark.parametrize(
    "x",
    [
        X.float(),
        X.clone().fill_(math.nan),
        X.clone().fill_(math.inf),
        torch.cat([X, X]),
        X[None],
        X.tolist(),
        None,
        torch.zeros(()).double(),
    ],
    ids=str,
)
def test_what_is_not_a_point_is_refused(bound, x):
    for pair in ((x, Y), (Y, x)):
        with pytest.raises(CertificateError):
            holding(bound, *pair, value=0.0).verify(MODEL)
    with pytest.raises(CertificateError):
        holding(bound, x, x, value=1e-9).verify(MODEL)


def test_only_lower_bounds_are_proved(bound):
    with pytest.raises(CertificateError, match="proves lower bounds"):
        dataclasses.replace(bound, kind="upper").verify(MODEL)


@pytest.mark.parametrize(
    ("norm", "edge"), [(math.inf, [1.0, -1.0]), (2, [0.6, 0.8]), (2, [1.0, 0.0])], ids=str
)
def test_a_point_one_unit_outside_the_region_is_refused(norm, edge):
    model = nn.Sequential(nn.Linear(2, 2))
    edge, center = torch.tensor(edge, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    distance = sum(Fraction(e) ** 2 for e in edge.tolist()) if norm == 2 else 1
    region = Ball(center, 1.0, norm)
    outside = torch.nextafter(edge, 2 * edge)
    inside = edge if distance <= 1 else torch.nextafter(edge, center)
    bound = gradient_lower_bound(model, torch.randn(5, 2), norm, region=region)
    holding(bound, inside, center, value=0.0).verify(model)
    for pair in ((outside, center), (center, outside)):
        with pytest.raises(CertificateError, match="not in Ball"):
            holding(bound, *pair, value=0.0).verify(model)
        holding(bound, *pair, value=0.0, region=None).verify(model)


def test_a_point_of_another_shape_is_in_no_region(bound):
    region = Ball(torch.zeros(1, len(X)), 100.0)
    with pytest.raises(CertificateError, match="not in Ball"):
        holding(bound, X, Y, value=0.0, region=region).verify(MODEL)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("radius", [1e-9, 0.1, 30.0])
def test_both_points_lie_in_the_region_however_far_the_inputs(norm, radius):
    center = torch.full((MODEL[0].in_features,), 7.3)
    bound = gradient_lower_bound(MODEL, 100 * starts(MODEL), region=Ball(center, radius, norm)).verify(MODEL)
    for point in (bound.certificate.x, bound.certificate.y):
        gaps = [Fraction(a) - Fraction(b) for a, b in zip(point.tolist(), center.double().tolist())]
        size = sum(gap**2 for gap in gaps) if norm == 2 else max(map(abs, gaps)) ** 2
        assert size <= Fraction(radius) ** 2
    assert bound.value > 0


def test_a_region_without_two_floats_gives_zero():
    center = torch.ones(MODEL[0].in_features)
    for radius in (0.0, 1e-30):
        for norm in NORMS:
            region = Ball(center, radius, norm)
            assert gradient_lower_bound(MODEL, starts(MODEL), region=region).verify(MODEL).value == 0


# Kinks.


def zero_function():
    """3 (x - relu(x) + relu(-x)), which is 0 everywhere."""
    first, second = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[1.0], [-1.0]])
    second.weight.data = torch.tensor([[-1.0, 1.0]])
    last = nn.Linear(1, 1, bias=False)
    last.weight.data.fill_(3.0)
    return nn.Sequential(Residual(nn.Sequential(first, nn.ReLU(), second)), last)


def test_the_zero_function_has_a_gradient_of_3_and_the_lower_bound_0():
    model, origin = zero_function(), torch.zeros(1, 1, requires_grad=True)
    assert torch.autograd.grad(model(origin).sum(), origin)[0].item() == 3
    for norm in NORMS:
        bound = gradient_lower_bound(model, torch.cat([torch.zeros(3, 1), torch.randn(9, 1)]), norm)
        assert bound.verify(model).value == 0
        assert gradient_lower_bound(model, torch.zeros(1, 1), norm, region=Ball(torch.zeros(1), 1)).value == 0


def at_kinks(model, inputs):
    """The same network with biases that put a kink through every input, one for each neuron."""
    with torch.no_grad():
        model[0].bias.copy_(-(model[0].weight * inputs[: len(model[0].bias)]).sum(1))
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_data_on_kinks_are_no_trap(norm):
    model = copy.deepcopy(NETWORKS[0])
    inputs = starts(model, count=model[0].out_features)
    model = at_kinks(model, inputs)
    truth = exact_constant(model, norm)
    assert 0.99 * truth <= gradient_lower_bound(model, inputs, norm).verify(model).value <= truth * ORACLE


@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize("width", [1e-2, 1e-4])
def test_a_steep_region_that_is_thin_is_found(features, width):
    """8 (relu(u'x - a) - relu(u'x - a - width)): flat but for a slab of that width, away from the data."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    direction = torch.randn(features, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.copy_((direction / direction.norm()).expand(2, -1))
        model[0].bias.copy_(-torch.tensor([1.7, 1.7 + width]))
        model[2].weight.copy_(torch.tensor([[8.0, -8.0]]))
    inputs = 0.1 * torch.randn(20, features, generator=generator)
    assert 8 * 0.99 <= gradient_lower_bound(model, inputs).verify(model).value <= 8 * ORACLE


# Every layer, every dtype, and nothing changed.


def seeded(build):
    torch.manual_seed(0)
    return build()


def batch_normed():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    model(3 * torch.randn(64, 6))
    return model.eval()


def tied():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, MaxMin(), nn.Linear(6, 2))


MODELS = {
    "batch-norm and dropout": seeded(batch_normed),
    "a layer used twice": seeded(tied),
    "our activations": seeded(
        lambda: nn.Sequential(
            Normalize(0.1, 0.5),
            Householder(6),
            nn.Linear(6, 6),
            GroupSort(3),
            Abs(),
            Residual(nn.Linear(6, 6)),
        )
    ),
    "smooth ones": seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 5), nn.GELU(), nn.Softplus(), nn.Tanh(), nn.Linear(5, 2), nn.SiLU()
        )
    ),
    "parametrised": seeded(
        lambda: nn.Sequential(
            parametrizations.orthogonal(nn.Linear(6, 6)),
            nn.ReLU(),
            parametrizations.weight_norm(nn.Linear(6, 2)),
        )
    ),
    "dropout with p = 0 in train mode": seeded(lambda: nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.0))),
    "no layer": nn.Sequential(),
    "linear": seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))),
    "constant": nn.Sequential(nn.Linear(6, 2).requires_grad_(False)),
}
MODELS["constant"][0].weight.zero_()
SIX = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_both_ends_of_every_kind_of_model_are_in_order(name, norm):
    model = MODELS[name]
    lower = gradient_lower_bound(model, SIX, norm).verify(model)
    upper = product_bound(model, norm, input_shape=(6,)).verify(model)
    assert lower.value <= upper.value and (lower.value > 0 or name == "constant")


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_reached(norm):
    model = MODELS["linear"]
    with torch.no_grad():
        product = model[1].weight.double() @ model[0].weight.double()
    truth = torch.linalg.matrix_norm(product, norm).item()
    assert truth * (1 - 1e-9) <= gradient_lower_bound(model, SIX, norm).value <= truth * ORACLE
    pairs = gradient_lower_bound(model, SIX, norm, logits="pairs")
    row = torch.linalg.vector_norm(product[0] - product[1], 2 if norm == 2 else 1).item()
    assert row * (1 - 1e-9) <= pairs[0, 1].value <= row * ORACLE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_read_exactly(dtype):
    model = copy.deepcopy(NETWORKS[4]).to(dtype)
    truth = exact_constant(model)
    bound = gradient_lower_bound(model, starts(model).to(dtype)).verify(model)
    assert 0.99 * truth <= bound.value <= truth * ORACLE


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_the_model_the_inputs_and_the_random_state_stay_as_they_are(name, context):
    model = MODELS[name]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [(p.requires_grad, p.dtype) for p in model.parameters()]
    modes, inputs = [module.training for module in model.modules()], SIX.clone().requires_grad_()
    random_state = torch.get_rng_state()
    with context():
        gradient_lower_bound(model, inputs, region=Ball(SIX[0], 0.5)).verify(model)
    assert torch.equal(torch.get_rng_state(), random_state) and inputs.grad is None
    assert torch.equal(inputs, SIX)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert flags == [(p.requires_grad, p.dtype) for p in model.parameters()]
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_the_same_seed_gives_the_same_bound_whatever_the_global_seed():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(gradient_lower_bound(MODEL, starts(MODEL), seed=3))
    assert found[0] == found[1] and torch.equal(found[0].certificate.x, found[1].certificate.x)


def test_the_certificate_holds_points_of_its_own():
    inputs = torch.zeros(1, 6, dtype=torch.float64)
    bound = gradient_lower_bound(MODELS["constant"], inputs, region=Ball(torch.zeros(6), 1))
    bound.certificate.x.add_(1)
    assert not inputs.any() and not bound.region.center.any() and not bound.certificate.y.any()


def test_the_default_device_does_not_matter():
    model = copy.deepcopy(MODEL)
    inputs = starts(MODEL)
    expected = gradient_lower_bound(model, inputs)
    with torch.device("meta"):
        assert gradient_lower_bound(model, inputs).verify(model) == expected


# The form of the answer.


@pytest.mark.parametrize("norm", NORMS)
def test_pairs_are_all_the_pairs_and_each_verifies(norm):
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)))
    found, bounds = regions(model), gradient_lower_bound(model, torch.randn(20, 3), norm, logits="pairs")
    assert list(bounds) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    upper = product_bound(model, norm, logits="pairs")
    reached = []
    for pair, bound in bounds.items():
        truth = largest_norm(found, norm, pair)
        assert bound.verify(model).output == pair and bound.kind == "lower"
        assert bound.value <= truth * ORACLE <= upper[pair].value * ORACLE**2
        reached.append(bound.value >= 0.9 * truth)
    assert all(reached)


def test_a_model_with_one_logit_has_no_pairs():
    model = nn.Sequential(nn.Linear(3, 1))
    for bounds in (
        lambda: gradient_lower_bound(model, torch.randn(5, 3), logits="pairs"),
        lambda: product_bound(model, logits="pairs"),
    ):
        with pytest.raises(ValueError, match="one logit"):
            bounds()


def test_inputs_stay_as_they_were_where_a_layer_acts_in_place():
    inputs = torch.randn(5, 3, dtype=torch.float64)
    before = inputs.clone()
    gradient_lower_bound(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), inputs)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3), (6, 1)])
def test_samples_of_any_shape_are_read(shape):
    model = nn.Sequential(nn.Flatten(), *MODELS["batch-norm and dropout"])
    bound = gradient_lower_bound(model, SIX.reshape(-1, *shape), logits=(0, 2)).verify(model)
    assert bound.certificate.x.shape == shape
    flat = gradient_lower_bound(model[1:], SIX, logits=(0, 2))
    assert bound.value >= 0.9 * flat.value


def test_a_model_over_rows_has_as_many_logits_as_numbers():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    bound = gradient_lower_bound(model, torch.randn(9, 5, 3), logits=(0, 7)).verify(model)
    assert bound.value <= product_bound(model, logits=(0, 7), input_shape=(5, 3)).verify(model).value


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("power", [-300, -40, 3, 300])
def test_both_ends_scale_with_the_last_layer(power, norm):
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).double())
    inputs = SIX[:, :2]
    ends = gradient_lower_bound(model, inputs, norm), product_bound(model, norm)
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter *= 2.0**power
    scaled = gradient_lower_bound(model, inputs, norm), product_bound(model, norm)
    for end, other in zip(ends, scaled):
        assert math.isclose(math.ldexp(end.value, power), other.value, rel_tol=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1e150, 1e300])
def test_inputs_and_regions_of_any_size_are_searched(size):
    expected = exact_constant(MODEL)
    bound = gradient_lower_bound(MODEL, size * starts(MODEL).double()).verify(MODEL)
    assert 0 < bound.value <= expected * ORACLE
    for norm in NORMS:
        region = Ball(torch.zeros(MODEL[0].in_features), size, norm)
        bound = gradient_lower_bound(MODEL, starts(MODEL), region=region).verify(MODEL)
        assert bound.value <= expected * ORACLE


@pytest.mark.parametrize("size", [0.0, 1e-310, 1e100, 1e200, 1e300])
@pytest.mark.parametrize("norm", NORMS)
def test_weights_of_any_size_give_a_true_bound(size, norm):
    model = copy.deepcopy(MODEL).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= size
    bound = gradient_lower_bound(model, starts(model), norm).verify(model)
    assert math.isfinite(bound.value)
    assert bound.value <= product_bound(model, norm).value
    if size == 1e100:
        assert bound.value > 1e150


# What is refused.


class Halved(nn.Sequential):
    def forward(self, x):
        return super().forward(x) / 2


def hooked():
    model = nn.Sequential(nn.Linear(6, 2))
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


@pytest.mark.parametrize("find", [gradient_lower_bound, lambda model, inputs: product_bound(model)])
@pytest.mark.parametrize(
    ("model", "word"),
    [
        (nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5)), "train mode"),
        (nn.Sequential(nn.BatchNorm1d(6)), "train mode"),
        (Halved(nn.Linear(6, 2)), "forward"),
        (hooked(), "hook"),
        (nn.Sequential(nn.Linear(6, 2), nn.LSTM(2, 2)), "nn.LSTM"),
        (nn.Linear(6, 2), "nn.Sequential"),
        (torch.relu, "relu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_of_which_no_contract_speaks_is_refused(find, model, word):
    with pytest.raises(UnsupportedLayerError, match=word):
        find(model, SIX)
