"""MaxMin, GroupSort, Householder and Abs against sorting by hand, exact reflections and `check`."""

import copy
import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev, vmap

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import (
    Reflection,
    Sorting,
    affine,
    check,
    enclose,
    expand,
    lipschitz,
    output_shape,
    slopes,
)
from lipbook.layers import Abs, GroupSort, Householder, MaxMin

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def turned(features, dtype=torch.float32, seed=0):
    """A Householder layer with angles all around the circle."""
    layer = Householder(features).to(dtype)
    with torch.no_grad():
        layer.theta.uniform_(-6, 6, generator=torch.Generator().manual_seed(seed))
    return layer


LAYERS = {
    "MaxMin": (lambda: MaxMin(), (4,)),
    "MaxMin on rows": (lambda: MaxMin(), (6, 3)),
    "MaxMin on channels": (lambda: MaxMin(), (4, 2, 3)),
    "MaxMin along rows": (lambda: MaxMin(2), (3, 4)),
    "MaxMin along the width": (lambda: MaxMin(dim=3), (3, 1, 4)),
    "GroupSort of the whole": (lambda: GroupSort(4), (4,)),
    "GroupSort of threes": (lambda: GroupSort(3), (6, 3)),
    "GroupSort along rows": (lambda: GroupSort(3, dim=2), (6, 3)),
    "GroupSort of pairs of channels": (lambda: GroupSort(2), (4, 2, 3)),
    "Householder": (lambda: turned(4), (4,)),
    "Householder at its start": (lambda: Householder(4), (4,)),
    "Householder on rows": (lambda: turned(6, torch.float64), (6, 3)),
    "Householder on channels": (lambda: turned(4), (4, 2, 3)),
    "Householder in float16": (lambda: turned(4, torch.float16), (4,)),
    "Householder in bfloat16": (lambda: turned(4, torch.bfloat16), (4,)),
    "Abs": (Abs, (4,)),
    "Abs on rows": (Abs, (6, 3)),
    "Abs on channels": (Abs, (4, 2, 3)),
}


def points(shape, count=20, dtype=torch.float64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(dtype)


ATTACKED = {  # always; the others in the full count
    "MaxMin on channels",
    "MaxMin along rows",
    "GroupSort of the whole",
    "GroupSort of threes",
    "Householder",
    "Householder on channels",
    "Householder in float16",
    "Abs on rows",
}


@pytest.mark.parametrize(
    "name",
    [name if name in ATTACKED else pytest.param(name, marks=pytest.mark.thorough) for name in LAYERS],
)
def test_every_layer_survives_the_attacks_and_its_bound_is_reached(name):
    build, shape = LAYERS[name]
    layer = build()
    slack = check(layer, shape)
    # The attack runs in float64, where the vectors are those of float64: beside the bound by their rounding.
    precision = max([0.0, *(2 * torch.finfo(p.dtype).eps for p in layer.parameters())])
    for norm in ("lipschitz_2", "lipschitz_inf"):
        assert -2 * precision <= slack[norm] < 0.01 + 2 * precision
    assert {"slopes", "enclose", "expand", "output_shape"} <= set(slack)


def sorted_by_hand(x, size, dim):
    """Groups one by one, in numpy."""
    rows = np.moveaxis(x.numpy(), dim, -1).copy()
    for start in range(0, rows.shape[-1], size):
        rows[..., start : start + size] = -np.sort(-rows[..., start : start + size], axis=-1)
    return torch.from_numpy(np.moveaxis(rows, -1, dim).copy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("MaxMin", "GroupSort"))])
def test_groups_are_contiguous_and_sorted_downwards(name, dtype):
    build, shape = LAYERS[name]
    layer = build()
    structure = slopes(layer)
    ties = torch.randint(-1, 2, (20, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in (points(shape, dtype=dtype), ties):
        expected = sorted_by_hand(x, structure.group_size, structure.dim)
        assert torch.equal(layer(x), expected) and layer(x).dtype == dtype


def test_maxmin_puts_the_larger_entry_of_each_pair_first():
    assert MaxMin()(torch.tensor([[1.0, 2.0, 4.0, 3.0]])).tolist() == [[2.0, 1.0, 4.0, 3.0]]
    x = points((6, 4))
    assert torch.equal(MaxMin(2)(x), GroupSort(2, dim=2)(x))


@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 3), st.data())
def test_group_sort_at_every_shape_and_dimension(groups, size, dim, data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=dim, max_size=3))
    shape[dim - 1] = groups * size
    x = points(tuple(shape), 3)
    assert torch.equal(GroupSort(size, dim)(x), sorted_by_hand(x, size, dim))
    assert output_shape(GroupSort(size, dim), tuple(shape)) == tuple(shape)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 3)])
