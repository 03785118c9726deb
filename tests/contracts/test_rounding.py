"""`enclose` against rational arithmetic, against mpmath with 60 digits, and against points of a box."""

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lipbook import UnsupportedLayerError
from lipbook.contracts import affine, enclose, output_shape, slopes
from lipbook.contracts.rounding import enclose_product
from lipbook.layers import MaxMin
from tests.oracles import exact_forward

ASSUMED = 2.0**-44  # the error of an elementwise activation, in units of |x| + |f(x)|
SMALLEST = 2.0**-1000


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build()


def exactly(model, sample):
    """`exact_forward` of parametrised layers too, whose weights it reads by the name of the class."""
    if isinstance(model, nn.Sequential):
        for child in model:
            sample = exactly(child, sample)
        return sample
    if type(model).__name__ == "ParametrizedLinear":
        plain = nn.Linear(model.in_features, model.out_features, dtype=model.weight.dtype)
        with torch.no_grad():
            plain.weight.copy_(model.weight)
            plain.bias.copy_(model.bias)
        model = plain
    return exact_forward(model, sample)


def boxes(values, errors, generator):
    """Samples of the box around each sample of a batch: its center, two corners and a point inside."""
    for entries, reach in zip(values.tolist(), errors.tolist()):
        for kind in range(4):
            signs = torch.randint(0, 2, (len(entries),), generator=generator).mul(2).sub(1).tolist()
            factors = {0: [0] * len(signs), 3: torch.rand(len(signs), generator=generator).tolist()}
            shares = [Fraction(factor) for factor in factors.get(kind, signs)]
            yield [Fraction(v) + s * Fraction(e) for v, s, e in zip(entries, shares, reach)]


def assert_enclosed(model, values, errors, generator):
    images, allowed = enclose(model, values, errors)
    samples = boxes(values, errors, generator)
    for center, reach in zip(images.flatten(1).tolist(), allowed.flatten(1).tolist()):
        for _ in range(4):
            truth = exactly(model, next(samples))
            assert len(truth) == len(center)
            for true, value, error in zip(truth, center, reach):
                assert math.isinf(error) or abs(true - Fraction(value)) <= Fraction(error)
    return images, allowed


MODELS = {
    "one Linear": seeded(lambda: nn.Linear(5, 4)),
    "no bias": seeded(lambda: nn.Linear(5, 4, bias=False).double()),
    "float64": seeded(lambda: nn.Linear(5, 4).double()),
    "float16": seeded(lambda: nn.Linear(5, 4).half()),
    "bfloat16": seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).bfloat16()),
    "a wide sum": seeded(lambda: nn.Sequential(nn.Linear(5, 40).double(), nn.Linear(40, 2).double())),
    "orthogonal": seeded(lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 5)), nn.ReLU())),
    "weight_norm": seeded(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 3)), nn.ReLU())),
    "a nest": seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(-2.0), nn.Identity()),
            nn.Sequential(nn.Linear(6, 6).double(), MaxMin(), nn.Linear(6, 2)),
        )
    ),
}
SIZES = [1e-310, 1e-160, 1e-5, 1.0, 1e6, 1e150]


@pytest.mark.parametrize("name", MODELS)
@given(
    seed=st.integers(0, 10**6), size=st.sampled_from(SIZES), reach=st.sampled_from([0.0, 1e-15, 0.1, 10.0])
)
def test_every_true_image_of_a_box_is_within_the_errors(name, seed, size, reach):
    generator = torch.Generator().manual_seed(seed)
    values = size * torch.randn(2, 5, generator=generator, dtype=torch.float64)
    errors = reach * size * torch.rand(2, 5, generator=generator, dtype=torch.float64)
    assert_enclosed(MODELS[name], values, errors, generator)


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-310, 1e-200, 1e-5, 1e100, 1e300]))
def test_weights_of_any_size_are_covered(seed, size):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    for parameter in model.parameters():
        scales = size ** torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = scales * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 4, generator=generator, dtype=torch.float64) / max(size, 1e-300)
    assert_enclosed(model, values, 0.01 * values.abs(), generator)


