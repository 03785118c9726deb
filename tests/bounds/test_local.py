"""local_bound on every kind of model: above every Jacobian of the ball, proved again, the model unchanged."""

import copy
import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipbook import contracts
from lipbook.bound import Ball, CertificateError, UnsupportedLayerError
from lipbook.bounds import local_bound, product_bound
from lipbook.layers import Abs, GroupSort, Householder, MaxMin, Normalize, Residual

METHODS = ["interval", "linear", "branch"]


class Wave(nn.Module):
    """2 sin(x), of which slopes alone are registered."""

    def forward(self, inputs):
        return 2 * torch.sin(inputs)


class Channels(nn.Module):
    """Another slope for each channel."""

    def forward(self, inputs):
        return inputs * self.slopes(inputs)

    def slopes(self, like):
        return torch.arange(like.shape[1], dtype=like.dtype).reshape(1, -1, 1, 1).expand_as(like)


class Doubled(nn.Identity):
    """2x: a subclass of nn.Identity with contracts of its own."""

    def forward(self, inputs):
        return 2 * inputs


def ends(lower, a, b):
    shape = () if lower is None else lower.shape
    return tuple(torch.full(shape, end, dtype=torch.float64) for end in (a, b))


def channel_slopes(layer, lower, upper):
    if lower is None:
        return ends(None, 0.0, 1e6)
    return (layer.slopes(lower).double(),) * 2


contracts.slopes.register(Wave, lambda layer, lower, upper: ends(lower, -2.0, 2.0))
contracts.slopes.register(Channels, channel_slopes)
contracts.slopes.register(Doubled, lambda layer, lower, upper: ends(lower, 2.0, 2.0))
for kind in (Wave, Channels, Doubled):
    contracts.output_shape.register(kind, lambda layer, shape: shape)


def batch_normalised():
    layer = nn.BatchNorm2d(4)
    layer(2 * torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0)) + 1)
    return layer


def bottleneck():
    return nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))


def parametrised():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    return nn.Sequential(linear, nn.Tanh(), nn.utils.parametrizations.orthogonal(nn.Linear(4, 3)))


def convolved(mode, activation=nn.ReLU):
    layers = nn.Conv2d(1, 4, 3, padding=1, padding_mode=mode), activation(), nn.AvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 3))