def test_householder_mirrors_each_pair_by_the_matrix_of_its_angle(shape):
    layer, x = turned(6, torch.float64), points(shape)
    found = layer(x).unflatten(1, (3, 2))
    for pair, theta in enumerate(layer.theta.tolist()):
        z = x.unflatten(1, (3, 2))[:, pair]
        rows = [[math.cos(theta), math.sin(theta)], [math.sin(theta), -math.cos(theta)]]
        side = z[:, 0] * math.sin(theta / 2) - z[:, 1] * math.cos(theta / 2)
        mirrored = torch.einsum("ij,bj...->bi...", torch.tensor(rows, dtype=torch.float64), z)
        expected = torch.where((side > 0)[:, None], z, mirrored)
        torch.testing.assert_close(found[:, pair], expected, rtol=0, atol=1e-14)


def test_householder_starts_as_maxmin():
    x = points((8, 3))
    torch.testing.assert_close(Householder(8).double()(x), MaxMin()(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_of_a_gradient_is_kept_wherever_there_is_one(name):
    build, shape = LAYERS[name]
    layer = build().double()
    for x in points(shape, 5):
        jacobian = jacrev(lambda sample: layer(sample[None])[0])(x).detach()
        size = x.numel()
        square = jacobian.reshape(size, size)
        torch.testing.assert_close(square @ square.T, torch.eye(size).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_finite_differences(name):
    build, shape = LAYERS[name]
    layer = build().double()
    x = points(shape, 3).requires_grad_()
    parameters = tuple(layer.parameters())

    def function(x, *values):
        return functional_call(layer, dict(zip(dict(layer.named_parameters()), values)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_and_functional_call_give_what_a_loop_gives(name):
    build, shape = LAYERS[name]
    layer = build()
    x = points(shape, 4, dtype=torch.float32)
    layer = layer.float()
    expected = layer(x)
    torch.testing.assert_close(vmap(lambda sample: layer(sample[None])[0])(x), expected)
    layers = [build().float() for _ in range(3)]
    for seed, other in enumerate(layers):
        for parameter in other.parameters():
            parameter.data.uniform_(-6, 6, generator=torch.Generator().manual_seed(seed))
    state = {key: torch.stack([other.state_dict()[key] for other in layers]) for key in layer.state_dict()}
    if state:
        found = vmap(lambda values: functional_call(layer, values, x))(state)
        torch.testing.assert_close(found, torch.stack([other(x) for other in layers]))


@pytest.mark.parametrize("name", LAYERS)
def test_train_and_eval_mode_compute_the_same_and_nothing_is_changed_in_place(name):
    build, shape = LAYERS[name]
    layer, x = build().double(), points(shape)
    kept = x.clone()
    assert torch.equal(layer.train()(x), layer.eval()(x)) and torch.equal(x, kept)
    assert expand(layer) == (layer,) and layer(x).shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_kept(dtype):
    for layer in (MaxMin(), GroupSort(4), Householder(4).to(dtype), Abs()):
        assert layer(points((4,), dtype=dtype)).dtype == dtype


def test_a_saved_householder_computes_the_same():
    layer, other, x = turned(6, seed=1), Householder(6), points((6,), dtype=torch.float32)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x)) and slopes(layer) == slopes(other)
    for norm in (2, math.inf):
        assert lipschitz(layer, norm).verify(other).value == lipschitz(other, norm).value


# The bounds.


def largest_stretch(layer, norm):
    """max(|I|, |I - 2uu'|) over the pairs, exactly; the vectors are those of the forward pass."""
    truth = Fraction(1)
    for first, second in layer.vectors().double().tolist():
        u = Fraction(first), Fraction(second)
        rows = [[int(i == j) - 2 * u[i] * u[j] for j in range(2)] for i in range(2)]
        if norm == 2:
            truth = max(truth, abs(1 - 2 * (u[0] ** 2 + u[1] ** 2)))
        else:
            truth = max(truth, *(abs(row[0]) + abs(row[1]) for row in rows))
    return truth


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [2, math.inf])
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1e-3, 1.0, 1e4]))
def test_the_bound_of_householder_is_that_of_its_rounded_vectors(dtype, norm, seed, spread):
    layer = turned(16, dtype, seed)
    layer.theta.data *= spread
    truth = largest_stretch(layer, norm)
    bound = Fraction(lipschitz(layer, norm).value)
    assert truth <= bound <= truth * (1 + Fraction(1, 2**48))


def test_half_precision_vectors_are_not_unit_vectors_and_the_bound_says_so():
    values = [lipschitz(turned(64, dtype)).value for dtype in (torch.float16, torch.float64)]
    assert values[0] > 1 + 1e-4 and values[1] < 1 + 1e-14