def test_a_sum_that_cancels_is_not_told_to_be_exact():
    layer = nn.Linear(3, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1e16, 1.0, -1e16]], dtype=torch.float64)
    values = torch.tensor([[1.0, 0.1, 1.0]], dtype=torch.float64)
    images, errors = assert_enclosed(layer, values, torch.zeros(1, 3).double(), torch.Generator())
    assert abs(images.item() - 0.1) <= errors.item() and 0.1 < errors.item() < 100


def test_what_is_left_without_a_box_is_a_few_units_in_the_last_place():
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in (MODELS["float64"], MODELS["no bias"]):
        images, errors = enclose(layer, values, torch.zeros_like(values))
        assert torch.allclose(images, layer(values), rtol=1e-12)
        assert (errors <= 20 * 2.0**-53 * (values.abs() @ layer.weight.abs().T + 1)).all()


def test_the_errors_of_a_linear_map_are_those_of_interval_arithmetic():
    layer = MODELS["float64"]
    values, errors = torch.randn(3, 5).double(), torch.rand(3, 5).double()
    allowed = enclose(layer, values, errors)[1]
    assert torch.allclose(allowed, errors @ layer.weight.abs().T, rtol=1e-12)


def test_a_weight_that_may_be_off_by_two_units_is_covered():
    weight = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    values = torch.tensor([[3.0, 3.0]], dtype=torch.float64)
    images, errors = enclose_product(values, 0 * values, weight, torch.zeros(1, dtype=torch.float64))
    farthest = Fraction(3) * (1 + Fraction(2) ** -52) - 6 * (1 - Fraction(2) ** -52)
    assert abs(farthest - Fraction(images.item())) <= Fraction(errors.item())


# Activations, against 60 digits.


def _phi(x):
    return mpmath.mpf(x > 0) if abs(x) > 60 else mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def _logistic(z):
    return mpmath.mpf(z > 0) if abs(z) > 2000 else 1 / (1 + mpmath.exp(-z))


def _softplus(x, beta=1):
    z = mpmath.mpf(beta) * x
    return max(z, mpmath.mpf(0)) / beta if abs(z) > 2000 else mpmath.log1p(mpmath.exp(z)) / beta


def _exponential(x, alpha, width=1, scale=1):
    return scale * (x if x > 0 else alpha * mpmath.expm1(x / width))


def _clipped(x, low, high):
    return min(max(x, mpmath.mpf(low)), mpmath.mpf(high))


SELU = mpmath.mpf(1.6732632423543772), mpmath.mpf(1.0507009873554805)  # torch's own two floats
CUBIC = mpmath.mpf(0.044715)  # torch's float
ROWS = [
    (nn.ReLU(), lambda x: max(x, mpmath.mpf(0))),
    (nn.ReLU6(), lambda x: _clipped(x, 0, 6)),
    *[(nn.LeakyReLU(s), lambda x, s=s: x if x > 0 else x * s) for s in (0.01, -3.0, 1e-310, 1e300)],
    *[(nn.ELU(a), lambda x, a=a: _exponential(x, a)) for a in (1.0, 1e10, 1e-10, 1e300, -2.0, 0.0, 1e-310)],
    *[
        (nn.CELU(a), lambda x, a=mpmath.mpf(a): _exponential(x, a, width=a))
        for a in (1.0, 1e-3, 1e-10, 1e-300, 1e-310, 1e10, 1e300, 1.7e308)
    ],
    (nn.SELU(), lambda x: _exponential(x, SELU[0], scale=SELU[1])),
    *[
        (nn.Softplus(b), lambda x, b=b: _softplus(x, b))
        for b in (1.0, -1.0, 50.0, -0.01, 1e-10, -1e-10, 1e10, -1e10, 1e-300, 1e300, 1e-310)
    ],
    (nn.Softplus(2.0, threshold=30), lambda x: _softplus(x, 2)),
    (nn.GELU(), lambda x: x * _phi(x)),
    (
        nn.GELU("tanh"),
        lambda x: x * _logistic(2 * mpmath.sqrt(2 / mpmath.pi) * (x + CUBIC * x**3)),
    ),
    (nn.SiLU(), lambda x: x * _logistic(x)),
    (nn.Mish(), lambda x: x * mpmath.tanh(_softplus(x))),
    (nn.Hardswish(), lambda x: x * _clipped(x + 3, 0, 6) / 6),
    (nn.Sigmoid(), _logistic),
    (nn.Tanh(), mpmath.tanh),
    (nn.Softsign(), lambda x: x / (1 + abs(x))),
    (nn.Hardtanh(), lambda x: _clipped(x, -1, 1)),
    (nn.Hardtanh(-1e-300, 1e300), lambda x: _clipped(x, -1e-300, 1e300)),
    (nn.Identity(), lambda x: x),
]
ACTIVATIONS = {f"{layer!r}-{getattr(layer, 'beta', '')}": (layer, function) for layer, function in ROWS}
SPECIAL = [0.0, 5e-324, 1e-310, 1e-300, 1e-200, 1e-100, 1e-20, 1e-10, 1e-5, 0.1, 0.5, 1.0, 2.0, 5.0]
SPECIAL += [math.sqrt(2), 1.2784645427610738, 1.4185040087908283, 1.4905711794854284, 2.256376396360793]
SPECIAL += [2.3993572805154675, math.nextafter(3, 0), 3.0, math.nextafter(3, 4), 6.0, 19.9, 20.0, 20.1, 25.0]
SPECIAL += [36.7, 38.0, 100.0, 500.0, 700.0, 708.0, 709.7, 710.0, 744.5, 745.2, 746.0, 800.0, 1e4, 1e10]
SPECIAL += [1e100, 1e103, 1e154, 1e200, 1e300, 1e307]
POINTS = [sign * point for point in SPECIAL for sign in (1, -1)]