MODELS = {
    "activation first": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 3)), (4,)),
    "activation last": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,)),
    "activation alone": (lambda: nn.Sequential(nn.GELU()), (4,)),
    "two activations": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 2)), (4,)),
    "two linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), (4,)),
    "one linear": (lambda: nn.Sequential(nn.Linear(4, 3)), (4,)),
    "no layer": (lambda: nn.Sequential(), (2, 2)),
    "sorting alone": (lambda: nn.Sequential(MaxMin(), GroupSort(4)), (4,)),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 6), MaxMin()), nn.Dropout(), nn.Linear(6, 2)),
        (4,),
    ),
    "GroupSort": (
        lambda: nn.Sequential(nn.Linear(4, 6), GroupSort(3), nn.Linear(6, 6), GroupSort(2), nn.Linear(6, 2)),
        (4,),
    ),
    "Householder": (lambda: nn.Sequential(nn.Linear(4, 6), Householder(6), nn.Linear(6, 2)), (4,)),
    "Abs": (lambda: nn.Sequential(nn.Linear(4, 6), Abs(), nn.Linear(6, 2)), (4,)),
    "residual over linear": (
        lambda: nn.Sequential(Residual(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)),
        (4,),
    ),
    "residual": (
        lambda: nn.Sequential(Residual(bottleneck()), MaxMin(), Residual(bottleneck()), nn.Linear(4, 2)),
        (4,),
    ),
    "residual alone": (lambda: nn.Sequential(Residual(nn.SiLU())), (2, 2)),
    "residual over a sorting": (
        lambda: nn.Sequential(Residual(nn.Sequential(GroupSort(4), nn.Linear(4, 4))), nn.Linear(4, 2)),
        (4,),
    ),
    "residual in residual": (
        lambda: nn.Sequential(
            Residual(nn.Sequential(Residual(bottleneck()), nn.ReLU(), nn.Linear(4, 4))), nn.Tanh()
        ),
        (4,),
    ),
    "residual over convolutions": (
        lambda: nn.Sequential(
            Residual(nn.Conv2d(1, 1, 3, padding=1)),
            Residual(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), MaxMin(), nn.Conv2d(2, 1, 1))),
            nn.Flatten(),
        ),
        (1, 3, 3),
    ),
    "residual with slopes by channel": (
        lambda: nn.Sequential(Residual(nn.Sequential(nn.Conv2d(3, 3, 1), Channels())), nn.Flatten()),
        (3, 2, 2),
    ),
    "parametrised": (parametrised, (4,)),
    "rows": (lambda: nn.Sequential(nn.Linear(4, 2), MaxMin(dim=2), nn.Flatten(), nn.Linear(6, 2)), (3, 4)),
    "unflattened": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), MaxMin(dim=1), nn.Flatten(), nn.Linear(4, 2)),
        (4,),
    ),
    "slopes alone": (lambda: nn.Sequential(nn.Linear(4, 4), Wave(), nn.Linear(4, 2)), (4,)),
    "subclass of Identity": (lambda: nn.Sequential(nn.Linear(4, 4), Doubled(), nn.Linear(4, 2)), (4,)),
    "slopes by channel": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), Channels(), nn.Flatten(), nn.Linear(27, 2)),
        (1, 4, 4),
    ),
    **{
        mode: (lambda mode=mode: convolved(mode), (1, 4, 4))
        for mode in ("zeros", "circular", "reflect", "replicate")
    },
    "MaxMin over channels": (lambda: convolved("zeros", MaxMin), (1, 4, 4)),
    "normalised": (
        lambda: nn.Sequential(
            Normalize(0.5, 0.25), nn.Conv2d(1, 4, 2), batch_normalised(), nn.SiLU(), nn.Flatten()
        ),
        (1, 4, 4),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2, stride=2), nn.ELU(2.0), nn.Flatten()),
        (1, 2, 2),
    ),
}


def model_of(name):
    """In float32, but for weights that are computed, and in float64 would be others."""
    build, shape = MODELS[name]
    dtype = torch.float64 if name in ("parametrised", "Householder") else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().to(dtype).eval(), shape


def jacobians(model, center, radius, count=20):
    """Norms of Jacobians at random points of the ball, in float64, of shape (count, outputs, inputs)."""
    exact = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(1)
    steps = 2 * torch.rand(count, *center.shape, generator=generator, dtype=torch.float64) - 1
    points = center.double() + radius * steps
    one = torch.func.jacrev(lambda x: exact(x[None]).flatten())
    return torch.stack([one(point).flatten(1) for point in points]).detach()


@pytest.mark.parametrize("name", MODELS)
def test_above_every_jacobian_below_the_product_and_proved_again(name):
    model, shape = model_of(name)
    center = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    found = jacobians(model, center, 0.3)
    for norm in (2, math.inf):
        truth = torch.linalg.matrix_norm(found, norm).max().item()
        row = torch.linalg.vector_norm(found[:, 0], 2 if norm == 2 else 1, dim=1).max().item()
        before = math.inf
        for method in METHODS:
            budget = {"nodes": 2} if method == "branch" else {}
            bound = local_bound(model, center, 0.3, norm, method=method, **budget)
            assert truth <= bound.value * (1 + 1e-12)
            assert bound.value <= before
            assert (bound.kind, bound.norm, bound.region) == ("upper", norm, Ball(center, 0.3))
            assert bound.verify(model) is bound
            before = bound.value
            alone = local_bound(model, center, 0.3, norm, 0, method, raw=True, **budget)
            assert row <= alone.value * (1 + 1e-12)
            assert alone.method == method and alone.verify(model) is alone
        if name not in ("slopes alone", "subclass of Identity") and not name.endswith("slopes by channel"):
            assert before <= product_bound(model, norm, input_shape=shape).value


def small(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
        .to(dtype)
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=METHODS)
def bounded(request):
    model = small()
    budget = {"nodes": 10} if request.param == "branch" else {}
    return model, local_bound(
        model, torch.zeros(3), 0.05, logits=(0, 1), method=request.param, raw=True, **budget
    )