def test_the_norm_of_a_reflection_in_l_inf_reaches_the_square_root_of_two():
    layer = Householder(2).double()
    with torch.no_grad():
        layer.theta.fill_(math.pi / 4)  # rows (cos, sin) of 45 degrees
    assert lipschitz(layer, math.inf).value == pytest.approx(math.sqrt(2), rel=1e-14)
    assert lipschitz(layer, 2).value == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_certificate_proves_its_bound_and_nothing_below(name, norm):
    build, shape = LAYERS[name]
    layer = build()
    for given_shape in (None, shape):
        bound = lipschitz(layer, norm, given_shape)
        assert bound.verify(layer) is bound
        with pytest.raises(CertificateError):
            dataclasses.replace(bound, value=bound.value * (1 - 1e-6)).verify(layer)


def test_other_angles_are_noticed_by_the_certificate():
    layer = Householder(2).double()
    bound = lipschitz(layer, math.inf)
    with torch.no_grad():
        layer.theta.fill_(1.0)
    with pytest.raises(CertificateError):
        bound.verify(layer)


def test_the_structures_are_those_of_the_layers():
    assert slopes(MaxMin()) == Sorting(2) and slopes(GroupSort(3, dim=2)) == Sorting(3, dim=2)
    layer = turned(6)
    ends = torch.zeros(6), torch.ones(6)
    assert slopes(layer) == slopes(layer, *ends) == Reflection(layer.vectors())
    assert torch.equal(slopes(layer).vectors, layer.vectors().double())


def test_the_slopes_of_abs_are_exact_on_either_side_of_its_kink():
    lower = torch.tensor([-3.0, 0.5, -1.0, -2.0])
    upper = torch.tensor([-1e-30, 4.0, 1.0, -1.0])
    a, b = slopes(Abs(), lower, upper)
    assert a.tolist() == [-1, 1, -1, -1] and b.tolist() == [-1, 1, 1, -1]
    assert [end.item() for end in slopes(Abs())] == [-1, 1]


def test_nothing_in_these_layers_is_affine():
    for layer in (MaxMin(), GroupSort(2), Householder(4), Abs()):
        with pytest.raises(UnsupportedLayerError, match="has no affine contract"):
            affine(layer, (4,))


# Refusals.

SIZES = [
    (MaxMin(), (3,)),
    (MaxMin(2), (4,)),
    (MaxMin(2), (4, 3)),
    (GroupSort(3), (4, 3)),
    (GroupSort(2, dim=3), (2, 2)),
    (Householder(4), (6,)),
    (Householder(4), (2, 4)),
]


@pytest.mark.parametrize("layer, shape", SIZES, ids=str)
def test_a_size_that_does_not_fit_is_refused_by_the_forward_pass_and_the_contracts(layer, shape):
    for read in (
        lambda: layer(torch.zeros(2, *shape)),
        lambda: output_shape(layer, shape),
        lambda: lipschitz(layer, 2, shape),
    ):
        with pytest.raises(ValueError, match=r"takes .*, got the sample shape \("):
            read()


def changed(layer, **attributes):
    layer = copy.deepcopy(layer)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


class Doubled(MaxMin):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class OtherVectors(Householder):
    def vectors(self):
        return 3 * super().vectors()


def hooked(layer):
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


REFUSED = {
    "a forward pass of its own": Doubled(),
    "vectors of its own": OtherVectors(4),
    "a hook": hooked(GroupSort(2)),
    "a hook on Abs": hooked(Abs()),
    "vectors on the instance": changed(Householder(4), vectors=lambda: torch.ones(2, 2)),
    "the samples sorted": changed(MaxMin(), dim=0),
    "counted from behind": changed(GroupSort(2), dim=-1),
    "no group": changed(GroupSort(2), group_size=1),
    "a group that is no int": changed(GroupSort(2), group_size=2.0),
    "angles of another size": changed(Householder(4), theta=nn.Parameter(torch.ones(1))),
    "features of another size": changed(Householder(4), features=6),
    "one feature without a partner": changed(Householder(4), features=5),
    "features that are no int": changed(Householder(4), features=4.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_in_a_state_that_no_contract_speaks_of_is_refused(name):
    layer = REFUSED[name]
    for read in (
        lambda: lipschitz(layer),
        lambda: slopes(layer),
        lambda: output_shape(layer, (4,)),
        lambda: enclose(layer, *[torch.zeros(1, 4, dtype=torch.float64)] * 2),
    ):
        with pytest.raises(UnsupportedLayerError):
            read()


def test_an_angle_that_is_nan_is_refused():
    layer = Householder(4)
    with torch.no_grad():
        layer.theta[1] = math.nan
    with pytest.raises(ValueError, match="theta"):
        lipschitz(layer)