@pytest.fixture
def sixty_digits():
    with mpmath.workdps(60):
        yield


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("batch", ["one by one", "together"])
def test_the_stated_assumption_holds_at_hostile_points(name, batch, sixty_digits):
    layer, function = ACTIVATIONS[name]
    points = torch.tensor(POINTS, dtype=torch.float64)
    columns = points[:, None] if batch == "one by one" else points[None]
    parts = [
        enclose(layer, columns[k : k + 1], torch.zeros_like(columns[k : k + 1])) for k in range(len(columns))
    ]
    images, errors = (torch.cat([part[k].flatten() for part in parts]).tolist() for k in (0, 1))
    told = 0
    for point, image, error in zip(POINTS, images, errors):
        truth = function(mpmath.mpf(point))
        distance = abs(truth - mpmath.mpf(image))
        if math.isinf(error):
            continue
        told += 1
        assert distance <= error
        underflow = 2.0**-1060 * layer.alpha if isinstance(layer, nn.CELU) else 0.0
        assert distance <= ASSUMED * (abs(mpmath.mpf(point)) + abs(truth)) + SMALLEST + underflow
        assert error <= 2 * ASSUMED * (abs(point) + abs(image)) + 2 * SMALLEST + underflow
    if getattr(layer, "beta", 1) != 1e-310:  # log(2) / beta is beyond the floats
        assert told >= 0.8 * len(POINTS)


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-200, 1e-3, 1.0, 10.0, 1e3, 1e200]))
def test_every_true_image_of_an_interval_is_within_the_errors(name, seed, size):
    layer, function = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(seed)
    values = size * torch.randn(1, 6, generator=generator, dtype=torch.float64)
    errors = size * 10.0 ** (-6 * torch.rand(1, 6, generator=generator, dtype=torch.float64))
    images, allowed = (part.flatten().tolist() for part in enclose(layer, values, errors))
    with mpmath.workdps(60):
        for k, (value, reach) in enumerate(zip(values.flatten().tolist(), errors.flatten().tolist())):
            for share in (-1, -0.5, 0, 0.5, 1):
                truth = function(mpmath.mpf(value) + mpmath.mpf(share) * mpmath.mpf(reach))
                assert math.isinf(allowed[k]) or abs(truth - mpmath.mpf(images[k])) <= allowed[k]


def test_a_narrow_interval_away_from_a_kink_is_not_widened():
    values, errors = torch.tensor([[-1.0, 1.0, 5.0]]).double(), torch.full((1, 3), 0.25).double()
    assert torch.allclose(
        enclose(nn.ReLU(), values, errors)[1], torch.tensor([[0.0, 0.25, 0.25]]).double(), atol=1e-12
    )
    flat = enclose(nn.Tanh(), values, errors)[1][0]
    assert flat[2] < 4e-4 and flat[0] < 0.25


# The layers that move numbers, and batch-norm.