def test_the_value_is_proved_and_one_percent_less_is_not(bounded):
    model, bound = bounded
    bound.verify(model)
    dataclasses.replace(bound, value=bound.value * 1.01).verify(model)
    with pytest.raises(CertificateError, match="not proved"):
        dataclasses.replace(bound, value=bound.value * 0.99).verify(model)


def test_it_is_not_proved_of_anything_else(bounded):
    model, bound = bounded
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[4].weight[0] += 30.0
    for subject in (changed, nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.MaxPool1d(1)), model[0], None):
        with pytest.raises(CertificateError):
            bound.verify(subject)
    with pytest.raises(CertificateError):
        bound.verify(nn.Sequential(model, nn.Dropout()).train())
    regions = [
        Ball(bound.region.center, 5.0),
        Ball(torch.zeros(4), 0.05),
        Ball(torch.zeros(3), 0.05, norm=2),
        None,
    ]
    changes = [{"region": region} for region in regions]
    for change in (*changes, {"kind": "lower"}, {"output": (7, 1)}, {"output": 9}, {"value": 0.0}):
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, **change).verify(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_weights_are_the_numbers_that_they_are(dtype):
    model = small(dtype)
    exact = copy.deepcopy(model).double()
    for method in METHODS:
        budget = {"nodes": 2} if method == "branch" else {}
        found = [local_bound(m, torch.full((3,), 0.25), 0.5, method=method, **budget) for m in (model, exact)]
        assert found[0].value == found[1].value
        found[0].verify(model)


def test_a_model_in_train_mode_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    with pytest.raises(UnsupportedLayerError, match="eval"):
        local_bound(model, torch.zeros(3), 0.1)


@pytest.mark.parametrize("layer", [nn.MaxPool1d(1), Residual(nn.Sequential(nn.ReLU(), nn.MaxPool1d(1)))])
def test_other_layers_are_refused_by_name(layer):
    with pytest.raises(UnsupportedLayerError, match="nn.MaxPool1d"):
        local_bound(nn.Sequential(layer), torch.zeros(1, 4), 0.1)


def test_a_block_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match="Residual takes a module that keeps the shape"):
        local_bound(nn.Sequential(Residual(nn.Sequential(nn.Linear(4, 1), nn.ReLU()))), torch.zeros(4), 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_the_center_and_the_random_state_stay_as_they_are(method):
    model = small().requires_grad_(True)
    center = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    bound = local_bound(model, center, 0.1, method=method)
    with torch.no_grad():
        center.add_(1)
    bound.verify(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


EXTREME = [1e-300, 1e-100, 1e100, 1e150, 1e300]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", EXTREME)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_never_below_the_truth_for_huge_and_tiny_weights(scale, method, norm):
    """All is positive, so that the model is the linear map of the product of its weights."""
    model = small()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.copy_((layer.weight.abs() + 0.1) * scale)
            layer.bias.zero_()
    rows = [[Fraction(w) for w in row] for row in model[0].weight.tolist()]
    for layer in (model[2], model[4]):
        rows = [
            [sum(Fraction(w) * row[k] for w, row in zip(weights, rows)) for k in range(3)]
            for weights in layer.weight.tolist()
        ]
    largest = max(max(row) for row in rows)  # below the norm of the matrix
    truth = max(sum(row) for row in rows) if norm == math.inf else largest
    for radius in (0.0, 1e-300, 0.5)[:: 1 if method == "linear" else 2]:
        bound = local_bound(model, torch.ones(3), radius, norm, method=method, raw=True)
        assert bound.value == math.inf or Fraction(bound.value) >= truth
        bound.verify(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("center", "radius"), [(1e300, 1.0), (1e308, 1e308), (0.0, 1e308)])
@pytest.mark.parametrize("first", [nn.Tanh(), nn.ReLU(), MaxMin(), nn.ELU(2.0)], ids=str)
def test_huge_balls_give_a_bound_and_no_error(first, center, radius, method):
    fits = (nn.Linear(3, 4),) if isinstance(first, MaxMin) else ()
    model = nn.Sequential(*fits, first, nn.Linear(4 if fits else 3, 2)).double().eval()
    bound = local_bound(model, torch.full((3,), center, dtype=torch.float64), radius, method=method)
    assert 0 <= bound.value < math.inf
    bound.verify(model)
    found = jacobians(model, torch.full((3,), center, dtype=torch.float64), min(radius, 1e307), 20)
    assert torch.linalg.matrix_norm(found, math.inf).nan_to_num(nan=0.0).max() <= bound.value * (1 + 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_kink_at_the_center_or_on_a_face_counts_with_both_slopes(method):
    """|x - 1| + x: slopes 0 and 2."""
    model = nn.Sequential(nn.Linear(1, 2), nn.LeakyReLU(-1.0), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-1.0, 1e6]))
        model[2].weight.fill_(1.0)
    for radius in (1e-300, 1e-9, 1.0):
        assert local_bound(model, torch.ones(1), radius, method=method, raw=True).value >= 2
    assert local_bound(model, torch.full((1,), 1.5), 0.5, method=method, raw=True).value >= 2
    assert local_bound(model, torch.full((1,), 0.5), 0.25, method=method, raw=True).value <= 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_dead_and_duplicated_neurons_and_zero_weights_do_no_harm(method):
    model = small()
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[0].bias[1] = model[0].bias[0]
        model[0].weight[2:4] = 0.0
        model[0].bias[2:] = torch.tensor([0.0, -1.0, -50.0, 50.0])
        model[4].weight[2] = 0.0
    found = jacobians(model, torch.zeros(3), 1.0, 300)
    bound = local_bound(model, torch.zeros(3), 1.0, method=method, raw=True)
    assert torch.linalg.matrix_norm(found, math.inf).max() <= bound.value
    assert local_bound(model, torch.zeros(3), 1.0, logits=2, method=method).value <= 1e-200
    bound.verify(model)


def test_pairs_are_the_bounds_of_each_pair():
    model = small()
    pairs = local_bound(model, torch.zeros(3), 0.3, logits="pairs")
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}
    for pair, bound in pairs.items():
        assert bound.output == pair
        assert bound.value == pytest.approx(
            local_bound(model, torch.zeros(3), 0.3, logits=pair).value, rel=1e-9
        )
        bound.verify(model)
    branched = local_bound(model, torch.zeros(3), 0.3, logits="pairs", method="branch", nodes=3)
    assert all(branched[pair].value <= bound.value for pair, bound in pairs.items())


def test_the_method_that_gave_the_smallest_bound_is_named():
    model = small()
    positive = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
    assert local_bound(positive, torch.ones(3), 0.5).method == "interval"
    assert local_bound(model, torch.zeros(3), 0.5, method="branch", nodes=20).method == "branch"
    assert local_bound(model, torch.zeros(3), 0.5, raw=True, method="interval").method == "interval"


def test_the_default_device_and_dtype_of_torch_do_not_matter():
    model, center = small(), torch.zeros(3, dtype=torch.float64)
    wanted = local_bound(model, center, 0.5, 2, method="branch", nodes=3).value
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        found = local_bound(model, center, 0.5, 2, method="branch", nodes=3)
        found.verify(model)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(default)
    assert found.value == wanted


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, MaxMin, nn.Tanh, nn.Hardtanh])
def test_branch_neither_fails_nor_falls_below_a_jacobian(activation, seed):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in ((3, 8), (8, 8), (8, 8), (8, 2)):
        layers += [nn.Linear(fan_in, fan_out).double(), activation()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.randn(fan_out, fan_in, generator=generator) * 0.7)
            layers[-2].bias.copy_(torch.randn(fan_out, generator=generator) / 2)
    model = nn.Sequential(*layers[:-1]).eval()
    found = jacobians(model, torch.zeros(3), 1.0, 300)
    for norm in (2, math.inf):
        bound = local_bound(model, torch.zeros(3), 1.0, norm, method="branch", nodes=100)
        assert torch.linalg.matrix_norm(found, norm).max() <= bound.value * (1 + 1e-12)
        bound.verify(model)