def batch_norm(kind=nn.BatchNorm1d, channels=3, **attributes):
    layer = seeded(lambda: kind(channels, **attributes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.running_mean.copy_(10 * torch.randn(channels, generator=generator))
        layer.running_var.copy_(torch.rand(channels, generator=generator))
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(channels, generator=generator))
    return layer


def normed(layer, channel, x):
    """One number through batch-norm in eval mode, to 60 digits."""
    mean, var = (mpmath.mpf(part[channel].item()) for part in (layer.running_mean, layer.running_var))
    gamma = 1 if layer.weight is None else mpmath.mpf(layer.weight[channel].item())
    beta = 0 if layer.bias is None else mpmath.mpf(layer.bias[channel].item())
    return gamma * (x - mean) / mpmath.sqrt(var + mpmath.mpf(layer.eps)) + beta


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("affine_too", [True, False])
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-200, 1.0, 1e10, 1e200]))
def test_batch_norm_in_eval_mode_is_within_its_errors(dtype, affine_too, seed, size):
    layer = batch_norm(affine=affine_too).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    values = size * torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    values[0, :, 0] = layer.running_mean.double()  # where the difference cancels
    errors = 0.1 * values.abs() * torch.rand(2, 3, 2, generator=generator, dtype=torch.float64)
    assert_normed(layer, values, errors)


def assert_normed(layer, values, errors):
    images, allowed = enclose(layer, values, errors)
    assert images.shape == values.shape
    with mpmath.workdps(60):
        for index in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
            value, reach, image, error = (
                part[tuple(index)].item() for part in (values, errors, images, allowed)
            )
            for sign in (-1, 0, 1):
                truth = normed(layer, index[1], mpmath.mpf(value) + sign * mpmath.mpf(reach))
                assert abs(truth - mpmath.mpf(image)) <= error


def test_a_scale_that_is_subnormal_is_covered():
    layer = batch_norm(channels=1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.5e-323], dtype=torch.float64))
        layer.running_var.copy_(torch.tensor([2.56], dtype=torch.float64))
    values = torch.tensor([[[1e300]]], dtype=torch.float64)
    assert_normed(layer, values, torch.zeros_like(values))
    assert_normed(layer, 0 * values, values)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5).eval(),
        nn.Dropout(0.0),
        nn.AlphaDropout(0.9).eval(),
        nn.Flatten(),
        nn.Flatten(2),
        nn.Unflatten(1, (2, 2)),
        nn.Unflatten(-1, (3, 1)),
        nn.Identity(),
    ],
    ids=repr,
)
def test_a_layer_that_moves_numbers_moves_the_errors_with_them(layer):
    values, errors = torch.randn(2, 4, 3).double(), torch.rand(2, 4, 3).double()
    errors[0, 0, 0] = math.inf
    images, allowed = enclose(layer, values, errors)
    assert torch.equal(images, layer(values)) and torch.equal(allowed, layer(errors))


# What is not known, and what is not accepted.

CHAIN = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


def test_what_is_not_known_stays_unknown_and_spreads():
    values, errors = torch.ones(2, 3).double(), torch.zeros(2, 3).double()
    errors[1, 1] = math.inf
    allowed = enclose(CHAIN[:1], values, errors)[1]
    assert torch.isfinite(allowed[0]).all() and torch.isinf(allowed[1]).all()
    assert torch.isinf(enclose(nn.ReLU(), values, errors)[1]).sum() == 1


@pytest.mark.parametrize("size", [1e200, 1.7e308])
def test_an_overflow_is_an_infinite_error_beside_a_finite_value(size):
    layer = nn.Linear(2, 2).double()
    layer.weight.data = torch.tensor([[size, -size], [1.0, 0.5]], dtype=torch.float64)
    values = torch.full((1, 2), 1e200, dtype=torch.float64)
    images, errors = enclose(layer, values, torch.zeros_like(values))
    assert torch.isfinite(images).all() and not torch.isnan(errors).any()
    assert torch.isinf(errors[0, 0]) and torch.isfinite(errors[0, 1])


def test_the_answers_are_new_tensors():
    values = torch.ones(1, 3, dtype=torch.float64)
    errors = torch.zeros_like(values)
    for part in enclose(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), values, errors):
        part += 1
    assert torch.equal(values, torch.ones_like(values)) and not errors.any()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_layer_its_gradients_and_the_random_state_stay_as_they_are(context):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Softplus(), nn.Dropout(0.5)).eval()
    model[0].weight.grad = torch.ones(4, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    with context():
        parts = enclose(model, torch.ones(2, 3).double(), torch.zeros(2, 3).double())
    assert not any(part.requires_grad for part in parts)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (
        model[2].threshold == 20 and model[0].weight.requires_grad and model[0].weight.dtype == torch.float32
    )
    assert torch.equal(model[0].weight.grad, torch.ones(4, 3))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(3)], ids=repr)
def test_train_mode_is_refused(layer):
    with pytest.raises(UnsupportedLayerError, match="train mode"):
        enclose(nn.Sequential(layer), torch.ones(1, 3).double(), torch.zeros(1, 3).double())


class Doubled(nn.Module):
    """Linear, by its `affine` contract alone."""

    def forward(self, x):
        return 2 * x


@affine.register(Doubled)
def _(layer, shape):
    size = math.prod(shape)
    return 2 * torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)


class Shaped(Doubled):
    pass


@affine.register(Shaped)
def _(layer, shape):
    return affine(Doubled(), shape)


@output_shape.register(Shaped)
def _(layer, shape):
    return shape


def test_the_images_of_an_affine_contract_have_the_shape_of_the_layers_output():
    values = torch.arange(8.0, dtype=torch.float64).reshape(1, 4, 2)
    model = nn.Sequential(Shaped(), MaxMin())  # MaxMin pairs the channels, and would pair neighbours if flat
    images, errors = enclose(model, values, torch.zeros_like(values))
    assert torch.equal(images, model(values)) and errors.max() < 1e-13


def test_an_affine_contract_without_an_output_shape_is_refused():
    values = torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedLayerError, match="output shape"):
        enclose(Doubled(), values, values)


class Scaled(nn.Module):
    """x times a parametrised weight: what counts is the weight as float32 has it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.7, 1.1]]))
        parametrizations.weight_norm(self)

    def forward(self, x):
        return x * self.weight[0]


@slopes.register(Scaled)
def _(layer, lower, upper):
    like = torch.zeros((), dtype=torch.float64) if lower is None else lower
    return torch.full_like(like, -2.0), torch.full_like(like, 2.0)


def test_a_parametrised_activation_is_run_with_the_weight_of_its_own_dtype():
    layer, values = Scaled(), torch.full((1, 3), 1.5, dtype=torch.float64)
    images, errors = enclose(layer, values, torch.zeros_like(values))
    for weight, image, error in zip(layer.weight[0].tolist(), images[0].tolist(), errors[0].tolist()):
        assert abs(Fraction(weight) * Fraction(1.5) - Fraction(image)) <= Fraction(error)


def test_a_structure_alone_does_not_say_how_an_activation_rounds():
    class Sorted(nn.Module):
        def forward(self, x):
            return MaxMin()(x)

    slopes.register(Sorted, lambda layer, lower, upper: slopes(MaxMin()))
    values = torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedLayerError, match="no enclose contract"):
        enclose(Sorted(), values, values)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (torch.ones(1, 3).double(),) * 3,
        (torch.ones(1, 3), torch.ones(1, 3)),
        (torch.ones(1, 3).double(), torch.ones(1, 2).double()),
        (torch.ones(2, 3).double(), torch.ones(2, 3).double()),
        (torch.ones(1, 3).double(), -torch.ones(1, 3).double()),
    ],
)
def test_an_answer_of_another_form_is_refused(answer):
    class Own(nn.Module):
        def forward(self, x):
            return x

    enclose.register(Own, lambda layer, values, errors: answer)
    with pytest.raises(TypeError, match="the enclose contract of .*Own must return"):
        enclose(Own(), torch.ones(1, 3).double(), torch.zeros(1, 3).double())


def test_a_nan_in_an_answer_is_nothing_known():
    class Lost(nn.Module):
        def forward(self, x):
            return x

    nan = torch.tensor([[math.nan, 1.0, 2.0]], dtype=torch.float64)
    enclose.register(Lost, lambda layer, values, errors: (nan, nan.roll(1, 1)))
    images, errors = enclose(Lost(), torch.ones(1, 3).double(), torch.zeros(1, 3).double())
    assert images.tolist() == [[0.0, 0.0, 2.0]] and errors.tolist() == [[math.inf, math.inf, 1.0]]
